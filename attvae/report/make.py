"""Makes the report of a run: for `attvae report`, and at the end of each run."""

import os
import sys
from pathlib import Path

from attvae.config import RunConfig
from attvae.data.manifest import Manifest
from attvae.model.vae import DeepVAE
from attvae.pages.document import write_page
from attvae.report.page import page
from attvae.report.subject import Looked, look_at, read_subject
from attvae.run_folder import RunFolder


def report(run: Path, out: Path | None) -> str:
    """Writes the report of a run, finished or not, and says what it has written.

    Args:
        out: by default report.html in the run folder.

    Raises:
        ValueError: no run folder, or a file of it is damaged; `out` cannot be written.
    """
    out = out or RunFolder(run).report
    _check_writable(out)
    subject = read_subject(run)
    write_page(page(subject), out)
    said = [f"{out}: {out.stat().st_size / 1e6:.1f} MB"]
    said += [] if subject.finished else ["the run is unfinished"]
    said += [f"the model could not be looked at: {subject.looked}"] if isinstance(subject.looked, str) else []
    return "; ".join(said)


def report_at_the_end(folder: RunFolder, cfg: RunConfig, model: DeepVAE, manifest: Manifest, samples_seen: int) -> None:
    """Writes the report of a run whose summary stands. What goes wrong costs a warning: the run is done."""

    def looked() -> Looked:
        return look_at(model, manifest, cfg.data, samples_seen, weights="ema", finished=True)

    try:
        write_page(page(read_subject(folder.path, looked)), folder.report)
    except Exception as error:
        print(
            f"attvae: no report ({type(error).__name__}: {error}); the run is complete, and `attvae report "
            f"{folder.path}` tries again",
            file=sys.stderr,
            flush=True,
        )


def _check_writable(out: Path) -> None:
    """Before the work."""
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if out.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"--out {out} cannot be written: name a file in a folder that can be written")
