"""`attvae compress` and `attvae decompress`."""

import copy
import math
import os
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from jaxtyping import UInt32
from numpy import ndarray
from torch import Tensor

from attvae.all_or_nothing import all_or_nothing
from attvae.compression import file_format
from attvae.compression.bits_back import ImageCoder, Precision
from attvae.compression.file_format import MOST_IMAGES, MOST_WORDS, CompressedFile, Header, MadeWith
from attvae.compression.fingerprint import model_fingerprint
from attvae.compression.images import CodedImage, DataSplit, ImageFiles, check_pictures, picture
from attvae.compression.other_codecs import Size, sizes
from attvae.compression.progress import Progress
from attvae.compression.stack import PRECISION, WORD, CoderFailedError, Initial, Stack
from attvae.evaluate import Trained, open_data, open_trained, other_data
from attvae.evaluation_noise import EVALUATION_SEED, evaluation_noise
from attvae.model.vae import DeepVAE
from attvae.objective import bits_per_dim
from attvae.spec import DataSpec
from attvae.tracking.console import print_table

INITIAL_SEED = 0
BITS_POPPED_PER_LATENT = 8
"""What a latent takes from the stack before it gives something back, roughly: a posterior as wide as its prior."""

COMPARED_IMAGES = 256
"""Images, evenly spread over the set, on which other codecs are measured."""


class Compressed(NamedTuple):
    """What `attvae compress` has found; all bits but those of the file are means over the images.

    Attributes:
        net_bits: left on the stack less what it started with.
        latents_nelbo_nats: -log p(x, z) + log q(z | x) at the latents that were coded.
        nelbo_nats: the model's bound, with the noise that evaluations use.
        initial_bits: random bits that had to be there first, of the whole set; the file has to hold them.
        forced: why the figures are not to be trusted: marks of all of them.
    """

    images: int
    draws_seed: int
    dimensions: int
    net_bits: float
    latents_nelbo_nats: float
    nelbo_nats: float
    initial_bits: int
    file_bytes: int
    images_per_s: float
    codec_images: int
    codecs: list[Size]
    forced: list[str]

    def report(self) -> dict[str, Any]:
        per_dim = {
            "net": self.net_bits / self.dimensions,
            "gross": 8 * self.file_bytes / (self.images * self.dimensions),
            "nelbo": bits_per_dim(self.nelbo_nats, self.dimensions),
            "nelbo_of_coded_latents": bits_per_dim(self.latents_nelbo_nats, self.dimensions),
        }
        return {
            "images": self.images,
            "seed": self.draws_seed,
            "forced": self.forced,
            "bits_per_dim": per_dim,
            "net_bits": self.net_bits * self.images,
            "initial_bits": self.initial_bits,
            "file_bytes": self.file_bytes,
            "nelbo_nats": self.nelbo_nats,
            "nelbo_of_coded_latents_nats": self.latents_nelbo_nats,
            "images_per_s": self.images_per_s,
            "codecs": {
                "images": self.codec_images,
                "bits_per_dim": {name: bits for name, bits, _ in self.codecs},
                "remarks": {name: remark for name, _, remark in self.codecs if remark},
            },
        }

    def rows(self) -> list[tuple[str, str | float, str | float, str]]:
        """For a table: what, bits/dim, bytes, remark."""
        per_dim = self.report()["bits_per_dim"]
        latents, model = (
            math.log(2) * self.net_bits / self.latents_nelbo_nats,
            math.log(2) * self.net_bits / self.nelbo_nats,
        )
        each = f"{self.codec_images:,} of the images" if self.codec_images < self.images else ""
        rows: list[tuple[str, str | float, str | float, str]] = [
            ("net: final minus initial bits", per_dim["net"], round(self.net_bits * self.images / 8), ""),
            ("NELBO at the coded latents", per_dim["nelbo_of_coded_latents"], "", f"net is {latents - 1:+.3%}"),
            ("NELBO, with the noise of evaluations", per_dim["nelbo"], "", f"net is {model - 1:+.3%}"),
            (
                "gross: the file",
                per_dim["gross"],
                self.file_bytes,
                f"{self.initial_bits // 8:,} bytes started the stack",
            ),
            *((name, "" if bits is None else bits, "", remark or each) for name, bits, remark in self.codecs),
        ]
        mark = " (forced)" if self.forced else ""
        return [(f"{what}{mark}", bits, size, remark) for what, bits, size, remark in rows]


def compress(
    model_path: Path,
    images: list[Path],
    out: Path,
    *,
    data: str | None = None,
    split: str = "test",
    draws: int = 1,
    batch: int = 64,
    force: bool = False,
) -> Compressed:
    """Codes image files, or a split of a prepared data set, into a new file.

    Args:
        data: a folder, or an address that fsspec knows.
        force: go on, marking every figure, where figures could be misunderstood.

    Raises:
        ValueError: a model that cannot be loaded, images that are not the model's, what only `force` takes, too large
            a batch, or `out` exists.
        OSError: `out` cannot be written.
    """
    if bool(images) == (data is not None):
        raise ValueError("name either image files (or folders of them), or --data with a prepared data set")
    if data is None and (split, draws) != ("test", 1):
        raise ValueError("--split and --draws go with --data: image files are coded once, all of them")
    _check_new(out)
    trained = open_trained(model_path, force=force)
    forced = [*trained.forced]
    model = trained.model
    spec = model.spec
    source: ImageFiles | DataSplit
    if data is None:
        source = ImageFiles(images, spec)
    else:
        source, difference = _open_split(trained, data, split, draws)
        if difference:
            forced.append(f"other data than the training's: {difference}")
            if not force:
                raise ValueError(
                    f"{model_path} was not trained on what {data} holds ({difference}): name the data of the training "
                    "with --data, or add --force for figures that are marked as such"
                )
    if len(source) > MOST_IMAGES:
        raise ValueError(f"{len(source):,} images, {MOST_IMAGES:,} at most fit into a file: ask for fewer --draws")
    fingerprint = model_fingerprint(model)
    coder = ImageCoder(copy.deepcopy(model), precision := Precision())
    initial = Initial(INITIAL_SEED, _words_for(min(batch, len(source)), coder.latents))
    if initial.words > MOST_WORDS:
        raise ValueError(
            f"--batch {batch}: the stack would start with {initial.words:,} random words, {MOST_WORDS:,} at most: "
            f"choose --batch {_most_at_once(coder.latents)} or less"
        )
    stack = Stack(initial.content())
    bits_before = stack.bits
    nelbo_nats = latents_nelbo_nats = 0.0
    batches: list[int] = []
    compared: list[Tensor] = []
    every = math.ceil(len(source) / COMPARED_IMAGES)
    digests: list[bytes] = []
    progress = Progress("compressed", len(source))
    coded_images = iter(source)
    coding_s = 0.0
    # As many images at once as the stack can serve, so that it need not start with bits for a whole batch.
    while group := [*islice(coded_images, _images_at_once(batch, stack.bits - bits_before, coder.latents))]:
        x = torch.stack([image.x for image in group])
        nelbo_nats += _nelbo_nats(model, group)
        started = time.monotonic()
        coded = coder.encode(x, stack)
        coding_s += time.monotonic() - started
        latents_nelbo_nats += float((coded.nll_nats + coded.log_ratio_nats).sum())
        digests += [_digest(image.x, spec) for image in group]
        compared += [image.x for place, image in enumerate(group, sum(batches)) if place % every == 0]
        batches.append(len(group))
        progress.say(sum(batches))
    count = sum(batches)
    header = Header(
        model=fingerprint,
        spec=spec,
        images=count,
        names=source.names,
        precision=precision,
        batches=tuple(batches),
        initial_seed=initial.seed,
        initial_words=initial.words,
        untouched_words=stack.untouched,
        pixels_xxh3=_digest_of_all(digests),
        made_with=_made_with(),
    )
    file_bytes = file_format.write(out, CompressedFile(header, stack.words()[stack.untouched :]))
    return Compressed(
        images=count,
        draws_seed=EVALUATION_SEED,
        dimensions=spec.dimensions,
        net_bits=(stack.bits - bits_before) / count,
        latents_nelbo_nats=latents_nelbo_nats / count,
        nelbo_nats=nelbo_nats / count,
        initial_bits=WORD * (initial.words - stack.untouched),
        file_bytes=file_bytes,
        images_per_s=count / coding_s,
        codec_images=len(compared),
        codecs=sizes(compared, spec),
        forced=forced,
    )


def show_compressed(found: Compressed, out: Path) -> None:
    """The table of the figures."""
    title = f"{out}: {found.images:,} images, coded at {found.images_per_s:,.1f} images/s (seed {found.draws_seed})"
    print_table(title, ("", "bits/dim", "bytes", ""), found.rows())
    for reason in found.forced:
        print(f"forced: {reason}")


class Decompressed(NamedTuple):
    images: int
    images_per_s: float


def decompress(path: Path, model_path: Path, out: Path) -> Decompressed:
    """Writes the images of a compressed file as PNG into a new folder, all of them or none.

    Any model of the right fingerprint will do: there are no figures that could be misunderstood.

    Raises:
        ValueError: a damaged file, another model, `out` exists, or the pixels that come out are not those that went in.
        OSError: `out` cannot be written.
    """
    _check_new(out)
    header, payload = file_format.read(path)
    model = open_trained(model_path, force=True).model
    if (found := model_fingerprint(model)) != header.model:
        raise ValueError(
            f"{path} was compressed with the model {header.model}, but {model_path} is {found}: name that other model"
        )
    if header.spec != model.spec:
        raise ValueError(f"{path} says that its model takes {header.spec!r}, but {model_path} takes {model.spec!r}")
    check_pictures(model.spec)
    coder = ImageCoder(model, header.precision)
    if _words_for(max(header.batches), coder.latents) > header.initial_words:
        raise ValueError(file_format.damaged(path, f"no batch of {max(header.batches):,} images can be in it"))
    out.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with all_or_nothing(out) as folder:
        folder.mkdir()
        try:
            _decode_into(folder, coder, header, payload)
        except CoderFailedError as error:
            raise ValueError(file_format.damaged(path, str(error))) from error
        except NotReproducedError as error:
            raise ValueError(
                f"{path} cannot be decompressed here ({error}), and nothing is written. The likely cause: the model "
                "computes numbers that differ in their last bits from those it was compressed with. That was "
                f"{header.made_with}; here it is {_made_with()}. Use what it was compressed with"
            ) from error
    return Decompressed(header.images, header.images / (time.monotonic() - started))


class NotReproducedError(Exception):
    """The pixels that come out are not those that went in."""


def _decode_into(folder: Path, coder: ImageCoder, header: Header, payload: UInt32[ndarray, "n"]) -> None:
    start = Initial(header.initial_seed, header.initial_words).content()
    names = header.names or [f"{number:09d}.png" for number in range(header.images)]
    progress = Progress("decompressed", header.images)
    digests: list[bytes] = []
    with _threads(header.made_with.threads):
        try:
            stack = Stack(np.concatenate([start[: header.untouched_words], payload]))
            for batch in reversed(header.batches):
                for x in reversed(coder.decode(batch, stack)):
                    name = names[header.images - 1 - len(digests)]
                    digests.append(_digest(x, header.spec))
                    picture(x, header.spec).save(folder / name)
                if stack.untouched < header.untouched_words:
                    raise NotReproducedError("more bits are taken off the stack than were put on it")
                progress.say(len(digests))
        except CoderFailedError:
            raise
        except ValueError as error:
            raise NotReproducedError(str(error)) from error
    if not np.array_equal(stack.words(), start):
        raise NotReproducedError("the bits that the stack started with do not come back")
    if _digest_of_all(reversed(digests)) != header.pixels_xxh3:
        raise NotReproducedError("the checksum of the pixels does not fit")


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """The order in which sums are formed depends on the number of threads; no more of them than cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(number, len(os.sched_getaffinity(0))))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _made_with() -> MadeWith:
    return MadeWith(
        torch=torch.__version__,
        constriction=version("constriction"),
        machine=platform.machine(),
        threads=torch.get_num_threads(),
    )


def _check_new(out: Path) -> None:
    """Before the work: whether `out` can be made."""
    if out.exists():
        raise ValueError(f"{out} exists: choose another place, or remove it")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"{out} cannot be written, since {parent} is no folder that can be written into")


def _open_split(trained: Trained, data: str, split: str, draws: int) -> tuple[DataSplit, str | None]:
    """The images, and what differs from the data of the training. None is left out, as a training may do."""
    config, manifest = open_data(trained, data)
    config = config.model_copy(update={"on_damage": "raise"})
    return DataSplit(config, manifest, split, draws, trained.model.spec), other_data(trained, manifest)


def _words_for(batch: int, latents: int) -> int:
    """What the stack starts with: enough for whatever the latents of the first batch take."""
    return math.ceil(batch * latents * PRECISION / WORD) + 2


def _most_at_once(latents: int) -> int:
    """The largest batch whose words are no more than a file may name."""
    return (MOST_WORDS - 2) * WORD // (latents * PRECISION)


def _images_at_once(limit: int, net_bits: int, latents: int) -> int:
    return min(limit, 1 + max(0, net_bits) // (BITS_POPPED_PER_LATENT * latents))


def _nelbo_nats(model: DeepVAE, group: list[CodedImage]) -> float:
    """The sum over the images."""
    total = 0.0
    for draw in {image.draw for image in group}:
        of_draw = [image for image in group if image.draw == draw]
        ids = torch.tensor([image.id for image in of_draw])
        with torch.no_grad():
            noise = evaluation_noise(model, ids, draw, torch.device("cpu"))
            total += float(model(torch.stack([image.x for image in of_draw]), noise).nelbo_nats.double().sum())
    return total


def _digest(x: Tensor, spec: DataSpec) -> bytes:
    return xxhash.xxh3_128_digest(x.contiguous().numpy().astype("<u2" if spec.num_bits > 8 else "u1").tobytes())


def _digest_of_all(digests: Iterable[bytes]) -> str:
    return xxhash.xxh3_128_hexdigest(b"".join(digests))
