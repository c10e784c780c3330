"""The largest radius up to which something holds, from few evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["RTOL", "largest_radius"]

RTOL = 0.05
"""What the radius may be short of, relative to itself."""

_MOST = 80  # evaluations; a bracket takes a handful, and each further one halves it at the least in the end
_JUMP = (2.0, 16.0)  # least and largest factor between two radii while looking for a bracket


def largest_radius(ratio: Callable[[float], float], start: float, farthest: float) -> float:
    """The largest r with ``ratio(r) <= 1``, from below, to within `RTOL`.

    The ratio is taken to grow as a power of the radius between 1 and 3 or so, as remainders of Taylor series do, and
    is looked at from ``start`` outwards (inwards) at factors of 2 to 16, as far as it is from 1. So a ratio that rises
    above 1 and falls below it again in between is not seen.

    Args:
        ratio: of a radius; infinite or NaN where nothing holds.
        start: the first radius.
        farthest: where to give up: what holds there holds everywhere.

    Returns:
        The radius; infinite if the ratio is at most 1 at ``farthest``, 0 if it is above 1 however small the radius.
    """
    inside, outside, low, high = 0.0, math.inf, 0.0, math.inf
    r = min(start, farthest)
    for _ in range(_MOST):
        value = ratio(r)
        if value <= 1:
            inside, low = r, value
        else:  # NaN too
            outside, high = r, value
        if inside >= farthest:
            return math.inf
        if outside <= inside * (1 + RTOL):
            break
        if outside == math.inf:
            r = min(inside * _jump(1 / low if low > 0 else math.inf), farthest)
        elif inside == 0:
            r = outside / _jump(high)
        else:
            r = _between(inside, outside, low, high)
    return inside


def _jump(excess: float) -> float:
    least, most = _JUMP
    return min(max(excess ** (1 / 3), least), most) if math.isfinite(excess) else most


def _between(inside: float, outside: float, low: float, high: float) -> float:
    """About where the power law through both ends crosses 1, else in the middle, of logarithms."""
    a, b = math.log(inside), math.log(outside)
    middle = (a + b) / 2
    if low > 0 and math.isfinite(high) and high > low:
        middle = a - math.log(low) * (b - a) / (math.log(high) - math.log(low))
        # A little beyond the crossing, towards the farther end, so that both ends come close.
        middle += (0.4 if b - middle > middle - a else -0.4) * RTOL
    margin = (b - a) / 10
    return math.exp(min(max(middle, a + margin), b - margin))
