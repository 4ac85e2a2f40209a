"""What the model is made of, without building it: this module does not import torch.

Symbols (paper, section 3): L latent layers, Z latent channels, P halvings of the image, D and E the widths of the
generative and the inference path at the resolution of the latents, kd and ke the key widths of their attentions.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from attvae.spec import Config, DataSpec

Norm = Literal["batch", "sync_batch", "group", "none"]


class NonLocalConfig(Config):
    """A non-local (spatial self-attention) block."""

    key_dim: int = Field(gt=0, description="width of queries and keys")
    layer_norm: bool = Field(False, description="normalise input and output, the latter before a 1×1 convolution")
    subsample: bool = Field(False, description="keys and values from a 2×2 max-pooled map")
    learned_scale: bool = Field(True, description="the scale of the scores is trained; false: it is 1")


class StackConfig(Config):
    """Residual cells in sequence. A cell of scale 0 keeps the map, -2 halves it, 2 doubles it."""

    scales: tuple[Literal[-2, 0, 2], ...] = Field((0, 0), description="one for each cell")
    num_nodes: int = Field(default=2, ge=1, description="convolution nodes of a cell")
    non_local: NonLocalConfig | None = Field(None, description="a non-local block in every node; null: none")
    squeeze_excite: bool = Field(False, description="in the last node of a cell")
    residual_scale: float = Field(default=0.1, gt=0, description="weight of a cell's nodes beside its shortcut")


class DepthAttentionConfig(Config):
    """Depth-wise attention of one path over the earlier layers of that path.

    The scale of its scores is the constant 1 as `published`; `learned`: a trained factor times 1 / sqrt(key_dim).
    """

    key_dim: int = Field(gt=0, description="width of queries and keys")
    layer_norm: bool = Field(True, description="normalise and pass through a GELU what is attended to, and its result")
    scale: Literal["published", "learned"] = Field("published", description="of the scores")


class LogScaleConfig(Config):
    """Limits of a Gaussian's log sigma. Bound by tanh; with `soft_clamp: published` unequal ones by a smoothstep."""

    low: float = Field(-5.0, description="the lowest log sigma")
    high: float = Field(5.0, description="the highest log sigma")
    noise_stddev: float = Field(default=0.0, ge=0, description="Gaussian noise on the raw log sigma, in training only")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"log-scale limits: low {self.low} must be below high {self.high}")
        return self


class BernoulliConfig(Config):
    """Independent binary pixels."""

    kind: Literal["bernoulli"] = Field("bernoulli", description="for binary data")


class LogisticMixtureConfig(Config):
    """Mixture of discretised logistics, autoregressive over the channels of a pixel.

    `edges: published` is the authors' (8 bits, 3 channels; gives the value 254 the mass of {254, 255}, so its
    probabilities sum to more than one). `normalised` is a distribution for any bit depth and 1 to 4 channels.
    """

    kind: Literal["logistic_mixture"] = Field("logistic_mixture", description="for pixel values")
    num_mixtures: int = Field(default=5, gt=0, description="components M")
    edges: Literal["published", "normalised"] = Field("normalised", description="which values take a tail with them")


class ModelConfig(Config):
    """The architecture. `encoder_filters` and `decoder_filters` are widths at the resolution of the image: E and D
    are 2^P times that. P is num_proc_blocks times the number of -2 cells in `preprocessing`.
    """

    num_layers: int = Field(ge=1, description="latent layers L")
    coarser_layers: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="numbers of layers on coarser grids, the coarsest first, each half as fine as the next"
    )
    latent_channels: int = Field(gt=0, description="channels Z of each")
    encoder_filters: int = Field(gt=0, description="width of the inference path")
    decoder_filters: int = Field(gt=0, description="width of the generative path")
    num_proc_blocks: int = Field(default=1, ge=1, description="how often pre- and post-processing are repeated")
    preprocessing: StackConfig = Field(StackConfig(scales=(0, -2)), description="from the image to the latents' size")
    encoder: StackConfig = Field(StackConfig(), description="of each layer, bottom-up")
    decoder: StackConfig = Field(StackConfig(), description="of each layer, top-down")
    postprocessing: StackConfig = Field(StackConfig(scales=(2, 0)), description="back to the image's size")
    encoder_merge: NonLocalConfig | None = Field(None, description="a non-local block where features meet the context")
    decoder_merge: NonLocalConfig | None = Field(None, description="a non-local block where latents meet the context")
    encoder_attention: DepthAttentionConfig | None = Field(None, description="in the inference path; null: none")
    decoder_attention: DepthAttentionConfig | None = Field(None, description="in the generative path; null: none")
    norm: Norm = Field(
        "batch",
        description="batch: over the images of a rank, as published; sync_batch: over those of all ranks; group: "
        "within an image",
    )
    init_variance: float = Field(default=0.33, gt=0, description="of a kernel's initial values, times its fan-in")
    posterior: LogScaleConfig = Field(LogScaleConfig(), description="of the inference path's Gaussians")
    prior: LogScaleConfig = Field(LogScaleConfig(), description="of the generative path's Gaussians")
    soft_clamp: Literal["published", "unit_slope"] = Field(
        "unit_slope", description="what bounds means and log-scales; unit_slope: identity near 0, flat nowhere"
    )
    likelihood: Annotated[BernoulliConfig | LogisticMixtureConfig, Field(discriminator="kind")] = Field(
        description="the distribution of the images"
    )
    pad: int = Field(default=0, ge=0, description="margin of zeros around the image, cropped again in the likelihood")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        for name, allowed in (
            ("preprocessing", (-2, 0)),
            ("encoder", (0,)),
            ("decoder", (0,)),
            ("postprocessing", (0, 2)),
        ):
            for scale in getattr(self, name).scales:
                if scale not in allowed:
                    raise ValueError(f"{name}.scales: {scale} is not possible there; allowed are {allowed}")
        down, up = self.preprocessing.scales.count(-2), self.postprocessing.scales.count(2)
        if down != up:
            raise ValueError(
                f"preprocessing.scales halves {down} times but postprocessing.scales doubles {up} times; "
                "make them equal"
            )
        if sum(self.coarser_layers) >= self.num_layers:
            raise ValueError(
                f"coarser_layers {[*self.coarser_layers]} are {sum(self.coarser_layers)} of num_layers "
                f"{self.num_layers}; leave one or more for the finest grid"
            )
        if self.encoder_key_dim % 2**self.halvings:
            raise ValueError(
                f"encoder_attention.key_dim {self.encoder_key_dim} is not divisible by 2^P = {2**self.halvings} "
                f"(P = {self.halvings} halvings): the pre-processing widens from key_dim / 2^P"
            )
        if self.soft_clamp == "unit_slope":
            for name, limits in (("posterior", self.posterior), ("prior", self.prior)):
                if not limits.low < 0 < limits.high:
                    raise ValueError(
                        f"soft_clamp unit_slope needs limits on both sides of 0, but {name} has "
                        f"[{limits.low}, {limits.high}]; use soft_clamp published or other limits"
                    )
        return self

    @property
    def halvings(self) -> int:
        """P: the latents of the finest grid are 2^P times smaller than the padded image on each axis."""
        return self.num_proc_blocks * self.preprocessing.scales.count(-2)

    @property
    def encoder_width(self) -> int:
        """E, the channels of a bottom-up feature without its key."""
        return self.encoder_filters * 2**self.halvings

    @property
    def encoder_key_dim(self) -> int:
        """ke, also the width of the query that the generative path hands to the inference path."""
        return self.encoder_attention.key_dim if self.encoder_attention else 0

    @property
    def decoder_key_dim(self) -> int:
        """kd; a single layer has nothing to attend to."""
        return self.decoder_attention.key_dim if self.decoder_attention and self.num_layers > 1 else 0

    @property
    def context_width(self) -> int:
        """D + ke, the channels of a top-down context without its key."""
        return self.decoder_filters * 2**self.halvings + self.encoder_key_dim

    @property
    def grids(self) -> tuple[int, ...]:
        """The number of each layer's grid: 0 for the finest, 1 for the next coarser one, and so on."""
        on_grids = (*self.coarser_layers, self.num_layers - sum(self.coarser_layers))
        coarsest = len(self.coarser_layers)
        return tuple(coarsest - n for n, layers in enumerate(on_grids) for _ in range(layers))

    def latent_shapes(self, spec: DataSpec) -> list[tuple[int, int, int]]:
        """(Z, h, w) of each latent layer for images of `spec`, the top layer's first.

        Raises:
            ValueError: the images do not fit this model.
        """
        coarser_grids = len(self.coarser_layers)
        factor = 2 ** (self.halvings + coarser_grids)
        height, width = spec.height + 2 * self.pad, spec.width + 2 * self.pad
        if height % factor or width % factor:
            further = f", and {coarser_grids} more for coarser_layers" if coarser_grids else ""
            raise ValueError(
                f"images of {spec.height} x {spec.width} padded by {self.pad} to {height} x {width} cannot be halved "
                f"P = {self.halvings} times{further}; choose pad so that {factor} divides both"
                f"{', or fewer coarser_layers' if coarser_grids else ''}"
            )
        match self.likelihood:
            case BernoulliConfig():
                if not spec.binary:
                    raise ValueError(
                        "likelihood bernoulli needs binary data, but the data is not (binary: false); "
                        "use likelihood logistic_mixture"
                    )
            case LogisticMixtureConfig(edges=edges):
                if spec.binary:
                    raise ValueError(
                        "likelihood logistic_mixture needs pixel values, but the data is binary; "
                        "use likelihood bernoulli"
                    )
                if edges == "published" and (spec.channels, spec.max_value) != (3, 255):
                    raise ValueError(
                        f"likelihood.edges published is defined for 3 channels and max_value 255, but the data has "
                        f"{spec.channels} channels and max_value {spec.max_value}; use edges normalised"
                    )
                if spec.channels > 4:
                    raise ValueError(f"likelihood logistic_mixture: 1 to 4 channels, not {spec.channels}")
        per_pixel = [2 ** (self.halvings + grid) for grid in self.grids]
        return [(self.latent_channels, height // pixels, width // pixels) for pixels in per_pixel]
