"""What is to be measured now: what the schedules ask for, and of that what the budget of time allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .budget import Budget, Key
from .guard import say
from .probe import Probe
from .schedule import Schedule

__all__ = ["Agenda"]


class Agenda:
    """The due probes of one player; those that the budget does not allow yet wait for a later step.

    One that is due again while it waits is measured once: its schedule is stretched, by so many measurements that are
    *left out*.

    Args:
        player: name of the player.
        probes: its probes.
        schedule: of probes that have none of their own.
        budget: the run's budget of time.

    Attributes:
        waiting: step at which each waiting probe was due, by its name.
        postponed: number of measurements made at a later step than they were due, by name of the probe.
        left_out: number of measurements that were due and not made, by name of the probe.
    """

    def __init__(self, player: str, probes: Sequence[Probe], schedule: Schedule, budget: Budget) -> None:
        self._player, self._probes, self._schedule, self._budget = player, list(probes), schedule, budget
        self._looked: int | None = None
        self.waiting: dict[str, int] = {}
        self.postponed: dict[str, int] = {}
        self.left_out: dict[str, int] = {}

    def key(self, probe: Probe) -> Key:
        """Of its account in the budget."""
        return self._player, probe.name

    def now(self, step: int) -> list[Probe]:
        """The probes to measure before this update; they wait until `taken`."""
        if step != self._looked:  # an update that did not come about is asked for again
            self._looked = step
            for probe in self._probes:
                if (probe.schedule or self._schedule)(step):
                    self._note(probe.name, step)
        due = [probe for probe in self._probes if probe.name in self.waiting]
        allowed = set(self._budget.allowed([self.key(probe) for probe in due])) if due else set()
        chosen = [probe for probe in due if self.key(probe) in allowed]
        chosen.sort(key=lambda probe: not probe.needs().density_vectors)  # others use the density: it is its own cost
        if len(chosen) < len(due):
            self._tell(next(probe for probe in due if probe not in chosen), step)
        return chosen

    def taken(self, probes: Sequence[Probe], step: int) -> dict[str, int]:
        """These are being measured: the steps at which they were due, where that is an earlier one."""
        due = {probe.name: self.waiting.pop(probe.name, step) for probe in probes}
        late = {name: at for name, at in due.items() if at < step}
        for name in late:
            self.postponed[name] = self.postponed.get(name, 0) + 1
        return late

    def close(self) -> None:
        """What still waits is not made any more."""
        for name in self.waiting:
            self.left_out[name] = self.left_out.get(name, 0) + 1
        self.waiting.clear()

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """What was postponed and left out, for the run's description."""
        return {"postponed": dict(self.postponed), "left_out": dict(self.left_out)}

    def state_dict(self) -> dict[str, Any]:
        """What waits, and the counts, for a checkpoint."""
        return {"due": dict(self.waiting), **self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.waiting, self.postponed = dict(state["due"]), dict(state["postponed"])
        self.left_out, self._looked = dict(state["left_out"]), None

    def _note(self, name: str, step: int) -> None:
        if name in self.waiting:
            self.left_out[name] = self.left_out.get(name, 0) + 1
        else:
            self.waiting[name] = step

    def _tell(self, probe: Probe, step: int) -> None:
        """Say once in a run that schedules are stretched."""
        budget = self._budget
        if budget.told or budget.share is None:
            return
        budget.told = True
        say(
            f"losscope: budget={budget.share:g} stretches the schedule: {probe.name!r} of {self._player!r} is due at "
            f"step {step} and waits, since {budget.spent:.3g} of {budget.total:.3g} s went to measuring so far; "
            "cost() of the run counts what is postponed"
        )
