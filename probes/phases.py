"""The phases that a run went through: progressive sharpening, the edge of stability, catapults."""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .settled import is_being_made
from .window import SAME_GRADIENT, column, median

if TYPE_CHECKING:
    from .run import Run

__all__ = ["CATAPULT", "EDGE", "SHARPENING", "Phase", "phases"]

SHARPENING, EDGE, CATAPULT = "progressive sharpening", "edge of stability", "catapult"

BELOW, ABOVE = 0.9, 1.15
"""Ratios between which training hovers at the edge."""

LEAST, MOST = 0.8, 1.25
"""Ratios that do not end hovering: adaptive optimizers dip to 0.86, and gradient descent overshoots at first."""

OVER = 1.1
"""Ratio from which the audit says above the edge; a catapult is above it."""

RISE, SPIKE = 1.25, 1.4
"""Factors by which the sharpness must rise to sharpen, and the loss to be a catapult's."""

HOVERS = 3
"""Measurements that make a phase; a catapult may be shorter."""


@dataclass(frozen=True)
class Phase:
    """A part of a run that has a name.

    Attributes:
        name: ``"progressive sharpening"``, ``"edge of stability"`` or ``"catapult"``.
        first: step of its first measurement.
        last: step of the measurement that ends it.
    """

    name: str
    first: int
    last: int


class _Point(NamedTuple):
    step: int
    ratio: float
    sharpness: float
    loss: float


def phases(run: Run, player: str | None = None) -> tuple[Phase, ...]:
    """Name the parts of a run by its sharpness over the optimizer's threshold, and by its loss.

    Progressive sharpening: below the edge, or on the way through it, while the sharpness itself rises by a quarter at
    least, and beyond what its noise explains. Edge of stability: hovering between 0.9 and 1.15 (Cohen et al. 2021,
    arXiv 2103.00065). Catapult: above 1.15 and coming down while the loss rises and falls again (Lewkowycz et al.
    2020, arXiv 2003.02218). What is none of these has no name: below and flat or falling, or growing without end.
    Each ratio is formed with the rate of its own update, so that schedules of rates do not matter. The first steps,
    in which an adaptive optimizer's preconditioner is still being made, are in no phase.

    Args:
        run: a run with probe ``stability`` or ``sharpness``.
        player: which player; default: the first.

    Returns:
        The phases in order; they do not overlap, and need not cover the run.

    Raises:
        RunError: if the run has no such player.

    Example:
        >>> from losscope.probes import Record, Run
        >>> from losscope.probes.phases import phases
        >>> ratios = [0.2, 0.4, 0.6, 0.8, 1.0, 1.01, 1.02, 1.0, 1.01]
        >>> records = [
        ...     Record(10 * i, "model", "stability", values={"sharpness": 20 * r, "threshold": 20.0, "loss": 0.1})
        ...     for i, r in enumerate(ratios)
        ... ]
        >>> [(p.name, p.first, p.last) for p in phases(Run.from_records({"players": {"model": {}}}, records))]
        [('progressive sharpening', 0, 40), ('edge of stability', 40, 80)]
    """
    points = _points(run, player)
    steps, losses = run.logged("loss", player) if _full_batch(run, player) else ((), ())
    logged = sorted((int(s), float(v)) for s, v in zip(steps, losses, strict=True))
    found: list[Phase] = []
    for piece in _without_gaps(points):
        found += _of(piece, logged)
    return tuple(found)


# --------------------------------------------------------------------------- what a run says


def _points(run: Run, player: str | None) -> list[_Point]:
    """Sharpness and ratio at each measured step, of both probes where both compare the same."""
    found: dict[int, _Point] = {}
    for record in (*run.select("sharpness", player), *run.select("stability", player)):
        values = record.values
        sharpness = record.value if record.probe == "sharpness" else values.get("sharpness")
        threshold = values.get("threshold")
        if is_being_made(values):  # of an adaptive optimizer in its first steps: no ratio to speak of
            continue
        if sharpness is not None and threshold and math.isfinite(sharpness) and math.isfinite(threshold):
            loss = values.get("loss")
            found[record.step] = _Point(
                record.step, sharpness / threshold, sharpness, math.nan if loss is None else loss
            )
    return [found[step] for step in sorted(found)]


def _full_batch(run: Run, player: str | None) -> bool:
    """Whether the logged loss is that of all the data: a mini-batch's jumps anyway."""
    records = run.select("stability", player)
    cosine = median(column(records, "gradient_cosine"))
    if cosine is not None:
        return cosine >= SAME_GRADIENT
    players = run.meta.get("players") or {}
    facts = players.get(player if player is not None else next(iter(players), ""), {})
    batch, samples = facts.get("batch_size"), facts.get("samples")
    return batch is not None and samples is not None and batch >= samples


def _without_gaps(points: Sequence[_Point]) -> list[list[_Point]]:
    """Pieces between which nothing was measured for ten times as long as on either side."""
    gaps = [b.step - a.step for a, b in itertools.pairwise(points)]
    pieces: list[list[_Point]] = [[]]
    for i, point in enumerate(points):
        beside = [gaps[j] for j in (i - 2, i) if 0 <= j < len(gaps)]
        if i > 0 and beside and gaps[i - 1] > 10 * max(beside):
            pieces.append([])
        pieces[-1].append(point)
    return pieces


# --------------------------------------------------------------------------- naming


def _of(points: list[_Point], logged: Sequence[tuple[int, float]]) -> list[Phase]:
    """The phases of one piece: catapults first, then the edge, then what rises in between."""
    ratios = _medians([p.ratio for p in points])
    names: list[str | None] = [None] * len(points)
    for first, end in _stretches(ratios, lambda r: r > OVER):
        if max(ratios[first:end]) > ABOVE and _comes_down(points, ratios, first, end, logged):
            names[first:end] = [CATAPULT] * (end - first)
    for first, end in _at_the_edge(ratios, names):
        names[first:end] = [EDGE] * (end - first)
    rising = [name is None and ratio <= OVER for name, ratio in zip(names, ratios, strict=True)]
    for first, end in _stretches(rising, bool):
        for low, high in _rises(points[first : end + 1], led_on=end < len(points)):
            names[first + low : min(first + high, end)] = [SHARPENING] * (min(first + high, end) - first - low)
    return [
        Phase(name, points[first].step, points[min(end, len(points) - 1)].step)
        for name, first, end in _named(names)
        if end - first >= (1 if name == CATAPULT else HOVERS)
    ]


def _comes_down(
    points: list[_Point], ratios: list[float], first: int, end: int, logged: Sequence[tuple[int, float]]
) -> bool:
    """Whether the ratio falls back from its peak, after a spike of the loss."""
    peak = max(range(first, end), key=ratios.__getitem__)
    last = ratios[end] if end < len(ratios) else ratios[-1]
    if last > 1 + (ratios[peak] - 1) / 2:
        return False
    a, b = points[first].step, points[min(end, len(points) - 1)].step
    within = slice(bisect.bisect_left(logged, (a, -math.inf)), bisect.bisect_left(logged, (b + 1, -math.inf)))
    losses = [v for _, v in logged[within]] or [p.loss for p in points[first : end + 1]]
    losses = [v for v in losses if math.isfinite(v)]
    if end == len(ratios) and losses and losses[-1] * SPIKE > max(losses):  # still up, as where it grows without end
        return False
    return len(losses) > 1 and losses[0] > 0 and max(losses) > SPIKE * losses[0]


def _at_the_edge(ratios: list[float], names: list[str | None]) -> list[tuple[int, int]]:
    """Stretches that come to the edge and hover there; dips and overshoots do not end them while they are small."""
    found = []
    free = [r if name is None else math.nan for r, name in zip(ratios, names, strict=True)]
    for first, end in _stretches(free, lambda r: LEAST <= r <= MOST):
        inside = [i for i in range(first, end) if BELOW <= free[i] <= ABOVE]
        if len(inside) >= HOVERS and not _passes(ratios[first : end + 1]):
            found.append((inside[0], inside[-1] + 1))
    return found


def _passes(values: Sequence[float]) -> bool:
    """Whether they go one way, through the edge and out on its other side; the last one is what came after."""
    moves = [b - a for a, b in itertools.pairwise(values[:-1])]
    way = sum(moves)
    out = values[-1] > MOST if way > 0 else values[-1] < LEAST
    return out and abs(way) > 0.8 * sum(map(abs, moves))


def _rises(points: Sequence[_Point], *, led_on: bool) -> list[tuple[int, int]]:
    """Half-open ranges in which the sharpness rises; ``led_on``: the last point belongs to the next phase."""
    largest = max((p.sharpness for p in points), default=0.0)
    if largest <= 0:
        return []
    logs = [math.log(max(p.sharpness / largest, 1e-6)) for p in points]
    values, noise = _medians(logs), _noise(logs)
    least = max(math.log(RISE), 6 * noise)
    found, open_parts = [], [(0, len(values))]
    while open_parts:
        first, end = open_parts.pop()
        start, stop = _greatest_rise(values[first:end])
        start, stop = first + start, first + stop
        rise = values[stop] - values[start] if stop < end else 0.0
        if rise >= least:
            open_parts += [(first, start + 1), (stop, end)]
            slack = max(rise / 50, 3 * noise)
            found.append(_trimmed(values, start, stop, slack, keep_end=led_on and stop == len(values) - 1))
    return sorted(found)


def _greatest_rise(values: Sequence[float]) -> tuple[int, int]:
    """Where the greatest increase from an earlier to a later value starts and stops."""
    low = start = stop = 0
    for i, value in enumerate(values):
        if value < values[low]:
            low = i
        if value - values[low] > values[stop] - values[start]:
            start, stop = low, i
    return start, stop


def _trimmed(values: Sequence[float], start: int, stop: int, slack: float, *, keep_end: bool) -> tuple[int, int]:
    """Without what lies flat before and after, as a half-open range."""
    first = max(i for i in range(start, stop + 1) if values[i] <= values[start] + slack)
    last = min(i for i in range(first, stop + 1) if values[i] >= values[stop] - slack)
    return first, (stop if keep_end else last) + 1


def _noise(values: Sequence[float]) -> float:
    """Standard deviation about a smooth course: from second differences, by their median size."""
    second = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return statistics.median(second) / 0.6745 / math.sqrt(6) if len(second) >= 3 else 0.0


def _medians(values: Sequence[float]) -> list[float]:
    """Running medians of three: one stray measurement is no phase. The ends stay."""
    inner = [statistics.median(values[i - 1 : i + 2]) for i in range(1, len(values) - 1)]
    return [*values[:1], *inner, *(values[-1:] if len(values) > 1 else [])]


def _stretches(values: Sequence, holds: Callable[..., bool]) -> list[tuple[int, int]]:
    """Half-open ranges of consecutive values for which something holds."""
    found, at = [], 0
    for yes, group in itertools.groupby(values, holds):
        end = at + len(list(group))
        if yes:
            found.append((at, end))
        at = end
    return found


def _named(names: Sequence[str | None]) -> list[tuple[str, int, int]]:
    found, at = [], 0
    for name, group in itertools.groupby(names):
        end = at + len(list(group))
        if name is not None:
            found.append((name, at, end))
        at = end
    return found
