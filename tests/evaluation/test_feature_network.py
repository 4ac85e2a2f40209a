"""What a feature network is given and gives, and which files are refused."""

import hashlib
from pathlib import Path

import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from attvae.evaluation.feature_network import FeatureNetwork

SHAPE = (1, 4, 4)


def saved(path: Path, nodes: list, inputs: dict, outputs: dict, weights: tuple[TensorProto, ...] = ()) -> str:
    """Writes an ONNX file by hand; its SHA-256."""
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in those.items()]
        for those in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "features", *ends, [*weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flat(path: Path, channels: object = 3, size: object = "h", batch: object = "b") -> str:
    """The pixels themselves, as features."""
    node = helper.make_node("Flatten", ["x"], ["y"], axis=1)
    return saved(path, [node], {"x": [batch, channels, size, size]}, {"y": [batch, "d"]})


def opened(path: Path, sha256: str, shape: tuple[int, int, int] = SHAPE, largest: int = 15) -> FeatureNetwork:
    return FeatureNetwork(path, sha256, shape, largest)


def pixels(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 16, shape, dtype=torch.uint8)


@pytest.mark.parametrize(("channels", "wanted"), [(1, 3), (3, 3), (1, 1), (2, 2)])
def test_what_the_network_sees(channels: int, wanted: int, tmp_path: Path) -> None:
    network = opened(tmp_path / "x.onnx", flat(tmp_path / "x.onnx", wanted), (channels, 4, 4))
    x = pixels(5, channels, 4, 4)
    seen = network(x)
    assert network.dimensions == wanted * 16
    torch.testing.assert_close(seen, (x / 15).repeat(1, wanted // channels, 1, 1).flatten(1))
    assert network(x[:0]).shape == (0, network.dimensions)


def test_the_hash(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    sha256 = flat(path)
    opened(path, sha256.upper())
    with pytest.raises(ValueError, match=f"has the SHA-256 {sha256}, not {'0' * 64}"):
        opened(path, "0" * 64)
    for wrong in ("", sha256[:-1], "g" * 64):
        with pytest.raises(ValueError, match=r"64 hexadecimal digits are needed, as `sha256sum"):
            opened(path, wrong)
    with pytest.raises(ValueError, match=r"nowhere\.onnx cannot be read: No such file"):
        opened(tmp_path / "nowhere.onnx", sha256)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"size": 299}, r"takes tensor\(float\) \['b', 3, 299, 299\], but the images are \[1, 4, 4\]"),
        ({"channels": 4}, r"an input \[B, 3, H, W\] of float32 is needed"),
        ({"batch": 1}, r"it needs to take any number of images"),
    ],
)
def test_networks_that_do_not_fit(made: dict, said: str, tmp_path: Path) -> None:
    sha256 = flat(tmp_path / "x.onnx", **made)
    with pytest.raises(ValueError, match=said):
        opened(tmp_path / "x.onnx", sha256)


def test_networks_that_give_no_features(tmp_path: Path) -> None:
    path, x = tmp_path / "x.onnx", {"x": ["b", 3, "h", "w"]}
    with pytest.raises(ValueError, match=r"gives \[3, 3, 4, 4\] for 3 images"):
        opened(path, saved(path, [helper.make_node("Relu", ["x"], ["y"])], x, {"y": ["b", 3, "h", "w"]}))
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Sub", ["f", "f"], ["zero"])]
    with pytest.raises(ValueError, match="not finite"):
        opened(path, saved(path, [*nodes, helper.make_node("Log", ["zero"], ["y"])], x, {"y": ["b", "d"]}))
    with pytest.raises(ValueError, match=r"takes \(x\) and gives \(f, zero\): one input and one output"):
        opened(path, saved(path, nodes, x, {"f": ["b", "d"], "zero": ["b", "d"]}))
    with pytest.raises(ValueError, match="gives 6,912 features of an image: at most 4,096"):
        opened(path, flat(path), (3, 48, 48))


def test_features_that_depend_on_more_than_the_image(tmp_path: Path) -> None:
    path, x, y = tmp_path / "x.onnx", {"x": ["b", 3, "h", "w"]}, {"y": ["b", "d"]}
    flatten = helper.make_node("Flatten", ["x"], ["f"])
    mean = helper.make_node("ReduceMean", ["f", "rows"], ["m"], keepdims=1)  # as batch norm does in training
    rows = helper.make_tensor("rows", TensorProto.INT64, [1], [0])
    of_batch = [flatten, mean, helper.make_node("Sub", ["f", "m"], ["y"])]
    random = [flatten, helper.make_node("RandomNormalLike", ["f"], ["y"])]
    for nodes in (of_batch, random):
        with pytest.raises(ValueError, match="other features when others are beside it, or the second time: export it"):
            opened(path, saved(path, nodes, x, y, (rows,)))


def test_features_that_are_no_floats(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Cast", ["f"], ["y"], to=TensorProto.STRING)],
        "features",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, ["b", "d"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"gives tensor\(string\): features of float32 are needed"):
        opened(tmp_path / "x.onnx", hashlib.sha256(model.SerializeToString()).hexdigest())


def test_what_is_no_onnx(tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    for data in (b"", b"PK\x03\x04 a zip, as torch.export writes"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is no ONNX network that onnxruntime can run"):
            opened(path, hashlib.sha256(data).hexdigest())


def test_files_beside_it_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret").write_bytes(bytes(4))
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "secret"), ("offset", "0"), ("length", "4")):
        outside.external_data.add(key=key, value=value)
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Add", ["f", "w"], ["y"])]
    sha256 = saved(Path("x.onnx"), nodes, {"x": ["b", 3, "h", "w"]}, {"y": ["b", "d"]}, (outside,))
    with pytest.raises(ValueError, match="keeps weights in other files"):
        opened(Path("x.onnx"), sha256)
    monkeypatch.setattr("attvae.evaluation.feature_network._EXTERNAL_DATA", b"\0 not there")
    with pytest.raises(ValueError, match="no ONNX network that onnxruntime can run"):
        opened(Path("x.onnx"), sha256)


def test_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = flat(tmp_path / "x.onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'attvae\[features\]'"):
        opened(tmp_path / "x.onnx", sha256)
