import builtins
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import python2_pickle

from data_prep import safe_unpickle

BATCH = {
    "data": np.arange(24, dtype=np.uint8).reshape(2, 12),
    "labels": [3, 9],
    "filenames": ["a.png", "b.png"],
    "batch_label": "training batch 1 of 5",
}


def load(content: bytes) -> dict[str, object]:
    return safe_unpickle.load(io.BytesIO(content), "batch")


def test_the_fixture_is_what_python_reads_as_a_python_2_pickle() -> None:
    found = pickle.loads(python2_pickle.dumps(BATCH), encoding="bytes")
    assert np.array_equal(found[b"data"], BATCH["data"])
    assert found[b"data"].dtype == np.uint8
    assert found[b"filenames"] == [b"a.png", b"b.png"]


@pytest.mark.parametrize(
    "content", [python2_pickle.dumps(BATCH), *[pickle.dumps(BATCH, protocol) for protocol in range(5)]]
)
def test_a_batch(content: bytes) -> None:
    found = load(content)
    assert found.keys() == BATCH.keys()
    assert np.array_equal(found["data"], BATCH["data"])
    assert found["data"].dtype == np.uint8
    assert found["labels"] == [3, 9]


@pytest.mark.parametrize(
    "array",
    [
        np.linspace(0, 1, 7),
        np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
        np.array([1, -2, 3]),
        np.array([1, 500], ">i2"),
        np.array([True, False]),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_of_numbers(array: np.ndarray, protocol: int) -> None:
    found = load(pickle.dumps({"array": array}, protocol))["array"]
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


class Call:
    """Pickles as a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("inside", ["dict", "key", "list", "array", "array of arrays"])
@pytest.mark.parametrize(
    ("function", "name"), [(os.system, "system"), (builtins.eval, "eval"), (builtins.exec, "exec")]
)
def test_no_call_is_made(function: object, name: str, inside: str, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    code = f"touch {marker}" if name == "system" else f"open({str(marker)!r}, 'w').close()"
    call = Call(function, code)
    match inside:
        case "dict":
            content: object = {"data": call}
        case "key":
            content = {call: 1}
        case "list":
            content = {"labels": [1, call]}
        case "array":
            content = {"data": np.array([call], dtype=object)}
        case "array of arrays":
            content = {"data": np.array([np.array([call], dtype=object), None], dtype=object)}
    malicious = pickle.dumps(content, protocol)
    with pytest.raises(ValueError, match=rf"\.{name}, which is refused|elements of type b?'O8'"):
        load(malicious)
    assert not marker.exists()
    pickle.loads(malicious)
    assert marker.exists()  # so the attack is a real one


@pytest.mark.parametrize(
    "malicious",
    [
        b"(S'touch MARKER'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch MARKER'\no.",  # OBJ
        b"\x80\x02c__builtin__\neval\nU\x04evilq\x00\x85R.",
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__class__\x93.",  # a way from an admitted name
        b"\x80\x04\x8c\x05numpy\x8c\x06loadtx\x93.",
        b"\x80\x02cnumpy\nload\nU\x06MARKER\x85R.",
        b"\x80\x02cnumpy.core.multiarray\nscalar\n)R.",
        b"\x80\x02ccopyreg\n_reconstructor\n)R.",
        b"\x80\x02cnumpy\nndarray\n)\x81.",  # NEWOBJ
        b"\x80\x02cnumpy\nndarray\nK\x02\x85R.",  # a call of what is no function here
        b"\x80\x02cnumpy\ndtype\n}U\x08__call__U\x01xsb.",  # BUILD on a stand-in
        b"\x80\x02cnumpy\ndtype\nN}U\x09__class__cnumpy\nndarray\ns\x86b.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xX\x03\x00\x00\x00zip\x86R.",
        b"\x80\x02Pos.system\n.",  # persistent id
        b"\x80\x02\x82\x01.",  # extension registry
    ],
)
def test_ways_around_the_names(malicious: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="batch is no pickle of numbers and arrays, or a damaged one: "):
        load(malicious)
    assert not list(tmp_path.iterdir())
    assert np.array_equal(load(python2_pickle.dumps(BATCH))["data"], BATCH["data"])  # no stand-in was changed


@pytest.mark.parametrize("code", [b"O", b"O8", b"V8", b"S4", b"u1,O", b"M8[s]", b"(2,)u1", b"object", b"u16", b"u1\n"])
def test_types_that_are_no_numbers(code: bytes) -> None:
    malicious = b"\x80\x02cnumpy\ndtype\nU" + bytes([len(code)]) + code + b"K\x00K\x01\x87R."
    with pytest.raises(ValueError, match="an array has elements of type"):
        load(malicious)


def test_a_type_by_a_dictionary() -> None:
    malicious = b"\x80\x02cnumpy\ndtype\n}U\x05namesU\x01xs\x85R."
    with pytest.raises(ValueError, match="an array has elements of type"):
        load(malicious)


def test_an_array_that_claims_more_than_it_has() -> None:
    content = python2_pickle.dumps({"data": np.zeros((2, 12), np.uint8)})
    claim = b"J\x02\x00\x00\x00J\x0c\x00\x00\x00"
    assert claim in content
    with pytest.raises(ValueError, match=r"cannot reshape array of size 24 into shape \(10240,12\)"):
        load(content.replace(claim, b"J\x00\x28\x00\x00J\x0c\x00\x00\x00"))


def test_cut_short_anywhere() -> None:
    for content in (python2_pickle.dumps(BATCH), pickle.dumps(BATCH, 4)):
        for length in range(len(content)):
            with pytest.raises(ValueError, match="batch is no pickle"):
                load(content[:length])


def test_not_a_dictionary() -> None:
    with pytest.raises(ValueError, match="it holds a list, expected a dictionary"):
        load(pickle.dumps([1, 2]))
