"""Small networks trained on scikit-learn's digits, and their dense Hessians."""

import functools
from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from landscape_cases import dense_hessian, mlp, selected

Criterion = Callable[[Tensor, Tensor], Tensor]


def digits(samples: int = 1797, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (samples, 64) in [-1, 1] in float64, and labels."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.random.default_rng(seed).permutation(len(images))[:samples]
    return torch.tensor(images[chosen] / 8 - 1), torch.tensor(labels[chosen])


def squares(outputs: Tensor, labels: Tensor) -> Tensor:
    """Half the squared distance to the one-hot labels, as a mean over samples."""
    return 0.5 * (outputs - F.one_hot(labels, 10)).square().sum(dim=1).mean()


class Residual(nn.Module):
    """A residual block of two convolutions, group normalised."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(2, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.gelu(self.norm(self.first(x))))


def resnet(channels: int = 4) -> nn.Sequential:
    """A residual network of 718 parameters for images as rows of 64 entries."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, channels, 3, stride=2, padding=1),
        Residual(channels), Residual(channels), nn.Flatten(2), Mean(), nn.Linear(channels, 10),
    )  # fmt: skip


class Mean(nn.Module):
    """Over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=-1)


def train(model: nn.Module, data: tuple[Tensor, Tensor], criterion: Criterion, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        criterion(model(data[0]), data[1]).backward()
        optimizer.step()


@functools.cache
def hessian_on_digits(kind: str) -> Tensor:
    """The dense Hessian of a trained network: ``"mlp squares"`` or ``"mlp"`` on 300 digits, ``"resnet"`` on 32."""
    data = digits(32 if kind == "resnet" else 300)
    criterion = squares if kind.endswith("squares") else F.cross_entropy
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (resnet() if kind == "resnet" else mlp(64, 8, 10)).double()
        train(model, data, criterion, 100)
    return dense_hessian(criterion(model(data[0]), data[1]), selected(model))
