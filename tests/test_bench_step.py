"""The contenders of `attvae bench step` compute what they are said to compute."""

import pytest
import torch
from torch import nn

from attvae.bench import step
from attvae.bench.nvae_cells import Cell, SpectralRegularisation, encoder_cell, generative_cell, with_nvae_cells
from attvae.model.batch_norm import BatchNorm
from attvae.model.layers import WeightNormConv2d
from attvae.model.vae import DeepVAE

SMALL = step.attentive(4, 4, key_dim=4).model_copy(update={"num_layers": 2})
BATCH = 2


def losses_and_gradients(contender: step.Contender) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=generator)
    noise = [torch.randn(BATCH, *shape, generator=generator) for shape in contender.model.latent_shapes]
    contender.step(x, noise)
    with contender.conditions():
        loss = contender.loss(x, noise).detach()
    return loss, *(p.grad for p in contender.model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "conditions",
    [step._weight_norm_by_torch, step._layer_norm_gelu_by_torch, step._channels_first, step._plain_likelihood],
)
def test_the_other_forms_compute_the_same(conditions) -> None:
    torch.manual_seed(0)
    model = DeepVAE(SMALL, step.SPEC)
    plain = step._plain(model)
    expected = losses_and_gradients(plain)
    found = losses_and_gradients(plain._replace(conditions=conditions))
    assert len(found) == len(expected) == 1 + len([*model.parameters()])
    one, other = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (found, expected))
    assert (one - other).norm() <= 1e-5 * other.norm()


def test_sizes_are_those_of_the_goal() -> None:
    with torch.device("meta"):
        parameters = [
            sum(p.numel() for p in DeepVAE(config, step.SPEC).parameters())
            for config in (step.attentive(), step.attentive(32, 32, key_dim=None))
        ]
    assert all(5_000_000 <= count <= 6_000_000 for count in parameters)
    assert parameters[1] == pytest.approx(parameters[0], rel=0.01)
    assert step.attentive().latent_shapes(step.SPEC) == [(20, 16, 16)] * 16


def test_nvaes_generative_cell_is_made_of_torchs_layers() -> None:
    """The same cell out of torch's own layers, with its kernels."""
    torch.manual_seed(0)
    cell = generative_cell(8)
    norms = [m for m in cell.modules() if isinstance(m, BatchNorm)]
    convs = [m for m in cell.modules() if isinstance(m, WeightNormConv2d)]
    assert [tuple(conv.v.shape) for conv in convs[:3]] == [(48, 8, 1, 1), (48, 1, 5, 5), (8, 48, 1, 1)]
    assert len(norms) == 4
    layers = nn.Sequential(
        nn.BatchNorm2d(8, eps=1.001e-5),
        nn.Conv2d(8, 48, 1),
        nn.BatchNorm2d(48, eps=1.001e-5),
        nn.SiLU(),
        nn.Conv2d(48, 48, 5, padding=2, groups=48),
        nn.BatchNorm2d(48, eps=1.001e-5),
        nn.SiLU(),
        nn.Conv2d(48, 8, 1),
        nn.BatchNorm2d(8, eps=1.001e-5),
    )
    for theirs, ours in zip([m for m in layers if isinstance(m, nn.Conv2d)], convs, strict=False):
        theirs.weight.data, theirs.bias.data = ours.kernel().detach(), ours.bias.detach()
    x = torch.randn(3, 8, 6, 6)
    y = layers(x)
    gate = torch.sigmoid(convs[4](convs[3](y.mean(dim=(2, 3), keepdim=True)).relu()))
    torch.testing.assert_close(cell(x), x + 0.1 * y * gate)


def test_nvaes_cells_replace_all_of_the_latent_layers() -> None:
    model = with_nvae_cells(DeepVAE(SMALL, step.SPEC))
    assert sum(isinstance(module, Cell) for module in model.modules()) == 2 * (2 + 1)
    assert losses_and_gradients(step._plain(model))[0].isfinite()


def test_spectral_regularisation_finds_the_largest_singular_values() -> None:
    torch.manual_seed(0)
    cell = encoder_cell(6)
    penalty = SpectralRegularisation(cell)
    x = torch.randn(2, 6, 4, 4)
    for _ in range(200):
        cell(x)
        found = penalty()
    kernels = [m.kernel().detach() for m in cell.modules() if isinstance(m, WeightNormConv2d)]
    expected = sum(torch.linalg.matrix_norm(kernel.flatten(1), ord=2) for kernel in kernels)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-3, atol=0)


def test_bad_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="batch=0"):
        step.measure_step(0, 1)
