"""The tables of a results page, as Markdown: means and standard errors are over seeds."""

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, stdev

from attvae.claims.attention_verdicts import PATHS, mean_over_choosing, worth_nats
from attvae.claims.outcome import signed
from attvae.claims.race import race
from attvae.claims.results import BASELINE, Cell, Done, Estimate, Stratum, Unit, done, of_one_machine
from attvae.claims.verdicts import layers_needed
from attvae.evaluation.elbo import ACTIVE_NATS
from attvae.pages.figures import MISSING


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_in_a_cell, row)) + " |" for row in cells)


def mean_and_error(values: Sequence[float], digits: int) -> str:
    """Mean ± standard error with n - 1; a single value has none."""
    if not values:
        return MISSING
    if len(values) == 1:
        return f"{values[0]:,.{digits}f} (one seed)"
    return f"{fmean(values):,.{digits}f} ± {stdev(values) / math.sqrt(len(values)):,.{digits}f}"


def likelihood_table(cells: Sequence[Cell], variants: Sequence[str], unit: Unit) -> str:
    """A row for each depth and variant; parameters are compared with the baseline's of the depth."""
    digits = 2 if unit == "nats" else 3
    rows = []
    for depth, variant, all_of, ended in _groups(cells, variants):
        same_depth = [cell.parameters for cell in done(cells) if (cell.depth, cell.variant) == (depth, BASELINE)]
        rows.append(
            (
                str(depth),
                variant,
                f"{len(ended)} of {len(all_of)}",
                mean_and_error([cell.nelbo(unit) for cell in ended], digits),
                mean_and_error([cell.test.iw_nll_nats.value * cell.per_nat(unit) for cell in ended], digits),
                _number(ended, lambda cell: cell.parameters, ",.0f"),
                signed(100 * (fmean(c.parameters for c in ended) / fmean(same_depth) - 1), 1)
                if ended and same_depth
                else MISSING,
                _number(ended, lambda cell: cell.samples, ",.0f"),
                mean_and_error([1e3 * cell.training.s_per_image for cell in ended], 3),
                mean_and_error([1e3 * cell.sampling.s_per_image for cell in ended], 3),
            )
        )
    columns = (
        "depth",
        "attention",
        "seeds",
        f"test NELBO, {unit}",
        f"{_bound_of(done(cells))}, {unit}",
        "parameters",
        "% more than without",
        "samples seen",
        "training, ms per image",
        "sampling, ms per image",
    )
    return table(columns, rows)


def layers_table(groups: Sequence[Stratum]) -> str:
    """The least depth at which the baseline has the attentive model's mean NELBO, or less."""
    needed = layers_needed(groups)
    rows = [
        (
            str(group.depth),
            f"{fmean(cell.nelbo('nats') for cell in group.attentive):.2f}",
            str(needed[group.depth] or f"not with up to {max(needed)}"),
        )
        for group in groups
    ]
    return table(("depth with attention", "its test NELBO, nats", "least depth without that reaches it"), rows)


def time_table(groups: Sequence[Stratum]) -> str:
    """Without seconds if the cells are of more than one machine."""
    comparable = of_one_machine([cell for group in groups for cell in [*group.baseline, *group.attentive]])
    rows = []
    for group in groups:
        found = race(group.baseline, group.attentive)
        samples = [f"{each:,.0f}" for each in found.samples]
        seconds = [f"{each:,.1f}" for each in found.seconds] + [f"{found.seconds_ratio:.2f}"]
        in_seconds = seconds if comparable else [MISSING] * 3
        in_samples = [*samples, f"{found.samples_ratio:.2f}"]
        rows.append((str(group.depth), f"{found.target_nats:.2f}", *in_samples, *in_seconds))
    columns = ("samples without", "samples with", "ratio", "seconds without", "seconds with", "ratio")
    return table(("depth", "validation NELBO, nats", *columns), rows)


def activity_table(cells: Sequence[Cell], variants: Sequence[str]) -> str:
    rows = [
        (
            str(depth),
            variant,
            mean_and_error([_active(cell.top_half_kl_nats) for cell in ended], 2) + f" of {max(1, depth // 2)}",
            mean_and_error([_active(cell.test.kl_nats_per_layer) for cell in ended], 2) + f" of {depth}",
            mean_and_error([sum(cell.top_half_kl_nats) for cell in ended], 2),
            mean_and_error([sum(cell.test.kl_nats_per_layer) for cell in ended], 2),
        )
        for depth, variant, _, ended in _groups(cells, variants)
        if ended
    ]
    columns = ("active layers, top half", "active layers", "KL of the top half, nats", "KL, nats")
    return table(("depth", "attention", *columns), rows)


def attention_table(cells: Sequence[Cell], variants: Sequence[str]) -> str:
    """A row for each path of each depth and variant that attends; means over the layers with a choice."""
    rows = []
    for depth, variant, _, ended in _groups(cells, variants):
        for path, name in PATHS.items():
            attending = [cell for cell in ended if path in cell.attention and cell.attention[path].choosing]
            if not attending:
                continue
            figures = [
                mean_and_error([mean_over_choosing(cell, path, figure) or 0.0 for cell in attending], 2)
                for figure in ("relative_entropy", "effective_contexts", "share_beyond_nearest")
            ]
            contexts = fmean(len(layer.attended) for layer in attending[0].attention[path].choosing)
            figures[1] += f" of {contexts:.1f}"
            rows.append((str(depth), variant, name, *figures, mean_and_error(worth_nats(attending), 2)))
    columns = (
        "entropy, uniform = 1",
        "effective contexts",
        "share beyond the nearest",
        "NELBO with it set to zero, nats more",
    )
    return table(("depth", "attention", "path", *columns), rows)


def cells_table(cells: Sequence[Cell]) -> str:
    """Every cell, whatever came of it; errors are over test images."""
    rows = []
    for cell in cells:
        figures = [MISSING] * 6
        if isinstance(cell, Done):
            test = cell.test
            figures = [
                _with_error(test.nelbo_nats),
                f"{test.iw_nll_nats.value:.3f}",
                f"{test.bits_per_dim.value:.4f}",
                f"{cell.val.nelbo_nats:.3f}",
                f"{cell.training.wall_s:,.0f}",
                f"{cell.parameters:,}",
            ]
        status = f"{cell.status}: {cell.reason}" if cell.reason else cell.status
        rows.append((f"`{cell.id}`", status, *figures))
    columns = (
        "test NELBO, nats",
        f"{_bound_of(done(cells))}, nats",
        "test NELBO, bits/dim",
        "validation NELBO, nats",
        "run, s",
        "parameters",
    )
    return table(("cell", "status", *columns), rows)


def _groups(cells: Sequence[Cell], variants: Sequence[str]) -> list[tuple[int, str, list[Cell], list[Done]]]:
    """The cells of each depth and variant, all and those that have ended."""
    found = []
    for depth in sorted({cell.depth for cell in cells}):
        for variant in variants:
            if group := [cell for cell in cells if (cell.depth, cell.variant) == (depth, variant)]:
                found.append((depth, variant, group, done(group)))
    return found


def _bound_of(cells: Sequence[Done]) -> str:
    """The name of a column: the NELBO of binary images is a mean over more draws of each image."""
    k = ", ".join(map(str, sorted({cell.importance_samples for cell in cells})))
    return f"importance-weighted bound (K = {k or MISSING}, one draw of each image)"


def _with_error(estimate: Estimate) -> str:
    error = estimate.standard_error
    return f"{estimate.value:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _active(kl_nats: Sequence[float]) -> float:
    return float(sum(kl > ACTIVE_NATS for kl in kl_nats))


def _number(cells: Sequence[Done], of: Callable[[Done], float], style: str) -> str:
    return format(fmean(map(of, cells)), style) if cells else MISSING


def _in_a_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
