"""C that the host's compiler turns into code, and what is said where it cannot."""

import tempfile
from pathlib import Path

import pytest

from attvae import compiled_c
from attvae.compiled_c import compiled

SOURCE = "int sum(int a, int b) { return a + b; }"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "sum.c"
    path.write_text(SOURCE)
    return path


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
