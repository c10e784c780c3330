"""What is carried from one measurement of a player to the next: where estimates start."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from losscope.landscape import Objective
from losscope.landscape.tracked_pair import TrackedPair
from losscope.landscape.tracked_trace import TrackedTrace

from .checkpoint import Room, stored

__all__ = ["Memory"]


@dataclass
class Memory:
    """What is carried from one snapshot of a player to the next.

    Attributes:
        pairs: what is known of the top eigenvectors since the last measurement, where the next one starts.
        bound_step: step of the last cold start, which is what bounds the sharpness from above.
        seen: the same of the preconditioned Hessian.
        seen_bound_step: of that.
        seen_step: step of the measurement that ``seen`` is of; None where its preconditioner was still being made.
        trace: the dominant subspace that the last trace has left for the next.
        critical_rate: that of the last update, where the search for the next begins.
        kept: what single probes keep, by their names.
    """

    pairs: TrackedPair | None = None
    bound_step: int | None = None
    seen: TrackedPair | None = None
    seen_bound_step: int | None = None
    seen_step: int | None = None
    trace: TrackedTrace = field(default_factory=TrackedTrace)
    critical_rate: float | None = None
    kept: dict[str, Any] = field(default_factory=dict)

    def beside(self) -> Memory:
        """The same for weights beside those of the last measurement: its eigenvectors themselves are expected there.

        Not where they would be after as many steps as lie between measurements; nor is it the place to look for others.
        """
        return replace(self, pairs=_at_rest(self.pairs), seen=_at_rest(self.seen))

    def state_dict(self, room: Room) -> dict[str, Any]:
        """The warm starts of all probes, as far as there is room; what is left out begins afresh."""
        state: dict[str, Any] = {"critical_rate": self.critical_rate}
        for name, known, bound in (("pairs", self.pairs, self.bound_step), ("seen", self.seen, self.seen_bound_step)):
            if known is not None and (content := _as_much_as_fits(known, room)) is not None:
                state[name] = content | {"bound_step": bound}
                if name == "seen":
                    state[name]["step"] = self.seen_step
        if room.takes((self.trace.basis, self.trace.leading)):
            trace = {"basis": stored(self.trace.basis), "leading": stored(self.trace.leading)}
            state["trace"] = trace | {"seen": None if self.trace.seen is None else list(self.trace.seen)}
        return state

    def load_state_dict(self, state: dict[str, Any], objective: Objective) -> None:
        """Take up what `state_dict` gave, on the objective's device."""

        def here(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(objective.space.device, objective.space.dtype)

        self.critical_rate = state["critical_rate"]

        def known(found: dict[str, Any]) -> TrackedPair:
            vectors, values = found["vectors"].to(objective.space.device, objective.space.dtype), found["values"]
            return TrackedPair(
                vectors, np.array(values), here(found["before"]), tuple(found["came_true"]), found["since"]
            )

        if found := state.get("pairs"):
            self.pairs, self.bound_step = known(found), found["bound_step"]
        if found := state.get("seen"):
            self.seen, self.seen_bound_step = known(found), found["bound_step"]
            self.seen_step = found.get("step")
        if found := state.get("trace"):
            self.trace.basis, self.trace.leading = here(found["basis"]), here(found["leading"])
            self.trace.seen = tuple(found["seen"]) if found.get("seen") else None


def _at_rest(known: TrackedPair | None) -> TrackedPair | None:
    return None if known is None else replace(known, before=None, since=0)


def _as_much_as_fits(known: TrackedPair, room: Room) -> dict[str, Any] | None:
    """What is known of eigenvectors, or of the first one only; None where there is no room for it either."""
    for count, before in ((len(known.values), known.before), (1, None)):
        if room.takes((known.vectors[:, :count], before)):
            return {
                "vectors": stored(known.vectors[:, :count]), "values": known.values[:count].tolist(),
                "before": stored(before), "came_true": [*map(float, known.came_true)], "since": known.since,
            }  # fmt: skip
    return None
