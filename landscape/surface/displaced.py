"""Loss and gradient at displacements from where the model is, one at a time, with what rounding makes of the loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..elsewhere import elsewhere
from ..errors import NonFiniteError
from ..objective import Objective
from .batch_statistics import statistics_at
from .points import parameters_at

__all__ = ["Displaced"]

_POINTS = 10  # of the rounding measurement


class Displaced:
    """The loss around the model's present parameters.

    Args:
        objective: the loss.
        statistics: how normalisation layers take their statistics at each point (`statistics_at`).

    Attributes:
        center: the loss at no displacement; with statistics that are kept to the bit `Objective.value`.
        theta: (n,) the parameters there, a copy.
        length: Euclidean length of the parameters; 1 where they are all zero.
        losses: evaluations of the loss so far.
        gradients: of the gradient.

    Raises:
        NonFiniteError: if the loss is NaN or infinite at the centre.
    """

    def __init__(self, objective: Objective, statistics: str = "kept") -> None:
        self.objective, self.statistics = objective, statistics
        self.theta = parameters_at(objective, None)
        self.length = float(torch.linalg.vector_norm(self.theta, dtype=torch.float64)) or 1.0
        self.losses, self.gradients = 1, 0
        self.center = self._value()
        if not math.isfinite(self.center):
            raise NonFiniteError(
                f"the loss is {self.center} where the parameters are: there is nothing to expand about"
            )

    def loss(self, h: Tensor) -> float:
        """The loss at displacement h, (n,); NaN or infinite where it is."""
        self.losses += 1
        with elsewhere(self.objective, self.objective.space.unflatten(self.theta + h)):
            return self._value()

    def gradient(self, h: Tensor) -> Tensor:
        """The gradient (n,) at displacement h, (n,)."""
        self.gradients += 1
        with elsewhere(self.objective, self.objective.space.unflatten(self.theta + h)):
            return self.objective.gradient()

    def rounding(self, direction: Tensor) -> float:
        r"""Standard deviation of what rounding makes of the loss, measured over steps too small for anything else.

        Third differences cancel whatever is smooth there, and have 20 times the variance of the rounding (Hamming's
        difference table; More and Wild, SIAM J. Sci. Comput. 33, 2011). A loss rounded to its own dtype may not change
        at all in such steps, hence at least that dtype's own rounding.

        Args:
            direction: (n,) to step along.
        """
        eps = max(torch.finfo(dtype).eps for dtype in self.objective.space.dtypes)
        # Many units in the last place, so that every sum inside is rounded anew: over a few, half of it is not seen.
        step = min(128 * eps, eps**0.75) * self.length / float(torch.linalg.vector_norm(direction, dtype=torch.float64))
        table = torch.tensor([self.loss(j * step * direction) for j in range(1, _POINTS + 1)], dtype=torch.float64)
        third = table.diff(n=3)
        measured = float((third.square().mean() / 20).sqrt())
        return max(measured if math.isfinite(measured) else 0.0, eps * abs(self.center))

    def _value(self) -> float:
        with statistics_at(self.objective, self.statistics):
            return self.objective.value()
