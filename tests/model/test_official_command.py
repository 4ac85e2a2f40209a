"""Command lines of the authors' code, with their flags as published."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from golden.arrays import facts
from model.conftest import CFG1
from model.test_published_models import CONFIGS

from attvae.model.config import DepthAttentionConfig, LogScaleConfig, ModelConfig, NonLocalConfig, StackConfig
from attvae.model.official_command import Images, parse_command, read_data_spec
from attvae.spec import DataSpec

KEY_32 = "use_nonlocal=True,nonlocop_hparams=[key_dim=32,query_dim=32]"
KEY_8 = "use_nonlocal=True,nonlocop_hparams=[key_dim=8,query_dim=8]"

CIFAR10_ATTENTIVE = f"""\
python3 run.py --mode=eval --eval_log_dir=../cifar10/0_16layer_900_epochs/ \\
  --model_filepath=../cifar10/0_16layer_900_epochs/final_model.h5 --dataset=cifar10 --eval_hparams=num_gpus=2 \\
  --preproc_encoder_hparams=scale=[0,-2],{KEY_32},num_blocks=2,num_filters=128 \\
  --postproc_decoder_hparams=scale=[2,0],num_blocks=2,num_filters=128 \\
  --encoder_hparams=scale=[0,0],{KEY_32},num_blocks=2,num_filters=128 \\
  --decoder_hparams=scale=[0,0],{KEY_32},num_blocks=2,num_filters=128 \\
  --posterior_hparams=log_scale_upper_bound=5,log_scale_low_bound=-5,noise_stddev=0.001 \\
  --prior_hparams=log_scale_upper_bound=5,log_scale_low_bound=-1.0,noise_stddev=0.001 \\
  --decoder_attention_hparams=key_dim=20,query_dim=20,use_layer_norm=True \\
  --encoder_attention_hparams=key_dim=20,query_dim=20,use_layer_norm=True \\
  --hparams=layer_latent_shape=[16,16,20],num_layers=16,data_distribution=discretized_logistic_mixture
"""
OMNIGLOT_ATTENTIVE = (
    "python3 run.py --mode=eval --eval_log_dir=../omniglot/ --model_filepath=../omniglot/final_model.h5 "
    "--dataset=omniglot --dataset_path=../omniglot_data/chardata.mat "
    "--preproc_encoder_hparams=scale=[0,0,-2],num_nodes=2,num_blocks=3,num_filters=32 "
    f"--postproc_decoder_hparams=scale=[2,0,0],num_nodes=2,{KEY_8},num_blocks=3,num_filters=32 "
    f"--merge_encoder_hparams={KEY_8} --encoder_hparams=scale=[0,0],num_blocks=2,num_filters=32 "
    f"--merge_decoder_hparams={KEY_8} --decoder_hparams=scale=[0,0],num_blocks=2,num_filters=32 "
    "--posterior_hparams=log_scale_upper_bound=5,log_scale_low_bound=-5 "
    "--prior_hparams=log_scale_upper_bound=5,log_scale_low_bound=-5 "
    "--decoder_attention_hparams=key_dim=8,query_dim=8,use_layer_norm=True "
    "--encoder_attention_hparams=key_dim=8,query_dim=8,use_layer_norm=False "
    "--hparams=layer_latent_shape=[16,16,20],num_layers=15,num_proc_blocks=1,data_distribution=bernoulli"
)
CIFAR10_BASELINE = (
    "python3 run.py --mode=eval --dataset=cifar10 "
    "--hparams=layer_latent_shape=[16,16,20],num_layers=16,data_distribution=discretized_logistic_mixture "
    "--decoder_hparams=scale=[0,0],num_blocks=2,num_filters=128 "
    "--encoder_hparams=scale=[0,0],num_blocks=2,num_filters=128 "
    "--preproc_encoder_hparams=scale=[0,-2],num_blocks=2,num_filters=128 "
    "--postproc_decoder_hparams=scale=[2,0],num_blocks=2,num_filters=128 "
    "--posterior_hparams=log_scale_upper_bound=5,log_scale_low_bound=-5 "
    "--prior_hparams=log_scale_upper_bound=5,log_scale_low_bound=-5.0"
)
PUBLISHED = {
    "cifar10_attvae16": CIFAR10_ATTENTIVE,
    "omniglot_attvae15": OMNIGLOT_ATTENTIVE,
    "mnist_attvae15": OMNIGLOT_ATTENTIVE.replace("=omniglot ", "=mnist "),
    "cifar10_nvae16": CIFAR10_BASELINE,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_commands_are_the_published_configurations(name: str) -> None:
    config, spec = parse_command(PUBLISHED[name])
    published = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert config == ModelConfig.model_validate(published["model"])
    assert spec.binary == ("cifar" not in name)
    assert spec.shape == ((3, 32, 32) if "cifar" in name else (1, 28, 28))


def test_images_of_ones_own(tmp_path: Path) -> None:
    command = "run.py " + " ".join(f"--{flag}={value}" for flag, value in facts()["flags"].items())
    file = tmp_path / "images.json"
    file.write_text('{"height": 16, "width": 16, "channels": 3, "num_bits": 8, "binary": false, "pad": 0}')
    config, spec = parse_command(command, read_data_spec(file))
    noisy = {
        "posterior": LogScaleConfig(low=-5, high=5, noise_stddev=0.001),
        "prior": LogScaleConfig(low=-1, high=5, noise_stddev=0.001),
    }
    assert config == CFG1.model_copy(update=noisy)
    assert spec == DataSpec(height=16, width=16, channels=3, num_bits=8, max_value=255)


def test_what_is_absent_has_the_authors_defaults() -> None:
    config, _ = parse_command(
        "--hparams num_layers=2,layer_latent_shape=[16,16,4] --decoder_hparams=scale=0 --encoder_hparams=scale=[0] "
        "--preproc_encoder_hparams=num_blocks=1 --postproc_decoder_hparams=scale=2,num_blocks=1,use_nonlocal=True "
        "--prior_hparams= --encoder_attention_hparams= --decoder_attention_hparams=use_layer_norm=False"
    )
    assert config == CFG1.model_copy(
        update={
            "num_layers": 2,
            "encoder_filters": 16,
            "decoder_filters": 16,
            "preprocessing": StackConfig(scales=(-2,)),
            "encoder": StackConfig(scales=(0, 0)),
            "decoder": StackConfig(scales=(0, 0)),
            "postprocessing": StackConfig(scales=(2,), non_local=NonLocalConfig(key_dim=32)),
            "encoder_attention": None,
            "decoder_attention": DepthAttentionConfig(key_dim=20, layer_norm=False),
            "prior": LogScaleConfig(low=-5, high=5),
        }
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("key_dim=8,query_dim=8,use_layer_norm=True", "key_dim=8,use_layer_norm=True",
         r"--decoder_attention_hparams: key_dim=8, but query_dim=20"),
        ("scale=[0,0,-2]", "scale=[0,-2]", r"--preproc_encoder_hparams: num_blocks=3, but scale=\[0, -2\] is for 2"),
        ("scale=[0,0,-2]", "scale=[0,-2,-2]", r"num_proc_blocks=1, .* scale=\[0, -2, -2\] halves it 2 times"),
        ("scale=[2,0,0]", "scale=[0,0,0]", "halves 1 times but postprocessing.scales doubles 0 times"),
        ("=bernoulli", "=discretized_logistic_mixture",
         "data_distribution=discretized_logistic_mixture, but the images are binary"),
        ("dataset=omniglot", "dataset=cifar10", "data_distribution=bernoulli, but the images are not binary"),
        ("dataset=omniglot", "dataset=celeba", "--dataset=celeba is not one of cifar10, mnist, omniglot"),
        ("dataset=omniglot", "dataset=omniglot --dataset=mnist", "--dataset is given twice: 'omniglot' and 'mnist'"),
        ("[16,16,20]", "[8,8,20]", r"layer_latent_shape=\[8, 8, 20\], but images of 28 x 28 padded by 2 .* \[16, 16\]"),
        ("num_proc_blocks=1", "num_proc_blocks=2", "num_proc_blocks=2, but --encoder_attention_hparams: key_dim=8"),
        ("num_layers=15", "num_layers=1", "num_layers=1 is another model"),
        ("num_layers=15", "num_layers=15,num_layers=16", "--hparams: num_layers is given twice: 15 and 16"),
        ("num_layers=15", "num_layer=15", "--hparams: unknown key num_layer; known are .*num_layers"),
        ("num_layers=15", "num_layers=many", "--hparams: num_layers='many': Input should be a valid integer"),
        ("num_layers=15", "num_layers", "--hparams: 'num_layers' is not of the form key=value"),
        ("layer_latent_shape=[16,16,20],", "", "--hparams: layer_latent_shape is missing"),
        ("use_layer_norm=True", "use_layer_norm=true", "use_layer_norm='true': Input should be a valid boolean"),
        ("scale=[0,0],num", "scale=[0,0,num", "--encoder_hparams: brackets do not match"),
        ("--prior_hparams", "--priors", "unknown flag --priors; the authors' flags are"),
        ("--prior_hparams", "prior_hparams", "is not a flag of the form --name=value"),
        ("num_filters=32 --merge", "num_filters=32,kernel_size=5 --merge", "kernel_size=5: Input should be 3"),
        ("--dataset=", "--dataset_transform=pad_size=0 --dataset=", "pad_size=0, but the images are padded by 2"),
        ("--dataset=", "--dataset_transform=sample_binary=False --dataset=", "sample_binary=False, but .* binary=True"),
    ],
)  # fmt: skip
def test_commands_that_do_not_fit(old: str, new: str, message: str) -> None:
    assert old in OMNIGLOT_ATTENTIVE
    with pytest.raises(ValueError, match=message):
        parse_command(OMNIGLOT_ATTENTIVE.replace(old, new, 1))


@pytest.mark.parametrize("text", ["", "python3 run.py", "# --mode=eval"])
def test_no_command(text: str) -> None:
    with pytest.raises(ValueError, match="has no flags"):
        parse_command(text)


def test_quotes_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="cannot be read: No closing quotation"):
        parse_command("run.py --hparams='num_layers=2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read .*images.json: No such file"),
        ("[", "images.json does not describe images: .*Invalid JSON"),
        ('{"height": 16, "width": 16, "channels": 3}', "does not describe images: .*num_bits"),
        ('{"height": 16, "width": 16, "channels": 3, "num_bits": 8, "padding": 2}', "not describe images: .*padding"),
    ],
)  # fmt: skip
def test_data_specs_that_do_not_fit(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "images.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        read_data_spec(file)


def test_images_decide_what_the_likelihood_can_be() -> None:
    grey: dict[str, Any] = {"height": 32, "width": 32, "num_bits": 8}
    with pytest.raises(ValueError, match="published is defined for 3 channels and max_value 255, but the data has 1"):
        parse_command(CIFAR10_BASELINE, Images(channels=1, **grey))


def test_needs_no_torch() -> None:
    code = "import sys, attvae.model.official_command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
