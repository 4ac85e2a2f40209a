"""What the comparison of two ranks with one measures, and how its figures are made."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from attvae.bench.scaling import measure_scaling, summary
from attvae.config import load

ROOT = Path(__file__).parents[1]
TINY = ROOT / "configs" / "test" / "tiny.yaml"


def test_figures_of_the_repeats() -> None:
    found = summary({"one": [10.0, 8.0, 10.0], "two": [18.0, 16.0, 15.0], "ceiling": [20.0, 14.0, 19.0]})
    assert found == {
        "images_per_s": {
            "one": {"median": 10.0, "min": 8.0, "max": 10.0},
            "two": {"median": 16.0, "min": 15.0, "max": 18.0},
            "ceiling": {"median": 19.0, "min": 14.0, "max": 20.0},
        },
        "speedup": {"median": 1.8, "min": 1.5, "max": 2.0},
        "ceiling": {"median": 1.9, "min": 1.75, "max": 2.0},
    }


def test_a_measurement(tmp_path: Path, digits: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"base: {TINY}\ndata: {{path: {digits}}}\n")
    command = [str(Path(sys.executable).with_name("attvae")), "bench", "scaling", "--config", "config.yaml"]
    command += ["--engine", "plain", "--batch", "40", "--steps", "3", "--repeats", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["engine"]["name"], found["batch_per_rank"], found["steps"], found["repeats"]) == ("plain", 40, 3, 2)
    for name, cores in (("one", 1), ("two", 2), ("ceiling", 2)):
        times = found["ms_per_step_and_rank"][name]
        by_phase = sum(times[phase] for phase in ("data", "forward", "backward", "step"))
        assert 0.5 * times["wall"] < by_phase < 1.5 * times["wall"]  # medians, of few steps
        assert times["cpu"] < 1.05 * times["wall"]  # one thread, one core
        assert found["images_per_s"][name]["median"] < 1.5 * cores * 40 / times["cpu"] * 1000
    assert 0 < found["speedup"]["median"] < 4


@pytest.mark.parametrize("settings", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_settings_that_cannot_be_measured(settings: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected at least 1 of each"):
        measure_scaling(load(TINY), *settings)


def test_one_core_is_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3})
    with pytest.raises(ValueError, match="where there is one core"):
        measure_scaling(load(TINY), 1, 1, 1)
