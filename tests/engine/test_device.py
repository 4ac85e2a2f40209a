"""Which device a rank takes, and that ranks with and without one end instead of waiting for each other."""

import os

import pytest
import torch
from spawn import run_on_ranks

from attvae.engine import rendezvous
from attvae.engine.config import Device
from attvae.engine.rendezvous import FailedOnAnotherRankError, device_of_this_rank, kind_of_device


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DS_ACCELERATOR", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("asked", "accelerator", "count", "expected"),
    [
        ("auto", None, 2, "cuda:1"),
        ("auto", None, 0, "cpu"),
        ("auto", "cpu", 2, "cpu"),
        ("auto", "cuda", 2, "cuda:1"),
        ("cuda", None, 2, "cuda:1"),
        ("cuda", "cuda", 2, "cuda:1"),
        ("cpu", None, 2, "cpu"),
        ("cpu", "cpu", 0, "cpu"),
    ],
)
def test_the_device(
    monkeypatch: pytest.MonkeyPatch, asked: Device, accelerator: str | None, count: int, expected: str
) -> None:
    gpus(monkeypatch, count)
    monkeypatch.setenv("LOCAL_RANK", "1")
    if accelerator:
        monkeypatch.setenv("DS_ACCELERATOR", accelerator)
    assert device_of_this_rank(asked) == torch.device(expected)
    assert kind_of_device(asked) == torch.device(expected).type


@pytest.mark.parametrize(("asked", "accelerator"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_contradiction_is_an_error(monkeypatch: pytest.MonkeyPatch, asked: Device, accelerator: str) -> None:
    gpus(monkeypatch, 2)
    monkeypatch.setenv("DS_ACCELERATOR", accelerator)
    with pytest.raises(ValueError, match=f"engine.device={asked}, but DS_ACCELERATOR={accelerator}"):
        device_of_this_rank(asked)


def test_a_missing_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    assert kind_of_device("cuda") == "cuda", "a dry run plans for machines that have one"
    with pytest.raises(ValueError, match=r"engine\.device=cuda, but there is no GPU on "):
        device_of_this_rank("cuda")


def test_a_gpu_for_each_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"3 ranks or more on .* but 2 GPUs"):
        device_of_this_rank("auto")


def told(asked: Device, ranks_with_gpu: tuple[int, ...]) -> str:
    """What ends this rank, where only some ranks have GPUs."""
    count = 8 if int(os.environ["RANK"]) in ranks_with_gpu else 0
    torch.cuda.is_available = lambda: count > 0  # type: ignore[method-assign]
    torch.cuda.device_count = lambda: count  # type: ignore[method-assign]
    os.environ.pop("DS_ACCELERATOR", None)
    with pytest.raises((ValueError, FailedOnAnotherRankError)) as ended:
        rendezvous.join(device=asked)
    assert rendezvous.is_known_to_all(ended.value)
    return f"{type(ended.value).__name__}: {ended.value}"


def test_one_rank_without_a_gpu_says_so_for_all() -> None:
    found = run_on_ranks(told, 3, "cuda", (0, 2))
    assert found[1].startswith("ValueError: engine.device=cuda, but there is no GPU on ")
    assert found[0] == found[2] == "FailedOnAnotherRankError: rank 1 says why"


def test_a_mixture_is_an_error() -> None:
    found = run_on_ranks(told, 2, "auto", (0,))
    assert found[0].startswith("ValueError: engine.device=auto finds a GPU for 1 of 2 ranks, none for rank 1")
    assert found[1] == "FailedOnAnotherRankError: rank 0 says why"
