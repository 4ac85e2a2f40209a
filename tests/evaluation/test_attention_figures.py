"""Figures of depth-wise attention against closed forms, and its picture by the colours of its pixels."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from torch import Tensor

from attvae.evaluation.chart import ALARM, PALE, SIZE, shade
from attvae.evaluation.depth_attention import DepthAttention, LayerAttention, depth_attention_of
from attvae.evaluation.depth_attention_picture import depth_attention_picture

NO_IMAGES = torch.zeros(0)


class Told:
    """A model whose attentions have these probabilities [n, B, h, w], by name."""

    def __init__(self, probabilities: dict[str, Tensor]) -> None:
        self._probabilities = probabilities
        self._watch: Callable[[str, Tensor], None] | None = None

    def encode(self, x: Tensor, noise: list[Tensor]) -> list[Tensor]:
        assert self._watch is not None
        for name, probabilities in self._probabilities.items():
            self._watch(name, probabilities)
        return []

    @contextmanager
    def watched_depth_attention(self, watch: Callable[[str, Tensor], None]) -> Iterator[None]:
        self._watch = watch
        yield


def maps(rows: list[list[float]]) -> Tensor:
    """Each row is a pixel's distribution; the pixels alternate over two images of 2 x 2."""
    return torch.tensor([rows[i % len(rows)] for i in range(8)]).view(2, 2, 2, -1).permute(3, 0, 1, 2)


def figures(**rows: list[list[float]]) -> DepthAttention:
    return depth_attention_of(Told({name.replace("__", "/"): maps(each) for name, each in rows.items()}), NO_IMAGES, [])


def test_attention_alike_to_all_and_to_one() -> None:
    found = figures(
        decoder__layer_01=[[1.0]],
        decoder__layer_02=[[0.5, 0.5]],
        decoder__layer_03=[[1 / 3] * 3],
        encoder__layer_00=[[0.0, 0.0, 1.0]],
        encoder__layer_01=[[1.0, 0.0]],
    )
    assert [layer.entropy_nats for layer in found.decoder] == pytest.approx([0, math.log(2), math.log(3)], abs=1e-6)
    assert found.metrics() == pytest.approx(
        {
            "attention/entropy_decoder": 1.0,
            "attention/distance_decoder": (1.5 + 2.0) / 2,  # layer 1 has no choice
            "attention/entropy_encoder": 0.0,
            "attention/distance_encoder": (2 + 0) / 2,
        },
        abs=1e-6,
    )


def test_the_entropy_is_that_of_the_pixels_not_of_their_mean() -> None:
    """Every pixel is sure, half of them of another context: a mean of 1/2 each, and no entropy."""
    found = figures(decoder__layer_02=[[1.0, 0.0], [0.0, 1.0]])
    [layer] = found.decoder
    assert layer.probabilities == (0.5, 0.5)
    assert layer.entropy_nats == 0
    assert found.metrics() == {"attention/entropy_decoder": 0.0, "attention/distance_decoder": 1.5}


def test_entropy_and_mean_of_any_distribution() -> None:
    rows = torch.softmax(torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    [layer] = figures(encoder__layer_02=rows.tolist()).encoder
    assert layer.attended == range(2, 7)
    assert layer.entropy_nats == pytest.approx(scipy.stats.entropy(rows.numpy(), axis=1).mean(), rel=1e-5)
    np.testing.assert_allclose(layer.probabilities, rows.mean(dim=0), rtol=1e-6)
    assert layer.distance == pytest.approx(rows.numpy().mean(axis=0) @ np.arange(5), rel=1e-6)


def test_how_far_and_how_many() -> None:
    """Closed forms of effective contexts, distance and shares; what is nearest differs between the paths."""
    found = figures(decoder__layer_03=[[0.5, 0.25, 0.25]], encoder__layer_01=[[0.4, 0.0, 0.6]])
    [above], [below] = found.decoder, found.encoder
    entropy = 0.5 * math.log(2) + 0.5 * math.log(4)
    assert above.as_json() == pytest.approx(
        {
            "layer": 3,
            "contexts": 3,
            "entropy_nats": entropy,
            "relative_entropy": entropy / math.log(3),
            "effective_contexts": 2**1.5,
            "distance": 0.5 * 3 + 0.25 * 2 + 0.25 * 1,
            "share_beyond_nearest": 0.75,
            "most_attended": 0,
            "share_of_most_attended": 0.5,
        },
        rel=1e-6,
    )
    assert (below.most_attended, below.share_beyond_nearest) == (3, pytest.approx(0.6))
    assert below.distance == pytest.approx(1.2)
    assert below.effective_contexts == pytest.approx(0.4**-0.4 * 0.6**-0.6)
    alpha = found.as_json(4)["decoder"]["alpha"]
    assert alpha == [[0] * 4, [0] * 4, [0] * 4, pytest.approx([0.5, 0.25, 0.25, 0])]
    assert found.as_json(4)["encoder"]["alpha"][1] == pytest.approx([0, 0.4, 0, 0.6, 0])


def test_paths_without_a_choice_have_no_figures() -> None:
    assert figures().metrics() == {}
    assert figures(decoder__layer_01=[[1.0]]).metrics() == {}


def drawn(attention: DepthAttention, layers: int, folder: Path) -> Image.Image:
    depth_attention_picture(attention, layers, folder / "a.png")
    with Image.open(folder / "a.png") as picture:
        return picture.convert("RGB")


def test_each_cell_has_the_colour_of_its_probability(tmp_path: Path) -> None:
    attention = DepthAttention(
        decoder=(LayerAttention(1, range(1), (1.0,), 0.0), LayerAttention(2, range(2), (0.2, 0.8), 0.5)),
        encoder=(
            LayerAttention(0, range(4), (0.1, 0.2, 0.3, 0.4), 1.0),
            LayerAttention(1, range(1, 4), (0.25, 0.5, 0.25), 1.0),
            LayerAttention(2, range(2, 4), (math.nan, 0.0), math.nan),
        ),
    )
    picture = drawn(attention, 3, tmp_path)
    assert picture.size == SIZE == drawn(attention, 40, tmp_path).size

    def cells(left: int, columns: int) -> list[list[tuple[int, ...]]]:
        return [
            [picture.getpixel((left + int((c + 0.5) * 270 / columns), 62 + 90 * row + 45)) for c in range(columns)]
            for row in range(3)
        ]

    assert cells(48, 3) == [[PALE, PALE, PALE], [shade(1.0), PALE, PALE], [shade(0.2), shade(0.8), PALE]]
    assert cells(372, 4) == [
        [shade(0.1), shade(0.2), shade(0.3), shade(0.4)],
        [PALE, shade(0.25), shade(0.5), shade(0.25)],
        [PALE, PALE, ALARM, shade(0.0)],
    ]
    bar = [picture.getpixel((665, y)) for y in range(62, 332)]
    assert (bar[0], bar[-1]) == (shade(1.0), shade(0.0))


def test_a_path_that_does_not_attend_says_so(tmp_path: Path) -> None:
    one_path = DepthAttention(decoder=(), encoder=(LayerAttention(0, range(2), (0.5, 0.5), 0.7),))
    picture = np.asarray(drawn(one_path, 1, tmp_path))
    panel = picture[62:332, 48:318]
    assert (panel == PALE).all(axis=2).mean() > 0.9
    assert (panel.max(axis=2) < 100).any(), "words"


def test_shades_rise_in_lightness_and_stay_apart_from_what_is_no_number() -> None:
    """The lightness of CIELAB is a function of the luminance of sRGB, which is computed here."""
    rgb = np.array([shade(value) for value in np.linspace(0, 1, 101)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()
    assert luminance[-1] > 10 * luminance[0]
    assert shade(math.nan) == shade(-0.1) == shade(1.1) == ALARM
    assert ALARM not in {shade(value) for value in np.linspace(0, 1, 1001)}
    assert shade(1.0000001) == shade(1.0), "a sum of rounded numbers"
