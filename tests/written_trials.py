"""Run folders as the trials of a sweep leave them."""

from pathlib import Path

from attvae.run_folder import write_json
from attvae.search.config import SearchConfig, load_search
from attvae.tracking.jsonl import Journal

ROOT = Path(__file__).parents[1]
METRIC = "val/nelbo_nats"


def search_of(*overrides: str) -> SearchConfig:
    return load_search(ROOT / "configs" / "search" / "digits.yaml", overrides)


def write_run(folder: Path, figures: dict[int, float], test: float | None = None, start: int | None = None) -> None:
    """Journal and summary of a run."""
    tracker = Journal(folder / "metrics.jsonl", start)
    for samples_seen, nelbo in figures.items():
        tracker.metrics(samples_seen - 1, {"train/lr": 0.1})
        values = {"nelbo_nats": nelbo, "nll_nats": nelbo - 5, "kl_nats": 5.0, "bits_per_dim": nelbo / 44.4}
        tracker.metrics(samples_seen, {f"val/{name}": value for name, value in values.items()})
    tracker.close("FINISHED")
    if test is not None:
        figures_of_test = {"nelbo_nats": test, "nll_nats": test - 5, "bits_per_dim": test / 44.4, "images": 200}
        write_json(folder / "summary.json", {"test": figures_of_test, "val": {}})
