"""Ticks that can be read beside an axis, whatever its numbers are."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.ticker import ScalarFormatter

__all__ = ["WholeNumbers", "signed_decades"]


class WholeNumbers(ScalarFormatter):
    """Ticks of a linear axis that say all of their number.

    Matplotlib's own leave a power of ten or an offset to a text above the axis, where a legend of ours may be.
    """

    def __init__(self) -> None:
        super().__init__(useOffset=False)
        self.set_scientific(False)
        self.places = np.zeros(0)

    def set_locs(self, locs: list[float]) -> None:
        """Take the places of all ticks."""
        self.places = np.asarray(locs, dtype=float)
        super().set_locs(locs)

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The text of the tick at a place."""
        largest = float(np.abs(self.places).max(initial=0.0))
        power = math.floor(math.log10(largest)) if 0 < largest < math.inf else 0
        if -5 < power < 6:
            return str(super().__call__(x, pos))
        if x == 0:
            return "0"
        size = f"{abs(x) / 10.0**power:.{self._decimals(power)}f}"
        return ("\N{MINUS SIGN}" if x < 0 else "") + rf"${size}\cdot10^{{{power}}}$"

    def _decimals(self, power: int) -> int:
        """How many tell all ticks from one another, without the power of ten."""
        places = np.sort(self.places / 10.0**power)
        apart = float(np.diff(places).min()) if len(places) > 1 else 1.0
        return next((d for d in range(12) if np.abs(places - places.round(d)).max() < 0.01 * apart), 12)


def signed_decades(least: float, top: float, most: int) -> list[float]:
    """Powers of ten on both sides of zero, and zero, for a scale that is linear below ``least``.

    Args:
        least: where it turns linear; that stretch is as long as a decade.
        top: its end on either side.
        most: how many ticks there is room for.

    Example:
        >>> from losscope.viz.ticks import signed_decades
        >>> signed_decades(0.1, 10.0, 9), signed_decades(1e-3, 1e13, 5)
        ([-10.0, -1.0, -0.1, 0.0, 0.1, 1.0, 10.0], [-10000000000000.0, 0.0, 10000000000000.0])
    """
    last, first = math.floor(math.log10(top) + 1e-9), math.ceil(math.log10(least) - 1e-9)
    length = 1 + math.log10(top / least)  # from zero to the end, in decades
    every = max(math.ceil(2 * length / max(most - 1, 2)), 1)
    powers = range(last, first - 1, -every)
    sizes = [10.0**p for p in powers if 1 + p - math.log10(least) >= every * (1 - 1e-9)]
    sizes = sizes or [top]
    return [*(-size for size in sizes), 0.0, *reversed(sizes)]
