r"""Sharpness on average: how far the loss rises when the weights are perturbed at random.

.. math:: A(s) = \mathrm{E}_{e \sim N(0,\, s^2 T^2)}\, L(w + e) - L(w) = \frac{s^2}{2} \operatorname{tr}(T H T) + O(s^4)

with T = I, or a diagonal of the weights' scales; with T = ``diag(|w|)`` the second order is :math:`\frac{s^2}{2} \sum_i
w_i^2 H_{ii}`. So :math:`2 A(s) / s^2` at a small radius estimates a trace without any gradient, for losses and models
that have none. Perturbations come in **antithetic** pairs, :math:`x = (L(w + e) + L(w - e)) / 2 - L(w)`, in which the
gradient and all odd orders cancel, and the pairs are the **same at all radii**, so that what changes with the radius is
not noise.

The interval is Student's over the pairs after Hall's correction for skewness (x is nearly a quadratic form of normal
numbers, skewed where a few eigenvalues are large), widened by the rounding of the loss.

**Rounding** is measured: the largest |x| of further pairs, dealt among the others, in which each weight moves by about
the machine precision to the power 3/4, relative to itself. That is between the precision, over which the loss's
rounding errors would still be those of its middle (whose one error all pairs share), and its square root, over which
the surface itself would show. A radius is above round-off where rounding adds no more to the interval than sampling
does, or than the accuracy that was asked for. A few pairs find about where that is, and a radius of its own is added
there for the **trace**, to which higher orders and kinks then add least.

**Kinks count.** Where they are many (ReLU on many samples), an average over a radius that reaches some of them sees the
curvature in them, of either sign, which products with the Hessian pass over. On a small ReLU network with BatchNorm, of
trace -9.2, ``2 A / s^2`` was -9.6 at s = 1e-6 and -117 at 1e-5, and single precision sees nothing below 1e-4. So the
loss is evaluated in float64 where it can be (`in_double`). Where the trace and ``2 A / s^2`` at the smallest radius
above round-off disagree, the result's ``note`` says so.

It depends on the parametrisation, as the loss's curvature does, and by itself predicts no generalisation (see
`neighbourhood`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NonFiniteError, SettingError
from ..html_table import Shown
from ..in_double import double_where_it_can
from ..kernels.graphs import default_memory
from ..mean_estimates import Mean
from ..noise_scale import check_confidence, check_count
from ..objective import Objective
from ..results import Estimate
from ..space import generator_for
from .checks import check_positive, finite_numbers
from .evaluation import Evaluator
from .points import parameters_at
from .weight_scales import scale_of

__all__ = ["AverageSharpness", "average_sharpness"]

_APART = (2.0, 0.75, 0.75, 0.75)  # powers of the precision that such perturbations are; the first moves nothing
_MOST = 16  # pairs evaluated together
_PILOT = 8  # pairs that find where round-off ends
_SEARCHED = 12  # radii that are tried for it
_UP = 8.0  # times larger, the next one where rounding is all that is seen
_CLEAR = 3.0  # times the radius where rounding and sampling are alike: rounding then adds a ninth to the interval

PRECISIONS = ("auto", "float64", "own")


@dataclass(frozen=True, eq=False)
class AverageSharpness(Shown):
    """How far the loss rises on average, over radii.

    Attributes:
        radii: (R,) float64 ascending: s, the standard deviation of each weight's perturbation, in units of its scale.
        rises: A(s) at each, in the loss's unit; NaN with an infinite interval where the loss is not finite.
        traces: ``2 A(s) / s^2`` at each: of tr(T H T), but for what kinks add, and higher orders, which fall with
            ``s^2``.
        rounding: what rounding may put a rise off by, in the loss's unit.
        floor: the radius at which rounding adds as much to the interval as sampling, or as the accuracy that was asked
            for; infinite where no curvature is seen.
        loss: L(w).
        scale: T, see `weight_scales`.
        dimension: weights that move, whose scale is not zero: a perturbation is about ``s sqrt(dimension)`` long.
        pairs: antithetic pairs.
        samples: (R, pairs) float64 the x of each pair at each radius.
        trace: of T H T, ``2 A(s) / s^2`` at the smallest radius above round-off, mostly one of its own and never above
            those asked for; None where there is none. Of the loss as it is over that radius, kinks and all; see the
            ``note``.
        trace_radius: that radius; NaN where there is none.
        engine: what evaluated them.
        precision: what they were evaluated in: ``"float64"``, or ``"own"``, the model's.
        note: what is to be known of them; mostly empty.
    """

    radii: Tensor
    rises: tuple[Estimate, ...]
    traces: tuple[Estimate, ...]
    rounding: float
    floor: float
    loss: float
    scale: str
    dimension: int
    pairs: int
    samples: Tensor
    trace: Estimate | None = None
    trace_radius: float = math.nan
    engine: str = "one by one"
    precision: str = "own"
    note: str = ""

    @property
    def smallest(self) -> int | None:
        """Which radius is the smallest above round-off; None where none is."""
        return next((i for i, s in enumerate(self.radii.tolist()) if s >= self.floor), None)

    @property
    def lengths(self) -> Tensor:
        """(R,) root mean square length of the perturbations, in units of the scale: ``s sqrt(dimension)``."""
        return self.radii * math.sqrt(self.dimension)

    def __repr__(self) -> str:
        """The radii, the rises at both ends, the trace."""
        first, last = self.rises[0], self.rises[-1]
        trace = "no radius is above round-off" if self.trace is None else f"trace {self.trace!r}"
        note = f"; {self.note}" if self.note else ""
        return (
            f"AverageSharpness({len(self.radii)} radii in [{float(self.radii[0]):.3g}, {float(self.radii[-1]):.3g}] "
            f"({self.scale}), rises {first.value:.4g} to {last.value:.4g}, {self.pairs} pairs; {trace}{note})"
        )


def average_sharpness(
    objective: Objective,
    radii: float | Sequence[float] | Tensor,
    *,
    scale: str = "absolute",
    rtol: float = 0.1,
    min_pairs: int = 32,
    max_pairs: int = 256,
    confidence: float = 0.95,
    engine: str = "auto",
    precision: str = "auto",
    seed: int | torch.Generator | None = 0,
) -> AverageSharpness:
    """How far the loss rises on average under Gaussian noise in the weights, at one or several radii.

    Pairs are added, twice as many each time, until sampling's part of the interval at the smallest radius above
    round-off is within ``rtol``. Each takes two passes over the data at each radius. A wide sweep of radii costs no
    accuracy: where the smallest ones are below round-off, the result says so, and their intervals are as wide as that
    makes them.

    Args:
        objective: the loss; it is only evaluated, never differentiated.
        radii: s, standard deviations of the perturbation of each weight, in units of its scale; sorted on return.
        scale: T: ``"absolute"``, ``"adaptive"``, ``"filter"``, ... See `weight_scales.scale_of`.
        rtol: half-width of the interval, relative to the rise, to stop at.
        min_pairs: pairs before the first look at it.
        max_pairs: most pairs.
        confidence: nominal coverage of each interval; an estimate is ``converged`` if it is within ``rtol``.
        engine: what evaluates the points, see `evaluate`: ``"auto"``, ``"one by one"`` or ``"batched"``.
        precision: what in: ``"float64"``, about twice the time of float32 on a CPU and more on most GPUs, and room for
            parameters and data in it; ``"own"``, as the model has it; ``"auto"``, float64 where the loss can be
            evaluated in it and is the same.
        seed: int, generator, or None for fresh entropy; the global stream is never used.

    Raises:
        SettingError: if an argument means nothing, every weight has a scale of zero, or the loss cannot be evaluated
            in float64 and that was asked for.
        NonFiniteError: if the loss at the weights is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective, average_sharpness
        >>> model = torch.nn.Linear(4, 1, bias=False).double()
        >>> data = (torch.eye(4).double(), torch.zeros(4, 1).double())
        >>> objective = Objective(model, data, criterion=torch.nn.MSELoss())  # |w|^2 / 4
        >>> found = average_sharpness(objective, [1e-9, 1e-3, 1e-2])  # tr(H) = 2
        >>> found.smallest, bool(found.trace.low < 2 < found.trace.high)
        (1, True)
    """
    s = checked_radii(radii)
    check_positive("rtol", rtol)
    check_confidence(confidence)
    check_count("min_pairs", min_pairs, 2)
    check_count("max_pairs", max_pairs, 2)
    if precision not in PRECISIONS:
        raise SettingError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}; got {precision!r}")
    with torch.inference_mode(False), contextlib.ExitStack() as stack:
        refused = "as asked"
        if precision != "own":
            objective, refused = stack.enter_context(double_where_it_can(objective))
        if refused and precision == "float64":
            raise SettingError(f"the loss cannot be evaluated in float64: {refused}; leave it to precision='auto'")
        found = _found(objective, s, scale, rtol, (min(min_pairs, max_pairs), max_pairs), confidence, engine, seed)
        return dataclasses.replace(found, precision="own" if refused else "float64")


def _found(
    objective: Objective,
    s: Tensor,
    scale: str,
    rtol: float,
    least_and_most: tuple[int, int],
    confidence: float,
    engine: str,
    seed: int | torch.Generator | None,
) -> AverageSharpness:
    """At radii s, (R,), in the objective's precision."""
    scales = scale_of(objective, scale)
    dimension = int((scales > 0).sum())
    if dimension == 0:
        raise SettingError('every weight is zero, and so is its scale: nothing can move; use scale="absolute"')
    own = _own_radius(objective, s, scales, engine, rtol, confidence, least_and_most[1])
    radii = s if math.isnan(own) else torch.cat([s, torch.tensor([own], dtype=s.dtype)]).unique()
    asked = torch.isin(radii, s)
    pairs = _Pairs(objective, radii, scales, generator_for(seed, objective.space.device), engine)
    samples, (wanted, most) = torch.empty(len(radii), 0, dtype=torch.float64), least_and_most
    while True:
        samples = torch.cat([samples, pairs.rises(wanted - samples.shape[1])], dim=1)
        rises = [_estimate(x, pairs.rounding, rtol, confidence) for x in samples]
        floor = _floor(radii, rises, pairs.rounding, rtol)
        above = [rise for radius, rise in zip(radii.tolist(), rises, strict=True) if radius >= floor]
        if wanted >= most or (above and _sampling(above[0], pairs.rounding) <= rtol * abs(above[0].value)):
            break
        wanted = min(2 * wanted, most)
    traces = tuple(_times(rise, 2 / radius**2) for rise, radius in zip(rises, radii.tolist(), strict=True))
    lowest = next((i for i, r in enumerate(radii.tolist()) if r >= floor), None)
    of_asked = [i for i, was in enumerate(asked.tolist()) if was]
    return AverageSharpness(
        s, tuple(rises[i] for i in of_asked), tuple(traces[i] for i in of_asked), pairs.rounding, floor, pairs.loss,
        scale, dimension, samples.shape[1], samples[asked],
        None if lowest is None else traces[lowest], math.nan if lowest is None else float(radii[lowest]), pairs.engine,
        note=_note(radii, samples, floor, pairs.rounding, traces, asked),
    )  # fmt: skip


def _own_radius(
    objective: Objective, s: Tensor, scales: Tensor, engine: str, rtol: float, confidence: float, most: int
) -> float:
    """A radius a little above round-off, at most the largest of s (R,); NaN where none is seen to be.

    Where kinks or higher orders add to the rise, it is not as its square, so that the radius is found step by step.
    """
    radius, largest = float(s[0]), float(s[-1])
    for _ in range(_SEARCHED):
        pairs = _Pairs(
            objective, torch.tensor([radius], dtype=s.dtype), scales, generator_for(0, scales.device), engine
        )
        (rise,) = (_estimate(x, pairs.rounding, rtol, confidence) for x in pairs.rises(_PILOT))
        allowed = max(_sampling(rise, pairs.rounding) * math.sqrt(_PILOT / most), rtol * abs(rise.value))
        if not math.isfinite(allowed):
            return math.nan
        if allowed <= pairs.rounding:  # how much of the rise is rounding cannot be told
            if radius >= largest:
                return math.nan
            radius = min(_UP * radius, largest)
            continue
        clear = _CLEAR * radius * math.sqrt(pairs.rounding / allowed)
        if clear >= radius / 2:
            return radius
        radius = clear
    return radius


class _Pairs:
    """Antithetic pairs of losses, less the loss in the middle.

    Attributes:
        rounding: the largest |x| where the weights move by hardly more than their precision, or one unit of the loss's.
    """

    def __init__(
        self, objective: Objective, radii: Tensor, scales: Tensor, generator: torch.Generator, engine: str
    ) -> None:
        self.objective, self._generator, self._asked = objective, generator, engine
        self._others = generator_for(0, objective.space.device)  # so that pairs depend on their seed alone
        self._scales, self._radii = scales, radii
        evaluator = Evaluator(objective, engine=engine)
        self.loss, self.engine = evaluator.center["loss"], evaluator.engine
        if not math.isfinite(self.loss):
            raise NonFiniteError(f"the loss is {self.loss} at the weights: there is nothing that it rises from")
        space = objective.space
        coarsest = max(torch.finfo(dtype).eps for dtype in space.dtypes)  # the loss is in the parameters' precision
        self.rounding, self._precision = coarsest * abs(self.loss), coarsest
        self._sizes = parameters_at(objective, None).abs()
        fitting = default_memory(space.device) // (space.size * space.dtype.itemsize)
        self._most = max(1, min(_MOST, fitting - len(_APART)))

    def rises(self, count: int) -> Tensor:
        """x of so many further pairs at each radius, (R, count) float64."""
        widths = [len(part) for part in torch.arange(count).split(self._most)]
        return torch.cat([torch.empty(len(self._radii), 0, dtype=torch.float64), *map(self._some, widths)], dim=1)

    def _some(self, k: int) -> Tensor:
        """x of k pairs, and as it were among them those that move the weights by rounding alone, (R, k)."""
        axes = [self._drawn(self._generator) * self._scales for _ in range(k)]
        axes += [self._drawn(self._others) * (self._precision**power * self._sizes) for power in _APART]
        of_radii = [(i, s) for i in range(k) for s in self._radii.tolist()]
        of_rounding = [(i, 1.0) for i in range(k, len(axes))]
        coordinates = torch.zeros(2, len(of_radii) + len(_APART), len(axes), dtype=torch.float64)
        for row, (axis, s) in enumerate(of_radii + of_rounding):
            coordinates[:, row, axis] = torch.tensor([s, -s], dtype=torch.float64)
        rises = self._evaluated(axes, coordinates.flatten(0, 1)).view(2, -1) - self.loss
        x, in_the_middle = rises.mean(dim=0), rises[:, len(of_radii)]
        self.rounding = max(self.rounding, float(x[len(of_radii) :].abs().max()), float(in_the_middle.abs().max()))
        return x[: len(of_radii)].view(k, -1).T

    def _evaluated(self, axes: list[Tensor], coordinates: Tensor) -> Tensor:
        """The losses, in random order: how many points are evaluated at once changes, and rounding with it."""
        order = torch.randperm(len(coordinates), generator=self._others, device=self._others.device).cpu()
        evaluator = Evaluator(self.objective, None, axes, engine=self._asked)
        losses = torch.empty(len(coordinates), dtype=torch.float64)
        losses[order] = evaluator(coordinates[order])["loss"]
        self.engine = evaluator.engine
        return losses

    def _drawn(self, generator: torch.Generator) -> Tensor:
        return self.objective.space.random(1, generator)[:, 0]  # one at a time: the same whatever memory allows


def _estimate(samples: Tensor, rounding: float, rtol: float, confidence: float) -> Estimate:
    mean = Mean(samples)
    if not math.isfinite(mean.value):
        return Estimate(
            math.nan, math.inf, -math.inf, math.inf, confidence, len(samples), "antithetic pairs", False, "forward"
        )
    low, high = mean.interval(confidence)
    low, high = low - rounding, high + rounding
    converged = (high - low) / 2 <= rtol * abs(mean.value)
    return Estimate(
        mean.value, mean.stderr, low, high, confidence, len(samples), "antithetic pairs", converged, "forward"
    )


def _times(rise: Estimate, factor: float) -> Estimate:
    value, stderr, low, high = (factor * x for x in (rise.value, rise.stderr, rise.low, rise.high))
    return dataclasses.replace(rise, value=value, stderr=stderr, low=low, high=high)


def _floor(radii: Tensor, rises: Sequence[Estimate], rounding: float, rtol: float) -> float:
    """The radius at which rounding is all that the interval may have of it, from the smallest one that is above it.

    What it may have grows with the square of the radius. Where no radius is above, from the largest that is finite.
    """
    best = math.inf
    for s, rise in zip(radii.tolist(), rises, strict=True):
        allowed = max(_sampling(rise, rounding), rtol * abs(rise.value))
        if not math.isfinite(allowed) or allowed <= 0:
            continue
        best = s * math.sqrt(rounding / allowed)
        if allowed >= rounding:
            break
    return best


def _sampling(rise: Estimate, rounding: float) -> float:
    """What sampling has of the half-width."""
    return (rise.high - rise.low) / 2 - rounding


def _note(
    radii: Tensor, samples: Tensor, floor: float, rounding: float, traces: Sequence[Estimate], asked: Tensor
) -> str:
    notes, count = [], int(asked.sum())
    if below := int((radii[asked] < floor).sum()):
        which = "the only radius is" if count == 1 else f"{below} of {count} radii are"
        where = f", which is at about {floor:.2g}" if math.isfinite(floor) else ": no curvature is seen"
        notes.append(f"{which} below round-off{where}")
    if undefined := int((~samples[asked].isfinite()).any(dim=1).sum()):
        notes.append(f"the loss is not finite at some points of {undefined} of {count} radii")
    above = radii >= floor
    if int(above.sum()) > 1 and _apart(radii[above], samples[above], rounding, traces[0].confidence):
        i, j = torch.nonzero(above).flatten().tolist()[:2]
        first, second = (f"{traces[k].value:.3g} at {float(radii[k]):.2g}" for k in (i, j))
        notes.append(f"2 A / s^2 is {first} and {second}: kinks or higher orders count")
    return "; ".join(notes)


def _apart(radii: Tensor, samples: Tensor, rounding: float, confidence: float) -> bool:
    """Whether the traces at the first two radii differ, pair by pair, and by more than is known of the first."""
    factors = 2 / radii[:2].square()
    first, second = samples[:2] * factors[:, None]
    difference = Mean(first - second)
    if not math.isfinite(difference.value):
        return False
    low, high = difference.interval(confidence)
    off = rounding * float(factors.sum())
    of_first = Mean(first).interval(confidence)
    return (low > off or high < -off) and abs(difference.value) > (of_first[1] - of_first[0]) / 2


def checked_radii(radii: float | Sequence[float] | Tensor, name: str = "radii") -> Tensor:
    """Radii as (R,) float64, ascending, each once.

    Raises:
        SettingError: if they are not positive and finite.
    """
    expected = f"{name} must be positive and finite, at least one"
    single = isinstance(radii, int | float) or (isinstance(radii, Tensor) and radii.ndim == 0)
    s = finite_numbers([radii] if single else radii, expected)
    if not len(s) or not bool((s > 0).all()):
        raise SettingError(f"{expected}; got {radii!r}")
    return s.unique()
