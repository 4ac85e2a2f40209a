"""Bits-back coding of images with a hierarchy of latents (Townsend et al. 2019; hierarchies: Townsend et al. 2020).

To code x: pop z_0 from q(z_0 | x), z_1 from q(z_1 | x, z_0), and so on; push x under p(x | z); push z_{L-1}, ..., z_0
under p(z_l | z_<l). Decoding undoes each step in the reverse order. What stays on the stack is
-log p(x, z) + log q(z | x): on average, the negative evidence lower bound.

A latent is a bin on the scale of its prior: z = mean_p + stddev_p k / K for integer k, known to the decoder before it
knows x. As encoder and decoder must compute the same numbers, the model runs in float64, and what it gives is rounded
to a grid that is coarse against the rounding errors of float64 and fine against all that matters.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int32, Int64, Shaped
from numpy import ndarray
from pydantic import Field
from torch import Tensor

from attvae.compression import stack as ans
from attvae.compression.stack import Stack
from attvae.distributions import bernoulli, logistic_mixture
from attvae.distributions.gaussian import Gaussian
from attvae.model.config import BernoulliConfig, LogisticMixtureConfig, LogScaleConfig
from attvae.model.depth_attention import Slot
from attvae.model.vae import DeepVAE
from attvae.model.variational_layer import Given, Infer, Inference, RawGaussian
from attvae.spec import Config

TABLE_VALUES = 2**21
"""Probabilities of pixel values that are in memory at once: 16 MB."""


_NARROWEST = 8  # bins to either side


class Precision(Config):
    """What encoder and decoder must agree on. The bounds keep a file from elsewhere within what the coder can do.

    Attributes:
        bins_per_stddev: K, bins of a latent in a standard deviation of its prior.
        reach: bins lie within so many standard deviations of the prior's mean.
        posterior_reach: and those that the posterior gives within so many, or a quarter more, of its own. The coder
            gives each bin some probability: without this limit one latent of some 16,000 would come from where no
            image has any.
        latent_grid_bits: means and log stddevs of latents are multiples of 2^-this.
        pixel_grid_bits: the likelihood's parameters are multiples of 2^-(this + bits of a pixel).
    """

    bins_per_stddev: int = Field(default=64, ge=1, le=1024)
    reach: int = Field(default=8, ge=1, le=64)
    posterior_reach: float = Field(default=5.5, ge=1, le=64)
    latent_grid_bits: int = Field(default=12, ge=1, le=32)
    pixel_grid_bits: int = Field(default=8, ge=1, le=32)


class Coded(NamedTuple):
    """In nats, of the latents that were coded: -log p(x | z), and log q(z | x) - log p(z) of densities; [B]."""

    nll_nats: Tensor
    log_ratio_nats: Tensor


class _Window(NamedTuple):
    """Latents that are coded as -bins ... bins about their centres; mean and stddev in bins, the mean from there."""

    bins: int
    places: Int64[ndarray, "n"]
    centre: Int32[ndarray, "n"]
    mean: Float64[ndarray, "n"]
    stddev: Float64[ndarray, "n"]


class ImageCoder:
    """Codes batches of images on a stack. The model is changed: it computes in float64 on the CPU from now on."""

    def __init__(self, model: DeepVAE, precision: Precision) -> None:
        self._model = model.cpu().double().eval()
        self._precision = precision
        self._reach_bins = precision.reach * precision.bins_per_stddev
        self._latents = ans.binned_gaussian(self._reach_bins)
        widths = (round(_NARROWEST * 1.25**i) for i in range(64))
        self._windows = [*(bins for bins in widths if bins < self._reach_bins), self._reach_bins]
        self._pixel_grid = 2.0 ** (precision.pixel_grid_bits + model.spec.num_bits)

    @property
    def latents(self) -> int:
        """Latent values of an image."""
        return sum(math.prod(shape) for shape in self._model.latent_shapes)

    @torch.no_grad()
    def encode(self, x: Shaped[Tensor, "b c h w"], stack: Stack) -> Coded:
        """Puts the images on the stack, as one."""
        model, priors, bins = self._model, [], []
        contexts: list[Slot] = []
        log_ratio = x.new_zeros(len(x), dtype=torch.float64)
        features = model.features(x)
        z: Tensor | None = None
        for i, shape in enumerate(model.latent_shapes):
            layer = model.layer(i, contexts, z, Infer(features[i], torch.zeros(len(x), *shape)))
            exact_p = self._prior(layer.top_down.prior_raw, len(x), i)
            exact_q = self._posterior(layer.posterior_raw)
            p, q = self._rounded(exact_p), self._rounded(exact_q)
            k = self._pop_under_posterior(stack, q, p)
            z = self._latent(k, p)
            log_ratio += exact_q.log_prob(z) - exact_p.log_prob(z)
            priors.append(p)
            bins.append(k)
        assert z is not None
        head = model.likelihood_head(contexts[-1].whole, z)
        self._push_pixels(stack, x, self._on_grid(head))
        for k, p in zip(reversed(bins), reversed(priors), strict=True):
            self._push_under_prior(stack, k, p)
        return Coded(-self._log_prob(x, head), log_ratio)

    @torch.no_grad()
    def decode(self, batch: int, stack: Stack) -> Shaped[Tensor, "b c h w"]:
        """Takes off the stack what `encode` has put there last, and gives the bits of the latents back."""
        model, priors, bins, top_downs = self._model, [], [], []
        contexts: list[Slot] = []
        z: Tensor | None = None
        for i, shape in enumerate(model.latent_shapes):
            # The layer passes on what it is given: here a stand-in of the right size, since z depends on its prior.
            layer = model.layer(i, contexts, z, Given(torch.zeros(batch, *shape)))
            p = self._rounded(self._prior(layer.top_down.prior_raw, batch, i))
            k = self._pop_under_prior(stack, p)
            z = self._latent(k, p)
            priors.append(p)
            bins.append(k)
            top_downs.append(layer.top_down)
        assert z is not None
        x = self._pop_pixels(stack, self._on_grid(model.likelihood_head(contexts[-1].whole, z)))
        features = model.features(x)
        posteriors = []
        for i, top_down in enumerate(top_downs):
            infer: Inference = model.layers[i].inference  # type: ignore[assignment]
            delta = infer(features[i], top_down.encoder_query, top_down.prior_condition).delta
            raw = delta if top_down.prior_raw is None else top_down.prior_raw.shifted(delta)
            posteriors.append(self._rounded(self._posterior(raw)))
        for k, q, p in zip(reversed(bins), reversed(posteriors), reversed(priors), strict=True):
            self._push_under_posterior(stack, k, q, p)
        return x

    def _prior(self, raw: RawGaussian | None, batch: int, layer: int) -> Gaussian:
        if raw is None:
            shape = (batch, *self._model.latent_shapes[layer])
            return Gaussian(torch.zeros(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.float64))
        return self._bounded(raw, self._model.config.prior)

    def _posterior(self, raw: RawGaussian | None) -> Gaussian:
        assert raw is not None, "an inferred layer has a posterior"
        return self._bounded(raw, self._model.config.posterior)

    def _bounded(self, raw: RawGaussian, limits: LogScaleConfig) -> Gaussian:
        bounded = RawGaussian(raw.mean.double(), raw.log_stddev.double()).bounded(limits, self._model.config)
        return Gaussian(*(_finite(parameter) for parameter in bounded))

    def _rounded(self, exact: Gaussian) -> Gaussian:
        grid = 2.0**self._precision.latent_grid_bits
        return Gaussian(_round(exact.mean, grid), _round(exact.stddev.log(), grid).exp())

    def _on_grid(self, head: Tensor) -> Tensor:
        return _round(_finite(head), self._pixel_grid)

    def _in_bins(self, g: Gaussian, p: Gaussian) -> tuple[Float64[ndarray, "n"], Float64[ndarray, "n"]]:
        """Mean and stddev on the scale of the prior p; a mean out of reach moves to the last bin."""
        scale = self._precision.bins_per_stddev / p.stddev
        mean = ((g.mean - p.mean) * scale).clamp(-self._reach_bins, self._reach_bins)
        return mean.flatten().numpy(), (g.stddev * scale).flatten().numpy()

    def _push_under_prior(self, stack: Stack, k: Int32[ndarray, "n"], p: Gaussian) -> None:
        stack.push(k, self._latents, *self._in_bins(p, p))

    def _pop_under_prior(self, stack: Stack, p: Gaussian) -> Int32[ndarray, "n"]:
        return stack.pop(self._latents, *self._in_bins(p, p))

    def _push_under_posterior(self, stack: Stack, k: Int32[ndarray, "n"], q: Gaussian, p: Gaussian) -> None:
        for bins, places, centre, mean, stddev in reversed(self._in_windows(q, p)):
            stack.push(k[places] - centre, ans.binned_gaussian(bins), mean, stddev)

    def _pop_under_posterior(self, stack: Stack, q: Gaussian, p: Gaussian) -> Int32[ndarray, "n"]:
        k = np.empty(p.mean.numel(), np.int32)
        for bins, places, centre, mean, stddev in self._in_windows(q, p):
            k[places] = centre + stack.pop(ans.binned_gaussian(bins), mean, stddev)
        return k

    def _in_windows(self, q: Gaussian, p: Gaussian) -> list[_Window]:
        """The latents by the width that they need."""
        mean, stddev = self._in_bins(q, p)
        fitting = np.searchsorted(self._windows[:-1], self._precision.posterior_reach * stddev)
        found = []
        for which, bins in enumerate(self._windows):
            (places,) = np.nonzero(fitting == which)
            if len(places):
                centre = mean[places].round().clip(bins - self._reach_bins, self._reach_bins - bins)
                found.append(_Window(bins, places, centre.astype(np.int32), mean[places] - centre, stddev[places]))
        return found

    def _latent(self, k: Int32[ndarray, "n"], p: Gaussian) -> Float64[Tensor, "b z h w"]:
        places = torch.from_numpy(k).double().view(p.mean.shape) / self._precision.bins_per_stddev
        return p.mean + p.stddev * places

    def _log_prob(self, x: Tensor, head: Tensor) -> Float64[Tensor, "b"]:
        spec = self._model.spec
        match self._model.config.likelihood:
            case BernoulliConfig():
                return bernoulli.log_prob(x.double(), head)
            case LogisticMixtureConfig(num_mixtures=num_mixtures, edges=edges):
                mixture = logistic_mixture.split(head, spec.channels, num_mixtures)
                return logistic_mixture.log_prob(_scaled(x, spec.max_value), mixture, spec.max_value, edges)

    def _push_pixels(self, stack: Stack, x: Tensor, head: Tensor) -> None:
        """The first channel comes last, as it has to be popped first: the others depend on it."""
        match self._model.config.likelihood:
            case BernoulliConfig():
                stack.push(_symbols(x.flatten()), ans.bernoulli(), head.sigmoid().flatten().numpy())
            case LogisticMixtureConfig():
                channels = x.transpose(0, 1).flatten(1)  # [C, B H W]
                for c in reversed(range(len(channels))):
                    for pixels, table in reversed([*self._pieces(head, c)]):
                        probabilities = table(channels[:c, pixels])
                        stack.push(_symbols(channels[c, pixels]), ans.categorical(), probabilities)

    def _pop_pixels(self, stack: Stack, head: Tensor) -> Shaped[Tensor, "b c h w"]:
        spec = self._model.spec
        dtype = torch.uint8 if spec.num_bits <= 8 else torch.uint16
        shape = (len(head), spec.height, spec.width)
        match self._model.config.likelihood:
            case BernoulliConfig():
                flat = stack.pop(ans.bernoulli(), head.sigmoid().flatten().numpy())
                return torch.from_numpy(flat).view(len(head), *spec.shape).to(dtype)
            case LogisticMixtureConfig():
                channels = torch.zeros(spec.channels, math.prod(shape), dtype=torch.int32)
                for c in range(spec.channels):
                    for pixels, table in self._pieces(head, c):
                        popped = stack.pop(ans.categorical(), table(channels[:c, pixels]))
                        channels[c, pixels] = torch.from_numpy(popped)
                return channels.view(spec.channels, *shape).transpose(0, 1).contiguous().to(dtype)

    def _pieces(self, head: Tensor, channel: int) -> Iterator[tuple[slice, Any]]:
        """The pixels of a batch in pieces, and what makes the table of their probabilities from earlier channels."""
        likelihood, spec = self._model.config.likelihood, self._model.spec
        assert isinstance(likelihood, LogisticMixtureConfig)
        flat = head.transpose(0, 1).flatten(1)[None, :, None]  # [1, P, 1, B H W]
        size = max(1, TABLE_VALUES // ((spec.max_value + 1) * likelihood.num_mixtures))
        for start in range(0, flat.shape[3], size):
            pixels = slice(start, min(start + size, flat.shape[3]))
            mixture = logistic_mixture.split(flat[..., pixels], spec.channels, likelihood.num_mixtures)

            def table(earlier: Tensor, mixture: logistic_mixture.LogisticMixture = mixture) -> Float64[ndarray, "n v"]:
                log_p = logistic_mixture.channel_log_probs(
                    _scaled(earlier[None, :, None], spec.max_value), mixture, spec.max_value, likelihood.edges
                )
                return np.ascontiguousarray(log_p[0, :, 0].T.exp().numpy())

            yield pixels, table


def _finite(parameters: Tensor) -> Tensor:
    if not torch.isfinite(parameters).all():
        raise ValueError("the model computes a parameter that is not finite: its bits cannot be counted")
    return parameters


def _round(x: Tensor, grid: float) -> Tensor:
    return (x * grid).round() / grid


def _scaled(x: Tensor, max_value: int) -> Tensor:
    return x.double() * 2 / max_value - 1


def _symbols(x: Tensor) -> Int32[ndarray, "n"]:
    return x.to(torch.int32).numpy()
