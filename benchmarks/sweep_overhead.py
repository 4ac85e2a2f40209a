"""What a sweep costs beside its trials: four sequential trials against the same four trainings alone.

    python benchmarks/sweep_overhead.py data/digits

Prints JSON: seconds of both, and their difference, which must be below 60 s.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

TRIALS = 4
REPOSITORY = Path(__file__).parent.parent


def main(data: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        search = Path(folder) / "overhead.yaml"
        tree = {
            "base": str(REPOSITORY / "configs/test/tiny.yaml"),
            "overrides": {"data.path": str(data.resolve()), "tracking.mlflow": False},
            "for_trials": {"train.log_every": 500},
            "space": {"train.lr": {"loguniform": [1e-3, 1e-2]}},
            "samples": 4000,
            "searcher": "random",
            "trials": TRIALS,
        }
        search.write_text(yaml.safe_dump(tree))
        sweep_s = seconds("sweep", str(search), "--out", f"{folder}/sweep")
        alone_s = 0.0
        for index in range(TRIALS):
            alone_s += seconds("train", f"{folder}/sweep/launch/t{index:03d}.yaml", "--out", f"{folder}/alone-{index}")
    print(json.dumps({"sweep_s": sweep_s, "alone_s": alone_s, "overhead_s": sweep_s - alone_s}, indent=1))


def seconds(*command: str) -> float:
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "attvae.cli", *command],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},  # as a trial has them
        check=True,
        stdout=sys.stderr,
    )
    return round(time.monotonic() - began, 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
