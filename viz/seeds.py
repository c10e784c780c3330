"""Runs that differ by their seed alone, as their median and range over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .series import Series, decimate

__all__ = ["Spread", "spread_of"]

MOST = 2000


@dataclass(frozen=True, eq=False)
class Spread:
    """What several runs of one configuration have at each step.

    Attributes:
        steps: (t,) all steps at which any of them was measured.
        median: (t,) of those that have a value.
        low: (t,) the smallest value.
        high: (t,) the largest value.
        count: (t,) how many have a value.
        runs: how many there are.
    """

    steps: np.ndarray
    median: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: np.ndarray
    runs: int


def spread_of(several: Sequence[Series]) -> Spread:
    """Median and range over runs; between two of a run's own measurements it is interpolated, never beyond them.

    A run that is not finite from some step on has no value there.

    Example:
        >>> import numpy as np
        >>> from losscope.viz.quantities import _curve
        >>> from losscope.viz.seeds import spread_of
        >>> curves = [_curve(np.array([0, 10]), np.array(values)) for values in ([1.0, 2.0], [3.0, 4.0], [2.0, np.nan])]
        >>> found = spread_of(curves)
        >>> found.median.tolist(), found.low.tolist(), found.count.tolist()
        ([2.0, 3.0], [1.0, 2.0], [3, 2])
    """
    if any(len(each) > MOST for each in several):
        kept = [decimate(each.steps, each.value, MOST) for each in several]
    else:
        kept = [(each.steps, each.value) for each in several]
    steps = np.unique(np.concatenate([each for each, _ in kept]))
    values = np.array([_at(steps, each.steps, each.value) for each in several])
    known = np.isfinite(values)
    count = known.sum(axis=0)
    steps, values, known, count = steps[count > 0], values[:, count > 0], known[:, count > 0], count[count > 0]
    ordered = np.sort(np.where(known, values, np.inf), axis=0)
    columns = np.arange(len(steps))
    middle = (ordered[(count - 1) // 2, columns] + ordered[count // 2, columns]) / 2
    return Spread(steps, middle, ordered[0], ordered[count - 1, columns], count, len(several))


def _at(steps: np.ndarray, own: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A run's values at any steps: its own where it has them, interpolated between, NaN outside."""
    if not len(own):
        return np.full(len(steps), np.nan)
    found = np.interp(steps, own, values, left=np.nan, right=np.nan)
    at = np.searchsorted(own, steps).clip(max=len(own) - 1)
    return np.where(own[at] == steps, values[at], found)
