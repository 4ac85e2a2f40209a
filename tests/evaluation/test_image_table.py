import numpy as np
import pytest
import torch
from PIL import Image

from attvae.evaluation.chart import ALARM, shade, shades
from attvae.evaluation.image_table import Scale, draw_table, heat, marked, tile


def test_tiles_have_their_colours_enlarged_without_smoothing() -> None:
    image = torch.tensor([[[0.0, 8.0], [16.0, 20.0]]])
    picture = tile(image, 16)
    assert picture.size == (64, 64)
    assert [picture.getpixel((x, y)) for y in (10, 50) for x in (10, 50)] == [
        (0,) * 3,
        (128,) * 3,
        (255,) * 3,
        (255,) * 3,
    ]
    assert len(set(picture.get_flattened_data())) == 3
    colour = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    np.testing.assert_array_equal(np.asarray(tile(colour, 255)), colour.permute(1, 2, 0))


def test_heat_maps_have_the_shades_of_their_numbers() -> None:
    picture = heat(torch.tensor([[0.0, 0.4], [1.0, float("nan")]]))
    assert [picture.getpixel((x, y)) for y in (10, 50) for x in (10, 50)] == [shade(0), shade(0.4), shade(1), ALARM]
    np.testing.assert_array_equal(shades(np.array([[0.3], [0.9]])), [[shade(0.3)], [shade(0.9)]])


def test_a_mark_is_a_ring_at_its_place() -> None:
    plain = tile(torch.full((1, 8, 8), 0.5), 1)
    ring = np.abs(np.asarray(marked(plain, (0.25, 0.75), (2, 4))).astype(int) - np.asarray(plain)).sum(axis=2) > 0
    y, x = np.nonzero(ring)
    assert (y.mean(), x.mean()) == pytest.approx((16, 56), abs=0.6), "the middle of row 0 of 2 and of column 3 of 4"
    assert not ring[16, 56]
    assert not ring[:, :32].any()
    assert len(set(plain.get_flattened_data())) == 1, "the original is left alone"


def places_of(picture: Image.Image, colour: tuple[int, ...]) -> tuple[int, int, int, int]:
    y, x = np.nonzero((np.asarray(picture) == colour).all(axis=2))
    return int(x.min()), int(y.min()), int(x.max()), int(y.max())


def test_cells_stand_in_their_rows_and_columns_and_nothing_overlaps() -> None:
    colours = {(r, c): (200, 40 * r, 40 * c) for r in range(3) for c in range(4)}
    rows = [(f"row {r}", [Image.new("RGB", (64, 64), colours[r, c]) for c in range(4)]) for r in range(3)]
    bare = draw_table("t", ["a", "b", "c", "d"], rows)
    boxes = {place: places_of(bare, colour) for place, colour in colours.items()}
    for (r, c), (left, top, right, bottom) in boxes.items():
        assert (right - left, bottom - top) == (63, 63)
        if c < 3:
            assert right < boxes[r, c + 1][0]
        if r < 2:
            assert bottom < boxes[r + 1, c][1]
    more = draw_table("t", ["a", "b", "c", "d"], rows, notes=["one", "two"], scale=Scale("0", "1", "unit"))
    assert more.height == bare.height + 3 * 20
    assert places_of(more, shade(1.0))[1] > boxes[2, 0][3], "the scale is below"


def test_long_names_and_notes_widen_the_picture_instead_of_being_cut() -> None:
    cell = Image.new("RGB", (8, 8))
    narrow = draw_table("t", ["a"], [("r", [cell])])
    for wider in (
        draw_table("t" * 60, ["a"], [("r", [cell])]),
        draw_table("t", ["a" * 60], [("r", [cell])]),
        draw_table("t", ["a"], [("r" * 60, [cell])]),
        draw_table("t", ["a"], [("r", ["x" * 60])]),
        draw_table("t", ["a"], [("r", [cell])], notes=["n" * 60]),
        draw_table("t", ["a"], [("r", [cell])], scale=Scale("0", "1", "s" * 60)),
    ):
        assert wider.width > narrow.width + 150
        right = np.asarray(wider)[:, -3:]
        assert (right == 255).all(), "a margin is left"
