"""Mixture of discretised logistics, autoregressive over the channels of a pixel (PixelCNN++, Salimans et al. 2017).

Images are x in [-1, 1], x = 2 v / max_value - 1 for pixel values v; M mixtures, C channels, K = C (C - 1) / 2
coefficients, the one of channels d < c at c (c - 1) / 2 + d.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Edges = Literal["published", "normalised"]

MIN_LOG_SCALE = -7.0
MAX_LOG_SCALE = 7.0
"""Of normalised edges: flat over all pixel values to one part in a thousand; far above it a bin's mass underflows."""


class LogisticMixture(NamedTuple):
    """Parameters per pixel."""

    logits: Float[Tensor, "b m h w"]
    means: Float[Tensor, "b c m h w"]
    log_scales: Float[Tensor, "b c m h w"]
    coefficients: Float[Tensor, "b k m h w"]

    def locations(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c m h w"]:
        """Means shifted by the earlier channels of the same pixel."""
        return torch.stack([self._location(c, [*x.unbind(1)][:c]) for c in range(x.shape[1])], dim=1)

    def _location(self, c: int, earlier: list[Tensor]) -> Float[Tensor, "b m h w"]:
        location = self.means[:, c]
        for d, x_d in enumerate(earlier):
            location = torch.addcmul(location, self.coefficients[:, c * (c - 1) // 2 + d], x_d.unsqueeze(1))
        return location


def num_parameters(channels: int, num_mixtures: int) -> int:
    """Values per pixel that `split` takes."""
    return num_mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)


def split(parameters: Float[Tensor, "b p h w"], channels: int, num_mixtures: int) -> LogisticMixture:
    """Names the raw outputs of a head.

    After the M logits come M blocks of K coefficients and 2 C others; those others are read on as [C, 2 M] without a
    transposition, as the authors' code does (a permutation of the head's outputs).
    """
    k = channels * (channels - 1) // 2
    parameters = parameters.contiguous()  # channels-last, each part would be a few numbers of every pixel
    logits, blocks = parameters.split([num_mixtures, parameters.shape[1] - num_mixtures], dim=1)
    blocks = blocks.unflatten(1, (num_mixtures, k + 2 * channels))
    others = blocks[:, :, k:].flatten(1, 2).unflatten(1, (channels, 2 * num_mixtures))
    means, log_scales = others.chunk(2, dim=2)
    return LogisticMixture(logits, means, log_scales.clamp_min(MIN_LOG_SCALE), blocks[:, :, :k].tanh().transpose(1, 2))


def log_prob(x: Float[Tensor, "b c h w"], mixture: LogisticMixture, max_value: int, edges: Edges) -> Float[Tensor, "b"]:
    """Log probability in nats of an image of pixel values, summed over pixels.

    `normalised` gives the two outermost values the tails, so that the probabilities of the max_value + 1 values sum
    to one. `published` is the authors' for max_value 255: it also gives value 254 the upper tail.
    """
    scaled = mixture._replace(log_scales=_log_scales(mixture, edges))
    return _LogProb.apply(x, max_value, edges, *scaled)  # type: ignore[no-untyped-call]


class _LogProb(torch.autograd.Function):
    """`log_prob`, which goes over the channels one by one and computes its gradient beside it.

    With l_m the logarithm of weight m, b_cm that of the bin of channel c under mixture m, and r the softmax of l_m +
    sum_c b_cm over m, the responsibilities: dL/db_cm = r_m, dL/dlogits = r - softmax(logits). What is kept for the
    backward pass is this gradient, which has the size of the parameters.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        max_value: int,
        edges: Edges,
        logits: Tensor,
        means: Tensor,
        log_scales: Tensor,
        coefficients: Tensor,
    ) -> Tensor:
        assert not ctx.needs_input_grad[0], "images need no gradient"
        bins_of = _published_bins if edges == "published" else _normalised_bins
        mixture = LogisticMixture(logits, means, log_scales, coefficients)
        xs, slopes = x.unbind(1), []
        joint = logits.log_softmax(dim=1)
        for c, x_c in enumerate(xs):
            centred = x_c.unsqueeze(1) - mixture._location(c, [*xs[:c]])
            bins = bins_of(x_c.unsqueeze(1), centred, log_scales[:, c], max_value)
            joint = joint + bins.log_p
            if any(ctx.needs_input_grad):
                slopes.append(bins.slopes())
        if slopes:
            r = joint.softmax(dim=1)
            by_mean, by_log_scale = torch.empty_like(means), torch.empty_like(means)
            for c, (by_centred, by_scale) in enumerate(slopes):
                by_mean[:, c] = by_centred.mul_(r).neg_()  # torch.compile has no out= of a part
                by_log_scale[:, c] = by_scale.mul_(r)
            by_coefficient = torch.empty_like(coefficients)
            for c in range(len(xs)):
                for d, x_d in enumerate(xs[:c]):
                    by_coefficient[:, c * (c - 1) // 2 + d] = by_mean[:, c] * x_d.unsqueeze(1)
            ctx.save_for_backward(r - logits.softmax(dim=1), by_mean, by_log_scale, by_coefficient)
        return joint.logsumexp(dim=1).sum(dim=(1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_B: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(gradient_B.view(-1, *[1] * (by.dim() - 1)) * by for by in ctx.saved_tensors)


def channel_log_probs(
    earlier: Float[Tensor, "b d h w"], mixture: LogisticMixture, max_value: int, edges: Edges
) -> Float[Tensor, "b v h w"]:
    """Log probability in nats of each pixel value 0 ... max_value of channel d, given the channels before it.

    Over the channels of a pixel they add up to `log_prob`; with `published` edges they do not quite sum to one.
    """
    bins_of = _published_bins if edges == "published" else _normalised_bins
    log_scales, log_weights = _log_scales(mixture, edges), mixture.logits.log_softmax(dim=1)
    xs = [*earlier.unbind(1)]
    for c, x in enumerate(xs):
        x = x.unsqueeze(1)
        log_weights = log_weights + bins_of(x, x - mixture._location(c, xs[:c]), log_scales[:, c], max_value).log_p
    values = torch.linspace(-1, 1, max_value + 1, dtype=log_weights.dtype, device=log_weights.device)
    x = values.view(1, -1, 1, 1, 1)
    centred = x - mixture._location(len(xs), xs).unsqueeze(1)
    log_p = bins_of(x, centred, log_scales[:, len(xs)].unsqueeze(1), max_value).log_p
    return (log_p + log_weights.log_softmax(dim=1).unsqueeze(1)).logsumexp(dim=2)


def sample(
    mixture: LogisticMixture,
    u_mixture: Float[Tensor, "b m h w"],
    u_logistic: Float[Tensor, "b c h w"],
    max_value: int,
    edges: Edges,
) -> Float[Tensor, "b c h w"]:
    """The image in [-1, 1] that belongs to uniform noise inside (0, 1).

    `normalised` rounds each channel to a pixel value before the next one is conditioned on it, as `log_prob` does;
    `published` leaves values between the pixel values.
    """
    chosen = (mixture.logits - (-u_mixture.log()).log()).argmax(dim=1, keepdim=True)
    logistic, log_scales = u_logistic.logit(), _log_scales(mixture, edges)
    xs: list[Tensor] = []
    for c in range(u_logistic.shape[1]):
        location = mixture._location(c, xs).gather(1, chosen)[:, 0]
        scale = log_scales[:, c].gather(1, chosen)[:, 0].exp()
        x = torch.addcmul(location, scale, logistic[:, c]).clamp(-1, 1)
        if edges == "normalised":
            x = ((x + 1) / 2 * max_value).round() * 2 / max_value - 1
        xs.append(x)
    return torch.stack(xs, dim=1)


def mean(mixture: LogisticMixture) -> Float[Tensor, "b c h w"]:
    """Of each pixel, with what lies outside [-1, 1] moved to the ends: 1 minus the integral of the cdf from -1 to 1.

    Exact for the first channel; the others are taken at the means of the earlier ones, component by component.
    """
    weights = mixture.logits.softmax(dim=1).unsqueeze(1)
    scales = mixture.log_scales.clamp_max(MAX_LOG_SCALE).exp()
    means: list[Tensor] = []
    for c, scale in enumerate(scales.unbind(1)):
        location = mixture.means[:, c]
        for d, earlier in enumerate(means):
            location = torch.addcmul(location, mixture.coefficients[:, c * (c - 1) // 2 + d], earlier)
        cdf_integral = scale * (F.softplus((1 - location) / scale) - F.softplus((-1 - location) / scale))
        means.append(1 - cdf_integral)
    return (weights * torch.stack(means, dim=1)).sum(dim=2)


def _log_scales(mixture: LogisticMixture, edges: Edges) -> Float[Tensor, "b c m h w"]:
    """The authors' code has no upper limit."""
    return mixture.log_scales if edges == "published" else mixture.log_scales.clamp_max(MAX_LOG_SCALE)


class _Bins(NamedTuple):
    """Log probabilities of pixel values, and their derivatives with respect to `centred` and `log_scales`."""

    log_p: Tensor
    slopes: Callable[[], tuple[Tensor, Tensor]]


def _normalised_bins(x: Tensor, centred: Tensor, log_scales: Tensor, max_value: int) -> _Bins:
    half = 1 / max_value
    precision = (-log_scales).exp()
    upper_end, lower_end, width = precision * (centred + half), precision * (half - centred), 2 * half * precision
    lowest, highest = x < -1 + half, x > 1 - half
    # With a > b the ends of a bin: cdf(a) - cdf(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which does not cancel.
    below_upper_end = F.logsigmoid(upper_end).masked_fill(highest, 0)
    above_lower_end = F.logsigmoid(lower_end).masked_fill(lowest, 0)
    log_width = (-torch.expm1(-width)).log().masked_fill(lowest | highest, 0)

    def slopes() -> tuple[Tensor, Tensor]:
        by_upper = torch.sigmoid(-upper_end).masked_fill_(highest, 0)
        by_lower = torch.sigmoid(-lower_end).masked_fill_(lowest, 0)
        by_log_scale = (width / torch.expm1(width)).masked_fill_(lowest | highest, 0)
        by_log_scale = by_log_scale.addcmul_(upper_end, by_upper).addcmul_(lower_end, by_lower).neg_()
        return by_upper.sub_(by_lower).mul_(precision), by_log_scale

    return _Bins(below_upper_end + above_lower_end + log_width, slopes)


def _published_bins(x: Tensor, centred: Tensor, log_scales: Tensor, max_value: int) -> _Bins:
    half = 1 / max_value
    precision = (-log_scales).exp()
    upper_end, lower_end, width = precision * (centred + half), precision * (half - centred), 2 * half * precision
    below_upper_end, above_lower_end = F.logsigmoid(upper_end), F.logsigmoid(lower_end)
    log_mass = below_upper_end + above_lower_end + (-torch.expm1(-width)).log()
    middle = precision * centred
    log_density = middle - log_scales - 2 * F.softplus(middle) - math.log(max_value / 2)
    darkest, brightest, wide = x < -0.999, x > 0.99, log_mass > math.log(1e-5)
    inner = torch.where(wide, log_mass, log_density)

    def slopes() -> tuple[Tensor, Tensor]:
        outer = darkest | brightest
        density = ~(outer | wide)
        by_upper = torch.sigmoid(-upper_end).masked_fill_(brightest | density, 0)
        by_lower = torch.sigmoid(-lower_end).masked_fill_(darkest | density, 0)
        by_middle = (middle / 2).tanh_().neg_().masked_fill_(~density, 0)
        by_log_scale = (width / torch.expm1(width)).masked_fill_(outer, 0).masked_fill_(density, 1)
        by_log_scale.addcmul_(upper_end, by_upper).addcmul_(lower_end, by_lower).addcmul_(middle, by_middle).neg_()
        return by_upper.sub_(by_lower).add_(by_middle).mul_(precision), by_log_scale

    return _Bins(torch.where(darkest, below_upper_end, torch.where(brightest, above_lower_end, inner)), slopes)
