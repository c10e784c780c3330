"""Ritz pairs of a Krylov basis, and what they prove about eigenvalues."""

from __future__ import annotations

import math

import numpy as np
import torch

from .exclusion import outer_bound
from .lanczos import LanczosBasis
from .operators import SymmetricOperator
from .results import Eigenpairs

__all__ = ["ENDS", "USEFUL_BOUND", "Ritz", "steps_left"]

ENDS = {"LA": "largest", "SA": "smallest", "LM": "largest in magnitude", "BE": "both ends, half of them each"}
"""What can be asked for."""

USEFUL_BOUND = 0.25
"""A probabilistic bound further than this from its Ritz value (relative) is not reported as one."""

_NOTHING = 1e-280
"""As far from zero, bounds are as good as there: those of a matrix that is zero."""


class Ritz:
    """The Ritz pairs of a basis and the bounds that follow from it.

    Args:
        basis: the basis.
        k: how many pairs.
        which: which end of the spectrum, one of `ENDS`.
        share: what the start block is almost sure to have of any fixed direction.
        excluded: points above and below which an eigenvalue was excluded before the basis was restarted.
    """

    def __init__(
        self,
        basis: LanczosBasis,
        k: int,
        which: str,
        share: float,
        excluded: tuple[float, float] = (math.inf, -math.inf),
    ) -> None:
        self.basis, self.which, self.share, self.excluded = basis, which, share, excluded
        self.all_values, self.Y = basis.eigh()
        self.norm = float(max(-self.all_values[0], self.all_values[-1], basis.norm))
        self.rounding = basis.space.rounding * self.norm
        width = basis.R.shape[1]
        self.coupling = basis.R @ self.Y[basis.size - width :]  # (next, size): R times the last block's rows
        self.chosen = self.wanted(k)
        self.values = self.all_values[self.chosen]
        self.scale = np.maximum(np.abs(self.values), 1e-3 * self.norm)
        self.residuals = self._residuals(self.chosen)
        self._upper = {"LA": k, "BE": _upper(k)}.get(which, 0)  # how many of them are largest ones
        self._lower = k - self._upper if which in ("SA", "BE") else 0

    def wanted(self, count: int) -> np.ndarray:
        """Positions of the best ``count`` Ritz values among all, which ascend; best first, or descending ("BE")."""
        order = np.arange(len(self.all_values))
        if self.which == "SA":
            return order[:count]
        if self.which == "LM":
            return np.argsort(-np.abs(self.all_values), kind="stable")[:count]
        if self.which == "BE":
            return np.concatenate((order[-_upper(count) :][::-1], order[: count - _upper(count)][::-1]))
        return order[::-1][:count]

    def _residuals(self, positions: np.ndarray | slice) -> np.ndarray:
        return np.sqrt(np.square(self.coupling[:, positions]).sum(axis=0)) + self.rounding

    def converged(self, tol: float) -> bool:
        """Whether all residuals are within ``tol``; they carry their rounding, so underflow cannot fake it."""
        return bool((self.residuals <= tol * self.scale).all())

    def at_least(self, tol: float) -> int:
        """Steps that convergence takes at the least, were each to make residuals ten times smaller."""
        excess = float((self.residuals / np.maximum(tol * self.scale, 1e-300)).max())
        return int(math.log10(excess)) if 1 < excess < math.inf else 0

    def ends_before(self, low: float, high: float, tol: float) -> bool:
        """Whether all others, if they are within this interval, come after these but for ``tol``."""
        slack, upper, lower = tol * self.scale, self._upper, self._lower
        if self.which == "LM":
            return max(high, -low) <= float((np.abs(self.values) + slack).min())
        before = not upper or high <= float((self.values + slack)[:upper].min())
        return before and (not lower or low >= float((self.values - slack)[upper:].max()))

    def stalled(self) -> bool:
        """Whether more products cannot bring the residuals down, rounding being most of them."""
        return bool((self.residuals <= 2 * self.rounding).all())

    def restarted(self, keep: int) -> tuple[float, float]:
        """Restart the basis from its best ``keep`` Ritz vectors; what is excluded by it as it was."""
        excluded = self.excluded_above(), self.excluded_below()
        self.basis.norm = self.norm
        kept = np.sort(self.wanted(keep))
        self.basis.restart(self.all_values[kept], self.Y[:, kept])
        return excluded

    def result(
        self,
        operator: SymmetricOperator,
        matvecs: int,
        tol: float,
        confidence: float,
        guards: int,
        rest: tuple[float, float],
    ) -> Eigenpairs:
        """All that is known, with some Ritz vectors beyond the k that were asked for as guards."""
        k = len(self.chosen)
        further = [i for i in self.wanted(k + guards) if i not in self.chosen]
        vectors = self.basis.combined(self.Y[:, [*self.chosen, *further]])
        vectors = vectors / self.basis.space.norms(vectors)
        low, high, bound = self._bounds()
        on_host = torch.from_numpy
        return Eigenpairs(
            on_host(self.values), vectors[:, :k], on_host(self.residuals), on_host(low), on_host(high), bound,
            confidence, self.converged(tol), matvecs, self.which, tol, operator.kernel, operator.note,
            on_host(self._estimated_errors()), vectors[:, k:], rest,
        )  # fmt: skip

    # ------------------------------------------------------------------ what is proved

    def _bounds(self) -> tuple[np.ndarray, np.ndarray, str]:
        """Lower and upper bounds of each, and in words which of them there are."""
        low, high = np.full_like(self.values, -math.inf), np.full_like(self.values, math.inf)
        upper, lower = self._upper, self._lower
        sides = []
        if upper:  # Cauchy: the i-th largest eigenvalue is no less than the i-th largest Ritz value
            low[:upper] = self.values[:upper] - self.rounding
            outer = self.excluded_above()
            if near := outer - self.values[0] <= max(USEFUL_BOUND * self.scale[0], _NOTHING):
                high[0] = outer
            sides.append("two-sided" if near else "lower")
        if lower:
            high[upper:] = self.values[upper:] + self.rounding
            outer, at = self.excluded_below(), -1 if self.which == "BE" else 0
            if near := self.values[at] - outer <= max(USEFUL_BOUND * self.scale[at], _NOTHING):
                low[at] = outer
            sides.append("two-sided" if near else "upper")
        if len(set(sides)) > 1:
            return low, high, "one-sided"
        return low, high, sides[0] if sides else "none"

    def excluded_above(self) -> float:
        """A point above which, at the confidence of ``share``, there is no eigenvalue."""
        return min(self._outer_bound(self.all_values), self.excluded[0])

    def excluded_below(self) -> float:
        """A point below which, at the confidence of ``share``, there is no eigenvalue."""
        return max(-self._outer_bound(-self.all_values), self.excluded[1])

    def _outer_bound(self, values: np.ndarray) -> float:
        """The largest point at which an eigenvalue above all Ritz values is not excluded."""
        top = float(values.max())
        if self.coupling.size == 0:  # the basis spans the whole space
            return top + self.rounding
        if self.basis.restarts:  # the start is in the basis no more
            return math.inf
        return outer_bound(values, self.Y[: self.basis.first], self.coupling, self.share) + self.rounding

    def _estimated_errors(self) -> np.ndarray:
        """Residual squared over the gap (Kato 1949, Temple 1928), where the gap to the other Ritz values is seen."""
        everyone = self._residuals(slice(None))
        apart = np.abs(self.values[:, None] - self.all_values) - everyone
        apart[np.arange(len(self.chosen)), self.chosen] = math.inf
        gap = apart.min(axis=1)
        seen = np.isfinite(gap) & (gap > self.residuals)
        return np.where(seen, self.residuals**2 / np.where(seen, gap, 1.0), self.residuals)


def steps_left(basis: LanczosBasis, k: int, which: str, tol: float) -> int:
    """What `Ritz.at_least` says, 1 at the least, where it takes few operations; 0 where that is to look.

    A small network's product takes little longer than `Ritz` does, and mostly nothing has converged.
    """
    if basis.R.shape != (1, 1) or which not in ("LA", "SA"):
        return 0
    values, Y = basis.eigh()
    norm = max(-float(values[0]), float(values[-1]), basis.norm)
    rounding, coupling = basis.space.rounding * norm, float(basis.R[0, 0])
    excess, most = 0.0, 0.0
    for i in range(k) if which == "SA" else range(len(values) - k, len(values)):
        residual = abs(coupling * float(Y[-1, i])) + rounding
        excess = max(excess, residual / max(tol * max(abs(float(values[i])), 1e-3 * norm), 1e-300))
        most = max(most, residual)
    return 0 if excess <= 1 or most <= 2 * rounding else max(1, int(math.log10(excess)))


def _upper(count: int) -> int:
    """How many of the pairs from both ends are the largest ones."""
    return (count + 1) // 2
