"""The study file: which runs it names."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from launched import REPOSITORY

from attvae.claims.study import Cell, check, load_study
from attvae.model.vae import DeepVAE
from attvae.spec import DataSpec

DIGITS = DataSpec(height=8, width=8, channels=1, num_bits=5, max_value=16, binary=True)
SHIPPED = REPOSITORY / "configs/claims"
WIDTHS = {"none": [1, 1]}


def written(folder: Path, **changes: Any) -> Path:
    tree = {
        "about": "a",
        "chosen_on": "b",
        "limits": "c",
        "base": str(REPOSITORY / "configs/demo.yaml"),
        "of_samples": {"train.kl_warmup": 0.25},
        "variants": {"none": {"model.encoder_attention": None, "model.decoder_attention": None}, "both": {}},
        "seeds": [3, 4],
        "sets": {
            "depth": {
                "about": "d",
                "depths": [{"layers": 2, "samples": 1000, "widths": {"none": [27, 25], "both": [22, 21]}}],
            }
        },
    }
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(tree | changes, sort_keys=False))
    return file


def test_a_study_is_every_variant_of_every_depth_with_every_seed(tmp_path: Path) -> None:
    study = load_study(written(tmp_path))
    assert study.name == "small"
    assert [cell.id for cell in study.cells()] == [
        "depth/02_none_seed-3",
        "depth/02_both_seed-3",
        "depth/02_both_seed-4",
        "depth/02_none_seed-4",
    ]


def test_the_digits_study_is_that_of_the_question() -> None:
    study = load_study(SHIPPED / "digits.yaml")
    more = list(study.cells())
    cells = [cell for cell in more if not study.sets[cell.set].full]
    assert len(cells) == 36
    assert {cell.layers for cell in cells} == {2, 4, 8}
    assert {cell.variant for cell in cells} == {"none", "generative", "inference", "both"}
    assert {cell.seed for cell in cells} == {0, 1, 2}
    assert set(Counter((cell.layers, cell.variant) for cell in cells).values()) == {3}
    assert {16, 8} <= {cell.layers for cell in more}
    assert {"both_nonlocal"} <= {cell.variant for cell in more}
    for cell in cells:  # as many samples for all of a depth
        assert cell.samples == next(other.samples for other in cells if other.layers == cell.layers)


def test_attention_is_where_the_variant_says() -> None:
    study = load_study(SHIPPED / "digits.yaml")
    for cell in study.cells():
        if cell.seed or cell.set == "photographs":
            continue
        model = study.config_of(cell).model
        assert (model.encoder_attention is not None) == (cell.variant in ("inference", "both", "both_nonlocal"))
        assert (model.decoder_attention is not None) == (cell.variant in ("generative", "both", "both_nonlocal"))
        assert model.num_layers == cell.layers


def test_a_cell_s_configuration_has_what_all_have_and_what_is_its_own(tmp_path: Path) -> None:
    study = load_study(written(tmp_path, overrides={"train": {"lr": 0.5}}))
    cell = Cell("depth", 2, "both", 4, 1000)
    cfg = study.config_of(cell)
    assert (cfg.seed, cfg.train.samples, cfg.train.kl_warmup, cfg.train.lr) == (4, 1000, 250, 0.5)
    assert (cfg.model.encoder_filters, cfg.model.decoder_filters) == (22, 21)
    assert cfg.tracking.run_name == cell.id
    assert cfg.tracking.tags["variant"] == "both"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"variants": {"both": {}}}, "variants lacks none"),
        ({"seeds": [1, 1]}, "names a seed twice"),
        (
            {"sets": {"s": {"about": "", "depths": [{"layers": 1, "samples": n, "widths": WIDTHS} for n in (1, 2)]}}},
            r"sets.s: depths=\[1, 1\] names a number of layers twice",
        ),
        ({"sets": {"s": {"about": "", "depths": [{"layers": 1, "samples": 1, "widths": {}}]}}}, "widths"),
        ({"sets": {}}, "sets"),
        ({"sets": ["a"]}, "sets"),
        ({"gpus": 2}, "gpus=2: a run of a study has one GPU or none"),
        ({"seed": 1}, "unknown key seed: did you mean seeds?"),
        (
            {"sets": {"a b": {"about": "", "depths": [{"layers": 1, "samples": 1, "widths": WIDTHS}]}}},
            "sets.a b: a set's",
        ),
        (
            {"sets": {"s": {"about": "", "depths": [{"layers": 1, "samples": 1, "widths": {"bot": [1, 1]}}]}}},
            "sets.s: bot is no variant; known are none, both",
        ),
    ],
)
def test_what_is_wrong_with_a_study_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        load_study(written(tmp_path, **changes))


def test_models_that_are_not_of_one_size_are_refused(tmp_path: Path) -> None:
    study = load_study(written(tmp_path))
    cells = list(study.cells())
    check(study, dict(zip(cells, (1000, 1020, 1020, 1000), strict=True)))
    with pytest.raises(ValueError, match=r"2 layers, both has 1,021 parameters, 2 layers, none 1,000, more than 2%"):
        check(study, dict(zip(cells, (1000, 1021, 1020, 1000), strict=True)))


@pytest.mark.parametrize(
    ("file", "spec"),
    [
        ("digits.yaml", DIGITS),
        ("cifar10.yaml", DataSpec(height=32, width=32, channels=3, num_bits=8, max_value=255)),
    ],
)
def test_the_shipped_studies_compare_models_of_one_size(file: str, spec: DataSpec) -> None:
    study = load_study(SHIPPED / file)
    cells = [cell for cell in study.cells() if cell.seed == study.seeds[0] and cell.set != "photographs"]
    parameters = {}
    for cell in cells:
        with torch.device("meta"):
            model = DeepVAE(study.config_of(cell).model, spec)
        parameters[cell] = sum(p.numel() for p in model.parameters())
    check(study, parameters)
