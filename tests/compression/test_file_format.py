import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from compression.conftest import COLOUR
from hypothesis import given, settings
from hypothesis import strategies as st

from attvae.compression import file_format
from attvae.compression.bits_back import Precision
from attvae.compression.file_format import CompressedFile, Header, MadeWith

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
    with pytest.raises(ValueError, match=r"images\.bb (is damaged|has format|is not a file)"):
        file_format.from_bytes(bytes(damaged), PATH)


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
    ],
)
def test_a_header_that_contradicts_itself_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        file_format.from_bytes(with_header(**change), PATH)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        file_format.write(tmp_path / "images.bb", CompressedFile(HEADER, WORDS))
    assert not list(tmp_path.iterdir())
