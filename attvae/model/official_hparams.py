"""The authors' hyperparameters: names, defaults and text form. Does not import torch.

A `Literal` is a choice of theirs of which this model has one. What matters in training only, and what their code reads
nowhere, is accepted and left.
"""

from typing import Literal, Self, TypeVar

from pydantic import Field, StrictBool, ValidationError, model_validator

from attvae.spec import Config

Value = bool | int | float | str | list["Value"] | dict[str, "Value"]
C = TypeVar("C", bound=Config)


class Regularised(Config):
    kernel_regularizer: str = "l2"
    bias_regularizer: str = "l2"
    lambda_reg: float = 1.5e-4
    use_bias: Literal[True] = True
    use_weight_norm: Literal[True] = True
    use_data_init: StrictBool = False


class NonLocal(Config):
    key_dim: int = 32
    query_dim: int = 32  # not read: queries have the width of the keys
    value_dim: int = 32
    num_heads: int = 1
    use_scale: StrictBool = True
    subsample: StrictBool = False
    alignment_function: Literal["softmax"] = "softmax"
    use_layer_norm: StrictBool = False
    layer_norm_regularizer: str = "l2"


class Merge(Regularised):
    layer_type: str = ""
    kernel_size: Literal[1] = 1
    use_nonlocal: StrictBool = False
    nonlocop_hparams: NonLocal = NonLocal()


class Stack(Regularised):
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
    nonlocop_hparams: NonLocal = NonLocal()

    @property
    def scales(self) -> tuple[int, ...]:
        return self.scale if isinstance(self.scale, tuple) else (self.scale,) * self.num_blocks

    @model_validator(mode="after")
    def _as_many_scales_as_blocks(self) -> Self:
        if len(self.scales) != self.num_blocks:
            raise ValueError(f"num_blocks={self.num_blocks}, but scale={[*self.scales]} is for {len(self.scales)}")
        return self


class StackWithStem(Stack):
    use_stem: Literal[True] = True  # type: ignore[assignment]


class DepthAttention(Config):
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


class Gaussian(Config):
    log_scale_low_bound: float = -5.0
    log_scale_upper_bound: float = 5.0
    noise_stddev: float = -1.0


class LogisticMixture(Config):
    num_logistic_mix: int = 5
    high: float = 255
    low: float = 0
    log_scale_low_bound: float = Field(default=-7.0, ge=-7.0, le=-7.0)
    log_scale_upper_bound: float = 7.0


class Bernoulli(Config):
    pass


class Transform(Config):
    flip_horizontally: StrictBool | None = None
    flip_vertically: StrictBool | None = None
    dequantize: StrictBool | None = None
    sample_binary: StrictBool | None = None
    pad_size: int | None = None


class Hierarchy(Config):
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


def parse(flag: str, text: str, kind: type[C]) -> C:
    """The hyperparameters of a flag, e.g. `num_blocks=2,scale=[0,-2]`.

    Raises:
        ValueError: the flag, the key and what is wrong with it.
    """
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
