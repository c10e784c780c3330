"""Data and networks of `hessian_outliers.py` and `batch_size.py`: clusters whose number and distance are chosen.

Each sample is one of `clusters` random centres, all at the same distance from the origin, and Gaussian noise of length
about 1. Its target is its cluster, or a class that several clusters share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from losscope.viz.demo import digits

__all__ = ["INPUTS", "blobs", "digits_of", "draws", "relu_network", "squared_error", "train"]

INPUTS = 20
Data = tuple[Tensor, Tensor]
Criterion = Callable[[Tensor, Tensor], Tensor]


def blobs(clusters: int, seed: int, *, apart: float = 3.0, samples: int = 500, classes: int | None = None) -> Data:
    """Inputs (samples, 20) and classes (samples,). Other data go here."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, INPUTS, generator=generator)
    centres = apart * centres / centres.norm(dim=1, keepdim=True)
    cluster = torch.arange(samples) % clusters
    noise = torch.randn(samples, INPUTS, generator=generator) / INPUTS**0.5
    return centres[cluster] + noise, cluster if classes is None else cluster % classes


def digits_of(classes: int, seed: int, samples: int = 500) -> Data:
    """The digits 0, 1, ... of so many classes, as inputs (samples, 64) and classes."""
    x, one_hot = digits(seed, 1797)
    y = one_hot.argmax(dim=1)
    chosen = (y < classes).nonzero().squeeze(1)[:samples]
    return x[chosen], y[chosen]


def relu_network(width: int, outputs: int, seed: int, inputs: int = INPUTS) -> nn.Sequential:
    """Two hidden layers with ReLU. Another model goes here."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )  # fmt: skip


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over samples of half the squared distance from the one-hot target."""
    return (outputs - F.one_hot(targets, outputs.shape[1])).square().sum(dim=1).mean() / 2


def draws(data: Data, size: int, seed: int) -> Iterator[Data]:
    """Random mini-batches without end; all samples, where they are not fewer."""
    x, y = data
    generator = torch.Generator().manual_seed(seed)
    while True:
        chosen = torch.randperm(len(x), generator=generator)[:size]
        yield data if size >= len(x) else (x[chosen], y[chosen])


def train(
    model: nn.Module, data: Data, *, criterion: Criterion = squared_error, rate: float = 0.02,
    momentum: float = 0.9, size: int = 50, steps: int = 1000, seed: int = 0,
) -> nn.Module:  # fmt: skip
    """SGD with momentum on random mini-batches; the model itself, trained."""
    optimizer = SGD(model.parameters(), lr=rate, momentum=momentum)
    for _, (x, y) in zip(range(steps), draws(data, size, seed), strict=False):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    return model
