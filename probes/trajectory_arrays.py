"""The trajectory of a run: reading back what probe `Trajectory` recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from losscope.landscape import RunError, SettingError
from losscope.landscape.surface import WeightSketch, WeightTrajectory, weight_trajectory

from .records import Record
from .run import Run

__all__ = ["Checkpoints", "chained", "checkpoints_of", "row_of", "sketch_of", "trajectory_of"]

PROBE = "trajectory"


def trajectory_of(run: Run, player: str | None = None, *, components: int = 2, most: int = 300) -> WeightTrajectory:
    """The path that probe `Trajectory` recorded: its principal components, lengths and angles.

    Where a run was resumed, or began its path anew, the last path.

    Args:
        run: a run with probe ``trajectory``.
        player: which player; default: the first.
        components: how many principal components.
        most: points to take, evenly chosen of those that there are, the first and the last among them: the work grows
            with their cube. Lengths and angles are those of the polyline through the chosen ones.

    Raises:
        RunError: if the run has no such player, nothing was recorded, or its arrays are gone.
        SettingError: if an argument means nothing.

    Example:
        >>> import torch
        >>> from losscope.probes import Trajectory, trajectory_of, watch
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> data, criterion = (torch.eye(2), torch.ones(2, 1)), torch.nn.MSELoss()
        >>> with watch(model, optimizer, data=data, criterion=criterion, every=1, probes=[Trajectory()]) as run:
        ...     for _ in range(5):
        ...         optimizer.zero_grad()
        ...         criterion(model(data[0]), data[1]).backward()
        ...         optimizer.step()
        >>> trajectory_of(run.run).steps
        tensor([0, 1, 2, 3, 4])
    """
    if isinstance(most, bool) or not isinstance(most, int) or most < 2:
        raise SettingError(f"most must be a whole number of at least 2, got {most!r}")
    records = chained(_recorded(run, player))
    if len(records) > most:
        records = [records[i] for i in np.linspace(0, len(records) - 1, most).round().astype(int)]
    rows, steps = [row_of(run, record) for record in records], [record.step for record in records]
    sketch = sketch_of(records[-1])
    known = {} if sketch is None else dict(_known(records))
    return weight_trajectory(rows, sketch=sketch, steps=steps, known=known, components=components)


class Checkpoints(Sequence[Tensor]):
    """Weights along a trajectory, loaded when they are asked for: vectors (n,) on the host.

    Attributes:
        steps: when each was.
    """

    def __init__(self, run: Run, records: Sequence[Record]) -> None:
        self.steps = [record.step for record in records]
        self._run, self._records = run, records

    def __len__(self) -> int:
        """How many."""
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        """One of them, or some."""
        if isinstance(index, slice):
            return Checkpoints(self._run, self._records[index])
        return torch.from_numpy(np.array(self._run.array(self._records[index], "weights")))


def checkpoints_of(run: Run, player: str | None = None) -> Checkpoints:
    """The weights along the trajectory, where they were recorded, for planes through it.

    They are recorded by ``Trajectory(checkpoints=True)``, and where they are few. One is in memory at a time:
    ``trajectory_axes(objective, checkpoints_of(run))``.

    Args:
        run: a run with probe ``trajectory``.
        player: which player; default: the first.

    Raises:
        RunError: if the run has no such player, or holds no weights.
    """
    records = [record for record in chained(_recorded(run, player)) if "weights" in record.arrays]
    if not records:
        raise RunError("the run holds no weights: record them with Trajectory(checkpoints=True), or load checkpoints")
    return Checkpoints(run, records)


def chained(records: Sequence[Record]) -> list[Record]:
    """The last path among records, ascending: each one names the step that it goes on from."""
    found, by_step = [], {record.step: record for record in records}
    record = records[-1] if records else None
    while record is not None:
        found.append(record)
        since = record.values.get("since")
        record = None if since is None or since >= record.step else by_step.get(int(since))
    return found[::-1]


def sketch_of(record: Record) -> WeightSketch | None:
    """What made the sketch that a record holds; None where it holds all weights."""
    size, dimension = record.values.get("size"), record.values.get("dimension")
    if size is None or dimension is None:
        raise RunError(f"the trajectory's record of step {record.step} does not say how many parameters there are")
    return WeightSketch(int(size), int(dimension)) if "sketch" in record.arrays else None


def row_of(run: Run, record: Record) -> Tensor:
    """The sketch of a point, or its weights."""
    return torch.from_numpy(np.array(run.array(record, "sketch" if "sketch" in record.arrays else "weights")))


def _known(records: Sequence[Record]) -> Iterator[tuple[tuple[int, int], float]]:
    """Distances that were measured exactly, between the points that are there."""
    for i, record in enumerate(records[1:], 1):
        said, values = record.value, record.values
        if values.get("start") == records[0].step and said is not None and record.low == record.high:
            yield (0, i), said
        step = values.get("displacement")
        beside = values.get("since") == records[i - 1].step
        if beside and step is not None and values.get("displacement_low") == values.get("displacement_high"):
            yield (i - 1, i), step


def _recorded(run: Run, player: str | None) -> list[Record]:
    records = [record for record in run.select(PROBE, player) if record.arrays]
    if not records:
        raise RunError("the run has no trajectory: add probe Trajectory()")
    return records
