"""The authors' h5 files: a small one in full, the order of the three published ones without their tensors."""

import csv
import gzip
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from golden.arrays import FOLDER, Arrays, arrays, assert_close, facts
from model.conftest import CFG1
from model.test_published_models import MODELS, on_meta_device
from torch import Tensor

from attvae.model.official import canonical_names
from attvae.model.official_command import Images, parse_command
from attvae.model.official_h5 import Weight, layout, read_h5
from attvae.model.vae import DeepVAE

H5 = FOLDER / "cfg1_weights.h5"
FIRST_NORM = "deep_vae/DeepVAE_encode/layer_normalization_14"


def layout_of_the_file(name: str) -> list[list[Weight]]:
    with gzip.open(FOLDER / f"{name}.tsv.gz", "rt") as file:
        next(file)
        groups: dict[str, list[Weight]] = {}
        for row in csv.DictReader((line.removeprefix("#") for line in file), delimiter="\t"):
            group = groups.setdefault(row["group"], [])
            if row["index"] != "-":
                assert len(group) == int(row["index"])
                shape = () if row["shape"] == "scalar" else tuple(map(int, row["shape"].split("x")))
                group.append(Weight(row["canonical"], row["weight_name"].split("/")[-1].removesuffix(":0"), shape))
    return [*groups.values()]


@pytest.mark.parametrize("name", MODELS)
def test_order_names_and_shapes_of_the_published_files(name: str) -> None:
    assert layout(on_meta_device(name)) == layout_of_the_file(MODELS[name][3])


def blank(cfg1: DeepVAE) -> DeepVAE:
    return DeepVAE(cfg1.config, cfg1.spec)


def test_the_authors_weights_come_in_exactly(cfg1: DeepVAE, cfg1_weights: Arrays) -> None:
    model = blank(cfg1)
    read_h5(H5, model)
    state = model.state_dict()
    for name, canonical in canonical_names(model).items():
        expected = cfg1_weights[canonical]
        axes = {"v": (3, 2, 0, 1), "constant": (0, 3, 1, 2)}.get(canonical.split(".")[-1], range(expected.ndim))
        assert np.array_equal(state[name].numpy(), expected.transpose(axes).reshape(state[name].shape)), name


def test_command_and_file_give_the_authors_numbers(images: Tensor, noise: list[Tensor]) -> None:
    command = " ".join(f"--{flag}={value}" for flag, value in facts()["flags"].items())
    model = DeepVAE(*parse_command(command, Images(height=16, width=16, channels=3, num_bits=8))).eval()
    read_h5(H5, model)
    assert_close(model(images, noise).nelbo_nats.detach(), arrays("cfg1_eval")["nelbo"], rtol=5e-6, atol=0)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copyfile(H5, tmp_path / "weights.h5"))


def test_a_long_list_of_names_comes_in_chunks(copy: Path, cfg1: DeepVAE) -> None:
    with h5py.File(copy, "a") as file:
        names = file["variational_layer_2"].attrs["weight_names"]
        del file["variational_layer_2"].attrs["weight_names"]
        for i, chunk in enumerate(np.array_split(names, 3)):
            file["variational_layer_2"].attrs[f"weight_names{i}"] = chunk
    model = blank(cfg1)
    read_h5(copy, model)
    for found, expected in zip(model.state_dict().values(), cfg1.state_dict().values(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 3}, r"the file has 11 groups, but this model's has 9"),
        ({"latent_channels": 5}, r"group 0 \(concat_conv2d\), weight 0: the file has kernel \(1, 1, 24, 20\).*"
         r"has kernel \(1, 1, 25, 20\) \(final_merge\.conv\.v\)"),
        ({"decoder_merge": {"key_dim": 4}}, r"group 0 \(concat_conv2d\), weight 3: the file has initialized \(\).* "
         r"but this model has gamma \(\) \(final_merge\.nonlocal\.gamma\)"),
        ({"encoder_attention": {"key_dim": 4, "layer_norm": False}},
         r"group 3 \(variational_layer\), weight \d+: the file has gamma \(16,\)"),
        ({"postprocessing": {"scales": [2]}}, r"group 1 \(data_layer\), weight \d+: the file has"),
    ],
)  # fmt: skip
def test_a_file_of_another_configuration(cfg1: DeepVAE, change: dict, message: str) -> None:
    config = CFG1.model_validate(CFG1.model_dump() | change)
    with pytest.raises(ValueError, match=message):
        read_h5(H5, DeepVAE(config, cfg1.spec))


def test_a_weight_too_few_or_too_many(copy: Path, cfg1: DeepVAE) -> None:
    with h5py.File(copy, "a") as file:
        attributes = file["layer_normalization_14"].attrs
        names = attributes["weight_names"]
        attributes["weight_names"] = names[:1]
    with pytest.raises(ValueError, match=r"group 9 \(layer_normalization_14\): the file has 1 weights, but .* has 2"):
        read_h5(copy, blank(cfg1))
    with h5py.File(copy, "a") as file:
        file["layer_normalization_14"].attrs["weight_names"] = [*names, names[0]]
    with pytest.raises(ValueError, match=r"the file has 3 weights, but this model has 2"):
        read_h5(copy, blank(cfg1))


def replace(copy: Path, array: np.ndarray) -> None:
    with h5py.File(copy, "a") as file:
        del file[f"layer_normalization_14/{FIRST_NORM}/gamma:0"]
        file[f"layer_normalization_14/{FIRST_NORM}/gamma:0"] = array


def test_weights_that_are_no_numbers(copy: Path, cfg1: DeepVAE) -> None:
    replace(copy, np.array([1.0, np.nan] * 12, np.float32))
    with pytest.raises(ValueError, match=r"ctx_layer_norm\.2\.gamma: 12 weights are NaN"):
        read_h5(copy, blank(cfg1))
    replace(copy, np.array([b"pickle"] * 24))
    with pytest.raises(ValueError, match=r"group 9 .*, weight 0: .*gamma:0 is of type \|S6, not float32"):
        read_h5(copy, blank(cfg1))


def test_files_that_are_none(copy: Path, tmp_path: Path, cfg1: DeepVAE) -> None:
    for size in (0, 1000, 100_000, copy.stat().st_size - 1):
        truncated = tmp_path / "truncated.h5"
        truncated.write_bytes(copy.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"truncated\.h5 is not a readable h5 file"):
            read_h5(truncated, blank(cfg1))
    with pytest.raises(ValueError, match=r"nowhere\.h5 is not a readable h5 file.*No such file"):
        read_h5(tmp_path / "nowhere.h5", blank(cfg1))
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["weights"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"no attribute layer_names: not weights as Keras saves them"):
        read_h5(tmp_path / "foreign.h5", blank(cfg1))
    with h5py.File(copy, "a") as file:
        del file["res_net_1"]
    with pytest.raises(ValueError, match=r"is not a readable h5 file of Keras weights: .*res_net_1"):
        read_h5(copy, blank(cfg1))


def test_without_h5py(cfg1: DeepVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"pip install 'attvae\[official\]'"):
        read_h5(H5, blank(cfg1))
