"""Depth-wise attention as heat maps: a row for each layer, a column for each context or feature it may attend to."""

from pathlib import Path

from attvae.evaluation.chart import PALE, Sheet, labelled, shade
from attvae.evaluation.depth_attention import DepthAttention, LayerAttention
from attvae.evaluation.image_grid import save_png

_TOP, _SIDE = 62, 270
_LEFT = {"decoder": 48, "encoder": 372}
_BAR = (656, 674)


def depth_attention_picture(attention: DepthAttention, layers: int, path: Path) -> None:
    """Writes a PNG. The colours stand for probabilities from 0 to 1 at every step of every run.

    Args:
        layers: of the model, L; those that do not attend have an empty row.
    """
    sheet = Sheet()
    _matrix(sheet, _LEFT["decoder"], attention.decoder, layers, layers, "generative path", "context of layer")
    _matrix(sheet, _LEFT["encoder"], attention.encoder, layers, layers + 1, "inference path", "bottom-up feature")
    left, right = _BAR
    for y in range(_SIDE):
        sheet.box(left, _TOP + y, right, _TOP + y + 1, shade(1 - y / (_SIDE - 1)))
    for value in (0.0, 0.5, 1.0):
        sheet.text(right + 6, _TOP + (1 - value) * (_SIDE - 1), f"{value:g}", "lm")
    sheet.text(718, 8, "probability", "ra")
    save_png(sheet.image, path)


def _matrix(
    sheet: Sheet,
    left: int,
    attending: tuple[LayerAttention, ...],
    rows: int,
    columns: int,
    title: str,
    across: str,
) -> None:
    height, width = _SIDE / rows, _SIDE / columns
    sheet.text(left + _SIDE / 2, 8, title, "ma")
    sheet.text(left - 42, 34, "layer", "la")
    sheet.box(left, _TOP, left + _SIDE, _TOP + _SIDE, PALE)
    for row in attending:
        for column, probability in zip(row.attended, row.probabilities, strict=True):
            x, y = left + column * width, _TOP + row.layer * height
            sheet.box(x, y, x + width, y + height, shade(probability))
    for row_index in labelled(rows, height):
        sheet.text(left - 6, _TOP + (row_index + 0.5) * height, str(row_index), "rm")
    for column in labelled(columns, width):
        sheet.text(left + (column + 0.5) * width, _TOP + _SIDE + 6, str(column), "mt")
    sheet.text(left + _SIDE / 2, _TOP + _SIDE + 32, across, "mt")
    if not attending:
        sheet.text(left + _SIDE / 2, _TOP + _SIDE / 2, "does not attend", "mm")
