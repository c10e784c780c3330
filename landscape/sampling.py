"""What the choice of samples adds to the error of a curvature that is measured on a part of the data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from .columns import parts, units
from .errors import SettingError
from .groups import Group, deal, lengths_of
from .hessian import Hessian
from .html_table import Shown
from .intervals import Moments, student_quantile
from .objective import Objective
from .operators import Observed, SymmetricOperator
from .results import DiagonalEstimate, Estimate
from .space import VectorSpace, generator_for
from .symmetry import refuse_asymmetric

__all__ = ["SamplingError", "sampling_error"]

_Measured = TypeVar("_Measured", Estimate, DiagonalEstimate)


@dataclass(frozen=True, eq=False)
class SamplingError(Shown):
    """A curvature of a population, measured on some of its samples: two errors, kept apart.

    Attributes:
        of: ``"trace"``, ``"diagonal"`` or ``"v'Hv"``.
        value: the quantity on the samples there are: (), or (n,) for a diagonal; float64.
        sampling: its standard error from the choice of samples: how far it lies from the population's.
        probing: its standard error from the random vectors: how far ``value`` lies from what these very
            samples have. Zero where none were used.
        confidence: nominal coverage of the intervals.
        samples: how many samples there are.
        population: out of how many; inf for a population without end.
        degrees: degrees of freedom of ``sampling``, so that it is itself known to within a share of about
            ``1 / sqrt(2 degrees)``.
        matvecs: products with the whole objective's matrix that the work amounts to.
        kernel: name of the engine that computed the products.
        note: what is to be known of them; mostly empty.
    """

    of: str
    value: Tensor
    sampling: Tensor
    probing: Tensor
    confidence: float
    samples: int
    population: float
    degrees: int
    matvecs: int
    kernel: str = ""
    note: str = ""

    @property
    def total(self) -> Tensor:
        """Standard error from both, which are uncorrelated: sqrt(sampling^2 + probing^2)."""
        return torch.hypot(self.sampling, self.probing)

    @property
    def half_width(self) -> Tensor:
        """Of the interval for the population's quantity: Student's, of each error with its own degrees of freedom."""
        probes = student_quantile(max(1, self.matvecs - 1), self.confidence)
        return torch.hypot(self._sampling_half_width, probes * self.probing)

    @property
    def _sampling_half_width(self) -> Tensor:
        return student_quantile(self.degrees, self.confidence) * self.sampling

    def __repr__(self) -> str:
        """One line: the quantity, and which error comes from where."""
        if self.value.ndim == 0:
            value = f"{float(self.value):.6g}"
        else:
            value = f"of {len(self.value)} entries, {float(self.value.square().mean().sqrt()):.4g} in root mean square"
        sampling, probing = (float(error.square().mean().sqrt()) for error in (self.sampling, self.probing))
        out_of = f" out of {self.population}" if math.isfinite(self.population) else ""
        from_vectors = f"{probing:.3g} from {self.matvecs} random vectors" if probing else "none from random vectors"
        return (
            f"SamplingError({self.of} {value}, standard errors: {sampling:.3g} from the choice of {self.samples} "
            f"samples{out_of}, {from_vectors})"
        )

    def added_to(self, estimate: _Measured) -> _Measured:
        """An estimate of the same quantity on the same samples, with an interval for the population's instead.

        Args:
            estimate: what `trace` or `diagonal` returned for the whole objective's operator.

        Raises:
            SettingError: if one of them is of a diagonal, and the other is not.
        """
        if isinstance(estimate, DiagonalEstimate) != (self.of == "diagonal"):
            raise SettingError(
                f"the sampling error of the {self.of} cannot be added to an estimate of something else: {estimate!r}"
            )
        value, stderr, low, high = (
            torch.as_tensor(x, dtype=torch.float64, device=self.sampling.device)
            for x in (estimate.value, estimate.stderr, estimate.low, estimate.high)
        )
        own = self._sampling_half_width
        wider = (
            torch.hypot(stderr, self.sampling),
            value - torch.hypot(value - low, own),
            value + torch.hypot(high - value, own),
        )
        names = ("stderr", "low", "high")
        changes: dict[str, Any] = {
            name: x.to(estimate.value) if isinstance(estimate, DiagonalEstimate) else float(x)
            for name, x in zip(names, wider, strict=True)
        }
        return dataclasses.replace(estimate, method=f"{estimate.method} + sampling", **changes)


def sampling_error(
    objective: Objective,
    of: str | Tensor = "trace",
    *,
    curvature: Callable[[Objective], SymmetricOperator] = Hessian,
    groups: int = 40,
    matvecs: int = 30,
    population: int | None = None,
    confidence: float = 0.95,
    seed: int | torch.Generator | None = None,
) -> SamplingError:
    r"""The standard error of tr H, of its diagonal or of v'Hv that comes from the choice of samples.

    Where the objective's data are a random sample of a population, H is a mean over samples, and everything
    linear in it too. The samples are dealt at random into groups, two groups at a time are multiplied by the
    *same* random vectors, and the differences :math:`D_{pj} = z_j^T H_{2p} z_j - z_j^T H_{2p+1} z_j` of all pairs p,
    weighted by the groups' share in the objective, give (random groups: Wolter, *Introduction to Variance
    Estimation*, 2007, chapter 2)

    .. math:: \mathrm{sampling}^2 = \Big(1 - \frac nN\Big) \sum_p \frac{1}{m (m-1)} \sum_{j \ne k} D_{pj} D_{pk}

    Products of two different vectors, so that what the vectors themselves scatter does not count: the estimate
    is unbiased, and for that may come out as zero where the vectors scatter far more than the samples do, as for single
    entries of a diagonal: read those together, or let ``matvecs`` be the number of parameters. As every
    sample is in one group, the cost is that of ``matvecs`` products with H (one for v'Hv), and two more evaluations
    of the loss, whatever the number of groups.

    For the top eigenvalue pass its eigenvector. The direction is held fixed: that it was found on the same
    samples, which makes the largest eigenvalue of a sample larger than the population's on average, is not in
    this error.

    Args:
        objective: the loss on the samples; its batches must be made of independent samples.
        of: ``"trace"``, ``"diagonal"``, or a vector v (n,), as it is, not normalised.
        curvature: which matrix of it, e.g. ``Hessian`` or ``GaussNewton``.
        groups: at least so many; more where they would be larger than a batch, fewer where there are fewer samples.
        matvecs: random vectors; where the space has no more dimensions, unit vectors without error instead.
        population: its size N, if it is finite and the samples were drawn without replacement; None otherwise.
        confidence: nominal coverage of the result's intervals.
        seed: int, generator, or None for fresh entropy; the global stream is never used.

    Raises:
        SettingError: if an argument means nothing.
        DataError: if the batches cannot be cut into samples.
        LossError: if the losses of the groups do not make the objective's, as with batch statistics.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective, sampling_error
        >>> data = (torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)), torch.zeros(1000, 1))
        >>> objective = Objective(torch.nn.Linear(1, 1, bias=False), data, criterion=torch.nn.MSELoss())
        >>> found = sampling_error(objective, seed=0)  # of 2 mean(x^2) for normal x: sqrt(8 / 1000) = 0.089
        >>> bool(0.06 < found.sampling < 0.12)
        True
    """
    _check(objective, of, groups, matvecs, population, confidence)
    generator = generator_for(seed, objective.space.device)
    dealt = deal(objective, groups, generator)
    probes = _Probes(objective.space, of, matvecs, generator)
    state = generator.get_state()
    square, totals = torch.zeros((), dtype=torch.float64), probes.nothing()
    for pair in zip(dealt[::2], dealt[1::2], strict=True):
        generator.set_state(state)  # the same vectors for all
        operators = [Observed(curvature(group.objective)) for group in pair]
        square = square + _compare(pair, operators, probes, totals)
    samples = sum(group.size for group in dealt)
    square = square * (1 - samples / population if population else 1.0)
    moments = Moments()
    moments.add(totals)
    value, error = moments.mean, moments.spread / math.sqrt(probes.count) if probes.random else 0 * moments.mean
    value, sampling, probing = (
        x if of == "diagonal" else x.reshape(()) for x in (value.double(), square.clamp(min=0).sqrt(), error.double())
    )
    return SamplingError(
        of if isinstance(of, str) else "v'Hv", value, sampling, probing, confidence, samples,
        population or math.inf, len(dealt) // 2, probes.count, operators[0].kernel, operators[0].note,
    )  # fmt: skip


def _check(objective: Objective, of: Any, groups: int, matvecs: int, population: Any, confidence: float) -> None:
    n = objective.space.size
    if isinstance(of, Tensor):
        if of.shape != (n,) or not bool(torch.isfinite(of).all()):
            raise SettingError(f"a vector must have shape ({n},) and finite entries, got shape {tuple(of.shape)}")
    elif of not in ("trace", "diagonal"):
        raise SettingError(f'of must be "trace", "diagonal" or a vector ({n},), got {of!r}')
    for name, count, least in (("groups", groups, 4), ("matvecs", matvecs, 2)):
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise SettingError(f"{name} must be an integer of at least {least}, got {count!r}")
    if not 0 < confidence < 1:
        raise SettingError(f"confidence must be between 0 and 1, got {confidence!r}")
    samples = sum(lengths_of(objective))
    if samples < 4:
        raise SettingError(f"{samples} samples are too few to tell how samples differ; pass data with 4 at least")
    if population is not None and not samples <= population < math.inf:
        raise SettingError(f"population must be None or at least the number of samples, {samples}; got {population!r}")


# --------------------------------------------------------------------------- what is measured of them


class _Probes:
    """The vectors z_j, and what is taken of their products: z'Hz, or z * Hz entry by entry.

    Args:
        space: of the vectors.
        of: see `sampling_error`.
        matvecs: random vectors.
        generator: for those.

    Attributes:
        count: how many vectors.
        random: whether they are; else the mean over them is the quantity itself.
    """

    def __init__(self, space: VectorSpace, of: str | Tensor, matvecs: int, generator: torch.Generator) -> None:
        self.space, self.generator = space, generator
        self.vector = of.to(space.device, space.dtype) if isinstance(of, Tensor) else None
        self.entries = self.vector is None and of == "diagonal"
        self.random = self.vector is None and matvecs < space.size
        self.count = 1 if self.vector is not None else min(matvecs, space.size)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Which vectors, and those, (n, k): a few at a time."""
        for some in parts(self.count, self.space):
            if self.vector is not None:
                yield some, self.vector[:, None]
            elif self.random:
                yield some, self.space.random(some.stop - some.start, self.generator, "rademacher")
            else:  # of such a length that the mean over all of them is the trace
                yield some, math.sqrt(self.space.size) * units(some, self.space)

    def nothing(self) -> Tensor:
        """Zeros in the place of all samples, (n, k) or (1, k)."""
        rows, dtype = (self.space.size, self.space.dtype) if self.entries else (1, torch.float64)
        return torch.zeros(rows, self.count, dtype=dtype, device=self.space.device)

    def taken(self, Z: Tensor, HZ: Tensor) -> Tensor:
        """A sample from each of k products: (n, k) for the diagonal, otherwise (1, k)."""
        return Z * HZ if self.entries else (Z * HZ).sum(dim=0, keepdim=True, dtype=torch.float64)


def _compare(pair: Sequence[Group], operators: Sequence[Observed], probes: _Probes, totals: Tensor) -> Tensor:
    """The squared difference of what two groups contribute, without what the random vectors add to it.

    Adds the contributions themselves to ``totals``.
    """
    share = sum(group.share for group in pair) / 2
    sums = squares = torch.zeros((), dtype=torch.float64)
    with operators[0].held(), operators[1].held():
        for operator in operators:
            operator.plan(probes.count, probes.count)
        for some, Z in probes.blocks():
            both = []
            for group, operator in zip(pair, operators, strict=True):
                HZ = operator @ Z
                refuse_asymmetric(operator, Z, HZ)
                both.append(group.scale * probes.taken(Z, HZ))
                totals[:, some] += group.share * both[-1]
            apart = share * (both[0] - both[1])
            sums = sums + apart.sum(dim=1, dtype=torch.float64)
            squares = squares + apart.square().sum(dim=1, dtype=torch.float64)
    m = probes.count
    return (sums.square() - squares) / (m * (m - 1)) if probes.random else (sums / m).square()
