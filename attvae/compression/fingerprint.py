"""Which model a file was compressed with: one other bit in the weights gives other pixels."""

import hashlib
import json

import torch

from attvae.model.vae import DeepVAE


def model_fingerprint(model: DeepVAE) -> str:
    """Of architecture, image description and weights: the same for a run and what it exports."""
    # Of models with one grid it says what it said before there could be several.
    one_grid = {"coarser_layers"} if not model.config.coarser_layers else None
    about = {
        "model": model.config.model_dump(mode="json", exclude=one_grid),
        "spec": model.spec.model_dump(mode="json"),
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"\n{name} {tensor.dtype} {[*tensor.shape]}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
