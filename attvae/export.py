"""A trained model as a folder that torch and safetensors alone can load.

model.safetensors   parameters and buffers by the model's own names
model.json          format version, architecture, image description
"""

import json
import os
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from attvae.model.config import ModelConfig
from attvae.model.vae import DeepVAE
from attvae.spec import Config, DataSpec

FORMAT_VERSION = 1


class ExportConfig(Config):
    """What `model.json` says."""

    format_version: int
    model: ModelConfig
    spec: DataSpec


def is_export(folder: Path) -> bool:
    return (folder / "model.json").is_file()


def write(folder: Path, model: DeepVAE) -> None:
    """Writes the model into a new folder, whole or not at all.

    Raises:
        ValueError: the folder exists, or cannot be written.
    """
    partial = folder.with_name(folder.name + ".tmp")
    if folder.exists():
        raise ValueError(f"{folder} exists: choose another folder, or remove it")
    config = ExportConfig(format_version=FORMAT_VERSION, model=model.config, spec=model.spec)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()},
            partial / "model.safetensors",
        )
        (partial / "model.json").write_text(json.dumps(config.model_dump(mode="json"), indent=1) + "\n")
        partial.rename(folder)
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error.strerror}") from error


def load(folder: str | os.PathLike[str]) -> DeepVAE:
    """The model of an export folder, in evaluation mode.

    Raises:
        ValueError: the folder is no export, is damaged, or holds weights that are not finite; names what.
    """
    path = Path(folder)
    try:
        config = ExportConfig.model_validate_json((path / "model.json").read_text())
        tensors = load_file(path / "model.safetensors")
    except OSError as error:
        raise ValueError(f"{path} is no export folder: {error.filename} cannot be read ({error.strerror})") from error
    except (ValidationError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if config.format_version != FORMAT_VERSION:
        raise ValueError(f"{path} has export format {config.format_version}, this attvae reads {FORMAT_VERSION}")
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
