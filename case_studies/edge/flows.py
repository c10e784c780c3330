"""Gradient flow and the central flow: the smooth curves beside which gradient descent is drawn.

Gradient descent follows gradient flow until its sharpness S reaches 2 / rate (Cohen et al. 2021, arXiv 2103.00065).
From there its time average follows the central flow (Cohen et al. 2024, arXiv 2410.24206), with one unstable mode

    dw/dt = -rate [grad L + sigma^2 / 2 grad S],     sigma^2 = 2 <-grad L, grad S> / ||grad S||^2,

in units of updates, where sigma^2 is the variance of the oscillation along the top eigenvector, and the time average of
the loss is L(w) + S sigma^2 / 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from losscope.landscape import Eigenpairs, Hessian, Objective, top_eigenpairs

__all__ = ["Central", "Surface", "Third", "central_flow", "gradient_flow"]

NEAR = 0.02
"""How far below the threshold, relative to it, the sharpness counts as at it."""


class Surface:
    """A loss over a vector of parameters, with its derivatives up to the third.

    Args:
        model: whose parameters the vector replaces; it is used as scratch.
        x: inputs.
        y: targets.
        criterion: of outputs and targets.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.model, self.x, self.y, self.criterion = model, x, y, criterion
        self.parameters = list(model.parameters())

    def loss(self, w: Tensor) -> Tensor:
        """At w, with a graph to the model's own parameters."""
        vector_to_parameters(w, self.parameters)
        return self.criterion(self.model(self.x), self.y)

    def gradient(self, w: Tensor) -> Tensor:
        """(P,)."""
        return _flat(torch.autograd.grad(self.loss(w), self.parameters))

    def eigenpairs(self, w: Tensor, k: int = 1, start: Tensor | None = None, tol: float = 1e-3) -> Eigenpairs:
        """The k largest eigenvalues of the Hessian at w."""
        vector_to_parameters(w, self.parameters)
        hessian = Hessian(Objective(self.model, [(self.x, self.y)], criterion=self.criterion), kernel="retained")
        return top_eigenpairs(hessian, k, start=start, tol=tol, seed=0)

    def sharpness_gradient(self, w: Tensor, u: Tensor) -> Third:
        """What the central flow needs at w, with a third-order product for the gradient of u' H(w) u.

        For the top eigenvector u that is the gradient of the sharpness, since the eigenvector is stationary.
        """
        loss = self.loss(w)
        gradient = _flat(torch.autograd.grad(loss, self.parameters, create_graph=True))
        product = _flat(torch.autograd.grad(gradient @ u, self.parameters, create_graph=True))
        sharpness = product @ u
        third = _flat(torch.autograd.grad(sharpness, self.parameters))
        return Third(float(loss.detach()), gradient.detach(), float(sharpness.detach()), third)


@dataclass(frozen=True, eq=False)
class Third:
    """Loss, its gradient (P,), u' H u, and that one's gradient (P,)."""

    loss: float
    gradient: Tensor
    sharpness: float
    third: Tensor


def _flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return parameters_to_vector(tensors)


def gradient_flow(
    surface: Surface, w: Tensor, time: float, every: float, alpha: float = 1.0
) -> Iterator[tuple[Tensor, float]]:
    """Gradient flow by the classical Runge-Kutta method, in steps of alpha / S.

    The method is stable on the Hessian's spectrum up to alpha = 2.8.

    Args:
        surface: the loss.
        w: where it starts, (P,).
        time: until when.
        every: time between two points.
        alpha: step in units of 1 / S.

    Yields:
        Point and sharpness at 0, every, 2 every, ...
    """
    start: Tensor | None = None
    for _ in range(round(time / every) + 1):
        pairs = surface.eigenpairs(w, start=start, tol=1e-2)
        start, sharpness = pairs.vectors, float(pairs.values[0])
        yield w, sharpness
        steps = int(every * sharpness / alpha) + 1
        for _ in range(steps):
            w = _runge_kutta(surface, w, every / steps)


def _runge_kutta(surface: Surface, w: Tensor, h: float) -> Tensor:
    a = surface.gradient(w)
    b = surface.gradient(w - h / 2 * a)
    c = surface.gradient(w - h / 2 * b)
    d = surface.gradient(w - h * c)
    return w - h / 6 * (a + 2 * b + 2 * c + d)


@dataclass(frozen=True, eq=False)
class Central:
    """A point of the central flow.

    Attributes:
        w: the time average of the iterates, (P,).
        vector: the top eigenvector there, (P,).
        sharpness: its eigenvalue.
        second: the next eigenvalue.
        loss: L(w), below the time average of the loss.
        variance: sigma^2.
        average: predicted time average of the loss.
    """

    w: Tensor
    vector: Tensor
    sharpness: float
    second: float
    loss: float
    variance: float

    @property
    def average(self) -> float:
        return self.loss + self.sharpness * self.variance / 2


def central_flow(surface: Surface, w: Tensor, rate: float, updates: int, parts: int = 2) -> Iterator[Central]:
    """The central flow of gradient descent for one unstable mode, one point for each update.

    Below the threshold it is gradient flow. At it, sigma^2 is what keeps the sharpness there; a term that takes back a
    tenth of the excess in an update keeps errors of the discretisation from adding up.

    Args:
        surface: the loss.
        w: where it starts, (P,).
        rate: of gradient descent.
        updates: how many.
        parts: Euler steps for each; a whole one would multiply the top mode by 1 - rate S = -1.
    """
    start: Tensor | None = None
    for _ in range(updates):
        pairs = surface.eigenpairs(w, 2, start)
        start, u, second = pairs.vectors, pairs.vectors[:, 0], float(pairs.values[1])
        for part in range(parts):
            at = surface.sharpness_gradient(w, u)
            excess = at.sharpness - 2 / rate
            pushed = float(-at.gradient @ at.third) + 0.1 * excess / rate
            near = excess > -NEAR * 2 / rate
            variance = max(2 * pushed / float(at.third @ at.third), 0.0) if near else 0.0
            if part == 0:
                yield Central(w, u, at.sharpness, second, at.loss, variance)
            w = w - rate / parts * (at.gradient + variance / 2 * at.third)
