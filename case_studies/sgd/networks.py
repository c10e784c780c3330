"""Models whose curvature is a norm of their parameters, and the data for which it is.

With half the mean of squares as the loss, and scalar outputs, both models below have Hessians whose residual part has
no trace, since each is linear in every single parameter (almost everywhere, for the ReLU). So at *any* weights, of any
loss,

- the diagonal linear network f(x) = <u * v, x> has tr(H) = |u|^2 + |v|^2 where each input has mean square 1, and where
  the inputs are white, lambda_max(H) = max_j (u_j^2 + v_j^2) at its minima;
- the two-layer ReLU network f(x) = sum_j a_j relu(w_j'x) has tr(H) = (|W|_F^2 + d |a|^2) / 2 on white data that hold
  -x with every x, as relu(z)^2 + relu(-z)^2 = z^2.

By the inequality of the means the first is at least 2 |u * v|_1 and the second at least sqrt(d) sum_j |a_j| |w_j|, the
path norm: what bounds the trace bounds a norm of the function (Wu and Su 2023, arXiv 2305.17490).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from losscope.viz.demo import digits

__all__ = [
    "WU_SU", "WU_WANG_SU",
    "DiagonalNetwork", "parity", "path_norm", "sparse_regression", "squared_error", "symmetric_teacher", "tanh_network",
    "two_layer_relu", "two_layer_trace", "white",
]  # fmt: skip

Data = tuple[Tensor, Tensor]
WU_SU, WU_WANG_SU = "Wu & Su 2023, arXiv 2305.17490", "Wu, Wang & Su 2022, arXiv 2207.02628"


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the mean of squares, of scalar outputs."""
    return (outputs - targets).square().mean() / 2


def white(samples: int, inputs: int, seed: int) -> Tensor:
    """Inputs (samples, inputs) with X'X / samples = 1 exactly."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(samples, inputs, generator=generator, dtype=torch.float64)
    return math.sqrt(samples) * torch.linalg.qr(X)[0]


# --------------------------------------------------------------------------- the diagonal linear network


class DiagonalNetwork(nn.Module):
    """f(x) = <u * v, x>, from u = `start` and v = 0."""

    def __init__(self, inputs: int, start: float = 0.5) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.full((inputs,), start))
        self.v = nn.Parameter(torch.zeros(inputs))

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) -> (n,)."""
        return x @ self.weights

    @property
    def weights(self) -> Tensor:
        """(d,) of the linear function that it is."""
        return self.u * self.v

    @property
    def trace(self) -> float:
        """|u|^2 + |v|^2."""
        return float(sum(p.detach().square().sum() for p in (self.u, self.v)))

    @property
    def sharpness(self) -> float:
        """max_j (u_j^2 + v_j^2)."""
        return float((self.u.detach().square() + self.v.detach().square()).max())


def sparse_regression(seed: int, samples: int = 50, inputs: int = 100, active: int = 4) -> tuple[Data, Tensor]:
    """Fewer Gaussian samples than inputs of mean square 1, targets of a few inputs; and the true weights."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, inputs, generator=generator)
    x = x / x.square().mean(dim=0).sqrt()
    truth = torch.zeros(inputs)
    truth[torch.randperm(inputs, generator=generator)[:active]] = 1.0
    return (x, x @ truth), truth


# --------------------------------------------------------------------------- the two-layer ReLU network


def two_layer_relu(inputs: int, width: int, seed: int) -> nn.Sequential:
    """sum_j a_j relu(w_j'x), without biases."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, width, bias=False), nn.ReLU(), nn.Linear(width, 1, bias=False))


def two_layer_trace(model: nn.Sequential) -> float:
    """(|W|_F^2 + d |a|^2) / 2."""
    W, a = (p.detach() for p in model.parameters())
    return float(W.square().sum() + W.shape[1] * a.square().sum()) / 2


def path_norm(model: nn.Sequential) -> float:
    """sqrt(d) sum_j |a_j| |w_j|, which is at most the trace."""
    W, a = (p.detach() for p in model.parameters())
    return math.sqrt(W.shape[1]) * float((a.squeeze(0).abs() * W.norm(dim=1)).sum())


def symmetric_teacher(seed: int, samples: int = 100, inputs: int = 10) -> Data:
    """White inputs, each with its negative, and what a network of three ReLUs makes of them."""
    half = white(samples // 2, inputs, seed).float()
    x = torch.cat([half, -half])
    with torch.no_grad():
        return x, 3 * two_layer_relu(inputs, 3, 10_000 + seed)(x)


# --------------------------------------------------------------------------- real data


def parity(seed: int, samples: int) -> tuple[Data, Data]:
    """Digits with targets -1 (even) and 1 (odd): some to train on, all others to test. Other data go here."""
    x, one_hot = digits(seed, 1797)
    y = 2.0 * (one_hot.argmax(dim=1, keepdim=True) % 2) - 1
    return (x[:samples], y[:samples]), (x[samples:], y[samples:])


def tanh_network(seed: int, inputs: int = 64, width: int = 50) -> nn.Sequential:
    """One hidden layer and a scalar output. Another model goes here."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, 1))
