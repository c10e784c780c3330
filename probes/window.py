"""Numbers and evidence over the part of a run that its audit rests on."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .records import Record

if TYPE_CHECKING:
    from .run import Run

__all__ = [
    "Bound",
    "Oscillation",
    "Ratio",
    "Window",
    "ambiguity",
    "column",
    "curvature_records",
    "fresh_bound",
    "last_part",
    "median",
    "noted",
    "observed",
    "ratio_of",
    "unverified",
]  # fmt: skip

BOUND_STAYS_FRESH = 200
"""An upper bound of the sharpness this many steps old still speaks for the present (stated as an assumption)."""

LEAST_GAP = 1.01
"""A bound found at one measurement says of others no more than the tolerance of their eigenvalues."""

SAME_GRADIENT = 0.995
"""Cosine from which a step's gradient counts as that of all the data; mini-batches are far below late in training."""


FLIPS = 0.75
"""Share of pairs of steps in which motion that oscillates changes its sign; at the edge it is nearly all."""

ROUNDING = 2 / 3
"""The same of second differences of a random walk, which is what rounding makes of weights."""


class Window(list[Record]):
    """Measurements whose columns are read once, however many criteria ask for them.

    Attributes:
        columns: those that were read, by name.
    """

    def __init__(self, records: Sequence[Record] = ()) -> None:
        super().__init__(records)
        self.columns: dict[str, np.ndarray] = {}


def last_part(records: Sequence[Record]) -> Window:
    """The last quarter of the measured steps, at least five measurements where there are as many."""
    if not records:
        return Window()
    first, last = records[0].step, records[-1].step
    late = [r for r in records if r.step >= last - (last - first) / 4]
    return Window(late if len(late) >= 5 else records[-5:])


@dataclass(frozen=True)
class Ratio:
    """Medians over the window of a quantity, its bounds and its ratio to 2/lr or the threshold."""

    measured: float | None
    low: float | None
    high: float | None
    threshold: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None

    def fields(self) -> dict[str, float | None]:
        """The numbers by name, as a `Criterion` takes them."""
        return dict(self.__dict__)


def ratio_of(window: Sequence[Record], name: str, threshold: str, largest: str | None = None) -> Ratio:
    """Medians; the bounds of a ratio divide by the largest and the smallest threshold of the groups."""
    low, high = f"{name}_low", f"{name}_high"
    values, ratios = column(window, name), column(window, name, threshold)
    return Ratio(
        median(values),
        _bound(window, values, (name, None), (low, None)),
        _bound(window, values, (name, None), (high, None)),
        median(column(window, threshold)),
        median(ratios),
        _bound(window, ratios, (name, threshold), (low, largest or threshold)),
        _bound(window, ratios, (name, threshold), (high, threshold)),
    )


def _bound(
    window: Sequence[Record], values: Sequence[float], value: tuple[str, str | None], bound: tuple[str, str | None]
) -> float | None:
    """The median of the bounds; where some values have none, the median value with the median way to a bound.

    The median of a few bounds alone would be one of their values, not of all the others.
    """
    bounds = column(window, *bound)
    if len(bounds) >= len(values) or not bounds:
        return median(bounds)
    middle = statistics.median(values)
    of, ends = _aligned(window, *value), _aligned(window, *bound)
    both = ~(np.isnan(of) | np.isnan(ends))
    if middle > 0 and (of[both] > 0).all():
        ways = (ends[both] / of[both]).tolist()
        return middle * statistics.median(max(w, LEAST_GAP) if bound[0].endswith("_high") else w for w in ways)
    return middle + statistics.median((ends[both] - of[both]).tolist())


def column(window: Sequence[Record], name: str, divisor: str | None = None) -> list[float]:
    """The finite values of that name over the window, divided by those of ``divisor`` if one is given."""
    values = _aligned(window, name, divisor)
    found: list[float] = values[~np.isnan(values)].tolist()
    return found


def _aligned(window: Sequence[Record], name: str, divisor: str | None = None) -> np.ndarray:
    """The same at every measurement, NaN where there is none."""
    values = _read(window, name)
    known = np.where(np.isfinite(values), values, np.nan)
    if divisor is None:
        return known
    units = _read(window, divisor)
    with np.errstate(over="ignore"):
        return np.divide(known, units, out=np.full(len(known), np.nan), where=units > 0)


def _read(window: Sequence[Record], name: str) -> np.ndarray:
    columns = window.columns if isinstance(window, Window) else {}
    if name not in columns:
        columns[name] = np.array([r.values.get(name) for r in window], dtype=float)  # which makes None NaN
    return columns[name]


def median(values: list[float]) -> float | None:
    """Their median, None where there are none."""
    return statistics.median(values) if values else None


class Oscillation:
    """Evidence of oscillation in the window: sign flips along the top eigenvector, a rising loss.

    Attributes:
        seen: whether there is oscillation; None where nobody could look.
        said: what was seen of it, in sentences.
        words: the same in one.
    """

    def __init__(self, run: Run, player: str, window: Sequence[Record], facts: dict[str, Any]) -> None:
        self.seen: bool | None = None
        said: list[str] = []
        if window:
            first, last = window[0].step, window[-1].step
            records = [r for r in run.select("oscillation", player) if first <= r.step <= last]
            share, pairs = _share(records, "flips", "pairs")
            if pairs >= 6:
                said.append(
                    f"the step along the top eigenvector changed sign in {share:.0%} of {pairs:.0f} pairs of steps"
                )
                self.seen = share >= FLIPS
            if facts.get("full_batch"):
                self._add_swings(records, said)
                self._add_loss(run, player, first, last, said)
        self.said = tuple(said)
        self.words = "; ".join(said) or "oscillation was not observed: too few steps followed"

    def _add_swings(self, records: Sequence[Record], said: list[str]) -> None:
        """Oscillation that comes in bursts, as with momentum, is hidden by the drift in between, though it goes on.

        Where weights are at rest but for rounding, that makes two signs of three change, and mini-batches make more.
        """
        share, pairs = _share(records, "swings", "swing_pairs")
        chance = ROUNDING + 2 * math.sqrt(ROUNDING * (1 - ROUNDING) / pairs) if pairs else 1.0
        if self.seen is False and share >= max(FLIPS, chance):
            said.append(f"less its drift, the motion there changed sign in {share:.0%} of {pairs:.0f}")
            self.seen = True

    def _add_loss(self, run: Run, player: str, first: int, last: int, said: list[str]) -> None:
        steps, losses = run.logged("loss", player)
        kept = [(s, v) for s, v in zip(steps.tolist(), losses.tolist(), strict=True) if first <= s <= last]
        rises = [b > a for (s, a), (t, b) in itertools.pairwise(kept) if t == s + 1]
        if len(rises) >= 20:
            share = sum(rises) / len(rises)
            said.append(f"the full-batch loss rose in {share:.0%} of {len(rises)} steps")
            self.seen = bool(self.seen) or share >= 0.1


def _share(records: Sequence[Record], name: str, of: str) -> tuple[float, float]:
    """The share over all records, and of how many."""
    total = sum(r.values.get(of) or 0 for r in records)
    return (sum(r.values.get(name) or 0 for r in records) / total if total else 0.0), total


@dataclass(frozen=True)
class Bound:
    """An upper bound of the sharpness, relative to the value it was found with."""

    step: int
    gap: float


def fresh_bound(run: Run, player: str, window: Sequence[Record], probes: Sequence[str]) -> Bound | None:
    """The tightest recent upper bound of the sharpness by any of these probes.

    Those of a random start are tight, those of a warm one are not.
    """
    found = []
    for record in [record for probe in probes for record in run.select(probe, player)]:
        fresh = window and window[-1].step - record.step <= BOUND_STAYS_FRESH
        if fresh and record.value is not None and record.value > 0 and record.high is not None:
            found.append(Bound(record.step, max(record.high / record.value, LEAST_GAP)))
    return min(found, key=lambda bound: (bound.gap, -bound.step), default=None)


_AMBIGUOUS, _UNVERIFIED = "ambiguous: ", "unverified: "
"""How the note of an ambiguous Hessian begins, and of one that could not be compared."""


def curvature_records(run: Run, player: str, window: Sequence[Record]) -> list[Record]:
    """The measurements of the Hessian in the window, by whatever probe; of the whole run where there is no window."""
    first, last = (window[0].step, window[-1].step) if window else (0, math.inf)
    found = [r for probe in ("sharpness", "trace", "stability") for r in run.select(probe, player)]
    return sorted((r for r in found if first <= r.step <= last), key=lambda r: r.step)


def noted(records: Sequence[Record]) -> str:
    """What measurements say of themselves: each note once, the latest of those that differ in numbers only."""
    found: dict[str, str] = {}
    for record in records:
        parts = (record.reason or "").split("; ")
        for part in parts[1:] if parts[0].startswith(_UNVERIFIED) else parts:
            found[re.sub(r"\d[\d.e+-]*", "#", part)] = part
    return "; ".join(filter(None, found.values()))


def ambiguity(records: Sequence[Record]) -> str | None:
    """That the Hessian is ambiguous, with both values shortly; None where it is not."""
    for record in reversed(records):
        if record.reason and record.reason.startswith(_AMBIGUOUS):
            values = re.split("[:;] ", record.reason.removeprefix(_AMBIGUOUS), maxsplit=1)[0]
            return f"the loss's Hessian is ambiguous: {values}"
    return None


def unverified(records: Sequence[Record]) -> str | None:
    """Why nobody could tell whether the Hessian is one; None where it was told."""
    for record in reversed(records):
        if record.reason and record.reason.startswith(_UNVERIFIED):
            return record.reason.removeprefix(_UNVERIFIED).split("; ")[0]
    return None


def observed(facts: dict[str, Any], window: Sequence[Record], everything: Sequence[Record]) -> dict[str, Any]:
    """A player's facts and what its records add to them.

    The gradient the optimizer stepped with, against the objective's own at the same weights, shows whether
    training is full-batch on this data, whatever was said of its batch size, and whether gradients are clipped.
    """
    batch, samples = facts.get("batch_size"), facts.get("samples")
    cosine = median(column(window, "gradient_cosine"))
    full: bool | None
    if cosine is not None:
        full = cosine >= SAME_GRADIENT
    else:
        full = None if batch is None or samples is None else batch >= samples
    failed = [r.reason for r in everything if r.status != "ok" and r.reason]
    return {
        **facts,
        "full_batch": full,
        "gradient_cosine": cosine,
        "gradient_scale": median(column(window, "gradient_scale")),
        "failure": failed[0] if failed and not window else None,
    }
