"""A model that takes its images a few at a time, so that memory does not grow with their number."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from attvae.evaluation.elbo import Elbo

Latents = Sequence[Tensor | None]


class Model(Protocol):
    """What of a model the pictures need; it is in eval mode."""

    def __call__(self, x: Tensor, noise: list[Tensor]) -> Elbo: ...
    def encode(self, x: Tensor, noise: list[Tensor]) -> list[Tensor]: ...
    def decode(self, latents: list[Tensor], pixel_noise: Tensor) -> Tensor: ...
    def completed(self, latents: Latents, noise: list[Tensor], temperature: float) -> list[Tensor]: ...
    def standardised(self, latents: list[Tensor]) -> list[Tensor]: ...
    def mean_image(self, latents: Latents, noise: list[Tensor], temperature: float) -> Tensor: ...
    def nll_given(self, x: Tensor, latents: Latents, noise: list[Tensor]) -> Tensor: ...
    def watched_depth_attention(self, watch: Callable[[str, Tensor], None]) -> AbstractContextManager[None]: ...
    def hidden_context(self, name: str, slot: int) -> AbstractContextManager[None]: ...


class InChunks:
    """The same methods. All tensors have a row for each image; noise and latents are lists of L of them."""

    def __init__(self, model: Model, rows: int) -> None:
        self.model = model
        self._rows = rows

    @torch.no_grad()
    def nelbo_nats(self, x: Tensor, noise: list[Tensor]) -> Tensor:
        return _joined([self.model(*part).nelbo_nats for part in self._parts(x, noise)])

    @torch.no_grad()
    def kl_nats(self, x: Tensor, noise: list[Tensor]) -> Tensor:
        """[L, B]"""
        return torch.cat([self.model(*part).kl_nats for part in self._parts(x, noise)], dim=1)

    def encode(self, x: Tensor, noise: list[Tensor]) -> list[Tensor]:
        return _each_joined([self.model.encode(*part) for part in self._parts(x, noise)])

    def decode(self, latents: list[Tensor], pixel_noise: Tensor) -> Tensor:
        return _joined([self.model.decode(*part) for part in self._parts(latents, pixel_noise)])

    def completed(self, latents: Latents, noise: list[Tensor], temperature: float) -> list[Tensor]:
        return _each_joined([self.model.completed(z, eps, temperature) for z, eps in self._parts(latents, noise)])

    def standardised(self, latents: list[Tensor]) -> list[Tensor]:
        return _each_joined([self.model.standardised(*part) for part in self._parts(latents)])

    def mean_image(self, latents: Latents, noise: list[Tensor] | None = None, temperature: float = 1.0) -> Tensor:
        parts = self._parts(latents, latents if noise is None else noise)
        return _joined([self.model.mean_image(z, eps, temperature) for z, eps in parts])

    def nll_given(self, x: Tensor, latents: Latents, noise: list[Tensor]) -> Tensor:
        return _joined([self.model.nll_given(*part) for part in self._parts(x, latents, noise)])

    def watched_depth_attention(self, watch: Callable[[str, Tensor], None]) -> AbstractContextManager[None]:
        return self.model.watched_depth_attention(watch)

    def hidden_context(self, name: str, slot: int) -> AbstractContextManager[None]:
        return self.model.hidden_context(name, slot)

    def _parts(self, *arguments: Any) -> list[list[Any]]:
        """The arguments for a few rows each; a latent that is None stays so."""
        last = arguments[-1]
        total = len(last if isinstance(last, Tensor) else last[0])
        places = [slice(first, first + self._rows) for first in range(0, total, self._rows)]
        return [[_taken(each, rows) for each in arguments] for rows in places]


def _taken(argument: Any, rows: slice) -> Any:
    if isinstance(argument, Tensor):
        return argument[rows]
    return [None if each is None else each[rows] for each in argument]


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts)


def _each_joined(parts: list[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(each) for each in zip(*parts, strict=True)]
