"""The record: one line of a run, its schema and its strict JSON form."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from losscope.landscape import RunError

__all__ = ["SCHEMA_VERSION", "Record"]

SCHEMA_VERSION = 1

STATUSES = ("ok", "nonfinite", "error")
"""``ok``; ``nonfinite``: the loss or its curvature was NaN or infinite; ``error``: the probe raised."""


@dataclass(frozen=True)
class Record:
    """One measurement of one probe at one step, or one call of ``run.log``.

    Attributes:
        step: t: the measured weights are those *before* update t.
        player: which model, for runs that watch several.
        probe: name of the probe; ``"log"`` for logged values.
        status: one of ``ok``, ``nonfinite``, ``error``, ``skipped``.
        reason: why it is not ok; where it is, what is to be known of it, e.g. that the Hessian is ambiguous.
        lr: the learning rate that update t used; None where parameter groups differ, but for one that is negative or
            not finite.
        value: the main number.
        low: lower end of its interval, None where nothing is known.
        high: upper end of its interval, None where nothing is known.
        unit: unit of value, low and high.
        kernel: engine that computed the curvature products.
        matvecs: curvature-vector products this record paid for (shared ones are paid once).
        seconds: wall-clock time this record paid for.
        values: further numbers by name.
        arrays: further arrays by name: paths relative to the run folder.
        time: wall clock, seconds since the epoch.
        due: the step at which it was due, where the budget of time postponed it; in the line only then.
        memory: bytes of the accelerator by which it raised the peak, above what was allocated before it; None where
            it did not, and on the CPU; in the line only where known.
        v: version of the schema.
    """

    step: int
    player: str
    probe: str
    status: str = "ok"
    reason: str | None = None
    lr: float | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    kernel: str = ""
    matvecs: int = 0
    seconds: float = 0.0
    values: dict[str, float | None] = field(default_factory=dict)
    arrays: dict[str, str] = field(default_factory=dict)
    time: float = 0.0
    due: int | None = None
    memory: int | None = None
    v: int = SCHEMA_VERSION

    @property
    def key(self) -> tuple[str, str, int]:
        """What identifies a measurement; of two with the same key the later one counts."""
        return (self.player, self.probe, self.step)

    def to_json(self) -> str:
        """One line of strict JSON, without the newline.

        JSON has no NaN and no infinity, and diverging runs are what people log: such numbers are written
        as null and named in ``nonfinite``, e.g. ``["value=nan", "values.loss=inf"]``.
        """
        content: dict[str, Any] = {name: getattr(self, name) for name in _ORDER}
        content |= {name: said for name in ("due", "memory") if (said := getattr(self, name)) is not None}
        nonfinite: list[str] = []
        for name in ("lr", "value", "low", "high", "seconds", "time"):
            content[name] = _finite(name, content[name], nonfinite)
        content["values"] = {k: _finite(f"values.{k}", v, nonfinite) for k, v in self.values.items()}
        content["nonfinite"] = nonfinite
        return json.dumps(content, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str | bytes) -> Record:
        """Read a line back.

        Raises:
            RunError: if it is of a newer schema.
            ValueError: if it is not a record.
        """
        content = json.loads(line)
        if not isinstance(content, dict) or not isinstance(content.get("v"), int):
            raise ValueError("not a record")
        if content["v"] > SCHEMA_VERSION:
            raise RunError(
                f"the run was written with record schema {content['v']}, this losscope reads up to {SCHEMA_VERSION}; "
                "update losscope"
            )
        try:
            for entry in content.pop("nonfinite", []):
                path, _, number = entry.rpartition("=")
                place, key = (content["values"], path[7:]) if path.startswith("values.") else (content, path)
                place[key] = float(number)
            if not content.keys() <= _NAMES:  # a later schema's, that this one can do without
                content = {name: content[name] for name in content.keys() & _NAMES}
            record = cls(**content)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a record: {error}") from error
        if wrong := [name for name, fits in _FITS.items() if not fits(getattr(record, name))]:
            raise ValueError(f"not a record: {', '.join(wrong)} of the wrong type")
        return record


_NAMES = frozenset(each.name for each in dataclasses.fields(Record))
_ORDER = (
    "v", "step", "time", "player", "probe", "status", "reason", "lr", "value", "low", "high", "unit", "kernel",
    "matvecs", "seconds", "values", "arrays",
)  # fmt: skip


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


_FITS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("player", "probe", "status", "unit", "kernel"), _is_text),
    **dict.fromkeys(("step", "matvecs"), _is_count),
    **dict.fromkeys(("due", "memory"), lambda value: value is None or _is_count(value)),
    **dict.fromkeys(("lr", "value", "low", "high", "seconds", "time"), _is_number),
    "reason": lambda reason: reason is None or isinstance(reason, str),
    "values": lambda values: isinstance(values, dict) and all(map(_is_number, values.values())),
    "arrays": lambda arrays: isinstance(arrays, dict) and all(map(_is_text, arrays.values())),
}
"""What each field of a line must be: one damaged line must not make the rest of a run unreadable."""


def _finite(name: str, number: float | None, nonfinite: list[str]) -> float | None:
    if number is None or math.isfinite(number):
        return number
    nonfinite.append(f"{name}={float(number)}")
    return None
