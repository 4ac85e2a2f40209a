import contextlib
import io
import os
import pty

from rich.console import Console as RichConsole

from attvae.tracking.console import Console, print_table


def kept_output() -> RichConsole:
    return RichConsole(file=io.StringIO(), width=200)


def test_plain_lines_where_the_output_is_kept(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # CI sets it: a log file must stay readable nevertheless
    out = kept_output()
    console = Console(total=200_000, console=out)
    console.metrics(12_800, {"perf/images_per_s": 1234.4, "train/nelbo_nats": 24.1256, "train/kl_nats": 7.2, "kl/x": 1})
    console.metrics(12_800, {"val/nelbo_nats": 23.9, "val/bits_per_dim": 0.5389})
    console.metrics(12_800, {"kl/layer_00": 1.0})
    console.close("KILLED", "SIGTERM")
    assert out.file.getvalue().splitlines() == [
        "12,800/200,000 samples  1,234 images/s  ETA 0:02:32  NELBO 24.126 nats  KL 7.200 nats",
        "12,800/200,000 samples  val 23.900 nats  val 0.5389 bits/dim",
        "stopped at 12,800 samples: SIGTERM",
    ]


def test_a_resumed_run_says_where_it_ended():
    out = kept_output()
    console = Console(total=100, samples_seen=100, console=out)
    console.close("FINISHED")
    assert out.file.getvalue() == "finished at 100 samples\n"


def test_one_line_in_place_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    reading, writing = pty.openpty()
    with os.fdopen(writing, "w") as terminal:
        console = Console(total=1000, console=RichConsole(file=terminal, width=150))
        console.metrics(250, {"perf/images_per_s": 10.0, "train/nelbo_nats": 30.5})
        console.metrics(500, {"val/nelbo_nats": 29.5})
        console.close("FINISHED")
    shown = ""
    with contextlib.suppress(OSError):  # how a terminal that was closed ends
        while part := os.read(reading, 100_000):
            shown += part.decode()
    os.close(reading)
    assert "\x1b[2K" in shown  # the line is erased and drawn again
    last = shown.rsplit("\x1b[2K", 1)[1]
    for text in ("50%", "500/1,000 samples", "10 images/s", "ETA 0:00:50", "NELBO 30.500", "val 29.500"):
        assert text in last


def test_table_of_figures():
    out = kept_output()
    print_table("Test", ("", "bits/dim"), [("attvae", 3.49999), ("PNG [lossless]", 3.6), ("layers", 12345)], out)
    text = out.file.getvalue()
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line]
    assert cells == [["attvae", "3.5000"], ["PNG [lossless]", "3.6000"], ["layers", "12,345"]]
    assert "\x1b" not in text
