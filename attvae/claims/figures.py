"""The figures of a cell's finished run: what its summary does not have is measured here, in a process of its own."""

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from attvae.data.loader import eval_batches
from attvae.engine.environment_defaults import set_environment_defaults
from attvae.engine.launcher import follow_launcher
from attvae.engine.rendezvous import device_of_this_rank, join, leave
from attvae.evaluate import Asked, Trained, evaluate, open_data, open_trained
from attvae.evaluation.depth_attention import depth_attention_of
from attvae.evaluation.in_chunks import InChunks
from attvae.evaluation_noise import EVALUATION_SEED, evaluation_noise
from attvae.run_folder import write_json

SAMPLED = 64
"""Images that are drawn at a time when drawing is timed."""
REPEATS = 9
WATCHED = 64
"""Test images whose attention is looked at, 16 at a time."""


def figures(run: Path, importance_samples: int) -> dict[str, Any]:
    """Importance-weighted bound, time of a sample, and where the attention looks.

    Raises:
        ValueError: the run is not finished, or its data are gone.
    """
    world = join()
    report = evaluate(run, Asked(importance_samples=importance_samples, draws=1), world)
    leave()
    bound = report["figures"]["iw_nll_nats"]
    trained = open_trained(run)
    assert trained.config is not None, "a run has one"
    device = device_of_this_rank(trained.config.engine.device)
    trained.model.to(device)
    return {
        "iw_nll_nats": {"value": bound["value"], "standard_error": bound["standard_error"]},
        "sampling": {"s_per_image": _seconds_per_sample(trained, device)},
        "attention": _attention(trained, device),
    }


def _seconds_per_sample(trained: Trained, device: torch.device) -> float:
    """The median over repeats, the first one left out: seconds of the processor, or of the clock beside a GPU."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds = []
    for _ in range(1 + REPEATS):
        start = clock()
        trained.model.sample(SAMPLED).cpu()
        seconds.append((clock() - start) / SAMPLED)
    return statistics.median(seconds[1:])


def _attention(trained: Trained, device: torch.device) -> dict[str, Any]:
    """Of each path that has attention: its gates, and what each layer attends to, on test images."""
    model = trained.model
    gates = {name: float(gate) for name, gate in model.attention_gates().items()}
    if not gates:
        return {}
    data, manifest = open_data(trained, None)
    images = min(WATCHED, manifest.samples("test"))
    # The first of so many ranks has images from all over the split, whose neighbours may be alike.
    ranks = manifest.samples("test") // images
    batch = next(eval_batches(manifest, data, "test", EVALUATION_SEED, 0, images, 0, ranks))
    noise = evaluation_noise(model, batch.ids, 0, device)
    found = depth_attention_of(InChunks(model, 16), batch.x.to(device), noise)
    return {
        path: {
            "gates": [gate for name, gate in gates.items() if name.startswith(path)],
            "layers": [
                {**each.as_json(), "attended": list(each.attended), "probabilities": list(each.probabilities)}
                for each in layers
            ],
        }
        for path, layers in found._asdict().items()
        if layers
    }


if __name__ == "__main__":
    finished, samples, out = sys.argv[1:]
    follow_launcher(lambda: os._exit(1))
    set_environment_defaults(Path(finished))
    try:
        write_json(Path(out), figures(Path(finished), int(samples)))
    except ValueError as error:
        print(f"attvae: {error}", file=sys.stderr)
        sys.exit(2)
