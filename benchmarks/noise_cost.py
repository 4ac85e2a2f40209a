"""What the random numbers of a step cost, against the step itself (CPU, one thread).

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/noise_cost.py > benchmarks/results/noise_cost_HARDWARE_DATE.json

A step is forward, backward and update in the plain engine, on images drawn at random and noise made beforehand. Beside
it, for the same number of images: the latent noise, and what the loader draws for the images (mirroring, cropping,
binarisation; without the copy into channels first, which every batch needs). Medians of rounds that measure all
in turn.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attvae.bench.data import machine
from attvae.config import RunConfig, load
from attvae.data.augment import Augment, binarise, channels_first
from attvae.engine.plain import PlainEngine
from attvae.engine.rendezvous import join, leave
from attvae.model.vae import DeepVAE
from attvae.objective import training_loss
from attvae.optim.choose import choose
from attvae.seeding import Purpose, latent_noise
from attvae.spec import DataSpec

DIGITS = DataSpec(height=8, width=8, channels=1, num_bits=5, max_value=16, binary=True)
PHOTOS = DataSpec(height=32, width=32, channels=3, num_bits=8, max_value=255)
CASES = {  # configuration: (its images, images of a step, rounds)
    "configs/demo.yaml": (DIGITS, 50, 40),
    "configs/photos32.yaml": (PHOTOS, 8, 40),
    "configs/paper/cifar10_attvae16.yaml": (PHOTOS, 2, 5),
}


def measure(cfg: RunConfig, spec: DataSpec, images: int, rounds: int) -> dict[str, Any]:
    """Seconds a step of `images`, and the parts of it in percent."""
    world = join()
    try:
        torch.manual_seed(0)
        model = DeepVAE(cfg.model, spec, recompute=cfg.engine.recompute)
        optimizer, _ = choose(model.parameters(), cfg.optim, world.device)
        engine = PlainEngine(model, optimizer, world, cfg.engine, clip_norm=cfg.train.clip_norm)
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, spec.max_value + 1, (images, spec.height, spec.width, spec.channels), np.uint8)
        ids, epochs = np.arange(images), np.zeros(images, np.int64)
        augment = Augment(cfg.data.flip, cfg.data.crop_pad, cfg.seed)
        places = [(int(i), 0) for i in ids]
        noise = latent_noise(cfg.seed, Purpose.LATENT, places, model.latent_shapes)
        x = torch.from_numpy(drawn(pixels, augment, epochs, ids, spec))

        def loss(forward: nn.Module) -> Tensor:
            elbo = forward(x, noise)
            return training_loss(
                elbo.nll_nats, elbo.kl_nats, 1.0, torch.ones(images), free_bits_nats=0.0, balance_kl=False
            )

        works: dict[str, Callable[[], Any]] = {
            "step": lambda: engine.train_step([loss], 1e-6),
            "latent_noise": lambda: latent_noise(cfg.seed, Purpose.LATENT, places, model.latent_shapes),
            "images": lambda: drawn(pixels, augment, epochs, ids, spec),
            "copy": lambda: channels_first(pixels),
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(rounds + 1):  # the first round warms up
            for name, work in works.items():
                begun = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - begun)
    finally:
        leave()
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    medians["images"] -= medians.pop("copy")
    step = medians.pop("step")
    percent = {name: round(100 * value / step, 3) for name, value in medians.items()}
    micro = {f"{name}_us": round(1e6 * value, 1) for name, value in medians.items()}
    latents = sum(int(np.prod(shape)) for shape in model.latent_shapes)
    return {"images": images, "latents_of_an_image": latents, "step_s": round(step, 4)} | micro | {"percent": percent}


def drawn(pixels: np.ndarray, augment: Augment, epochs: np.ndarray, ids: np.ndarray, spec: DataSpec) -> np.ndarray:
    x = augment(pixels, epochs, ids)
    return binarise(x, spec.max_value, augment.seed, Purpose.BINARISE, epochs, ids) if spec.binary else x


def main() -> None:
    torch.set_num_threads(1)
    cases = {}
    for name, (spec, images, rounds) in CASES.items():
        cases[name] = measure(load(Path(name)), spec, images, rounds)
        print(f"{name}: {cases[name]}", file=sys.stderr)
    print(json.dumps({"machine": machine(), "cases": cases}, indent=1))


if __name__ == "__main__":
    main()
