"""What the model is made of, without building it: this module does not import torch.

Symbols (paper, section 3): L latent layers, Z latent channels, P halvings of the image, D and E the widths of the
generative and the inference path at the resolution of the latents, kd and ke the key widths of their attentions.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from attvae.spec import Config, DataSpec

Norm = Literal["batch", "sync_batch", "group", "none"]
"""batch: over the images of a rank, as published; sync_batch: over those of all ranks."""


class NonLocalConfig(Config):
    """A non-local (spatial self-attention) block."""

    key_dim: int = Field(gt=0)
    layer_norm: bool = False
    subsample: bool = False  # keys and values from a 2x2 max-pooled map
    learned_scale: bool = True


class StackConfig(Config):
    """Residual cells in sequence. A cell of scale 0 keeps the map, -2 halves it, 2 doubles it."""

    scales: tuple[Literal[-2, 0, 2], ...] = (0, 0)
    num_nodes: int = Field(default=2, ge=1)
    non_local: NonLocalConfig | None = None
    squeeze_excite: bool = False
    residual_scale: float = Field(default=0.1, gt=0)  # weight of a cell's convolutions beside its shortcut


class DepthAttentionConfig(Config):
    """Depth-wise attention of one path over the earlier layers of that path.

    The scale of its scores is the constant 1 as `published`; `learned`: a trained factor times 1 / sqrt(key_dim).
    """

    key_dim: int = Field(gt=0)
    layer_norm: bool = True
    scale: Literal["published", "learned"] = "published"


class LogScaleConfig(Config):
    """Limits of a Gaussian's log sigma. Equal limits but for the sign bound by tanh, others by a smoothstep."""

    low: float = -5.0
    high: float = 5.0
    noise_stddev: float = Field(default=0.0, ge=0)  # Gaussian noise on the raw log sigma, in training only

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"log-scale limits: low {self.low} must be below high {self.high}")
        return self


class BernoulliConfig(Config):
    """Independent binary pixels."""

    kind: Literal["bernoulli"] = "bernoulli"


class LogisticMixtureConfig(Config):
    """Mixture of discretised logistics, autoregressive over the channels of a pixel.

    `edges: published` is the authors' (8 bits, 3 channels; gives the value 254 the mass of {254, 255}, so its
    probabilities sum to more than one). `normalised` is a distribution for any bit depth and 1 to 4 channels.
    """

    kind: Literal["logistic_mixture"] = "logistic_mixture"
    num_mixtures: int = Field(default=5, gt=0)
    edges: Literal["published", "normalised"] = "normalised"


class ModelConfig(Config):
    """The architecture. `encoder_filters` and `decoder_filters` are widths at the resolution of the image: E and D
    are 2^P times that. P is num_proc_blocks times the number of -2 cells in `preprocessing`.

    Attributes:
        coarser_layers: numbers of layers on coarser grids, the coarsest first; the others are on the published one.
            Each grid is half as fine as the next on both axes.
    """

    num_layers: int = Field(ge=1)
    coarser_layers: tuple[Annotated[int, Field(ge=1)], ...] = ()
    latent_channels: int = Field(gt=0)
    encoder_filters: int = Field(gt=0)
    decoder_filters: int = Field(gt=0)
    num_proc_blocks: int = Field(default=1, ge=1)
    preprocessing: StackConfig = StackConfig(scales=(0, -2))
    encoder: StackConfig = StackConfig()
    decoder: StackConfig = StackConfig()
    postprocessing: StackConfig = StackConfig(scales=(2, 0))
    encoder_merge: NonLocalConfig | None = None
    decoder_merge: NonLocalConfig | None = None
    encoder_attention: DepthAttentionConfig | None = None
    decoder_attention: DepthAttentionConfig | None = None
    norm: Norm = "batch"
    init_variance: float = Field(default=0.33, gt=0)  # of a kernel's initial values, times its fan-in
    posterior: LogScaleConfig = LogScaleConfig()
    prior: LogScaleConfig = LogScaleConfig()
    soft_clamp: Literal["published", "unit_slope"] = "unit_slope"
    likelihood: Annotated[BernoulliConfig | LogisticMixtureConfig, Field(discriminator="kind")]
    pad: int = Field(default=0, ge=0)  # margin of zeros around the image, cropped again in the likelihood

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
        """P: the latents are 2^P times smaller than the padded image on each axis."""
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
