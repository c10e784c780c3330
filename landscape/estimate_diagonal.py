"""The diagonal of a symmetric operator, with an interval for every entry."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from .columns import columns, parts
from .errors import SettingError
from .intervals import Moments, check_accuracy, check_method, noted
from .operators import Observed, as_operator
from .results import DiagonalEstimate
from .space import VectorSpace, generator_for, named
from .symmetry import refuse_asymmetric
from .xdiag import Average, XDiag, as_it_is

__all__ = ["diagonal"]

_METHODS = ("auto", "hutchinson", "xdiag", "exact")
_PILOT = 12  # products below which there is nothing to choose by


def diagonal(
    A: Any,
    *,
    rtol: float = 0.1,
    method: str = "auto",
    spatial: int | None = None,
    min_matvecs: int = 30,
    max_matvecs: int = 1000,
    confidence: float = 0.95,
    seed: int | torch.Generator | None = None,
) -> DiagonalEstimate:
    r"""The diagonal, until its intervals are narrow enough.

    ``"hutchinson"`` is the estimator of Bekas, Kokiopoulou and Saad (Appl. Numer. Math. 57, 1214, 2007)

    .. math:: \hat d = \sum_j z_j \odot A z_j \Big/ \sum_j z_j \odot z_j, \qquad z_j \in \{-1, 1\}^n

    Entry i has the variance :math:`\frac1m \sum_{k \ne i} a_{ik}^2`; its samples are sums of independent
    signs, hence symmetric about :math:`a_{ii}` with tails no heavier than a normal's, and the interval is
    Student's. It keeps four vectors besides those being multiplied.

    ``"xdiag"`` (Epperly, Tropp and Webber, SIAM J. Matrix Anal. Appl. 45, 1, 2024) multiplies m / 2 random
    vectors and an orthonormal basis of their products, and is far better where the spectrum decays; see
    `xdiag.XDiag`, also for its interval. It keeps all its vectors. ``"exact"`` takes n products. ``"auto"``
    spends ``min_matvecs`` on XDiag, goes on with it or with Hutchinson, whichever has the narrower intervals,
    and turns to n products where they are fewer than the estimate would need. Up to n = ``min_matvecs``, XDiag
    gives way to n products too.

    Args:
        A: an operator of ours, a dense matrix (n, n), or anything with ``shape`` and ``@``.
        rtol: stop when the root mean square of the intervals' half-widths is below ``rtol`` times the root
            mean square of the diagonal. Entries far below the latter are not resolved.
        method: ``"auto"``, ``"hutchinson"``, ``"xdiag"`` or ``"exact"``.
        spatial: None for the diagonal itself. An integer for AdaHessian's spatial averages of it (Yao et al.,
            AAAI 2021): each entry of a convolution's weight is replaced by the mean over its kernel, and each
            entry of a matrix by the mean over its run of ``spatial`` entries, in row-major order: 1 leaves
            matrices alone, as the published image classifier does. The signed entries are averaged, not
            ``|z * Az|``, whose mean is larger. Values and intervals are then those of the averages.
        min_matvecs: products spent before the first look, if ``max_matvecs`` allows them.
        max_matvecs: most products to spend; the result says ``converged=False`` when they ran out.
        confidence: nominal coverage of each entry's interval (not of all of them together).
        seed: int, generator, or None for fresh entropy; the global stream is never used.

    Raises:
        SettingError: if an argument means nothing, the operator is not symmetric, or ``spatial`` goes with an
            operator that is not over a model's parameters.
        NonFiniteError: if a product is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import diagonal
        >>> diagonal(torch.diag(torch.tensor([1.0, 2.0, 3.0])), seed=0).value
        tensor([1., 2., 3.])
    """
    check_accuracy(rtol, confidence, min_matvecs, max_matvecs)
    min_matvecs = min(min_matvecs, max_matvecs)
    operator = Observed(as_operator(A))
    n = operator.space.size
    check_method(method, _METHODS, n, max_matvecs)
    if method == "xdiag" and max_matvecs < 4:
        raise SettingError(f'method="xdiag" takes 4 products at least, got max_matvecs = {max_matvecs}')
    generator = generator_for(seed, operator.space.device)
    run = _Run(operator, _averaging(operator.space, spatial), rtol, max_matvecs, confidence)
    with operator.held():
        operator.plan(min(max_matvecs, n), min_matvecs)
        if method == "exact" or (method != "hutchinson" and n <= min_matvecs):
            return run.exact()
        if method == "auto":
            return run.until_narrow(run.narrower(generator, min_matvecs), 0, exactly=True)
        if method == "xdiag":
            return run.until_narrow(XDiag(operator, generator, run.average), max(4, min_matvecs))
        return run.until_narrow(_Hutchinson(operator, generator, run.average), min_matvecs)


class _Hutchinson:
    """Samples ``z * Az``, kept as running sums."""

    name = "hutchinson"
    step = 1
    rate = 2.0
    limit = math.inf

    def __init__(self, operator: Observed, generator: torch.Generator, average: Average) -> None:
        self.operator, self.generator, self.average = operator, generator, average
        self._moments = Moments()
        self._squares = 0.0

    def extend(self, products: int) -> None:
        """Take in more samples, a few at a time, so that memory stays bounded."""
        for some in parts(products, self.operator.space):
            Z = self.operator.space.random(some.stop - some.start, self.generator, "rademacher")
            self.take(Z, self.operator @ Z)

    def take(self, Z: Tensor, AZ: Tensor) -> None:
        """Samples from products that are known, (n, k) both."""
        if self._moments.count == 0:
            refuse_asymmetric(self.operator, Z, AZ)
        self._moments.add(self.average(Z * AZ))
        self._squares += float(AZ.square().sum(dtype=torch.float64))

    def moments(self) -> tuple[Moments, float]:
        """Mean and spread of the samples, which are independent."""
        return self._moments, 1.0

    @property
    def scale(self) -> float:
        """Root mean square of the products' entries."""
        return math.sqrt(self._squares / self._moments.count / self.operator.space.size)


class _Run:
    """What the methods share: when to stop, and what is made of samples."""

    def __init__(self, operator: Observed, average: Average, rtol: float, max_matvecs: int, confidence: float) -> None:
        self.operator, self.average = operator, average
        self.rtol, self.max_matvecs, self.confidence = rtol, max_matvecs, confidence

    def narrower(self, generator: torch.Generator, products: int) -> XDiag | _Hutchinson:
        """The estimator to go on with, after so many products."""
        plain = _Hutchinson(self.operator, generator, self.average)
        sketch = XDiag(self.operator, generator, self.average)
        if products < _PILOT or sketch.limit < products:
            plain.extend(products)
            return plain
        sketch.extend(products)
        plain.take(sketch.vectors, sketch.products)
        share = math.sqrt(sketch.vectors.shape[1] / products)  # had all products been samples of its own
        better = self.estimate(sketch).relative_half_width <= share * self.estimate(plain).relative_half_width
        return sketch if better else plain

    def until_narrow(self, estimator: XDiag | _Hutchinson, block: int, exactly: bool = False) -> DiagonalEstimate:
        """Extend until the intervals are narrow, the products or the memory run out, or n of them are cheaper."""
        most = min(self.max_matvecs, estimator.limit)
        while True:
            if block:
                estimator.extend(min(block, int(most - self.operator.matvecs)))
            found = self.estimate(estimator)
            spent = self.operator.matvecs
            hopeless = self._rounding(estimator) > self.rtol * float(found.value.square().mean().sqrt())
            if found.converged or hopeless or most - spent < estimator.step:
                return found
            needed = spent * ((found.relative_half_width / self.rtol) ** estimator.rate - 1)
            if exactly and self.operator.space.size <= min(needed, self.max_matvecs - spent):
                return self.exact()
            block = max(4, spent // 4)

    def estimate(self, estimator: XDiag | _Hutchinson) -> DiagonalEstimate:
        """Mean and interval of the samples so far."""
        moments, factor = estimator.moments()
        skewed = self.average is not as_it_is  # a mean over entries is a quadratic form, skewed as in `trace`
        low, high = moments.interval(self.confidence, skewed=skewed, factor=factor)
        error = self._rounding(estimator)
        stderr = moments.spread * factor / math.sqrt(moments.count)
        return self._result(moments.mean, stderr, low - error, high + error, estimator.name)

    def _rounding(self, estimator: XDiag | _Hutchinson) -> float:
        """What products err by in an entry, no matter how many.

        Their error is known in norm only; not more than a share 1 - confidence of the entries err by more than this
        (Chebyshev).
        """
        return self.operator.space.rounding * estimator.scale / math.sqrt(1 - self.confidence)

    def exact(self) -> DiagonalEstimate:
        """One product per coordinate; each entry errs at most by its product's rounding."""
        space = self.operator.space
        value, error = torch.empty(2, space.size, dtype=space.dtype, device=space.device)
        for some, found in columns(self.operator):
            value[some] = found[some].diagonal()
            error[some] = space.rounding * torch.linalg.vector_norm(found, dim=0)
        value, error = (self.average(x[:, None])[:, 0] for x in (value, error))
        return self._result(value, torch.zeros_like(value), value - error, value + error, "exact")

    def _result(self, value: Tensor, stderr: Tensor, low: Tensor, high: Tensor, method: str) -> DiagonalEstimate:
        operator = self.operator
        found = DiagonalEstimate(
            value, stderr, low, high, self.confidence, operator.matvecs, method, False, operator.space,
            operator.kernel, operator.note,
        )  # fmt: skip
        reached = method == "exact" or found.relative_half_width <= self.rtol
        note = noted(operator.note, self.rtol, operator.space.rounding, reached=reached)
        return dataclasses.replace(found, converged=reached, note=note)


# --------------------------------------------------------------------------- spatial averages


def _averaging(space: VectorSpace, spatial: int | None) -> Average:
    """The map from samples of the diagonal (n, k) to samples of its spatial averages, each repeated over its group.

    Averaging within a sample leaves the covariances inside a group to the spread over samples.
    """
    if spatial is None:
        return as_it_is
    if isinstance(spatial, bool) or not isinstance(spatial, int) or spatial < 1:
        raise SettingError(f"spatial must be None or a positive integer, got {spatial!r}")
    space = named(space)
    groups = []  # (numel, length of the runs that are averaged)
    for name, shape, numel in zip(space.names, space.shapes, space.numels, strict=True):
        length = math.prod(shape[2:]) if len(shape) > 2 else spatial if len(shape) == 2 else 1
        if numel % length:
            raise SettingError(
                f"{name} of shape {shape} cannot be cut into runs of spatial={spatial} entries; pass a divisor of its "
                f"{numel} entries, or 1"
            )
        groups.append((numel, length))

    def average(samples: Tensor) -> Tensor:
        pieces = samples.split([numel for numel, _ in groups])
        return torch.cat(
            [
                piece.unflatten(0, (-1, length)).mean(dim=1).repeat_interleave(length, dim=0)
                for piece, (_, length) in zip(pieces, groups, strict=True)
            ]
        )

    return average
