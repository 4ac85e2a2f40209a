"""`attvae export`: a run's model as an export folder, with programs for elsewhere where wanted."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from attvae import export, programs
from attvae.evaluate import open_trained
from attvae.export import ExportConfig, TrainedOn
from attvae.model_card import model_card
from attvae.run_folder import RunFolder


def export_run(run: Path, out: Path, formats: Sequence[programs.Format] = (), *, force: bool = False) -> ExportConfig:
    """Writes the model of a finished run into a new folder, whole or not at all; what its model.json says.

    Args:
        formats: of encoder and sampler as programs beside it.
        force: export an unfinished run's newest checkpoint too, and plain weights where there is no EMA.

    Raises:
        ValueError: no run; no complete checkpoint; what only `force` exports; `out` exists or cannot be written.
    """
    export.check_absent(out)
    if export.is_export(run):
        raise ValueError(f"{run} is an export already: copy that folder, or name a run")
    trained = open_trained(run, force=force)
    model, about, folder = trained.model, trained.about, RunFolder(run)
    config = ExportConfig(
        model=model.config,
        spec=model.spec,
        trained_on=TrainedOn.model_validate(about["trained_on"]),
        samples_seen=about["samples_seen"],
        weights=about["weights"],
        forced=trained.forced,
    )
    summary = folder.read_summary() if folder.summary.is_file() else None
    of_these_weights = summary and not config.forced and summary["samples_seen"] == config.samples_seen
    card = model_card(
        config,
        model,
        summary=summary if of_these_weights else None,
        source=_source(folder),
        programs=[programs.SUFFIXES[name] for name in formats],
    )
    export.write(out, model, config, card, partial(programs.write, model=model, formats=formats))
    return config


def _source(folder: RunFolder) -> str | None:
    """Of the images, in the words of their manifest; runs of before do not say."""
    environment = folder.path / "environment.json"
    return json.loads(environment.read_text()).get("dataset", {}).get("source") if environment.is_file() else None
