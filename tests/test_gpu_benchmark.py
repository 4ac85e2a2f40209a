"""`benchmarks/gpu.sh`, rehearsed on the CPU with torch alone; its model is that of the paper's configuration."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import requires
from pathlib import Path
from types import ModuleType

import pytest
import torch
from packaging.requirements import Requirement
from torch import Tensor

from attvae.config import load
from attvae.kernels.depth_attention.choose import Implementation, choose
from attvae.model.config import ModelConfig
from attvae.spec import DataSpec

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


def module(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_it_is_the_papers_model() -> None:
    step, paper = (
        module(BENCHMARKS / "gpu_step.py", "gpu_step"),
        load(ROOT / "configs" / "paper" / "cifar10_attvae16.yaml"),
    )
    assert ModelConfig(**step.MODEL) == paper.model
    assert DataSpec(**step.SPEC) == paper.data.spec
    assert paper.train.global_batch == 4 * step.PUBLISHED_BATCH  # on 4 GPUs


def test_stand_in_reads_configurations_as_pydantic_does() -> None:
    bare = module(BENCHMARKS / "bare" / "pydantic.py", "bare_pydantic")
    step = module(BENCHMARKS / "gpu_step.py", "gpu_step")
    source = "".join(
        (ROOT / "attvae" / file).read_text().replace("from pydantic import", "from bare_pydantic import")
        for file in ("spec.py", "model/config.py")
    ).replace("from attvae.spec import Config, DataSpec\n", "")
    sys.modules["bare_pydantic"] = bare
    made = ModuleType("bare_config")
    sys.modules["bare_config"] = made
    try:
        exec(compile(source, "bare_config", "exec"), made.__dict__)
    finally:
        del sys.modules["bare_pydantic"]
    config, wanted = made.ModelConfig(**step.MODEL), ModelConfig(**step.MODEL)

    def same(bare: object, real: object) -> None:
        if hasattr(type(real), "model_fields"):
            for name in type(real).model_fields:
                same(getattr(bare, name), getattr(real, name))
        else:
            assert bare == real

    same(config, wanted)
    assert config.latent_shapes(made.DataSpec(**step.SPEC)) == wanted.latent_shapes(DataSpec(**step.SPEC))


@pytest.fixture
def torch_alone(tmp_path: Path) -> Path:
    """A Python that has torch, what torch requires, and nothing else."""
    site = tmp_path / "site"
    site.mkdir()
    installed = Path(torch.__file__).parents[1]
    for name in ("torch", "torchgen", "functorch", *_required("torch")):
        for entry in (installed / name, installed / f"{name}.py"):
            if entry.exists():
                (site / entry.name).symlink_to(entry)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{site}" exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    return python


def _required(package: str) -> set[str]:
    found: set[str] = set()
    for line in requires(package) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            name = requirement.name.replace("-", "_").lower()
            found |= {name, *_required(requirement.name)}
    return found


@pytest.mark.slow
def test_a_rehearsal_with_torch_alone(torch_alone: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": str(torch_alone), "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    hidden = subprocess.run([torch_alone, "-c", "import pydantic"], env=environment, capture_output=True, check=False)
    assert hidden.returncode != 0
    done = subprocess.run(
        [BENCHMARKS / "gpu.sh", "--rehearse", tmp_path / "results"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    (written,) = (tmp_path / "results").iterdir()
    assert written.name.startswith("gpu_rehearsal_")
    assert written.name.endswith("_incomplete.json")
    found = json.loads(written.read_text())
    assert found["environment"]["torch"] == torch.__version__
    # Triton is not there: the part says so, and all others are measured.
    assert done.returncode == 1
    assert str(written) in done.stdout
    assert "triton" in found["depth_attention"]["not_measured"]
    (both,) = found["compiled"]["rows"]
    compared = [{"batch": both["batch"], **both[kind]} for kind in ("eager", "compiled")]
    for part, rows in (("eager", found["eager"]["rows"]), ("compiled", compared)):
        for row in rows:
            assert row["images_per_s"] == pytest.approx(1000 * row["batch"] / row["step_ms"]["median"])
            assert row["mfu"] == pytest.approx(row["tflops"] / found[part]["matrix_tflops"])
    assert both["compiled"]["first_step_s"] > both["eager"]["first_step_s"]  # it was compiled
    assert [row["batch"] for row in found["eager"]["rows"]] == [1, 2]
    assert [attention["batch"] for attention in found["eager"]["attentions"]] == [1, 2]
    *measured, apex = found["optimizers"]["rows"]
    assert all(row["update_ms"]["min"] > 0 for row in measured)
    assert "apex" in apex["not_measured"]


def results(parts: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", BENCHMARKS / "gpu_results.py", parts, out]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def has_printed(parts: Path, name: str, lines: str, code: int = 0, error: str = "") -> None:
    (parts / f"{name}.jsonl").write_text(lines)
    (parts / f"{name}.err").write_text(error)
    (parts / f"{name}.code").write_text(f"{code}\n")


def test_results_grow_part_by_part(tmp_path: Path) -> None:
    """With the rows of one that was ended, whose last line is cut off."""
    out, incomplete = tmp_path / "gpu_x_today.json", tmp_path / "gpu_x_today_incomplete.json"
    parts = tmp_path / "parts"
    parts.mkdir()
    has_printed(parts, "eager", '{"environment": {"device": "X"}}\n{"row": {"batch": 1}}\n{"row": {"ba', 124, "slow\n")
    assert results(parts, out).returncode == 1
    found = json.loads(incomplete.read_text())
    assert found["environment"] == {"device": "X"}
    assert found["eager"]["rows"] == [{"batch": 1}]
    assert found["eager"]["not_measured"] == "took longer than its limit: slow"
    assert found["compiled"] == {"not_measured": "its turn has not come"}
    has_printed(parts, "eager", '{"row": {"batch": 1}}\nsome library says hello\n')
    results(parts, out)
    assert "no JSON object: some library" in json.loads(incomplete.read_text())["eager"]["not_measured"]
    assert not out.exists()


def test_a_complete_file_stays(tmp_path: Path) -> None:
    out, incomplete = tmp_path / "gpu_x_today.json", tmp_path / "gpu_x_today_incomplete.json"
    for name in ("eager", "optimizers", "depth_attention", "compiled"):
        has_printed(tmp_path, name, '{"row": {"batch": 1}}\n{"tiling": {}}\n')
    incomplete.write_text("of an earlier try")
    done = results(tmp_path, out)
    assert (done.returncode, done.stdout) == (0, f"{out}\n")
    assert not incomplete.exists()
    complete = out.read_bytes()
    assert json.loads(complete)["compiled"] == {"rows": [{"batch": 1}], "tilings": [{}]}
    has_printed(tmp_path, "compiled", "", 1, "Traceback\nRuntimeError: no\n")
    done = results(tmp_path, out)
    assert (done.returncode, done.stdout) == (1, f"{incomplete}: without all of compiled\n")
    assert out.read_bytes() == complete
    assert json.loads(incomplete.read_text())["compiled"]["not_measured"].endswith("RuntimeError: no")


@pytest.mark.parametrize(
    ("error", "fits"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), False),
        (RuntimeError("GET was unable to find an engine to execute this computation"), False),
        (RuntimeError("The size of tensor a must match"), None),
    ],
)
def test_what_does_not_fit(error: RuntimeError, fits: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    step = module(BENCHMARKS / "gpu_step.py", "gpu_step")
    bench = step.Bench(torch.device("cpu"), rehearse=True)

    def fails(batch: int) -> None:
        raise error

    monkeypatch.setattr(bench, "step", fails)
    if fits is None:
        with pytest.raises(RuntimeError, match="must match"):
            bench._fits(2)
    else:
        assert bench._fits(2) is fits


def test_a_step_is_told_before_attention_finds_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    step = module(BENCHMARKS / "gpu_step.py", "gpu_step")
    bench = step.Bench(torch.device("cpu"), rehearse=True)
    told: list[str] = []

    def fails(batch: int) -> None:
        assert told == ["row"]
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bench, "attention", fails)
    entries = step.eager(bench, [1], {"matrix_tflops": 1.0})
    told.append(next(entries)[0])
    assert next(entries) == ("attention", {"batch": 1, "not_measured": "CUDA out of memory"})


def test_attention_gets_maps_as_the_model_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes, strides and offsets of what the implementation is called with: none that the model has not."""
    step = module(BENCHMARKS / "gpu_step.py", "gpu_step")
    monkeypatch.setitem(step.TINY, "num_layers", 3)
    bench = step.Bench(torch.device("cpu"), rehearse=True)
    seen: set[tuple[object, ...]] = set()

    def watched(asked: Implementation, query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> object:
        # The last layer's query comes from a map without a key: the benchmark takes that of any other layer.
        for kind, count, maps in (("query", 0, [query]), ("key", len(keys), keys), ("value", len(keys), values)):
            seen.update((kind, count, x.shape, x.stride()[1:], x.storage_offset()) for x in maps)
        return choose(asked, query, keys, values)

    monkeypatch.setattr(step, "choose_attention", watched)
    bench.attention(2)
    ours = seen.copy()
    seen.clear()
    monkeypatch.setattr("attvae.model.depth_attention.choose", watched)
    bench.step(2)()
    assert ours
    assert ours <= seen


@pytest.mark.slow
def test_cells_share_what_is_compiled() -> None:
    """Two more layers need no further graph; the bound is that of the model as it is."""
    step = module(BENCHMARKS / "gpu_step.py", "gpu_step")

    def graphs_and_bound(num_layers: int, *, compiled: bool) -> tuple[int, Tensor]:
        graphs: list[torch.fx.GraphModule] = []
        torch.manual_seed(0)
        torch.compiler.reset()
        model = step.DeepVAE(ModelConfig(**step.MODEL | step.TINY | {"num_layers": num_layers}), DataSpec(**step.SPEC))
        if compiled:
            step.compile_cells(model, lambda graph, _: graphs.append(graph) or graph.forward)  # type: ignore[func-returns-value]
        noise = [torch.randn(1, *shape) for shape in model.latent_shapes]
        bound = model(torch.randint(256, (1, 3, 32, 32)).to(torch.uint8), noise).nelbo_nats
        return len(graphs), bound

    _, expected = graphs_and_bound(5, compiled=False)
    three, _ = graphs_and_bound(3, compiled=True)
    five, bound = graphs_and_bound(5, compiled=True)
    assert 0 < three == five <= 7
    torch.testing.assert_close(bound, expected)


def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, BENCHMARKS / "gpu_step.py", "eager"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "finds no GPU here: --rehearse" in done.stderr


def started(folder: Path, python: Path | str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": str(python), "PYTHONPATH": ""}
    command = [BENCHMARKS / "gpu.sh", folder]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_without_a_gpu_nothing_begins(tmp_path: Path) -> None:
    """The folder and the Python are relative to where it is called."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "python.sh").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "python.sh").chmod(0o755)
    done = started(Path("results"), "./python.sh", tmp_path)
    assert done.returncode == 2
    assert "torch finds no GPU here: --rehearse" in done.stderr
    assert [*(tmp_path / "results").iterdir()] == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = started(tmp_path / "file" / "results", sys.executable, tmp_path)
    assert done.returncode == 2
    assert "name another folder" in done.stderr


def test_without_torch_it_says_so(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    done = started(tmp_path / "results", python, tmp_path)
    assert done.returncode == 2
    assert "has no torch: name one that has with PYTHON=" in done.stderr


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_part_that_runs(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    """Nothing goes on, no temporary folder stays."""
    began, temporary = tmp_path / "began", tmp_path / "temporary"
    temporary.mkdir()
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        "    -) echo gpu_rehearsal_today ;;\n"
        f"    *gpu_step.py) echo $$ >{began}.new && mv {began}.new {began} && exec sleep 300 ;;\n"
        "esac\n"
    )
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "TMPDIR": str(temporary)}
    # Also where the tests themselves run with signals ignored, as in the background of a script.
    command = ["env", "--default-signal=INT,TERM", BENCHMARKS / "gpu.sh", "--rehearse", tmp_path / "results"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True) as running:
        try:
            deadline = time.monotonic() + 60
            while not began.exists():
                assert running.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            child = int(began.read_text())
            os.kill(running.pid, sent)
            assert running.wait(60) == code
            with pytest.raises(ProcessLookupError):
                os.kill(child, 0)
            assert [*temporary.iterdir()] == []
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
