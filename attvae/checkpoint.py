"""One checkpoint format for every engine, ZeRO stage and number of ranks: named fp32 tensors.

A checkpoint is a folder `<samples seen, 12 digits>/` with
    tensors-<rank>.safetensors   `parameters/<name>`, `buffers/<name>`, and each optimizer state under the parameter's
                                 name: `exp_avg/<name>`, `exp_inf/<name>` (Adamax), `ema/<name>`
    state.json                   samples seen, updates, guard of the gradients, seconds trained, configuration, versions
    manifest.json                format version and, for every other file, its size and hash
It is written as `<name>.tmp`, flushed to disk and renamed, so a folder without `.tmp` is complete. docs/checkpoints.md.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attvae import schedule, tensor_file
from attvae.checkpoint_config import CheckpointConfig
from attvae.engine.protocol import Engine
from attvae.engine.rendezvous import FailedOnAnotherRankError, World
from attvae.tensor_file import FileHash, TensorFile

FORMAT_VERSION = 1
REMEDY = "use another checkpoint, or remove this one"


class Checkpoint:
    """A complete checkpoint on disk, verified when it is opened. Tensors are read when they are asked for."""

    def __init__(self, folder: Path, *, verified: bool = False) -> None:
        """Opens and verifies.

        Args:
            verified: another rank has just compared the files with their hashes: once is enough.

        Raises:
            ValueError: the folder is no checkpoint, or is damaged; names the file.
        """
        self.folder = folder
        self._file_of: dict[str, TensorFile] = {}
        for name, stated in _read_manifest(folder).items():
            path = folder / name
            if path.parent != folder or not path.is_file():
                raise ValueError(f"{folder} is damaged: {name} is missing; {REMEDY}")
            try:
                if path.stat().st_size != stated.bytes or not (verified or tensor_file.hash_file(path) == stated):
                    raise ValueError(f"{folder} is damaged: {name} does not match its hash in manifest.json; {REMEDY}")
                if path.suffix == ".safetensors":
                    tensors = TensorFile(path)
                    self._file_of |= dict.fromkeys(tensors.shapes, tensors)
            except OSError as error:
                raise ValueError(f"{path} cannot be read ({error.strerror}); {REMEDY}") from error
        self.state: dict[str, Any] = json.loads((folder / "state.json").read_text())

    @property
    def samples_seen(self) -> int:
        return int(self.state["samples_seen"])

    def tensor(self, kind: str, name: str) -> Tensor:
        """The tensor `kind`/`name`, in memory of its own: parameters, buffers, ema or another optimizer state.

        Raises:
            ValueError: there is none, or its file can no longer be read.
        """
        key = f"{kind}/{name}"
        file = self._file_with(key)
        try:
            return file.tensor(key)
        except OSError as error:
            raise ValueError(f"{file.path} cannot be read ({error.strerror}); {REMEDY}") from error

    def has(self, kind: str) -> bool:
        """Whether it holds tensors of that kind, such as `ema`."""
        return any(key.startswith(f"{kind}/") for key in self._file_of)

    def check_fits(self, module: nn.Module) -> None:
        """The sets of names and the shapes must agree.

        Raises:
            ValueError: the checkpoint is of another model; names the first tensor that differs.
        """
        of_module: dict[str, Tensor] = {f"parameters/{name}": p for name, p in module.named_parameters()}
        of_module |= {f"buffers/{name}": buffer for name, buffer in module.named_buffers()}
        unknown = {key for key in self._file_of if key.startswith(("parameters/", "buffers/"))} - of_module.keys()
        if unknown:
            raise ValueError(
                f"{self.folder} holds {min(unknown)}, which this model has not: another model's checkpoint"
            )
        for key, target in of_module.items():
            shape = self._file_with(key).shapes[key]
            if shape != target.shape:
                raise ValueError(
                    f"{self.folder}: {key} has shape {shape}, this model's has {tuple(target.shape)}: "
                    "another model's checkpoint"
                )

    def load_into(self, module: nn.Module, *, weights: str) -> None:
        """Fills parameters (from `parameters` or `ema`) and buffers.

        Raises:
            ValueError: the checkpoint is of another model, and nothing is filled.
        """
        self.check_fits(module)
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.copy_(self.tensor(weights, name))
            for name, buffer in module.named_buffers():
                buffer.copy_(self.tensor("buffers", name))

    def _file_with(self, key: str) -> TensorFile:
        if key not in self._file_of:
            raise ValueError(f"{self.folder} has no tensor {key}: it is a checkpoint of another model")
        return self._file_of[key]


def _read_manifest(folder: Path) -> dict[str, FileHash]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(f"{folder} is no complete checkpoint: manifest.json is missing; {REMEDY}")
    try:
        manifest = json.loads(path.read_text())
        version = manifest["format_version"]
        files = {name: FileHash(stated["bytes"], stated["xxh3"]) for name, stated in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {REMEDY}") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"{folder} has checkpoint format {version}, this attvae reads {FORMAT_VERSION}")
    if "state.json" not in files:
        raise ValueError(f"{path} is damaged: it does not name state.json; {REMEDY}")
    return files


class NotSavedError(OSError):
    """A checkpoint could not be written. Those that stood before still stand, and nothing is left of this one."""

    known_to_all = True  # all ranks end with it: attvae.engine.rendezvous.is_known_to_all


class _Write(Thread):
    """Writes one rank's tensors. Knows nothing of the other ranks: it may run beside their collectives."""

    def __init__(self, path: Path, tensors: dict[str, Tensor]) -> None:
        super().__init__(name="checkpoint", daemon=True)  # a process that fails does not wait for it
        self.path = path
        self.written: FileHash | None = None
        self.failure: Exception | None = None
        self._tensors = tensors

    def run(self) -> None:
        try:
            self.written = tensor_file.write(self.path, self._tensors)
        except Exception as error:
            self.failure = error
            self.path.unlink(missing_ok=True)  # at once: what else the run writes needs the room
        finally:
            self._tensors = {}


class _Unfinished(NamedTuple):
    """A checkpoint whose tensors are being written."""

    target: Path
    state: str
    write: _Write


class CheckpointWriter:
    """Writes the checkpoints of a run into its folder, one at a time, and removes old ones.

    Every method is collective. Each of them may complete a checkpoint, and raises, on all ranks alike, when one cannot
    be written: NotSavedError on the first rank that found it so, FailedOnAnotherRankError on the others. With
    `on_failure: continue`, rank 0 prints that message instead, and the run goes on without this checkpoint.
    """

    def __init__(self, folder: Path, world: World, cfg: CheckpointConfig, step: int) -> None:
        """
        Args:
            folder: that of the checkpoints; the same on all ranks, and on a disk that they share.
            step: samples of an update, which decide whether one has crossed a multiple of `keep_every`.
        """
        self._folder = folder
        self._world = world
        self._cfg = cfg
        self._step = step
        self._unfinished: _Unfinished | None = None

    def save(self, engine: Engine, samples_seen: int, state: dict[str, Any]) -> None:
        """Writes a checkpoint; with `background`, returns when its tensors have been copied to the CPU's memory.

        Completes an unfinished one first. One of the same samples is replaced once the new one is written.

        Args:
            state: what else a run goes on from, `samples_seen` among it: plain values for state.json.
        """
        self.finish()
        target = place(self._folder, samples_seen)
        if not self._succeeded(target, self._on_first(lambda: _make_empty(_partial(target)))):
            return
        share = {
            key: tensor.detach().to("cpu", copy=self._cfg.background).contiguous()
            for i, (key, tensor) in enumerate(_tensors(engine))
            if i % self._world.size == self._world.rank
        }
        write = _Write(_partial(target) / f"tensors-{self._world.rank:04d}.safetensors", share)
        write.start()
        self._unfinished = _Unfinished(target, json.dumps(state, indent=1), write)
        if not self._cfg.background:
            self.finish()

    def poll(self) -> None:
        """Completes the checkpoint in the background if all ranks have written their part. Does not wait for them."""
        if self._unfinished is None:
            return
        writing = self._world.sum(torch.tensor(int(self._unfinished.write.is_alive())))
        if not writing.item():
            self.finish()

    def finish(self) -> None:
        """Completes the checkpoint in the background, if there is one."""
        if self._unfinished is None:
            return
        (target, state, write), self._unfinished = self._unfinished, None
        write.join()
        if not self._succeeded(target, write.failure):
            return
        written = self._world.gather((write.path.name, write.written))
        files = {name: file for name, file in written if file is not None}
        if not self._succeeded(target, self._on_first(lambda: _publish(target, state, files))):
            return
        self._world.from_first(lambda: self._remove_unneeded(target))

    def _on_first(self, act: Callable[[], None]) -> Exception | None:
        """Does what is for rank 0 alone to do; why it has failed."""
        try:
            if self._world.rank == 0:
                act()
        except Exception as error:
            return error
        return None

    def _succeeded(self, target: Path, failure: Exception | None) -> bool:
        """Whether no rank has failed; otherwise nothing is left behind."""
        reasons = self._world.gather(None if failure is None else _reason(failure))
        first = next((rank for rank, reason in enumerate(reasons) if reason is not None), None)
        if first is None:
            return True
        if self._world.rank == 0:
            shutil.rmtree(_partial(target), ignore_errors=True)
        self._world.barrier()
        standing = complete(self._folder)
        newest = f"the newest that stands is {standing[-1].name}" if standing else "none stands"
        message = f"cannot save the checkpoint {target} ({reasons[first]}): {newest}"
        remedy = "make room there, or make the disk writable"
        match self._cfg.on_failure:
            case "continue":
                if self._world.rank == 0:
                    going_on = "the run goes on without this one, since checkpoint.on_failure=continue"
                    print(f"attvae: {message}; {going_on}; {remedy}", file=sys.stderr, flush=True)
                return False
            case "stop":
                if self._world.rank == first:
                    raise NotSavedError(f"{message}; {remedy}, then run the same command again") from failure
                raise FailedOnAnotherRankError(first, bad_input=False)

    def _remove_unneeded(self, saved: Path) -> None:
        """Removes what neither `keep_last` nor `keep_every` keeps, and what a roll-back has left ahead. On rank 0."""
        found = complete(self._folder)
        kept = [p for p in found if p.name <= saved.name][-self._cfg.keep_last :]
        for other in found:
            marks = self._cfg.keep_every and schedule.due(int(other.name), self._cfg.keep_every, self._step)
            if other in kept or (marks and other.name < saved.name):
                continue
            try:
                _remove(other)
            except OSError as error:
                print(f"attvae: cannot remove the checkpoint {other} ({_reason(error)})", file=sys.stderr, flush=True)


def place(folder: Path, samples_seen: int) -> Path:
    """Where in `folder` the checkpoint at so many samples is."""
    return folder / f"{samples_seen:012d}"


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, the oldest first. Complete is not yet intact: opening one verifies it."""
    return sorted(p for p in folder.glob("*") if p.is_dir() and p.name.isdigit())


def remove_partial(folder: Path) -> None:
    """Removes what a killed owner of the folder left half-written. Only the owner may call this."""
    for target in [path.with_name(path.name.partition(".")[0]) for path in folder.glob("*.replaced.tmp")]:
        if not target.exists():  # killed between two names
            _replaced(target).rename(target)
    for partial in folder.glob("*.tmp"):
        shutil.rmtree(partial)


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".tmp")


def _make_empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _publish(target: Path, state: str, files: dict[str, FileHash]) -> None:
    """Makes a checkpoint of the partial one, whose tensors are written."""
    partial = _partial(target)
    _write_text(partial / "state.json", state)
    files = {"state.json": tensor_file.hash_file(partial / "state.json")} | files
    stated = {name: file._asdict() for name, file in sorted(files.items())}
    _write_text(partial / "manifest.json", json.dumps({"format_version": FORMAT_VERSION, "files": stated}, indent=1))
    _flush(partial)
    replaced = target.rename(_replaced(target)) if target.exists() else None
    partial.rename(target)
    _flush(target.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)  # the new one stands; what is left of it goes at the next start


def _replaced(target: Path) -> Path:
    return target.with_name(target.name + ".replaced.tmp")


def _remove(folder: Path) -> None:
    # Renamed first: a removal that is cut short must not leave a folder that looks complete.
    shutil.rmtree(folder.rename(folder.with_name(folder.name + ".old.tmp")))


def _tensors(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    sources: list[tuple[str, Iterable[tuple[str, Tensor]]]] = [("parameters", engine.parameters())]
    sources += [(key, engine.optimizer_state(key)) for key in engine.optimizer_states]
    sources.append(("buffers", engine.buffers()))
    for kind, named in sources:
        for name, tensor in named:
            yield f"{kind}/{name}", tensor


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else repr(error)


def _write_text(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
