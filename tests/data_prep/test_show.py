from pathlib import Path

import numpy as np
import pytest
from array_images import ArrayImages, array_dataset
from PIL import Image

from data_prep.show import show
from data_prep.writer import prepare


def draw(tmp_path: Path, images: ArrayImages, count: int, max_value: int = 255) -> np.ndarray:
    prepare(array_dataset(images, max_value=max_value), tmp_path / "images")
    show(tmp_path / "images", tmp_path / "pictures" / "grid.png", "val", count)
    return np.asarray(Image.open(tmp_path / "pictures" / "grid.png"))


def test_a_grid_of_evenly_spread_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """64×64 pixels each, with 4 between them."""
    pixels = np.random.default_rng(0).integers(0, 256, (13, 32, 32, 3), dtype=np.uint8)
    grid = draw(tmp_path, ArrayImages(pixels), 4)
    assert grid.shape == (140, 140, 3)
    places = [(4, 4), (4, 72), (72, 4), (72, 72)]
    found = [grid[row : row + 64 : 2, column : column + 64 : 2] for row, column in places]
    assert np.array_equal(found, pixels[[0, 4, 8, 12]])
    assert "grid.png: 4 of 13 images of val, 140×140 pixels" in capsys.readouterr().out


def test_grey_levels_are_stretched_and_labels_are_written_below(tmp_path: Path) -> None:
    pixels = np.array([0, 16, 0], np.uint8).reshape(3, 1, 1, 1).repeat(8, 1).repeat(8, 2)
    grid = draw(tmp_path, ArrayImages(pixels, label="seven"), 64, max_value=16)
    assert grid.shape == (4 + 2 * (64 + 14 + 4), 140, 3)
    assert (grid[4:68, 4:68] == 0).all()
    assert (grid[4:68, 72:136] == 255).all()
    assert (grid[68:82, 4:68] > 200).any()
    without = draw(tmp_path / "without", ArrayImages(pixels), 64, max_value=16)
    assert without.shape == (140, 140, 3)


def test_transparent_images_show_the_ground(tmp_path: Path) -> None:
    pixels = np.full((3, 64, 64, 4), 255, np.uint8)
    pixels[:, :, 32:, 3] = 0
    grid = draw(tmp_path, ArrayImages(pixels), 1)
    assert (grid[4:68, 4:36] == 255).all()
    assert (grid[4:68, 36:68] == grid[0, 0]).all()


def test_images_that_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has images of 2 channels: 1, 3 or 4 can be drawn"):
        draw(tmp_path, ArrayImages(np.zeros((3, 4, 4, 2), np.uint8)), 4)
