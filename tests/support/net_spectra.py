"""Spectra of dense Hessians of small networks, trained and untrained, and of matrices of all kinds."""

import functools
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digits_nets import Criterion, digits, resnet, squares, train
from landscape_cases import dense_hessian, flat, selected

F64 = torch.float64
NETS = ("tanh squares", "relu", "untrained", "resnet", "regression")


@functools.cache
def net_spectrum(kind: str) -> Tensor:
    """Eigenvalues, ascending, of one of `NETS`: 610, 910, 1,158, 698 and 477 parameters."""
    return torch.linalg.eigvalsh(net_hessian(kind))


@functools.cache
def net_hessian(kind: str) -> Tensor:
    """The dense Hessian in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, data, criterion, steps = _cases()[kind]()
        train(model.double(), data, criterion, steps)
    loss, parameters = criterion(model(data[0]), data[1]), selected(model)
    return dense_hessian(loss, parameters) if kind == "resnet" else _batched_hessian(loss, parameters)


def _batched_hessian(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """As `dense_hessian`, many rows at a time: double backward of linear layers can be batched."""
    gradient = flat(torch.autograd.grad(loss, parameters, create_graph=True))
    rows = [
        torch.autograd.grad(gradient, parameters, some, retain_graph=True, is_grads_batched=True)
        for some in torch.eye(len(gradient), dtype=F64).split(100)
    ]
    return torch.cat([torch.cat([part.flatten(1) for part in row], dim=1) for row in rows])


def _cases() -> dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, Tensor], Criterion, int]]]:
    return {
        "tanh squares": lambda: (_mlp(nn.Tanh, 64, 8, 10), digits(200), squares, 100),
        "relu": lambda: (_mlp(nn.ReLU, 64, 12, 10), digits(200), F.cross_entropy, 60),
        "untrained": lambda: (_mlp(nn.Tanh, 64, 12, 16, 10), digits(100), squares, 0),
        "resnet": lambda: (resnet(), digits(8), F.cross_entropy, 20),
        "regression": lambda: (_mlp(nn.Tanh, 3, 20, 18, 1), _sine(), F.mse_loss, 200),
    }


def _mlp(activation: type[nn.Module], *widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


def _sine() -> tuple[Tensor, Tensor]:
    x = torch.randn(200, 3, dtype=F64)
    return x, torch.sin(2 * x.sum(dim=1, keepdim=True))


def _of_random(n: int, rank: int) -> Tensor:
    G = torch.randn(rank, n, generator=torch.Generator().manual_seed(5), dtype=F64) / rank**0.5
    return torch.linalg.eigvalsh(G.T @ G).clamp(min=0)


ALL_KINDS: dict[str, Tensor] = {
    "flat": torch.linspace(0, 1, 700, dtype=F64),
    "indefinite": torch.linspace(-3, 1, 700, dtype=F64),
    "quadratic decay": torch.arange(1, 701, dtype=F64) ** -2,
    "slow decay": torch.arange(1, 701, dtype=F64) ** -0.5,
    "low rank": torch.cat([torch.zeros(680), torch.linspace(1, 20, 20)]).double(),
    "two values": torch.cat([torch.zeros(350), torch.ones(350)]).double(),
    "tenfold": (torch.linspace(0.1, 3, 70, dtype=F64) ** 2).repeat_interleave(10),
    "threefold": (torch.arange(1, 234, dtype=F64) ** -1).repeat_interleave(3),
    "Marchenko-Pastur": _of_random(700, 300),
    "outliers": torch.cat([torch.linspace(0, 1, 697), torch.tensor([20.0, 50.0, 100.0])]).double(),
    "heavy tails": torch.tan(torch.linspace(-1.55, 1.55, 700, dtype=F64)),
}
