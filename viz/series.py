"""Numbers of a run as arrays, ready to draw."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from losscope.probes import Record, Run
from losscope.probes.catalogue import CATALOGUE
from losscope.probes.rates import wrong_rates

__all__ = [
    "LARGEST", "LEAST", "Series", "Table", "Unmeasured", "column", "decimate", "drawable", "facts", "keep", "loss",
    "numbers", "ratios", "ratios_of", "runs_of", "sharpness", "small_batch_edge", "unmeasured",
]  # fmt: skip

LARGEST, LEAST = 1e100, 1e-100
"""Magnitudes between which numbers are drawn: far beyond any that is looked at, and no axis overflows on them."""
MOST = 1000
"""Measurements of a curve that are drawn, about: more than there are pixels across."""


@dataclass(frozen=True, eq=False)
class Series:
    """One quantity over the steps; all arrays have the same length, NaN where nothing is known.

    Attributes:
        steps: optimizer steps, ascending.
        value: the quantity.
        low: its lower bounds.
        high: its upper bounds.
        threshold: what it is compared with.
        threshold_largest: the same for the most permissive parameter group.
    """

    steps: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    threshold: np.ndarray
    threshold_largest: np.ndarray

    def __len__(self) -> int:
        """Number of measurements."""
        return len(self.steps)

    @property
    def bounded(self) -> np.ndarray:
        """Where an upper bound is known."""
        return np.isfinite(self.high)

    def thinned(self, most: int = MOST) -> Series:
        """The same with about so many measurements, the extremes of the value and of its bounds among them."""
        kept = keep(self.steps, self.value, self.low, self.high, self.threshold, most=most)
        return dataclasses.replace(self, **{name: each[kept] for name, each in vars(self).items()})


class Table:
    """The columns of records by the names of their ``values``, each made once.

    Args:
        records: of one probe, by step.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records
        self._columns: dict[str, np.ndarray] = {}
        self.steps = np.array([r.step for r in records], dtype=int)

    def __getitem__(self, name: str) -> np.ndarray:
        """The column of that name."""
        if name not in self._columns:
            self._columns[name] = column(self._records, name)
        return self._columns[name]


@dataclass(frozen=True)
class Unmeasured:
    """Measurements that gave no number that can be drawn: their steps, by what went wrong."""

    nonfinite: tuple[int, ...]
    errors: tuple[int, ...]
    beyond: tuple[int, ...] = ()


def facts(run: Run, player: str | None) -> dict[str, object]:
    """What the run's description says about a player; empty where it says nothing."""
    players = run.meta.get("players") or {}
    found = players.get(player if player is not None else next(iter(players), ""), {})
    return found if isinstance(found, dict) else {}


def sharpness(run: Run, player: str | None = None) -> Series:
    """The sharpness: of probe ``sharpness``, or else of probe ``stability``."""
    records = run.select("sharpness", player)
    if records:
        return _series(records, *(numbers(getattr(r, end) for r in records) for end in ("value", "low", "high")))
    records = run.select("stability", player)
    return _series(records, *(column(records, f"sharpness{end}") for end in ("", "_low", "_high")))


def ratios(run: Run, criterion: str, player: str | None = None) -> Series:
    """Measured over threshold of one criterion of the audit, by its name in the catalogue.

    The bounds divide by the largest and the smallest threshold of the parameter groups.
    """
    return ratios_of(Table(run.select("stability", player)), criterion)


def ratios_of(table: Table, criterion: str) -> Series:
    """The same of records of probe ``stability``."""
    least = CATALOGUE[criterion].threshold
    strict = _positive(table[least])
    wide = _positive(table["threshold_largest" if criterion == "sharpness" else least])
    wide = np.where(np.isnan(wide), strict, wide)
    value, low, high = (table[f"{criterion}{end}"] for end in ("", "_low", "_high"))
    return Series(
        table.steps, drawable(value / strict), drawable(low / wide), drawable(high / strict), table["threshold"],
        table["threshold_largest"],
    )  # fmt: skip


def small_batch_edge(records: Sequence[Record]) -> Series:
    """The edge of small batches in units of that of large ones, where momentum makes them differ; else empty."""
    ratio = column(records, "threshold_small_batch") / _positive(column(records, "threshold"))
    found = np.flatnonzero(ratio < 0.999).tolist()
    nothing = np.full(len(found), np.nan)
    return _series([records[i] for i in found], ratio[found], nothing, nothing)


def loss(run: Run, player: str | None = None) -> tuple[np.ndarray, np.ndarray, str]:
    """Steps and values of the loss, and what loss it is.

    The logged training loss where there is one, else the one measured beside the curvature.
    """
    steps, values = run.logged("loss", player)
    if len(steps):
        order = np.argsort(steps, kind="stable")
        return steps[order], values[order], "training loss"
    for probe in ("sharpness", "stability", "trace"):
        records = [r for r in run.select(probe, player) if r.values.get("loss") is not None]
        if records:
            return np.array([r.step for r in records]), column(records, "loss"), "measured loss"
    return np.array([], dtype=int), np.array([]), "loss"


def unmeasured(run: Run, probe: str, player: str | None = None, *, value: str | None = None) -> Unmeasured:
    """Steps at which a probe gave no number that can be drawn, and why.

    Args:
        run: the run.
        probe: the probe.
        player: whose.
        value: a key of ``values`` to look at in place of the record's own value.
    """
    nonfinite, errors, beyond = [], [], []
    for record in run.select(probe, player, ok=False):
        number = record.values.get(value) if value else record.value
        if record.status == "error":
            errors.append(record.step)
        elif record.status == "nonfinite" or (number is not None and not abs(number) < math.inf):
            nonfinite.append(record.step)
        elif number is not None and abs(number) > LARGEST:
            beyond.append(record.step)
    return Unmeasured(tuple(nonfinite), tuple(errors), tuple(beyond))


def no_stable_step(records: Sequence[Record]) -> tuple[np.ndarray, str]:
    """The steps whose rate is negative or no number, so that there is no ratio to draw, and words for a legend."""
    wrong = wrong_rates(records)
    return np.array([r.step for r in wrong.records]), f"no stable step: lr {wrong.rates} ({len(wrong.records)})"


def decimate(steps: np.ndarray, values: np.ndarray, most: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Thin out a long curve without losing its extremes: least and largest value of equal stretches.

    Args:
        steps: (n,) abscissae, ascending.
        values: (n,) ordinates; stretches with nothing finite in them stay as gaps.
        most: about how many points to keep.

    Returns:
        The kept steps and values, in order; the input itself if it is short enough.

    Example:
        >>> import numpy as np
        >>> from losscope.viz.series import decimate
        >>> steps, values = decimate(np.arange(10_000), np.sin(np.arange(10_000)), most=100)
        >>> len(steps) <= 102, bool(values.max() > 0.999)
        (True, True)
    """
    kept = keep(steps, values, most=most)
    return steps[kept], values[kept]


def keep(steps: np.ndarray, *columns: np.ndarray, most: int = MOST) -> np.ndarray:
    """Which of many points to draw: least and largest of every column within equal stretches.

    Args:
        steps: (n,) abscissae, ascending.
        *columns: (n,) each, the first of which decides how many points are few enough to keep all.
        most: about how many points to keep for each column.

    Returns:
        Ascending indices; the first and the last point among them. Of a stretch with nothing finite its first point.

    Example:
        >>> import numpy as np
        >>> from losscope.viz.series import keep
        >>> peak = np.where(np.arange(10_000) == 777, 5.0, 0.0)
        >>> 777 in keep(np.arange(10_000), peak, most=100)
        True
    """
    count = len(steps)
    if count <= most:
        return np.arange(count)
    starts = np.unique(np.linspace(0, count, max(most // 2, 1), endpoint=False).astype(int))
    wide = int(np.diff(starts, append=count).max())
    at = np.minimum(starts[:, None] + np.arange(wide), np.append(starts[1:], count)[:, None] - 1)
    kept, rows, gone = [np.array([0, count - 1])], np.arange(len(starts)), np.ones(len(starts), dtype=bool)
    for values in columns:
        known = np.isfinite(values)[at]
        seen = known.any(axis=1)
        for filler, best in ((np.inf, np.argmin), (-np.inf, np.argmax)):
            kept.append(at[rows, best(np.where(known, values[at], filler), axis=1)][seen])
        gone &= ~seen
    return np.unique(np.concatenate([*kept, starts[gone]]))


def runs_of(mask: np.ndarray) -> list[tuple[int, int]]:
    """Stretches of consecutive True as half-open index ranges.

    Example:
        >>> import numpy as np
        >>> from losscope.viz.series import runs_of
        >>> runs_of(np.array([True, True, False, True]))
        [(0, 2), (3, 4)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(int), [0]))))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def column(records: Sequence[Record], name: str) -> np.ndarray:
    """One of ``values`` over records, as `numbers`."""
    return numbers([r.values.get(name) for r in records])


def numbers(values: Iterable[float | None]) -> np.ndarray:
    """Recorded numbers as an array, NaN where there is nothing to draw."""
    return drawable(np.array(list(values), dtype=float))  # which makes None NaN


def drawable(values: np.ndarray) -> np.ndarray:
    """What is not finite, or too large for an axis, becomes NaN, and what is too small for one becomes zero."""
    values = np.where(np.abs(values) <= LARGEST, values, np.nan)
    return np.where(np.abs(values) < LEAST, 0.0, values)


def _series(records: Sequence[Record], value: np.ndarray, low: np.ndarray, high: np.ndarray) -> Series:
    steps = np.array([r.step for r in records], dtype=int)
    return Series(steps, value, low, high, column(records, "threshold"), column(records, "threshold_largest"))


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)
