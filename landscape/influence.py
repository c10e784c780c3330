r"""Intervals for functions of sample means, by the influence that each sample has on them.

To first order an estimate is :math:`T + \sum_i \psi_i` with independent influences of mean zero (the delta method, or
infinitesimal jackknife: B. Efron, "The jackknife, the bootstrap and other resampling plans", 1982, chapter 6), so that
:math:`\sum_i \psi_i^2` estimates its variance and :math:`\sum_i \psi_i^3` its third moment.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import SettingError
from .intervals import student_quantile, without_skewness
from .results import Estimate

__all__ = ["Accuracy", "Expansion"]


@dataclass(frozen=True, eq=False)
class Expansion:
    """An estimate with the influence of each sample on it.

    Attributes:
        value: the estimate.
        influences: (m,) float64, adding up to zero within each phase.
        phases: how many samples each phase holds; one phase, but for `two_phase`.
    """

    value: float
    influences: Tensor
    phases: tuple[int, ...]

    @staticmethod
    def mean(samples: Tensor) -> Expansion:
        """Of samples (m,); NaN where there are none."""
        m = len(samples)
        value = float(samples.mean()) if m else math.nan
        return Expansion(value, (samples - value) / max(m, 1), (m,))

    @staticmethod
    def ratio(above: Tensor, below: Tensor) -> Expansion:
        """Of the mean of one quantity to that of another, seen on the same samples (m,)."""
        top, bottom = float(above.sum()), float(below.sum())
        if bottom == 0:
            value = math.nan if top == 0 else math.inf
            return Expansion(value, torch.full_like(above, math.inf), (len(above),))
        return Expansion(top / bottom, (above - top / bottom * below) / bottom, (len(above),))

    @staticmethod
    def two_phase(first: Tensor, all_of: Tensor) -> Expansion:
        """Of the mean of one quantity, known of the first j samples, helped by another that is known of all m.

        The ratio estimator of double sampling (W. G. Cochran, "Sampling techniques", 1977, section 12.8).

        Args:
            first: (j,).
            all_of: (m,).
        """
        j, m = len(first), len(all_of)
        rate = Expansion.ratio(first, all_of[:j])
        if not math.isfinite(rate.value):
            return Expansion.mean(first)
        mean = Expansion.mean(all_of)
        influences = rate.value * mean.influences
        influences[:j] += rate.influences * float(all_of[:j].mean())
        return Expansion(rate.value * mean.value, influences, (j, m - j) if m > j else (j,))

    def __sub__(self, number: float) -> Expansion:
        """Less a number that is known."""
        return Expansion(self.value - number, self.influences, self.phases)

    def __mul__(self, factor: float) -> Expansion:
        """Times a number that is known."""
        return Expansion(self.value * factor, self.influences * factor, self.phases)

    @functools.cached_property
    def variances(self) -> list[float]:
        """Of the estimate, the part of each phase."""
        parts = [(len(x), float(x.square().sum())) for x in self.influences.split(self.phases)]
        return [squares * m / (m - 1) if m > 1 else squares for m, squares in parts]

    @property
    def stderr(self) -> float:
        """Standard error; infinite where a single sample shows none."""
        variance = math.fsum(self.variances)
        return math.sqrt(variance) if len(self.influences) > 1 and not math.isnan(variance) else math.inf

    def interval(self, confidence: float) -> tuple[float, float]:
        """Student's interval, corrected for skewness by Hall's transformation."""
        stderr = self.stderr
        if not math.isfinite(stderr) or not math.isfinite(self.value):
            return -math.inf, math.inf
        if stderr == 0:
            return self.value, self.value
        quantile = student_quantile(self._degrees, confidence)
        ends = torch.tensor([quantile, -quantile], dtype=torch.float64)
        low, high = (self.value - stderr * without_skewness(ends, self._skewness, 1)).tolist()
        return low, high

    @property
    def _skewness(self) -> Tensor:
        """Of the estimate."""
        return self.influences.pow(3).sum() / self.influences.square().sum() ** 1.5

    @property
    def _degrees(self) -> float:
        """Of freedom of the variance; of two phases by Satterthwaite."""
        total = sum(v**2 / max(m - 1, 1) for v, m in zip(self.variances, self.phases, strict=True))
        return sum(self.variances) ** 2 / total


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

    def of(self, found: Expansion) -> Estimate:
        """With its interval, and whether it is that accurate."""
        low, high = found.interval(self.confidence)
        return Estimate(
            found.value, found.stderr, low, high, self.confidence, len(found.influences), "draws",
            self.shortage(found) <= 1, "minibatch",
        )  # fmt: skip

    def of_root(self, found: Expansion) -> Estimate:
        """Of the square root; that of zero, where the estimate is negative."""
        low, high = (math.sqrt(max(0.0, end)) for end in found.interval(self.confidence))
        value = math.sqrt(max(0.0, found.value))
        stderr = found.stderr / (2 * value) if value > 0 else high
        reached = _over((high - low) / 2, self.rtol * value) <= 1
        m = len(found.influences)
        return Estimate(value, stderr, low, high, self.confidence, m, "draws", reached, "minibatch")

    def shortage(self, found: Expansion, *, width: bool = True) -> float:
        """By what factor the error is larger than was asked for, at least 0.

        Args:
            found: the estimate.
            width: whether the half-width counts, or the standard error alone.
        """
        low, high = found.interval(self.confidence)
        errors = [((high - low) / 2, self.rtol)] if width else []
        if self.stderr_rtol is not None:
            errors.append((found.stderr, self.stderr_rtol))
        return max((_over(error, tolerance * abs(found.value)) for error, tolerance in errors), default=0.0)


def _over(error: float, allowed: float) -> float:
    if error == 0:
        return 0.0
    return error / allowed if allowed > 0 else math.inf
