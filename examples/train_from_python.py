"""Trains on your own folder of images from Python: shards, a configuration, a run, samples.

    python examples/train_from_python.py my_pictures runs/mine

A few hundred small images take a minute of one CPU core. The same command again goes on where it was, or says that all
is done.
"""

import argparse
import sys
from pathlib import Path

import torch

import attvae
from attvae.config import RunConfig
from attvae.engine.stop import STOPPED, StopRequestedError
from attvae.evaluation.image_grid import draw_grid, save_png
from attvae.train import train
from data_prep import folder
from data_prep.writer import prepare


def configuration(data: Path, samples: int) -> RunConfig:
    """A small model of colour or grey images. The keys are those of the YAML files; what is not set has its default."""
    cells = {"num_nodes": 1, "residual_scale": 1.0}
    model = {
        "num_layers": 3,
        "latent_channels": 4,
        "encoder_filters": 8,
        "decoder_filters": 8,
        "norm": "none",
        "init_variance": 1.0,  # few updates: signals have to pass through the latents from the start
        "preprocessing": {"scales": (-2, -2), **cells},
        "encoder": {"scales": (0,), **cells},
        "decoder": {"scales": (0,), **cells},
        "postprocessing": {"scales": (2, 2), **cells},
        "encoder_attention": {"key_dim": 4, "scale": "learned"},
        "decoder_attention": {"key_dim": 4, "scale": "learned"},
        "posterior": {"high": 0.3},
        "prior": {"high": 0.7},
        "likelihood": {"kind": "logistic_mixture", "num_mixtures": 2},
    }
    return RunConfig.model_validate(
        {
            "data": {"path": data, "flip": "horizontal"},
            "model": model,
            "train": {"samples": samples, "global_batch": 8, "lr": 1e-2, "clip_norm": 1000.0, "log_every": 2000}
            | {"lr_warmup": 1000, "kl_warmup": 3000, "kl_start": 0.01},
            "optim": {"beta1": 0.8, "beta2": 0.95, "ema_decay": 0.99},
            "engine": {"name": "plain", "precision": "fp32"},  # one process, on a GPU if there is one
            "eval": {"every": 5000},
            "checkpoint": {"every": 5000},
            "tracking": {"mlflow": False},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder of image files, all grey or all in colour, 10 at least")
    parser.add_argument("out", type=Path, help="folder for the shards, the run, and samples.png")
    parser.add_argument("--size", type=int, default=32, help="height and width to scale to, a multiple of 4")
    parser.add_argument("--samples", type=int, default=12_000, help="images to train on, repeats counted")
    asked = parser.parse_args()
    data, run, picture = asked.out / "data", asked.out / "run", asked.out / "samples.png"
    try:
        prepare(folder.dataset(asked.images, asked.size, "raw", None), data)
        train(configuration(data, asked.samples), run)
    except ValueError as error:
        parser.error(str(error))
    except StopRequestedError:
        sys.exit(STOPPED)  # saved: the same command goes on
    torch.manual_seed(0)
    model = attvae.load(run / "model")
    save_png(draw_grid(model.sample(64, temperature=0.8), model.spec.white), picture)
    print(f"{picture}: 64 samples; {run / 'report.html'}: all about the run")


if __name__ == "__main__":
    main()
