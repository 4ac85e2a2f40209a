"""The authors' evaluation command line -> the configuration of the model that it evaluates. Does not import torch.

Their training writes `eval_command.sh` beside its weights: `python3 run.py --mode=eval --dataset=cifar10
--hparams=num_layers=16,... --decoder_hparams=scale=[0,0],...`. Keys that are absent have the defaults of their code.
"""

import shlex
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError

from attvae.model import official_hparams as theirs
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

MODEL_FLAGS = (
    "dataset", "dataset_transform", "hparams", "preproc_encoder_hparams", "encoder_hparams", "merge_encoder_hparams",
    "decoder_hparams", "merge_decoder_hparams", "postproc_decoder_hparams", "posterior_hparams", "prior_hparams",
    "data_dist_hparams", "encoder_attention_hparams", "decoder_attention_hparams",
)  # fmt: skip
OTHER_FLAGS = {
    "mode", "dataset_path", "checkpoint_period", "train_log_dir", "train_log_subdir", "eval_log_dir", "model_filepath",
    "train_hparams", "eval_hparams", "epoch",
}  # fmt: skip


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
    dataset = flags.get("dataset", "cifar10")
    if images is None:
        if dataset not in DATASETS:
            raise ValueError(f"--dataset={dataset} is not one of {', '.join(DATASETS)}: describe it with --data-spec")
        images = DATASETS[dataset]

    def read(flag: str, kind: type[C]) -> C:
        return theirs.parse(flag, flags.get(flag, ""), kind)

    hierarchy = read("hparams", theirs.Hierarchy)
    preprocessing = read("preproc_encoder_hparams", theirs.StackWithStem)
    encoder = read("encoder_hparams", theirs.Stack)
    decoder = read("decoder_hparams", theirs.Stack)
    postprocessing = read("postproc_decoder_hparams", theirs.Stack)
    encoder_merge = read("merge_encoder_hparams", theirs.Merge)
    decoder_merge = read("merge_decoder_hparams", theirs.Merge)
    posterior = read("posterior_hparams", theirs.Gaussian)
    prior = read("prior_hparams", theirs.Gaussian)
    encoder_attention = read("encoder_attention_hparams", theirs.DepthAttention) if _given(flags, "encoder") else None
    decoder_attention = read("decoder_attention_hparams", theirs.DepthAttention) if _given(flags, "decoder") else None
    transform = read("dataset_transform", theirs.Transform)
    likelihood: BernoulliConfig | LogisticMixtureConfig
    if hierarchy.data_distribution == "bernoulli":
        read("data_dist_hparams", theirs.Bernoulli)
        likelihood = BernoulliConfig()
    else:
        mixture = read("data_dist_hparams", theirs.LogisticMixture)
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
    [[_, *latents]] = set(config.latent_shapes(images.spec))  # theirs have one grid
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
        if name not in OTHER_FLAGS and flags.get(name, value) != value:
            raise ValueError(f"--{name} is given twice: {flags[name]!r} and {value!r}")
        flags[name] = value
    if not flags:
        raise ValueError(
            "the command line has no flags; expected python3 run.py --mode=eval --dataset=... --hparams=..."
        )
    known = {*OTHER_FLAGS, *MODEL_FLAGS}
    for name in flags.keys() - known:
        raise ValueError(f"unknown flag --{name}; the authors' flags are {', '.join(sorted(known))}")
    return flags


def _given(flags: dict[str, str], path: str) -> bool:
    """Depth-wise attention is off where its flag is absent or empty."""
    return bool(flags.get(f"{path}_attention_hparams"))


def _check_images(hierarchy: theirs.Hierarchy, transform: theirs.Transform, images: Images) -> None:
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


def _check_halvings(
    hierarchy: theirs.Hierarchy, preprocessing: theirs.Stack, attention: theirs.DepthAttention | None
) -> None:
    if hierarchy.num_layers == 1:
        raise ValueError("--hparams: num_layers=1 is another model in the authors' code, without a context; 2 or more")
    halvings = preprocessing.scales.count(-2)
    if halvings != 1:
        raise ValueError(
            f"--hparams: num_proc_blocks={hierarchy.num_proc_blocks}, each halving the image once, but "
            f"--preproc_encoder_hparams: scale={[*preprocessing.scales]} halves it {halvings} times"
        )
    if hierarchy.num_proc_blocks > 1 and attention is not None:
        raise ValueError(
            f"--hparams: num_proc_blocks={hierarchy.num_proc_blocks}, but --encoder_attention_hparams: key_dim="
            f"{attention.key_dim}; in the authors' code the encoder's attention needs num_proc_blocks=1"
        )


def _stack(stack: theirs.Stack) -> StackConfig:
    return StackConfig.model_validate(
        {
            "scales": stack.scales,
            "num_nodes": stack.num_nodes,
            "non_local": _non_local(stack),
            "squeeze_excite": stack.use_se,
        }
    )


def _non_local(part: theirs.Stack | theirs.Merge) -> NonLocalConfig | None:
    block = part.nonlocop_hparams
    if not part.use_nonlocal:
        return None
    return NonLocalConfig(
        key_dim=block.key_dim,
        layer_norm=block.use_layer_norm,
        subsample=block.subsample,
        learned_scale=block.use_scale,
    )


def _depth_attention(attention: theirs.DepthAttention | None) -> DepthAttentionConfig | None:
    if attention is None:
        return None
    return DepthAttentionConfig(key_dim=attention.key_dim, layer_norm=attention.use_layer_norm)


def _log_scale(gaussian: theirs.Gaussian) -> LogScaleConfig:
    return LogScaleConfig(
        low=gaussian.log_scale_low_bound,
        high=gaussian.log_scale_upper_bound,
        noise_stddev=max(gaussian.noise_stddev, 0.0),
    )
