"""Means of independent samples and ratios of two such means, as estimates with intervals."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .errors import SettingError
from .intervals import ScalarMoments, student_quantile
from .results import Estimate

__all__ = ["Accuracy", "Mean", "Ratio"]


@dataclass(frozen=True, eq=False)
class Mean:
    """The mean of what was sampled.

    Attributes:
        samples: (m,) float64 on the CPU.
    """

    samples: Tensor

    def __sub__(self, number: float) -> Mean:
        """Less a number that is known."""
        return Mean(self.samples - number)

    def __mul__(self, factor: float) -> Mean:
        """Times a number that is known."""
        return Mean(self.samples * factor)

    @functools.cached_property
    def _moments(self) -> ScalarMoments:
        moments = ScalarMoments()
        moments.add(self.samples)
        return moments

    @functools.cached_property
    def value(self) -> float:
        """The mean; NaN where there is no sample."""
        return self._moments.mean if len(self.samples) else math.nan

    @functools.cached_property
    def stderr(self) -> float:
        """Its standard error; infinite where fewer than two samples show none."""
        m = len(self.samples)
        return self._moments.spread / math.sqrt(m) if m > 1 and math.isfinite(self.value) else math.inf

    @functools.cached_property
    def skewness(self) -> float:
        """Of what was sampled, without most of the bias that few samples have: Fisher and Pearson's G1.

        D. N. Joanes and C. A. Gill, "Comparing measures of sample skewness and kurtosis", The Statistician 47, 183
        (1998).
        """
        m, apart = len(self.samples), self.samples - self.samples.mean()
        square = float(apart.square().mean()) if m > 2 else 0.0
        return float(apart.pow(3).mean()) / square**1.5 * math.sqrt(m * (m - 1)) / (m - 2) if square > 0 else 0.0

    def degrees(self, skewness: float) -> float:
        """Of freedom of the spread, by its own variance, which heavy tails enlarge; m - 1 of normal samples.

        The excess kurtosis that says so is that of the samples without its bias (G2), and at least ``1.5 skewness^2``,
        that of gamma samples: few samples show too little of both.

        F. E. Satterthwaite, "An approximate distribution of estimates of variance components", Biometrics Bull. 2,
        110 (1946).

        Args:
            skewness: of what was sampled.
        """
        m, squares = len(self.samples), (self.samples - self.samples.mean()).square()
        if m < 4 or not float(squares.sum()) > 0:
            return max(1.0, m - 1.0)
        seen = float(squares.square().mean() / squares.mean() ** 2) - 3
        excess = max((m - 1) / ((m - 2) * (m - 3)) * ((m + 1) * seen + 6), 1.5 * skewness**2)
        return max(2.0, min(m - 1.0, 2 * m / (excess + 2))) if excess > -2 else m - 1.0

    def interval(
        self, confidence: float, least_skewness: float = -math.inf, degrees: float | None = None
    ) -> tuple[float, float]:
        """Student's, corrected for the samples' skewness, or the least that theory has, by Hall's transformation.

        Args:
            confidence: nominal coverage.
            least_skewness: of the samples.
            degrees: of freedom; m - 1 by default.
        """
        if not math.isfinite(self.stderr):
            return -math.inf, math.inf
        usual = student_quantile(len(self.samples) - 1, confidence)
        factor = 1.0 if degrees is None else student_quantile(degrees, confidence) / usual
        return self._moments.interval(confidence, skewed=True, factor=factor, least_skewness=least_skewness)

    def interval_of_tails(self, confidence: float, least_skewness: float = -math.inf) -> tuple[float, float]:
        """The same of samples that may have heavy tails, as squared lengths: skewness and degrees without bias.

        Args:
            confidence: nominal coverage.
            least_skewness: of the samples.
        """
        skewness = max(self.skewness, least_skewness)
        return self.interval(confidence, skewness, self.degrees(skewness))


@dataclass(frozen=True, eq=False)
class Ratio:
    """The ratio of two means, seen on the same samples.

    Attributes:
        above: (m,) float64 on the CPU.
        below: (m,), of positive mean.
    """

    above: Tensor
    below: Tensor

    @functools.cached_property
    def value(self) -> float:
        """Of the sums."""
        top, bottom = float(self.above.sum()), float(self.below.sum())
        if bottom == 0:
            return math.nan if top == 0 else math.inf
        return top / bottom

    @functools.cached_property
    def stderr(self) -> float:
        """Its standard error by the delta method."""
        if not math.isfinite(self.value) or len(self.above) < 2:
            return math.inf
        return Mean(self.above - self.value * self.below).stderr / abs(float(self.below.mean()))

    def interval(self, confidence: float) -> tuple[float, float]:
        """Fieller's: the ratios r for which the mean of ``above - r below`` may be zero, by Student's t.

        Unlike the delta method's it knows that the mean below is uncertain too, which skewed samples make it; it is
        unbounded where that mean may be zero. E. C. Fieller, "Some problems in interval estimation", J. R. Stat.
        Soc. B 16, 175 (1954).
        """
        m = len(self.above)
        if m < 2:
            return -math.inf, math.inf
        both = np.stack((self.above.numpy(), self.below.numpy()))
        shift = both - both[:, :1]  # so that what does not vary at all has a variance of exactly zero
        square = student_quantile(m - 1, confidence) ** 2 / m
        with np.errstate(all="ignore"):
            center, apart = both.mean(axis=1), shift - shift.mean(axis=1, keepdims=True)
            (aa, ab), (_, bb) = (np.outer(center, center) - square / (m - 1) * (apart @ apart.T)).tolist()
        root = ab * ab - aa * bb
        if bb <= 0 or math.isnan(root):
            return -math.inf, math.inf
        half = math.sqrt(max(0.0, root)) / bb
        return ab / bb - half, ab / bb + half


@dataclass(frozen=True)
class Accuracy:
    """What is asked of estimates.

    Attributes:
        rtol: the half-width of the interval, relative to the value.
        confidence: nominal coverage of the interval.
        stderr_rtol: the standard error, relative to the value; None where it does not matter.

    Raises:
        SettingError: if a number means nothing.
    """

    rtol: float
    confidence: float
    stderr_rtol: float | None = None

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if not self.rtol > 0 or not 0 < self.confidence < 1:
            raise SettingError(f"rtol must be > 0 and confidence in (0, 1), got {self.rtol!r} and {self.confidence!r}")
        if self.stderr_rtol is not None and not self.stderr_rtol > 0:
            raise SettingError(f"stderr_rtol must be > 0 or None, got {self.stderr_rtol!r}")

    def of(self, found: Mean | Ratio) -> Estimate:
        """With its interval, and whether it is that accurate."""
        m = len(found.samples if isinstance(found, Mean) else found.above)
        low, high = found.interval(self.confidence)
        converged = self._missed(found, (high - low) / 2) <= 1
        return Estimate(found.value, found.stderr, low, high, self.confidence, m, "draws", converged, "minibatch")

    def of_root(self, found: Mean) -> Estimate:
        """Of the square root; that of zero, where the estimate is negative."""
        low, high = (math.sqrt(max(0.0, end)) for end in found.interval(self.confidence))
        value = math.sqrt(max(0.0, found.value))
        stderr = found.stderr / (2 * value) if value > 0 else high
        converged = _over((high - low) / 2, self.rtol * value) <= 1
        return Estimate(value, stderr, low, high, self.confidence, len(found.samples), "draws", converged, "minibatch")

    def shortage(self, found: Mean | Ratio, *, width: bool = True) -> float:
        """By what factor the error is larger than was asked for, at least 0.

        Args:
            found: the estimate.
            width: whether the half-width counts, or the standard error alone.
        """
        low, high = found.interval(self.confidence) if width else (0.0, 0.0)
        return self._missed(found, (high - low) / 2)

    def _missed(self, found: Mean | Ratio, half: float) -> float:
        allowed = math.inf if self.stderr_rtol is None else self.stderr_rtol * abs(found.value)
        return max(_over(half, self.rtol * abs(found.value)), _over(found.stderr, allowed))


def _over(error: float, allowed: float) -> float:
    if error == 0 or allowed == math.inf:
        return 0.0
    return error / allowed if allowed > 0 else math.inf
