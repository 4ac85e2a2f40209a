import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from attvae.evaluation.chart import ALARM
from attvae.evaluation.image_grid import draw_grid, save_png, seen
from attvae.evaluation.reconstructions import reconstruction_grid
from attvae.evaluation.samples import sample_grid


class NoiseAsImage(nn.Module):
    """Draws its first latent layer, thresholded; reconstructs by inverting."""

    latent_shapes = ((1, 8, 8), (2, 4, 4))

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def sample(self, n: int, temperature: float, noise: list[Tensor]) -> Tensor:
        assert [tuple(eps.shape) for eps in noise] == [(n, 1, 8, 8), (n, 2, 4, 4)]
        return (temperature * noise[0] + self.bias > 0.5).to(torch.uint8)

    def reconstruct(self, x: Tensor, noise: list[Tensor]) -> Tensor:
        return 1 - x


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_tiles_stand_in_reading_order_enlarged_without_smoothing():
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = draw_grid(images, 255)
    assert picture.size == (3 * 66 + 2, 2 * 66 + 2)
    for index in range(5):
        x, y = index % 3 * 66 + 2, index // 3 * 66 + 2
        tile = picture.crop((x, y, x + 64, y + 64)).resize((8, 8), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(np.asarray(tile), images[index].permute(1, 2, 0).numpy())
        assert len(set(picture.crop((x, y, x + 8, y + 8)).get_flattened_data())) == 1


@pytest.mark.parametrize(
    ("white", "dtype", "values", "grey"),
    [
        (1, torch.uint8, [0, 1, 1, 0], [0, 255, 255, 0]),
        (31, torch.uint8, [0, 31, 30, 1], [0, 255, 247, 8]),
        (255, torch.uint8, [0, 1, 1, 0], [0, 1, 1, 0]),
        (1000, torch.uint16, [0, 1000, 500, 999], [0, 255, 128, 255]),
    ],
)
def test_values_are_shown_up_to_white(white: int, dtype: torch.dtype, values: list[int], grey: list[int]):
    picture = draw_grid(torch.tensor(values, dtype=dtype).reshape(1, 1, 2, 2), white)
    found = [picture.getpixel((2 + x, 2 + y)) for y in (0, 32) for x in (0, 32)]
    assert found == [(each,) * 3 for each in grey]


def test_images_of_any_number_of_channels():
    image = torch.tensor([10.0, 20.0, 30.0, 40.0])[:, None, None]
    shown = [seen(image[:channels], 255)[0, 0].tolist() for channels in (1, 2, 3, 4)]
    assert shown == [[10, 10, 10], [10, 20, 0], [10, 20, 30], [10, 20, 30]]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_a_number_is_orange(value: float):
    image = torch.tensor([[[0.5, value]]])
    assert seen(image, 1)[0].tolist() == [[128, 128, 128], list(ALARM)]


def test_large_images_keep_their_size():
    assert draw_grid(torch.zeros(1, 1, 100, 80, dtype=torch.uint8), 255).size == (84, 104)


def test_no_image():
    with pytest.raises(ValueError, match=r"cannot draw images of shape"):
        draw_grid(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), 1)


def test_samples_depend_on_seed_and_temperature_only(tmp_path):
    model = NoiseAsImage()
    for name, seed, temperature in (("a", 0, 1.0), ("b", 0, 1.0), ("c", 1, 1.0), ("d", 0, 0.1)):
        sample_grid(model, 9, seed, temperature, 1, tmp_path / "images" / f"{name}.png")
    a, b, c, d = (pixels(tmp_path / "images" / f"{name}.png") for name in "abcd")
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    assert (d == 255).sum() < (a == 255).sum()


def test_more_samples_leave_the_first_as_they_were(tmp_path):
    sample_grid(NoiseAsImage(), 1, 0, 1.0, 1, tmp_path / "one.png")
    sample_grid(NoiseAsImage(), 4, 0, 1.0, 1, tmp_path / "four.png")
    np.testing.assert_array_equal(pixels(tmp_path / "one.png")[2:66, 2:66], pixels(tmp_path / "four.png")[2:66, 2:66])


def test_reconstructions_stand_right_of_the_originals_under_labels(tmp_path):
    x = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    x[:, :, :, :4] = 1
    reconstruction_grid(NoiseAsImage(), x, [], 1, tmp_path / "r.png")
    picture = pixels(tmp_path / "r.png")
    width = picture.shape[1]
    left, right = picture[34:98, 2:66, 0], picture[34:98, width - 132 : width - 68, 0]
    assert (left[:, :32] == 255).all()
    assert (left[:, 32:] == 0).all()
    np.testing.assert_array_equal(right, 255 - left)
    label = picture[:32, :, 0]
    assert (label[:, : width // 2] < 128).any()
    assert (label[:, width // 2 :] < 128).any()


def test_a_failed_write_leaves_the_old_picture(tmp_path):
    path = tmp_path / "p.png"
    save_png(Image.new("L", (4, 4), 7), path)

    class FullDisk(Image.Image):
        def save(self, fp, format=None, **params):
            fp.write_bytes(b"\x89PNG half")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        save_png(FullDisk(), path)
    assert (pixels(path) == 7).all()
