"""The deep attentive variational autoencoder (Apostolopoulou et al., ICLR 2022).

Legend: L latent layers, layer 0 on top; B batch, C image channels, Z latent channels, P head channels per pixel, H and
W the image, h and w the map of a layer's latents, K importance samples.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from attvae.distributions import bernoulli, gaussian, logistic_mixture
from attvae.kernels.depth_attention.choose import Implementation, choose
from attvae.model.config import BernoulliConfig, LogisticMixtureConfig, ModelConfig
from attvae.model.decoder import Decoded, Decoder
from attvae.model.depth_attention import DecoderAttention, EncoderAttention, Slot
from attvae.model.encoder import Encoder
from attvae.model.grids import finer, seen_by_layers
from attvae.model.layers import PUBLISHED_VARIANCE, WeightNormConv2d
from attvae.model.nonlocal_block import NonLocalBlock
from attvae.model.recompute import recomputed
from attvae.model.residual_cell import nearest_double
from attvae.model.variational_layer import Draw, Given, Infer, Layer, VariationalLayer
from attvae.spec import DataSpec

ROWS_AT_ONCE = 256  # of the importance samples of log_likelihood, which bounds its memory


class Elbo(NamedTuple):
    """The negative evidence lower bound and its parts, in nats per image.

    nll_nats [B], kl_nats [L, B], nelbo_nats [B] = nll + sum of KL; trace: every intermediate by name, where asked for.
    """

    nll_nats: Tensor
    kl_nats: Tensor
    nelbo_nats: Tensor
    trace: dict[str, Tensor] | None = None


class DeepVAE(nn.Module):
    """Images of one `DataSpec`; raw pixels in and out.

    Parts named in `recompute` (encoder, layers, decoder) compute their activations again in the backward pass.
    `depth_attention` is the implementation of that: where it cannot run, the model raises a ValueError when used.

    Raises:
        ValueError: the images of `spec` do not fit `config`.
    """

    def __init__(
        self,
        config: ModelConfig,
        spec: DataSpec,
        *,
        recompute: Collection[str] = (),
        depth_attention: Implementation = "auto",
    ):
        super().__init__()
        self.recompute = frozenset(recompute)
        self.config = config
        self.spec = spec
        self.latent_shapes = config.latent_shapes(spec)
        match config.likelihood:
            case BernoulliConfig():
                head_channels = spec.channels
            case LogisticMixtureConfig(num_mixtures=num_mixtures):
                head_channels = logistic_mixture.num_parameters(spec.channels, num_mixtures)
        self.encoder = Encoder(config, spec.channels, recompute="encoder" in self.recompute)
        self.layers = nn.ModuleList(
            VariationalLayer(config, i, height, width) for i, (_, height, width) in enumerate(self.latent_shapes)
        )
        self.decoder = Decoder(config, head_channels)
        for module in self.modules():
            if isinstance(module, WeightNormConv2d):
                module.scale_init(math.sqrt(config.init_variance / PUBLISHED_VARIANCE))
        for _, attention in self._attentions():
            attention.implementation = depth_attention

    def forward(
        self,
        x: Integer[Tensor, "b c H W"],
        noise: Sequence[Float[Tensor, "b z h w"]] | None = None,
        trace: bool = False,
    ) -> Elbo:
        """The bound for raw pixels (uint8, {0, 1} for binary data), one posterior sample per layer.

        Args:
            noise: L standard normal tensors, the first layer's first; None draws them.
            trace: also give every intermediate.

        Raises:
            ValueError: images or noise of another shape, dtype or range than the model's.
        """
        x = self._checked_pixels(x)
        noise = self._checked_noise(noise, len(x), x.device)
        features = self._features(x)
        contexts: list[Slot] = []
        layers = self._top_down(contexts, _inferred(self._seen(features), noise))
        decode = partial(recomputed, self.decoder) if "decoder" in self.recompute else self.decoder
        decoded: Decoded = decode(layers[-1].top_down.context, layers[-1].z)
        with torch.autocast(x.device.type, enabled=False):
            nll_nats = -self._log_prob(x, decoded.head.float())
            kl_nats = torch.stack([gaussian.kl(_posterior(layer), layer.prior) for layer in layers])
            elbo = Elbo(nll_nats, kl_nats, nll_nats + kl_nats.sum(dim=0))
        return elbo._replace(trace=_trace(elbo, features, layers, contexts, decoded)) if trace else elbo

    @torch.no_grad()
    def sample(
        self,
        n: int,
        temperature: float = 1.0,
        noise: Sequence[Float[Tensor, "n z h w"]] | None = None,
        pixel_noise: Float[Tensor, "n u H W"] | None = None,
    ) -> Integer[Tensor, "n c H W"]:
        """n images from the priors, their standard deviations times the temperature.

        Args:
            noise: L standard normal tensors, the first layer's first; None draws them.
            pixel_noise: uniform in [0, 1), of `pixel_noise_shape`; None draws it.
        """
        return self.draw_pixels(self.sample_head(n, temperature, noise), pixel_noise)

    @torch.no_grad()
    def sample_head(
        self, n: int, temperature: float | Tensor = 1.0, noise: Sequence[Float[Tensor, "n z h w"]] | None = None
    ) -> Float[Tensor, "n p H W"]:
        """The likelihood's raw parameters of `sample`: logits, or what `logistic_mixture.split` takes."""
        with self._evaluation():
            noise = self._checked_noise(noise, n, self._device())
            layers = self._top_down([], [Draw(eps, temperature) for eps in noise])
            return self._cropped(self.decoder(layers[-1].top_down.context, layers[-1].z).head.float())

    @property
    def pixel_noise_shape(self) -> tuple[int, int, int]:
        """(U, H, W) of the uniform noise that draws an image from its likelihood."""
        _, height, width = self.spec.shape
        match self.config.likelihood:
            case BernoulliConfig():
                return (self.spec.channels, height, width)
            case LogisticMixtureConfig(num_mixtures=num_mixtures):
                return (num_mixtures + self.spec.channels, height, width)

    @torch.no_grad()
    def draw_pixels(
        self, head: Float[Tensor, "n p H W"], pixel_noise: Float[Tensor, "n u H W"] | None = None
    ) -> Integer[Tensor, "n c H W"]:
        """Images from the likelihood of these raw parameters, with noise as in `sample`."""
        with torch.autocast(head.device.type, enabled=False):
            head = head.float()
            if pixel_noise is None:
                pixel_noise = torch.rand(len(head), *self.pixel_noise_shape, device=head.device)
            match self.config.likelihood:
                case BernoulliConfig():
                    return bernoulli.sample(head, pixel_noise)
                case LogisticMixtureConfig(num_mixtures=num_mixtures, edges=edges):
                    mixture = logistic_mixture.split(head, self.spec.channels, num_mixtures)
                    # Clear of 0 and 1, where logits are infinite.
                    u_mixture, u_logistic = pixel_noise.clamp(1e-5, 1 - 1e-5).tensor_split([num_mixtures], dim=1)
                    u = logistic_mixture.sample(mixture, u_mixture, u_logistic, self.spec.max_value, edges)
                    return ((u + 1) / 2 * self.spec.max_value).round().to(self._pixel_dtype)

    @torch.no_grad()
    def encode(
        self, x: Integer[Tensor, "b c H W"], noise: Sequence[Float[Tensor, "b z h w"]] | None = None
    ) -> list[Float[Tensor, "b z h w"]]:
        """Latents z_0 ... z_{L-1} from the posteriors."""
        with self._evaluation():
            x = self._checked_pixels(x)
            noise = self._checked_noise(noise, x.shape[0], x.device)
            sources = _inferred(self._seen(self._features(x)), noise)
            return [layer.z for layer in self._top_down([], sources)]

    @torch.no_grad()
    def decode(
        self, latents: Sequence[Float[Tensor, "b z h w"]], pixel_noise: Float[Tensor, "b u H W"] | None = None
    ) -> Integer[Tensor, "b c H W"]:
        """Images drawn from the likelihood given all latents, with noise as in `sample`."""
        with self._evaluation():
            last = self._from(latents, None, 1.0)[-1]
            return self.draw_pixels(self.likelihood_head(last.top_down.context, last.z), pixel_noise)

    @torch.no_grad()
    def completed(
        self,
        latents: Sequence[Float[Tensor, "b z h w"] | None],
        noise: Sequence[Float[Tensor, "b z h w"]],
        temperature: float = 1.0,
    ) -> list[Float[Tensor, "b z h w"]]:
        """The latents, each None drawn from its prior given those above it: mean + temperature * stddev * noise."""
        with self._evaluation():
            return [layer.z for layer in self._from(latents, noise, temperature)]

    @torch.no_grad()
    def standardised(self, latents: Sequence[Float[Tensor, "b z h w"]]) -> list[Float[Tensor, "b z h w"]]:
        """(z - mean) / stddev under the priors: the noise from which `completed` would draw these latents."""
        with self._evaluation():
            return [(layer.z - layer.prior.mean) / layer.prior.stddev for layer in self._from(latents, None, 1.0)]

    @torch.no_grad()
    def mean_image(
        self,
        latents: Sequence[Float[Tensor, "b z h w"] | None],
        noise: Sequence[Float[Tensor, "b z h w"]] | None = None,
        temperature: float = 1.0,
    ) -> Float[Tensor, "b c H W"]:
        """The likelihood's mean, in pixel values; the probability of a one for binary data.

        Args:
            latents, noise, temperature: as in `completed`; no noise is needed where all latents are given.
        """
        with self._evaluation():
            last = self._from(latents, noise, temperature)[-1]
            head = self.likelihood_head(last.top_down.context, last.z).float()
            match self.config.likelihood:
                case BernoulliConfig():
                    return bernoulli.mean(head)
                case LogisticMixtureConfig(num_mixtures=num_mixtures):
                    u = logistic_mixture.mean(logistic_mixture.split(head, self.spec.channels, num_mixtures))
                    return (u + 1) / 2 * self.spec.max_value

    @torch.no_grad()
    def nll_given(
        self,
        x: Integer[Tensor, "b c H W"],
        latents: Sequence[Float[Tensor, "b z h w"] | None],
        noise: Sequence[Float[Tensor, "b z h w"]] | None = None,
    ) -> Float[Tensor, "b"]:
        """-log p(x | z) in nats; latents and noise as in `completed`, at temperature 1."""
        with self._evaluation():
            last = self._from(latents, noise, 1.0)[-1]
            head = self.decoder(last.top_down.context, last.z).head.float()
            return -self._log_prob(self._checked_pixels(x), head)

    def reconstruct(
        self, x: Integer[Tensor, "b c H W"], noise: Sequence[Float[Tensor, "b z h w"]] | None = None
    ) -> Integer[Tensor, "b c H W"]:
        """Images drawn from the likelihood given latents drawn from the posteriors."""
        return self.decode(self.encode(x, noise))

    @torch.no_grad()
    def log_likelihood(
        self, x: Integer[Tensor, "b c H W"], num_samples: int, noise: Sequence[Float[Tensor, "kb z h w"]] | None = None
    ) -> Float[Tensor, "b"]:
        """Importance-weighted bound on log p(x) in nats, from K = num_samples posterior samples (paper, section 5).

        Args:
            noise: L tensors [K B, Z, h, w], sample-major: row k B + b is sample k of image b.
        """
        with self._evaluation():
            x = self._checked_pixels(x)
            if noise is not None:
                noise = self._checked_noise(noise, num_samples * len(x), x.device)
            per_image = []
            for images in torch.arange(len(x), device=x.device).split(ROWS_AT_ONCE):
                features = self._features(x[images])
                log_weights = []
                for samples in torch.arange(num_samples, device=x.device).split(max(1, ROWS_AT_ONCE // len(images))):
                    rows = (samples[:, None] * len(x) + images).flatten()
                    eps = self._noise(len(rows), x.device) if noise is None else [noise_i[rows] for noise_i in noise]
                    tiled = self._cut([e.whole.repeat(len(samples), 1, 1, 1) for e in features])
                    weights = self._log_weights(x[rows % len(x)], self._seen(tiled), eps)
                    log_weights.append(weights.view(len(samples), -1))
                per_image.append(torch.cat(log_weights).logsumexp(dim=0) - math.log(num_samples))
            return torch.cat(per_image)

    @torch.no_grad()
    def log_weights(
        self, x: Integer[Tensor, "b c H W"], noises: Iterable[Sequence[Float[Tensor, "b z h w"]]]
    ) -> Iterator[Float[Tensor, "b"]]:
        """log p(x, z) - log q(z | x) in nats for one draw of z after the other. The images are encoded once.

        Args:
            noises: for each draw L standard normal tensors.
        """
        with self._evaluation():
            x = self._checked_pixels(x)
            seen = self._seen(self._features(x))
            for noise in noises:
                yield self._log_weights(x, seen, self._checked_noise(noise, len(x), x.device))

    def features(self, x: Integer[Tensor, "b c H W"]) -> list[list[Slot]]:
        """For each layer i the bottom-up features e_i ... e_L of raw pixels, on its grid: what `Infer` takes.

        Without attention in the inference path a layer sees e_i alone.
        """
        return self._seen(self._features(self._checked_pixels(x)))

    def layer(self, index: int, contexts: list[Slot], z_previous: Tensor | None, source: Infer | Draw | Given) -> Layer:
        """Runs one latent layer, those above it done; `contexts` is theirs and receives its own.

        Where a finer grid begins, the contexts are first brought to it, and stay there.
        """
        layer = self.layers[index]
        grids = self.config.grids
        if z_previous is not None and grids[index] < grids[index - 1]:
            read_from = 0 if self.config.decoder_attention else len(contexts) - 1
            contexts[read_from:] = [finer(context) for context in contexts[read_from:]]
            z_previous = nearest_double(z_previous)
        run = partial(recomputed, layer) if "layers" in self.recompute else layer
        # A copy of the list, which goes on to grow before the backward pass.
        output: Layer = run([*contexts], z_previous, source)
        if output.top_down.normalised is not None:
            contexts[-2] = output.top_down.normalised
        contexts.append(output.top_down.slot)
        return output

    def likelihood_head(
        self, context: Float[Tensor, "b c h w"], z: Float[Tensor, "b z h w"]
    ) -> Float[Tensor, "b p H W"]:
        """The likelihood's raw parameters of each pixel, from context and latent of the last layer."""
        return self._cropped(self.decoder(context, z).head)

    def depth_attention_by(self, dtype: torch.dtype) -> str | None:
        """Which implementation of depth-wise attention runs in this precision where the parameters are, and why.

        Returns:
            A line; None for a model without depth-wise attention.

        Raises:
            ValueError: the one that was asked for cannot run.
        """
        lines = []
        for name, module in self._attentions():
            _, height, width = self.latent_shapes[int(name.rpartition("_")[2])]
            key, value = (
                torch.empty(1, channels, height, width, dtype=dtype, device=self._device())
                for channels in (module.key_dim, module.channels)
            )
            lines.append(choose(module.implementation, key, [key], [value])[1])
        return "depth-wise attention: " + " and ".join(dict.fromkeys(lines)) if lines else None

    def attention_gates(self) -> dict[str, Tensor]:
        """The gate gamma of each depth-wise attention, `decoder/layer_01` ..., `encoder/layer_00` ..., float32.

        Raises:
            ValueError: the parameters are partitioned (ZeRO stage 3), so that this model does not hold them.
        """
        if any(module.gamma.numel() == 0 for _, module in self._attentions()):
            raise ValueError("the parameters are partitioned over the ranks: load the gathered ones into another model")
        return {name: module.gamma.detach().float().squeeze() for name, module in self._attentions()}

    @contextmanager
    def without_depth_attention(self) -> Iterator[None]:
        """Within it, what depth-wise attention adds to the conditions of priors and posteriors is zero."""
        modules = [module for _, module in self._attentions()]
        for module in modules:
            module.muted = True
        try:
            yield
        finally:
            for module in modules:
                module.muted = False

    @contextmanager
    def hidden_context(self, name: str, slot: int) -> Iterator[None]:
        """Within it, a depth-wise attention looks at one slot less; its other probabilities sum to 1 without it.

        Args:
            name, slot: as in `watched_depth_attention`, whose probabilities stay those of all slots.

        Raises:
            ValueError: there is no such attention or slot, or it is the only one.
        """
        slots = {known: self._slots(known) for known, _ in self._attentions()}
        if name not in slots:
            raise ValueError(f"no depth-wise attention {name!r}: the model has {', '.join(slots) or 'none'}")
        if not 0 <= slot < slots[name]:
            raise ValueError(f"{name} attends to the slots 0 to {slots[name] - 1}, got {slot}")
        if slots[name] == 1:
            raise ValueError(f"{name} has one slot only: without_depth_attention() switches the attention off")
        module = dict(self._attentions())[name]
        module.hidden = slot
        try:
            yield
        finally:
            module.hidden = None

    @contextmanager
    def watched_depth_attention(self, watch: Callable[[str, Float[Tensor, "n b h w"]], None]) -> Iterator[None]:
        """Within it, forward passes also compute the probabilities of each depth-wise attention, for `watch`.

        Args:
            watch: is called with the attention's name, as in `attention_gates`, and the probabilities over the slots n
                at each pixel. Slot l of `decoder/layer_m` is the context of layer l = 0 ... m - 1, that of
                `encoder/layer_m` is the feature m + l, up to that of the pre-processing; l = 0 is the layer's own.
        """
        hooks = [
            module.register_forward_pre_hook(
                lambda module, args, name=name: watch(name, module.probabilities(*args).detach())
            )
            for name, module in self._attentions()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def watched_spatial_attention(
        self, at: tuple[float, float], watch: Callable[[str, Float[Tensor, "b h w"]], None]
    ) -> Iterator[None]:
        """Within it, forward passes also compute where one pixel looks in each non-local block, for `watch`.

        Args:
            at: the pixel that asks, as (y, x) in [0, 1) of the height and width of the image with its margin.
            watch: is called with the block's name and the probabilities over the pixels of its map, or over every
                second one where the block subsamples.
        """

        def look(block: NonLocalBlock, args: tuple[Tensor], name: str) -> None:
            height, width = args[0].shape[2:]
            watch(name, block.probabilities(args[0], int(at[0] * height), int(at[1] * width)).detach())

        hooks = [
            block.register_forward_pre_hook(partial(look, name=name.removesuffix(".non_local")))
            for name, block in self.named_modules()
            if isinstance(block, NonLocalBlock)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _slots(self, name: str) -> int:
        path, _, layer = name.partition("/layer_")
        return int(layer) if path == "decoder" else len(self.layers) - int(layer) + 1

    def _attentions(self) -> Iterator[tuple[str, DecoderAttention | EncoderAttention]]:
        for i, layer in enumerate(self.layers):
            for module in layer.modules():
                if isinstance(module, DecoderAttention):
                    yield f"decoder/layer_{i:02d}", module
                elif isinstance(module, EncoderAttention):
                    yield f"encoder/layer_{i:02d}", module

    def _top_down(self, contexts: list[Slot], sources: Sequence[Infer | Draw | Given]) -> list[Layer]:
        """Runs the latent layers; `contexts` receives their contexts."""
        outputs: list[Layer] = []
        for i, source in enumerate(sources):
            outputs.append(self.layer(i, contexts, outputs[-1].z if outputs else None, source))
        return outputs

    def _from(
        self, latents: Sequence[Tensor | None], noise: Sequence[Tensor] | None, temperature: float
    ) -> list[Layer]:
        """The layers with these latents, each None drawn from its prior with its noise."""
        given = [z for z in latents if z is not None]
        if noise is None:
            self._check_latents("latents", given, len(given[0]) if given else 0)
            noise = given
        else:
            self._check_latents("noise", noise, len(noise[0]) if noise else 0)
        sources = [Draw(eps, temperature) if z is None else Given(z) for z, eps in zip(latents, noise, strict=True)]
        return self._top_down([], sources)

    def _log_weights(self, x: Tensor, seen: list[list[Slot]], noise: list[Tensor]) -> Float[Tensor, "b"]:
        layers = self._top_down([], _inferred(seen, noise))
        head = self.decoder(layers[-1].top_down.context, layers[-1].z).head
        with torch.autocast(x.device.type, enabled=False):
            log_ratios = [layer.prior.log_prob(layer.z) - _posterior(layer).log_prob(layer.z) for layer in layers]
            return torch.stack(log_ratios).sum(dim=0) + self._log_prob(x, head.float())

    def _log_prob(self, x: Tensor, head: Tensor) -> Float[Tensor, "b"]:
        head = self._cropped(head)
        match self.config.likelihood:
            case BernoulliConfig():
                return bernoulli.log_prob(x.float(), head)
            case LogisticMixtureConfig(num_mixtures=num_mixtures, edges=edges):
                mixture = logistic_mixture.split(head, self.spec.channels, num_mixtures)
                u = x.float() * 2 / self.spec.max_value - 1
                return logistic_mixture.log_prob(u, mixture, self.spec.max_value, edges)

    @property
    def _pixel_dtype(self) -> torch.dtype:
        return torch.uint8 if self.spec.num_bits <= 8 else torch.uint16

    def _cropped(self, head: Tensor) -> Tensor:
        pad = self.config.pad
        return head[:, :, pad : pad + self.spec.height, pad : pad + self.spec.width]

    def _features(self, x: Tensor) -> list[Slot]:
        return self._cut(self.encoder(self._scaled(x)))

    def _seen(self, features: list[Slot]) -> list[list[Slot]]:
        if self.config.encoder_attention is None:
            return [[feature] for feature in features[:-1]]
        return seen_by_layers(features, self.config.grids)

    def _cut(self, features: Iterable[Tensor]) -> list[Slot]:
        return [Slot.cut(e, self.config.encoder_width) for e in features]

    def _scaled(self, x: Tensor) -> Tensor:
        """Pixels in [-1, 1] with the margin, whose zeros become -1."""
        u = x.to(next(self.parameters()).dtype) * (2 / self.spec.white) - 1
        return F.pad(u, [self.config.pad] * 4, value=-1.0) if self.config.pad else u

    def _checked_pixels(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1:] != self.spec.shape:
            raise ValueError(
                f"the model takes images [batch, {', '.join(map(str, self.spec.shape))}], got {[*x.shape]}"
            )
        if x.dtype != self._pixel_dtype:
            raise ValueError(f"the model takes raw pixels of dtype {self._pixel_dtype}, got {x.dtype}")
        if torch.compiler.is_exporting():  # no values yet
            return x
        # Elsewhere than on the CPU the check would wait for the device in every step.
        if x.device.type == "cpu" and len(x) and self.spec.white < 255 and (found := int(x.max())) > self.spec.white:
            raise ValueError(f"the model takes pixel values 0 to {self.spec.white}, got {found}")
        return x

    def _checked_noise(self, noise: Sequence[Tensor] | None, batch: int, device: torch.device) -> list[Tensor]:
        if noise is None:
            return self._noise(batch, device)
        self._check_latents("noise", noise, batch)
        return [*noise]

    def _noise(self, batch: int, device: torch.device) -> list[Tensor]:
        return [torch.randn(batch, *shape, device=device) for shape in self.latent_shapes]

    def _check_latents(self, name: str, tensors: Sequence[Tensor], batch: int) -> None:
        expected = [(batch, *shape) for shape in self.latent_shapes]
        found = [tuple(tensor.shape) for tensor in tensors]
        if len(found) != len(expected):
            raise ValueError(f"{name}: the model has {len(expected)} latent layers, got {len(found)} tensors")
        for i, (shape, wanted) in enumerate(zip(found, expected, strict=True)):
            if shape != wanted:
                raise ValueError(f"{name}[{i}]: expected shape {wanted}, got {shape}")

    def _device(self) -> torch.device:
        return next(self.parameters()).device

    @contextmanager
    def _evaluation(self) -> Iterator[None]:
        """Moving statistics, no noise on the log-scales; then as it was."""
        if not self.training:  # to say so to every module takes longer than a small one's work
            yield
            return
        self.eval()
        try:
            yield
        finally:
            self.train()


def _inferred(seen: list[list[Slot]], noise: Sequence[Tensor]) -> list[Infer]:
    return [Infer(features, eps) for features, eps in zip(seen, noise, strict=True)]


def _posterior(layer: Layer) -> gaussian.Gaussian:
    assert layer.posterior is not None, "an inferred layer has a posterior"
    return layer.posterior


def _trace(
    elbo: Elbo, features: list[Slot], layers: list[Layer], contexts: list[Slot], decoded: Decoded
) -> dict[str, Tensor]:
    """Every intermediate; what a layer lacks (key, query, prior of the top layer) is absent."""
    trace = {f"e.{j}": e.whole for j, e in enumerate(features)}
    for i, layer in enumerate(layers):
        top_down, name = layer.top_down, f"layer.{i}"
        trace[f"{name}.new_context"] = top_down.new_context
        trace[f"{name}.prior_condition"] = top_down.prior_condition
        if top_down.key is not None:
            trace[f"{name}.key"] = top_down.key
        if top_down.encoder_query.shape[1]:
            trace[f"{name}.encoder_query"] = top_down.encoder_query
        assert layer.posterior_condition is not None
        trace[f"{name}.posterior_condition"] = layer.posterior_condition
        for side, gaussian_, raw in (
            ("posterior", layer.posterior, layer.posterior_raw),
            ("prior", layer.prior, top_down.prior_raw),
        ):
            if gaussian_ is not None and raw is not None:
                trace[f"{name}.{side}_raw_mu"], trace[f"{name}.{side}_raw_log_sigma"] = raw
                trace[f"{name}.{side}_mu"], trace[f"{name}.{side}_sigma"] = gaussian_
        trace[f"{name}.z"] = layer.z
        trace[f"{name}.kl"] = elbo.kl_nats[i]
        trace[f"{name}.context_out"] = top_down.context
        trace[f"context_after_encode.{i}"] = contexts[i].whole
    trace["merged_latent"], trace["head_params"] = decoded
    trace |= {"nll": elbo.nll_nats, "kl_sum": elbo.kl_nats.sum(dim=0), "nelbo": elbo.nelbo_nats}
    return trace
