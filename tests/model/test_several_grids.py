"""A hierarchy on several grids: against attention written anew with torch's own resizing, and its gradients, causality
and cost."""

from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from evaluation.small_model import small_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attvae.model import grids, vae
from attvae.model.depth_attention import DecoderAttention, EncoderAttention, Slot
from attvae.model.kept import kept_bytes
from attvae.model.vae import DeepVAE
from attvae.model.variational_layer import Draw, Given, Infer, Layer
from attvae.objective import training_loss
from attvae.spec import DataSpec

COLOUR = DataSpec(height=16, width=32, channels=3, num_bits=8, max_value=255)
LAYERS, COARSER = 6, [1, 2]
ON_GRID = [2, 1, 1, 0, 0, 0]
IMAGES = 3
PLAIN = {"key_dim": 4, "layer_norm": False, "scale": "learned"}
PATHS = ("decoder_attention", "encoder_attention")


def model_of(**changes: Any) -> DeepVAE:
    return small_model(COLOUR, **{"num_layers": LAYERS, "coarser_layers": COARSER, **changes})


def images(seed: int = 0) -> Tensor:
    return torch.randint(256, (IMAGES, *COLOUR.shape), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def noise_of(model: DeepVAE) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(IMAGES, *shape, generator=generator) for shape in model.latent_shapes]


# ----------------------------------------------------------------------------------------------- against torch alone


class Attended(NamedTuple):
    """What went into an attention, and what came out."""

    module: DecoderAttention | EncoderAttention
    arguments: tuple[Any, ...]
    output: Tensor


def attention(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    scores = torch.einsum("bkhw,nbkhw->nbhw", query, torch.stack(keys)) / query.shape[1] ** 0.5
    return torch.einsum("nbhw,nbchw->bchw", scores.softmax(0), torch.stack(values))


def ran(model: DeepVAE) -> tuple[list[Tensor], list[Layer], dict[str, Attended]]:
    """The features e_0 ... e_L as the encoder gives them, the layers, and what each attention did."""
    found: dict[str, Attended] = {}
    hooks = [
        module.register_forward_hook(
            lambda module, arguments, output, name=name: found.update({name: Attended(module, arguments, output)})
        )
        for name, module in model.named_modules()
        if isinstance(module, DecoderAttention | EncoderAttention)
    ]
    features: list[Tensor] = []
    hooks.append(model.encoder.register_forward_hook(lambda module, arguments, output: features.extend(output)))
    seen, contexts, layers = model.features(images()), [], []
    for i, eps in enumerate(noise_of(model)):
        layers.append(model.layer(i, contexts, layers[-1].z if layers else None, Infer(seen[i], eps)))
    for hook in hooks:
        hook.remove()
    return features, layers, found


@pytest.mark.parametrize("coarser", [[], [2], COARSER])
@torch.no_grad()
def test_layers_attend_as_torch_resizes(coarser: list[int]) -> None:
    """Contexts by nearest neighbour, features by means of squares, from each grid to each other at once."""
    model = model_of(coarser_layers=coarser, **dict.fromkeys(PATHS, PLAIN))
    features, layers, found = ran(model)
    width, key = model.config.context_width, 4
    wholes = [layer.top_down.slot.whole for layer in layers]
    for i, layer in enumerate(layers):
        size = layer.z.shape[2:]
        if i > 0:
            module, (context, query, *_), (_, condition) = found[f"layers.{i}.generative.decoder_attention"]
            slots = []
            for j in range(i):
                slot = wholes[j]
                if j <= i - 2:
                    norm = model.get_submodule(f"layers.{j + 2}.generative.ctx_layer_norm")
                    channels = (slot.shape[1],)
                    slot = F.layer_norm(slot.permute(0, 2, 3, 1), channels, norm.weight, norm.bias).permute(0, 3, 1, 2)
                slots.append(F.interpolate(slot, size, mode="nearest"))
            wanted = attention(query, [slot[:, width:] for slot in slots], [slot[:, :width] for slot in slots])
            assert all(slot.shape[1] == width + key for slot in slots)
            torch.testing.assert_close(condition, context + module.gamma * wanted, rtol=1e-5, atol=1e-5)
        module, (query, keys, values), condition = found[f"layers.{i}.inference.encoder_attention"]
        channels = values[0].shape[1]
        finer = [F.avg_pool2d(e, e.shape[2] // size[0]) for e in features[i + 1 :]]
        wanted = attention(
            query, [keys[0], *(e[:, channels:] for e in finer)], [values[0], *(e[:, :channels] for e in finer)]
        )
        torch.testing.assert_close(condition, values[0] + module.gamma * wanted, rtol=1e-5, atol=1e-5)
    assert [layer.z.shape[1:] for layer in layers] == model.latent_shapes
    assert [e.shape[2:] for e in features[:-1]] == [layer.z.shape[2:] for layer in layers]


def test_shapes() -> None:
    assert model_of().latent_shapes == [(2, 2, 4), (2, 4, 8), (2, 4, 8), (2, 8, 16), (2, 8, 16), (2, 8, 16)]
    assert [*model_of().config.grids] == ON_GRID


def test_latents_of_one_grid_are_doubled_for_the_next() -> None:
    """The first layer of a grid merges context and latent of the one above it."""
    model = model_of()
    merged: list[tuple[Tensor, ...]] = []
    hook = model.layers[1].generative.merge_decoder.register_forward_pre_hook(lambda _, given: merged.append(given))
    z = model.encode(images(), noise_of(model))
    hook.remove()
    assert torch.equal(merged[0][1], z[0].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def test_one_grid_brings_nothing_anywhere() -> None:
    """Without `coarser_layers` the model is the published one, whose numbers test_golden_model.py holds."""
    model = model_of(coarser_layers=())
    assert {len(stack.blocks) for stack in model.encoder.cells} == {len(model.config.encoder.scales)}
    with mock.patch.object(grids, "coarser", None), mock.patch.object(vae, "finer", None):
        model(images(), noise_of(model)).nelbo_nats.sum().backward()
        model.sample(2)


# ---------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("layer_norm", [True, False])
def test_gradients_are_those_of_finite_differences(layer_norm: bool) -> None:
    """Of the top context and all features, with latents given, in float64: raw means and log-scales are in float32."""
    config = {**PLAIN, "layer_norm": layer_norm}
    model = model_of(num_layers=4, coarser_layers=[1, 1], **dict.fromkeys(PATHS, config)).double()
    latents = [eps[:1].double() for eps in noise_of(model)]
    features = [e.detach()[:1].requires_grad_() for e in model.encoder(images().double() / 128 - 1)]
    width = model.config.encoder_width

    def conditions(_: Tensor, *wholes: Tensor) -> tuple[Tensor, ...]:
        seen = grids.seen_by_layers([Slot.cut(whole, width) for whole in wholes], model.config.grids)
        contexts: list[Slot] = []
        found: list[Tensor] = []
        for i, z in enumerate(latents):
            top_down = model.layer(i, contexts, latents[i - 1] if i else None, Given(z)).top_down
            given = (seen[i], top_down.encoder_query, top_down.prior_condition)
            found += [top_down.prior_condition, model.layers[i].inference(*given).condition]
        return tuple(found)

    # The constant is changed in place, so it need not be handed on.
    assert torch.autograd.gradcheck(conditions, (model.layers[0].generative.constant, *features), fast_mode=True)


def test_kernels_have_the_gradients_of_float64() -> None:
    """In float32 what layers leave for a slot's gradient is summed up in C; in float64 autograd does it all."""
    found: dict[torch.dtype, dict[str, Tensor]] = {}
    for dtype in (torch.float32, torch.float64):
        model = model_of().to(dtype)
        model(images(), [eps.to(dtype) for eps in noise_of(model)]).kl_nats.sum().backward()
        found[dtype] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(found[torch.float32]) > 0.9 * len(list(model.parameters()))
    for name, wanted in found[torch.float64].items():
        scale = float(wanted.abs().max())
        torch.testing.assert_close(found[torch.float32][name].double(), wanted, rtol=1e-3, atol=1e-4 * scale, msg=name)


@pytest.mark.parametrize("recompute", [("encoder",), ("layers",), ("encoder", "layers", "decoder")])
def test_recomputing_changes_nothing_but_memory(recompute: tuple[str, ...]) -> None:
    gradients = []
    for parts in ((), recompute):
        model = model_of()
        same = DeepVAE(model.config, COLOUR, recompute=parts)
        same.load_state_dict(model.state_dict())
        same(images(), noise_of(same)).nelbo_nats.sum().backward()
        gradients.append({name: p.grad for name, p in same.named_parameters()})
    for name, wanted in gradients[0].items():
        assert wanted is not None, name
        torch.testing.assert_close(gradients[1][name], wanted, msg=name)
    everything, less = (kept_bytes(model.config, COLOUR, parts) for parts in ((), recompute))
    assert less.per_image < everything.per_image


def test_no_graph_break() -> None:
    model, x = model_of(num_layers=3, coarser_layers=[1, 1]).train(), images()
    noise = noise_of(model)

    def loss() -> Tensor:
        elbo = model(x, noise)
        return training_loss(elbo.nll_nats, elbo.kl_nats, 1.0)

    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(loss, backend="eager", fullgraph=True)(), loss())


# -------------------------------------------------------------------------------------------------- causality in depth


@torch.no_grad()
def test_a_latent_changes_nothing_above_it() -> None:
    model = model_of()
    noise = noise_of(model)

    def drawn(noise: list[Tensor]) -> list[Layer]:
        contexts: list[Slot] = []
        layers: list[Layer] = []
        for i, eps in enumerate(noise):
            layers.append(model.layer(i, contexts, layers[-1].z if layers else None, Draw(eps, 1.0)))
        return layers

    before = drawn(noise)
    for changed in range(LAYERS):
        after = drawn([eps + 1 if i == changed else eps for i, eps in enumerate(noise)])
        for i, (a, b) in enumerate(zip(before, after, strict=True)):
            same_prior = torch.equal(a.prior.mean, b.prior.mean) and torch.equal(a.prior.stddev, b.prior.stddev)
            assert same_prior == (i <= changed), (changed, i)
            assert torch.equal(a.top_down.context, b.top_down.context) == (i <= changed), (changed, i)
            assert torch.equal(a.z, b.z) == (i < changed), (changed, i)


@torch.no_grad()
def test_the_image_enters_through_latents_alone() -> None:
    """With the same latents above it, a layer's prior is the same for any image; its posterior is not."""
    model = model_of()
    latents = noise = noise_of(model)
    priors, posteriors = [], []
    for seed in (0, 1):
        seen, contexts = model.features(images(seed)), []
        layers = [
            model.layer(i, contexts, latents[i - 1] if i else None, Infer(seen[i], noise[i])) for i in range(LAYERS)
        ]
        priors.append([layer.prior for layer in layers])
        posteriors.append([layer.posterior for layer in layers])
    for i in range(LAYERS):
        assert torch.equal(priors[0][i].mean, priors[1][i].mean)
        assert torch.equal(priors[0][i].stddev, priors[1][i].stddev)
        assert not torch.equal(posteriors[0][i].mean, posteriors[1][i].mean)


# --------------------------------------------------------------------------------------------------------------- cost


def flops_of_layers(model: DeepVAE) -> list[int]:
    with FlopCounterMode(display=False) as counter:
        model(images(), noise_of(model))
    counts = counter.get_flop_counts()
    return [sum(counts[f"DeepVAE.layers.{i}"].values()) for i in range(LAYERS)]


def test_a_layer_costs_a_quarter_on_the_next_coarser_grid() -> None:
    one, several = flops_of_layers(model_of(coarser_layers=())), flops_of_layers(model_of())
    assert several == [of_layer / 4**grid for of_layer, grid in zip(one, ON_GRID, strict=True)]


def test_only_where_a_grid_ends_a_stack_begins_with_a_cell_that_halves_and_keeps_the_width() -> None:
    model = model_of()
    ends = [grid > below for grid, below in zip(model.config.grids, (*model.config.grids[1:], 0), strict=True)]
    assert any(ends)
    assert not all(ends)
    firsts = [stack.blocks[0] for stack in model.encoder.cells]
    assert [cell.scale == -2 for cell in firsts] == ends
    for stack in model.encoder.cells:
        assert [cell.scale for cell in stack.blocks].count(-2) == (stack.blocks[0].scale == -2)
        assert stack.out_channels == model.encoder.preprocessing[-1].out_channels


@pytest.mark.parametrize(
    ("off", "halved", "doubled"),
    # e_3 ... e_6 for layers 1 and 2, e_1 ... e_6 for layer 0; c_0 for layers 1 and 2, c_0 ... c_2 for those below.
    [((), 4 + 6, 1 + 3), (("encoder_attention",), 0, 1 + 3), (PATHS, 0, 1 + 1)],
)
def test_every_map_is_brought_to_a_grid_once(off: tuple[str, ...], halved: int, doubled: int) -> None:
    model = model_of(**dict.fromkeys(off))
    with (
        mock.patch.object(grids, "coarser", wraps=grids.coarser) as coarser,
        mock.patch.object(vae, "finer", wraps=grids.finer) as finer,
    ):
        model(images(), noise_of(model))
    assert (coarser.call_count, finer.call_count) == (halved, doubled)


def test_maps_stay_in_the_order_of_the_convolutions() -> None:
    model = model_of(**dict.fromkeys(PATHS, PLAIN))
    contexts: list[Slot] = []
    seen = model.features(images())
    z = None
    for i, eps in enumerate(noise_of(model)):
        z = model.layer(i, contexts, z, Infer(seen[i], eps)).z
    for slot in [*contexts, *(slot for row in seen for slot in row)]:
        assert slot.whole.stride(1) == 1, "a slice of channels-last maps"
