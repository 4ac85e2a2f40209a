"""The authors' evaluation command line -> the configuration of the model that it evaluates. Does not import torch.

Their training writes `eval_command.sh` beside its weights: `python3 run.py --mode=eval --dataset=cifar10
--hparams=num_layers=16,... --decoder_hparams=scale=[0,0],...`. Keys that are absent have the defaults of their code.
"""

import shlex
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import Field, StrictBool, ValidationError, model_validator

from attvae.model.config import (
    BernoulliConfig,
    DepthAttentionConfig,
    LogisticMixtureConfig,
    LogScaleConfig,
    ModelConfig,
    NonLocalConfig,
    StackConfig,
)
from attvae.spec import Config, DataSpec

Value = bool | int | float | str | list["Value"] | dict[str, "Value"]
C = TypeVar("C", bound=Config)


class Images(Config):
    """What the authors' code knows of a data set: the size before `pad` pixels are added on each side."""

    height: int = Field(gt=0)
    width: int = Field(gt=0)
    channels: int = Field(gt=0)
    num_bits: int = Field(ge=1, le=16)
    binary: bool = False
    pad: int = Field(default=0, ge=0)

    @property
    def spec(self) -> DataSpec:
        fields = self.model_dump(exclude={"pad"})
        return DataSpec(**fields, max_value=2**self.num_bits - 1)


DATASETS = {
    "cifar10": Images(height=32, width=32, channels=3, num_bits=8),
    "mnist": Images(height=28, width=28, channels=1, num_bits=8, binary=True, pad=2),
    "omniglot": Images(height=28, width=28, channels=1, num_bits=8, binary=True, pad=2),
}

NOT_OF_THE_MODEL = {
    "mode", "dataset_path", "checkpoint_period", "train_log_dir", "train_log_subdir", "eval_log_dir", "model_filepath",
    "train_hparams", "eval_hparams", "epoch",
}  # fmt: skip


# Below, a Literal is a choice of theirs of which this model has one. What only matters in training, and what their code
# reads nowhere, is accepted and left.
class _Regularised(Config):
    kernel_regularizer: str = "l2"
    bias_regularizer: str = "l2"
    lambda_reg: float = 1.5e-4
    use_bias: Literal[True] = True
    use_weight_norm: Literal[True] = True
    use_data_init: StrictBool = False


class _NonLocal(Config):
    key_dim: int = 32
    query_dim: int = 32  # not read: queries have the width of the keys
    value_dim: int = 32
    num_heads: int = 1
    use_scale: StrictBool = True
    subsample: StrictBool = False
    alignment_function: Literal["softmax"] = "softmax"
    use_layer_norm: StrictBool = False
    layer_norm_regularizer: str = "l2"


class _Merge(_Regularised):
    layer_type: str = ""
    kernel_size: Literal[1] = 1
    use_nonlocal: StrictBool = False
    nonlocop_hparams: _NonLocal = _NonLocal()


class _Stack(_Regularised):
    layer_type: Literal["resnet"] = "resnet"
    node_type: Literal["conv2d"] = "conv2d"
    num_nodes: int = 2
    use_stem: Literal[False] = False
    kernel_size: Literal[3] = 3
    stem_kernel_size: Literal[3] = 3
    num_blocks: int = 2
    scale: int | tuple[int, ...] = -2
    activation: Literal["swish"] = "swish"
    activation_alpha: float = 0.0
    activation_max_value: float = 1e3
    activation_threshold: float = 0.0
    num_filters: int = 16
    batch_norm_regularizer: str = "l2"
    use_se: StrictBool = False
    use_batch_norm: Literal[True] = True
    bn_momentum: float = 0.9
    use_nonlocal: StrictBool = False
    nonlocop_hparams: _NonLocal = _NonLocal()

    @property
    def scales(self) -> tuple[int, ...]:
        return self.scale if isinstance(self.scale, tuple) else (self.scale,) * self.num_blocks

    @model_validator(mode="after")
    def _as_many_scales_as_blocks(self) -> Self:
        if len(self.scales) != self.num_blocks:
            raise ValueError(f"num_blocks={self.num_blocks}, but scale={[*self.scales]} is for {len(self.scales)}")
        return self


class _StackWithStem(_Stack):
    use_stem: Literal[True] = True  # type: ignore[assignment]


class _DepthAttention(Config):
    key_dim: int = 20
    query_dim: int = 20
    value_dim: int = 20
    alignment_function: Literal["softmax"] = "softmax"
    use_scale: StrictBool = True  # their scale is never trained: the constant 1
    use_layer_norm: StrictBool = False

    @model_validator(mode="after")
    def _keys_meet_queries(self) -> Self:
        if self.key_dim != self.query_dim:
            raise ValueError(f"key_dim={self.key_dim}, but query_dim={self.query_dim}; keys and queries have one width")
        return self


class _Gaussian(Config):
    log_scale_low_bound: float = -5.0
    log_scale_upper_bound: float = 5.0
    noise_stddev: float = -1.0


class _LogisticMixture(Config):
    num_logistic_mix: int = 5
    high: float = 255
    low: float = 0
    log_scale_low_bound: float = Field(default=-7.0, ge=-7.0, le=-7.0)
    log_scale_upper_bound: float = 7.0


class _Bernoulli(Config):
    pass


class _Transform(Config):
    flip_horizontally: StrictBool | None = None
    flip_vertically: StrictBool | None = None
    dequantize: StrictBool | None = None
    sample_binary: StrictBool | None = None
    pad_size: int | None = None


class _Hierarchy(Config):
    posterior_type: Literal["gaussian_diag"] = "gaussian_diag"
    prior_type: Literal["gaussian_diag"] = "gaussian_diag"
    data_distribution: Literal["discretized_logistic_mixture", "bernoulli"] = "discretized_logistic_mixture"
    num_layers: int = 1
    layer_latent_shape: tuple[int, int, int]
    data_layer_type: Literal["conv2d"] = "conv2d"
    posterior_layer_type: Literal["conv2d"] = "conv2d"
    prior_layer_type: Literal["conv2d"] = "conv2d"
    residual_var_layer: Literal[True] = True
    preproc_encoder_type: Literal["resnet"] = "resnet"
    encoder_type: Literal["resnet"] = "resnet"
    postproc_decoder_type: Literal["resnet"] = "resnet"
    decoder_type: Literal["resnet"] = "resnet"
    merge_encoder_type: Literal["conv2d_sum"] = "conv2d_sum"
    merge_decoder_type: Literal["concat_conv2d"] = "concat_conv2d"
    num_proc_blocks: int = Field(default=1, ge=1)


def read_data_spec(path: Path) -> Images:
    """The images of a data set of one's own: JSON with height, width, channels, num_bits, binary, pad.

    Raises:
        ValueError: the file cannot be read or says something else.
    """
    try:
        return Images.model_validate_json(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} does not describe images: {error}") from error


def parse_command(text: str, images: Images | None = None) -> tuple[ModelConfig, DataSpec]:
    """The model and the images of the authors' command line.

    Args:
        text: the command as their training writes it; line continuations are allowed.
        images: takes the place of what `--dataset` implies.

    Raises:
        ValueError: a flag or key that is unknown, that this model has no counterpart for, or that contradicts another.
    """
    flags = _flags(text)
    dataset = flags.pop("dataset", "cifar10")
    if images is None:
        if dataset not in DATASETS:
            raise ValueError(f"--dataset={dataset} is not one of {', '.join(DATASETS)}: describe it with --data-spec")
        images = DATASETS[dataset]

    def read(flag: str, kind: type[C]) -> C:
        return _hparams(flag, flags.pop(flag, ""), kind)

    hierarchy = read("hparams", _Hierarchy)
    preprocessing, encoder = read("preproc_encoder_hparams", _StackWithStem), read("encoder_hparams", _Stack)
    postprocessing, decoder = read("postproc_decoder_hparams", _Stack), read("decoder_hparams", _Stack)
    encoder_merge, decoder_merge = read("merge_encoder_hparams", _Merge), read("merge_decoder_hparams", _Merge)
    posterior, prior = read("posterior_hparams", _Gaussian), read("prior_hparams", _Gaussian)
    encoder_attention = read("encoder_attention_hparams", _DepthAttention) if _given(flags, "encoder") else None
    decoder_attention = read("decoder_attention_hparams", _DepthAttention) if _given(flags, "decoder") else None
    transform = read("dataset_transform", _Transform)
    likelihood: BernoulliConfig | LogisticMixtureConfig
    if hierarchy.data_distribution == "bernoulli":
        read("data_dist_hparams", _Bernoulli)
        likelihood = BernoulliConfig()
    else:
        mixture = read("data_dist_hparams", _LogisticMixture)
        likelihood = LogisticMixtureConfig(num_mixtures=mixture.num_logistic_mix, edges="published")

    _check_images(hierarchy, transform, images)
    _check_halvings(hierarchy, preprocessing, encoder_attention)
    config = ModelConfig(
        num_layers=hierarchy.num_layers,
        latent_channels=hierarchy.layer_latent_shape[-1],
        encoder_filters=preprocessing.num_filters,
        decoder_filters=decoder.num_filters,
        num_proc_blocks=hierarchy.num_proc_blocks,
        preprocessing=_stack(preprocessing),
        encoder=_stack(encoder),
        decoder=_stack(decoder),
        postprocessing=_stack(postprocessing),
        encoder_merge=_non_local(encoder_merge),
        decoder_merge=_non_local(decoder_merge),
        encoder_attention=_depth_attention(encoder_attention),
        decoder_attention=_depth_attention(decoder_attention),
        norm="batch",
        posterior=_log_scale(posterior),
        prior=_log_scale(prior),
        soft_clamp="published",
        likelihood=likelihood,
        pad=images.pad,
    )
    _, *latents = config.latent_shape(images.spec)
    if latents != [*hierarchy.layer_latent_shape[:2]]:
        raise ValueError(
            f"--hparams: layer_latent_shape={[*hierarchy.layer_latent_shape]}, but images of {images.height} x "
            f"{images.width} padded by {images.pad} and halved {config.halvings} times have latents of {latents}; give "
            "the images with --data-spec, or correct the command (the authors' code reads the last number only)"
        )
    return config, images.spec


def _flags(text: str) -> dict[str, str]:
    """Names -> values of `--name=value` and `--name value`; what stands before the first flag is the program."""
    try:
        words = iter(shlex.split(text.replace("\\\n", " "), comments=True))
    except ValueError as error:
        raise ValueError(f"the command line cannot be read: {error}") from error
    flags: dict[str, str] = {}
    for word in words:
        if not word.startswith("--"):
            if flags:
                raise ValueError(f"{word!r} in the command line is not a flag of the form --name=value")
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        value = value if equals else next(words, "")
        if name not in NOT_OF_THE_MODEL and flags.get(name, value) != value:
            raise ValueError(f"--{name} is given twice: {flags[name]!r} and {value!r}")
        flags[name] = value
    if not flags:
        raise ValueError(
            "the command line has no flags; expected python3 run.py --mode=eval --dataset=... --hparams=..."
        )
    known = {*NOT_OF_THE_MODEL, *MODEL_FLAGS}
    for name in flags.keys() - known:
        raise ValueError(f"unknown flag --{name}; the authors' flags are {', '.join(sorted(known))}")
    return flags


MODEL_FLAGS = (
    "dataset", "dataset_transform", "hparams", "preproc_encoder_hparams", "encoder_hparams", "merge_encoder_hparams",
    "decoder_hparams", "merge_decoder_hparams", "postproc_decoder_hparams", "posterior_hparams", "prior_hparams",
    "data_dist_hparams", "encoder_attention_hparams", "decoder_attention_hparams",
)  # fmt: skip


def _given(flags: dict[str, str], path: str) -> bool:
    """Depth-wise attention is off where its flag is absent or empty."""
    return bool(flags.get(f"{path}_attention_hparams"))


def _hparams(flag: str, text: str, kind: type[C]) -> C:
    try:
        return kind.model_validate(_pairs(text))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        match problem["type"]:
            case "extra_forbidden":
                message = f"unknown key {key}; known are {', '.join(kind.model_fields)}"
            case "missing":
                message = f"{key} is missing"
            case "value_error":
                message = problem["msg"].removeprefix("Value error, ")
            case _:
                message = f"{key}={problem['input']!r}: {problem['msg']}"
        raise ValueError(f"--{flag}: {message}") from None
    except ValueError as error:
        raise ValueError(f"--{flag}: {error}") from None


def _pairs(text: str) -> dict[str, Value]:
    """`a=1,b=[0,-2],c=[d=True]` -> {"a": 1, "b": [0, -2], "c": {"d": True}}"""
    pairs: dict[str, Value] = {}
    for part in _split(text):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} is not of the form key=value")
        if pairs.setdefault(key, parsed := _value(value)) != parsed:
            raise ValueError(f"{key} is given twice: {pairs[key]!r} and {parsed!r}")
    return pairs


def _value(text: str) -> Value:
    if text.startswith("[") and text.endswith("]"):
        inner = text[1:-1]
        if "=" in inner:
            return _pairs(inner)
        items = [_value(item) for item in _split(inner)]
        return items[0] if len(items) == 1 else items  # as the authors' code reads a list of one
    if text in ("True", "False"):
        return text == "True"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _split(text: str) -> list[str]:
    """The parts between the commas that stand outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if depth < 0:
            break
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    if depth:
        raise ValueError(f"brackets do not match in {text!r}")
    return [part.strip() for part in parts if part.strip()]


def _check_images(hierarchy: _Hierarchy, transform: _Transform, images: Images) -> None:
    if (hierarchy.data_distribution == "bernoulli") != images.binary:
        kind = "binary" if images.binary else "not binary"
        raise ValueError(
            f"--hparams: data_distribution={hierarchy.data_distribution}, but the images are {kind} (--dataset or "
            "--data-spec); bernoulli is for binary images, discretized_logistic_mixture for others"
        )
    if transform.pad_size not in (None, images.pad):
        raise ValueError(
            f"--dataset_transform: pad_size={transform.pad_size}, but the images are padded by {images.pad}"
        )
    if transform.sample_binary not in (None, images.binary):
        raise ValueError(
            f"--dataset_transform: sample_binary={transform.sample_binary}, but the images have binary={images.binary}"
        )


def _check_halvings(hierarchy: _Hierarchy, preprocessing: _Stack, attention: _DepthAttention | None) -> None:
    if hierarchy.num_layers == 1:
        raise ValueError("--hparams: num_layers=1 is another model in the authors' code, without a context; 2 or more")
    if preprocessing.scales.count(-2) != 1:
        raise ValueError(
            f"--hparams: num_proc_blocks={hierarchy.num_proc_blocks}, each halving the image once, but "
            f"--preproc_encoder_hparams: scale={[*preprocessing.scales]} halves it {preprocessing.scales.count(-2)} times"
        )
    if hierarchy.num_proc_blocks > 1 and attention is not None:
        raise ValueError(
            f"--hparams: num_proc_blocks={hierarchy.num_proc_blocks}, but --encoder_attention_hparams: key_dim="
            f"{attention.key_dim}; in the authors' code the encoder's attention needs num_proc_blocks=1"
        )


def _stack(stack: _Stack) -> StackConfig:
    return StackConfig.model_validate(
        {
            "scales": stack.scales,
            "num_nodes": stack.num_nodes,
            "non_local": _non_local(stack),
            "squeeze_excite": stack.use_se,
        }
    )


def _non_local(part: _Stack | _Merge) -> NonLocalConfig | None:
    block = part.nonlocop_hparams
    if not part.use_nonlocal:
        return None
    return NonLocalConfig(
        key_dim=block.key_dim,
        layer_norm=block.use_layer_norm,
        subsample=block.subsample,
        learned_scale=block.use_scale,
    )


def _depth_attention(attention: _DepthAttention | None) -> DepthAttentionConfig | None:
    return attention and DepthAttentionConfig(key_dim=attention.key_dim, layer_norm=attention.use_layer_norm)


def _log_scale(gaussian: _Gaussian) -> LogScaleConfig:
    return LogScaleConfig(
        low=gaussian.log_scale_low_bound,
        high=gaussian.log_scale_upper_bound,
        noise_stddev=max(gaussian.noise_stddev, 0.0),
    )
