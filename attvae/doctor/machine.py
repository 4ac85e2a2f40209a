"""Looks at this process's machine: what is installed, what it computes on, and what the system lets it have."""

import errno
import os
import re
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import torch
from packaging.requirements import Requirement

from attvae import checkpoint
from attvae.config import RunConfig
from attvae.data.config import DataConfig
from attvae.data.decode import pixel_type
from attvae.data.manifest import Manifest
from attvae.data.tar import OPEN_SHARDS
from attvae.doctor.check import Check
from attvae.engine.config import Device
from attvae.engine.rendezvous import device_of_this_rank, kind_of_device
from attvae.optim.apex_adamw import why_not

SHOWN = ("torch", "deepspeed", "ray", "mlflow", "webdataset", "numpy", "safetensors")
SKEW_S = 2.0
PORT = 29500
"""What launchers take when nobody says another."""
PREFETCHED = 2
"""Batches that torch's DataLoader keeps ready for each worker."""
OTHER_FILES = 256
"""Libraries, journals, sockets: what a process opens beside shards and connections."""


def versions() -> Check:
    """What is installed against what attvae asks for."""
    try:
        asked = [Requirement(text) for text in requires("attvae") or ()]
    except PackageNotFoundError:
        return Check("versions", "warning", "attvae itself is not installed", "pip install -e . in its checkout")
    wanting, needed, shown = [], [], []
    for requirement in asked:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = "missing"
        if found == "missing" or not requirement.specifier.contains(found, prereleases=True):
            wanting.append(f"{requirement.name} {found}, attvae needs {requirement.specifier}")
            needed.append(f"'{requirement.name}{requirement.specifier}'")
        elif requirement.name in SHOWN:
            shown.append(f"{requirement.name} {found}")
    if wanting:
        return Check("versions", "problem", "; ".join(wanting), f"pip install {' '.join(needed)}")
    return Check("versions", "ok", ", ".join(shown))


def devices(asked: Device) -> Check:
    """The GPUs, and whether `engine.device` gets what it asks for.

    Raises:
        ValueError: it does not.
    """
    device_of_this_rank(asked)
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    listed = ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus) or "no GPU"
    if kind_of_device(asked) == "cpu" and asked == "auto" and not gpus and Path("/dev/nvidiactl").exists():
        why = "finds none" if torch.version.cuda else "is built without CUDA"
        return Check(
            "devices",
            "warning",
            f"this host has an NVIDIA driver, but torch {torch.__version__} {why}: the run would be on the CPU",
            "install a torch for CUDA, see that CUDA_VISIBLE_DEVICES hides no GPU; engine.device=cuda insists on one",
        )
    cpus = len(os.sched_getaffinity(0))
    return Check("devices", "ok", f"{listed}; {cpus} CPU cores; engine.device={asked}: {kind_of_device(asked)}")


def apex(cfg: RunConfig | None) -> Check:
    """NVIDIA's, or PyPI's unrelated one."""
    reason = why_not()
    needed = cfg is not None and cfg.optim.name == "adamw" and cfg.optim.fused == "apex"
    if reason is None:
        return Check("apex", "ok", "NVIDIA's, with its CUDA extensions")
    if needed:
        return Check(
            "apex", "problem", f"{reason}, but optim.fused=apex", "build NVIDIA's from source, or use optim.fused=auto"
        )
    if find_spec("apex") is None:
        return Check("apex", "ok", f"{reason}; nothing here needs it")
    return Check("apex", "warning", reason, "pip uninstall apex; only optim.fused=apex needs NVIDIA's")


def disk(out: Path, checkpoint_bytes: int | None, cfg: RunConfig | None) -> Check:
    """Room for the checkpoints of a run, beside those that it has."""
    disk = existing(out)
    free = shutil.disk_usage(disk).free
    if not os.access(disk, os.W_OK):
        return Check("run folder", "problem", f"{disk} cannot be written", "choose another folder with --out")
    if cfg is None or checkpoint_bytes is None:
        return Check("run folder", "ok", f"{out}: {gb(free)} free")
    keep = cfg.checkpoint
    kept = keep.keep_last + (cfg.train.samples // keep.keep_every if keep.keep_every else 0)
    missing = kept + 1 - min(kept, len(checkpoint.complete(out / "checkpoints")))  # one more while it is written
    found = f"{out}: {gb(free)} free, {missing} checkpoints of {gb(checkpoint_bytes)} are to come"
    if free < missing * checkpoint_bytes:
        return Check(
            "run folder", "problem", found, "make room, choose another --out, or keep fewer (checkpoint.keep_*)"
        )
    return Check("run folder", "ok", found)


def cache(data: DataConfig, manifest: Manifest) -> Check:
    """Room for the shards of remote data."""
    if "://" not in data.path:
        return Check("shard cache", "ok", f"not used: {data.path} is read in place")
    folder = data.cache.expanduser()
    held = sum(file.stat().st_size for file in folder.glob("*.tar"))
    wanted = min(data.cache_gb * 1e9, sum(shard.bytes for shards in manifest.splits.values() for shard in shards))
    free = shutil.disk_usage(existing(folder)).free
    found = f"{folder}: {gb(free)} free, {gb(held)} in use, up to {gb(wanted)} wanted"
    if free + held < wanted:
        return Check("shard cache", "problem", found, "make room, lower data.cache_gb, or move data.cache")
    return Check("shard cache", "ok", found)


def shared_memory(data: DataConfig, manifest: Manifest, micro_batch: int) -> Check:
    """Room for the batches that loader workers hand over."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except FileNotFoundError:
        return Check("shared memory", "ok", "this system has no /dev/shm")
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1")))
    batch = micro_batch * manifest.spec.dimensions * pixel_type(manifest.spec).itemsize
    needed = ranks * data.workers * (PREFETCHED + 1) * batch  # one more that is being filled
    found = f"/dev/shm: {gb(free)} free, workers of the ranks here take up to {gb(needed)}"
    if free < needed:
        return Check(
            "shared memory",
            "problem",
            found,
            "enlarge it (docker run --shm-size), or lower data.workers or micro_batch",
        )
    return Check("shared memory", "ok", found)


def open_files(cfg: RunConfig | None, manifest: Manifest | None, ranks: int) -> Check:
    """The limit of this process against its shards and its connections to the other ranks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shards = 0
    if cfg is not None and manifest is not None:
        train = manifest.shards("train")
        shards = min(OPEN_SHARDS, 4 + 2 * cfg.data.window * len(train) // manifest.samples("train"))
    needed = OTHER_FILES + shards + 2 * ranks
    found = f"limit {_limit(soft)}, a rank may need {needed}"
    if soft != resource.RLIM_INFINITY and soft < needed:
        return Check("open files", "problem", found, f"ulimit -n {needed} before the run (allowed: {_limit(hard)})")
    return Check("open files", "ok", found)


def master_port() -> Check:
    """Whether rank 0 could listen here.

    Raises:
        ValueError: MASTER_PORT is no port.
    """
    text = os.environ.get("MASTER_PORT", str(PORT))
    if not re.fullmatch(r"\d{1,5}", text) or not 0 < int(text) < 2**16:
        raise ValueError(f"MASTER_PORT={text!r} is no port: use a number from 1 to 65535")
    port = int(text)
    try:
        socket.create_server(("", port)).close()  # reuses a port in TIME_WAIT, as torch's store does
    except OSError as error:
        why = "in use" if error.errno == errno.EADDRINUSE else error.strerror
        return Check(
            "master port", "problem", f"{port}: {why}", "end what listens there, or give the launcher another port"
        )
    return Check("master port", "ok", f"{port} is free")


def file_clock(out: Path, now: Callable[[], float] = time.time) -> Check:
    """This host's clock against that of the run folder's file system."""
    folder = existing(out)
    with tempfile.TemporaryFile(dir=folder) as file:  # has no name, or loses it: nothing is left behind
        before = now()
        file.write(b"now")
        file.flush()
        os.fsync(file.fileno())
        skew_s = os.fstat(file.fileno()).st_mtime - before
    found = f"the file system of {folder} is {abs(skew_s):.1f} s {'ahead' if skew_s > 0 else 'behind'}"
    if abs(skew_s) > SKEW_S:
        return Check("clock", "warning", found, "let chrony or ntpd set the clocks of this host and the file server")
    return Check("clock", "ok", f"within {SKEW_S:.0f} s of the file system of {folder}")


def existing(path: Path) -> Path:
    """The nearest folder on the way to a path that is there."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def gb(size: float) -> str:
    """Bytes, for people."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _limit(value: int) -> str:
    return "none" if value == resource.RLIM_INFINITY else str(value)
