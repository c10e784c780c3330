"""Sharpness: the largest eigenvalue of the Hessian."""

from __future__ import annotations

import math
from typing import Any

from losscope.landscape import SettingError

from .probe import Measurement, Needs, Probe
from .snapshot import Snapshot

__all__ = ["Sharpness"]


class Sharpness(Probe):
    """The top k eigenvalues of the Hessian, ``value`` the largest.

    ``low`` is the Ritz value less rounding, a rigorous lower bound; ``high`` holds with 95 % over the
    random start and is None between renewals, when the iteration was warm-started.

    Args:
        k: how many eigenvalues.
        tol: relative residual of each.
        guards: further eigenvectors that are followed beside these, all in one block. Eigenvectors that change places
            can leave the value a few per cent low between renewals of the bound. For k of 1 the eigenvector is tracked
            without a block, and a guard is no help: on one run at the edge of stability it took 5.7 products in place
            of 3.4, with larger errors.
        every: when; None follows `watch`.
        bound_every: renew the upper bound, by a cold start, when it is this many steps old.

    Raises:
        SettingError: if an argument means nothing.
    """

    name = "sharpness"
    data_parallel = True

    def __init__(
        self, k: int = 1, *, tol: float = 1e-2, guards: int = 0, every: Any = None, bound_every: int = 200
    ) -> None:
        super().__init__(every)
        for name, value, least in (("k", k, 1), ("guards", guards, 0), ("bound_every", bound_every, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise SettingError(f"{name} must be an integer of at least {least}, got {value!r}")
        if not (isinstance(tol, int | float) and 0 < tol < 1):
            raise SettingError(f"tol must be a number between 0 and 1, got {tol!r}")
        self.k, self.tol, self.guards, self.bound_every = k, tol, guards, bound_every

    def needs(self) -> Needs:
        """Top eigenpairs."""
        return Needs(eigenpairs=self.k, eigenpair_tol=self.tol, guards=self.guards, bound_every=self.bound_every)

    def measure(self, snapshot: Snapshot) -> Measurement:
        """The eigenvalues, with the loss and the threshold they belong to."""
        pairs = snapshot.eigenpairs(self.k, self.tol)
        values: dict[str, float | None] = {
            "loss": snapshot.loss,
            "gradient_norm": snapshot.gradient_norm,
            "residual": float(pairs.residuals[0]),
            "converged": float(pairs.converged),
            "threshold": snapshot.threshold.value,
            "threshold_largest": snapshot.threshold.largest,
        }
        values |= {f"lambda_{i + 1}": float(pairs.values[i]) for i in range(1, min(self.k, len(pairs.values)))}
        return Measurement(
            float(pairs.values[0]),
            float(pairs.low[0]),
            upper_bound(pairs.high),
            "curvature",
            pairs.kernel,
            pairs.note or None,
            values=values,
        )


def upper_bound(high: Any) -> float | None:
    """The first upper bound, None where nothing is known."""
    value = float(high[0])
    return value if math.isfinite(value) else None
