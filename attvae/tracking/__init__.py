"""Where the figures of a run go: a journal in the run folder, a terminal, MLflow."""
