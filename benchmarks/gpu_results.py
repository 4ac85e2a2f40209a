"""What the parts of benchmarks/gpu.sh have printed so far, as one file. Needs no package.

    python3 benchmarks/gpu_results.py PARTS OUT.json

The folder PARTS holds, of each part that has had its turn, what it printed (NAME.jsonl, NAME.err) and its exit code
(NAME.code). Where all have measured everything, the file is OUT.json. Otherwise it is OUT_incomplete.json, with the
reasons as `not_measured`, and the exit code is 1: so a file of the same day that is complete stays.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

PARTS = ("eager", "optimizers", "depth_attention", "compiled")
LISTS = {"row": "rows", "attention": "attentions", "tiling": "tilings"}
TIMED_OUT = (124, 137)  # exit codes of the timeout command


def part(folder: Path, name: str) -> dict[str, Any]:
    """The lines of a part, put together; `not_measured` where something is missing."""
    if not (folder / f"{name}.code").exists():
        return {"not_measured": "its turn has not come"}
    found: dict[str, Any] = {}
    why = _failure(folder, name)
    for line in (folder / f"{name}.jsonl").read_text(errors="replace").splitlines():
        try:
            entries = dict(json.loads(line))
        except (ValueError, TypeError):  # the last line of a part that was ended, or what a library prints
            why = why or f"printed what is no JSON object: {line[:200]}"
            continue
        for key, value in entries.items():
            if key in LISTS:
                found.setdefault(LISTS[key], []).append(value)
            else:
                found[key] = value
    if not why and "rows" not in found:
        why = "printed no row"
    return found | ({"not_measured": why} if why else {})


def _failure(folder: Path, name: str) -> str | None:
    code = int((folder / f"{name}.code").read_text())
    if code == 0:
        return None
    took = "took longer than its limit" if code in TIMED_OUT else f"ended with {code}"
    said = (folder / f"{name}.err").read_text(errors="replace").strip().splitlines()
    return f"{took}: {' '.join(said[-3:])}"


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    found = {name: part(folder, name) for name in PARTS}
    environments = [each["environment"] for each in found.values() if "environment" in each]
    missing = [name for name, each in found.items() if "not_measured" in each]
    incomplete = out.with_name(f"{out.stem}_incomplete.json")
    target = incomplete if missing else out
    new = target.with_suffix(".json.new")
    new.write_text(json.dumps({"environment": environments[0] if environments else {}, **found}, indent=1) + "\n")
    os.replace(new, target)
    if not missing:
        incomplete.unlink(missing_ok=True)
    print(f"{target}" + (f": without all of {', '.join(missing)}" if missing else ""))
    raise SystemExit(1 if missing else 0)


if __name__ == "__main__":
    main()
