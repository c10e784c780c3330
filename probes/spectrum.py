"""The spectral density of the Hessian over training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from losscope.landscape import Estimate, SettingError, SpectralDensity
from losscope.landscape.outliers import OutlierSide, outliers

from .density_arrays import to_arrays
from .probe import Measurement, Needs, Probe
from .sharpness import upper_bound
from .snapshot import Snapshot

__all__ = ["Spectrum"]

TOLERANCE = 1e-2
"""Relative residual of the largest eigenvalue."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Spectrum(Probe):
    """The spectral density of the Hessian, ``value`` its largest eigenvalue with the bounds that are known of it.

    By stochastic Lanczos quadrature from all random starts at once, which also resolves the outermost eigenvalues one
    by one; the eigenpairs that other probes of the same step need are shared. ``values`` holds the largest eigenvalues
    as ``lambda_2`` and so on, the number of outliers and the bulk's edge, the trace, the shares of the eigenvalues
    below, near and above zero and the quantiles, all with intervals, and the bound of the Wasserstein-1 error;
    ``arrays`` the nodes and weights of every start, from which ``Run.spectrum(step)`` makes the density again.

    Args:
        vectors: random starts.
        steps: Lanczos steps from each: a measurement takes ``vectors * steps`` products, and a few for the bounds of
            the largest eigenvalue.
        outliers: how many of the largest eigenvalues to record by their rank, as far as they are resolved.
        near_zero: an eigenvalue counts as near zero within this share of the largest in magnitude.
        every: when; None follows `watch`.
        bound_every: renew the upper bound of the largest eigenvalue, by a cold start, when it is this many steps old.

    Raises:
        SettingError: if an argument means nothing.
    """

    name = "spectrum"
    data_parallel = True

    def __init__(
        self, vectors: int = 4, steps: int = 32, *, outliers: int = 12, near_zero: float = 1e-3, every: Any = None,
        bound_every: int = 200,
    ) -> None:  # fmt: skip
        super().__init__(every)
        least = {"vectors": 1, "steps": 2, "outliers": 0, "bound_every": 1}
        for name, value in zip(least, (vectors, steps, outliers, bound_every), strict=True):
            if isinstance(value, bool) or not isinstance(value, int) or value < least[name]:
                raise SettingError(f"{name} must be an integer of at least {least[name]}, got {value!r}")
        if not 0 < near_zero < 1:
            raise SettingError(f"near_zero must be between 0 and 1, got {near_zero!r}")
        self.vectors, self.steps, self.outliers = vectors, steps, outliers
        self.near_zero, self.bound_every = near_zero, bound_every

    def needs(self) -> Needs:
        """The density, and the largest eigenvalue's bounds."""
        return Needs(1, TOLERANCE, self.bound_every, density_vectors=self.vectors, density_steps=self.steps)

    def measure(self, snapshot: Snapshot) -> Measurement:
        """The density, with the loss and the threshold that its largest eigenvalues may have crossed."""
        density = snapshot.density(self.vectors, self.steps)
        pairs = snapshot.eigenpairs(1, TOLERANCE)
        values: dict[str, float | None] = {
            "loss": snapshot.loss,
            "threshold": snapshot.threshold.value,
            "threshold_largest": snapshot.threshold.largest,
            "lambda_min": density.bounds[0],
            "wasserstein": _finite(density.wasserstein),
            "size": float(density.size),
            "confidence": density.confidence,
            "converged": float(density.converged),
            "rounding": density.rounding,
            "steps": float(density.steps),
            "density_matvecs": float(density.matvecs),
        }
        values |= {f"lambda_{rank}": value for rank, value in _largest(density, self.outliers)}
        values |= _outliers(outliers(density, pairs).upper) | _interval("trace", density.trace)
        values |= _shares(density, self.near_zero) | _quantiles(density)
        return Measurement(
            float(pairs.values[0]), float(pairs.low[0]), upper_bound(pairs.high), "curvature", density.kernel,
            density.note or None, values, to_arrays(density),
        )  # fmt: skip


def _largest(density: SpectralDensity, count: int) -> Iterator[tuple[int, float]]:
    """Ranks and values of the largest eigenvalues after the first, down to what is not resolved one by one."""
    rest = max((float(start.nodes[-1]) for start in density.starts), default=-math.inf)
    for rank, value in enumerate(density.deflated.flip(0)[:count].tolist(), 1):
        if value <= rest:
            return
        if rank > 1:
            yield rank, value


def _outliers(above: OutlierSide) -> dict[str, float | None]:
    """How many eigenvalues stand above the bulk, the range of the methods' counts, and where the bulk ends."""
    counts = [method.count for method in above.methods if method.count is not None]
    return {
        "outliers": float(above.count) if counts else None,  # none of the methods can tell
        "outliers_low": float(min(counts)) if counts else None,
        "outliers_high": float(max(counts)) if counts else None,
        "bulk_edge": _finite(above.edge),
        "bulk_edge_low": _finite(above.low),
        "bulk_edge_high": _finite(above.high),
    }


def _shares(density: SpectralDensity, within: float) -> dict[str, float | None]:
    """Shares of the eigenvalues below, near and above zero; they add up to 1."""
    cut = within * max(map(abs, density.bounds))
    parts = {
        "share_negative": _rest(density.mass(-cut, math.inf)),
        "share_near_zero": density.mass(-cut, cut),
        "share_positive": _rest(density.mass(-math.inf, cut)),
    }
    found: dict[str, float | None] = {"near_zero": cut}
    for name, part in parts.items():
        found |= _interval(name, part)
    return found


def _rest(share: Estimate) -> Estimate:
    return replace(share, value=1 - share.value, low=1 - share.high, high=1 - share.low)


def _quantiles(density: SpectralDensity) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for q in QUANTILES:
        found |= _interval(f"quantile_{100 * q:02.0f}", density.quantile(q))
    return found


def _interval(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {name: estimate.value, f"{name}_low": _finite(estimate.low), f"{name}_high": _finite(estimate.high)}


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
