import json
import math

import pytest

from attvae.tracking.jsonl import Journal, read, read_from


def test_each_line_is_standard_json_on_disk_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, resume_at=None)
    journal.metrics(128, {"train/nelbo_nats": 24.5, "a": math.nan, "b": math.inf, "c": -math.inf})

    def reject(constant):
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads(path.read_text(), parse_constant=reject)
    assert row["samples_seen"] == 128
    assert row["train/nelbo_nats"] == 24.5
    assert (row["a"], row["b"], row["c"]) == ("NaN", "Infinity", "-Infinity")
    assert abs(row["time"] - path.stat().st_mtime) < 60


def test_read_gives_back_what_was_written(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl", resume_at=None)
    journal.metrics(1, {"x": 0.1, "y": math.inf})
    journal.metrics(2, {"x": math.nan})
    first, second = read(journal.path)
    assert (first["samples_seen"], first["x"], first["y"]) == (1, 0.1, math.inf)
    assert second["samples_seen"] == 2
    assert math.isnan(second["x"])


def test_a_run_killed_in_mid_line_and_resumed_holds_each_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, resume_at=None)
    for step in (10, 20, 30):
        journal.metrics(step, {"x": step / 10})
    with path.open("a") as file:  # what a kill leaves
        file.write('{"samples_seen": 40, "ti')

    resumed = Journal(path, resume_at=20)
    for step in (30, 40):
        resumed.metrics(step, {"x": -1.0})
    assert [(row["samples_seen"], row["x"]) for row in read(path)] == [(10, 1.0), (20, 2.0), (30, -1.0), (40, -1.0)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_kill_while_the_journal_is_rewritten_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    Journal(path, resume_at=None).metrics(10, {"x": 1.0})
    before = path.read_bytes()

    def killed(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        Journal(path, resume_at=5)
    assert path.read_bytes() == before


def test_a_run_from_scratch_starts_an_empty_journal(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Journal(path, resume_at=None).metrics(10, {"x": 1.0})
    Journal(path, resume_at=None)
    assert path.read_bytes() == b""


def test_reading_on_from_an_offset_skips_nothing_and_repeats_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, resume_at=None)
    journal.metrics(1, {"x": 1.0})
    rows, offset = read_from(path, 0)
    assert [row["samples_seen"] for row in rows] == [1]
    with path.open("a") as file:
        file.write('{"samples_seen": 2, "time": 0, ')
        file.flush()
        assert read_from(path, offset) == ([], offset)
        file.write('"x": 2}\n')
    rows, offset = read_from(path, offset)
    assert rows == [{"samples_seen": 2, "time": 0.0, "x": 2.0}]
    assert offset == path.stat().st_size


@pytest.mark.parametrize("line", ["{broken", "[1]", '{"time": 1}', '{"samples_seen": 1, "time": 1, "x": "high"}'])
def test_an_unreadable_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{line}\n{{"samples_seen": 2, "time": 0}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: b'.* is not a line of a journal"):
        read(path)


def test_no_journal_has_no_rows(tmp_path):
    assert read(tmp_path / "metrics.jsonl") == []
