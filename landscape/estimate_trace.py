"""The trace of a symmetric operator, with an interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .columns import columns, parts
from .errors import SettingError
from .exchangeable import Exchangeable, IndefiniteError, XNysTrace, XTrace
from .intervals import Moments, check_accuracy, check_method, noted, student_quantile, without_skewness
from .operators import Observed, as_operator
from .quadrature import trace_function
from .results import Estimate
from .sketch import Sketch
from .space import generator_for
from .symmetry import refuse_asymmetric

__all__ = ["trace"]

_METHODS = ("auto", "hutchinson", "xtrace", "xnystrace", "slq", "exact")
_TOO_FEW = 20  # products before the first look, below which a sketch finds too little
_CLEARLY = 0.7  # how many of the products that growing takes, streaming may take to be preferred
_FAR = 5  # times what was spent; streaming so long is dearer than a look at what a larger sketch finds
_DOUBT = 0.35  # standard deviation of the order of convergence, seen at 15 vectors
_ALLOWANCE = 0.1  # by which a sketch's interval is wider: its covariance is an estimate, and being narrow stops it

Deflation = Callable[[Tensor, Tensor], Tensor]


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
    r"""The trace, until its interval is narrow enough.

    ``"hutchinson"`` is the mean of m samples (Hutchinson 1989)

    .. math:: \hat t = \frac1m \sum_j z_j^T A z_j, \qquad z_j \in \{-1, 1\}^n

    with variance :math:`\frac2m (\|A\|_F^2 - \sum_i a_{ii}^2)`. It keeps no vectors. ``"xtrace"`` and, for positive
    semi-definite operators, ``"xnystrace"`` (Epperly, Tropp and Webber 2024) take what a low-rank approximation
    holds exactly and sample the rest; their error falls much faster where the spectrum decays. See `exchangeable`
    for the estimators and for the standard error, which the spread of their samples alone would understate up to
    three times. ``"slq"`` is the first moment of the spectral density, in `trace_function`, at three products a
    sample. ``"exact"`` takes n products; so does every method where they are fewer than it would need.

    ``"auto"`` takes XNysTrace where the operator is known to be positive semi-definite and turns out to be, else
    XTrace; or Hutchinson where fewer than 20 products come before the first look, or memory holds no sketch. A
    sketch grows until it is full (2 GiB), or samples beyond it would reach the accuracy with fewer products, as
    on a flat spectrum. All products made so far are used from then on.

    **The interval** is Student's after Hall's cubic transformation (J. R. Stat. Soc. B 54, 221, 1992): a few large
    eigenvalues make samples skewed like a chi-square. Stopping when it is narrow makes it cover less than it says,
    the more so the fewer products it may stop at; hence the minimum, and looks that are rare. That of a sketch is a
    tenth wider, by choice and not by fit: without, it covered 0.91 at the least and 0.95 on average in 200 runs
    with each of 33 spectra and 30, 60 and 120 products; with it, 0.93 and more, at three to four times the median
    error, and at four to six where eigenvalues fall by a third each or faster. No interval is narrower than what
    products are known to, times the trace and the Frobenius norm: 4e-6 in single precision.

    Args:
        A: an operator of ours, a dense matrix (n, n), or anything with ``shape`` and ``@``.
        rtol: stop when the half-width of the interval is below ``rtol * |value|``.
        method: ``"auto"``, ``"hutchinson"``, ``"xtrace"``, ``"xnystrace"``, ``"slq"`` or ``"exact"``.
        min_matvecs: products spent before the first look, if ``max_matvecs`` allows them.
        max_matvecs: most products to spend; the result says ``converged=False`` when they ran out.
        confidence: nominal coverage of the interval.
        seed: int, generator, or None for fresh entropy; the global stream is never used.

    Raises:
        SettingError: if an argument means nothing, the operator is not symmetric, or it is indefinite and
            ``method="xnystrace"``.
        NonFiniteError: if a product is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import trace
        >>> trace(torch.eye(100), seed=0).value
        100.0
        >>> trace(torch.diag(torch.arange(1.0, 1001.0) ** -2), rtol=0.02, seed=0)  # 1.6439
        Estimate(1.64... in [1.6..., 1.6...] at 95%, xtrace, ... products)
    """
    check_accuracy(rtol, confidence, min_matvecs, max_matvecs)
    operator = Observed(as_operator(A))
    n = operator.space.size
    check_method(method, _METHODS, n, max_matvecs)
    if method == "xtrace" and max_matvecs < 4:
        raise SettingError(f'method="xtrace" takes two products for each of two vectors at least, got {max_matvecs}')
    first = min(min_matvecs, max_matvecs)
    generator = generator_for(seed, operator.space.device)
    run = _Run(operator, rtol, first, max_matvecs, confidence, generator)
    with operator.held():
        operator.plan(min(max_matvecs, n), first)
        if method == "exact" or n <= first:
            return run.exact()
        if method == "slq":
            return trace_function(
                operator, lambda x: x, rtol=rtol, min_matvecs=first, max_matvecs=max_matvecs, confidence=confidence,
                seed=generator,
            )  # fmt: skip
        sketch = Sketch(operator, generator)
        too_small = sketch.room < 2 or (method == "auto" and min(first, 2 * sketch.room) < _TOO_FEW)
        if method == "hutchinson" or too_small:
            return run.streamed()
        if method == "xnystrace" or (method == "auto" and operator.psd):
            try:
                return run.sketched(XNysTrace(sketch), auto=method == "auto")
            except IndefiniteError:
                if method != "auto":
                    raise
        if sketch.size > run.left:  # too few are left for XTrace to use these
            return run.streamed(_Samples(sketch.samples))
        return run.sketched(XTrace(sketch), auto=method == "auto")


class _Run:
    """What the trace is wanted for, and the products there are to find it.

    Args:
        operator: A.
        rtol: half-width of the interval to stop at, relative.
        first: products before the first look.
        most: products there are.
        confidence: nominal coverage.
        generator: for the random vectors.
    """

    def __init__(
        self, operator: Observed, rtol: float, first: int, most: int, confidence: float, generator: torch.Generator
    ) -> None:
        self.operator, self.n = operator, operator.space.size
        self.rtol, self.first, self.most, self.confidence = rtol, first, most, confidence
        self.generator = generator

    @property
    def left(self) -> int:
        """Products that may still be made."""
        return self.most - self.operator.matvecs

    def sketched(self, estimator: Exchangeable, *, auto: bool) -> Estimate:
        """A sketch that grows until the interval is narrow; what memory does not hold is streamed.

        Args:
            estimator: with its sketch, which may hold products already.
            auto: whether to stream as soon as that takes clearly fewer products.
        """
        sketch, each = estimator.sketch, estimator.per_vector
        vectors = max(2, self.first // each) - sketch.size
        while True:
            estimator.grow(max(0, min(vectors, sketch.room, self.left // each)))
            found = estimator.leave_out()
            samples = _Samples(found.single, estimator.covariance(found))
            estimate = self.estimate(samples, sketch.frobenius, estimator.name)
            if self.is_enough(estimate, sketch.frobenius) or self.left < each:
                return estimate
            order = _order(estimator)
            excess = self._excess(estimate, sketch.frobenius)
            growing = self.growing(excess, order)
            spent = self.operator.matvecs
            if self.n <= min(self.growing(excess, order + _DOUBT), self.left, 8 * spent):
                return self.exact()
            room = min(sketch.room, self.left // each)
            if room == 0 or (auto and self.streaming(excess, samples) < min(_CLEARLY * growing, _FAR * spent)):
                return self.streamed(samples, estimator.deflated, f"{estimator.name}, hutchinson")
            vectors = max(math.ceil(min(growing / each, sketch.size)), sketch.size // 4)
            vectors = int(min(vectors, _until_narrow(excess, found.narrowing), room))

    def streamed(
        self, samples: _Samples | None = None, deflated: Deflation | None = None, method: str = "hutchinson"
    ) -> Estimate:
        """Blocks of samples until the interval is narrow, the products run out, or n of them are cheaper.

        Args:
            samples: what there is already.
            deflated: samples from vectors and their products; z'Az where nothing is better.
            method: what the estimate is to be called.
        """
        samples, space = _Samples() if samples is None else samples, self.operator.space
        squares, count = 0.0, 0
        while True:
            block = self.first if samples.count == 0 else max(4, samples.count // 4)
            for some in parts(min(block, self.left), space):
                Z = space.random(some.stop - some.start, self.generator, "rademacher")
                AZ = self.operator @ Z
                refuse_asymmetric(self.operator, Z, AZ)
                samples.add((Z * AZ).to(torch.float64).sum(dim=0).cpu() if deflated is None else deflated(Z, AZ))
                squares += float(torch.linalg.vector_norm(AZ, dtype=torch.float64)) ** 2
                count += Z.shape[1]
            frobenius = math.sqrt(squares / max(count, 1))
            estimate = self.estimate(samples, frobenius, method)
            if self.is_enough(estimate, frobenius):
                return estimate
            if self.n <= min(self.streaming(self._excess(estimate, frobenius), samples), self.left):
                return self.exact()

    def estimate(self, samples: _Samples, frobenius: float, method: str) -> Estimate:
        """The mean of the samples with its interval, which is no narrower than what products are known to."""
        operator, value, stderr = self.operator, samples.mean, samples.stderr
        low, high = samples.interval(self.confidence)
        slack = self._slack(value, frobenius)
        reached = (high - low) / 2 + slack <= self.rtol * abs(value)
        return Estimate(
            value, stderr, low - slack, high + slack, self.confidence, operator.matvecs, method, reached,
            operator.kernel, noted(operator.note, self.rtol, operator.space.rounding, reached=reached),
        )  # fmt: skip

    def is_enough(self, estimate: Estimate, frobenius: float) -> bool:
        """Whether the interval is narrow, the products are spent, or the interval is mostly their rounding."""
        half = (estimate.high - estimate.low) / 2
        return estimate.converged or self.left < 1 or half <= 2 * self._slack(estimate.value, frobenius)

    def _slack(self, value: float, frobenius: float) -> float:
        return self.operator.space.rounding * (abs(value) + frobenius)

    def _excess(self, estimate: Estimate, frobenius: float) -> float:
        """How many times wider than wanted the interval is, or than it can become."""
        wanted = max(self.rtol * abs(estimate.value), 2 * self._slack(estimate.value, frobenius))
        return (estimate.high - estimate.low) / 2 / wanted if wanted > 0 else math.inf

    def growing(self, excess: float, order: float) -> float:
        """More products that a sketch is expected to take, if the interval falls with this power of them."""
        return self.operator.matvecs * (excess ** (1 / order) - 1)

    def streaming(self, excess: float, samples: _Samples) -> float:
        """More products that samples are expected to take, of which the first ones have a covariance."""
        wanted = (samples.stderr / excess) ** 2
        square, shared = samples.spread**2, samples.kept**2 * samples.covariance
        if wanted == 0:
            return math.inf
        return (square + math.sqrt(square**2 + 4 * wanted * shared)) / (2 * wanted) - samples.count

    def exact(self) -> Estimate:
        """The sum of the diagonal, from one product per coordinate.

        Where products have an error beyond rounding (finite differences, tensor cores), each entry has it.
        """
        operator, space, value, squares = self.operator, self.operator.space, 0.0, 0.0
        for some, products in columns(operator):
            value += float(products[some].diagonal().to(torch.float64).sum())
            squares += float(torch.linalg.vector_norm(products, dtype=torch.float64)) ** 2
        half = self.n * space.rounding * math.sqrt(squares) if space.coarse else 0.0
        m, kernel, note = operator.matvecs, operator.kernel, operator.note
        return Estimate(value, 0.0, value - half, value + half, self.confidence, m, "exact", True, kernel, note)


class _Samples:
    """Samples of the trace, the first of which may have a covariance.

    Args:
        kept: (k,) samples of a sketch.
        covariance: of any two of these.
    """

    def __init__(self, kept: Tensor | None = None, covariance: float = 0.0) -> None:
        self._moments, self.covariance = Moments(), covariance
        self.kept = 0 if kept is None else len(kept)
        if kept is not None:
            self.add(kept)

    def add(self, samples: Tensor) -> None:
        self._moments.add(samples[None, :])

    @property
    def count(self) -> int:
        return self._moments.count

    @property
    def mean(self) -> float:
        return float(self._moments.mean)

    @property
    def spread(self) -> float:
        return float(self._moments.spread)

    @property
    def stderr(self) -> float:
        """Of the mean: ``s^2 / m``, and the covariance for the share that has it."""
        return math.sqrt(self.spread**2 / self.count + (self.kept / self.count) ** 2 * self.covariance)

    def interval(self, confidence: float) -> tuple[float, float]:
        """Student's, without the skewness."""
        skewness, quantile = self._moments.skewness, student_quantile(self.count - 1, confidence)
        quantile *= 1 + _ALLOWANCE * self.kept / self.count
        ends = (float(without_skewness(q, skewness, self.count)) for q in (quantile, -quantile))
        low, high = (self.mean - self.stderr * end for end in ends)
        return low, high


def _until_narrow(excess: float, narrowing: float) -> float:
    """Vectors that narrow the interval by twice as many digits as it lacks, if each takes such a factor, and one.

    Where eigenvalues fall fast these are few, and more would overshoot: errors are then far below what was asked for.
    Half as many would do, but each look is a chance to stop by luck: 0.90 were covered then, for 0.92.

    Args:
        excess: how many times narrower the interval is to be.
        narrowing: factor of the squared spread for each vector.
    """
    known = 0 < narrowing < 1 and math.isfinite(excess)
    return math.ceil(4 * math.log(max(excess, 1.0)) / -math.log(narrowing)) + 1 if known else math.inf


def _order(estimator: Exchangeable) -> float:
    """The power of the vectors with which the error falls, from half of them; at least that of plain sampling."""
    half = estimator.sketch.size // 2
    if half < 2:
        return 0.5
    ratio = float(estimator.leave_out(half).single.var() / estimator.leave_out().single.var())
    return 0.5 + min(max(0.0, math.log2(ratio) / 2), 2.5) if ratio > 0 and math.isfinite(ratio) else 0.5
