"""The curves of all metrics of some runs, in groups that open and close."""

from collections.abc import Sequence
from html import escape

from attvae.pages.curves import By, curves, extent_of, frame, style_of
from attvae.tracking.run import Run

_GROUPS = ("val", "train", "kl", "val_kl", "attention", "perf", "data", "system")
_OPEN = ("val", "train")  # other groups wait until they are asked for
_IN_TABLES = ("test",)  # one value a run makes no curve
_FIRST = ("nelbo_nats", "bits_per_dim", "nll_nats", "kl_nats", "active_layers", "images_per_s")


def curve_tiles(runs: Sequence[Run], by: Sequence[By]) -> str:
    """
    Args:
        by: what the curves may go along; with two, radio buttons of these names choose.
    """
    groups: dict[str, list[str]] = {group: [] for group in _GROUPS}
    for metric in sorted({metric for run in runs for metric in run.metrics}, key=_place):
        groups.setdefault(metric.partition("/")[0], []).append(metric)
    extent = extent_of(runs)
    parts = [_bar(runs) if len(by) > 1 else "", frame()]
    for group, metrics in groups.items():
        if not metrics or group in _IN_TABLES:
            continue
        opened = " open" if group in _OPEN else ""
        parts.append(f'<details class="group" data-group="{escape(group)}"{opened}><summary>{escape(group)}/</summary>')
        parts.append('<div class="tiles">')
        for metric in metrics:
            drawn = "".join(curves(metric, runs, along, extent) for along in by)
            parts.append(f"<figure><figcaption>{escape(metric)}</figcaption>{drawn}</figure>")
        parts.append("</div></details>")
    return "\n".join(filter(None, parts))


def _bar(runs: Sequence[Run]) -> str:
    keys = (
        f'<li><svg class="key" viewBox="0 0 40 10" aria-hidden="true"><polyline {style_of(index)} points="1,5 39,5"/>'
        f"</svg>{escape(run.name)}</li>"
        for index, run in enumerate(runs)
    )
    return (
        '<div class="bar"><fieldset><legend>by</legend>'
        '<label><input type="radio" name="by" id="by-samples" checked> samples seen</label> '
        '<label><input type="radio" name="by" id="by-time"> time</label></fieldset>'
        f'<ul class="legend">{"".join(keys)}</ul></div>'
    )


def _place(metric: str) -> tuple[int, str]:
    figure = metric.partition("/")[2]
    return _FIRST.index(figure) if figure in _FIRST else len(_FIRST), metric
