"""The path of the weights through parameter space over training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from losscope.landscape import NonFiniteError, RunError, SettingError
from losscope.landscape.complex_parts import as_real
from losscope.landscape.surface import WeightSketch, WeightTrajectory, weight_trajectory
from losscope.landscape.surface.weight_sketch import squared_distance

from .checkpoint import Room, stored
from .memory import Memory
from .probe import Measurement, Probe
from .snapshot import Snapshot
from .trajectory_arrays import chained, row_of, sketch_of

if TYPE_CHECKING:
    from losscope.landscape import Objective

    from .run import Run

__all__ = ["Trajectory"]

CONFIDENCE = 0.95
_ERRORS = 1.96  # standard errors on each side of a value


@dataclass(frozen=True, eq=False)
class _Point:
    """One recorded point.

    Attributes:
        step: when.
        row: its weights, or their sketch, on the host.
        length: of the polyline up to it.
        length_error: its standard error.
        weights: a copy of the parameters where they live; None where none is kept.
    """

    step: int
    row: Tensor
    length: float = 0.0
    length_error: float = 0.0
    weights: Sequence[Tensor] | None = None


@dataclass(eq=False)
class _Kept:
    """What one player's measurements are compared with.

    Attributes:
        sketch: what is recorded of the weights; None for all of them.
        points: the first one recorded and the last two, ascending.
        known: distances between them that were measured exactly, by their steps.
    """

    sketch: WeightSketch | None
    points: list[_Point] = field(default_factory=list)
    known: dict[tuple[int, int], float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Earlier:
    """Where a resumed run finds its points, once it is known at which step it goes on."""

    run: Run
    player: str


class Trajectory(Probe):
    r"""The path of the weights, ``value`` its distance from the first point recorded.

    Recorded are the weights themselves where they are few, else a linear sketch of them, from which
    `losscope.probes.trajectory_of` makes the path's principal components. ``values`` holds the length of the polyline
    through the recorded points (``path_length``: the weights' own path between them is longer), the last
    ``displacement`` and the cosine between it and the one before (``cosine``), each with its interval where the sketch
    leaves one; the ``norm`` of the weights; the length of the optimizer's ``update`` where hooks drive; and ``since``,
    the step of the point before. Where the parameters that train are others than before, or a resumed run records
    otherwise than it did, the path begins anew (``start``).

    A measurement costs a few passes over the parameters, and neither a gradient nor a pass over the data.

    Args:
        dimension: numbers in the sketch; None for 5000, with which a length is known to 1 % without copies.
        exact: whether to record all weights, once per measurement in full; None where they are no more than
            ``dimension``.
        copies: whether to keep two copies of the parameters beside the sketch, the first and the last recorded ones:
            they make all distances exact, and what is computed from the sketches several times as accurate. A resumed
            run has them from `Watch.state_dict`, or where weights were recorded; without them its distances from the
            start have intervals.
        checkpoints: whether to record all weights beside the sketch, as array ``"weights"``, for planes through the
            trajectory's components.
        every: when; None follows `watch`.

    Raises:
        SettingError: if an argument means nothing.
    """

    name = "trajectory"
    data_parallel = True
    evaluates = False

    def __init__(
        self, dimension: int | None = None, *, exact: bool | None = None, copies: bool = True,
        checkpoints: bool = False, every: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(every)
        if dimension is not None and (isinstance(dimension, bool) or not isinstance(dimension, int) or dimension < 8):
            raise SettingError(f"dimension must be a whole number of at least 8, or None; got {dimension!r}")
        for name, value in (("exact", exact), ("copies", copies), ("checkpoints", checkpoints)):
            if not isinstance(value, bool) and (value is not None or name != "exact"):
                raise SettingError(f"{name} must be True or False, got {value!r}")
        self.dimension, self.exact, self.copies, self.checkpoints = dimension, exact, copies, checkpoints

    def measure(self, snapshot: Snapshot) -> Measurement:
        """Where the weights are, and how they came there.

        Raises:
            NonFiniteError: if a weight is NaN or infinite.
        """
        space = snapshot.objective.space
        weights = [as_real(p.detach()) for p in snapshot.objective.parameters.values()]
        norm = math.sqrt(squared_distance(weights))
        if not math.isfinite(norm):
            raise NonFiniteError("a weight is NaN or infinite")
        kept = self._kept(snapshot)
        arrays: dict[str, Tensor] = {}
        if kept.sketch is not None:
            arrays["sketch"] = kept.sketch(weights)
        if kept.sketch is None or self.checkpoints:
            arrays["weights"] = space.flatten(weights).to("cpu", copy=True)
        values: dict[str, float | None] = {
            "norm": norm,
            "size": float(space.size),
            "dimension": float(space.size if kept.sketch is None else kept.sketch.dimension),
            "update": _length(snapshot.update),
        }
        now = _Point(snapshot.step, arrays["weights"] if kept.sketch is None else arrays["sketch"])
        values |= self._place(kept, now, weights)
        distance, low, high = (values.pop(name) for name in ("distance", "distance_low", "distance_high"))
        stored = {name: array.numpy() for name, array in arrays.items()}
        return Measurement(distance, low, high, "length", values=values, arrays=stored)

    def _place(self, kept: _Kept, now: _Point, weights: Sequence[Tensor]) -> dict[str, float | None]:
        """Add a point to those that are kept, and tell what it adds to the path."""
        points = [point for point in kept.points if point.step < now.step]  # one that is made again replaces the first
        for point in points:
            if point.weights is not None:
                kept.known[point.step, now.step] = math.sqrt(squared_distance(point.weights, weights))
        found = _path([*points, now], kept)
        values: dict[str, float | None] = {
            "start": float((points or [now])[0].step),
            "since": float(points[-1].step) if points else None,
            "confidence": CONFIDENCE,
        }
        values |= _interval("distance", found.distances[-1], found.distance_errors[-1])
        length, error = 0.0, 0.0
        if points:
            last = _path([points[-1], now], kept)
            step, step_error = float(last.lengths[-1]), float(last.length_errors[-1])
            length, error = points[-1].length + step, points[-1].length_error + step_error
            values |= _interval("displacement", step, step_error)
        values |= _interval("path_length", length, error)
        if len(points) > 1:
            values |= _interval("cosine", found.cosines[-1], found.cosine_errors[-1], -1.0, 1.0)
        copied = [w.clone() for w in weights] if self.copies and kept.sketch is not None else None
        now = replace(now, length=length, length_error=error, weights=copied)
        if len(points) > 1:
            points = [points[0], replace(points[-1], weights=None)]
        kept.points = [*points, now]
        steps = {point.step for point in kept.points}
        kept.known = {pair: distance for pair, distance in kept.known.items() if steps.issuperset(pair)}
        return values

    # ------------------------------------------------------------------ what it begins with

    def recall(self, run: Run, player: str, memory: Memory) -> None:
        """Go on with the path of an earlier part of this run."""
        memory.kept[self.name] = _Earlier(run, player)

    def state_dict(self, memory: Memory, room: Room) -> dict[str, Any] | None:
        """The points that the next one is compared with; their copies of the parameters while there is room."""
        kept = memory.kept.get(self.name)
        if not isinstance(kept, _Kept) or not room.takes([point.row for point in kept.points]):
            return None
        points = []
        for point in kept.points:
            weights = None if point.weights is None or not room.takes(point.weights) else [*map(stored, point.weights)]
            points.append((point.step, stored(point.row), point.length, point.length_error, weights))
        known = [(*steps, distance) for steps, distance in kept.known.items()]
        return {"sketch": kept.sketch and astuple(kept.sketch), "points": points, "known": known}

    def load_state_dict(self, state: dict[str, Any], memory: Memory, objective: Objective) -> None:
        """Go on with the path, if it was recorded as this probe does."""
        sketch = self._sketch(objective.space.size)
        if state["sketch"] != (sketch and astuple(sketch)):
            return
        points = []
        for step, row, length, error, weights in state["points"]:
            here = None if weights is None or not self.copies else [w.to(objective.space.device) for w in weights]
            points.append(_Point(step, row.cpu(), length, error, here))
        known = {(first, second): distance for first, second, distance in state["known"]}
        memory.kept[self.name] = _Kept(sketch, points, known)

    def _kept(self, snapshot: Snapshot) -> _Kept:
        kept = snapshot.memory.kept.get(self.name)
        if not isinstance(kept, _Kept):
            sketch = self._sketch(snapshot.objective.space.size)
            points: list[_Point] = []
            if isinstance(kept, _Earlier):
                with contextlib.suppress(RunError):  # arrays that are gone: the path begins anew
                    points = self._resumed(kept, sketch, snapshot)
            kept = snapshot.memory.kept[self.name] = _Kept(sketch, points)
        return kept

    def _sketch(self, size: int) -> WeightSketch | None:
        dimension = min(self.dimension or WeightSketch.dimension, size)
        exact = self.exact if self.exact is not None else size <= dimension
        return None if exact else WeightSketch(size, dimension)

    def _resumed(self, earlier: _Earlier, sketch: WeightSketch | None, snapshot: Snapshot) -> list[_Point]:
        """The first and the last two points before this step, if they were recorded as this probe does."""
        run, space = earlier.run, snapshot.objective.space
        records = chained([r for r in run.select(self.name, earlier.player) if r.step < snapshot.step])
        if not records or sketch_of(records[-1]) != sketch or records[-1].values.get("size") != space.size:
            return []
        wanted = {records[0].step, *(record.step for record in records[-2:])}
        copied = {records[0].step, records[-1].step} if self.copies and sketch is not None else set()
        points = []
        for record in (record for record in records if record.step in wanted):
            weights = None
            if record.step in copied and "weights" in record.arrays:
                whole = torch.from_numpy(np.array(run.array(record, "weights")))
                weights = space.unflatten(whole.to(space.device, space.dtype))
            length, high = (record.values.get(name) or 0.0 for name in ("path_length", "path_length_high"))
            points.append(_Point(record.step, row_of(run, record), length, (high - length) / _ERRORS, weights))
        return points


def _path(points: Sequence[_Point], kept: _Kept) -> WeightTrajectory:
    steps = [point.step for point in points]
    known = {
        (steps.index(first), steps.index(second)): distance
        for (first, second), distance in kept.known.items()
        if first in steps and second in steps
    }
    return weight_trajectory([p.row for p in points], sketch=kept.sketch, steps=steps, known=known, components=1)


def _interval(
    name: str, value: Tensor | float, error: Tensor | float, least: float = 0.0, most: float = math.inf
) -> dict[str, float | None]:
    """A value and its interval; nothing for what is not defined."""
    number, half = float(value), _ERRORS * float(error)
    if not math.isfinite(number):
        return {name: None}
    return {name: number, f"{name}_low": max(least, number - half), f"{name}_high": min(most, number + half)}


def _length(update: Tensor | None) -> float | None:
    return None if update is None else math.sqrt(squared_distance([update]))
