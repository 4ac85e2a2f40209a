"""C that the host's compiler turns into code, and what is said where it cannot."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import attvae
from attvae import compiled_c
from attvae.compiled_c import compiled

SOURCE = "int sum(int a, int b) { return a + b; }"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "package" / "sum" / "sum.c"
    path.parent.mkdir(parents=True)
    path.write_text(SOURCE)
    return path


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often the compiler was called."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    log, compiler = tmp_path / "calls", tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\necho >> {log}\nexec {shutil.which("cc")} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    return lambda: len(log.read_text()) if log.exists() else 0


@pytest.mark.parametrize("path", sorted(Path(attvae.__file__).parent.rglob("*.c")), ids=lambda path: path.stem)
def test_all_of_ours_compile(path: Path) -> None:
    """Those that use them skip their tests where there is no compiler; not because of what stands in the file."""
    if shutil.which("cc") is None:
        assert "CI" not in os.environ, "CI needs a C compiler"
        pytest.skip("no C compiler")
    assert not isinstance(library := compiled(path), str), library


def in_another_process(source: Path) -> int:
    """What the library computes that a process finds which has not compiled it."""
    library = compiled.__wrapped__(source)
    assert not isinstance(library, str), library
    added: int = library.sum(2, 3)
    return added


def test_it_is_kept_for_the_next_process(source: Path, calls: Callable[[], int], tmp_path: Path) -> None:
    assert [in_another_process(source), in_another_process(source)] == [5, 5]
    assert calls() == 1
    (kept,) = (tmp_path / "cache" / "attvae").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700


def test_what_it_depends_on_has_changed(source: Path, calls: Callable[[], int]) -> None:
    header = source.parent.parent / "one.h"
    header.write_text("enum { MORE = 1 };")
    source.write_text('#include "../one.h"\nint sum(int a, int b) { return a + b + MORE; }')
    assert in_another_process(source) == 6
    header.write_text("enum { MORE = 2 };")
    assert in_another_process(source) == 7
    source.write_text(SOURCE)
    assert in_another_process(source) == 5
    assert calls() == 3


@pytest.mark.parametrize("spoil", [lambda kept: kept.chmod(0o622), lambda kept: kept.parent.chmod(0o770)])
def test_what_others_can_write_is_not_trusted(
    source: Path, calls: Callable[[], int], tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    in_another_process(source)
    (kept,) = (tmp_path / "cache" / "attvae").iterdir()
    spoil(kept)
    assert in_another_process(source) == 5
    assert calls() == 2


def test_what_is_damaged_is_made_anew(source: Path, calls: Callable[[], int], tmp_path: Path) -> None:
    in_another_process(source)
    (kept,) = (tmp_path / "cache" / "attvae").iterdir()
    replaced = tmp_path / "damaged"  # not in place: this process has the file mapped
    replaced.write_bytes(b"no library")
    replaced.chmod(0o600)
    replaced.replace(kept)
    assert [in_another_process(source), in_another_process(source)] == [5, 5]
    assert calls() == 2


@pytest.mark.parametrize("cache", ["cache", "not/absolute"])
def test_where_nothing_can_be_kept(
    source: Path, calls: Callable[[], int], tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache) if cache == "cache" else cache)
    assert [in_another_process(source), in_another_process(source)] == [5, 5]
    assert calls() == 2


def test_it_computes_and_is_compiled_once(source: Path) -> None:
    library = compiled(source)
    if isinstance(library, str):
        pytest.skip(library)
    assert library.sum(2, 3) == 5
    source.unlink()
    assert compiled(source) is library


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "there is no C compiler"),
        ("echo 'cc1: no space left' >&2; exit 3", "failed: cc1: no space left"),
        ("exit 3", "failed: exit code 3"),
        ("printf 'caf\\351\\n' >&2; exit 3", "failed: caf"),
        ("exit 0", "cannot be loaded"),
        ("exec sleep 20", "did not end within 0.2 s"),
    ],
)
def test_without_a_working_compiler(
    source: Path, script: str | None, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "cc"
    monkeypatch.setenv("CC", str(compiler))
    if script:
        compiler.write_text(f"#!/bin/sh\n{script}\n")
        compiler.chmod(0o755)
    if "sleep" in str(script):
        monkeypatch.setattr(compiled_c, "PATIENCE_S", 0.2)
    why = compiled(source)
    assert isinstance(why, str)
    assert reason in why
    assert str(compiler) in why


def test_without_a_temporary_folder(source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    why = compiled(source)
    assert isinstance(why, str)
    assert "no temporary folder" in why
    assert str(tmp_path / "missing") in why
