"""A run at one moment of its growth, as the pages see it."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from losscope.landscape import RunError
from losscope.probes import Audit, Record, Run
from losscope.probes.cost import Cost
from losscope.probes.phases import Phase

from .inside import all_of, open_inside

__all__ = ["FollowedRun"]

T = TypeVar("T")

LARGEST_ARRAY = 1 << 28


class FollowedRun(Run):
    """A run at one moment, which reckons nothing twice; arrays come from its folder alone, whatever its records say.

    Args:
        path: the folder.
        meta: the run's facts.
        records: of several with the same key one, the last.
        malformed: lines that are no records.
        known: what is known of it already, by what was asked.
    """

    def __init__(
        self,
        path: Path,
        meta: dict[str, Any],
        records: list[Record],
        malformed: int,
        known: Mapping[tuple[object, ...], Any] | None = None,
    ) -> None:
        self.path: Path | None = path
        self._arrays = {}
        self.meta, self.records, self.malformed = meta, records, malformed
        self._known: dict[tuple[object, ...], Any] = dict(known or {})

    def select(self, probe: str, player: str | None = None, *, ok: bool = True) -> list[Record]:
        """Records of one probe in order of step: see `Run.select`."""
        name = self._player(player)
        found: list[Record] = self._groups.get((probe, name), [])
        return list(self._once(lambda: [each for each in found if each.status == "ok" or not ok], probe, name, ok))

    def logged(self, name: str, player: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of one logged quantity: see `Run.logged`."""
        steps, values = self._once(lambda: super(FollowedRun, self).logged(name, player), "logged", name, player)
        return steps.copy(), values.copy()

    def audit(self, player: str | None = None) -> Audit:
        """The stability audit of one player: see `Run.audit`."""
        audit: Audit = self._once(lambda: super(FollowedRun, self).audit(player), "audit", self._player(player))
        return audit

    def phases(self, player: str | None = None) -> tuple[Phase, ...]:
        """The phases that one player went through: see `Run.phases`."""
        phases: tuple[Phase, ...] = self._once(lambda: super(FollowedRun, self).phases(player), "phases", player)
        return phases

    def cost(self) -> Cost:
        """What every probe cost: see `Run.cost`."""
        cost: Cost = self._once(super().cost, "cost")
        return cost

    @cached_property
    def _groups(self) -> dict[tuple[str, str], list[Record]]:
        """Records by probe and player, in order of step."""
        groups: dict[tuple[str, str], list[Record]] = {}
        for record in self.records:
            groups.setdefault((record.probe, record.player), []).append(record)
        for found in groups.values():
            found.sort(key=lambda each: each.step)
        return groups

    def continued(self, fresh: Sequence[Record]) -> FollowedRun:
        """What has come since, as a run by itself, which takes far less time to draw than the whole of a long one.

        It begins with the last measurement of each probe, so that intervals, differences of neighbours and the
        choice between probes go on as they would in the whole; verdicts and phases are those of this run.

        Args:
            fresh: the records that came after those of this run.
        """
        begins: dict[tuple[str, str], int] = {}
        for record in fresh:
            kind = (record.probe, record.player)
            begins[kind] = min(begins.get(kind, record.step), record.step)
        last = (
            next((r for r in reversed(found) if r.status == "ok" and r.step < begins.get(kind, math.inf)), None)
            for kind, found in self._groups.items()
        )
        latest = {record.key: record for record in (*(r for r in last if r is not None), *fresh)}
        known: dict[tuple[object, ...], Any] = {("audit", player): self.audit(player) for player in self.players}
        known |= {("phases", player): self.phases(player) for player in self.players}
        assert self.path is not None
        return FollowedRun(self.path, self.meta, list(latest.values()), 0, known)

    def _once(self, make: Callable[[], T], *key: object) -> T:
        """What a page asks for in several places."""
        if key not in self._known:
            self._known[key] = make()
        found: T = self._known[key]
        return found

    def array(self, record: Record, name: str) -> np.ndarray:
        """Load an array of a record.

        Raises:
            RunError: if the record has no such array, or it is not there as a plain file of the run folder.
        """
        path = record.arrays.get(name)
        if path is None or self.path is None:
            raise RunError(f"record {record.key} has no array {name!r}; it has {sorted(record.arrays)}")
        try:
            with open_inside(self.path, path) as file:
                return np.asarray(np.load(io.BytesIO(all_of(file, LARGEST_ARRAY)), allow_pickle=False))
        except (OSError, ValueError, EOFError, MemoryError) as error:
            raise RunError(f"cannot read {path!r} of {self.path}: {error}") from error
