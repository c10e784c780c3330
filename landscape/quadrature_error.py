r"""How far Gauss quadratures still are from what they converge to, from how they came there.

With :math:`Q_j` the rule of j Lanczos steps, averaged over random starts, what is missing after m steps is
:math:`\sum_{j > m} D_j`, where :math:`D_j = Q_j - Q_{j-1}`. Errors of Gauss quadrature fall geometrically where f is
analytic about the spectrum, and like a power of m where it has a kink or a branch point at it (Trefethen, "Is Gauss
quadrature better than Clenshaw-Curtis?", SIAM Rev. 50, 67, 2008). Three things can be said of the sum.

**A bound for slow convergence.** Differences that fall like :math:`m^{-2}` or faster leave no more than
:math:`m \max(|D_m|, |D_{m-1}|)`. Where they fall faster that is far too much, about m times the error or more.

**Differences keep falling as they did** since an earlier step i: with :math:`D_j \propto j^{-p}` the error is

.. math:: |Q_\infty - Q_m| = \frac{g}{1 - g} |Q_m - Q_i|, \qquad g = \frac{m \, |D_m|}{i \, |D_i|}

for any p > 1, and where they fall geometrically it is less: there the factor m / i is not needed. The larger of the
estimates from two thirds and five sixths of the steps is taken, twice, as a rate that is seen in a few differences is
not exact; errors of conjugate gradients are estimated from their course likewise (Meurant, Papez and Tichy, Numer.
Algorithms 88, 1337, 2021). Each difference is the larger one of two, so that none is small by chance.

**Values that go to and fro**, as with \|x\| on both sides of zero, where every other rule has a node at the kink, have
their limit within the range of the latest ones; their differences have no sum to extrapolate.

Moreover errors have one sign where the even derivatives of f do (Golub and Meurant, "Matrices, Moments and Quadrature",
2010, chapter 6), as those of logarithms, roots, inverses and exponentials: all rules are too small then or all are
too large, and every difference of every start has the same sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_STEPS", "remaining"]

LEAST_STEPS = 10  # with fewer, rates mislead: each outlier takes a step before the others show
_SINCE = (2 / 3, 5 / 6)  # of the steps, from which on differences are compared
_LATEST = 1 / 3  # of the steps, whose values are looked at for their direction
_SAFETY = 2.0

Floats = NDArray[np.float64]


def remaining(steps: Sequence[int], sums: Floats, ended: Sequence[bool]) -> tuple[float, float]:
    """How far the newest sums may be above their limits and below them, on average over the starts.

    Args:
        steps: (k,) after which there are sums, ascending.
        sums: (starts, k) values of the quadratures.
        ended: which starts have met an invariant subspace, so that their newest sum is exact.
    """
    sums = np.where(np.asarray(ended)[:, None], sums[:, -1:], sums)
    each = np.diff(sums, axis=1)
    gaps = np.diff(np.asarray(steps, dtype=np.float64))
    error = _bounded(steps, sums, gaps)
    if steps[-1] >= LEAST_STEPS:
        mean = sums.mean(axis=0)
        latest = mean[_first(steps, 1 - _LATEST) :]
        found = float(np.abs(latest - latest[-1]).max()) if _goes_to_and_fro(latest) else math.inf
        error = min(error, found, _SAFETY * _extrapolated(steps, mean, gaps))
    same = each[:, min(_first(steps, 1 - _LATEST), max(each.shape[1] - 3, 0)) :]
    settled = same.shape[1] >= 3
    rising, falling = settled and bool((same >= 0).all()), settled and bool((same <= 0).all())
    return (0.0 if rising else error), (0.0 if falling else error)


def _bounded(steps: Sequence[int], sums: Floats, gaps: Floats) -> float:
    """What is left if no start's differences fall more slowly than like a square; all there is after one step."""
    if len(steps) == 1:
        return float(np.abs(sums[:, 0]).mean())
    rates = np.abs(np.diff(sums, axis=1) / gaps)[:, -2:]
    if len(steps) == 2:  # a rule of no nodes is zero
        rates = np.concatenate((np.abs(sums[:, :1]), rates), axis=1)
    return steps[-1] * float(rates.max(axis=1).mean())


def _extrapolated(steps: Sequence[int], mean: Floats, gaps: Floats) -> float:
    """What is left if the differences keep falling as they did."""
    rates = np.abs(np.diff(mean) / gaps)
    rates = np.maximum(rates[1:], rates[:-1])  # at all steps but the first two
    worst = 0.0
    for share in _SINCE:
        i = min(max(_first(steps, share), 2), len(steps) - 2)
        now, then = steps[-1] * rates[-1], steps[i] * rates[i - 2]
        if now >= then:
            return math.inf if now > 0 else 0.0
        worst = max(worst, float(now / (then - now) * abs(mean[-1] - mean[i])))
    return worst


def _goes_to_and_fro(values: Floats) -> bool:
    """Whether at least every other difference turns back."""
    differences = np.diff(values)
    turns = differences[1:] * differences[:-1] < 0
    return len(turns) >= 2 and float(turns.mean()) >= 0.5


def _first(steps: Sequence[int], share: float) -> int:
    """The first of the steps that is this share of all or more."""
    return int(np.searchsorted(steps, share * steps[-1] - 1e-9))
