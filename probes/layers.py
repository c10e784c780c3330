"""The trace of every layer's own curvature over training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from losscope.landscape import BlockDiagonal, Objective
from losscope.landscape.layer_traces import TrackedLayerTraces

from .checkpoint import Room, stored
from .memory import Memory
from .probe import Measurement, Probe
from .snapshot import Snapshot

__all__ = ["LayerTraces"]


class LayerTraces(Probe):
    """The trace of each layer's diagonal block of the Hessian, ``value`` that of the whole, with 95 % intervals.

    A measurement takes ``vectors + rank`` products with the whole Hessian, however many layers there are, and the first
    one ``rank`` more; see `losscope.landscape.layer_traces`. ``values`` holds of every layer, in the model's order, its
    trace as ``"conv1/trace"``, with ``_low`` and ``_high``, and its number of parameters as ``"conv1/size"``. Each
    interval holds by itself; their errors are not independent.

    Args:
        groups: names and selections of parameters, disjoint, as ``{"body": "layers.*", "head": model.head}``; default:
            every module that has parameters of its own.
        vectors: samples, 4 at least.
        rank: directions of large curvature that are followed from one measurement to the next and taken out.
        every: when; None follows `watch`.

    Raises:
        SettingError: if an argument means nothing.
    """

    name = "layer_traces"
    data_parallel = True

    def __init__(
        self, groups: Mapping[str, Any] | None = None, *, vectors: int = 16, rank: int = 8, every: Any = None
    ) -> None:
        super().__init__(every)
        TrackedLayerTraces(rank, vectors)  # refuses what means nothing
        self.groups, self.vectors, self.rank = groups, vectors, rank

    def measure(self, snapshot: Snapshot) -> Measurement:
        """Every layer's trace, and all parameters'."""
        blocks = BlockDiagonal(snapshot.hessian, self.groups)
        found = self._tracked(snapshot.memory).measure(blocks, seed=snapshot._seed_of(self.name))
        whole = found.pop("")
        values: dict[str, float | None] = {"loss": snapshot.loss}
        for (layer, estimate), block in zip(found.items(), blocks.blocks.values(), strict=True):
            values |= {
                f"{layer}/trace": estimate.value,
                f"{layer}/trace_low": estimate.low,
                f"{layer}/trace_high": estimate.high,
                f"{layer}/size": float(block.space.size),
            }
        return Measurement(whole.value, whole.low, whole.high, "curvature", whole.kernel, whole.note or None, values)

    def state_dict(self, memory: Memory, room: Room) -> dict[str, Any] | None:
        """The directions that are followed."""
        basis = self._tracked(memory).basis
        return {"basis": stored(basis)} if basis is not None and room.takes(basis) else None

    def load_state_dict(self, state: dict[str, Any], memory: Memory, objective: Objective) -> None:
        """Go on following them."""
        self._tracked(memory).basis = state["basis"].to(objective.space.device, objective.space.dtype)

    def _tracked(self, memory: Memory) -> TrackedLayerTraces:
        found = memory.kept.setdefault(self.name, TrackedLayerTraces(self.rank, self.vectors))
        assert isinstance(found, TrackedLayerTraces)
        return found
