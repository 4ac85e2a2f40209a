"""Tables of `attvae compare` against pandas and numbers worked out by hand, from journals that the test writes."""

import math
import random
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner
from written_runs import row, write_run

from attvae.cli import app
from attvae.compare.runs import read_runs
from attvae.compare.tables import (
    Table,
    all_tables,
    at_equal_samples,
    at_equal_wall_time,
    at_the_end,
    config_differences,
    not_comparable,
    what_they_are,
)
from attvae.pages.figures import duration, figure
from attvae.tracking.run import Run

METRIC = "val/nelbo_nats"


def column(table: Table, metric: str) -> dict[str, str]:
    """run -> cell, of the column that begins with the metric's name."""
    (index,) = [i for i, name in enumerate(table.columns) if name.partition("\n")[0] == metric]
    return {cells[0]: cells[index] for cells in table.rows}


def table_of(runs: list[Run], name: str) -> Table | None:
    return next((table for table in all_tables(runs) if table.name == name), None)


@pytest.fixture
def random_runs(tmp_path) -> tuple[list[Run], list[pd.DataFrame]]:
    """Three runs that look at different intervals and are not equally fast, and the same as pandas reads it."""
    chance = random.Random(7)
    named = []
    for name, every, seconds in (("a", 400, 3.0), ("b", 600, 4.5), ("c", 1000, 2.0)):
        rows = [
            row(seen, 1000 + seen / every * seconds, val__nelbo_nats=chance.uniform(20, 90), train__lr=0.1)
            for seen in range(every, 20_001, every)
        ]
        named.append(write_run(tmp_path / name, rows))
    frames = [pd.read_json(Path(folder) / "metrics.jsonl", lines=True, convert_dates=False) for folder in named]
    return read_runs(named, None), frames


def test_equal_samples_as_pandas_joins(random_runs):
    runs, frames = random_runs
    joined = frames[0].merge(frames[1], on="samples_seen").merge(frames[2], on="samples_seen").iloc[-1]
    table = at_equal_samples(runs, [METRIC])
    assert table.columns[1] == f"{METRIC}\nat {joined['samples_seen']:,.0f}" == f"{METRIC}\nat 18,000"
    expected = [joined[f"{METRIC}_x"], joined[f"{METRIC}_y"], joined[METRIC]]
    assert list(column(table, METRIC).values()) == [f"{value:.4f}" for value in expected]


def test_equal_wall_time_as_pandas_joins(random_runs):
    runs, frames = random_runs
    for frame in frames:
        frame["wall"] = (frame["time"] - frame["time"].iloc[0]).astype(float)
    end = min(frame["wall"].iloc[-1] for frame in frames)
    expected = [pd.merge_asof(pd.DataFrame({"wall": [end]}), frame, on="wall")[METRIC][0] for frame in frames]
    table = at_equal_wall_time(runs, [METRIC])
    assert table.columns[1] == f"{METRIC}\nwithin {end:.1f} s"
    assert list(column(table, METRIC).values()) == [f"{value:.4f}" for value in expected]


def test_a_run_without_the_metric_does_not_keep_the_others_from_it(tmp_path):
    named = [
        write_run(tmp_path / "a", [row(100, 0, val__nelbo_nats=5), row(200, 1, val__nelbo_nats=4)]),
        write_run(tmp_path / "b", [row(100, 0, val__nelbo_nats=6.5)]),
        write_run(tmp_path / "new", [row(50, 0, train__lr=0.1)]),
    ]
    runs = read_runs(named, None)
    assert column(at_equal_samples(runs, [METRIC]), METRIC) == {"a": "5", "b": "6.5000", "new": "–"}
    assert column(at_the_end(runs, [METRIC]), METRIC) == {"a": "4", "b": "6.5000", "new": "–"}


def test_without_a_common_step_nothing_is_said_of_equal_samples(tmp_path):
    named = [write_run(tmp_path / name, [row(seen, 0, val__nelbo_nats=1.5)]) for name, seen in (("a", 100), ("b", 150))]
    runs = read_runs(named, None)
    assert table_of(runs, "equal-samples") is None
    assert column(at_equal_wall_time(runs, [METRIC]), METRIC) == {"a": "1.5000", "b": "1.5000"}


def test_pauses_are_left_out(tmp_path):
    speed = {"perf__images_per_s": 10.0}  # 100 samples in 10 s
    rows = [
        row(100, 1000, **speed),
        row(200, 1010, **speed),
        row(200, 1400, val__nelbo_nats=9),  # a long evaluation, no pause
        row(300, 1412, **speed),
        row(350, 9000, val__nelbo_nats=8),  # went on after two hours: 5 s, by the next log line
        row(400, 9008, **speed),
        row(500, 9075, **speed),  # 57 s more than training: pictures, a checkpoint
    ]
    (run, _) = read_runs([write_run(tmp_path / "a", rows), write_run(tmp_path / "b", [])], None)
    assert [point.wall_s for point in run.series("perf/images_per_s")] == [10, 20, 422, 435, 502]
    assert [point.wall_s for point in run.series("val/nelbo_nats")] == [410, 427]
    assert run.wall_s == 502


def test_without_speed_or_with_a_clock_that_went_back(tmp_path):
    rows = [row(100, 1000, x=1), row(200, 5000, x=2), row(300, 4000, x=3), row(400, 4010, x=4)]
    (run, _) = read_runs([write_run(tmp_path / "a", rows), write_run(tmp_path / "b", [])], None)
    assert [point.wall_s for point in run.series("x")] == [0, 4000, 4000, 4010]


def test_what_differs_in_the_configuration(tmp_path):
    a = {
        "seed": 1,
        "model": {"num_layers": 3, "norm": "group"},
        "tracking": {"uri": "postgresql://me:hunter22@host/db"},
    }
    b = {"seed": 1, "model": {"num_layers": 5, "norm": "group", "scales": [1, 2]}, "tracking": {"uri": "sqlite:///x"}}
    runs = read_runs([write_run(tmp_path / "a", [], a), write_run(tmp_path / "b", [], b)], None)
    assert config_differences(runs) == Table(
        "config",
        "What differs in the configuration",
        ("key", "a", "b"),
        [
            ("model.num_layers", "3", "5"),
            ("model.scales", "–", "[1, 2]"),
            ("tracking.uri", "postgresql://***@host/db", "sqlite:///x"),  # last: it changes nothing that is learnt
        ],
    )


def test_many_runs_that_differ_in_little_are_rows(tmp_path):
    named = [write_run(tmp_path / f"r{i}", [], {"train": {"lr": i / 100}, "seed": 0}) for i in range(12)]
    table = config_differences(read_runs(named, None))
    assert table.columns == ("run", "train.lr")
    assert list(table.rows) == [(f"r{i}", str(i / 100)) for i in range(12)]


def test_equal_configurations_say_so(tmp_path):
    runs = read_runs([write_run(tmp_path / name, []) for name in "ab"], None)
    assert (config_differences(runs).title, config_differences(runs).rows) == ("The configurations are equal", [])


def test_nan_and_infinity(tmp_path):
    named = [
        write_run(tmp_path / "a", [row(100, 0, val__nelbo_nats="NaN", val__kl_nats="Infinity")]),
        write_run(tmp_path / "b", [row(100, 0, val__nelbo_nats=3.25, val__kl_nats="-Infinity")]),
    ]
    table = table_of(read_runs(named, None), "equal-samples")
    assert table is not None
    assert column(table, METRIC) == {"a": "NaN", "b": "3.2500"}
    assert column(table, "val/kl_nats") == {"a": "∞", "b": "-∞"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567.891, "1,234,567.8910"), (22.40765, "22.4077"), (0.000123456, "0.0001235"), (7.0, "7"), (-0.5, "-0.5000")],
)
def test_figures_as_text(value, text):
    assert figure(value) == text


def test_durations_as_text():
    assert [duration(s) for s in (0.25, 59.9, 61, 90_000)] == ["0.2 s", "59.9 s", "0:01:01", "1 day, 1:00:00"]


def test_what_the_runs_are(tmp_path):
    about = {"dataset": {"name": "digits", "version": "1", "fingerprint": "ab"}, "parameters": 1234}
    named = [
        write_run(tmp_path / "done", [row(100, 0), row(4000, 75)], summary={"parameters": 65_474}, environment=about),
        write_run(tmp_path / "died", [], status={"status": "FAILED", "reason": "no disk"}, environment=about),
        write_run(tmp_path / "gone", [], status={"status": "RUNNING", "reason": ""}),
    ]
    table = what_they_are(read_runs(named, None))
    assert table.columns == ("run", "status", "samples seen", "time", "parameters", "data", "from")
    assert list(table.rows) == [
        ("done", "FINISHED", "4,000", "0:01:15", "65,474", "digits 1", named[0]),
        ("died", "FAILED: no disk", "0", "0.0 s", "1,234", "digits 1", named[1]),
        ("gone", "KILLED", "0", "0.0 s", "–", "–", named[2]),  # nobody holds its lock, and it has no summary
    ]


def figures_of_size(dimensions: int) -> dict[str, float]:
    return {"val__nelbo_nats": 50.0, "val__bits_per_dim": 50.0 / math.log(2) / dimensions}


def test_different_images_are_not_comparable(tmp_path):
    small = write_run(tmp_path / "small", [row(100, 0, **figures_of_size(64))])
    large = write_run(tmp_path / "large", [row(100, 0, **figures_of_size(3072))])
    (reason,) = not_comparable(read_runs([small, large], None))
    assert "different sizes (small: 64 values, large: 3072 values)" in reason


def test_different_data_are_not_comparable(tmp_path):
    def of(fingerprint: str) -> dict:
        return {"dataset": {"name": "photos", "version": fingerprint * 2, "fingerprint": fingerprint}}

    named = [write_run(tmp_path / name, [], environment=of(print_)) for name, print_ in (("a", "x"), ("b", "y"))]
    (reason,) = not_comparable(read_runs(named, None))
    assert "different data sets (a: photos xx x, b: photos yy y)" in reason
    same = write_run(tmp_path / "c", [], environment=of("x"))
    assert not_comparable(read_runs([named[0], same], None)) == []


def test_perhaps_different_data(tmp_path):
    named = [write_run(tmp_path / name, [], {"data": {"path": f"data/{name}"}}) for name in "ab"]
    (reason,) = not_comparable(read_runs(named, None))
    assert "perhaps different data sets (a: data/a, b: data/b)" in reason


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    named = [write_run(tmp_path / place / "demo", []) for place in ("here", "there")]
    assert [run.name for run in read_runs(named, None)] == named


# ------------------------------------------------------------------------------------------------------- the command


def compare(*arguments: str):
    return CliRunner().invoke(app, ["compare", *arguments], env={"COLUMNS": "200", "MLFLOW_TRACKING_URI": ""})


def test_the_command_prints_tables_and_writes_a_page(tmp_path):
    named = [write_run(tmp_path / name, [row(100, 0, **figures_of_size(64))]) for name in "ab"]
    out = tmp_path / "not" / "there" / "yet.html"
    result = compare(*named, "--out", str(out))
    assert result.exit_code == 0, result.output
    for text in ("The runs", "At equal samples seen", "At equal wall time", "50", f"page: {out}"):
        assert text in result.output
    assert "What differs" not in result.output
    assert out.read_text().startswith("<!DOCTYPE html>")


def test_twelve_runs_fit_a_terminal(tmp_path):
    keys = {f"k{i}": i for i in range(20)}
    named = [
        write_run(tmp_path / f"r{i}", [row(100, 0, val__nelbo_nats=i)], {k: v * i for k, v in keys.items()})
        for i in range(12)
    ]
    result = compare(*named)
    assert result.exit_code == 0, result.output
    assert result.output.count("What differs in the configuration") == 2  # six runs each
    assert "│ k19 │  0 │ 19 │" in result.output


@pytest.mark.parametrize("content", ["", "<p>old</p>"])
def test_a_page_that_is_there_is_replaced_whole(tmp_path, content):
    named = [write_run(tmp_path / name, []) for name in "ab"]
    out = tmp_path / "compare.html"
    out.write_text(content)
    with out.open() as reader:
        assert compare(*named, "--out", str(out)).exit_code == 0
        assert reader.read() == content  # another file has taken its place
    assert out.read_text().endswith("</html>\n")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "compare.html"}


def a_run(place: Path) -> str:
    return write_run(place / "run", [])


def broken(place: Path, name: str, content: str) -> str:
    folder = write_run(place / "broken", [])
    (Path(folder) / name).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda p: [a_run(p)], "two runs or more, found 1"),
        (lambda p: [a_run(p), f"{p}/run/"], "is named twice"),
        (lambda p: [a_run(p), f"{p}/typo"], "neither a folder that is there nor an MLflow run id"),
        (lambda p: [a_run(p), str(p)], "is no run folder (no config.yaml)"),
        (lambda p: [a_run(p), broken(p, "config.yaml", "[1, 2]")], "no configuration of a run"),
        (lambda p: [a_run(p), broken(p, "config.yaml", "a: [")], "cannot be read"),
        (lambda p: [a_run(p), broken(p, "summary.json", "{")], "cannot be read"),
        (lambda p: [a_run(p), broken(p, "metrics.jsonl", "no\nfigures\n")], "is not a line of a journal"),
        (lambda p: [a_run(p), broken(p, "metrics.jsonl", '{"samples_seen": 1}\n')], "has no time"),
        (lambda p: [a_run(p), broken(p, "x", ""), "--out", str(p)], "cannot write the page"),
        (lambda p: [a_run(p), "0" * 32, "--tracking-uri", f"sqlite:///{p}/none.db"], "there is no MLflow store"),
    ],
)
def test_bad_input_is_one_message(tmp_path, arguments, message):
    result = compare(*arguments(tmp_path))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1 or "broken" in result.stderr  # PyYAML's own take more lines
    assert not (tmp_path / "none.db").exists()
