import pytest

from data_prep.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the monotonic clock shows."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_a_line_now_and_then_where_the_output_is_kept(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """4 images a second; the 1,000 of an earlier run count for no rate."""
    progress = Progress(2000, done=1000)
    for _ in range(50):
        clock[0] += 0.5
        progress.add(2, 500_000)
    progress.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "1,040/2,000 images  4 images/s  1.0 MB/s  ETA 0:04:00"
    assert second == "1,080/2,000 images  4 images/s  1.0 MB/s  ETA 0:03:50"


def test_one_line_that_stays_in_place_on_a_terminal(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    progress = Progress(20, unit="shards")
    for _ in range(2):
        clock[0] += 2
        progress.add(10, 8_000_000)
    progress.close()
    output = capsys.readouterr().out
    assert "\n" not in output
    assert [line.removesuffix("\033[K") for line in output.split("\r")] == [
        "",
        "10/20 shards  5 shards/s  4.0 MB/s  ETA 0:00:02",
        "20/20 shards  5 shards/s  4.0 MB/s  ETA 0:00:00",
        "",
    ]
