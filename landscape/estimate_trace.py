"""The trace of a symmetric operator, with an interval."""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.special import stdtrit

from .errors import SettingError
from .operators import Observed, as_operator
from .results import Estimate
from .space import generator_for

__all__ = ["trace"]

_MERE_ROUNDING = 100.0  # times eps: a product's error up to here is left out of the interval
_MEMORY = 64 << 20  # bytes of random vectors at once; their products take several times that


def trace(
    A: Any,
    *,
    rtol: float = 0.05,
    method: str = "auto",
    min_matvecs: int = 30,
    max_matvecs: int = 1000,
    confidence: float = 0.95,
    seed: int | torch.Generator | None = None,
) -> Estimate:
    r"""The trace by Hutchinson's estimator, until its interval is narrow enough.

    .. math:: \hat t = \frac1m \sum_j z_j^T A z_j, \qquad z_j \in \{-1, 1\}^n

    is unbiased with variance :math:`\frac2m (\|A\|_F^2 - \sum_i a_{ii}^2)` (Hutchinson 1989). The interval
    is Student's with m - 1 degrees of freedom, after Hall's cubic transformation (J. R. Stat. Soc. B 54,
    221, 1992): a few large eigenvalues make the samples skewed like a chi-square, and the plain interval
    then covers 0.91 to 0.93 at 20 products where it says 0.95. Stopping when it is narrow makes it cover
    less than it says too, the more so the fewer products it may stop at; hence the minimum, and looks
    that are rare. Where n products are fewer than the estimate would need, the trace is computed exactly.

    Args:
        A: an operator of ours, a dense matrix (n, n), or anything with ``shape`` and ``@``.
        rtol: stop when the half-width of the interval is below ``rtol * |value|``.
        method: ``"hutchinson"`` or ``"auto"`` (the same).
        min_matvecs: products spent before the first look, if ``max_matvecs`` allows them.
        max_matvecs: most products to spend; the result says ``converged=False`` when they ran out.
        confidence: nominal coverage of the interval.
        seed: int, generator, or None for fresh entropy; the global stream is never used.

    Raises:
        SettingError: if an argument means nothing.
        NonFiniteError: if a product is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import trace
        >>> trace(torch.eye(100), seed=0).value
        100.0
    """
    if method not in ("auto", "hutchinson"):
        raise SettingError(f'method must be "auto" or "hutchinson", got {method!r}')
    if not rtol > 0 or not 0 < confidence < 1:
        raise SettingError(f"rtol must be > 0 and confidence in (0, 1), got {rtol!r} and {confidence!r}")
    if min_matvecs < 2 or max_matvecs < 2:
        raise SettingError(f"min_matvecs and max_matvecs must be at least 2, got {min_matvecs!r} and {max_matvecs!r}")
    min_matvecs = min(min_matvecs, max_matvecs)
    operator = Observed(as_operator(A))
    generator = generator_for(seed, operator.space.device)
    with operator.held():
        operator.plan(min(max_matvecs, operator.space.size), min_matvecs)
        if operator.space.size <= min_matvecs:
            return _exact(operator, confidence)
        return _hutchinson(operator, rtol, min_matvecs, max_matvecs, confidence, generator)


def _hutchinson(
    operator: Observed, rtol: float, block: int, max_matvecs: int, confidence: float, generator: torch.Generator
) -> Estimate:
    """Blocks of samples until the interval is narrow, the products run out, or n of them are cheaper."""
    n = operator.space.size
    at_once = max(1, _MEMORY // (n * torch.finfo(operator.space.dtype).bits // 8))
    samples: list[float] = []
    while True:
        wanted = len(samples) + block
        while len(samples) < wanted:  # a few at a time, so that memory stays bounded
            samples += _quadratic_forms(operator, min(at_once, wanted - len(samples)), generator)
        estimate = _student(samples, operator, rtol, confidence)
        if estimate.converged or len(samples) >= max_matvecs:
            return estimate
        if n <= min(_still_needed(estimate, rtol), max_matvecs - len(samples)):
            return _exact(operator, confidence)
        block = min(max(4, len(samples) // 4), max_matvecs - len(samples))


def _quadratic_forms(operator: Observed, count: int, generator: torch.Generator) -> list[float]:
    Z = operator.space.random(count, generator, "rademacher")
    return (Z * (operator @ Z)).to(torch.float64).sum(dim=0).tolist()


def _student(samples: list[float], operator: Observed, rtol: float, confidence: float) -> Estimate:
    m = len(samples)
    mean = math.fsum(samples) / m
    deviations = [s - mean for s in samples]
    spread = math.sqrt(math.fsum(d**2 for d in deviations) / (m - 1))
    skewness = math.fsum((d / spread) ** 3 for d in deviations) / m if spread > 0 else 0.0
    quantile = float(stdtrit(m - 1, (1 + confidence) / 2))
    stderr = spread / math.sqrt(m)
    low = mean - stderr * _without_skewness(quantile, skewness, m)
    high = mean - stderr * _without_skewness(-quantile, skewness, m)
    reached = (high - low) / 2 <= rtol * abs(mean)
    return Estimate(mean, stderr, low, high, confidence, m, "hutchinson", reached, operator.kernel, operator.note)


def _without_skewness(quantile: float, skewness: float, m: int) -> float:
    """The quantile of the t statistic of skewed samples: Hall's cubic, solved."""
    a = skewness / (3 * math.sqrt(m))
    y = quantile - skewness / (6 * math.sqrt(m))
    return y if abs(a) < 1e-8 else (math.cbrt(1 + 3 * a * y) - 1) / a


def _still_needed(estimate: Estimate, rtol: float) -> float:
    """Products that an interval of the requested width is expected to take from here."""
    wanted = rtol * abs(estimate.value)
    half = (estimate.high - estimate.low) / 2
    return estimate.matvecs * ((half / wanted) ** 2 - 1) if wanted > 0 else math.inf


def _exact(operator: Observed, confidence: float, block: int = 64) -> Estimate:
    """The sum of the diagonal, from one product per coordinate.

    Where products have an error beyond rounding (finite differences, tensor cores), each entry has it.
    """
    n, value, squares = operator.space.size, 0.0, 0.0
    for first in range(0, n, block):
        width = min(block, n - first)
        units = torch.zeros(width, n, dtype=operator.space.dtype, device=operator.space.device)
        units[torch.arange(width), torch.arange(first, first + width)] = 1.0
        columns = operator @ units.T
        value += float((units.T * columns).to(torch.float64).sum())
        squares += float(columns.to(torch.float64).square().sum())
    error = operator.space.rounding
    half = n * error * math.sqrt(squares) if error > _MERE_ROUNDING * torch.finfo(operator.space.dtype).eps else 0.0
    m, kernel, note = operator.matvecs, operator.kernel, operator.note
    return Estimate(value, 0.0, value - half, value + half, confidence, m, "exact", True, kernel, note)
