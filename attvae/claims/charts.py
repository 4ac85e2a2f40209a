"""Charts of a study as small PNG files: one colour and mark for each variant, on every chart of it."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from attvae.claims.attention_verdicts import PATHS
from attvae.claims.race import mean_curve
from attvae.claims.results import Done, Unit, strata
from attvae.evaluation.elbo import ACTIVE_NATS

_LOOKS = (
    ("#000000", "o"),
    ("#e69f00", "^"),
    ("#009e73", "v"),
    ("#0072b2", "s"),
    ("#cc79a7", "D"),
    ("#d55e00", "P"),
    ("#56b4e9", "X"),
)
"""Okabe and Ito's colours, which the colour-blind tell apart, and marks for those who see none."""

_FEW = 128
"""Colours of a file: enough for lines, and half of the bytes."""
_EARLY = 0.25
"""Of a training: its NELBOs may lie above the frame of a chart of curves."""
_LEAST_KL = 1e-3
"""In nats: a KL below lies on the axis."""


class Side(NamedTuple):
    """The cells of one variant in a chart of curves."""

    variant: str
    cells: Sequence[Done]


def nelbo_chart(cells: Sequence[Done], variants: Sequence[str], unit: Unit, path: Path) -> None:
    """Test NELBO against depth: a dot for each training, a line through the means of a variant."""
    figure = Figure((7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    depths = sorted({cell.depth for cell in cells})
    for variant, (colour, mark), shift in _looks(variants, cells):
        own = [cell for cell in cells if cell.variant == variant]
        places = [depths.index(cell.depth) + shift for cell in own]
        axes.plot(places, [cell.nelbo(unit) for cell in own], mark, color=colour, ms=4, alpha=0.45, mew=0)
        at = [depth for depth in depths if any(cell.depth == depth for cell in own)]
        means = [np.mean([cell.nelbo(unit) for cell in own if cell.depth == depth]) for depth in at]
        axes.plot([depths.index(depth) + shift for depth in at], means, f"{mark}-", color=colour, ms=7, label=variant)
    axes.set_xticks(range(len(depths)), [str(depth) for depth in depths])
    axes.set_xlabel("depth, latent layers")
    axes.set_ylabel(f"test NELBO, {_per_image(unit)}")
    _finish(axes)
    axes.legend(title="attention", frameon=False)
    _save(figure, path)


def curves_chart(baseline: Side, attentive: Side, variants: Sequence[str], unit: Unit, path: Path) -> None:
    """Validation NELBO against samples and against seconds of training: a column for each depth of both."""
    groups = strata(baseline.cells, attentive.cells)
    figure = Figure((max(4.5, 0.8 + 2.9 * len(groups)), 5.4), layout="constrained")
    grid = figure.subplots(2, len(groups), squeeze=False, sharey="row")
    late = [
        nats * cell.per_nat(unit)
        for group in groups
        for cell in [*group.baseline, *group.attentive]
        for samples, nats in cell.curve
        if samples >= _EARLY * cell.samples
    ]
    margin = 0.04 * (max(late) - min(late)) or 0.5
    looks = {variant: look for variant, look, _ in _looks(variants, [*baseline.cells, *attentive.cells])}
    for column, group in enumerate(groups):
        for row, unit_of_x in enumerate(("thousand samples seen", "seconds of training")):
            axes = grid[row][column]
            for variant, cells in ((baseline.variant, group.baseline), (attentive.variant, group.attentive)):
                colour, _ = looks[variant]
                cost = [1e-3 if row == 0 else cell.training.s_per_image for cell in cells]
                for cell, each in zip(cells, cost, strict=True):
                    samples, nats = np.array(cell.curve, dtype=float).T
                    axes.plot(samples * each, nats * cell.per_nat(unit), color=colour, lw=0.7, alpha=0.5)
                samples, nats = mean_curve(cells)
                to_unit = np.mean([cell.per_nat(unit) for cell in cells])
                axes.plot(samples * np.mean(cost), nats * to_unit, color=colour, lw=2, label=variant)
            axes.set_ylim(min(late) - margin, max(late) + margin)
            axes.set_xlabel(unit_of_x)
            axes.set_title(f"{group.depth} layers" if row == 0 else "")
            _finish(axes)
    for row in grid:
        row[0].set_ylabel(f"validation NELBO,\n{_per_image(unit)}")
    grid[0][-1].legend(title="attention", frameon=False)
    _save(figure, path)


def kl_chart(cells: Sequence[Done], variants: Sequence[str], path: Path) -> None:
    """KL of each layer: a panel for each depth, a dot for each training, a line through a variant's means."""
    depths = sorted({cell.depth for cell in cells})
    figure = Figure((max(4.5, 0.8 + 2.9 * len(depths)), 3.6), layout="constrained")
    panels = figure.subplots(1, len(depths), squeeze=False, sharey=True)[0]
    for axes, depth in zip(panels, depths, strict=True):
        for variant, (colour, mark), shift in _looks(variants, cells):
            own = [cell.test.kl_nats_per_layer for cell in cells if (cell.depth, cell.variant) == (depth, variant)]
            if not own:
                continue
            kl = np.maximum(np.array(own), _LEAST_KL)
            layers = np.arange(depth) + shift
            axes.plot(np.tile(layers, len(kl)), kl.ravel(), mark, color=colour, ms=3.5, alpha=0.45, mew=0)
            axes.plot(layers, np.maximum(np.mean(own, axis=0), _LEAST_KL), "-", color=colour, lw=1.6)
            axes.plot([], [], f"{mark}-", color=colour, label=variant)
        axes.axhline(ACTIVE_NATS, color="#666666", lw=1, ls="--")
        axes.axvline(max(1, depth // 2) - 0.5, color="#bbbbbb", lw=1, ls=":")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xticks(range(0, depth, max(1, depth // 8)))
        axes.set_xlim(-0.5, depth - 0.5)
        axes.set_xlabel("layer, 0 on top")
        axes.set_title(f"{depth} layers")
        _finish(axes)
    panels[0].set_ylabel("KL, nats per image")
    handles, names = max((axes.get_legend_handles_labels() for axes in panels), key=lambda each: len(each[1]))
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 2 * len(panels)), frameon=False)
    _save(figure, path)


def attention_chart(cells: Sequence[Done], path: Path) -> None:
    """α(m→l), mean over trainings of one depth: of each path, a row for each layer l, a column for each context m."""
    depth = cells[0].depth
    paths = [name for name in PATHS if all(name in cell.attention for cell in cells)]
    figure = Figure((0.8 + 4.2 * len(paths), 4.2), layout="compressed")
    panels = figure.subplots(1, len(paths), squeeze=False)[0]
    for axes, name in zip(panels, paths, strict=True):
        columns = depth if name == "decoder" else depth + 1
        alpha = np.full((len(cells), depth, columns), np.nan)
        for index, cell in enumerate(cells):
            for layer in cell.attention[name].layers:
                alpha[index, layer.layer, layer.attended] = layer.probabilities
        mean = alpha.mean(axis=0)
        image = axes.imshow(mean, cmap="viridis", vmin=0, vmax=1)
        if depth <= 8:
            for (row, column), p in np.ndenumerate(mean):
                if np.isfinite(p):
                    axes.text(
                        column,
                        row,
                        f"{p:.2f}".removeprefix("0"),
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="black" if p > 0.6 else "white",
                    )
        axes.set_facecolor("#e8e8e8")
        axes.set_xticks(range(0, columns, max(1, columns // 8)))
        axes.set_yticks(range(0, depth, max(1, depth // 8)))
        axes.set_title(f"{PATHS[name]} path")
        axes.set_xlabel("context of layer m" if name == "decoder" else "bottom-up feature m")
        axes.set_ylabel("layer l, 0 on top")
    figure.colorbar(image, ax=list(panels), label="attention probability", shrink=0.8)
    _save(figure, path, colours=256)


def _looks(variants: Sequence[str], cells: Sequence[Done]) -> list[tuple[str, tuple[str, str], float]]:
    """Of each variant that has cells: its colour and mark, which the study's order gives, and a shift along x."""
    there = [variant for variant in variants if any(cell.variant == variant for cell in cells)]
    looks = {variant: _LOOKS[index % len(_LOOKS)] for index, variant in enumerate(variants)}
    shifts = (np.arange(len(there)) - (len(there) - 1) / 2) * 0.1
    return [(variant, looks[variant], float(shift)) for variant, shift in zip(there, shifts, strict=True)]


def _per_image(unit: Unit) -> str:
    return "nats per image" if unit == "nats" else unit


def _finish(axes: Axes) -> None:
    axes.grid(axis="y", color="#e4e4e4", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path, colours: int = _FEW) -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    Image.open(drawn).convert("RGB").quantize(colours).save(path, format="PNG", optimize=True)
