r"""Tests of whether a batch is large enough for its gradient to be followed, and the batch that would pass them.

Each compares a variance of single samples' gradients, over the batch size b, with the gradient:

* the norm test (R. H. Byrd, G. M. Chin, J. Nocedal and Y. Wu, "Sample size selection in optimization methods for
  machine learning", Math. Program. 134, 127 (2012), eq. 3.9): :math:`\|\mathrm{Var}_i\, g_i\|_1 / b \le \theta^2
  |G|^2`, the sum of the entries' variances being :math:`\operatorname{tr}\Sigma`;
* the inner-product test (R. Bollapragada, R. Byrd and J. Nocedal, "Adaptive sampling strategies for stochastic
  optimization", SIAM J. Optim. 28, 3312 (2018), eq. 2.6): :math:`\mathrm{Var}_i(g_i^T G) / b \le \theta^2 |G|^4`;
* with it the orthogonality test (the same, eq. 3.3): :math:`\mathrm{Var}_i(g_i - \frac{g_i^T G}{|G|^2} G) / b \le
  \nu^2 |G|^2`.

The papers put the batch's own gradient and variances in; here the same is said of the population's, with
:math:`\operatorname{Var}_i(g_i^T G) = G^T \Sigma G` and the orthogonal variance :math:`\operatorname{tr}\Sigma - G^T
\Sigma G / |G|^2`, so that a batch's noise does not count as gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import SettingError
from .html_table import Shown
from .intervals import student_quantile
from .noise_scale import fieller

__all__ = ["INNER_PRODUCT_THETA", "NORM_THETA", "ORTHOGONALITY_NU", "BatchSizeTest", "batch_size_tests", "statistics"]

NORM_THETA = 0.9
INNER_PRODUCT_THETA = 0.9
ORTHOGONALITY_NU = 5.84
"""The values of Bollapragada et al.; the norm test is given the inner-product test's."""


@dataclass(frozen=True)
class BatchSizeTest(Shown):
    """One test at a batch size b.

    Attributes:
        name: ``"norm"``, ``"inner product"`` or ``"orthogonality"``.
        statistic: the smallest theta (or nu) for which the test passes at b: the root of variance / b over the
            gradient's square (or fourth power); infinite where the gradient's square is not seen to be positive.
        low: lower end of its interval.
        high: upper end; infinite where the gradient's square may be zero.
        limit: theta, or nu.
        batch_size: b.
        confidence: nominal coverage.
    """

    name: str
    statistic: float
    low: float
    high: float
    limit: float
    batch_size: int
    confidence: float

    @property
    def passes(self) -> bool | None:
        """Whether b is large enough; None where the interval allows both."""
        if self.high <= self.limit:
            return True
        return False if self.low > self.limit else None

    @property
    def needed(self) -> tuple[float, float, float]:
        """The batch size from which the test passes, and its interval's ends."""
        needed = (self.batch_size * (x / self.limit) ** 2 for x in (self.statistic, self.low, self.high))
        return tuple(needed)  # type: ignore[return-value]


def batch_size_tests(
    estimates: tuple[float, float, float],
    covariance: Tensor,
    batch_size: int,
    degrees: int,
    *,
    thetas: tuple[float, float, float] = (NORM_THETA, INNER_PRODUCT_THETA, ORTHOGONALITY_NU),
    confidence: float = 0.95,
) -> tuple[BatchSizeTest, BatchSizeTest, BatchSizeTest]:
    """The norm, the inner-product and the orthogonality test, with intervals by Fieller's method.

    Args:
        estimates: of tr(Sigma), ``|G|^2`` and G'Sigma G.
        covariance: (3, 3) of these estimates.
        batch_size: b, at which to test.
        degrees: degrees of freedom of the covariance.
        thetas: limits of the three statistics.
        confidence: nominal coverage.

    Raises:
        SettingError: if an argument means nothing.

    Example:
        >>> import torch
        >>> from losscope.landscape.adaptive_batches import batch_size_tests
        >>> known = torch.zeros(3, 3, dtype=torch.float64)
        >>> norm, inner, orthogonality = batch_size_tests((100.0, 4.0, 16.0), known, 25, 10)
        >>> norm.statistic, inner.statistic, round(orthogonality.statistic, 4)  # (100 - 16 / 4) / 25 / 4 = 0.96
        (1.0, 0.2, 0.9798)
        >>> norm.passes, round(norm.needed[0], 1)  # 100 / (0.81 * 4)
        (False, 30.9)
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise SettingError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    if not 0 < confidence < 1 or not all(theta > 0 for theta in thetas):
        raise SettingError(f"confidence must be in (0, 1) and thetas positive, got {confidence!r} and {thetas!r}")
    trace, square, along = estimates
    quantile = student_quantile(degrees, confidence)
    # Each statistic is root(N) / (|G|^2 root(b)), with N a polynomial in the three and these derivatives.
    tops = {
        "norm": (trace * square, (square, trace, 0.0)),
        "inner product": (along, (0.0, 0.0, 1.0)),
        "orthogonality": (trace * square - along, (square, trace, -1.0)),
    }
    made = []
    for (name, (top, slopes)), limit in zip(tops.items(), thetas, strict=True):
        found = _statistic(max(0.0, top), torch.tensor(slopes, dtype=torch.float64), square, covariance, quantile)
        value, low, high = (x / math.sqrt(batch_size) for x in found)
        made.append(BatchSizeTest(name, value, low, high, limit, batch_size, confidence))
    return made[0], made[1], made[2]


def _statistic(
    top: float, slopes: Tensor, square: float, covariance: Tensor, quantile: float
) -> tuple[float, float, float]:
    root = math.sqrt(top)
    slopes = slopes / (2 * root) if root > 0 else 0 * slopes
    variance, mixed = float(slopes @ covariance @ slopes), float(slopes @ covariance[:, 1])
    low, high = fieller(root, square, (variance, mixed), (0.0, float(covariance[1, 1])), quantile)
    return root / square if square > 0 else math.inf, max(0.0, low), high


def statistics(gradients: Tensor) -> tuple[float, float, float]:
    """The three tests' statistics on one batch, as the papers evaluate them, with its own gradient as G.

    Args:
        gradients: (b, n) gradients of the samples of a batch.

    Returns:
        The least theta of the norm and of the inner-product test, and the least nu of the orthogonality test, for
        which the batch passes.

    Raises:
        SettingError: if there are not at least two gradients.

    Example:
        >>> import torch
        >>> from losscope.landscape.adaptive_batches import statistics
        >>> statistics(torch.tensor([[2.0, 1.0], [2.0, -1.0]], dtype=torch.float64))  # G = (2, 0), variances 0 and 2
        (0.5, 0.0, 0.5)
    """
    if not isinstance(gradients, Tensor) or gradients.ndim != 2 or len(gradients) < 2:
        raise SettingError("the tests take the gradients (b, n) of at least two samples")
    g = gradients.double()
    b, mean = len(g), g.mean(dim=0)
    square = float(mean @ mean)
    if square == 0:
        return math.inf, math.inf, math.inf
    along = g @ mean
    across = g - along[:, None] * mean / square
    trace, variance, orthogonal = (float(x) for x in (g.var(dim=0).sum(), along.var(), across.square().sum() / (b - 1)))
    return math.sqrt(trace / b / square), math.sqrt(variance / b) / square, math.sqrt(orthogonal / b / square)
