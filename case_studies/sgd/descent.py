"""SGD, as torch has it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import SGD

from sgd.networks import squared_error

__all__ = ["minibatches", "sgd"]


def sgd(model: nn.Module, data: tuple[Tensor, Tensor], rate: float, size: int, steps: int, seed: int) -> bool:
    """Train; whether the loss stayed finite."""
    optimizer = SGD(model.parameters(), lr=rate)
    for _, (x, y) in zip(range(steps), minibatches(*data, size, seed), strict=False):
        optimizer.zero_grad()
        squared_error(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        return math.isfinite(float(squared_error(model(data[0]), data[1])))


def minibatches(x: Tensor, y: Tensor, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """In epochs, each over a permutation of its own."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(x), generator=generator).split(size):
            yield (x, y) if size == len(x) else (x[chosen], y[chosen])
