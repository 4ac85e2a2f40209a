"""A trial on a Ray cluster: it starts ordinary training processes, tells Ray Tune their figures, and ends them."""

import json
import math
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import ray
import yaml
from ray import tune
from ray.exceptions import RayActorError
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from attvae.checkpoint import complete
from attvae.config import RunConfig, flatten, load
from attvae.run_folder import RunFolder, write_text
from attvae.search.ranks import FAREWELL_S, Part, Ranks, failure
from attvae.search.space import Point
from attvae.search.sweep_folder import SweepFolder
from attvae.tracking.jsonl import Row, read

POLL_S = 0.5
WRITTEN_S = 120.0
"""How long the checkpoint that goes with a figure may take to appear after it."""

_HANDOVER = "handover.json"


class Setting(NamedTuple):
    """What all trials of a sweep have in common."""

    out: Path
    cwd: Path
    """Where relative paths of the configurations begin; like `out`, the same on every host."""
    metric: str
    nodes: int
    ranks_per_node: int
    cpus_per_rank: float
    gpus_per_rank: float
    environment: dict[str, str]
    """Of the ranks, on whatever machine: where MLflow is, and who may write."""

    def bundle(self) -> dict[str, float]:
        """Ray's resources for the ranks of one node."""
        gpus = {"GPU": self.ranks_per_node * self.gpus_per_rank} if self.gpus_per_rank else {}
        return {"CPU": self.ranks_per_node * self.cpus_per_rank, **gpus}


class TrialLostError(RuntimeError):
    """The ranks have ended, and the same command may do better: Ray Tune tries again, as often as it may."""


def launch_config(sweep: SweepFolder, run: Path) -> Path:
    """The configuration that a run folder of a trial is started with. What its ranks print is kept beside it."""
    return sweep.path / "launch" / (".".join(run.relative_to(sweep.trials).parts) + ".yaml")


def point_of(cfg: RunConfig, keys: Iterable[str]) -> Point:
    """What a run tries: its values of these dotted keys, those that it has."""
    values = flatten(cfg.model_dump(mode="json"))
    return {key: values[key] for key in keys if key in values}


class NodeRanks:
    """The ranks of a trial on this node; where it is not the trial's first one, a Ray actor."""

    def __init__(self, setting: Setting, config: Path, run: Path, node: int, master: tuple[str, int]) -> None:
        here = setting.ranks_per_node
        threads = str(max(1, int(setting.cpus_per_rank)))  # what Ray sets is for all of them
        environment = {**setting.environment, "OMP_NUM_THREADS": threads}
        if not setting.gpus_per_rank:
            environment["DS_ACCELERATOR"] = "cpu"
        self._ranks = Ranks(
            ["-m", "attvae.cli", "train", str(config), "--out", str(run)],
            Part(node * here, here, setting.nodes * here, master),
            setting.cwd,
            config.with_suffix(""),
            environment,
        )

    def ended(self) -> list[int] | None:
        return self._ranks.ended()

    def stop(self) -> None:
        self._ranks.stop()

    def said(self) -> str:
        return self._ranks.said()


class TrialWorker(tune.Trainable):
    """One trial, as Ray Tune sees it. Its run folders hold all its state: started anew, it goes on with them.

    A report has `samples_seen` and the metric; the last one has `finished: True`, or `failed` with the reason, as well.
    """

    def setup(self, config: Point, *, setting: Setting) -> None:
        self._point = config
        self._setting = setting
        self._sweep = SweepFolder(setting.out)
        self._here: NodeRanks | None = None
        self._elsewhere: list[Any] = []
        self._failed_at: float | None = None
        self._take(self._sweep.generations(self.trial_id)[-1])

    def step(self) -> dict[str, Any]:
        if self._here is None:
            self._start()
        while True:
            codes = self._codes()  # before the journal is looked at, which is then complete
            row = self._next_row()
            if row is not None and not math.isfinite(row[self._setting.metric]):
                self.cleanup()
                return self._report(row, failed=f"{self._setting.metric} is {row[self._setting.metric]}")
            if row is not None and row["samples_seen"] < self._cfg.train.samples:
                return self._report(row)
            if codes is not None:
                return self._last_report(codes, row)
            time.sleep(POLL_S)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Names the checkpoint of the figure that was reported last, or else the newest; Ray gets no more than that."""
        place = self._run.checkpoints / f"{self._reported:012d}"
        deadline = time.monotonic() + WRITTEN_S
        while not place.is_dir() and self._is_training() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        there = [place] if place.is_dir() else complete(self._run.checkpoints)[-1:]
        handover = {"trial": self.trial_id, "checkpoint": str(there[0]) if there else None}
        (Path(checkpoint_dir) / _HANDOVER).write_text(json.dumps(handover))

    def load_checkpoint(self, checkpoint: str) -> None:
        """Goes on from another trial's checkpoint, with the point that Ray Tune has given. Its own needs nothing."""
        handover = json.loads((Path(checkpoint) / _HANDOVER).read_text())
        if handover["trial"] == self.trial_id:
            return
        # One that has never saved hands over its values alone.
        there = [Path(handover["checkpoint"])] if handover["checkpoint"] else complete(self._run.checkpoints)[-1:]
        taken = there[0] if there else None
        if taken == self._cfg.resume and self._point == point_of(self._cfg, self._point):
            return  # what it was doing already when its worker was lost
        first, *later = self._sweep.generations(self.trial_id)
        run = first / f"gen-{len(later) + 1:03d}"
        overrides = [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in self._point.items()]
        cfg = load(launch_config(self._sweep, first), overrides).model_copy(update={"resume": taken})
        write_text(launch_config(self._sweep, run), cfg.to_yaml())
        run.mkdir(parents=True)
        self._take(run)

    def cleanup(self) -> None:
        """Ends all ranks; they save."""
        asked = [node.stop.remote() for node in self._elsewhere]
        if self._here is not None:
            self._here.stop()
        for answer in asked:
            with suppress(RayActorError):  # its node is gone, and the ranks with it
                ray.get(answer)

    def _take(self, run: Path) -> None:
        """Makes a run folder, new or not, the present one of this trial."""
        self._run = RunFolder(run)
        self._config = launch_config(self._sweep, run)
        self._cfg: RunConfig = load(self._config)
        # Of what is there, the newest figure is told again: it may not have been heard.
        known = self._rows()
        self._reported = int(known[-2]["samples_seen"]) if len(known) > 1 else -1

    def _start(self) -> None:
        setting = self._setting
        with socket.socket() as free:
            free.bind(("", 0))
            master = (ray.util.get_node_ip_address(), free.getsockname()[1])
        common = (setting, self._config, self._run.path)
        bundle, group = setting.bundle(), get_current_placement_group()
        self._elsewhere = [
            ray.remote(NodeRanks)
            .options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node),
            )
            .remote(*common, node, master)
            for node in range(1, setting.nodes)
        ]
        self._here = NodeRanks(*common, 0, master)

    def _is_training(self) -> bool:
        return self._here is not None and self._codes() is None

    def _codes(self) -> list[int] | None:
        """The exit codes of all ranks, once they have ended. Ranks without those of another node are ended.

        Raises:
            RayActorError: another node is gone; Ray Tune tries again.
        """
        assert self._here is not None
        nodes = [self._here.ended(), *ray.get([node.ended.remote() for node in self._elsewhere])]
        ended = [code for codes in nodes if codes is not None for code in codes]
        if None not in nodes:
            return ended
        if any(ended):
            self._failed_at = self._failed_at or time.monotonic()
            if time.monotonic() - self._failed_at > FAREWELL_S:
                self.cleanup()
        return None

    def _rows(self) -> list[Row]:
        """Those rows of the journal that have the metric."""
        return [row for row in read(self._run.journal) if self._setting.metric in row]

    def _next_row(self) -> Row | None:
        return next((row for row in self._rows() if row["samples_seen"] > self._reported), None)

    def _report(self, row: Row, **ending: object) -> dict[str, Any]:
        self._reported = int(row["samples_seen"])
        return {"samples_seen": self._reported, self._setting.metric: row[self._setting.metric], **ending}

    def _last_report(self, codes: list[int], row: Row | None) -> dict[str, Any]:
        assert self._here is not None
        said = "".join([self._here.said(), *ray.get([node.said.remote() for node in self._elsewhere])])
        self._here, self._elsewhere = None, []
        why = failure(codes, said)
        if why is not None and why.again:
            raise TrialLostError(why.reason)
        if why is not None:
            return {"samples_seen": max(0, self._reported), "failed": why.reason}
        if row is None:
            return {"samples_seen": 0, "failed": f"{self._setting.metric} was never reported"}
        return self._report(row, finished=True)
