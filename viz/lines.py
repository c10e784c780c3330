"""Curves and bands over steps: gaps stay gaps, lone points are seen, and long ones are thinned out."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from . import series

__all__ = ["alone", "draw_band", "draw_bounds", "draw_line"]

MOST_MARKERS = 40
"""Points of a curve up to which each has its marker."""
MARKED = 8
"""Of more points, so many have a marker, by which curves are told apart without colour."""


def alone(known: np.ndarray) -> np.ndarray:
    """Which points have no neighbour that a line could be drawn to.

    Example:
        >>> import numpy as np
        >>> from losscope.viz.lines import alone
        >>> alone(np.array([True, False, True, True])).tolist()
        [True, False, False, False]
    """
    padded = np.concatenate(([False], known, [False]))
    return known & ~padded[:-2] & ~padded[2:]


def draw_line(
    ax: Axes, steps: np.ndarray, values: np.ndarray, *, marker: str = "o", marked: np.ndarray | None = None, **look: Any
) -> None:
    """A curve that breaks where a value is NaN.

    Args:
        ax: where.
        steps: (n,) ascending.
        values: (n,), NaN where there is none.
        marker: on every point of a short curve, on some of a long one, and on each that stands alone.
        marked: (n,) which points have one; None decides as above.
        **look: of the line, as ``ax.plot`` takes it.
    """
    kept = series.keep(steps, values)
    steps, values = steps[kept], values[kept]
    known = np.isfinite(values)
    if marked is None:
        at = np.zeros(len(steps), dtype=bool)
        at[:: 1 if len(steps) <= MOST_MARKERS else max(len(steps) // MARKED, 1)] = True
    else:
        at = marked[kept]
    at = np.flatnonzero(known & (at | alone(known)))
    ax.plot(steps, values, marker=marker if len(at) else None, markevery=at.tolist() or None, **look)


def draw_band(
    ax: Axes, steps: np.ndarray, low: np.ndarray, high: np.ndarray, *, color: str, alpha: float = 0.2, **look: Any
) -> None:
    """The area between two curves; a bar where a point has no neighbour.

    Args:
        ax: where.
        steps: (n,) ascending.
        low: (n,) lower ends, NaN where there is none.
        high: (n,) upper ends.
        color: of both.
        alpha: of the area.
        **look: of the area, as ``ax.fill_between`` takes it.
    """
    kept = series.keep(steps, low, high)
    steps, low, high = steps[kept], low[kept], high[kept]
    ax.fill_between(steps, low, high, color=color, alpha=alpha, linewidth=0, **look)
    bars = alone(np.isfinite(low) & np.isfinite(high))
    if bars.any():
        ax.vlines(steps[bars], low[bars], high[bars], color=color, linewidth=1, alpha=max(alpha, 0.6))


def draw_bounds(ax: Axes, data: series.Series, *, color: str, alpha: float = 0.2, label: str | None = None) -> None:
    """The interval of measurements that are bounded on both sides: a band, or a bar where it is one between others.

    Args:
        ax: where.
        data: the measurements.
        color: of both.
        alpha: of the band.
        label: for the legend.
    """
    low = np.where(np.isfinite(data.low), data.low, data.value)
    known = data.bounded & np.isfinite(low) & np.isfinite(data.value)
    bars = alone(known)
    if (known & ~bars).any():
        band = known & ~bars
        ax.fill_between(
            data.steps, np.where(band, low, np.nan), np.where(band, data.high, np.nan), color=color, alpha=alpha,
            linewidth=0, label=label,
        )  # fmt: skip
        label = None
    if bars.any():
        value = data.value[bars]
        ax.errorbar(
            data.steps[bars], value, color=color, linewidth=1, capsize=2.5, fmt="none", label=label,
            yerr=[np.maximum(value - low[bars], 0), np.maximum(data.high[bars] - value, 0)],
        )  # fmt: skip
