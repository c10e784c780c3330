"""Verdicts while training goes on: a callback for each criterion whose verdict changes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from losscope.landscape.html_table import Shown

from .audit import Audit, audit
from .records import Record
from .run import Run

__all__ = ["LiveAudit", "Verdict", "Verdicts"]

REMEMBERED = {"stability": 5, "log": 2000}
"""Records that the live audit remembers: the measurements it judges, and losses, for how often they rose."""

OTHERS = 16
"""Records it remembers of any other probe."""


@dataclass(frozen=True)
class Verdict(Shown):
    """What ``watch(..., on_verdict=)`` is told.

    Attributes:
        player: whose.
        step: of the measurement.
        criterion: name of the line, e.g. ``"sharpness"``.
        verdict: e.g. ``"AT_EDGE"``; see `Criterion`.
        previous: what it was before; None the first time.
        ratio: measured over threshold, median over the live audit's window; None where nothing is known.
        ratio_low: its lower end.
        ratio_high: its upper end.
        audit: the live audit, with every line and its reason.
    """

    player: str
    step: int
    criterion: str
    verdict: str
    previous: str | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    audit: Audit


class LiveAudit:
    """The audit of one player over its latest measurements, from memory that stays bounded.

    It is `Run.audit` of a run that holds the last records of each probe, and the first measurement, with whose loss
    later ones are compared. It rests on the last five measurements, so that a change shows soon, and its cost does
    not grow with the run.
    """

    def __init__(self, player: str) -> None:
        self.player = player
        self._kept: dict[str, deque[Record]] = {}
        self._failed: dict[str, Record] = {}
        self._bounded: dict[str, Record] = {}
        self._first: list[Record] = []

    def note(self, record: Record) -> None:
        """Remember a record, of whatever probe; of failures in a row the first, which says since when."""
        if record.status != "ok":
            self._failed.setdefault(record.probe, record)
            return
        self._failed.pop(record.probe, None)
        kept = self._kept.setdefault(record.probe, deque(maxlen=REMEMBERED.get(record.probe, OTHERS)))
        if record.probe == "stability":
            self._first = self._first or [record]
            if not _moves(record) and any(map(_moves, kept)):
                return  # measured at a rate of zero, which the audit leaves out
        kept.append(record)
        if record.high is not None:  # upper bounds are renewed more seldom than values
            self._bounded[record.probe] = record

    @property
    def remembered(self) -> list[Record]:
        """All that is remembered, in the order of the steps."""
        kept = [record for records in self._kept.values() for record in records]
        everything = [*self._first, *self._bounded.values(), *kept, *self._failed.values()]
        return sorted({id(record): record for record in everything}.values(), key=lambda r: r.step)

    def look(self, meta: Mapping[str, Any]) -> Audit:
        """The audit now, with the run's facts as they stand."""
        kept = [record for records in self._kept.values() for record in records]
        older = [*self._first, *self._bounded.values()]
        return audit(Run.from_records(dict(meta), [*older, *kept, *self._failed.values()]), self.player)


def _moves(record: Record) -> bool:
    return record.values.get("threshold") is not None or record.lr != 0


class Verdicts:
    """Calls back after measurements of `Stability` that change a verdict.

    Args:
        callback: takes a `Verdict`.
        meta: the run's facts, which change while it goes on.

    A line that does not apply is no verdict: of one that never applies nothing is told.
    """

    def __init__(self, callback: Callable[[Verdict], object], meta: Callable[[], Mapping[str, Any]]) -> None:
        self._callback, self._meta = callback, meta
        self._live: dict[str, LiveAudit] = {}
        self._measured: dict[str, int] = {}
        self._told: dict[tuple[str, str], str] = {}
        self._telling = False

    def recall(self, records: Iterable[Record]) -> None:
        """Take a resumed run up where it was left: what it had come to is not told again."""
        for record in records:
            self.note(record)
        for player in self._measured:
            for line in self._live[player].look(self._meta()).criteria:
                self._told[player, line.name] = line.verdict
        self._measured.clear()

    def state_dict(self) -> dict[str, Any]:
        """What is remembered and what was told, for a checkpoint."""
        records = [record.to_json() for live in self._live.values() for record in live.remembered]
        return {"records": records, "told": [[*about, verdict] for about, verdict in self._told.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on judging from there."""
        for record in state["records"]:
            self.note(Record.from_json(record))
        self._told = {(player, name): verdict for player, name, verdict in state["told"]}
        self._measured.clear()

    def note(self, record: Record) -> None:
        """Remember a record; a measurement of stability is judged at the next `tell`."""
        self._live.setdefault(record.player, LiveAudit(record.player)).note(record)
        if record.probe == "stability":
            self._measured[record.player] = record.step

    def changes(self, player: str) -> list[Verdict]:
        """Verdicts that are not what was told last, if stability was measured since."""
        if self._telling or player not in self._measured:  # a callback that measures is told at the next measurement
            return []
        step, seen = self._measured.pop(player), self._live[player].look(self._meta())
        found = []
        for line in seen.criteria:
            previous = self._told.get((player, line.name))
            if line.verdict != (previous or "NOT_APPLICABLE"):
                ratios = line.ratio, line.ratio_low, line.ratio_high
                found.append(Verdict(player, step, line.name, line.verdict, previous, *ratios, seen))
        return found

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Call back, one verdict after the other; exceptions of the callback come out unchanged."""
        if not verdicts:
            return
        self._telling = True
        try:
            for each in verdicts:
                self._told[each.player, each.criterion] = each.verdict
                self._callback(each)
        finally:
            self._telling = False
