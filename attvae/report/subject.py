"""What a report is about: what the run folder says, and what was seen in the model."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from attvae import config
from attvae.config import RunConfig
from attvae.data.config import DataConfig
from attvae.data.loader import open_manifest
from attvae.data.manifest import SPLITS, Manifest
from attvae.evaluate import open_trained, other_data
from attvae.look import look
from attvae.model.vae import DeepVAE
from attvae.read_run import read_run
from attvae.run_folder import RunFolder
from attvae.tracking import recorded
from attvae.tracking.run import Run
from attvae.tracking.secrets import without_secrets

_TEST_FIGURES = ("nelbo_nats", "nll_nats", "bits_per_dim", "kl_nats_per_layer")


class Looked(NamedTuple):
    """What `attvae.look.look` has found, docs/pictures.md.

    Attributes:
        pictures: PNG files by their names.
        samples_seen: at which the model had these weights.
        weights: `ema` or `parameters`.
        dataset: of the images, as in environment.json.
    """

    figures: dict[str, Any]
    pictures: dict[str, bytes]
    samples_seen: int
    weights: str
    dataset: dict[str, Any]


class Subject(NamedTuple):
    """A run, finished or not.

    Attributes:
        commands: that it was started with, one after the other.
        environment: environment.json; older runs say less.
        code_changed: git.diff is there.
        looked: or why there is nothing.
    """

    run: Run
    cfg: RunConfig
    commands: list[str]
    environment: dict[str, Any]
    code_changed: bool
    looked: Looked | str

    @property
    def finished(self) -> bool:
        return bool(self.run.summary)

    @property
    def dataset(self) -> dict[str, Any]:
        """As environment.json has it, or as it was found now; of an old run, perhaps nothing."""
        found = self.looked.dataset if isinstance(self.looked, Looked) else {}
        return self.environment.get("dataset", found)


def read_subject(path: Path, looked: Callable[[], Looked] | None = None) -> Subject:
    """Reads the run folder, and looks at the model if there is one.

    Args:
        looked: in place of looking at the newest checkpoint.

    Raises:
        ValueError: no run folder, or a file of it is damaged. Data or checkpoints that are not there are no error.
    """
    run = read_run(path)
    folder = RunFolder(path)
    if missing := [key for key in _TEST_FIGURES if run.summary and key not in run.summary.get("test", {})]:
        raise ValueError(f"{folder.summary} is damaged: it has no test figure {missing[0]}")
    commands = path / "command.txt"
    return Subject(
        run=run,
        cfg=config.load(folder.config),
        commands=list(dict.fromkeys(commands.read_text(errors="replace").splitlines())) if commands.is_file() else [],
        environment=recorded.environment(path),
        code_changed=(path / "git.diff").is_file(),
        looked=_or_why_not(looked or (lambda: _look_at_newest(path, finished=bool(run.summary)))),
    )


def look_at(
    model: DeepVAE, manifest: Manifest, data: DataConfig, samples_seen: int, *, weights: str, finished: bool
) -> Looked:
    """Looks at a model with test images; while the run goes on, with those for validation."""
    with tempfile.TemporaryDirectory() as made:
        out = Path(made)
        device = next(model.parameters()).device
        figures = look(model, manifest, data, out, device, split="test" if finished else "val")
        pictures = {name: (out / name).read_bytes() for name in figures["pictures"]}
    return Looked(figures, pictures, samples_seen, weights, dataset_of(manifest, data))


def dataset_of(manifest: Manifest, data: DataConfig) -> dict[str, Any]:
    """As environment.json has it."""
    return {
        "name": manifest.name,
        "version": manifest.version,
        "fingerprint": manifest.fingerprint,
        "source": manifest.source,
        "path": str(data.path),
        "samples": {split: manifest.samples(split) for split in SPLITS},
        "spec": manifest.spec.model_dump(),
    }


def _look_at_newest(path: Path, *, finished: bool) -> Looked:
    trained = open_trained(path, force=True)
    assert trained.config is not None, "a run has one"
    about, data = trained.about, trained.config.data
    manifest = open_manifest(data)
    if difference := other_data(trained, manifest):
        raise ValueError(f"{path} was not trained on what {data.path} holds ({difference})")
    model = trained.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return look_at(model, manifest, data, about["samples_seen"], weights=about["weights"], finished=finished)


def _or_why_not(looked: Callable[[], Looked]) -> Looked | str:
    try:
        return looked()
    except (ValueError, OSError) as error:
        return without_secrets(str(error))


def resolved(cfg: RunConfig) -> dict[str, str]:
    """The configuration's parts as YAML, by their names, without secrets."""
    tree = cfg.model_dump(mode="json")
    return {key: without_secrets(yaml.safe_dump({key: value}, sort_keys=False)) for key, value in tree.items()}
