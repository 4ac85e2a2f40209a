"""Feature networks as a user makes them: modules of torch, written as ONNX."""

import hashlib
import logging
import warnings
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn


def write_onnx(module: nn.Module, shape: tuple[int, int, int], path: Path) -> str:
    """The SHA-256 of the file."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.zeros(2, *shape)
        written = torch.onnx.export(
            module.eval(), (x,), dynamo=True, verbose=False, dynamic_shapes=({0: batch},), external_data=False
        )
    assert written is not None
    written.save(path, external_data=False)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digits_network() -> nn.Module:
    """Features of binary digits: what a small classifier has learnt of them in some seconds."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16).float()[:, None]
    labels = torch.from_numpy(digits.target)
    features = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 16),
        nn.ReLU(),
    )
    classifier = nn.Sequential(features, nn.Linear(16, 10))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=3e-3)
    for _ in range(300):
        rows = torch.randint(0, len(images), (128,))
        loss = nn.functional.cross_entropy(classifier(torch.bernoulli(images[rows])), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return features
