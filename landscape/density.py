r"""The spectral density by stochastic Lanczos quadrature, with resolved eigenvalues counted as whole ones.

A random unit vector sees each eigenvalue with a random weight, 1/n on average, and the Gauss quadrature of its
Lanczos process has the same moments up to degree 2m - 1 as what it sees (Lin, Saad and Yang, SIAM Review 58, 34,
2016; Ghorbani, Krishnan and Xiao, ICML 2019). Most of the error comes from the weights of the largest eigenvalues.
Starts in one block Krylov space resolve those on the way, and what is resolved has mass 1/n, not a random one.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .columns import columns
from .errors import SettingError
from .intervals import number
from .krylov import top_eigenpairs
from .operators import Observed, as_operator
from .quadrature import Quadrature
from .results import Eigenpairs
from .space import VectorSpace, generator_for
from .spectral_measure import SpectralDensity, merged
from .start_block import StartBlock
from .wasserstein import Sampling, distance

__all__ = ["spectral_density"]

_MEMORY = 2 << 30  # cap on a Krylov basis, bytes
_BASIS = 1024  # vectors in a basis that grows until the error is small
_DENSE = 2048  # largest matrix whose eigenvalues are computed to reach an accuracy
_FIRST = 8  # steps before the first look at the error
_USUAL = 8  # times the products that are planned, what an accuracy may take where nothing is said
_FEW = 3  # steps, without which the change over two of them is not known
_BACK = (1, 2)  # steps, over which the measure changes by about as much as its quadrature errs, or more
_DOUBT = 0.5  # of what going on has moved, since the last steps may err alike
_RESOLVED = 0.05  # relative residual up to which a pair that was passed in is taken for an eigenpair
_BOOKKEEPING = 1e-13  # relative; of sums over many eigenvalues in float64
_COPIES = "Lanczos vectors were not kept: nodes may be copies of one eigenvalue, and are not to be counted"


def spectral_density(
    A: Any,
    *,
    vectors: int = 8,
    steps: int = 64,
    deflate: Eigenpairs | int | None = None,
    rtol: float | None = None,
    max_matvecs: int | None = None,
    memory: int | None = None,
    confidence: float = 0.95,
    seed: int | torch.Generator | None = None,
) -> SpectralDensity:
    r"""The density of the eigenvalues of a symmetric operator, as nodes and weights, with a bound of its error.

    All starts run as one block, so that products are made together and the block Krylov space resolves eigenpairs
    that no start would resolve by itself: with 8 starts of 64 steps some hundreds. They count one eigenvalue each,
    which takes their random weights out of the error, at no product more: on Hessians of trained small networks it
    falls 4 to 30 times with 48 products, and 45 to 30,000 times with 512. Of untrained ones, whose bulk is wide, it
    falls 8 to 20 times with 512; with fewer than 64, two starts mostly do best. It takes two at least, and more than
    there are copies of an eigenvalue. n products at most are spent: where ``vectors * steps`` are as many, all
    eigenvalues are computed.

    Nodes and weights are not those of the Gauss quadratures, but of the process as it would go on after the last step
    (see `continuation`), which halves the quadrature's part of the error. They have the same moments, up to degree
    2m - 1, but for what is kept from leaving the range of the Ritz values. With ``deflate=0`` they are the
    quadratures'.

    **The bound** of the Wasserstein-1 error is the sum of what starts miss, drawn from its law (see `wasserstein`); of
    the quadrature's error, for which the change over the last step is taken, or over the last two if that is larger,
    and half the distance from the Gauss quadratures; of twice the nuclear norm of the residuals of eigenvalues that
    were taken out, over n (Lidskii); and of rounding. The second is an estimate: an eigenvalue or a cluster that no
    start has come to see is not in it.

    Args:
        A: an operator of ours, a dense matrix (n, n), or anything with ``shape`` and ``@``.
        vectors: random starts.
        steps: Lanczos steps of each.
        deflate: what is taken out of the spectrum first and not sampled: eigenpairs of this operator, e.g. those of
            a sharpness probe, of which only those with a small residual are used; or how many of the largest in
            magnitude to search for, with products of their own, which count; 0 for plain quadrature, where not even
            resolved eigenvalues are taken out.
        rtol: stop when the bound is below ``rtol`` times the largest eigenvalue in magnitude. Starts take as many
            steps as it needs then, or more starts follow, whichever lowers the bound faster.
        max_matvecs: most products to spend for that; by default ``8 * vectors * steps``.
        memory: bytes that Lanczos vectors may take; by default 2 GiB. Where they do not hold all bases, starts run one
            after the other, in the complement of what the first have resolved. Where they do not hold the steps of
            one start, as with 0, no more than three vectors are kept: the quadratures are those of ``deflate=0`` with
            the same seed, since nothing is resolved and taken out, which the bound and the intervals are wider for;
            and an eigenvalue may come as several nodes, which the note says.
        confidence: nominal coverage of the bound and of intervals.
        seed: int, generator, or None for fresh entropy; the global stream is never used. It stands for the same
            starts whatever the memory.

    Raises:
        SettingError: if an argument means nothing, or the operator is not symmetric.
        NonFiniteError: if a product is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import spectral_density
        >>> density = spectral_density(torch.diag(torch.arange(1.0, 1001.0) ** -1), vectors=4, steps=20, seed=0)
        >>> density.moment(1).value  # 0.007485
        0.0074...
    """
    _check(vectors, steps, rtol, max_matvecs, memory, confidence)
    operator = Observed(as_operator(A))
    most = vectors * steps if rtol is None else max_matvecs or _USUAL * vectors * steps
    room = _MEMORY if memory is None else memory
    run = _Run(operator, vectors, steps, rtol, most, room, confidence, generator_for(seed, operator.space.device))
    with operator.held():
        operator.plan(min(most, operator.space.size), run.at_once())
        if operator.space.size <= min(vectors * steps, most):
            return run.exact()
        run.deflate(deflate)
        return run.fixed() if rtol is None else run.accurate()


Measure = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class _Part:
    """What one block of starts says.

    Attributes:
        starts: quadratures of what was not taken out.
        rest: nodes and weights of that, all starts together, with sum 1.
        now: nodes and weights, all starts together, before anything was.
        before: the same some steps earlier, for each of `_BACK`.
        taken: which nodes are resolved eigenvalues.
        values: those, and their residuals.
        moving: the nuclear norm of these residuals together.
        steps: made.
        unfinished: how far from its nodes the mass of starts that have ended may be.
    """

    starts: tuple[Quadrature, ...]
    rest: Measure
    now: Measure
    before: list[Measure]
    taken: Tensor
    values: Tensor
    residuals: Tensor
    moving: float
    steps: int
    unfinished: float


class _Run:
    """The starts so far, and what has been taken out of the spectrum."""

    def __init__(
        self, operator: Observed, vectors: int, steps: int, rtol: float | None, most: int, memory: int,
        confidence: float, generator: torch.Generator,
    ) -> None:  # fmt: skip
        self.operator, self.space, self.n = operator, operator.space, operator.space.size
        self.vectors, self.steps, self.most, self.memory = vectors, steps, most, memory
        self.rtol = math.inf if rtol is None else rtol
        self.confidence, self.generator = confidence, generator
        self.values = self.residuals = torch.empty(0, dtype=torch.float64)
        self.U = torch.empty(self.n, 0, dtype=self.space.dtype, device=self.space.device)
        self.plain, self.note, self.copies = False, "", ""
        self.quadrature = 0.0  # its error in the last density
        self.parts: list[_Part] = []

    @property
    def left(self) -> int:
        """Products that may still be made."""
        return self.most - self.operator.matvecs

    @property
    def fit(self) -> int:
        """Vectors that memory holds."""
        per_vector = self.n * torch.finfo(self.space.dtype).bits // 8
        return self.memory // per_vector - self.U.shape[1]

    @property
    def kept(self) -> bool:
        """Whether memory holds the basis of one start."""
        return self.fit > min(self.steps, self.n)

    def block(self, starts: int) -> StartBlock:
        """So many more starts."""
        self.copies = "" if self.kept else _COPIES
        return StartBlock(self.operator, starts, self.generator, self.U, kept=self.kept)

    def exact(self) -> SpectralDensity:
        """All eigenvalues, from one product per coordinate."""
        dense = torch.cat([products for _, products in columns(self.operator)], dim=1).to("cpu", torch.float64)
        self.values = torch.linalg.eigvalsh((dense + dense.T) / 2)
        self.residuals = torch.zeros_like(self.values)
        return self.density([])

    def deflate(self, given: Eigenpairs | int | None) -> None:
        """Take out eigenpairs that are known, or as many as are to be searched for."""
        if given is None:
            return
        if not isinstance(given, Eigenpairs):
            if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < self.n:
                raise SettingError(f"deflate must be Eigenpairs, None or an integer from 0 to n - 1, got {given!r}")
            self.plain = given == 0
            if given == 0:
                return
            limit = None if self.rtol == math.inf else max(given, self.left // 2)
            given = top_eigenpairs(self.operator, given, which="LM", max_matvecs=limit, seed=self.generator)
        vectors = _checked(given.vectors, self.space)
        good = given.residuals <= _RESOLVED * given.values.abs()
        if not good.all():
            self.note = f"{int((~good).sum())} of {len(good)} eigenpairs have large residuals and were not taken out"
        self.U = torch.linalg.qr(vectors[:, good.to(vectors.device)])[0]
        self.values, self.residuals = given.values[good], given.residuals[good]

    # ------------------------------------------------------------------ starts

    def fixed(self) -> SpectralDensity:
        """As many starts and steps as were asked for."""
        missing = self.vectors
        while missing:
            block = self.block(min(missing, self.at_once()))
            while block.steps < self.steps and not block.ended:
                block.step()
            missing -= block.starts
            self.keep(block, more=missing > 0)
        return self.density(self.parts)

    def at_once(self) -> int:
        """How many starts to run as one block."""
        each = self.steps + 1
        all_fit = self.vectors * each <= self.fit
        fit = self.vectors if all_fit else 2 * self.fit // (3 * each)  # a third is for what they resolve
        return max(1, min(fit, self.n - self.U.shape[1]))

    def accurate(self) -> SpectralDensity:
        """Steps and starts until the bound is small."""
        block = self.block(max(1, min(self.at_once(), self.left // _FEW)))
        before, look = None, _FIRST
        while True:
            block.step()
            full = (block.steps + 2) * block.starts > (min(_BASIS, self.fit) if self.kept else _BASIS)
            last = self.left < block.starts or full or block.ended
            if last or block.steps >= look:
                found = self.density([self.part(block)])
                if found.converged or last or not self.deeper(found, before):
                    break
                before, look = found, block.steps + max(1, block.steps // 4)
        steps, looked = block.steps, self.operator.matvecs
        self.keep(block, more=True)
        while not found.converged and self.left >= 2 * steps:
            if self.n <= min(_DENSE, self.left, self.still_needed(found)):
                return self.exact()
            block = self.block(min(self.at_once(), self.left // steps))
            while block.steps < steps and not block.ended:
                block.step()
            self.keep(block, more=True)
            if self.left < 2 * steps or self.operator.matvecs >= 1.1 * looked:
                found, looked = self.density(self.parts), self.operator.matvecs
        return found

    def still_needed(self, found: SpectralDensity) -> float:
        """More products that more starts are expected to take."""
        excess = found.wasserstein / (self.rtol * max(float(found.nodes.abs().max()), 1e-300))
        return found.matvecs * (excess**2 - 1)

    def deeper(self, found: SpectralDensity, before: SpectralDensity | None) -> bool:
        """Whether more steps do more than more starts, four times as many of which halve what is not quadrature."""
        norm = float(found.nodes.abs().max())
        if before is None or self.quadrature > self.rtol * norm / 2:
            return True
        return found.wasserstein * math.sqrt(found.matvecs) < before.wasserstein * math.sqrt(before.matvecs)

    def keep(self, block: StartBlock, *, more: bool) -> None:
        """Count the starts of a block in; those of others to come are in the complement of what it resolved."""
        part = self.part(block)
        if more and part.taken.any():
            found = block.ritz_vectors(part.taken)
            self.U = torch.cat([self.U, found], dim=1) if self.U.shape[1] else found
        self.parts.append(part)

    def part(self, block: StartBlock) -> _Part:
        """What a block of starts says now; the first one of all takes out what it has resolved."""
        rule, ended = block.rule, block.ended
        taken = torch.zeros(len(rule.nodes), dtype=torch.bool)
        if block.kept and not self.plain and not self.parts:
            norm = float(rule.nodes.abs().max())
            taken = rule.resolved(self.n - len(self.values), self.space.rounding * norm)
        rows = 0 if self.plain else block.rows(len(rule.nodes))
        now = block.before(0, rows) if rows else rule.mean
        rest = merged(rule.without(taken))[:2] if self.plain else block.continued(taken, now)
        before = [now if ended else block.before(back, rows) for back in _BACK if ended or back < block.steps]
        return _Part(
            rule.without(taken), rest, now, before, taken, rule.nodes[taken], rule.residuals[taken],
            block.moving(taken), self.n if ended else block.steps,
            float(rule.mean[1] @ rule.residuals) if ended else 0.0,
        )  # fmt: skip

    # ------------------------------------------------------------------ results

    def density(self, parts: list[_Part]) -> SpectralDensity:
        """The density that blocks of starts say together, with its bound."""
        values = torch.cat([self.values, *(part.values for part in parts)])
        residuals = torch.cat([self.residuals, *(part.residuals for part in parts)])
        values, order = values.sort()
        starts = tuple(q for part in parts for q in part.starts) if len(values) < self.n else ()
        rest = _together([part.rest for part in parts], parts) if starts else None
        operator = self.operator
        density = SpectralDensity(
            starts, values, self.n, operator.matvecs, math.inf, self.confidence, True, operator.kernel,
            "; ".join(filter(None, (operator.note, self.note, self.copies))), residuals[order], self.space.rounding,
            min((part.steps for part in parts), default=0), rest,
        )  # fmt: skip
        bound = 2 * (float(self.residuals.sum()) + sum(part.moving for part in parts)) / self.n
        norm = float(density.nodes.abs().max())
        # Rounding is in proportion to each product, a coarser error (finite differences) to the largest.
        size = norm if self.space.coarse else math.sqrt(float(density.weights @ density.nodes.square()))
        bound += self.space.rounding * size + _BOOKKEEPING * norm
        if starts:
            left = (self.n - len(values)) / self.n
            assert rest is not None
            bound += left * Sampling(*rest, self.n - len(values), len(starts)).distance(self.confidence)
            self.quadrature = (1 - len(self.values) / self.n) * _changes(parts)
            self.quadrature += left * _DOUBT * distance(*rest, *merged(starts)[:2])
            bound += self.quadrature
        return dataclasses.replace(
            density, wasserstein=bound, converged=bound <= self.rtol * norm or not parts or self.rtol == math.inf
        )


def _changes(parts: list[_Part]) -> float:
    """By how much the measure of all starts changed over the last steps: the most of several counts of steps."""
    now = _together([part.now for part in parts], parts)
    counts = min(len(part.before) for part in parts)
    changes = [distance(*now, *_together([part.before[i] for part in parts], parts)) for i in range(counts)]
    unfinished = sum(part.unfinished * len(part.starts) for part in parts) / sum(len(part.starts) for part in parts)
    return max(changes, default=math.inf) + unfinished


def _together(measures: list[Measure], parts: list[_Part]) -> Measure:
    """The average of measures over all starts, nodes ascending."""
    total = sum(len(part.starts) for part in parts)
    shares = [len(part.starts) / total for part in parts]
    weights = [share * weights for share, (_, weights) in zip(shares, measures, strict=True)]
    nodes, which = torch.cat([nodes for nodes, _ in measures]).unique(return_inverse=True)
    return nodes, torch.zeros_like(nodes).index_add_(0, which, torch.cat(weights))


def _checked(vectors: Tensor, space: VectorSpace) -> Tensor:
    """Eigenvectors in the operator's space.

    Raises:
        SettingError: if they are of another size, or not nearly orthonormal.
    """
    if vectors.ndim != 2 or vectors.shape[0] != space.size:
        raise SettingError(
            f"deflate has vectors of shape {tuple(vectors.shape)}, and the operator {space.size} rows: pass eigenpairs "
            "of this operator"
        )
    vectors = vectors.detach().to(space.device, space.dtype)
    gram = space.inner(vectors, vectors).to("cpu", torch.float64)  # plain sums over millions are off by as much
    if not float((gram - torch.eye(len(gram), dtype=torch.float64)).abs().max()) < 1e-2:
        raise SettingError("deflate has eigenvectors that are not orthonormal; pass those of top_eigenpairs")
    return vectors


def _check(
    vectors: int, steps: int, rtol: float | None, max_matvecs: int | None, memory: int | None, confidence: float
) -> None:
    for name, value, least in (("vectors", vectors, 1), ("steps", steps, 2), ("max_matvecs", max_matvecs, 2)):
        if name == "max_matvecs" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SettingError(f"{name} must be an integer of at least {least}, got {value!r}")
    if not 0 < number(confidence) < 1:
        raise SettingError(f"confidence must be between 0 and 1, got {confidence!r}")
    if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int) or memory < 0):
        raise SettingError(f"memory must be a number of bytes of 0 or more, got {memory!r}")
    if rtol is None and max_matvecs is not None:
        raise SettingError("max_matvecs limits what an accuracy may take: give rtol as well, or vectors and steps only")
    if rtol is not None and not 0 < number(rtol) < math.inf:
        raise SettingError(f"rtol must be a positive number, got {rtol!r}")
