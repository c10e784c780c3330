"""A one-layer network on a quadratic target, from lazy to rich by one number (Kumar et al. 2024, arXiv 2310.06110).

The outputs are ``alpha (f - f_0)`` with ``f = (1/N) sum_i phi(w_i . x)`` and ``phi(h) = h + eps/2 h^2``, the target is
``(beta . x)^2 / 2``. With a large alpha the weights hardly move before the samples are fitted (lazy), and what the
tangent kernel of the start makes of the target is poor; with alpha = 1 the network learns the direction beta (rich).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from losscope.landscape import Objective, tangent_kernel
from losscope.landscape.tangent import kernel_distance, kernel_regression

__all__ = ["Fit", "Setting", "fitted"]

SIZE, UNITS, TEST = 50, 300, 1000
"""Dimension of the inputs, hidden units, samples to test on."""


@dataclass(frozen=True)
class Setting:
    """One training.

    Attributes:
        alpha: scale of the outputs.
        seed: of data and weights.
        eps: how quadratic the activation is.
        samples: to train on.
        stop: mean squared error at which training ends.
        steps: updates at most.
    """

    alpha: float
    seed: int
    eps: float = 0.5
    samples: int = 500
    stop: float = 1e-6
    steps: int = 20_000


@dataclass(frozen=True)
class Fit:
    """What was measured of it.

    Attributes:
        steps: when.
        train: mean squared error of the training samples then.
        test: of the others.
        moved: ``|W_t - W_0| / |W_0|`` at the end.
        distance: of the tangent kernel from that of the start, centred, at the end.
        first: test error of regression with the kernel of the start.
        last: with that of the end.
    """

    steps: tuple[int, ...]
    train: tuple[float, ...]
    test: tuple[float, ...]
    moved: float
    distance: float
    first: float
    last: float

    def when(self, errors: tuple[float, ...], share: float = 0.1) -> int | None:
        """The first step at which the errors are below that share of the first one."""
        return next((t for t, e in zip(self.steps, errors, strict=True) if e < share * errors[0]), None)


class Network(nn.Module):
    """``alpha (f - f_0)``."""

    def __init__(self, alpha: float, eps: float, weight: Tensor) -> None:
        super().__init__()
        self.alpha, self.eps, self.weight = alpha, eps, nn.Parameter(weight.clone())
        self.register_buffer("start", weight.clone())

    def raw(self, x: Tensor, weight: Tensor) -> Tensor:
        """``f``."""
        h = x @ weight.T
        return (h * (1 + self.eps / 2 * h)).mean(dim=1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * (self.raw(x, self.weight) - self.raw(x, self.start))


def data(setting: Setting) -> tuple[Tensor, Tensor]:
    """Inputs and targets, those to train on first; any other target can stand here."""
    generator = torch.Generator().manual_seed(setting.seed)
    beta = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    x = torch.randn(setting.samples + TEST, SIZE, generator=generator, dtype=torch.float64) / SIZE**0.5
    return x, (x @ beta[:, None]).square() / 2


def fitted(setting: Setting) -> Fit:
    """Gradient descent at rate 10 N / alpha^2, measured at steps that are spread over their logarithms."""
    x, y = data(setting)
    m = setting.samples
    generator = torch.Generator().manual_seed(10_000 + setting.seed)
    model = Network(setting.alpha, setting.eps, torch.randn(UNITS, SIZE, generator=generator, dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=10 * UNITS / setting.alpha**2)
    objective = Objective(model, (x[: m + 300], y[: m + 300]), criterion=nn.MSELoss())
    start = tangent_kernel(objective)
    offset = model.raw(x[:m], model.start)  # of the start, once for all updates
    rows: list[tuple[int, float, float]] = []
    due = 0.0
    for step in range(setting.steps + 1):
        optimizer.zero_grad()
        error = (setting.alpha * (model.raw(x[:m], model.weight) - offset) - y[:m]).square().mean()
        if step >= due or error < setting.stop:
            with torch.no_grad():
                rows.append((step, float(error), float((model(x[m:]) - y[m:]).square().mean())))
            due = max(step + 1, 1.15 * step)
        if error < setting.stop or not error < 1e6:
            break
        (error / 2).backward()
        optimizer.step()
    end = tangent_kernel(objective)
    moved = float((model.weight.detach() - model.start).norm() / model.start.norm())
    first, last = (kernel_regression(K, y[: m + 300], m).error for K in (start, end))
    return Fit(*zip(*rows, strict=True), moved, kernel_distance(start, end, centred=True), first, last)  # type: ignore[arg-type]
