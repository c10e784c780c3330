"""How the other quantities of a run changed, from their first to their last measurement, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from losscope.probes import Record, Run

from .sentences import Sentence, step
from .words import interval, number

__all__ = ["changes"]


@dataclass(frozen=True)
class _Quantity:
    """Where a quantity is in the records of a probe: ``""`` is the record's own value."""

    probe: str
    key: str
    words: str
    unit: str = ""
    show: Callable[[float], str] = number


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _count(value: float) -> str:
    return f"{value:,.0f}"


Point = tuple[int, float, float | None, float | None]
"""Step, value, and the ends of its interval."""

QUANTITIES = (
    _Quantity("trace", "", "the trace of the Hessian"),
    _Quantity("spectrum", "outliers", "the number of eigenvalues that stand above the bulk", show=_count),
    _Quantity("spectrum", "bulk_edge", "the edge of the bulk of the spectrum"),
    _Quantity("spectrum", "lambda_min", "the smallest eigenvalue that the spectrum shows"),
    _Quantity("spectrum", "share_near_zero", "the share of eigenvalues near zero", show=_percent),
    _Quantity("neural_collapse", "nc1", "the variation within classes against that between them (NC1)"),
    _Quantity("neural_collapse", "nc4", "the disagreement with the nearest class mean (NC4)", show=_percent),
    _Quantity("tangent_kernel", "", "the cosine distance of the tangent kernel from the first one measured"),
    _Quantity("tangent_kernel", "alignment", "the tangent kernel's alignment with the labels"),
    _Quantity("gradient_noise", "", "the gradient noise scale", " samples"),
    _Quantity("trajectory", "", "the distance of the weights from where the record begins"),
    _Quantity("trajectory", "path_length", "the length of the path through the recorded weights"),
)


def changes(run: Run, player: str | None = None) -> list[Sentence]:
    """A sentence for each quantity that was measured, with its first and its last value.

    Raises:
        RunError: if the run has no such player.
    """
    found = {probe: run.select(probe, player) for probe in dict.fromkeys(q.probe for q in QUANTITIES)}
    return [said for quantity in QUANTITIES if (said := _said(quantity, found[quantity.probe])) is not None]


def _said(quantity: _Quantity, records: list[Record]) -> Sentence | None:
    points = list(_points(quantity, records))
    if not points:
        return None
    words = quantity.words[:1].upper() + quantity.words[1:]
    first, last = points[0], points[-1]
    where = (first[0], last[0])
    then, now = _value(quantity, *first), _value(quantity, *last)
    if len(points) == 1:
        return Sentence(
            "changes", f"{words} was {then} at {step(first[0])}, the only measurement that has it.", where[:1]
        )
    if then == now:
        text = f"{words} was {then} both at {step(first[0])} and at {step(last[0])}"
    else:
        text = f"{words} went from {then} at {step(first[0])} to {now} at {step(last[0])}"
    if _overlap(first, last):
        text += "; these intervals overlap, so that no change is shown"
    return Sentence("changes", f"{text}.", where)


def _points(quantity: _Quantity, records: list[Record]) -> Iterator[Point]:
    for record in records:
        if quantity.key:
            entry = record.values.get
            value, low, high = entry(quantity.key), entry(f"{quantity.key}_low"), entry(f"{quantity.key}_high")
        else:
            value, low, high = record.value, record.low, record.high
        if value is not None and math.isfinite(value):
            yield record.step, value, low, high


def _value(quantity: _Quantity, at: int, value: float, low: float | None, high: float | None) -> str:
    shown = f"{quantity.show(value)}{quantity.unit}"
    if low is None or high is None or not low < high:
        return shown
    if quantity.show is number:
        return f"{shown} ({interval(low, high)})"
    return f"{shown} ({quantity.show(low)} to {quantity.show(high)})"


def _overlap(first: Point, last: Point) -> bool:
    ends = (first[2], first[3], last[2], last[3])
    if any(end is None or not math.isfinite(end) for end in ends):
        return False
    low, high, later_low, later_high = (float(end) for end in ends if end is not None)
    return low < high and later_low < later_high and low <= later_high and later_low <= high
