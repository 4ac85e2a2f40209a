import copy
import math
from collections.abc import Callable
from contextlib import suppress
from itertools import product

import numpy as np
import pytest
import torch
from compression.conftest import build, images_of

from attvae.compression.bits_back import ImageCoder, Precision
from attvae.compression.stack import Initial, Stack
from attvae.distributions import logistic_mixture
from attvae.model.vae import DeepVAE

KINDS = ["binary", "colour", "published", "two_grids", "grey_16", "five_bits"]


def stack_for(coder: ImageCoder, images: int) -> tuple[Initial, Stack]:
    initial = Initial(0, coder.latents * images + 2)
    return initial, Stack(initial.content())


@pytest.mark.parametrize("kind", KINDS)
def test_every_pixel_comes_back_and_the_net_bits_are_the_bound(kind: str) -> None:
    model = build(kind)
    images = images_of(model, 4 if kind == "grey_16" else 24)
    batches = images.split([1, 3, len(images) - 4])[: 2 if kind == "grey_16" else 3]
    coder = ImageCoder(model, Precision())
    initial, stack = stack_for(coder, 20)
    before, bound_nats = stack.bits, 0.0
    for x in batches:
        coded = coder.encode(x, stack)
        bound_nats += float((coded.nll_nats + coded.log_ratio_nats).sum())
    net, bound = stack.bits - before, bound_nats / math.log(2)
    if kind == "published":  # which gives the value 254 the probability of 255 too: a code can not
        assert bound < net < bound + images.numel()
    else:
        assert net == pytest.approx(bound, rel=0.01)
    for x in reversed(batches):
        assert torch.equal(coder.decode(len(x), stack), x)
    assert (stack.words() == initial.content()).all()


def test_the_bound_is_that_of_the_model() -> None:
    """Over many draws of latents, as bits popped are: against the importance weights that the model computes."""
    model = build("binary")
    x = images_of(model, 8).repeat(40, 1, 1, 1)
    coder = ImageCoder(copy.deepcopy(model), Precision())
    _, stack = stack_for(coder, len(x))
    coded = coder.encode(x, stack)
    drawn = coded.nll_nats + coded.log_ratio_nats
    with torch.no_grad():
        torch.manual_seed(0)
        closed_form = model(x).nelbo_nats.double()
    error = float((drawn.std() ** 2 + closed_form.std() ** 2).sqrt()) / math.sqrt(len(x))
    assert abs(float(drawn.mean() - closed_form.mean())) < 3 * error
    assert error < 0.01 * float(closed_form.mean())


@pytest.mark.parametrize("kind", ["binary", "colour"])
def test_rounding_errors_of_another_machine_do_no_harm(kind: str) -> None:
    """Weights that differ in their last bits stand for sums that are formed in another order."""
    model = build(kind)
    x = images_of(model, 10)
    coder = ImageCoder(copy.deepcopy(model), Precision())
    _, stack = stack_for(coder, 10)
    coder.encode(x, stack)
    words = stack.words()
    assert torch.equal(ImageCoder(disturbed(model, 1e-15), Precision()).decode(10, Stack(words)), x)
    found = None
    with suppress(ValueError):  # a latent from where the posterior has none
        found = ImageCoder(disturbed(model, 1e-4), Precision()).decode(10, Stack(words))
    assert found is None or not torch.equal(found, x)


def disturbed(model: DeepVAE, by: float) -> DeepVAE:
    other = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter *= 1 + by * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return other


def test_a_model_that_computes_nothing_finite_is_refused() -> None:
    model = build("binary")
    with torch.no_grad():
        next(model.decoder.parameters()).fill_(math.nan)
    coder = ImageCoder(model, Precision())
    _, stack = stack_for(coder, 1)
    with pytest.raises(ValueError, match="not finite"):
        coder.encode(images_of(model, 1), stack)


@pytest.mark.parametrize("edges", ["normalised", "published"])
def test_tables_of_pixel_values_add_up_to_the_log_probability(edges: logistic_mixture.Edges) -> None:
    rng = np.random.default_rng(0)
    head = torch.from_numpy(rng.normal(size=(2, logistic_mixture.num_parameters(3, 4), 3, 5)))
    mixture = logistic_mixture.split(head, 3, 4)
    values = torch.from_numpy(rng.integers(256, size=(2, 3, 3, 5)))
    values[0, :, 0] = torch.tensor([0, 254, 255, 1, 128])
    x = values.double() * 2 / 255 - 1
    tables = [logistic_mixture.channel_log_probs(x[:, :c], mixture, 255, edges) for c in range(3)]
    chosen = [table.gather(1, values[:, c : c + 1]) for c, table in enumerate(tables)]
    expected = logistic_mixture.log_prob(x, mixture, 255, edges)
    torch.testing.assert_close(torch.stack(chosen).sum(dim=(0, 2, 3, 4)), expected, rtol=1e-12, atol=0)
    if edges == "normalised":
        for table in tables:
            torch.testing.assert_close(table.logsumexp(dim=1), torch.zeros(2, 3, 5).double(), rtol=0, atol=1e-9)


def test_tables_are_the_conditionals_of_all_images_of_a_tiny_pixel() -> None:
    """Two channels of three values: the joint probabilities of all nine, summed by hand."""
    head = torch.from_numpy(np.random.default_rng(1).normal(size=(1, logistic_mixture.num_parameters(2, 3), 1, 1)))
    mixture = logistic_mixture.split(head, 2, 3)
    joint = torch.zeros(3, 3).double()
    for a, b in product(range(3), repeat=2):
        x = torch.tensor([a - 1.0, b - 1.0]).double().view(1, 2, 1, 1)
        joint[a, b] = logistic_mixture.log_prob(x, mixture, 2, "normalised").exp()
    log_p: Callable[[list[float]], torch.Tensor] = lambda earlier: logistic_mixture.channel_log_probs(  # noqa: E731
        torch.tensor(earlier).double().view(1, -1, 1, 1), mixture, 2, "normalised"
    ).flatten()
    torch.testing.assert_close(log_p([]).exp(), joint.sum(dim=1))
    for a in range(3):
        torch.testing.assert_close(log_p([a - 1.0]).exp(), joint[a] / joint[a].sum())
