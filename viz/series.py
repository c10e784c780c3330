"""Numbers of a run as arrays, ready to draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from losscope.probes import Record, Run
from losscope.probes.catalogue import CATALOGUE

__all__ = [
    "Series", "Unmeasured", "decimate", "facts", "loss", "ratios", "runs_of", "sharpness", "small_batch_edge",
    "unmeasured",
]  # fmt: skip


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


@dataclass(frozen=True)
class Unmeasured:
    """Measurements that gave no number: their steps, by what went wrong."""

    nonfinite: tuple[int, ...]
    errors: tuple[int, ...]


def facts(run: Run, player: str | None) -> dict[str, object]:
    """What the run's description says about a player; empty where it says nothing."""
    players = run.meta.get("players") or {}
    found = players.get(player if player is not None else next(iter(players), ""), {})
    return found if isinstance(found, dict) else {}


def sharpness(run: Run, player: str | None = None) -> Series:
    """The sharpness: of probe ``sharpness``, or else of probe ``stability``."""
    records = run.select("sharpness", player)
    if records:
        return _series(records, [(r.value, r.low, r.high) for r in records])
    records = run.select("stability", player)
    numbers = [tuple(r.values.get(f"sharpness{end}") for end in ("", "_low", "_high")) for r in records]
    return _series(records, numbers)


def ratios(run: Run, criterion: str, player: str | None = None) -> Series:
    """Measured over threshold of one criterion of the audit, by its name in the catalogue.

    The bounds divide by the largest and the smallest threshold of the parameter groups.
    """
    least = CATALOGUE[criterion].threshold
    largest = "threshold_largest" if criterion == "sharpness" else least
    records = run.select("stability", player)
    numbers = []
    for record in records:
        values = record.values
        strict = _positive(values.get(least))
        wide = _positive(values.get(largest)) or strict
        numbers.append(
            (
                _divide(values.get(criterion), strict),
                _divide(values.get(f"{criterion}_low"), wide),
                _divide(values.get(f"{criterion}_high"), strict),
            )
        )
    return _series(records, numbers)


def small_batch_edge(records: Sequence[Record]) -> Series:
    """The edge of small batches in units of that of large ones, where momentum makes them differ; else empty."""
    found = []
    for record in records:
        ratio = _divide(record.values.get("threshold_small_batch"), _positive(record.values.get("threshold")))
        if ratio is not None and ratio < 0.999:
            found.append((record, (ratio, None, None)))
    return _series([record for record, _ in found], [numbers for _, numbers in found])


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
            return np.array([r.step for r in records]), _numbers(r.values["loss"] for r in records), "measured loss"
    return np.array([], dtype=int), np.array([]), "loss"


def unmeasured(run: Run, probe: str, player: str | None = None, *, value: str | None = None) -> Unmeasured:
    """Steps at which a probe gave no number, and why.

    Args:
        run: the run.
        probe: the probe.
        player: whose.
        value: a key of ``values`` to look at in place of the record's own value.
    """
    nonfinite, errors = [], []
    for record in run.select(probe, player, ok=False):
        number = record.values.get(value) if value else record.value
        if record.status == "error":
            errors.append(record.step)
        elif record.status == "nonfinite" or (number is not None and not math.isfinite(number)):
            nonfinite.append(record.step)
    return Unmeasured(tuple(nonfinite), tuple(errors))


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
    if len(steps) <= most:
        return steps, values
    kept: set[int] = {0, len(steps) - 1}
    for part in np.array_split(np.arange(len(steps)), max(most // 2, 1)):
        finite = part[np.isfinite(values[part])]
        chosen = (finite[values[finite].argmin()], finite[values[finite].argmax()]) if len(finite) else (part[0],)
        kept.update(int(i) for i in chosen)
    order = np.array(sorted(kept))
    return steps[order], values[order]


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


def _series(records: Sequence[Record], numbers: Sequence[tuple[float | None, ...]]) -> Series:
    return Series(
        np.array([r.step for r in records], dtype=int),
        _numbers(n[0] for n in numbers),
        _numbers(n[1] for n in numbers),
        _numbers(n[2] for n in numbers),
        _numbers(r.values.get("threshold") for r in records),
        _numbers(r.values.get("threshold_largest") for r in records),
    )


def _numbers(values: Iterable[float | None]) -> np.ndarray:
    """Infinite and missing numbers become NaN: there is nothing to draw."""
    array = np.array([np.nan if v is None else v for v in values], dtype=float)
    array[~np.isfinite(array)] = np.nan
    return array


def _positive(value: float | None) -> float | None:
    return value if value is not None and value > 0 else None


def _divide(value: float | None, unit: float | None) -> float | None:
    return None if value is None or unit is None else value / unit
