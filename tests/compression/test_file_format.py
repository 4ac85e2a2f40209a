import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from annotated_types import Le
from compression.conftest import COLOUR, build, images_of
from hypothesis import given, settings
from hypothesis import strategies as st

from attvae.compression import file_format
from attvae.compression.bits_back import ImageCoder, Precision
from attvae.compression.file_format import CompressedFile, Header, MadeWith
from attvae.compression.stack import Initial, Stack

PATH = Path("images.bb")
WORDS = np.random.default_rng(0).integers(2**32, size=50, dtype=np.uint32)
HEADER = Header(
    model="0" * 32,
    spec=COLOUR,
    images=3,
    names=("a.png", "b.png", "c d.png"),
    precision=Precision(),
    batches=(1, 2),
    initial_seed=0,
    initial_words=100,
    untouched_words=60,
    pixels_xxh3="1" * 32,
    made_with=MadeWith(torch="2", constriction="0.5", machine="x86_64", threads=1),
)
CONTENT = file_format.to_bytes(CompressedFile(HEADER, WORDS))


def with_header(**changes: Any) -> bytes:
    """A file whose checksum fits all the same."""
    header = zlib.compress(json.dumps(json.loads(HEADER.model_dump_json()) | changes).encode())
    content = struct.pack("<8sHI", b"attvaeBB", 1, len(header)) + header + WORDS.tobytes()
    return content + xxhash.xxh3_128_digest(content)


def test_what_is_written_is_read() -> None:
    read = file_format.from_bytes(CONTENT, PATH)
    assert read.header == HEADER
    assert (read.payload == WORDS).all()


def test_the_layout_is_what_the_document_says() -> None:
    magic, version, length = struct.unpack_from("<8sHI", CONTENT)
    assert (magic, version) == (b"attvaeBB", 1)
    assert json.loads(zlib.decompress(CONTENT[14 : 14 + length]))["names"] == ["a.png", "b.png", "c d.png"]
    assert (np.frombuffer(CONTENT[14 + length : -16], "<u4") == WORDS).all()
    assert CONTENT[-16:] == xxhash.xxh3_128_digest(CONTENT[:-16])


@settings(deadline=None)
@given(st.integers(0, len(CONTENT) - 1), st.integers(1, 255))
def test_a_damaged_byte_anywhere_is_found(place: int, change: int) -> None:
    damaged = bytearray(CONTENT)
    damaged[place] ^= change
    said = "is not a file" if place < len(file_format.MAGIC) else "is damaged"
    with pytest.raises(ValueError, match=rf"images\.bb {said}"):
        file_format.from_bytes(bytes(damaged), PATH)


@pytest.mark.parametrize("place", [8, 9])
def test_a_flip_in_the_version_is_damage(place: int) -> None:
    damaged = bytearray(CONTENT)
    damaged[place] ^= 2
    with pytest.raises(ValueError, match=r"images\.bb is damaged .*checksum does not fit"):
        file_format.from_bytes(bytes(damaged), PATH)


def test_a_sound_file_of_another_version_is_named_as_such() -> None:
    content = CONTENT[:8] + struct.pack("<H", 2) + CONTENT[10:-16]
    with pytest.raises(ValueError, match="has format 2, this attvae reads 1"):
        file_format.from_bytes(content + xxhash.xxh3_128_digest(content), PATH)


@settings(deadline=None)
@given(st.integers(0, len(CONTENT) - 1))
def test_a_file_cut_short_anywhere_is_found(length: int) -> None:
    with pytest.raises(ValueError, match=r"images\.bb (is damaged or cut short|is not a file)"):
        file_format.from_bytes(CONTENT[:length], PATH)


def test_more_at_the_end_is_found() -> None:
    with pytest.raises(ValueError, match="damaged"):
        file_format.from_bytes(CONTENT + b"\0" * 4, PATH)


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "a/b.png", "a\\b.png", "a.exe", "..", "a\0.png"])
def test_names_that_lead_out_of_the_folder_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a PNG file"):
        file_format.from_bytes(with_header(names=[name, "b.png", "c.png"]), PATH)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"batches": [1, 1]}, "do not fit its batches"),
        ({"batches": [3, 0]}, "do not fit its batches"),
        ({"names": ["a.png", "a.png", "b.png"]}, "all different"),
        ({"untouched_words": 101}, "101 of 100 words untouched"),
        ({"unknown": 1}, "unknown"),
        ({"initial_words": 2**40}, "initial_words"),
        ({"initial_seed": 2**64}, "initial_seed"),
        ({"images": 10**9 + 1, "batches": [10**9 + 1], "names": None}, "images: "),
        ({"names": ["a" * 252 + ".png", "b.png", "c.png"]}, "256 bytes, 255 at most"),
        ({"made_with": {"torch": "2", "constriction": "0.5", "machine": "x86_64", "threads": 0}}, "threads"),
        *(
            ({"precision": {field: number}}, f"precision.{field}: ")
            for field in Precision.model_fields
            for number in (0, -3, 2**31)
        ),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        file_format.from_bytes(with_header(**change), PATH)
    assert str(refused.value).startswith("images.bb is damaged")
    assert "\n" not in str(refused.value)


def test_the_largest_precision_is_one_that_the_coder_can_do() -> None:
    bounds = {
        name: max(limit.le for limit in field.metadata if isinstance(limit, Le))
        for name, field in Precision.model_fields.items()
    }
    largest = Precision.model_validate(bounds)
    images = images_of(build("binary"), 2)
    coder = ImageCoder(build("binary"), largest)
    stack = Stack(Initial(0, 3 * coder.latents).content())
    coder.encode(images, stack)
    assert (coder.decode(2, stack) == images).all()


def test_a_header_that_could_not_be_read_again_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_format, "LARGEST_HEADER", len(HEADER.model_dump_json()) - 1)
    with pytest.raises(ValueError, match="at most: put fewer images into a file"):
        file_format.to_bytes(CompressedFile(HEADER, WORDS))


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        file_format.write(tmp_path / "images.bb", CompressedFile(HEADER, WORDS))
    assert not list(tmp_path.iterdir())


def test_nothing_that_lies_beside_the_file_is_touched(tmp_path: Path) -> None:
    (tmp_path / "images.bb.tmp").write_text("mine")
    file_format.write(tmp_path / "images.bb", CompressedFile(HEADER, WORDS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.bb", "images.bb.tmp"]
    assert (tmp_path / "images.bb.tmp").read_text() == "mine"
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "images.bb").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
