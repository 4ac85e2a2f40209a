"""Files of tensors: what is written is what the safetensors library writes, and the other way round."""

from pathlib import Path

import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from attvae.tensor_file import DTYPES, TensorFile, hash_file, write

tensors = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda n: n != "__metadata__"),
    st.builds(
        lambda shape, dtype: torch.randint(0, 2, shape).to(dtype),
        st.lists(st.integers(0, 4), max_size=3),
        st.sampled_from(list(DTYPES.values())),
    ),
    max_size=6,
)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@given(tensors)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_the_librarys_file_byte_for_byte(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    file = tmp_path / "file.safetensors"
    stated = write(file, tensors)
    assert file.read_bytes() == save(tensors)
    assert stated == (file.stat().st_size, xxhash.xxh3_128(file.read_bytes()).hexdigest()) == hash_file(file)
    assert same(load_file(file), tensors)


@given(tensors)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_librarys_files_are_read(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, tmp_path / "file", metadata={"by": "the library"})
    found = TensorFile(tmp_path / "file")
    assert found.shapes == {name: tuple(t.shape) for name, t in tensors.items()}
    assert same({name: found.tensor(name) for name in found.shapes}, tensors)


def test_views_are_written_as_they_are(tmp_path: Path) -> None:
    """Partitions of one flat buffer, as ZeRO has them."""
    flat = torch.randn(10)
    write(tmp_path / "file", {"a": flat[:4].view(2, 2), "b": flat[4:]})
    assert same(load_file(tmp_path / "file"), {"a": flat[:4].view(2, 2), "b": flat[4:]})


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 64, (16).to_bytes(8, "little") + b"{}" + b" " * 5])
def test_what_is_no_tensor_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match="file cannot be read"):
        TensorFile(tmp_path / "file")


def test_an_unknown_type_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "file")
    with pytest.raises(ValueError, match="has a tensor of type 'C64'; known here are I64, F64"):
        TensorFile(tmp_path / "file")


def test_a_file_cut_short_after_it_was_opened_is_named(tmp_path: Path) -> None:
    write(tmp_path / "file", {"a": torch.zeros(100)})
    found = TensorFile(tmp_path / "file")
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:-1])
    with pytest.raises(ValueError, match="file ends within a"):
        found.tensor("a")
