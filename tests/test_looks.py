"""What a run shows each time that it looks at itself: figures in the journal, pictures in the folder."""

import json
import math
from pathlib import Path

import pytest
from launched import PLAIN, command, run
from PIL import Image

from attvae.tracking import jsonl


@pytest.fixture(scope="module")
def looked(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that looked twice."""
    out = tmp_path_factory.mktemp("runs") / "looks"
    run(command(digits, out, "train.samples=600", "eval.every=300", "train.log_every=300"))
    return out


def test_every_group_of_figures_is_in_the_journal(looked: Path) -> None:
    rows = jsonl.read(looked / "metrics.jsonl")
    logged = [row for row in rows if "train/lr" in row]
    assert [row["samples_seen"] for row in logged] == [300, 600]
    for row in logged:
        assert row.keys() >= {
            *(f"train/{name}" for name in ("nelbo_nats", "bits_per_dim", "nll_nats", "kl_nats", "active_layers")),
            *("train/lr", "train/beta", "train/grad_norm", "train/skipped_updates", "train/roll_backs"),
            *(f"kl/layer_{i:02d}" for i in range(3)),
            *("perf/images_per_s", "perf/mfu", "perf/peak_memory_gb_max", "perf/data_s_max", "perf/update_s_max"),
            *("system/cpu_percent", "system/process_memory_gb", "system/memory_used_gb", "system/disk_free_gb"),
        }
        assert row["train/nelbo_nats"] == pytest.approx(
            row["train/nll_nats"] + sum(row[f"kl/layer_{i:02d}"] for i in range(3))
        )
        phases = sum(row[f"perf/{phase}_s_max"] for phase in ("data", "forward", "backward", "step"))
        assert row["perf/update_s_max"] == pytest.approx(phases)
    evaluated = [row for row in rows if "val/nelbo_nats" in row]
    assert [row["samples_seen"] for row in evaluated] == [300, 600]
    for row in evaluated:
        assert row["val/active_layers"] == sum(row[f"val_kl/layer_{i:02d}"] > 0.1 for i in range(3))
        for path, nearest, farthest in (("decoder", 1, 2), ("encoder", 0, 3)):
            assert 0 < row[f"attention/entropy_{path}"] <= 1
            assert nearest <= row[f"attention/distance_{path}"] <= farthest
        gates = [name for name in row if name.startswith("attention/gate_")]
        assert len(gates) == 5
        assert all(math.isfinite(row[name]) for name in gates)


def test_every_look_leaves_the_same_pictures_of_the_same_size(looked: Path) -> None:
    names = ("depth_attention", "layer_kl", "reconstructions", "samples")
    assert sorted(path.name for path in (looked / "images").iterdir()) == sorted(
        f"{name}-{samples_seen:012d}.png" for name in names for samples_seen in (300, 600)
    )
    for name in names:
        sizes = set()
        for path in (looked / "images").glob(f"{name}-*.png"):
            with Image.open(path) as picture:
                sizes.add(picture.size)
        assert len(sizes) == 1


def test_without_attention_there_is_no_figure_of_it(digits: Path, tmp_path: Path) -> None:
    off = ["model.encoder_attention=null", "model.decoder_attention=null"]
    out = tmp_path / "plain"
    run(command(digits, out, "train.samples=200", "train.kl_warmup=0", PLAIN, *off))
    assert json.loads((out / "summary.json").read_text())["attention_gates"] == {}
    assert not any(name.startswith("attention/") for row in jsonl.read(out / "metrics.jsonl") for name in row)
    assert {path.name.partition("-")[0] for path in (out / "images").iterdir()} == {
        "layer_kl",
        "reconstructions",
        "samples",
    }
