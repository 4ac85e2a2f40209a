"""A dry run for a cluster, as a user without one meets it."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from launched import arguments, start
from spawn import free_port
from test_cli import COMMAND, ROOT, TINY, assert_bad_input, contents, run

SPEC = "data.spec={height: 8, width: 8, channels: 1, num_bits: 8, max_value: 16, binary: true}"
PLANNED = [*COMMAND, "train", str(TINY), SPEC, "engine.device=cuda", "--dry-run"]


def row(table: str, name: str) -> list[str]:
    """The cells after the first one of the row that begins with `name`."""
    (found,) = re.findall(rf"^│ {re.escape(name)} +│(.*)│$", table, re.MULTILINE)
    return [cell.strip() for cell in found.split("│")]


@pytest.mark.parametrize(
    ("config", "more", "steps", "stage", "peak"),
    [
        (TINY, [SPEC, "engine.device=cuda"], "1", 1, 494.7),
        pytest.param(ROOT / "configs" / "imagenet64.yaml", [], "7,032", 2, 989.4, marks=pytest.mark.slow),
    ],
)
def test_16_nodes_of_8_gpus(config: Path, more: list[str], steps: str, stage: int, peak: float, tmp_path: Path) -> None:
    overrides = ["train.global_batch=8192", *more]
    command = [*COMMAND, "train", str(config), *overrides, "--out", "runs/a b", "--dry-run"]
    result = run([*command, "--nodes", "16", "--gpus-per-node", "8"], tmp_path)
    assert result.returncode == 0, result.stderr
    plan, memory, same_images, same_batch = re.split(r"\n(?=GB on each|Predicted)", result.stdout)
    assert row(plan, "ranks") == ["128"]
    assert row(plan, "global batch") == ["64 micro-batch x 1 accumulated x 128 ranks"]
    assert row(plan, "steps") == [steps]
    parameters = int(row(plan, "trainable parameters")[0].replace(",", ""))
    assert f"checkpoint: {16 * parameters / 1e9:.2f} GB" in plan
    assert f"stage {stage}, this run" in memory
    assert row(memory, "parameters")[:3] == [f"{4 * parameters / 1e9:.2f}"] * 3
    assert row(memory, "two moments and the EMA") == [
        f"{12 * parameters / part / 1e9:.2f}" for part in (1, 128, 128, 128)
    ]
    for table in (same_images, same_batch):
        assert [line.split("│")[1].strip(" *") for line in table.splitlines() if line.startswith("│")] == [
            *(str(2**k) for k in range(10)),
            "1,024",
        ]
        assert row(table, "1")[8] == "100.0%"
        assert row(table, "128 *")[1] == "64 x 128"
    assert row(same_images, "128 *")[2:8] == row(same_batch, "128 *")[2:8]
    assert f"ASSUMED, 20% of {peak}" in result.stdout
    arguments = shlex.join([str(config), *overrides, "--out", "runs/a b"])
    for command_line in (
        f"deepspeed --hostfile hostfile launch/train.py {arguments}",
        "python launch/torchrun.py --nnodes 16 --node-rank N --nproc-per-node 8 --master-addr HOST "
        f"launch/train.py {arguments}",
        f"sbatch --nodes 16 --gpus-per-node 8 --cpus-per-task 64 launch/slurm.sbatch {arguments}",
    ):
        assert f"  {command_line}\n" in result.stdout
    assert contents(tmp_path) == {}


def test_one_node_needs_no_hostfile(tmp_path: Path) -> None:
    result = run([*PLANNED, "--nodes", "1", "--gpus-per-node", "4"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"  deepspeed --num_gpus 4 launch/train.py {TINY} '{SPEC}' engine.device=cuda\n" in result.stdout
    assert "  python launch/torchrun.py --standalone --nproc-per-node 4 launch/train.py" in result.stdout
    assert "hostfile" not in result.stdout
    same_batch = result.stdout.split("Predicted, 100 images in each update")[1]
    assert [line.split("│")[1].strip(" *") for line in same_batch.splitlines() if line.startswith("│")] == list("124")


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "gpus"), [(1, 2), (2, 1)])
def test_the_command_for_torchrun_runs_as_printed(nodes: int, gpus: int, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "a run"
    asked = ["train", *arguments(digits, out, "engine.device=cpu", "train.samples=400")]
    planned = run([*COMMAND, *asked, "--dry-run", "--nodes", str(nodes), "--gpus-per-node", str(gpus)], ROOT)
    (line,) = re.findall(r"^  python (launch/torchrun.py .*)$", planned.stdout, re.MULTILINE)
    port = str(free_port())
    started = []
    for number in range(nodes):
        here = {"N": str(number), "HOST": "localhost"}
        program = [sys.executable, *(here.get(word, word) for word in shlex.split(line))]
        started.append(start(program, PET_MASTER_PORT=port) if nodes > 1 else start(program))
    for each in started:
        output, _ = each.communicate(timeout=120)
        assert each.returncode == 0, output
    assert json.loads((out / "environment.json").read_text())["world_size"] == 2


def test_the_rate_of_a_run_and_constants_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "measured").mkdir()
    rows = [{"samples_seen": n, "time": n, "perf/tflops": rate} for n, rate in ((1, 9.0), (2, 40.0), (3, 50.0))]
    rows.append({"samples_seen": 3, "time": 3, "val/nelbo_nats": 1.0})
    (tmp_path / "measured" / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (tmp_path / "ours.yaml").write_text("gpu: our own\nmemory_gb: 40\ninside: {gb_per_s: 7, latency_us: 8}\n")
    command = [*PLANNED, "--nodes", "1", "--gpus-per-node", "2", "--cluster", "ours.yaml"]
    result = run([*command, "--measured", "measured"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "45.0 TFLOP/s a GPU: measured by measured" in result.stdout
    assert "our own; inside a node 7 GB/s, 8 µs" in result.stdout
    assert "of 40 GB" in result.stdout
    assert_bad_input(run(command, tmp_path), "the peak of gpu='our own' is unknown: state tflops")
    assert_bad_input(run([*command, "--measured", "nothing"], tmp_path), "nothing/metrics.jsonl has no perf/tflops")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dry-run", "--nodes", "2"], "--nodes N --gpus-per-node G go together"),
        (["--nodes", "2", "--gpus-per-node", "8"], "and with --dry-run"),
        (["--dry-run", "--measured", "runs/x"], "--dry-run --nodes N --gpus-per-node G"),
        (["--dry-run", "--nodes", "3", "--gpus-per-node", "1"], "train.global_batch=100 is not divisible by 3 ranks"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, options: list[str], said: str) -> None:
    assert_bad_input(run([*COMMAND, "train", str(TINY), SPEC, *options], tmp_path), said)
    assert contents(tmp_path) == {}
