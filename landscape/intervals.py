"""Intervals for the mean of independent samples, of one quantity or of many at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from .errors import SettingError

__all__ = [
    "Moments",
    "ScalarMoments",
    "check_accuracy",
    "check_method",
    "noted",
    "scalar_without_skewness",
    "student_quantile",
    "without_skewness",
]


def number(x: Any) -> float:
    """It as a float; NaN where it is no number, so that comparisons refuse it."""
    try:
        return math.nan if isinstance(x, str | bytes | bool) else float(x)
    except (TypeError, ValueError, RuntimeError):  # the last of tensors of several entries
        return math.nan


def check_accuracy(rtol: float, confidence: float, min_matvecs: int, max_matvecs: int) -> None:
    """Refuse what estimators cannot work towards.

    Raises:
        SettingError: naming the setting.
    """
    if not number(rtol) > 0 or not 0 < number(confidence) < 1:
        raise SettingError(f"rtol must be > 0 and confidence in (0, 1), got {rtol!r} and {confidence!r}")
    counts = (min_matvecs, max_matvecs)
    if any(isinstance(count, bool) or not isinstance(count, int) or count < 2 for count in counts):
        raise SettingError(
            f"min_matvecs and max_matvecs must be integers of at least 2, got {min_matvecs!r} and {max_matvecs!r}"
        )


def check_method(method: str, known: Sequence[str], n: int, max_matvecs: int) -> None:
    """Refuse a method that there is not, and an exact one that takes more products than there are.

    Raises:
        SettingError: naming the methods, or the products.
    """
    if method not in known:
        raise SettingError(f"method must be one of {', '.join(map(repr, known))}; got {method!r}")
    if method == "exact" and n > max_matvecs:
        raise SettingError(f'method="exact" takes n = {n} products, more than max_matvecs = {max_matvecs}; raise that')


def noted(note: str, rtol: float, rounding: float, *, reached: bool) -> str:
    """The note of an estimate, with what accuracy its products allow where more was asked of it.

    Args:
        note: of the products.
        rtol: that was asked for; far too little is how all products there are can be asked for, so it is no error.
        rounding: relative error of the products.
        reached: whether the estimate is as accurate as that all the same.
    """
    if reached or rtol >= rounding:
        return note
    floor = f"rtol={rtol:.1e} is out of reach: products are known to {rounding:.1e}"
    return "; ".join(filter(None, (note, floor)))


@functools.lru_cache(maxsize=256)
def student_quantile(degrees: float, confidence: float) -> float:
    """Half the width of the two-sided Student interval, in standard errors."""
    return float(stdtrit(degrees, (1 + confidence) / 2))


def without_skewness(quantile: float | Tensor, skewness: Tensor, m: int) -> Tensor:
    """The quantile of the t statistic of m skewed samples: Hall's cubic transformation, solved.

    Hall, "On the removal of skewness by transformation", J. R. Stat. Soc. B 54, 221 (1992).
    """
    a = skewness / (3 * math.sqrt(m))
    y = quantile - skewness / (6 * math.sqrt(m))
    cube = 1 + 3 * a * y
    root = cube.sign() * cube.abs() ** (1 / 3)
    return torch.where(a.abs() < 1e-6, y, (root - 1) / a.where(a != 0, 1.0))


class Moments:
    """Mean, spread and skewness of samples that come in blocks, entry by entry, in the memory of four vectors.

    The sums are those of differences from the first sample, so that single precision resolves a spread far
    below the mean, and no spread is exactly none.

    Attributes:
        count: samples so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._first = self._sum = self._squares = self._cubes = torch.empty(0)

    def add(self, samples: Tensor) -> None:
        """Take in k more samples of each of n entries, (n, k)."""
        if self.count == 0:
            self._first = samples[:, 0].clone()
            self._sum, self._squares, self._cubes = (torch.zeros_like(self._first) for _ in range(3))
        apart = samples - self._first[:, None]
        square = apart * apart
        self._sum += apart.sum(dim=1)
        self._squares += square.sum(dim=1)
        self._cubes += square.mul_(apart).sum(dim=1)
        self.count += samples.shape[1]

    @property
    def mean(self) -> Tensor:
        """(n,)."""
        return self._first + self._sum / self.count

    @property
    def spread(self) -> Tensor:
        """Standard deviation of a sample, (n,)."""
        squares = self._squares - self._sum * self._sum / self.count
        return (squares.clamp(min=0) / (self.count - 1)).sqrt()

    @property
    def skewness(self) -> Tensor:
        """Third central moment over the cube of the spread, (n,); zero where nothing spreads."""
        m, shift, spread = self.count, self._sum / self.count, self.spread
        third = self._cubes / m - 3 * shift * self._squares / m + 2 * shift**3
        return torch.where(spread > 0, third / spread.where(spread > 0, 1.0) ** 3, 0.0)

    def interval(
        self,
        confidence: float,
        *,
        skewed: bool = False,
        factor: float | Tensor = 1.0,
        least_skewness: float | Tensor = -math.inf,
    ) -> tuple[Tensor, Tensor]:
        """Ends of Student's interval for the mean, (n,) and (n,).

        Args:
            confidence: nominal coverage.
            skewed: whether the samples may be skewed, which Hall's transformation then corrects for.
            factor: how many times wider, for samples that are not quite independent.
            least_skewness: a bound that theory has for the skewness, of which few samples show too little.
        """
        stderr = self.spread / math.sqrt(self.count)
        quantile = factor * student_quantile(self.count - 1, confidence)
        if not skewed:
            return self.mean - quantile * stderr, self.mean + quantile * stderr
        skewness = self.skewness.clamp(min=torch.as_tensor(least_skewness).to(self._first))
        ends = (without_skewness(q, skewness, self.count) for q in (quantile, -quantile))
        low, high = (self.mean - stderr * end for end in ends)
        return low, high


class ScalarMoments:
    """`Moments` of one quantity, in plain numbers: on tensors of one entry they take as long as a small net's product.

    Attributes:
        count: samples so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._first = self._sum = self._squares = self._cubes = 0.0

    def add(self, samples: Tensor) -> None:
        """Take in more samples, (k,)."""
        values = samples.detach().cpu().double().numpy()
        if self.count == 0:
            self._first = float(values[0])
        with np.errstate(all="ignore"):
            apart = values - self._first
            square = apart * apart
            self._sum += float(apart.sum())
            self._squares += float(square.sum())
            self._cubes += float((square * apart).sum())
        self.count += len(values)

    @property
    def mean(self) -> float:
        """Of the samples."""
        return self._first + self._sum / self.count

    @property
    def spread(self) -> float:
        """Standard deviation of a sample; NaN of one alone."""
        squares = self._squares - self._sum * self._sum / self.count
        return math.sqrt(max(squares, 0.0) / (self.count - 1)) if self.count > 1 else math.nan

    @property
    def skewness(self) -> float:
        """Third central moment over the cube of the spread; zero where nothing spreads."""
        m, shift = self.count, self._sum / self.count
        third = self._cubes / m - 3 * shift * self._squares / m + 2 * shift * shift * shift
        cube = self.spread * self.spread * self.spread
        return third / cube if cube > 0 else 0.0

    def interval(
        self, confidence: float, *, skewed: bool = False, factor: float = 1.0, least_skewness: float = -math.inf
    ) -> tuple[float, float]:
        """Ends of Student's interval for the mean; arguments as of `Moments.interval`."""
        mean, stderr = self.mean, self.spread / math.sqrt(self.count)
        quantile = factor * student_quantile(self.count - 1, confidence)
        if not skewed:
            return mean - quantile * stderr, mean + quantile * stderr
        skewness = max(self.skewness, least_skewness)
        low, high = (mean - stderr * scalar_without_skewness(q, skewness, self.count) for q in (quantile, -quantile))
        return low, high


def scalar_without_skewness(quantile: float, skewness: float, m: int) -> float:
    """`without_skewness` of one number."""
    a = skewness / (3 * math.sqrt(m))
    y = quantile - skewness / (6 * math.sqrt(m))
    if abs(a) < 1e-6:
        return y
    cube = 1 + 3 * a * y
    return (math.copysign(abs(cube) ** (1 / 3), cube) - 1) / a
