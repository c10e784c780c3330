r"""What the size of mini-batches does to the extreme eigenvalues of their curvature matrices.

The matrix of a mini-batch is that of all samples and noise. Taken as a symmetric matrix with independent entries of
variance :math:`\sigma_e^2 / b`, :math:`1/b = 1/B - 1/N`, the noise moves an outlier :math:`\lambda` of P parameters to

.. math:: \lambda' = \lambda + \frac{P \sigma_e^2}{b \lambda} \quad\text{if } \lambda > \sqrt{P/b}\,\sigma_e,
    \qquad\text{else } 2 \sqrt{P/b}\,\sigma_e

and so do negative ones, mirrored (Granziol, Zohren and Roberts, JMLR 23:173, 2022). The largest stable learning rate
2 / lambda' then grows in proportion to the batch where noise dominates, and saturates where it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from .errors import SettingError
from .groups import Group, deal, lengths_of, part
from .hessian import Hessian
from .html_table import Shown
from .intervals import Moments
from .krylov import top_eigenpairs
from .objective import Objective
from .operators import Observed, SymmetricOperator
from .random_matrix import Semicircle
from .results import Eigenpairs, Estimate
from .space import generator_for

__all__ = ["BatchEffect", "batch_effect"]

Curvature = Callable[[Objective], SymmetricOperator]

_GROUPS = 40  # of samples, in which the noise is seen
_HALVINGS = 6  # of the data, down to the smallest batch that is measured where nothing is said


@dataclass(frozen=True, eq=False)
class BatchEffect(Shown):
    r"""Extreme eigenvalues of mini-batch matrices, measured and as a random matrix has them.

    Attributes:
        batch_sizes: (m,) the B that were measured, ascending.
        largest: for each B the mean over random mini-batches of the largest eigenvalue, with its interval.
        smallest: of the smallest eigenvalue; empty where the matrix is positive semi-definite.
        noise: sigma_e^2, the variance between samples of an entry of their matrices, averaged over entries, with
            its interval.
        full: extreme eigenpairs of all samples' matrix.
        samples: N.
        parameters: P.
        matvecs: products with mini-batch matrices, and with that of all samples, that were made.
        kernel: name of the engine that computed them.
        note: what is to be known of them; mostly empty.
    """

    batch_sizes: tuple[int, ...]
    largest: tuple[Estimate, ...]
    smallest: tuple[Estimate, ...]
    noise: Estimate
    full: Eigenpairs
    samples: int
    parameters: int
    matvecs: int
    kernel: str = ""
    note: str = ""

    def law(self, batch_size: float, variance: float | None = None) -> Semicircle:
        """The noise of mini-batches of this size, taken as a matrix with independent entries.

        Args:
            batch_size: B, up to N.
            variance: sigma_e^2; by default the one that was measured.

        Raises:
            SettingError: if the batch size is not in (0, N].
        """
        if not 0 < batch_size <= self.samples:
            raise SettingError(f"batch_size must be above 0 and at most the {self.samples} samples, got {batch_size!r}")
        variance = self.noise.value if variance is None else variance
        return Semicircle(math.sqrt(max(0.0, self.parameters * variance * (1 / batch_size - 1 / self.samples))))

    def predicted(
        self, batch_size: float, *, smallest: bool = False, variance: float | None = None
    ) -> tuple[float, float, float]:
        """The largest (or smallest) eigenvalue of a mini-batch matrix by the formula, and the ends of its interval.

        The interval is that of the noise's variance. It does not hold what the formula leaves out: real noise is
        not the same in all directions, and where it prefers the top ones eigenvalues move farther (see `fitted`).

        Args:
            batch_size: B, up to N.
            smallest: whether the smallest is wanted.
            variance: sigma_e^2, without an interval; by default the one that was measured.
        """
        at = float(self.full.values[-1] if smallest else self.full.values[0])
        strength = min(at, 0.0) if smallest else max(at, 0.0)
        noise = self.noise
        value, *ends = (noise.value, noise.low, noise.high) if variance is None else (variance,) * 3
        low, high = sorted(self._moved(strength, batch_size, x, smallest) for x in ends)
        return self._moved(strength, batch_size, value, smallest), low, high

    def _moved(self, strength: float, batch_size: float, variance: float, smallest: bool) -> float:
        law = self.law(batch_size, variance)
        if strength == 0:
            return law.edges[0 if smallest else 1]
        return law.outlier(strength)

    @property
    def fitted(self) -> float:
        """The sigma_e^2 with which the formula comes closest to the largest eigenvalues that were measured.

        Least squares in units of their standard errors. Noise that lies in the top directions more than in others, as
        that of networks does, makes it far larger than ``noise``: the formula's dependence on B may hold all the
        same.
        """
        errors = [max(found.stderr, 1e-6 * abs(found.value)) for found in self.largest]
        if not any(errors):
            return 0.0

        def misfit(power: float) -> float:
            moved = (self.predicted(B, variance=math.exp(power))[0] for B in self.batch_sizes)
            return sum(((x.value - y) / e) ** 2 for x, y, e in zip(self.largest, moved, errors, strict=True))

        # From what moves nothing to where the smallest batch is noise alone, at twice what was measured.
        low, high = (self._least_variance(x) for x in (1e-6, 2.0))
        grid = torch.linspace(math.log(low), math.log(high), 200, dtype=torch.float64).tolist()
        best = min(range(len(grid)), key=lambda i: misfit(grid[i]))
        ends = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
        return math.exp(float(minimize_scalar(misfit, bounds=ends, method="bounded").x))

    def _least_variance(self, share: float) -> float:
        """The sigma_e^2 whose noise alone has its edge at this share of the largest mean, for the smallest batch."""
        B = self.batch_sizes[0]
        edge = share * max(abs(found.value) for found in self.largest)
        return edge**2 / (4 * self.parameters * (1 / B - 1 / self.samples))

    def stable_rate(self, batch_size: int) -> tuple[float, float, float]:
        r"""The largest stable learning rate of gradient descent on such mini-batches, 2 / lambda_max, and its interval.

        From the measured mean of the largest eigenvalue where B was measured, else from the formula.
        """
        if batch_size in self.batch_sizes:
            found = self.largest[self.batch_sizes.index(batch_size)]
            value, low, high = found.value, found.low, found.high
        else:
            value, low, high = self.predicted(batch_size)
        rate, least, most = (2 / x if x > 0 else math.inf for x in (value, high, low))
        return rate, least, most

    def __repr__(self) -> str:
        """The eigenvalues by batch size, measured and predicted."""
        note = f"; {self.note}" if self.note else ""
        rows = ", ".join(
            f"{B}: {found.value:.4g} [{found.low:.4g}, {found.high:.4g}] (formula {self.predicted(B)[0]:.4g})"
            for B, found in zip(self.batch_sizes, self.largest, strict=True)
        )
        return (
            f"BatchEffect(lambda_max of mini-batches of {rows}; of all {self.samples}: "
            f"{float(self.full.values[0]):.4g}; sigma_e {math.sqrt(max(0.0, self.noise.value)):.3g}, "
            f"{math.sqrt(self.fitted):.3g} where the formula is fitted to these; {self.matvecs} products{note})"
        )


def batch_effect(
    objective: Objective,
    batch_sizes: Sequence[int] | None = None,
    *,
    curvature: Curvature = Hessian,
    draws: int = 10,
    probes: int = 4,
    tol: float = 1e-2,
    confidence: float = 0.95,
    seed: int | torch.Generator | None = None,
) -> BatchEffect:
    r"""How the extreme eigenvalues of mini-batch matrices depend on the size of the batch.

    Mini-batches are drawn at random without replacement from the objective's samples, and their matrix is that of
    their own mean loss, as training weights it (by tokens, where the objective does); for a summed loss it is scaled
    up to all samples. The variance of the noise is measured on differences of groups of samples a and b, in which
    the mean cancels: with random z

    .. math:: P^2 \sigma_e^2 = E \frac{\|(H_a - H_b) z\|^2}{1/|a| + 1/|b|}

    It is that of :math:`E\|H_i z\|^2 - \|H z\|^2` over samples i, at the cost of ``probes`` products with the whole.
    Where samples count differently (tokens) it holds for the groups' size, and other batch sizes as far as
    their denominators scatter little.

    Args:
        objective: the loss on the samples; each batch of its data must show its samples in its first dimension.
        batch_sizes: B, each below the number of samples N; by default N / 2, N / 4, ..., N / 64.
        curvature: which matrix, e.g. ``Hessian`` or ``GaussNewton``.
        draws: random mini-batches of each size.
        probes: random vectors for each pair of groups.
        tol: of the eigenvalues, as in `top_eigenpairs`.
        confidence: nominal coverage of the intervals.
        seed: int, generator, or None for fresh entropy; the global stream is never used.

    Raises:
        SettingError: if an argument means nothing, the objective's samples have weights, or are fewer than 8.
        DataError: if batches cannot be cut into samples.
        LossError: if the losses of groups of samples do not make the objective's, as with batch statistics.
        NonFiniteError: if a product is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective, batch_effect
        >>> data = (torch.randn(256, 20, generator=torch.Generator().manual_seed(0)), torch.zeros(256, 1))
        >>> objective = Objective(torch.nn.Linear(20, 1, bias=False), data, criterion=torch.nn.MSELoss())
        >>> found = batch_effect(objective, [8, 32, 128], seed=0)
        >>> [bool(a.low > b.high) for a, b in zip(found.largest, found.largest[1:])]
        [True, True]
    """
    lengths, sizes = _checked(objective, batch_sizes, draws, probes, confidence)
    samples, space = sum(lengths), objective.space
    generator = generator_for(seed, space.device)
    groups = deal(objective, min(_GROUPS, samples // 2), generator)
    noise, products = _noise(groups, curvature, probes, confidence, generator)
    whole = Observed(curvature(objective))
    full = _extremes(whole, tol, None, generator)
    summed, kept = groups[0].scale != 1.0, groups[0].objective.kept
    found: dict[int, tuple[Estimate, ...]] = {}
    for size in sizes:
        pairs = []
        for _ in range(draws):
            chosen = torch.randperm(samples, generator=generator, device=generator.device)[:size].sort().values.cpu()
            matrix = curvature(part(objective, chosen, lengths, kept))
            pairs.append(_extremes((samples / size) * matrix if summed else matrix, tol, full.vectors, generator))
        found[size] = tuple(_mean(pairs, end, confidence) for end in range(len(full.values)))
        products += sum(p.matvecs for p in pairs)
    ends = list(zip(*found.values(), strict=True))
    return BatchEffect(
        sizes, ends[0], ends[1] if len(ends) > 1 else (), noise, full, samples, space.size,
        products + whole.matvecs, full.kernel, full.note,
    )  # fmt: skip


def _checked(
    objective: Objective, batch_sizes: Sequence[int] | None, draws: int, probes: int, confidence: float
) -> tuple[list[int], tuple[int, ...]]:
    """Lengths of the batches, and the sizes to measure, ascending."""
    lengths = lengths_of(objective)
    samples = sum(lengths)
    if samples < 8:
        raise SettingError(f"{samples} samples are too few to tell how mini-batches differ; pass data with 8 at least")
    for name, count, least in (("draws", draws, 2), ("probes", probes, 1)):
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise SettingError(f"{name} must be an integer of at least {least}, got {count!r}")
    if not 0 < confidence < 1:
        raise SettingError(f"confidence must be between 0 and 1, got {confidence!r}")
    if batch_sizes is None:
        batch_sizes = [samples >> k for k in range(1, _HALVINGS + 1) if samples >> k]
    for size in batch_sizes:
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size < samples:
            raise SettingError(f"batch sizes must be integers from 1 to N - 1 = {samples - 1}, got {size!r}")
    if len(batch_sizes) == 0:
        raise SettingError("batch_sizes is empty; name one at least")
    return lengths, tuple(sorted(set(batch_sizes)))


def _noise(
    groups: Sequence[Group], curvature: Curvature, probes: int, confidence: float, generator: torch.Generator
) -> tuple[Estimate, int]:
    """sigma_e^2 from pairs of groups, each with random vectors of its own, and the products made."""
    samples, products = Moments(), 0
    for one, other in zip(groups[::2], groups[1::2], strict=True):
        operators = [Observed(curvature(group.objective)) for group in (one, other)]
        Z = operators[0].space.random(probes, generator, "rademacher")
        with operators[0].held(), operators[1].held():
            for operator in operators:
                operator.plan(probes, probes)
            apart = one.scale * (operators[0] @ Z) - other.scale * (operators[1] @ Z)
        squares = torch.linalg.vector_norm(apart, dim=0, dtype=torch.float64).square().mean()
        samples.add(squares.reshape(1, 1).cpu() / (1 / one.size + 1 / other.size))
        products += sum(operator.matvecs for operator in operators)
    entries = float(operators[0].space.size) ** 2
    value = float(samples.mean) / entries
    low, high = (float(end) / entries for end in samples.interval(confidence, skewed=True))
    stderr = float(samples.spread) / math.sqrt(samples.count) / entries
    low, high = max(0.0, low), max(value, high)
    kernel, note = operators[0].kernel, operators[0].note
    return Estimate(value, stderr, low, high, confidence, products, "groups of samples", True, kernel, note), products


def _extremes(operator: SymmetricOperator, tol: float, start: Tensor | None, generator: torch.Generator) -> Eigenpairs:
    """The largest eigenpair, and the smallest too where it may be negative."""
    if operator.psd or operator.space.size < 2:
        return top_eigenpairs(operator, 1, tol=tol, start=start, seed=generator)
    return top_eigenpairs(operator, 2, which="BE", tol=tol, start=start, seed=generator)


def _mean(pairs: Sequence[Eigenpairs], end: int, confidence: float) -> Estimate:
    """Over mini-batches; wider outwards by what the Ritz values may be off, which are not beyond the eigenvalues."""
    values = torch.stack([p.values[end] for p in pairs])
    error = float(torch.stack([p.errors[end] for p in pairs]).mean())
    samples = Moments()
    samples.add(values[None, :])
    low, high = (float(x) for x in samples.interval(confidence))
    low, high = (low, high + error) if end == 0 else (low - error, high)
    matvecs, converged = sum(p.matvecs for p in pairs), all(p.converged for p in pairs)
    return Estimate(
        float(samples.mean), float(samples.spread) / math.sqrt(len(pairs)), low, high, confidence, matvecs,
        f"{len(pairs)} mini-batches", converged, pairs[0].kernel, pairs[0].note,
    )  # fmt: skip
