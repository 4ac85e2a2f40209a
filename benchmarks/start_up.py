"""Seconds from the command to the end of the first update, phase by phase (DeepSpeed, on the CPU).

    .venv/bin/python benchmarks/start_up.py > benchmarks/results/start_up_HARDWARE_DATE.json

Each round starts `attvae train` anew and ends it after its first update; with `--ranks 2` the `deepspeed` command does,
and rank 0 is shown. The round before the first fills the caches, and does not count.

`wall_s` is what a user waits, and on a busy machine mostly the work of others. `main_thread_cpu_s` is what a phase
needs itself: on an idle machine it takes no less. `process_cpu_s` adds the other threads, such as the one that imports
mlflow; `all_processes_cpu_s` the other rank, and the two processes of the `deepspeed` command.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).parent.parent
sys.path[:0] = [str(REPOSITORY)]

TO_REACH_S = 12.0
CLOCKS: dict[str, Callable[[], float]] = {
    "wall_s": time.time,
    "main_thread_cpu_s": time.thread_time,
    "process_cpu_s": time.process_time,
}
RESULT = "ATTVAE_START_UP_RESULT"


def watched_run(arguments: Sequence[str], result: Path) -> None:
    """`attvae train` in this process up to its first update; rank 0 writes what its clocks showed after each phase."""
    marks: dict[str, dict[str, float]] = {}

    def end(phase: str) -> None:
        marks[phase] = {name: clock() for name, clock in CLOCKS.items()}

    def ends(phase: str, place: Any, name: str, *, with_return: bool) -> None:
        """The phase ends when `place.name` is called, or when it returns."""
        function = getattr(place, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            if not with_return:
                end(phase)
                return function(*args, **kwargs)
            found = function(*args, **kwargs)
            end(phase)
            return found

        setattr(place, name, watched)

    end("launcher, interpreter")
    import torch  # noqa: F401

    end("import of torch")
    from attvae import cli, loop, train

    step = loop.Loop._train_step

    def only_step(run: loop.Loop) -> bool:
        step(run)
        end("first update")
        run._world.barrier()
        if run._world.rank == 0:
            result.write_text(json.dumps(marks))
        os._exit(0)

    ends("the other imports, configuration", train, "train", with_return=False)
    ends("meeting the ranks", train, "connect", with_return=True)
    ends("import of DeepSpeed", train, "import_deepspeed", with_return=True)
    ends("data, run folder, models", train, "import_deepspeed", with_return=False)
    ends("describing the run", train, "build_engine", with_return=False)
    ends("engine", train, "build_engine", with_return=True)
    ends("device's peak, data, trackers", train, "Loop", with_return=True)
    loop.Loop._train_step = only_step  # type: ignore[method-assign]
    cli.app(["train", *arguments])


def measure(config: Path, ranks: int, settings: Sequence[str]) -> dict[str, dict[str, float]]:
    """Seconds of each phase of one start, and of all together as `total`."""
    with tempfile.TemporaryDirectory() as place:
        result = Path(place) / "result.json"
        arguments = [__file__, str(config), *settings, "--out", str(Path(place) / "run")]
        arguments += [f"tracking.uri=sqlite:///{place}/mlflow.db", f"tracking.artifacts={place}/artifacts"]
        if ranks == 1:
            command = [sys.executable, *arguments]
        else:
            launcher = str(Path(sys.executable).with_name("deepspeed"))
            port = subprocess.check_output([sys.executable, "launch/free_port.py"], cwd=REPOSITORY, text=True).strip()
            address = ["--master_addr", "127.0.0.1", "--master_port", port]
            command = [launcher, "--quiet", "--num_gpus", str(ranks), *address, *arguments]
        sound = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        environment = {**sound, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", RESULT: str(result)}
        before, begun = _cpu_of_children(), time.time()
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
        if not result.exists():
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
        all_processes = _cpu_of_children() - before
        marks = json.loads(result.read_text())
    phases: dict[str, dict[str, float]] = {}
    last = {"wall_s": begun, "main_thread_cpu_s": 0.0, "process_cpu_s": 0.0}
    for phase, clocks in marks.items():
        phases[phase] = {name: clocks[name] - last[name] for name in CLOCKS}
        last = clocks
    total = {name: sum(seconds[name] for seconds in phases.values()) for name in CLOCKS}
    return phases | {"total": total | {"all_processes_cpu_s": all_processes}}


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def summary(rounds: Sequence[dict[str, dict[str, float]]]) -> list[dict[str, Any]]:
    """A row for each phase: the median of each of its clocks, the shortest and the longest."""
    return [
        {"phase": phase}
        | {
            clock: {
                "median": round(median(values), 3),
                "min": round(min(values), 3),
                "max": round(max(values), 3),
            }
            for clock in clocks
            for values in [[found[phase][clock] for found in rounds]]
        }
        for phase, clocks in rounds[0].items()
    ]


def main() -> None:
    from attvae.bench.data import machine
    from attvae.tracking.console import print_table, rich_console

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--ranks", type=int, default=1, help="above 1: by the deepspeed command")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="such as data.path=data/digits")
    asked = parser.parse_args()
    console = rich_console()
    console.stderr = True
    rounds = [measure(asked.config, asked.ranks, asked.settings) for _ in range(asked.rounds + 1)][1:]
    rows = summary(rounds)
    columns = [*CLOCKS]
    print_table(
        "Start of a run, medians",
        ["", *columns],
        [[row["phase"], *(row[name]["median"] for name in columns)] for row in rows],
        console,
    )
    settings = {name: str(value) for name, value in vars(asked).items()}
    wall = rows[-1]["wall_s"]["median"]
    goal = {"to_reach_s": TO_REACH_S, "reached": wall <= TO_REACH_S}
    print(json.dumps({"environment": machine(), "settings": settings, **goal, "rows": rows}, indent=1))


if __name__ == "__main__":
    if RESULT in os.environ:
        watched_run(
            [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")], Path(os.environ[RESULT])
        )
    else:
        main()
