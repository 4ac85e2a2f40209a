"""What tracking costs the training when MLflow's server accepts and never answers.

Interleaved pairs of short trainings, one with such a server and one without MLflow, in changing order.
A training's figure is its images over its time, from its first log line to its last; the result is the median over the
pairs of their ratio.
JSON on stdout.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from mlflow_server import hanging_server  # noqa: E402

from attvae.tracking.jsonl import read  # noqa: E402
from data_prep.digits import dataset  # noqa: E402
from data_prep.writer import prepare  # noqa: E402

TO_REACH = 0.97


def train(data: Path, out: Path, samples: int, tracking: str) -> float:
    """Images per second from the first log line to the last, whatever the time was spent on."""
    rarely = (
        f"eval.every={samples}",
        f"checkpoint.every={samples}",
        "evaluate.binarisations=1",
        "train.log_every=2000",
    )
    command = [sys.executable, "launch/train.py", "configs/demo.yaml", f"data.path={data}", f"train.samples={samples}"]
    sound = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    subprocess.run(
        [*command, *rarely, tracking, "--out", str(out)],
        cwd=REPOSITORY,
        env={**sound, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    rows = [row for row in read(out / "metrics.jsonl") if "perf/images_per_s" in row]
    return (rows[-1]["samples_seen"] - rows[0]["samples_seen"]) / (rows[-1]["time"] - rows[0]["time"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--samples", type=int, default=40_000, help="of each training")
    asked = parser.parse_args()
    pairs = []
    with tempfile.TemporaryDirectory() as place, hanging_server() as uri:
        data = Path(place) / "digits"
        prepare(dataset(), data)
        settings = {"hanging": f"tracking.uri={uri}", "none": "tracking.mlflow=false"}
        for index in range(asked.pairs):
            order = list(settings) if index % 2 == 0 else list(settings)[::-1]
            speed = {name: train(data, Path(place) / f"{name}{index}", asked.samples, settings[name]) for name in order}
            pairs.append({**speed, "ratio": speed["hanging"] / speed["none"]})
            print(f"pair {index + 1}: {pairs[-1]}", file=sys.stderr, flush=True)
    ratio = statistics.median(pair["ratio"] for pair in pairs)
    result = {
        "what": "images/s with a server that never answers, against no tracking",
        "ratio": ratio,
        "to_reach": TO_REACH,
        "reached": ratio >= TO_REACH,
        "samples": asked.samples,
        "pairs": pairs,
        "machine": platform.processor() or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_average_1min": os.getloadavg()[0],
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
