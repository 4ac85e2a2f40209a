"""One latent layer: its context and prior (generative path), its posterior (inference path) (paper, section 3).

Legend: B batch, C context channels D + ke, K key channels kd, Q query channels ke that go to the inference path, E
feature channels, Z latent channels, H and W the map of the layer's latents.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attvae.distributions.gaussian import Gaussian, bounded, standard_normal
from attvae.model.config import LogScaleConfig, ModelConfig
from attvae.model.conv_node import first_posterior_head, posterior_head, prior_head
from attvae.model.depth_attention import DecoderAttention, EncoderAttention, Slot
from attvae.model.layers import ChannelLayerNorm, scaled_uniform_
from attvae.model.merge import ConcatMerge, SumMerge
from attvae.model.residual_cell import ResidualStack


class RawGaussian(NamedTuple):
    """Mean and log stddev [B, Z, H, W] before they are bounded, in float32."""

    mean: Tensor
    log_stddev: Tensor

    @classmethod
    def from_head(cls, head_BZHW: Float[Tensor, "b two_z h w"], noise_stddev: float) -> "RawGaussian":
        """Splits (mean | log stddev) and perturbs the latter."""
        mean, log_stddev = head_BZHW.float().chunk(2, dim=1)
        if noise_stddev > 0:
            log_stddev = log_stddev + noise_stddev * torch.randn_like(log_stddev)
        return cls(mean, log_stddev)

    def shifted(self, delta: "RawGaussian") -> "RawGaussian":
        """A residual posterior: relative to this prior, before both are bounded."""
        return RawGaussian(self.mean + delta.mean, self.log_stddev + delta.log_stddev)

    def bounded(self, limits: LogScaleConfig, config: ModelConfig) -> Gaussian:
        return bounded(self.mean, self.log_stddev, limits.low, limits.high, config.soft_clamp)


class TopDown(NamedTuple):
    """What the generative path of a layer gives; the top layer has no prior parameters, its prior is N(0, 1)."""

    slot: Slot  # what later layers see: new_context || key
    new_context: Tensor
    key: Tensor | None
    encoder_query: Tensor
    prior_condition: Tensor
    prior_raw: RawGaussian | None = None
    normalised: Slot | None = None  # takes the place of the context before the last, for all layers to come

    @property
    def context(self) -> Tensor:
        return self.slot.whole


class BottomUp(NamedTuple):
    """What the inference path of a layer gives: the posterior, relative to the prior, and what its head saw."""

    condition: Tensor
    delta: RawGaussian


class Infer(NamedTuple):
    """z from the posterior: features e_i ... e_L, on the grid of layer i, and standard normal noise."""

    features: Sequence[Slot]
    noise: Tensor


class Draw(NamedTuple):
    """z from the prior with its stddev times the temperature."""

    noise: Tensor
    temperature: float | Tensor


class Given(NamedTuple):
    """z as it is."""

    z: Tensor


class Layer(NamedTuple):
    """A layer's latent and where it came from; the posterior is None where nothing was inferred."""

    z: Tensor
    top_down: TopDown
    prior: Gaussian
    posterior: Gaussian | None = None
    posterior_raw: RawGaussian | None = None
    posterior_condition: Tensor | None = None


class FirstGenerative(nn.Module):
    """The top layer's context is a learned constant; its last channels are its key."""

    def __init__(self, config: ModelConfig, height: int, width: int):
        super().__init__()
        self.query_dim = config.encoder_key_dim
        self.channels = config.context_width
        self.constant = nn.Parameter(torch.empty(1, config.context_width + config.decoder_key_dim, height, width))
        scaled_uniform_(self.constant, fan_in=height * width)

    def forward(self, batch: int) -> TopDown:
        # In the layout and precision of the contexts to come: each of their layers reads it beside them.
        c_1CHW = self.constant.to(_precision(self.constant), memory_format=torch.channels_last)
        c_BCHW = c_1CHW.expand(batch, -1, -1, -1)
        return TopDown(Slot.cut(c_BCHW, self.channels), c_BCHW, None, c_BCHW[:, : self.query_dim], c_BCHW)


class Generative(nn.Module):
    """Context and prior of a lower layer from the contexts above it and the latent just above it."""

    def __init__(self, config: ModelConfig, index: int):
        super().__init__()
        channels, key_dim = config.context_width, config.decoder_key_dim
        self.query_dim = config.encoder_key_dim
        is_last = index == config.num_layers - 1
        self.widths = (channels, 0 if is_last else key_dim, key_dim)
        self.merge_decoder = ConcatMerge(channels, config.latent_channels, sum(self.widths), config.decoder_merge)
        self.decoder_cell = ResidualStack(sum(self.widths), config.decoder, config.norm)
        self.decoder_attention, self.ctx_layer_norm = None, None
        if config.decoder_attention:
            self.decoder_attention = DecoderAttention(channels, config.decoder_attention)
            if index >= 2:
                self.ctx_layer_norm = ChannelLayerNorm(channels + key_dim)
        self.prior_head = prior_head(channels, config.latent_channels)
        self.noise_stddev = config.prior.noise_stddev

    def forward(self, contexts: Sequence[Slot], z_BZHW: Float[Tensor, "b z h w"]) -> TopDown:
        channels, key_dim, query_dim = self.widths
        normalised: Slot | None = None
        if self.ctx_layer_norm is not None:
            normalised = Slot.cut(self.ctx_layer_norm(contexts[-2].whole), channels)
            contexts = [*contexts[:-2], normalised, contexts[-1]]
        merged_BWHW = self.merge_decoder(contexts[-1].value, z_BZHW)
        whole_BCHW, query_BKHW = self.decoder_cell(merged_BWHW).split([channels + key_dim, query_dim], dim=1)
        slot = Slot.cut(whole_BCHW, channels)
        encoder_query_BQHW = slot.value[:, : self.query_dim]
        prior_condition_BCHW = slot.value
        if self.decoder_attention is not None:
            context_BCHW, prior_condition_BCHW = self.decoder_attention(
                slot.value, query_BKHW, [c.key for c in contexts], [c.value for c in contexts]
            )
            if self.decoder_attention.layer_norm:
                slot = Slot.cut(torch.cat([context_BCHW, slot.key], dim=1), channels)
        prior_raw = RawGaussian.from_head(
            self.prior_head(prior_condition_BCHW), self.noise_stddev if self.training else 0.0
        )
        return TopDown(
            slot=slot,
            new_context=slot.value,
            key=slot.key if key_dim else None,
            encoder_query=encoder_query_BQHW,
            prior_condition=prior_condition_BCHW,
            prior_raw=prior_raw,
            normalised=normalised,
        )


class Inference(nn.Module):
    """Posterior of a layer from the bottom-up features and, below the top layer, the prior's condition."""

    def __init__(self, config: ModelConfig, index: int):
        super().__init__()
        width = config.encoder_width + config.encoder_key_dim
        self.merge_encoder = (
            SumMerge(config.encoder_width, config.context_width, width, config.encoder_merge) if index > 0 else None
        )
        self.encoder_attention = (
            EncoderAttention(config.encoder_width, config.encoder_attention) if config.encoder_attention else None
        )
        head = posterior_head if index > 0 else first_posterior_head
        self.posterior_head = head(width, config.latent_channels)
        self.noise_stddev = config.posterior.noise_stddev

    def forward(
        self,
        features: Sequence[Slot],
        query_BQHW: Float[Tensor, "b q h w"],
        prior_condition_BCHW: Float[Tensor, "b c h w"],
    ) -> BottomUp:
        own = features[0]
        if self.merge_encoder is not None:
            # The layer's own key comes out of the merge: that of its feature serves the layers above only.
            own = Slot.cut(self.merge_encoder(own.value, prior_condition_BCHW), own.value.shape[1])
        condition = own.whole
        if self.encoder_attention is not None:
            slots = [own, *features[1:]]
            attended = self.encoder_attention(query_BQHW, [slot.key for slot in slots], [slot.value for slot in slots])
            condition = torch.cat([attended, own.key], dim=1)
        delta = RawGaussian.from_head(self.posterior_head(condition), self.noise_stddev if self.training else 0.0)
        return BottomUp(condition, delta)


class VariationalLayer(nn.Module):
    """Latent layer `index` of the hierarchy, 0 being the top."""

    def __init__(self, config: ModelConfig, index: int, height: int, width: int):
        super().__init__()
        self.config = config
        self.generative = Generative(config, index) if index > 0 else FirstGenerative(config, height, width)
        self.inference = Inference(config, index)

    def forward(self, contexts: Sequence[Slot], z_previous: Tensor | None, source: Infer | Draw | Given) -> Layer:
        """
        Args:
            contexts: those of the layers above, the first layer's first; all but the last two are normalised. Like
                `z_previous` and the features of `source`, they are on the grid of this layer.
            z_previous: latent of the layer just above; None in the top layer.
            source: where this layer's latent comes from.
        """
        reference = source.z if isinstance(source, Given) else source.noise
        top_down: TopDown = (
            self.generative(reference.shape[0]) if z_previous is None else self.generative(contexts, z_previous)
        )
        bottom_up: BottomUp | None = None
        if isinstance(source, Infer):
            bottom_up = self.inference(source.features, top_down.encoder_query, top_down.prior_condition)
        with torch.autocast(reference.device.type, enabled=False):
            raw = top_down.prior_raw
            prior = standard_normal(like=reference) if raw is None else raw.bounded(self.config.prior, self.config)
            if bottom_up is not None:
                posterior_raw = bottom_up.delta if raw is None else raw.shifted(bottom_up.delta)
                posterior = posterior_raw.bounded(self.config.posterior, self.config)
                z = posterior.sample(reference)
                return Layer(z, top_down, prior, posterior, posterior_raw, bottom_up.condition)
            if isinstance(source, Draw):
                return Layer(Gaussian(prior.mean, source.temperature * prior.stddev).sample(reference), top_down, prior)
            return Layer(reference, top_down, prior)


def _precision(parameter: Tensor) -> torch.dtype:
    """That of the arithmetic with it."""
    device = parameter.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else parameter.dtype
