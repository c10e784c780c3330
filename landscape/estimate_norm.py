"""The Frobenius norm of a symmetric operator, with an interval."""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.special import gammaincinv
from torch import Tensor

from .columns import columns, parts
from .errors import SettingError
from .intervals import Moments, check_accuracy, check_method, noted
from .operators import Observed, as_operator
from .results import Estimate
from .space import generator_for
from .symmetry import refuse_asymmetric

__all__ = ["frobenius_norm"]

_METHODS = ("auto", "hutchinson", "deflated", "exact")
_BASIS = 2 << 30  # bytes of the deflated basis
_SAMPLES = 20  # at least, where a basis takes products too: fewer show too little of how skewed they are


def frobenius_norm(
    A: Any,
    *,
    rtol: float = 0.05,
    method: str = "auto",
    min_matvecs: int = 30,
    max_matvecs: int = 1000,
    confidence: float = 0.95,
    seed: int | torch.Generator | None = None,
) -> Estimate:
    r"""The root of the sum of all squared entries (of all squared eigenvalues), until its interval is narrow enough.

    ``"hutchinson"`` takes the mean of :math:`\|A z\|^2` over random signs z, which is the trace of
    :math:`A^2`: unbiased, with variance :math:`\frac2m (\|A^2\|_F^2 - \sum_i (A^2)_{ii}^2)`. Squared
    eigenvalues are far apart, so a few of them make most of that variance. ``"deflated"`` takes them out, as
    Hutch++ does for a trace (Meyer, Musco, Musco and Woodruff, SOSA 2021): with Q an orthonormal basis of the
    products of k random vectors, and :math:`P = Q Q^T`,

    .. math:: \|A\|_F^2 = \|A Q\|_F^2 + (n - k)\, E \frac{\|A (I - P) g\|^2}{\|(I - P) g\|^2}, \qquad g \sim N(0, I)

    where the first term is exact and the expectation is estimated with vectors that Q knows nothing of, so
    that their samples are independent. Of ``min_matvecs`` products a third is for k, as many for A Q, and the
    rest, 20 at least, for the expectation, like all later ones: raise ``min_matvecs`` for a larger basis.
    ``"exact"`` takes n products.

    The interval is Student's for the square, after Hall's transformation for samples at least as skewed as such
    quadratic forms must be, and the square root of that. Its upper end is no higher than if all samples came from one
    eigenvalue, by which they would be spread most. On 19 matrices (Hessians, outliers, power laws) it covered
    0.90 to 0.98 where it says 0.95, least where it stops early on few large eigenvalues. The square root of an
    unbiased estimate is too small by about ``stderr**2 / (2 value)``, which is left as it is.

    Args:
        A: an operator of ours, a dense matrix (n, n), or anything with ``shape`` and ``@``.
        rtol: stop when the half-width of the interval is below ``rtol * value``.
        method: ``"hutchinson"``, ``"deflated"``, ``"exact"``, or ``"auto"``: deflated, where there are
            products enough for it, and n products where they are fewer than the estimate would need. Up to
            n = ``min_matvecs``, deflation gives way to n products too.
        min_matvecs: products spent before the first look, if ``max_matvecs`` allows them.
        max_matvecs: most products to spend; the result says ``converged=False`` when they ran out.
        confidence: nominal coverage of the interval.
        seed: int, generator, or None for fresh entropy; the global stream is never used.

    Raises:
        SettingError: if an argument means nothing, or the operator is not symmetric.
        NonFiniteError: if a product is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import frobenius_norm
        >>> frobenius_norm(3 * torch.eye(100), seed=0).value
        30.0
    """
    check_accuracy(rtol, confidence, min_matvecs, max_matvecs)
    min_matvecs = min(min_matvecs, max_matvecs)
    operator = Observed(as_operator(A))
    n = operator.space.size
    check_method(method, _METHODS, n, max_matvecs)
    if method == "deflated" and max_matvecs < 4:
        raise SettingError(f'method="deflated" takes 4 products at least, got max_matvecs = {max_matvecs}')
    generator = generator_for(seed, operator.space.device)
    with operator.held():
        operator.plan(min(max_matvecs, n), min_matvecs)
        if method == "exact" or (method != "hutchinson" and n <= min_matvecs):
            return _exact(operator, confidence)
        size = max(0, min(min_matvecs // 3, (min_matvecs - _SAMPLES) // 2))
        if method == "deflated":
            size, min_matvecs = max(1, size), max(4, min_matvecs)
        samples = _Samples(operator, generator, 0 if method == "hutchinson" else size)
        return _until_narrow(samples, rtol, min_matvecs, max_matvecs, confidence, exactly=method == "auto")


class _Samples:
    """What of the squared norm is known exactly, and samples whose mean is the rest.

    Args:
        operator: A.
        generator: for the random vectors.
        size: of the deflated basis; 0 for none.
    """

    def __init__(self, operator: Observed, generator: torch.Generator, size: int) -> None:
        self.operator, self.generator = operator, generator
        self.known, self.rest = 0.0, Moments()
        space = operator.space
        size = min(size, max(1, _BASIS // (space.size * torch.finfo(space.dtype).bits // 8)))
        self._basis: Tensor | None = None
        if size:
            vectors = space.random(size, generator, "rademacher")
            products = operator @ vectors
            refuse_asymmetric(operator, vectors, products)
            self._basis = torch.linalg.qr(products).Q
            self.known = float(_squared_norms(operator @ self._basis).sum())

    def extend(self, products: int) -> None:
        """More samples, a few at a time, so that memory stays bounded."""
        for some in parts(products, self.operator.space):
            count = some.stop - some.start
            self.rest.add(self._inside(count) if self._basis is None else self._outside(self._basis, count))

    def _inside(self, count: int) -> Tensor:
        Z = self.operator.space.random(count, self.generator, "rademacher")
        AZ = self.operator @ Z
        if self.rest.count == 0:
            refuse_asymmetric(self.operator, Z, AZ)
        return _squared_norms(AZ)

    def _outside(self, Q: Tensor, count: int) -> Tensor:
        """The direction of what is left of a normal vector is uniform, so its length need not add to the variance."""
        space = self.operator.space
        G = space.random(count, self.generator)
        G = G - Q @ space.inner(Q, G)
        return (space.size - Q.shape[1]) * _squared_norms(self.operator @ G) / _squared_norms(G)

    def estimate(self, rtol: float, confidence: float) -> Estimate:
        """The root of the whole, and of the ends of its interval."""
        # Samples z'Bz, B = A^2, have the skewness sqrt(8) tr B^3 / (tr B^2)^1.5, at least twice their coefficient of
        # variation (Cauchy-Schwarz, B being positive semi-definite).
        least = 2 * self.rest.spread / self.rest.mean.where(self.rest.mean > 0, 1.0)
        ends = self.rest.interval(confidence, skewed=True, least_skewness=least)
        low, high = (self.known + max(0.0, float(end)) for end in ends)
        high = min(high, self.known + float(self.rest.mean) * _most(self.rest.count, confidence))
        value = math.sqrt(self.known + float(self.rest.mean))
        of_square = float(self.rest.spread) / math.sqrt(self.rest.count)
        stderr = of_square / (2 * value) if value > 0 else 0.0
        return _estimate(self.operator, value, stderr, low, high, confidence, self.name, rtol)

    @property
    def name(self) -> str:
        return "hutchinson" if self._basis is None else "deflated"


def _until_narrow(
    samples: _Samples, rtol: float, min_matvecs: int, max_matvecs: int, confidence: float, exactly: bool
) -> Estimate:
    """Samples until the interval is narrow, the products run out, or n of them are cheaper."""
    operator = samples.operator
    block = min_matvecs - operator.matvecs
    while True:
        samples.extend(block)
        estimate = samples.estimate(rtol, confidence)
        hopeless = operator.space.rounding > rtol  # of products, no matter how many
        if estimate.converged or hopeless or operator.matvecs >= max_matvecs:
            return estimate
        half = (estimate.high - estimate.low) / 2
        needed = samples.rest.count * ((half / (rtol * estimate.value)) ** 2 - 1)
        if exactly and operator.space.size <= min(needed, max_matvecs - operator.matvecs):
            return _exact(operator, confidence)
        block = min(max(4, operator.matvecs // 4), max_matvecs - operator.matvecs)


def _most(count: int, confidence: float) -> float:
    """How many times their mean the expectation of positive semi-definite forms may be.

    Among forms of normal vectors with the same expectation, those of one eigenvalue, multiples of a chi-square with one
    degree of freedom, are likeliest to have a mean that is so much too small (Szekely and Bakirov, Probab. Theory
    Relat. Fields 126, 184, 2003; Roosta-Khorasani, Szekely and Ascher, SIAM/ASA J. Uncertain. Quantif. 3, 61, 2015,
    for traces). Hall's transformation, an expansion in the skewness, goes farther where a single one is left.
    """
    return count / (2 * float(gammaincinv(count / 2, (1 - confidence) / 2)))


def _exact(operator: Observed, confidence: float) -> Estimate:
    total = sum(float(_squared_norms(some).sum()) for _, some in columns(operator))
    return _estimate(operator, math.sqrt(total), 0.0, total, total, confidence, "exact", math.inf)


def _estimate(
    operator: Observed,
    value: float,
    stderr: float,
    low: float,
    high: float,
    confidence: float,
    method: str,
    rtol: float,
) -> Estimate:
    """The norm, with the ends of its square's interval; each product's relative error is one of the norm."""
    error = operator.space.rounding
    low, high = math.sqrt(low) * max(0.0, 1 - error), math.sqrt(high) * (1 + error)
    reached = (high - low) / 2 <= rtol * value or method == "exact"
    kernel, note = operator.kernel, noted(operator.note, rtol, error, reached=reached)
    return Estimate(value, stderr, low, high, confidence, operator.matvecs, method, reached, kernel, note)


def _squared_norms(V: Tensor) -> Tensor:
    """Of the columns, (1, k) in float64."""
    return torch.linalg.vector_norm(V, dim=0, keepdim=True, dtype=torch.float64).square()
