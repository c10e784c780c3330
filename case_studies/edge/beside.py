"""Gradient descent beside gradient flow and the central flow, from the same weights under one seed."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from digits_training import digits
from edge.flows import Surface, central_flow, gradient_flow
from edge.sweep import gradient_descent

__all__ = ["Beside", "beside"]

EVERY = 10
"""Updates between two points of gradient descent that are compared with the flow."""


@dataclass(frozen=True, eq=False)
class Beside:
    """What one seed gives.

    Attributes:
        rate: of gradient descent.
        crossing: first step, of every tenth, at which its sharpness is above 2 / rate.
        losses: of gradient descent by step.
        sharpness: of gradient descent over 2 / rate, at every tenth step.
        flow: of gradient flow, at the same times.
        apart: distance between the two over the distance of the flow from its start.
        away: distance of gradient descent from the flow, and from the central flow, over that which gradient descent
            went since the crossing, at the end of the central flow.
        averages: predicted time average of the loss, by step from the crossing.
        below: L(w) on the central flow.
        variances: its sigma^2.
        squares: of the oscillation of gradient descent along the top eigenvector, about the central flow.
        centred: sharpness of the central flow over 2 / rate.
        second: its second eigenvalue over 2 / rate.
    """

    rate: float
    crossing: int
    losses: list[float]
    sharpness: list[float]
    flow: list[float]
    apart: list[float]
    away: tuple[float, float]
    averages: list[float]
    below: list[float]
    variances: list[float]
    squares: list[float]
    centred: list[float]
    second: list[float]

    @property
    def single(self) -> int:
        """Updates from the crossing on in which one mode alone is unstable: the second is below 0.99 of 2 / rate."""
        return next((i for i, value in enumerate(self.second) if value > 0.99), len(self.second))

    @property
    def burst(self) -> bool:
        """Whether the oscillation comes to the predicted variance in those updates, before which it has no mean."""
        return max(self.squares[: self.single], default=0.0) > self.mean(self.variances)

    @property
    def before(self) -> float:
        """The largest share in ``apart`` over the later half of the steps up to the crossing."""
        last = self.crossing // EVERY
        return max(self.apart[last // 2 : last + 1])

    def mean(self, values: list[float]) -> float:
        """Over those updates."""
        return statistics.fmean(values[: self.single])

    @property
    def measured(self) -> float:
        """Mean loss of gradient descent over those updates."""
        return statistics.fmean(self.losses[self.crossing :][: self.single])


def beside(seed: int, rate: float = 2 / 20, updates: int = 320, most: int = 2000, samples: int = 1000) -> Beside | None:
    """Train to the crossing and ``updates`` beyond, then let both flows run.

    None where the sharpness does not reach 2 / rate within ``most`` updates, which is said.
    """
    x, y = digits(seed, samples)
    case = gradient_descent(2 / rate, most)
    surface = Surface(case.model(seed), x, y, case.criterion)
    origin = parameters_to_vector(surface.parameters).detach().clone()
    path, losses, sharpness, crossing = descent(surface, origin, rate, updates, most)
    if crossing is None:
        print(f"seed {seed}: the sharpness stays below 2/lr = {2 / rate:g}, at {sharpness[-1]:.3f} of it in the end")
        return None

    last = crossing + updates
    flow = list(gradient_flow(surface, origin, last * rate, EVERY * rate))
    apart = [float((path[EVERY * i] - w).norm() / (w - origin).norm()) if i else 0.0 for i, (w, _) in enumerate(flow)]
    central = list(central_flow(surface, path[crossing], rate, updates))
    end = (path[last - 2] + 2 * path[last - 1] + path[last]) / 4  # without the oscillation of period two
    went = float((end - path[crossing]).norm())
    away = tuple(float((end - w).norm()) / went for w in (flow[-1][0], central[-1].w))
    return Beside(
        rate, crossing, losses, sharpness, [s * rate / 2 for _, s in flow], apart, (away[0], away[1]),
        averages=[c.average for c in central],
        below=[c.loss for c in central],
        variances=[c.variance for c in central],
        squares=[float((path[crossing + i] - c.w) @ c.vector) ** 2 for i, c in enumerate(central)],
        centred=[c.sharpness * rate / 2 for c in central],
        second=[c.second * rate / 2 for c in central],
    )  # fmt: skip


def descent(
    surface: Surface, w: Tensor, rate: float, updates: int, most: int
) -> tuple[list[Tensor], list[float], list[float], int | None]:
    """Points and losses of gradient descent, its sharpness over 2 / rate at every tenth, and where that crosses 1."""
    path, losses, sharpness = [w], [], []
    start: Tensor | None = None
    crossing: int | None = None
    while len(path) <= (most if crossing is None else crossing + updates):
        if (len(path) - 1) % EVERY == 0:
            pairs = surface.eigenpairs(w, start=start, tol=1e-2)
            start = pairs.vectors
            sharpness.append(float(pairs.values[0]) * rate / 2)
            if crossing is None and sharpness[-1] > 1:
                crossing = len(path) - 1
        loss = surface.loss(w)
        losses.append(float(loss.detach()))
        w = w - rate * parameters_to_vector(torch.autograd.grad(loss, surface.parameters))
        path.append(w)
    return path, losses, sharpness, crossing
