"""`attvae profile`: its trace, and its figures against ones that are counted otherwise."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from attvae.cli import app
from attvae.config import load
from attvae.model.flops import forward_flops_by_part, training_flops
from attvae.model.layers import WeightNormConv2d
from attvae.model.parts import parts
from attvae.model.vae import DeepVAE
from attvae.profile import profile
from attvae.spec import DataSpec

ROOT = Path(__file__).parents[1]
TINY = ROOT / "configs" / "test" / "tiny.yaml"
DIGITS = DataSpec(height=8, width=8, channels=1, num_bits=8, max_value=16, binary=True)
PHOTOS = DataSpec(height=32, width=32, channels=3, num_bits=8, max_value=255)


@pytest.mark.parametrize(("config", "spec"), [(TINY, DIGITS), (ROOT / "configs" / "photos32.yaml", PHOTOS)])
def test_parts_hold_all_arithmetic(config: Path, spec: DataSpec) -> None:
    model, cpu = load(config).model, torch.device("cpu")
    by_part = forward_flops_by_part(model, spec, cpu)
    assert 3 * sum(by_part.values()) == training_flops(model, spec, cpu)
    with FlopCounterMode(display=False) as counted:
        vae = DeepVAE(model, spec)
        vae.encoder(torch.zeros(1, *spec.shape))
    assert by_part["encoder: pre-processing"] + by_part["encoder: cells"] == counted.get_total_flops()


def test_parts_hold_all_parameters_but_the_first_context() -> None:
    vae = DeepVAE(load(ROOT / "configs" / "photos32.yaml").model, PHOTOS)
    held = {p for *_, module in parts(vae) for p in module.parameters()}
    assert set(vae.parameters()) - held == {vae.layers[0].generative.constant}
    assert sum(len([*module.parameters()]) for *_, module in parts(vae)) == len(held)  # each in one part


def test_a_profile(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a run would take all cores, and the tests after it too
    config = tmp_path / "config.yaml"
    config.write_text(f"base: {TINY}\ndata: {{path: {digits}}}\n")
    command = [
        "profile",
        str(config),
        "engine.name=plain",
        "--out",
        str(tmp_path / "out"),
        "--batch",
        "4",
        "--steps",
        "2",
    ]
    done = CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert json.loads((tmp_path / "out" / "profile.json").read_text()) == found
    assert (found["batch"], found["steps"], len(found["operations"])) == (4, 2, 10)
    assert found["step_ms"] >= 0.9 * sum(found["phases_ms"][phase] for phase in ("forward", "backward"))
    assert found["images_per_s"] == pytest.approx(4000 / found["step_ms"])
    times = [row["ms"] for row in found["operations"]]
    assert times == sorted(times, reverse=True)
    assert sum(row["share"] for row in found["operations"]) <= 1
    events = json.loads((tmp_path / "out" / "trace.json").read_text())["traceEvents"]
    named = [event["name"] for event in events if event.get("cat") == "cpu_op"]
    calls = {row["operation"]: row["calls"] for row in found["operations"]}
    for operation, of_a_step in calls.items():  # one that hands on to itself, for another dtype, counts once
        assert 0 < 2 * of_a_step <= named.count(operation)
    convolutions = [each for each in DeepVAE(load(TINY).model, DIGITS).modules() if isinstance(each, WeightNormConv2d)]
    assert calls["aten::convolution_backward"] == len(convolutions)
    rates = found["matrix_tflops"], found["copy_gb_per_s"]
    for row in found["parts"]:
        assert row["of_matrix_rate"] == pytest.approx(row["tflops"] / rates[0])
        assert row["of_copy_rate"] == pytest.approx(row["gb_per_s"] / rates[1])
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "The 10 most expensive operations" in done.stdout
    assert "generative path: depth-wise attention" in done.stdout


def test_what_the_backward_pass_recomputes_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("attvae.profile.RATE_TRIES", 1)

    def gigabytes(*overrides: str) -> dict[str, float]:
        cfg = load(TINY, [f"data.path={tmp_path}", "engine.name=plain", *overrides])
        rows = profile(cfg, DIGITS, 2, 1, tmp_path / "out")["parts"]
        return {row["part"]: row["gb_per_s"] * row["forward_ms"] / 1000 for row in rows}

    recomputed = gigabytes("engine.recompute=[encoder,layers,decoder]")
    assert recomputed == pytest.approx(gigabytes())


def test_a_folder_that_cannot_be_written(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = ["profile", str(TINY), f"data.path={digits}", "--out", str(tmp_path / "file" / "out")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "choose another folder with --out" in done.stderr
