"""What is carried from one measurement of a player to the next: where estimates start."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from losscope.landscape import Objective
from losscope.landscape.tracked_trace import TrackedTrace

from .checkpoint import Room, stored

__all__ = ["Memory"]


@dataclass
class Memory:
    """What is carried from one snapshot of a player to the next.

    Attributes:
        eigenvectors: (n, k) top eigenvectors at the last measurement and their guards, where the next one starts.
        bound_step: step of the last cold start, which is what bounds the sharpness from above.
        seen: (n, k) the same of the preconditioned Hessian, as directions of the parameters.
        seen_bound_step: of that.
        trace: the dominant subspace that the last trace has left for the next.
        critical_rate: that of the last update, where the search for the next begins.
        kept: what single probes keep, by their names.
    """

    eigenvectors: Tensor | None = None
    bound_step: int | None = None
    seen: Tensor | None = None
    seen_bound_step: int | None = None
    trace: TrackedTrace = field(default_factory=TrackedTrace)
    critical_rate: float | None = None
    kept: dict[str, Any] = field(default_factory=dict)

    def state_dict(self, room: Room) -> dict[str, Any]:
        """The warm starts of all probes, as far as there is room; what is left out begins afresh."""
        state: dict[str, Any] = {"critical_rate": self.critical_rate}
        for name, vectors, bound in (
            ("eigenvectors", self.eigenvectors, self.bound_step), ("seen", self.seen, self.seen_bound_step),
        ):  # fmt: skip
            if room.takes(vectors):
                state[name] = {"vectors": stored(vectors), "bound_step": bound}
        if room.takes((self.trace.basis, self.trace.leading)):
            state["trace"] = {"basis": stored(self.trace.basis), "leading": stored(self.trace.leading)}
        return state

    def load_state_dict(self, state: dict[str, Any], objective: Objective) -> None:
        """Take up what `state_dict` gave, on the objective's device."""

        def here(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(objective.space.device, objective.space.dtype)

        self.critical_rate = state["critical_rate"]
        if found := state.get("eigenvectors"):
            self.eigenvectors, self.bound_step = here(found["vectors"]), found["bound_step"]
        if found := state.get("seen"):
            self.seen, self.seen_bound_step = here(found["vectors"]), found["bound_step"]
        if found := state.get("trace"):
            self.trace.basis, self.trace.leading = here(found["basis"]), here(found["leading"])
