"""The driver of a sweep: Ray Tune's schedulers judge, optuna or the seed proposes, the sweep's folder remembers.

Ray Tune 2.60 does not restore its schedulers (ray-project/ray#30838), and what it keeps of an experiment is pickled. So
its own state is thrown away: a resumed sweep is a new experiment of Tune's that is first told the figures which the run
folders hold.
"""

import logging
import math
import random
import re
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import ray
from ray import tune
from ray.tune.experiment.config_parser import _create_trial_from_spec, _make_parser
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import SearchAlgorithm

from attvae.config import RunConfig, flatten, load
from attvae.engine.stop import StopRequestedError
from attvae.run_folder import RunFolder, write_text
from attvae.search.config import Asha, Dimension, MedianStopping, Pbt, SearchConfig
from attvae.search.results import read_trials
from attvae.search.space import Point, best_config, first_points, planned_trials, trial_config
from attvae.search.standings import Standings
from attvae.search.sweep_folder import SweepFolder
from attvae.search.tpe import Tpe
from attvae.search.trial import Trial, ranked
from attvae.search.worker import Setting, TrialLostError, TrialWorker, launch_config, point_of
from attvae.tracking.config import mlflow_variables
from attvae.tracking.mlflow_sweep import MlflowSweep
from attvae.tracking.protocol import Status


def run(search: SearchConfig, out: Path, resume: bool) -> None:
    """Runs a sweep on the Ray that this process has joined.

    Raises:
        ValueError, OSError, SweepFailedError, StopRequestedError: as attvae.search.tune.sweep.
    """
    setting = Setting(
        out, Path.cwd(), search.metric, search.nodes, search.ranks // search.nodes, search.cpus_per_rank,
        search.gpus_per_rank, mlflow_variables(),
    )  # fmt: skip
    _check_room(search, setting)
    folder = SweepFolder(out)
    with folder.owned(search, resume), _until_asked_to_stop(), _in_mlflow(search, folder) as tags:
        standings = Standings(search, folder)
        standings.write()
        scratch = out / "ray"
        shutil.rmtree(scratch, ignore_errors=True)  # of a driver that was killed
        random.seed(search.seed)  # PBT draws from it
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # losses are told below, without tracebacks
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(TrialWorker, setting=setting),
                tune.PlacementGroupFactory([setting.bundle()] * search.nodes, strategy="PACK"),
            ),
            tune_config=tune.TuneConfig(
                search_alg=_Proposals(search, folder, standings, tags), scheduler=_Judge(search, standings)
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(scratch),
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=search.retries),
                callbacks=[_Losses(standings)],
            ),
        )
        try:
            tuner.fit()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        standings.check_that_one_worked()


class _Proposals(SearchAlgorithm):
    """Trials for Ray Tune: first those that were running when a sweep was cut off, then new ones."""

    def __init__(
        self, search: SearchConfig, folder: SweepFolder, standings: Standings, tags: Mapping[str, str]
    ) -> None:
        """
        Args:
            tags: of the trials' MLflow runs.
        """
        self._search = search
        self._folder = folder
        self._tags = tags
        self._standings = standings
        self._cut_off = standings.trials("running")
        self._running: set[str] = set()
        self._first = first_points(search)
        self._tpe = Tpe(search.space, search.seed + len(standings)) if search.searcher == "optuna" else None
        self._parser = _make_parser()
        if self._tpe is not None:
            for trial in standings.trials("finished", "stopped", "failed"):
                self._tpe.begin(trial.id, trial.config)
                self._tell_searcher(trial)

    def add_configurations(self, experiments: Any) -> None:
        (self._experiment,) = experiments if isinstance(experiments, list) else [experiments]

    def next_trial(self) -> Any:
        while len(self._running) < self._search.parallel and not self.is_finished():
            begun = self._taken_up(self._cut_off.pop(0)) if self._cut_off else self._begun(len(self._standings))
            if begun is None:
                continue
            trial_id, point = begun
            self._running.add(trial_id)
            return _create_trial_from_spec(
                {**self._experiment.spec, "config": point}, self._parser, trial_id=trial_id, experiment_tag=trial_id
            )
        return None

    def is_finished(self) -> bool:
        return self._finished or (not self._cut_off and len(self._standings) >= planned_trials(self._search))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._running.discard(trial_id)
        if self._tpe is not None and error:
            self._tpe.end(trial_id, None)
        elif self._tpe is not None and (ended := self._standings.ended(trial_id)) is not None:
            self._tell_searcher(ended)

    def _taken_up(self, trial: Trial) -> tuple[str, Point]:
        """A trial that was cut off, with what it tried last."""
        newest = load(launch_config(self._folder, self._folder.generations(trial.id)[-1]))
        point = trial.config | point_of(newest, trial.config)
        if self._tpe is not None:
            self._tpe.begin(trial.id, point)
        self._standings.taken_up(trial.id, point)
        return trial.id, point

    def _begun(self, index: int) -> tuple[str, Point] | None:
        """A new trial; None where its values make no run, which counts as a trial that has failed."""
        trial_id = f"t{index:03d}"
        if index < len(self._first):
            point = self._first[index]
            if self._tpe is not None:
                self._tpe.begin(trial_id, point)
        else:
            assert self._tpe is not None, "grid and random search know all their points"
            point = self._tpe.propose(trial_id)
        try:
            best_config(self._search, point)
            cfg = _of_trial(self._search, trial_id, point, self._tags)
        except ValueError as error:  # what the searcher proposes is not known, and so not checked, beforehand
            self._standings.begin(trial_id, point)
            self._standings.end(trial_id, "failed", " ".join(str(error).split()))
            if self._tpe is not None:
                self._tpe.end(trial_id, None)
            return None
        file = launch_config(self._folder, self._folder.generations(trial_id)[0])
        file.parent.mkdir(exist_ok=True)
        write_text(file, cfg.to_yaml())
        self._standings.begin(trial_id, point)
        return trial_id, point

    def _tell_searcher(self, trial: Trial) -> None:
        assert self._tpe is not None
        figures = self._standings.figures(trial.id) if trial.status != "failed" else []
        for samples_seen, value in figures:
            self._tpe.report(trial.id, samples_seen, value)
        self._tpe.end(trial.id, figures[-1][1] if figures else None, stopped=trial.status == "stopped")


class _Before(NamedTuple):
    """A trial of before a sweep was cut off, as far as schedulers look at one."""

    trial_id: str


class _Judge(TrialScheduler):
    """One of Ray Tune's schedulers, told what was before, and spared the reports that have no figure."""

    def __init__(self, search: SearchConfig, standings: Standings) -> None:
        super().__init__()
        self._search = search
        self._standings = standings
        self._inner = _scheduler(search)
        self._told_before: dict[str, list[tuple[int, float]]] = {}
        if isinstance(self._inner, ASHAScheduler | MedianStoppingRule):
            for trial in standings.trials("finished", "stopped"):
                self._tell(_Before(trial.id), standings.figures(trial.id))
            for trial in standings.trials("running"):  # the worker reports the newest one again
                self._told_before[trial.id] = standings.figures(trial.id)[:-1]

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True  # it has them

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._tell(trial, self._told_before.pop(trial.trial_id, []))
        self._inner.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        trial_id, samples_seen = trial.trial_id, result["samples_seen"]
        if reason := result.get("failed"):
            self._standings.end(trial_id, "failed", reason)
            return self.STOP
        self._standings.reported(trial_id, samples_seen, result[self._search.metric])
        if result.get("finished"):
            self._standings.end(trial_id, "finished")
            return self.STOP
        decision: str = self._inner.on_trial_result(tune_controller, trial, result)
        if decision == self.NOOP:  # PBT has paused it, with another's checkpoint and other values to go on with
            self._standings.moved(trial_id, dict(trial.config))
        if decision == self.STOP:
            self._standings.end(trial_id, "stopped", f"by {self._search.scheduler.kind}")
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if "failed" not in result:
            self._inner.on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._inner.on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._inner.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        return self._inner.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        return str(self._inner.debug_string())

    def _tell(self, trial: Any, figures: list[tuple[int, float]]) -> None:
        """Lets the scheduler know figures about which nothing is to be decided any more."""
        for samples_seen, value in figures:
            self._inner.on_trial_add(None, trial)
            self._inner.on_trial_complete(None, trial, {"samples_seen": samples_seen, self._search.metric: value})


class _Losses(tune.Callback):
    """Notes trials whose worker, machine or ranks were lost."""

    def __init__(self, standings: Standings) -> None:
        self._standings = standings

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._standings.lost(trial.trial_id, _reason(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._standings.end(trial.trial_id, "failed", _reason(trial))


def _scheduler(search: SearchConfig) -> TrialScheduler:
    goal = {"time_attr": "samples_seen", "metric": search.metric, "mode": "min"}
    match search.scheduler:
        case Asha(first_rung=first, factor=factor):
            return ASHAScheduler(**goal, max_t=search.samples, grace_period=first, reduction_factor=factor)
        case MedianStopping(grace=grace, min_trials=trials):
            # A pause would end the trial's processes: never.
            return MedianStoppingRule(**goal, grace_period=grace, min_samples_required=trials, min_time_slice=math.inf)
        case Pbt(every=every, quantile=quantile, resample=resample):
            return PopulationBasedTraining(
                **goal,
                perturbation_interval=every,
                quantile_fraction=quantile,
                resample_probability=resample,
                hyperparam_mutations={key: _mutation(dimension) for key, dimension in search.space.items()},
                custom_explore_fn=lambda point: {key: _within(search.space[key], point[key]) for key in point},
                log_config=False,
            )
        case _:
            return FIFOScheduler()


def _mutation(dimension: Dimension) -> Any:
    match dimension.kind:
        case "choice":
            return dimension.choice
        case "uniform":
            return tune.uniform(*dimension.bounds)
        case "loguniform":
            return tune.loguniform(*dimension.bounds)
        case "int":
            low, high = dimension.bounds
            return tune.randint(int(low), int(high) + 1)


def _within(dimension: Dimension, value: Any) -> Any:
    """PBT multiplies by 0.8 or 1.2, without regard to bounds."""
    if dimension.kind == "choice":
        return value
    low, high = dimension.bounds
    return (int if dimension.kind == "int" else float)(min(max(value, low), high))


def _of_trial(search: SearchConfig, trial_id: str, point: Point, tags: Mapping[str, str]) -> RunConfig:
    """The run that a trial is, with what the sweep needs of it."""
    cfg = trial_config(search, point)
    about = {"sweep.name": search.name, "sweep.trial": trial_id}
    about |= {f"sweep.sampled.{key}": str(value) for key, value in point.items()}
    own = {"run_name": f"{search.name} {trial_id}", "tags": {**cfg.tracking.tags, **about, **tags}}
    update: dict[str, Any] = {"tracking": cfg.tracking.model_copy(update=own)}
    if isinstance(search.scheduler, Pbt):  # any figure may be one to go on from, long after
        every = cfg.eval.every
        update["checkpoint"] = cfg.checkpoint.model_copy(update={"every": every, "keep_every": every})
    return cfg.model_copy(update=update)


def _reason(trial: Any) -> str:
    """Of the newest loss, from the text that Ray Tune has written about it on this machine."""
    told = Path(trial.error_file).read_text().rpartition("Failure #")[2]
    if lost := re.findall(rf"{TrialLostError.__name__}: (.+)", told):
        return lost[-1]
    if re.search(
        r"\b([Aa]ctor (is dead|died|is unavailable)|ActorDiedError|ActorUnavailableError|NodeDiedError)\b", told
    ):
        return "its worker, or the machine of it, is gone"
    return next((line.strip() for line in reversed(told.splitlines()) if line.strip()), "Ray does not say why")


def _check_room(search: SearchConfig, setting: Setting) -> None:
    """
    Raises:
        ValueError: not even one trial fits.
    """
    bundle = setting.bundle()
    machines: list[Mapping[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    parts = sum(int(min(has.get(name, 0) / needed for name, needed in bundle.items())) for has in machines)
    if parts < search.nodes:
        wanted = " and ".join(f"{needed:g} {name}" for name, needed in bundle.items())
        there = "; ".join(", ".join(f"{has.get(name, 0):g} {name}" for name in ("CPU", "GPU")) for has in machines)
        raise ValueError(
            f"a trial of {search.ranks} ranks on {search.nodes} machines takes {wanted} on each, but Ray has {there}: "
            "lower ranks, cpus_per_rank or gpus_per_rank, or join a larger cluster by --address"
        )
    if (at_once := parts // search.nodes) < search.parallel:
        print(f"attvae: Ray has room for {at_once} of parallel={search.parallel} trials at a time", flush=True)


@contextmanager
def _in_mlflow(search: SearchConfig, folder: SweepFolder) -> Iterator[dict[str, str]]:
    """The sweep as a run; gives the tags that nest the trials' runs under it."""
    tracking = trial_config(search, {}).tracking
    if not tracking.mlflow:
        yield {}
        return
    run = MlflowSweep(tracking, folder.path, search.name, flatten(search.model_dump(mode="json", by_alias=True)))
    status: Status = "FAILED"
    reason = ""
    try:
        yield run.tags
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise
    finally:
        try:
            order = ranked(read_trials(folder), search.metric)
        except ValueError:  # damaged, which was said
            order = []
        newest = [RunFolder(folder.generations(trial.id)[-1]) for trial in order]
        run.end(status, reason, [each.mlflow_run_id() for each in newest])


@contextmanager
def _until_asked_to_stop() -> Iterator[None]:
    """Ends at once on SIGINT or SIGTERM: the trials' ranks notice, save and end.

    Raises:
        StopRequestedError: in place of the signal.
    """

    heard: list[str] = []

    def interrupt(number: int, frame: object) -> NoReturn:
        heard.append(signal.Signals(number).name)
        raise KeyboardInterrupt  # no Exception, which Ray might catch

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        raise StopRequestedError(heard[-1]) from None
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
