"""A trained model as a folder that torch and safetensors alone can load.

model.safetensors   parameters and buffers by the model's own names
model.json          format version, architecture, image description, what it was trained on
README.md           what it is, in words and figures
encoder.pt2, sampler.pt2, encoder.onnx, sampler.onnx    where wanted, `programs`
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from attvae.all_or_nothing import all_or_nothing
from attvae.model.config import ModelConfig
from attvae.model.vae import DeepVAE
from attvae.spec import Config, DataSpec

FORMAT_VERSION = 2
"""1 did not say what the model was trained on; it is read all the same."""


class TrainedOn(Config):
    """The data set, as its manifest names it; of old runs the fingerprint alone is known."""

    name: str | None = None
    version: str | None = None
    fingerprint: str


class ExportConfig(Config):
    """What `model.json` says.

    Attributes:
        samples_seen: in the training; None, like `trained_on`: not known.
        weights: the averaged ones, or those of the last update.
        forced: why the model was not to be exported, had its user not insisted.
    """

    format_version: int = FORMAT_VERSION
    model: ModelConfig
    spec: DataSpec
    trained_on: TrainedOn | None = None
    samples_seen: int | None = None
    weights: Literal["ema", "parameters"] = "ema"
    forced: tuple[str, ...] = ()


def is_export(folder: Path) -> bool:
    return (folder / "model.json").is_file()


def check_absent(folder: Path) -> None:
    """
    Raises:
        ValueError: the folder exists.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists: choose another folder, or remove it")


def write(
    folder: Path, model: DeepVAE, config: ExportConfig, card: str, further: Callable[[Path], None] = lambda _: None
) -> None:
    """Writes the model into a new folder, whole or not at all.

    Args:
        card: README.md.
        further: writes more files into the folder that it is given.

    Raises:
        ValueError: the folder exists, or cannot be written.
    """
    check_absent(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with all_or_nothing(folder) as partial:
            partial.mkdir()
            save_file(
                {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()},
                partial / "model.safetensors",
            )
            (partial / "model.json").write_text(json.dumps(config.model_dump(mode="json"), indent=1) + "\n")
            (partial / "README.md").write_text(card)
            shutil.copymode(partial / "README.md", partial / "model.safetensors")  # which safetensors makes private
            further(partial)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from error


def read_config(folder: Path) -> ExportConfig:
    """What an export folder says of its model.

    Raises:
        ValueError: the folder is no export, is damaged, or has a format of later days.
    """
    try:
        found: Any = json.loads((folder / "model.json").read_text())
        version = found["format_version"]
        if version not in (1, FORMAT_VERSION):
            raise ValueError(f"{folder} has export format {version}, this attvae reads 1 and {FORMAT_VERSION}")
        return ExportConfig.model_validate(found)
    except OSError as error:
        raise ValueError(f"{folder} is no export folder: {error.filename} cannot be read ({error.strerror})") from error
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is damaged: model.json: {error}") from error


def load(folder: str | os.PathLike[str]) -> DeepVAE:
    """The model of an export folder, in evaluation mode.

    Raises:
        ValueError: the folder is no export, is damaged, or holds weights that are not finite; names what.
    """
    path = Path(folder)
    config = read_config(path)
    try:
        tensors = load_file(path / "model.safetensors")
    except OSError as error:
        raise ValueError(
            f"{path} is no export folder: {path / 'model.safetensors'} cannot be read ({error.strerror or error})"
        ) from error
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: model.safetensors: {error}") from error
    model = DeepVAE(config.model, config.spec)
    expected = model.state_dict()
    for name in sorted(expected.keys() ^ tensors.keys()):
        side = "lacks" if name in expected else "has the unknown tensor"
        raise ValueError(f"{path}/model.safetensors {side} {name}: it does not belong to this model.json")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{path}: {name} has shape {[*tensor.shape]}, model.json makes it {[*expected[name].shape]}"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {name} holds values that are not finite: the weights are of no use")
    model.load_state_dict(tensors)
    return model.eval()
