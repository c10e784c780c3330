r"""Curvature along an axis from the loss alone, at the step where truncation and rounding balance.

.. math:: D(h) = \frac{f(h) - 2 f(0) + f(-h)}{h^2} = f''(0) + \frac{h^2}{12} f''''(0) + \dots

A rounding error of standard deviation :math:`\sigma` in each f makes one of :math:`\sqrt 6\,\sigma / h^2` in D, and
what is truncated is a third of :math:`D(2h) - D(h)`. The step is that of the least sum of the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["SecondDifference", "second_difference"]

_FARTHEST = 12  # factors of two between the first step tried and the last


@dataclass(frozen=True)
class SecondDifference:
    """A second difference.

    Attributes:
        value: D(h), per squared unit of the coordinate.
        step: h.
        error: estimated size of its error, rounding and truncation together; NaN where no step gave a number.
        slope: the first difference ``(f(h) - f(-h)) / 2h`` at the same step.
    """

    value: float
    step: float
    error: float
    slope: float


def second_difference(f: Callable[[float], float], center: float, rounding: float, first: float) -> SecondDifference:
    """The second difference of f about 0, walking from the step ``first`` by factors of two.

    Args:
        f: the loss along the axis.
        center: f(0).
        rounding: standard deviation of the rounding error of f(0).
        first: the step to begin with, best below ``(rounding / f'''')^(1/4)``.

    Example:
        >>> import math
        >>> from losscope.landscape.surface.second_differences import second_difference
        >>> found = second_difference(math.exp, 1.0, 1e-16, 0.1)
        >>> abs(found.value - 1) < 1e-7
        True
    """
    search = _Steps(f, center, rounding, first)
    best = 0
    while best > -_FARTHEST and math.isinf(search.error(best)):
        best -= 1
    down = -1 if search.error(best - 1) < search.error(best) else 1
    while abs(best) < _FARTHEST and search.error(best + down) < search.error(best):
        best += down
    error = search.error(best)
    error = error if math.isfinite(error) else math.nan
    return SecondDifference(search.difference(best), search.step(best), error, search.slopes[best])


class _Steps:
    """D at the steps ``first * 2^j``."""

    def __init__(self, f: Callable[[float], float], center: float, rounding: float, first: float) -> None:
        self.f, self.center, self.rounding, self.first = f, center, rounding, first
        self._found: dict[int, tuple[float, float]] = {}
        self.slopes: dict[int, float] = {}

    def step(self, j: int) -> float:
        return self.first * 2.0**j

    def difference(self, j: int) -> float:
        return self._at(j)[0]

    def error(self, j: int) -> float:
        """Rounding and truncation; infinite where the loss is not finite."""
        (value, rounding), (coarser, _), (coarsest, _) = self._at(j), self._at(j + 1), self._at(j + 2)
        # Two differences that agree by chance are found out by a third: it is off four times as much.
        error = rounding + max(abs(coarser - value) / 3, abs(coarsest - coarser) / 12)
        return error if math.isfinite(error) else math.inf

    def _at(self, j: int) -> tuple[float, float]:
        """D and its rounding error."""
        if j not in self._found:
            h = self.step(j)
            ahead, behind = self.f(h), self.f(-h)
            self.slopes[j] = (ahead - behind) / (2 * h)
            # Losses far above that of the centre are rounded more.
            larger = max(abs(ahead), abs(behind)) / abs(self.center) if self.center else 1.0
            rounding = math.sqrt(6) * self.rounding * max(1.0, larger) / h**2
            self._found[j] = (ahead - 2 * self.center + behind) / h**2, rounding
        return self._found[j]
