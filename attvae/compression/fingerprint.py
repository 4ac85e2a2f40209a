"""Which model a file was compressed with: one other bit in the weights gives other pixels."""

import hashlib
import json

import torch

from attvae.model.vae import DeepVAE


def model_fingerprint(model: DeepVAE) -> str:
    """Of architecture, image description and weights: the same for a run and what it exports."""
    about = {"model": model.config.model_dump(mode="json"), "spec": model.spec.model_dump(mode="json")}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"\n{name} {tensor.dtype} {[*tensor.shape]}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
