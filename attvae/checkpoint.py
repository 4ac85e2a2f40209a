"""One checkpoint format for every engine, ZeRO stage and number of ranks: named fp32 tensors.

A checkpoint is a folder `<samples seen, 12 digits>/` with
    tensors-<rank>.safetensors   `parameters/<name>`, `buffers/<name>`, and each optimizer state under the parameter's
                                 name: `exp_avg/<name>`, `exp_inf/<name>` (Adamax), `ema/<name>`
    state.json                   samples seen, updates, guard of the gradients, seconds trained, configuration, versions
    manifest.json                format version and, for every other file, its size and hash
It is written as `<name>.tmp`, flushed to disk and renamed, so a folder without `.tmp` is complete.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from attvae.engine.protocol import Engine

FORMAT_VERSION = 1


class Checkpoint:
    """A complete checkpoint on disk, verified when it is opened. Tensors are read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        """Opens and verifies.

        Raises:
            ValueError: the folder is no checkpoint, or is damaged; names the file.
        """
        self.folder = folder
        remedy = "use another checkpoint, or remove this one"
        if not (folder / "manifest.json").is_file():
            raise ValueError(f"{folder} is no complete checkpoint: manifest.json is missing; {remedy}")
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            version, files = manifest["format_version"], manifest["files"]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{folder}/manifest.json is damaged ({error!r}); {remedy}") from error
        if version != FORMAT_VERSION:
            raise ValueError(f"{folder} has checkpoint format {version}, this attvae reads {FORMAT_VERSION}")
        self._file_of: dict[str, Path] = {}
        for name, stated in files.items():
            path = folder / name
            if path.parent != folder or not path.is_file():
                raise ValueError(f"{folder} is damaged: {name} is missing; {remedy}")
            if path.stat().st_size != stated["bytes"] or _hash(path) != stated["xxh3"]:
                raise ValueError(f"{folder} is damaged: {name} does not match its hash in manifest.json; {remedy}")
            if path.suffix == ".safetensors":
                try:
                    with safe_open(path, "pt") as tensors:
                        self._file_of.update(dict.fromkeys(tensors.keys(), path))
                except SafetensorError as error:
                    raise ValueError(f"{path} cannot be read ({error}); {remedy}") from error
        self.state: dict[str, Any] = json.loads((folder / "state.json").read_text())

    @property
    def samples_seen(self) -> int:
        return int(self.state["samples_seen"])

    def tensor(self, kind: str, name: str) -> Tensor:
        """The tensor `kind`/`name`: parameters, buffers, ema or another optimizer state."""
        key = f"{kind}/{name}"
        if key not in self._file_of:
            raise ValueError(f"{self.folder} has no tensor {key}: it is a checkpoint of another model")
        with safe_open(self._file_of[key], "pt") as tensors:
            return tensors.get_tensor(key)

    def load_into(self, module: nn.Module, *, weights: str) -> None:
        """Fills parameters (from `parameters` or `ema`) and buffers; the sets of names and the shapes must agree.

        Raises:
            ValueError: the checkpoint is of another model; names the first tensor that differs.
        """
        parameters = dict(module.named_parameters())
        buffers = dict(module.named_buffers())
        unknown = {key for key in self._file_of if key.startswith(("parameters/", "buffers/"))}
        unknown -= {f"parameters/{name}" for name in parameters} | {f"buffers/{name}" for name in buffers}
        if unknown:
            raise ValueError(
                f"{self.folder} holds {min(unknown)}, which this model has not: another model's checkpoint"
            )
        with torch.no_grad():
            for kind, targets in ((weights, parameters), ("buffers", buffers)):
                for name, target in targets.items():
                    value = self.tensor(kind, name)
                    if value.shape != target.shape:
                        raise ValueError(
                            f"{self.folder}: {kind}/{name} has shape {tuple(value.shape)}, "
                            f"this model's has {tuple(target.shape)}: another model's checkpoint"
                        )
                    target.copy_(value)


def save(folder: Path, engine: Engine, state: dict[str, Any]) -> None:
    """Writes the checkpoint `folder`. Collective; the ranks share the writing. An existing one is kept as it is."""
    world = engine.world
    partial = folder.with_name(folder.name + ".tmp")

    def prepare() -> bool:
        if folder.exists():
            return False
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return True

    if not world.from_first(prepare):
        return
    mine: dict[str, Tensor] = {}
    for i, (key, tensor) in enumerate(_tensors(engine)):
        if i % world.size == world.rank:
            mine[key] = tensor.detach().to("cpu", copy=True).contiguous()
    path = partial / f"tensors-{world.rank:04d}.safetensors"
    save_file(mine, path)
    _flush(path)
    world.barrier()

    def finish() -> None:
        (partial / "state.json").write_text(json.dumps(state, indent=1))
        files = {p.name: {"bytes": p.stat().st_size, "xxh3": _hash(p)} for p in sorted(partial.iterdir())}
        _flush(partial / "state.json")
        (partial / "manifest.json").write_text(json.dumps({"format_version": FORMAT_VERSION, "files": files}, indent=1))
        _flush(partial / "manifest.json")
        _flush(partial)
        partial.rename(folder)
        _flush(folder.parent)

    world.from_first(finish)


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, the oldest first. Complete is not yet intact: opening one verifies it."""
    return sorted(p for p in folder.glob("*") if p.is_dir() and p.name.isdigit())


def remove_partial(folder: Path) -> None:
    """Removes what a killed owner of the folder left half-written. Only the owner may call this."""
    for partial in folder.glob("*.tmp"):
        shutil.rmtree(partial)


def keep_last(folder: Path, count: int) -> None:
    """Removes all but the newest `count` checkpoints."""
    for old in complete(folder)[:-count]:
        # Renamed first: a removal that is cut short must not leave a folder that looks complete.
        doomed = old.with_name(old.name + ".tmp")
        old.rename(doomed)
        shutil.rmtree(doomed)


def _tensors(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    sources: list[tuple[str, Iterable[tuple[str, Tensor]]]] = [("parameters", engine.parameters())]
    sources += [(key, engine.optimizer_state(key)) for key in engine.optimizer_states]
    sources.append(("buffers", engine.buffers()))
    for kind, named in sources:
        for name, tensor in named:
            yield f"{kind}/{name}", tensor


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
