import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from attvae.seeding import Purpose, generator, generators, latent_noise, pixel_noise, torch_seed, words

SHAPES = [(4, 2, 2), (3, 5, 1), (2, 8, 8)]
word = st.integers(0, 2**64 - 1)
place = st.tuples(st.integers(0, 2**40), st.integers(0, 2**20))


def philox(seed: int, purpose: int, major: int, minor: int) -> np.random.Philox:
    """Key (seed, purpose) and counter (0, 0, minor, major) as whole numbers, the least significant word first."""
    return np.random.Philox(key=seed | purpose << 64, counter=minor << 128 | major << 192)


@given(word, st.sampled_from(Purpose), word, word)
def test_the_stream_is_philox_at_the_place(seed: int, purpose: Purpose, major: int, minor: int) -> None:
    found = generator(seed, purpose, major, minor).bit_generator.random_raw(9)
    assert found.tolist() == philox(seed, purpose, major, minor).random_raw(9).tolist()


@given(word, st.sampled_from(Purpose), st.lists(st.tuples(word, word), min_size=1, max_size=5))
def test_words_are_the_first_of_each_place(seed: int, purpose: Purpose, places: list[tuple[int, int]]) -> None:
    major, minor = (np.array(column, np.uint64) for column in zip(*places, strict=True))
    expected = [philox(seed, purpose, *place).random_raw(4).tolist() for place in places]
    assert words(seed, purpose, major, minor).tolist() == expected


@given(word, st.sampled_from(Purpose), st.lists(st.tuples(word, word), max_size=5), st.integers(0, 9))
def test_one_generator_is_put_at_each_place(
    seed: int, purpose: Purpose, places: list[tuple[int, int]], drawn: int
) -> None:
    """Whatever was drawn before, also half a word of it."""
    found = [
        (at.random(drawn, np.float32).tolist(), at.bit_generator.random_raw(2).tolist())
        for at in generators(seed, purpose, places)
    ]
    expected = []
    for place in places:
        alone = np.random.Generator(philox(seed, purpose, *place))
        expected.append((alone.random(drawn, np.float32).tolist(), alone.bit_generator.random_raw(2).tolist()))
    assert found == expected


def test_the_numbers_are_those_that_runs_were_made_with() -> None:
    """Pinned: other numbers break the exact resume of every run and the comparability of every figure."""
    assert {purpose.name: purpose.value for purpose in Purpose} == {
        "ORDER": 1,
        "AUGMENT": 2,
        "LATENT": 3,
        "EVALUATE": 4,
        "BINARISE": 5,
        "SAMPLE": 6,
        "MODULE": 7,
        "EVALUATE_BINARISE": 8,
        "COMPRESS": 9,
    }
    by_hand = np.random.Generator(philox(7, 3, 1000, 2)).standard_normal(2 * 3 + 4, dtype=np.float32)
    first, second = latent_noise(7, Purpose.LATENT, [(1000, 2)], [(2, 3, 1), (4, 1, 1)])
    assert first.flatten().tolist() == by_hand[:6].tolist()
    assert second.flatten().tolist() == by_hand[6:].tolist()
    assert torch_seed(7, Purpose.MODULE, 5, 6) == np.random.Generator(philox(7, 7, 5, 6)).integers(2**63)


@settings(deadline=None)
@given(st.lists(place, min_size=1, max_size=12), st.data())
def test_a_row_depends_on_its_place_alone(places: list[tuple[int, int]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(range(len(places))), min_size=1))
    whole = latent_noise(1, Purpose.EVALUATE, places, SHAPES)
    part = latent_noise(1, Purpose.EVALUATE, [places[i] for i in chosen], SHAPES)
    for layer_whole, layer_part, shape in zip(whole, part, SHAPES, strict=True):
        assert layer_part.shape == (len(chosen), *shape)
        assert layer_part.dtype == torch.float32
        assert torch.equal(layer_part, layer_whole[chosen])


def test_streams_differ_by_seed_purpose_and_place() -> None:
    coordinates = list(itertools.product(range(6), Purpose, range(6), range(6)))
    firsts = {generator(*c).bit_generator.random_raw() for c in coordinates}
    assert len(firsts) == len(coordinates)
    assert len({torch_seed(*c) for c in coordinates}) == len(coordinates)


@given(word, st.sampled_from(Purpose), word, word)
def test_torch_takes_the_seed(seed: int, purpose: Purpose, major: int, minor: int) -> None:
    found = torch_seed(seed, purpose, major, minor)
    assert 0 <= found < 2**63
    assert torch.Generator().manual_seed(found).initial_seed() == found


@pytest.mark.parametrize("places", [[(i, 0) for i in range(500)], [(3, i) for i in range(500)]])
def test_noise_is_standard_normal_and_independent(places: list[tuple[int, int]]) -> None:
    """500 rows of 40 numbers; the limits are four standard errors."""
    layers = latent_noise(0, Purpose.LATENT, places, [(4, 2, 2), (6, 2, 2)])
    rows = torch.cat([layer.flatten(1) for layer in layers], dim=1).double().numpy()
    n = rows.size
    assert abs(rows.mean()) < 4 / n**0.5
    assert abs((rows**2).mean() - 1) < 4 * (2 / n) ** 0.5
    assert abs((rows**3).mean()) < 4 * (15 / n) ** 0.5
    assert abs((rows**4).mean() - 3) < 4 * (96 / n) ** 0.5
    assert kstest(rows.ravel(), "norm").pvalue > 1e-3
    neighbours = (rows[1:] * rows[:-1]).mean()
    assert abs(neighbours) < 4 / n**0.5
    across_layers = (layers[0].flatten(1)[:, :16] * layers[1].flatten(1)[:, :16]).double().mean().item()
    assert abs(across_layers) < 4 / (500 * 16) ** 0.5


def test_pixel_noise_is_uniform_and_belongs_to_its_place() -> None:
    places = [(i, 1) for i in range(500)]
    rows = pixel_noise(0, Purpose.SAMPLE, places, (2, 4, 5))
    assert rows.shape == (500, 2, 4, 5)
    assert 0 <= rows.min() <= rows.max() < 1
    assert kstest(rows.double().numpy().ravel(), "uniform").pvalue > 1e-3
    torch.testing.assert_close(pixel_noise(0, Purpose.SAMPLE, [places[7]], (2, 4, 5))[0], rows[7], rtol=0, atol=0)
