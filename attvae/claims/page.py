"""The page of a study: docs/results.md with its tables and pictures, made from the study's JSON alone."""

import json
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attvae.all_or_nothing import PREFIX
from attvae.claims.attention_verdicts import PATHS
from attvae.claims.charts import Side, attention_chart, curves_chart, kl_chart, nelbo_chart
from attvae.claims.method import METHOD, cannot_show
from attvae.claims.outcome import Verdict
from attvae.claims.results import (
    ATTENTIVE,
    BASELINE,
    DEPTH,
    EQUAL_TIME,
    PHOTOGRAPHS,
    Cell,
    Results,
    Unit,
    done,
    of_one_machine,
    read_results,
    strata,
)
from attvae.claims.tables import (
    activity_table,
    attention_table,
    cells_table,
    layers_table,
    likelihood_table,
    table,
    time_table,
)
from attvae.claims.verdicts import likelihood, upper_layers, verdicts
from attvae.evaluation.elbo import ACTIVE_NATS
from attvae.run_folder import write_text

PICTURES = "results"
"""The folder, beside the page, of its pictures and of the JSON."""

_CHARTS = ("nelbo", "curves", "kl", "attention")


def write_page(found: Mapping[str, Any], docs: Path) -> None:
    """Writes results.md and, in the folder results, <study>.json and <study>_*.png.

    Each file whole or not at all, and none before all pictures are drawn. Pictures that the page no longer has go.

    Args:
        found: the results of a study, partial ones too: the page says what is missing.

    Raises:
        ValueError: the results are not those of a study (attvae.claims.results).
        OSError: something cannot be written.
    """
    results = read_results(found)
    folder = docs / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=docs) as drawn:
        parts = list(_page(results, Path(drawn)))
        for old in (folder / f"{results.study}_{name}_{chart}.png" for name in results.sets for chart in _CHARTS):
            old.unlink(missing_ok=True)
        for picture in Path(drawn).iterdir():
            picture.replace(folder / picture.name)
    write_text(folder / f"{results.study}.json", json.dumps(found, indent=1) + "\n")
    write_text(docs / "results.md", "\n\n".join(parts) + "\n")


def _page(results: Results, folder: Path) -> Iterator[str]:
    yield f"# The paper's claims, tested: study {results.study}"
    yield results.about
    yield "\n".join(f"* {line}" for line in _head(results))
    yield "## Verdicts"
    yield _verdicts_table(verdicts(results))
    seeds = len({cell.seed for cell in results.of(DEPTH)})
    yield METHOD
    yield cannot_show(seeds)
    for name in results.sets:
        yield from _set(results, name, folder)
    yield "## All cells"
    yield f"Every cell that was asked for or run, in its order. {_counts(results)} Errors are over the test images."
    yield cells_table(results.counted())
    yield from _again(results)


def _head(results: Results) -> Iterator[str]:
    ended = done(results.cells)
    json_file = f"{PICTURES}/{results.study}.json"
    yield f"Made by `{results.command}`, from [{results.study}.json]({json_file}). {_counts(results)}"
    yield f"Chosen on: {results.chosen_on}"
    yield f"Limits: {results.limits}"
    if not_run := [name for name in results.sets if not any(cell.set == name for cell in results.counted())]:
        yield f"Not asked for (`--full`): {', '.join(not_run)}."
    if ended:
        starts = [cell.started for cell in ended]
        commits = (
            f"`{(cell.commit or 'unknown')[:7]}`{' and changes without a commit' if cell.dirty else ''}"
            for cell in ended
        )
        yield f"Commit: {_listed(commits)}. Trainings started between {min(starts)} and {max(starts)}."
        machines = [cell.machine for cell in ended]
        kinds = (f"{each.processor}, {each.cpus} CPUs, trained on {each.device}" for each in machines)
        yield (
            f"Machine: {_listed(kinds)}; "
            f"torch {_listed(each.torch for each in machines)}, Python {_listed(each.python for each in machines)}."
        )


def _counts(results: Results) -> str:
    cells = [cell for cell in results.cells if cell.set in results.asked()]
    number = {status: sum(cell.status == status for cell in cells) for status in ("done", "failed", "missing")}
    found = f"Cells: {number['done']} of {len(cells)} done, {number['failed']} failed, {number['missing']} missing."
    if number["missing"]:
        found = f"**{found}** The same command goes on."
    beside = (
        f"{len(done(results.of(name)))} of {len(results.of(name))} of `{name}`"
        for name in results.sets
        if name not in results.asked() and done(results.of(name))
    )
    return " ".join([found, *(f"Run beside: {each}." for each in beside)])


def _verdicts_table(found: Iterable[Verdict]) -> str:
    return table(("claim", "verdict", "numbers"), ((v.claim, f"**{v.outcome}**", v.sentence) for v in found))


def _set(results: Results, name: str, folder: Path) -> Iterator[str]:
    cells = results.of(name)
    ended = done(cells)
    if not ended and name not in results.asked():
        return
    unit: Unit = "bits/dim" if name == PHOTOGRAPHS else "nats"
    drawn = f"{results.study}_{name}"
    yield f"## Set `{name}`"
    yield results.sets[name].about
    if not ended:
        yield "None of its cells is done."
        return
    yield likelihood_table(cells, results.variants, unit)
    attentive = results.of(name, ATTENTIVE)
    if name == EQUAL_TIME:
        yield f"Below it is compared with `{ATTENTIVE}` of the set `{DEPTH}`."
        depths = {cell.depth for cell in cells}
        attentive = [cell for cell in results.of(DEPTH, ATTENTIVE) if cell.depth in depths]
    elif name != DEPTH and attentive and results.of(name, BASELINE):
        yield _verdicts_table([likelihood(results, name, unit), upper_layers(results, name)])
    shown = [*ended, *(cell for cell in done(attentive) if cell not in ended)]
    if len({cell.depth for cell in shown}) > 1:
        nelbo_chart(shown, results.variants, unit, folder / f"{drawn}_nelbo.png")
        yield _picture(f"{drawn}_nelbo", "Test NELBO against depth: a dot for each training, lines through the means")
    yield from _race(results, name, attentive, unit, folder / f"{drawn}_curves.png")
    yield "### KL of each layer"
    kl_chart(shown, results.variants, folder / f"{drawn}_kl.png")
    dashes = f"A layer is active above the dashes ({ACTIVE_NATS} nats); the top half is left of the dots"
    yield _picture(f"{drawn}_kl", f"{dashes}; values below 0.001 are drawn there")
    yield activity_table(cells, results.variants)
    yield from _attention(results, cells, folder / f"{drawn}_attention.png")


def _race(results: Results, name: str, attentive: list[Cell], unit: Unit, path: Path) -> Iterator[str]:
    """Curves of both sides and what they say of time and layers."""
    groups = strata(results.of(name, BASELINE), attentive)
    if not groups:
        return
    yield "### Time"
    sides = (Side(BASELINE, done(results.of(name, BASELINE))), Side(ATTENTIVE, done(attentive)))
    curves_chart(*sides, results.variants, unit, path)
    yield _picture(
        path.stem, "Validation NELBO while training: thin lines are trainings, the start may lie above the frame"
    )
    if not of_one_machine([cell for group in groups for cell in [*group.baseline, *group.attentive]]):
        yield "The cells are of more than one machine: their seconds are as each has them, and are not compared."
    yield time_table(groups)
    if name == DEPTH:
        yield "### Layers"
        yield layers_table(groups)


def _attention(results: Results, cells: list[Cell], path: Path) -> Iterator[str]:
    attending = [cell for cell in done(cells) if cell.attention]
    if not attending:
        return
    yield "### Attention"
    if both := [cell for cell in attending if set(PATHS) <= set(cell.attention)]:
        deepest = [cell for cell in both if cell.depth == max(each.depth for each in both)]
        variant = ATTENTIVE if any(cell.variant == ATTENTIVE for cell in deepest) else deepest[0].variant
        deepest = [cell for cell in deepest if cell.variant == variant]
        attention_chart(deepest, path)
        yield _picture(
            path.stem, f"Attention probabilities of `{variant}`, {deepest[0].depth} layers, mean of trainings"
        )
    yield attention_table(cells, results.variants)


def _again(results: Results) -> Iterator[str]:
    yield "## One cell again"
    study_file = [each for each in shlex.split(results.command)[2:] if Path(each).suffix in (".yaml", ".yml")]
    again = shlex.join(["attvae", "claims", *study_file, "--cell"])
    yield (
        f"`{results.command}` runs what is missing of the sets asked for (`--full`: of all) and writes this page anew. "
        "At the cell's commit, which the JSON names, a cell again:"
    )
    yield f"```\n{again} ID --out NEW\n```"
    yield (
        "ID is that of the table above; its figures are in `cell.json` of the folder NEW/ID. The same kind of machine, "
        "torch and number of threads (OMP_NUM_THREADS, which the study sets) give the same bits."
    )


def _picture(stem: str, caption: str) -> str:
    return f"![{caption.replace('`', '')}]({PICTURES}/{stem}.png)\n\n{caption}."


def _listed(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values)))
