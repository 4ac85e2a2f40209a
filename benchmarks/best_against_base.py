"""Is the configuration that a sweep has chosen better? The best and the base, each trained in full with several seeds.

    attvae sweep configs/search/digits.yaml
    python benchmarks/best_against_base.py configs/search/digits.yaml runs/search/digits/best.yaml

Both have the same budget, that of best.yaml. One of each trains at a time, side by side on one core each. Test figures
are of EMA weights, once per seed; the choice was made on validation images. JSON on stdout: each figure, mean, standard
deviation of the seeds, and Welch's test of the difference.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from scipy.stats import ttest_ind

from attvae.config import load
from attvae.search.config import load_search

REPOSITORY = Path(__file__).parent.parent


def start(config: Path, seed: int, samples: int, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "launch/train.py", str(config), "--out", str(out)]
    command += [f"seed={seed}", f"train.samples={samples}", "tracking.mlflow=false"]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}, stdout=sys.stderr
    )


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("search", type=Path)
    options.add_argument("best", type=Path)
    options.add_argument("--seeds", type=int, default=3)
    given = options.parse_args()
    configs = {"best": given.best.resolve(), "base": load_search(given.search).base.resolve()}
    samples = load(configs["best"]).train.samples
    found: dict[str, list[dict[str, float]]] = {name: [] for name in configs}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.seeds):
            outs = {name: Path(folder) / f"{name}-{seed}" for name in configs}
            running = {name: start(configs[name], seed, samples, out) for name, out in outs.items()}
            codes = {name: process.wait() for name, process in running.items()}
            if any(codes.values()):
                raise SystemExit(f"a training of seed {seed} has failed: {codes}")
            for name, out in outs.items():
                summary = json.loads((out / "summary.json").read_text())
                figures = {f"{split}_nelbo_nats": summary[split]["nelbo_nats"] for split in ("val", "test")}
                found[name].append({"seed": seed, **figures})
                print(name, found[name][-1], file=sys.stderr, flush=True)
    report: dict[str, object] = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    report |= {"samples": samples, "runs": found}
    for figure in ("val_nelbo_nats", "test_nelbo_nats"):
        best, base = ([run[figure] for run in found[name]] for name in ("best", "base"))
        report[figure] = {
            **{f"{name}_mean": statistics.mean(each) for name, each in (("best", best), ("base", base))},
            **{f"{name}_std": statistics.stdev(each) for name, each in (("best", best), ("base", base))},
            "difference": statistics.mean(best) - statistics.mean(base),
            "welch_p": float(ttest_ind(best, base, equal_var=False).pvalue),
        }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
