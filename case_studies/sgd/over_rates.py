"""What several rates say together, where some of their runs may have diverged: NaN if too few are left."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from scipy.stats import spearmanr

__all__ = ["median", "most", "rank"]


def most(values: Iterable[float]) -> float:
    """The largest."""
    return max(values, default=math.nan)


def median(values: Iterable[float]) -> float:
    """The median."""
    found = list(values)
    return statistics.median(found) if found else math.nan


def rank(pairs: Iterable[tuple[float, float]]) -> float:
    """The rank correlation of pairs (x, y), of two or more."""
    found = list(pairs)
    return float(spearmanr(*zip(*found, strict=True)).statistic) if len(found) > 1 else math.nan
