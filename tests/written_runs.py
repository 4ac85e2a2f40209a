"""Run folders as training leaves them, written by a test."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image


def write_run(
    folder: Path,
    rows: Iterable[Mapping[str, Any]],
    config: Mapping[str, Any] | None = None,
    pictures: Mapping[tuple[str, int], int] | None = None,
    **files: Any,
) -> str:
    """
    Args:
        rows: lines of the journal, as JSON has them.
        pictures: (name, samples seen) -> grey value.
        files: JSON files by their stem, such as summary.

    Returns:
        The folder, as one names it on a command line.
    """
    (folder / "images").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config or {"model": {"num_layers": 2}})))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for (name, step), grey in (pictures or {}).items():
        (folder / "images" / f"{name}-{step:012d}.png").write_bytes(png(grey))
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return str(folder)


def row(samples_seen: int, time: float, **figures: float | str) -> dict[str, Any]:
    """`val__nelbo_nats` stands for val/nelbo_nats."""
    return {"samples_seen": samples_seen, "time": time} | {k.replace("__", "/"): v for k, v in figures.items()}


def png(grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (12, 8), grey).save(file, format="PNG")
    return file.getvalue()
