from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from attvae.config import RunConfig, differences, load

CONFIGS = Path(__file__).parents[1] / "configs"
COMPLETE = {
    "data": {"path": "data/digits"},
    "model": {
        "num_layers": 3,
        "latent_channels": 4,
        "encoder_filters": 8,
        "decoder_filters": 8,
        "decoder_attention": {"key_dim": 4},
        "likelihood": {"kind": "bernoulli"},
    },
    "train": {"samples": 2000, "global_batch": 100, "lr": 0.01, "clip_norm": 100.0, "log_every": 500},
    "eval": {"every": 1000},
    "checkpoint": {"every": 1000},
}

Write = Callable[[str, Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def complete(write: Write) -> Path:
    return write("complete.yaml", COMPLETE)


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the callers look at the message)
        load(path, overrides)
    assert not isinstance(caught.value, ValidationError), "pydantic's own wording reached the user"
    return str(caught.value)


OTHER = {"search", "claims"}  # tests/search and tests/claims have those
SHIPPED = [path for path in sorted(CONFIGS.rglob("*.yaml")) if path.parent.name not in OTHER]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_every_config_of_the_project_loads_and_survives_its_dump(path: Path, write: Write) -> None:
    cfg = load(path)
    assert load(write("dumped.yaml", cfg.to_yaml())) == cfg


# ---------------------------------------------------------------------------------------------------------- composition


def test_bases_come_first_in_their_order_then_the_file_then_the_overrides(write: Write) -> None:
    write("complete.yaml", COMPLETE)
    write("parts/small.yaml", {"base": "../complete.yaml", "train": {"lr": 0.02, "lr_warmup": 1, "kl_warmup": 1}})
    write("parts/seeds/three.yaml", {"seed": 3, "train": {"lr_warmup": 2, "kl_warmup": 2, "log_every": 2}})
    top = write(
        "parts/top.yaml",
        {"base": ["small.yaml", "seeds/three.yaml"], "train": {"kl_warmup": 3, "log_every": 3}},
    )
    cfg = load(top, ["train.log_every=4"])
    assert cfg.seed == 3
    assert cfg.train.samples == 2000  # the base's base
    assert cfg.train.lr == 0.02  # the first base over its own
    assert cfg.train.lr_warmup == 2  # the second base over the first
    assert cfg.train.kl_warmup == 3  # the file over both
    assert cfg.train.log_every == 4  # the override over all


def test_one_base_may_serve_two_branches(write: Write) -> None:
    write("complete.yaml", COMPLETE)
    write("left.yaml", {"base": "complete.yaml", "seed": 1})
    write("right.yaml", {"base": "complete.yaml", "data": {"window": 7}})
    cfg = load(write("both.yaml", {"base": ["left.yaml", "right.yaml"]}))
    assert (cfg.seed, cfg.data.window) == (1, 7)


def test_merging_is_key_by_key_but_a_list_is_one_value(write: Write) -> None:
    write("complete.yaml", COMPLETE | {"model": COMPLETE["model"] | {"preprocessing": {"scales": [0, 0, -2]}}})
    cfg = load(write("top.yaml", {"base": "complete.yaml", "model": {"preprocessing": {"scales": [-2]}}}))
    assert cfg.model.preprocessing.scales == (-2,)
    assert cfg.model.decoder_attention is not None
    assert cfg.model.decoder_attention.key_dim == 4


def test_null_switches_a_part_of_the_base_off(write: Write, complete: Path) -> None:
    cfg = load(write("top.yaml", {"base": complete.name, "model": {"decoder_attention": None}}))
    assert cfg.model.decoder_attention is None


@pytest.mark.parametrize("start", ["a.yaml", "self.yaml"])
def test_a_circle_of_bases_is_named(write: Write, tmp_path: Path, start: str) -> None:
    write("a.yaml", {"base": "sub/b.yaml"})
    write("sub/b.yaml", {"base": "../a.yaml"})
    write("self.yaml", {"base": "self.yaml"})
    message = refusal(tmp_path / start)
    assert start in message
    assert "in a circle" in message


def test_a_missing_base_is_named(write: Write) -> None:
    message = refusal(write("top.yaml", {"base": "gone.yaml"}))
    assert "gone.yaml: No such file" in message


@pytest.mark.parametrize("base", [5, None, [1]])
def test_a_base_that_is_no_file_name_is_refused(write: Write, base: Any) -> None:
    assert "base" in refusal(write("top.yaml", {"base": base}))


def test_a_shipped_configuration_is_found_from_anywhere_but_an_own_one_comes_first(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = Path("configs/test/tiny.yaml")
    assert load(shipped) == load(CONFIGS / "test" / "tiny.yaml")
    write("configs/test/tiny.yaml", COMPLETE | {"seed": 77})
    assert load(shipped).seed == 77


# ------------------------------------------------------------------------------------------------------------ overrides


def test_overrides(complete: Path) -> None:
    cfg = load(
        complete,
        [
            "train.lr=3e-4",
            "train.clip_norm=1_000",
            "model.preprocessing.scales=[-2, 0, 0]",
            "model.decoder_attention=null",
            "model.encoder_attention.key_dim=8",
            "optim.l2=.5",
            "tracking.mlflow=false",
            "tracking.run_name=a=b",
            "data.path=elsewhere/digits",
            "engine={name: plain, micro_batch: 5}",
            "seed=1",
            "seed=2",
        ],
    )
    assert cfg.train.lr == 3e-4
    assert cfg.train.clip_norm == 1000
    assert cfg.model.preprocessing.scales == (-2, 0, 0)
    assert cfg.model.decoder_attention is None
    assert cfg.model.encoder_attention is not None
    assert cfg.model.encoder_attention.key_dim == 8
    assert cfg.optim.l2 == 0.5
    assert cfg.tracking.mlflow is False
    assert cfg.tracking.run_name == "a=b"
    assert cfg.data.path == "elsewhere/digits"
    assert (cfg.engine.name, cfg.engine.micro_batch) == ("plain", 5)
    assert cfg.seed == 2


def test_an_override_reaches_into_a_part_that_is_switched_off(complete: Path) -> None:
    cfg = load(complete, ["model.decoder_attention=null", "model.decoder_attention.key_dim=2"])
    assert cfg.model.decoder_attention is not None
    assert cfg.model.decoder_attention.key_dim == 2


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("train.lr", "'train.lr' is not of the form key=value"),
        ("=3", "'=3' is not of the form key=value"),
        ("train.lr=[1", "'train.lr=[1': the value is not valid YAML"),
        ("train.lr.peak=1", "lr is the value 0.01, it has no keys below it"),
    ],
)
def test_an_override_that_cannot_be_applied(complete: Path, override: str, found: str) -> None:
    assert found in refusal(complete, override)


# ----------------------------------------------------------------------------------------------------------- bad values


@pytest.mark.parametrize(
    ("override", "unknown", "suggestion"),
    [
        ("train.lrr=1", "train.lrr", "train.lr"),
        ("trian.lr=1", "trian", "train"),
        ("model.num_layer=3", "model.num_layer", "model.num_layers"),
        ("model.decoder_atention.key_dim=4", "model.decoder_atention", "model.decoder_attention"),
        ("model.decoder_attention.keydim=4", "model.decoder_attention.keydim", "model.decoder_attention.key_dim"),
        ("lr=3e-4", "lr", "train.lr"),
        ("decoder_attention.key_dim=4", "decoder_attention", "model.decoder_attention"),
        ("train.binarisations=4", "train.binarisations", "evaluate.binarisations"),
        ("train.batch=4", "train.batch", "train.global_batch"),
        ("train.batch=4", "train.batch", "eval.batch"),
        ("model.likelihood.kinds=bernoulli", "model.likelihood.kinds", "model.likelihood.kind"),
    ],
)
def test_an_unknown_key_names_its_nearest_neighbour(
    complete: Path, override: str, unknown: str, suggestion: str
) -> None:
    _, _, suggestions = refusal(complete, override).partition(f"unknown key {unknown}: did you mean ")
    assert suggestion in suggestions.rstrip("?\n").split(" or ")


def test_a_misplaced_key_is_sent_to_its_place_even_with_a_similar_one_beside_it(complete: Path) -> None:
    assert "train.lr" in refusal(complete, "optim.lr=1")


def test_a_key_of_another_kind_is_named(complete: Path) -> None:
    message = refusal(complete, "model.likelihood.num_mixtures=3")
    assert "model.likelihood.num_mixtures: it does not go with the kind that model.likelihood has" in message


def test_numbers_are_finite(complete: Path) -> None:
    assert "train.lr=inf" in refusal(complete, "train.lr=.inf")


def test_an_unknown_key_in_a_file_is_named_with_the_file(write: Write) -> None:
    message = refusal(write("typo.yaml", COMPLETE | {"chekpoint": {"every": 1}}))
    assert "typo.yaml" in message
    assert "unknown key chekpoint: did you mean checkpoint?" in message


def test_a_key_like_no_other_lists_the_known_ones(complete: Path) -> None:
    message = refusal(complete, "checkpoint.zzz=1")
    assert "unknown key checkpoint.zzz: known here are every, keep_last" in message


def test_all_problems_are_told_at_once(complete: Path) -> None:
    message = refusal(complete, "train.lr=-1", "seed=x", "model.num_layers=null")
    assert all(key in message for key in ("train.lr=-1", "seed='x'", "model.num_layers=None"))


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("train.lr=fast", "train.lr='fast'"),
        ("train.lr=0", "train.lr=0"),
        ("train.lr=nan", "train.lr='nan'"),
        ("train.samples=1.5", "train.samples=1.5"),
        ("train.kl_start=2", "train.kl_start=2"),
        ("model=3", "model=3"),
        ("engine.name=horovod", "engine.name='horovod': Input should be 'zero' or 'plain'"),
        ("engine.stage=4", "engine.stage=4: Input should be 0, 1, 2 or 3"),
        ("model.likelihood.kind=gauss", "'bernoulli', 'logistic_mixture'"),
        ("model.preprocessing.scales=[-2, -2]", "make them equal"),
        ("seed=-1", "seed=-1"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(complete: Path, override: str, found: str) -> None:
    assert found in refusal(complete, override)


def test_a_missing_key_is_named_with_the_way_to_set_it(write: Write) -> None:
    content = COMPLETE | {"eval": {}}
    assert "eval.every is missing: set it in the file or with eval.every=VALUE" in refusal(write("a.yaml", content))


@pytest.mark.parametrize("own", ["train.lr_warmup=100", "train.kl_warmup=100"])
def test_the_published_schedule_excludes_a_warmup_of_ones_own(complete: Path, own: str) -> None:
    published = "train.published_schedule.epochs=400"
    assert load(complete, [published]).train.published_schedule is not None
    message = refusal(complete, published, own)
    assert "published_schedule excludes" in message
    assert own.removeprefix("train.") in message


def test_two_starts_exclude_each_other(complete: Path) -> None:
    assert "resume and init_from exclude each other" in refusal(complete, "resume=a", "init_from=b")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("train: [", "is not valid YAML"),
        ("train:\n\tlr: 3", "is not valid YAML"),
        ("seed: !!python/object/apply:os.getpid []", "is not valid YAML"),
        ("- 1", "found list"),
        ("", "data is missing"),
    ],
)
def test_a_file_that_is_no_configuration(write: Write, content: str, found: str) -> None:
    message = refusal(write("bad.yaml", content))
    assert "bad.yaml" in message
    assert found in message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"data: \xff")
    assert "latin.yaml is not valid YAML" in refusal(tmp_path / "latin.yaml")
    assert "none.yaml: No such file" in refusal(tmp_path / "none.yaml")
    assert f"{tmp_path}: Is a directory" in refusal(tmp_path)


# ---------------------------------------------------------------------------------------------------- the tree is fixed


def parts(config: BaseModel) -> Iterator[BaseModel]:
    yield config
    for name in type(config).model_fields:
        if isinstance(value := getattr(config, name), BaseModel):
            yield from parts(value)


def test_no_part_of_the_tree_can_be_changed(complete: Path) -> None:
    found = list(parts(load(complete)))
    assert len(found) > 10
    for part in found:
        for name in type(part).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(part, name, getattr(part, name))


@pytest.mark.parametrize(
    "override",
    [
        "engine.name=plain",
        "engine.stage=2",
        "engine.micro_batch=10",
        "engine.precision=fp32",
        "tracking.run_name=other",
        "checkpoint.every=1500",
        "data.path=elsewhere",
        "data.workers=2",
        "eval.batch=3",
        "resume=some/checkpoint",
    ],
)
def test_what_is_not_learnt_from_may_change(complete: Path, override: str) -> None:
    changed = load(complete, [override])
    assert changed != load(complete)
    assert differences(load(complete), changed) == []


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("train.lr=3e-4", "train.lr: 0.01 there, 0.0003 here"),
        ("seed=1", "seed: 0 there, 1 here"),
        ("data.window=5", "data.window: 16384 there, 5 here"),
        ("data.flip=horizontal", "data.flip: 'none' there, 'horizontal' here"),
        ("eval.every=5", "eval.every: 1000 there, 5 here"),
        ("evaluate.binarisations=5", "evaluate.binarisations: 20 there, 5 here"),
        ("init_from=some/checkpoint", "init_from: None there, 'some/checkpoint' here"),
        ("model.encoder.scales=[0]", "model.encoder.scales: [0, 0] there, [0] here"),
    ],
)
def test_what_is_learnt_from_may_not(complete: Path, override: str, difference: str) -> None:
    assert differences(load(complete), load(complete, [override])) == [difference]


def test_a_part_that_is_switched_off_is_a_difference(complete: Path) -> None:
    changed = differences(load(complete), load(complete, ["model.decoder_attention=null"]))
    assert "model.decoder_attention.key_dim: 4 there, None here" in changed


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["train.lr=1e-5", "optim.eps=1e-30", "train.clip_norm=null"],
        ["resume=runs/a/checkpoints/000000001000", "data.path=/elsewhere"],
        ["seed=9223372036854775807"],
        ["model.likelihood={kind: logistic_mixture, num_mixtures: 10}", "model.encoder_attention.key_dim=8"],
    ],
)
def test_a_dumped_configuration_loads_as_itself(complete: Path, tmp_path: Path, overrides: list[str]) -> None:
    cfg = load(complete, overrides)
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(cfg.to_yaml())
    assert load(dumped) == cfg
    assert differences(load(dumped), cfg) == []


@settings(max_examples=25, deadline=None)
@given(st.text())
def test_no_text_is_taken_for_another_type_when_the_dump_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    """YAML reads plain yes, 1e3, null, 2020-01-01 as something else than text."""
    cfg = RunConfig.model_validate(COMPLETE | {"tracking": {"run_name": text}})
    dumped = tmp_path_factory.getbasetemp() / "dumped.yaml"
    dumped.write_text(cfg.to_yaml())
    assert load(dumped).tracking.run_name == text
