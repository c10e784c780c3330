r"""Stochastic Lanczos quadrature: traces of functions of a symmetric operator.

For a random unit vector q, m Lanczos steps give the m nodes and weights of the Gauss quadrature of q's spectral
measure (Golub and Meurant, "Matrices, Moments and Quadrature", 2010), and

.. math:: n \, q^T f(A) q \approx n \sum_k w_k f(\theta_k), \qquad E[n \, q^T f(A) q] = \operatorname{tr} f(A),

with equality for polynomials of degree 2m - 1 (Bai, Fahey and Golub 1996; Ubaru, Chen and Saad, SIAM J. Matrix Anal.
Appl. 38, 1075, 2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .columns import columns
from .errors import SettingError
from .intervals import Moments, check_accuracy, noted
from .lanczos import LanczosBasis
from .operators import Observed, as_operator
from .quadrature_error import LEAST_STEPS, remaining
from .results import Estimate
from .space import generator_for
from .three_term import ThreeTerm
from .wasserstein import Sampling

__all__ = ["LanczosProcesses", "Quadrature", "gauss", "quadratures", "trace_function"]

_MEMORY = 2 << 30  # cap on the Krylov bases of the starts that run at once, bytes
_STARTS = 5  # that run at once, where memory and products allow
_RARELY = 1.5  # times the starts, before the next look: each is a chance to stop by luck
_STEPS = 3  # the fewest that tell how far they are off
_DENSE = 2048  # largest matrix whose eigenvalues are computed
_OFTEN = 16  # steps, after which not every one is looked at, but one in so many more
_SHARE = 0.1  # of the width that is wanted, what the quadrature may have

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Gauss quadrature of the spectral measure of one start vector.

    Attributes:
        nodes: (m,) float64 Ritz values, ascending, on the host.
        weights: (m,) float64, with sum 1.
        residuals: (m,) float64 ``||A u - theta u||`` of the Ritz pairs: which nodes are eigenvalues.
    """

    nodes: Tensor
    weights: Tensor
    residuals: Tensor

    def mean(self, f: Function) -> float:
        """The measure's mean of f, which is applied to all nodes at once.

        Raises:
            SettingError: if f is not finite at a node, or not of its shape.
        """
        try:
            values = torch.as_tensor(f(self.nodes))
        except (TypeError, ValueError) as error:  # of Python's math, which takes numbers
            raise SettingError(f"f must take a tensor, as torch.log does and math.log not: {error}") from error
        if values.shape != self.nodes.shape or values.is_complex():
            raise SettingError(
                f"f must map a tensor of eigenvalues to a real tensor of the same shape; of {tuple(self.nodes.shape)} "
                f"it made {tuple(values.shape)}, {values.dtype}"
            )
        if not values.isfinite().all():
            where = float(self.nodes[~values.isfinite()][0])
            raise SettingError(
                f"f is not finite at {where:.6g}, which is within the operator's spectrum; A.shifted(s) moves that"
            )
        return float(self.weights @ values.to(torch.float64))


class LanczosProcesses:
    """Lanczos processes from random unit vectors, side by side, so that their products are made together.

    Args:
        operator: A.
        starts: how many.
        generator: for the start vectors.
        kept: whether all vectors are kept, and new ones made orthogonal to them; else three of each start are, and
            an eigenvalue may come as several nodes (see `three_term`).

    Attributes:
        steps: how many each has made, but for those that ended.
    """

    def __init__(self, operator: Observed, starts: int, generator: torch.Generator, *, kept: bool = True) -> None:
        self.operator, self.kept, self.steps = operator, kept, 0
        self._bases = [LanczosBasis(operator, 1, generator) if kept else ThreeTerm(operator) for _ in range(starts)]
        for basis in self._bases:
            basis.begin(operator.space.random(1, generator))

    @property
    def ended(self) -> list[bool]:
        """Which have met an invariant subspace, so that their quadrature is exact."""
        return [b.size > 0 and (b.broke_down or (self.kept and b.size >= b.space.size)) for b in self._bases]

    def step(self) -> None:
        """One more step of each that has not ended.

        Raises:
            NonFiniteError: if a product is NaN or infinite.
            SettingError: if the operator is not symmetric.
        """
        going = [b for b, ended in zip(self._bases, self.ended, strict=True) if not ended]
        rows = going[0].newest.T if len(going) == 1 else torch.cat([b.newest.T for b in going])
        products = self.operator.unchecked(rows.T)
        for i, basis in enumerate(going):
            basis.absorb(products[:, i : i + 1])
        self.steps += 1

    def quadratures(self, fewer: int = 0) -> list[Quadrature]:
        """The quadrature of each start, of the last step or of some steps before."""
        return [gauss(b, max(1, b.size - fewer)) for b in self._bases]


def gauss(basis: LanczosBasis | ThreeTerm, size: int) -> Quadrature:
    """The rule of Golub and Welsch after ``size`` steps: Ritz values, and their vectors' first components squared."""
    T = basis.T
    coupling = abs(float(T[size, size - 1] if size < basis.size else basis.R.sum()))  # R is empty where all is spanned
    nodes, vectors = torch.linalg.eigh(torch.from_numpy(T[:size, :size].copy()))
    found = Quadrature(nodes, vectors[0].square(), coupling * vectors[-1].abs())
    return _merged(found, basis.space.rounding) if isinstance(basis, ThreeTerm) else found


def _merged(found: Quadrature, rounding: float) -> Quadrature:
    """Nodes within rounding of each other as one, at their mean: copies of an eigenvalue, or as good as one.

    No node moves farther than the products are known to, relative to the largest.
    """
    nodes, weights = found.nodes.numpy(), found.weights.numpy()
    apart, starts = rounding * float(abs(nodes).max()), [0]
    for i, node in enumerate(nodes):
        if node - nodes[starts[-1]] > apart:
            starts.append(i)
    lowest = np.repeat(nodes[starts], np.diff([*starts, len(nodes)]))
    together = np.add.reduceat(weights, starts)
    above = np.add.reduceat(weights * (nodes - lowest), starts) / np.where(together > 0, together, 1.0)
    # Each copy has a residual of its own; what is known of the eigenvalue is the best of them.
    residuals = np.minimum.reduceat(found.residuals.numpy(), starts)
    return Quadrature(*map(torch.from_numpy, (nodes[starts] + above, together, residuals)))


def quadratures(
    operator: Observed, starts: int, steps: int, generator: torch.Generator, memory: int = _MEMORY
) -> list[Quadrature]:
    """The quadratures of random starts, of so many steps each, or fewer where the space ends.

    As many run at once as keep their Lanczos vectors within ``memory`` bytes. Where not even one does, none are kept:
    each start takes the memory of three vectors, and the copies of an eigenvalue come as nodes (see `three_term`).

    Raises:
        NonFiniteError: if a product is NaN or infinite.
        SettingError: if the operator is not symmetric.
    """
    space = operator.space
    fit = memory // (space.size * torch.finfo(space.dtype).bits // 8 * min(steps, space.size))
    found: list[Quadrature] = []
    with operator.held():
        operator.plan(starts * steps, max(1, min(starts, fit)))
        while len(found) < starts:
            at_once = max(1, min(starts - len(found), fit))
            processes = LanczosProcesses(operator, at_once, generator, kept=fit > 0)
            while processes.steps < steps and not all(processes.ended):
                processes.step()
            found += processes.quadratures()
    return found


def trace_function(
    A: Any,
    f: Function,
    *,
    rtol: float = 0.05,
    min_matvecs: int = 30,
    max_matvecs: int = 1000,
    confidence: float = 0.95,
    seed: int | torch.Generator | None = None,
) -> Estimate:
    r"""The trace of a function of the operator, the sum of f over its eigenvalues, with an interval.

    Lanczos steps go on until the quadrature's own error is small beside what is asked for, random starts until
    the interval is narrow. The interval is that of the studentised bootstrap, drawn from the law by which random
    starts find eigenvalues (see `wasserstein`), and wider by the quadrature's error: on the side where it is, if all
    rules err to one side, as those of logarithms, roots and inverses do, else on both. That is estimated from how the
    rules of more and more steps change (see `quadrature_error`), which no function need keep to: with a jump within
    the spectrum they may stand still and move on. Where the spectrum comes close to a singularity of f (the logarithm
    of a nearly singular matrix) it can take many steps to fall.

    Args:
        A: an operator of ours, a dense matrix (n, n), or anything with ``shape`` and ``@``.
        f: the function, of a float64 tensor of eigenvalues, entry by entry.
        rtol: stop when the half-width of the interval is below ``rtol * |value|``.
        min_matvecs: products spent before the first look, if ``max_matvecs`` allows them.
        max_matvecs: most products to spend; the result says ``converged=False`` when they ran out.
        confidence: nominal coverage of the interval.
        seed: int, generator, or None for fresh entropy; the global stream is never used.

    Raises:
        SettingError: if an argument means nothing, f is not finite within the spectrum, or the operator is not
            symmetric.
        NonFiniteError: if a product is NaN or infinite.

    Example:
        The log-determinant of a damped matrix, and its second moment, the square of the Frobenius norm.

        >>> import torch
        >>> from losscope.landscape import trace_function
        >>> A = torch.diag(torch.arange(1.0, 11.0))
        >>> trace_function(A, torch.log, seed=0).value  # log 10!
        15.104
        >>> trace_function(A, torch.square, seed=0).value
        385.0
    """
    check_accuracy(rtol, confidence, min_matvecs, max_matvecs)
    operator = Observed(as_operator(A))
    first, n = min(min_matvecs, max_matvecs), operator.space.size
    run = _Run(operator, f, rtol, max_matvecs, confidence, generator_for(seed, operator.space.device))
    with operator.held():
        operator.plan(min(max_matvecs, n), _STARTS)
        if n <= first:
            return run.exact()
        look = _STARTS
        while True:
            run.more_starts()
            if run.is_spent or (operator.matvecs >= first and run.samples.count >= look):
                estimate, look = run.estimate(), math.ceil(_RARELY * run.samples.count)
                if run.is_enough(estimate):
                    return estimate
                if n <= min(_DENSE, run.left, run.still_needed(estimate)):
                    return run.exact()


class _Run:
    """The function, how well its trace is to be known, and the starts so far."""

    def __init__(
        self, operator: Observed, f: Function, rtol: float, most: int, confidence: float, generator: torch.Generator
    ) -> None:
        self.operator, self.f, self.rtol, self.most, self.confidence = operator, f, rtol, most, confidence
        self.generator, self.n = generator, operator.space.size
        self.samples = Moments()
        self.starts: list[Quadrature] = []
        self.errors: list[tuple[float, float]] = []  # of each start's quadrature: how far above, and below
        self.depth = _STEPS  # steps that starts have taken; with fewer one cannot be as good

    @property
    def left(self) -> int:
        """Products that may still be made."""
        return self.most - self.operator.matvecs

    @property
    def is_spent(self) -> bool:
        """Whether too few products are left for one more start."""
        return self.left < (self.depth if self.samples.count > 1 else 1)

    def more_starts(self) -> None:
        """Some starts more, all to the step at which their quadrature is good enough."""
        per_vector = self.n * torch.finfo(self.operator.space.dtype).bits // 8
        fit = _MEMORY // per_vector
        deep = self.depth if self.starts else LEAST_STEPS  # what the first will have to take is not known
        wanted = max(2 - self.samples.count, 1, min(_STARTS, self.left // deep))  # with few products, fewer
        starts = max(1, min(wanted, fit // 64, self.left))
        most = max(1, min(self.left // max(starts, wanted - self.samples.count), fit // starts))
        processes, check = LanczosProcesses(self.operator, starts, self.generator), 1
        steps: list[int] = []
        sums: list[list[float]] = []
        while True:
            processes.step()
            last = processes.steps >= most or all(processes.ended)
            if last or processes.steps == check:
                found = processes.quadratures()
                steps.append(processes.steps)
                sums.append([self.n * q.mean(self.f) for q in found])
                error = remaining(steps, np.array(sums).T, processes.ended)
                small = check >= _STEPS and max(error) <= _SHARE * self._resolved(sums[-1], check)
                if last or small:
                    break
                check = processes.steps + max(1, processes.steps // _OFTEN)
        self.samples.add(torch.tensor([sums[-1]], dtype=torch.float64))
        self.starts += found
        self.errors += [error] * starts
        self.depth = max(self.depth, processes.steps)

    def _resolved(self, means: list[float], steps: int) -> float:
        """The width that is wanted, or the standard error that all products come to if that is larger."""
        samples = Moments()
        samples.add(torch.tensor([means], dtype=torch.float64))
        known = samples if self.samples.count == 0 else self.samples
        spread = float(known.spread) if known.count > 1 else 0.0
        return max(self.rtol * abs(float(known.mean)), spread / math.sqrt(max(known.count, self.most / steps)))

    def estimate(self) -> Estimate:
        """The mean over the starts with its interval."""
        operator, value, (above, below) = self.operator, float(self.samples.mean), self._errors()
        nodes, order = torch.cat([q.nodes for q in self.starts]).sort()
        weights = torch.cat([q.weights for q in self.starts])[order] / len(self.starts)
        values = torch.as_tensor(self.f(nodes)).to(torch.float64)
        sampling = Sampling(nodes, weights, self.n, len(self.starts))
        stderr, low, high = (self.n * found for found in sampling.interval(values, self.confidence))
        low, high = low - above, high + below
        reached = (high - low) / 2 <= self.rtol * abs(value)
        return Estimate(
            value, stderr, low, high, self.confidence,
            operator.matvecs, "slq", reached, operator.kernel,
            noted(operator.note, self.rtol, operator.space.rounding, reached=reached),
        )  # fmt: skip

    def _errors(self) -> tuple[float, float]:
        """How far the mean may be above what it is to be, and below: by the quadratures' errors and by rounding.

        Rounding moves a sum of n terms by its share of them.
        """
        rounding = self.operator.space.rounding * abs(float(self.samples.mean))
        above, below = (math.fsum(side) / len(side) + rounding for side in zip(*self.errors, strict=True))
        return above, below

    def _error(self) -> float:
        """What errors other than those of few starts add to the half-width."""
        return sum(self._errors()) / 2

    def is_enough(self, estimate: Estimate) -> bool:
        """Whether the interval is narrow, the products are spent, or more starts do not make it narrower."""
        return estimate.converged or self.is_spent or (estimate.high - estimate.low) / 2 <= 2 * self._error()

    def still_needed(self, estimate: Estimate) -> float:
        """More products that an interval of the requested width is expected to take."""
        wanted = max(self.rtol * abs(estimate.value), 2 * self._error())
        half = (estimate.high - estimate.low) / 2
        return estimate.matvecs * ((half / wanted) ** 2 - 1) if wanted > 0 else math.inf

    def exact(self) -> Estimate:
        """The sum over all eigenvalues, from one product per coordinate."""
        dense = torch.cat([products for _, products in columns(self.operator)], dim=1).to("cpu", torch.float64)
        values = torch.linalg.eigvalsh((dense + dense.T) / 2)
        spectrum = Quadrature(values, torch.full_like(values, 1 / self.n), torch.zeros_like(values))
        value = self.n * spectrum.mean(self.f)
        half = self.operator.space.rounding * abs(value)
        m, kernel, note = self.operator.matvecs, self.operator.kernel, self.operator.note
        return Estimate(value, 0.0, value - half, value + half, self.confidence, m, "exact", True, kernel, note)
