"""The noise of gradients over training."""

from __future__ import annotations

import math
from typing import Any

from losscope.landscape import (
    Estimate,
    LossError,
    NoiseScale,
    NoiseStatistics,
    SettingError,
    gradient_noise,
    minibatch_noise,
)

from .probe import Measurement, Probe
from .snapshot import Snapshot

__all__ = ["GradientNoise"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the gradients' lengths."""


class GradientNoise(Probe):
    """How noisy gradients are, ``value`` the simple noise scale ``tr(Sigma) / |G|^2`` in samples.

    From the gradients of single samples of the data that is watched; the intervals are for the population that
    these come from. Where samples have no gradients of their own, as with batch statistics or ignored targets, from
    mini-batches of training's size, drawn with replacement, with intervals for the data; ``reason`` says so. Where the
    gradient's square may be zero, the noise scale is inconclusive: ``conclusive`` is 0, ``low`` holds, and ``value``
    and ``high`` are missing.

    ``values`` holds, each with its interval, ``covariance_trace`` and ``gradient_square``, ``curvature_weighted`` with
    its parts ``covariance_curvature`` tr(H Sigma) and ``gradient_curvature`` G'HG, the variance ``projected`` along the
    gradient, quantiles of the lengths as ``norm_50``, the share of lengths above ``clip``, and at the batch size
    ``norm_test``, ``inner_product_test`` and ``orthogonality_test``: the least theta (nu) that they pass with.

    Args:
        batch_size: at which to test; None for that of training.
        samples: most samples to take, at random anew at each measurement.
        draws: mini-batches, where these are taken.
        groups: into which the samples are dealt; the curvature-weighted scale takes so many products.
        clip: a length at which clipping single samples' gradients is considered.
        every: when; None follows `watch`.

    Raises:
        SettingError: if an argument means nothing.
    """

    name = "gradient_noise"

    def __init__(
        self, batch_size: int | None = None, *, samples: int = 2048, draws: int = 100, groups: int = 20,
        clip: float | None = None, every: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(every)
        least = {"batch_size": 1, "samples": 8, "draws": 8, "groups": 4}
        for name, value in zip(least, (batch_size, samples, draws, groups), strict=True):
            if value is None and name == "batch_size":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least[name]:
                raise SettingError(f"{name} must be an integer of at least {least[name]}, got {value!r}")
        if clip is not None and not 0 < clip < math.inf:
            raise SettingError(f"clip must be a positive number or None, got {clip!r}")
        self.batch_size, self.samples, self.draws, self.groups, self.clip = batch_size, samples, draws, groups, clip

    def measure(self, snapshot: Snapshot) -> Measurement:
        """The noise scales, and all that they are made of."""
        batch_size = snapshot.batch_size if self.batch_size is None else self.batch_size
        found, reason = self._noise(snapshot, batch_size)
        values: dict[str, float | None] = {
            "loss": snapshot.loss,
            "draws": float(found.draws),
            "draw_size": float(found.batch_size),
            "confidence": found.simple.confidence,
            "conclusive": float(found.simple.conclusive),
        }
        values |= _interval("covariance_trace", found.covariance_trace)
        values |= _interval("gradient_square", found.gradient_square) | _interval("projected", found.projected)
        for q in QUANTILES:
            values |= _interval(f"norm_{100 * q:02.0f}", found.quantile(q))
        if self.clip is not None:
            values |= {"clip": self.clip} | _interval("share_above_clip", found.share_above(self.clip))
        if (weighted := found.curvature_weighted) is not None:
            values |= _scale("curvature_weighted", weighted)
            values |= _interval("covariance_curvature", weighted.noise)
            values |= _interval("gradient_curvature", weighted.signal)
            values["curvature_conclusive"] = float(weighted.conclusive)
        if batch_size is not None:
            values["batch_size"] = float(batch_size)
            for test in found.tests(batch_size):
                name = f"{test.name.replace(' ', '_')}_test"
                values |= {name: _finite(test.statistic), f"{name}_low": test.low, f"{name}_high": _finite(test.high)}
        simple = found.simple
        return Measurement(
            simple.value if simple.conclusive else None, _finite(simple.low), _finite(simple.high), "samples",
            found.engine,
            "; ".join(filter(None, (reason, found.note))) or None, values,
        )  # fmt: skip

    def _noise(self, snapshot: Snapshot, batch_size: int | None) -> tuple[NoiseStatistics, str]:
        """From single samples, or from mini-batches where these have no gradients of their own; and why."""
        objective, seed = snapshot.objective, snapshot._seed_of("gradient noise")
        options: dict[str, Any] = {"curvature": snapshot.hessian, "groups": self.groups, "seed": seed}
        try:
            return gradient_noise(objective, samples=min(self.samples, objective.samples), **options), ""
        except LossError as error:
            if batch_size is None or batch_size < 2:
                raise LossError(
                    f"{error}; pass batch_size= of 2 at least to watch or GradientNoise, and the probe takes those"
                ) from error
            found = minibatch_noise(objective, batch_size, draws=self.draws, **options)
            return found, f"from mini-batches of {batch_size}: {error}"


def _scale(name: str, scale: NoiseScale) -> dict[str, float | None]:
    value = scale.value if scale.conclusive else None
    return {name: value, f"{name}_low": _finite(scale.low), f"{name}_high": _finite(scale.high)}


def _interval(name: str, estimate: Estimate) -> dict[str, float | None]:
    ends = {f"{name}_low": _finite(estimate.low), f"{name}_high": _finite(estimate.high)}
    return {name: _finite(estimate.value)} | ends


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
