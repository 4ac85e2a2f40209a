"""What one rank alone finds wrong, and when all ranks have the same exit code."""

import fcntl
import os
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from launched import PLAIN, REPOSITORY, TINY, arguments, command, result, run, start, wait_for
from spawn import free_port, run_on_ranks

from attvae.engine.rendezvous import FailedOnAnotherRankError, join, leave
from attvae.tracking.jsonl import read


def ended(commands: list[list[str]]) -> tuple[list[int], str]:
    """Exit codes, and all that the ranks said: one for each command."""
    port = str(free_port())
    together = {"WORLD_SIZE": str(len(commands)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [start(each, RANK=str(rank), LOCAL_RANK="0", **together) for rank, each in enumerate(commands)]
    try:
        said = [rank.communicate(timeout=90)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], "".join(said)


def failures_of(kind: type[Exception]) -> list[str]:
    world = join()

    def fail() -> None:
        raise kind("as planted")

    heard = []
    for rank, agree in ((0, world.from_first), (1, world.all_or_none)):
        try:
            agree(fail if world.rank == rank else lambda: None)
        except FailedOnAnotherRankError as error:
            heard.append(f"{error}, bad input: {error.bad_input}")
        except Exception as error:
            heard.append(str(error))
    leave()
    return heard


@pytest.mark.parametrize(("kind", "bad_input"), [(ValueError, True), (ConnectionError, False)])
def test_the_others_know_whether_it_is_bad_input(kind: type[Exception], bad_input: bool) -> None:
    first, second = run_on_ranks(failures_of, 2, kind)
    assert first == ["as planted", f"rank 1 says why, bad input: {bad_input}"]
    assert second == [f"rank 0 says why, bad input: {bad_input}", "as planted"]


def test_a_configuration_and_data_that_one_host_alone_lacks(digits: Path, tmp_path: Path) -> None:
    """Relative paths, and one working folder that has neither: as on two hosts."""
    train = [sys.executable, str(REPOSITORY / "launch" / "train.py")]
    (tmp_path / "own").symlink_to(digits)
    (tmp_path / "own.yaml").write_text(f"base: {REPOSITORY / TINY[0]}\n")
    for given, message in [
        (["own.yaml", f"data.path={digits}"], "attvae (rank 1): cannot read the configuration own.yaml"),
        (
            [*(str(REPOSITORY / each) for each in TINY), "data.path=own"],
            "attvae (rank 1): data folder own does not",
        ),
    ]:
        codes, said = ended(
            [["env", f"--chdir={cwd}", *train, *given, "--out", str(tmp_path / "run")] for cwd in (tmp_path, digits)]
        )
        assert codes == [2, 2], said
        assert said.count(message) == 1, said
        assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_a_finished_run_and_a_rank_that_asks_for_another(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    finished = command(digits, out, PLAIN, "train.samples=500")
    run(finished)
    before = result(out)
    codes, said = ended([finished, [*finished, "train.lr=0.5"]])
    assert codes == [2, 2], said
    assert said.count("the ranks do not run the same") == 1
    codes, said = ended([finished, finished])
    assert codes == [0, 0], said
    assert "test" in said
    assert result(out) == before


def test_a_terminal_that_closes_leaves_a_saved_run(digits: Path, tmp_path: Path) -> None:
    """Started as a user does, by the command's own name."""
    out, attvae = tmp_path / "run", Path(sys.executable).with_name("attvae")
    options = (PLAIN, "train.samples=1000000", "checkpoint.every=1000000")
    terminal, of_the_run = os.openpty()
    process = subprocess.Popen(
        [attvae, "train", *arguments(digits, out, *options)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stdin=of_the_run,
        stdout=of_the_run,
        stderr=of_the_run,
        start_new_session=True,
        preexec_fn=_with_this_terminal,
    )
    os.close(of_the_run)
    try:
        assert wait_for(lambda: read(out / "metrics.jsonl"), 90)
        os.close(terminal)
        assert process.wait(60) == 75
    finally:
        process.kill()
        process.wait()
    assert [folder.name for folder in (out / "checkpoints").iterdir()]


def _with_this_terminal() -> None:
    """Makes standard input the controlling terminal, whose end is a SIGHUP."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
