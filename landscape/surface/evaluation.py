"""Loss and metrics at many points: what lines, planes, refinement and paths are evaluated by."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..errors import SettingError
from ..interrupts import interrupts_held
from ..objective import Objective
from .batched_points import Batched
from .carried import with_buffers_of
from .engine import Engine
from .metrics import Measured, Metrics, measured
from .one_by_one import OneByOne
from .points import Point, parameters_at
from .progress import Progress, progressing
from .results import Axis
from .span import Span, span_of
from .store import PointStore, asked_of

__all__ = ["Evaluator", "Store", "evaluate", "evaluate_at"]

_BLOCK_SECONDS = 1.0  # of work between two visits to the store and the progress bar
_FIRST_BLOCK = 16
_LARGEST_BLOCK = 4096


class Store(Protocol):
    """Where evaluated points are kept, so that what was interrupted can be resumed."""

    def read(self, coordinates: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Which of the points (G, k) are known, (G,) bool, and their values by name, (G,) float64 each."""

    def write(self, coordinates: Tensor, values: Mapping[str, Tensor]) -> None:
        """Keep the values (G,) of the points (G, k)."""


class Evaluator:
    r"""Loss and metrics at points :math:`\theta_0 + \sum_i c_i d_i`, by one engine for all calls.

    The point with all coordinates 0 is always evaluated by the plain forward pass, and its loss is
    `Objective.value` there to the bit. The others are evaluated one by one or, where that is measured to be faster
    and agrees to 1e-5, several at once by `torch.func.vmap`. The model is not touched: its parameters are exchanged by
    reference, and put back whatever happens.

    Args:
        objective: the loss.
        origin: the point with coordinates 0; None for where the model is, of which then no copy is made.
        axes: k directions, each an `Axis` or a vector (n,).
        metrics: what to measure besides the loss: ``"accuracy"``, a function ``(outputs, targets) -> scalar`` (a mean
            over samples), another `Objective` of the same model (the loss on test data), or several of them in a list
            or in a mapping from names. Weighted over batches as the loss is.
        statistics: how normalisation layers take their statistics at a point: "kept", "recomputed" or "frozen";
            see `statistics_at`. "kept" are those that the origin brings along (a vector brings none), and else the
            model's own. Recomputed ones come from the data of ``objective``, for other objectives too.
        engine: ``"auto"``, ``"one by one"`` or ``"batched"``.
        chunk: points at a time; by default found out, within a quarter of a GPU's free memory or 256 MiB.
        progress: whether to show a bar.
        store: where values are kept and looked up: a `PointStore`, or a file to make one of, so that what was
            interrupted goes on there.

    Attributes:
        objective: the loss.
        axes: the directions.
        evaluations: points evaluated so far, each a pass over the data.
        seconds: time that took.

    Raises:
        SettingError: for settings that mean nothing.
        ParameterError: if origin or axes do not fit the model.
    """

    def __init__(
        self,
        objective: Objective,
        origin: Point = None,
        axes: Sequence[Axis | Tensor] = (),
        *,
        metrics: Metrics = None,
        statistics: str = "kept",
        engine: str = "auto",
        chunk: int | None = None,
        progress: bool = False,
        store: Store | str | Path | None = None,
    ) -> None:
        self.objective, self.axes, self._origin = objective, _named(axes), origin
        self.span = span_of(objective, origin, self.axes)
        self._passes = [_Pass(m, self.span, statistics, objective, engine, chunk) for m in measured(objective, metrics)]
        self._progress = progress
        self._store: Store | None = None
        self.evaluations, self.seconds = 0, 0.0
        if isinstance(store, str | os.PathLike):
            with with_buffers_of(objective, origin):
                asked = asked_of(objective, origin, self.axes, statistics=statistics, center=self.center)
            self._store = PointStore(store, asked, self.names)
        elif store is None or (hasattr(store, "read") and hasattr(store, "write")):
            self._store = store
        else:
            raise SettingError(f"resume must be a file's path, got {store!r}")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the values, ``"loss"`` first."""
        return tuple(name for each in self._passes for name in each.measured.names)

    @property
    def engine(self) -> str:
        """What evaluates the points of the loss, and why."""
        return self._passes[0].engine.name

    @property
    def note(self) -> str:
        """What is to be known of the values: how statistics are taken, the loss at the origin; mostly empty."""
        plain = self._passes[0].plain
        found = [plain.note] if plain.statistics != "kept" else []
        center = self.center["loss"]
        return "; ".join([*found, *([] if math.isfinite(center) else [f"the loss is {center} at the centre"])])

    @property
    def center(self) -> dict[str, float]:
        """The values at the origin, by the plain forward pass."""
        started = time.perf_counter()
        with interrupts_held(), with_buffers_of(self.objective, self._origin):
            found = torch.cat([each.center() for each in self._passes])
        self.seconds += time.perf_counter() - started
        return dict(zip(self.names, found.tolist(), strict=True))

    def __call__(self, coordinates: Tensor) -> dict[str, Tensor]:
        """The values at points.

        Args:
            coordinates: (G, k).

        Returns:
            (G,) float64 on the host per name; NaN or infinite where the model says so.

        Raises:
            SettingError: if the coordinates are not (G, k), or not finite.
            LossError: if the loss or a metric is not a scalar.
        """
        C = _checked(coordinates, len(self.span.axes))
        found = torch.full((len(C), len(self.names)), torch.nan, dtype=torch.float64)
        todo = torch.ones(len(C), dtype=torch.bool)
        if self._store is not None:
            known, values = self._store.read(C)
            todo = ~known
            for column, name in enumerate(self.names):
                found[known, column] = values[name][known].double()
                found[known & ~C.any(dim=1), column] = self.center[name]  # to the bit, also from another machine
        with Progress(len(C), int((~todo).sum()), shown=self._progress) as bar:
            for block in self._blocks(torch.nonzero(todo).flatten()):
                with interrupts_held():
                    found[block] = self._block(C[block])
                    if self._store is not None:
                        self._store.write(C[block], dict(zip(self.names, found[block].T, strict=True)))
                bar.update(len(block))
        return dict(zip(self.names, found.T.contiguous(), strict=True))

    def at(self, point: Point, name: str = "the point") -> Tensor:
        """The values at any point, (m,) float64 on the host, by the plain forward pass; ``name`` is for errors."""
        vector = parameters_at(self.objective, point, name)
        with interrupts_held(), with_buffers_of(self.objective, point):
            return torch.cat([each.plain.at(vector) for each in self._passes])

    def _blocks(self, indices: Tensor) -> Iterable[Tensor]:
        """About a second's work at a time."""
        size = _FIRST_BLOCK
        while len(indices):
            before = self.seconds
            block, indices = indices[:size], indices[size:]
            yield block
            each = (self.seconds - before) / len(block)
            size = max(1, min(_LARGEST_BLOCK, 8 * size, int(_BLOCK_SECONDS / max(each, 1e-9))))

    def _block(self, C: Tensor) -> Tensor:
        started = time.perf_counter()
        with with_buffers_of(self.objective, self._origin):
            found = torch.cat([each(C) for each in self._passes], dim=1)
        self.evaluations += len(C)
        self.seconds += time.perf_counter() - started
        return found


class _Pass:
    """One objective's data, with what is measured of it."""

    def __init__(
        self, measured: Measured, span: Span, statistics: str, source: Objective, engine: str, chunk: int | None
    ) -> None:
        self.measured = measured
        self.plain = OneByOne(measured, span, statistics, source)
        refused = _why_alone(measured.objective, self.plain.statistics)
        batched = None if refused else Batched(measured, span, self.plain.statistics)
        self.engine = Engine(self.plain, batched, engine, chunk, refused)
        self._center: Tensor | None = None

    def center(self) -> Tensor:
        """(m,) float64 on the host."""
        if self._center is None:
            self._center = self.plain.center()
            self.plain.spare_gradients(self._center)
        return self._center

    def __call__(self, C: Tensor) -> Tensor:
        """(G, m) float64 on the host."""
        center, away = self.center(), C.any(dim=1)
        found = center.repeat(len(C), 1)
        if bool(away.any()):
            found[away] = self.engine(C[away])
        return found


def evaluate(
    objective: Objective,
    origin: Point,
    axes: Sequence[Axis | Tensor],
    coordinates: Tensor,
    *,
    metrics: Metrics = None,
    statistics: str = "kept",
    engine: str = "auto",
    chunk: int | None = None,
    progress: bool = False,
    store: Store | str | Path | None = None,
) -> dict[str, Tensor]:
    """Loss and metrics at ``origin + sum_i c_i axis_i``; see `Evaluator`, which also says how.

    Args:
        objective: the loss.
        origin: the point with coordinates 0; None for where the model is.
        axes: k directions, each an `Axis` or a vector (n,).
        coordinates: (G, k).
        metrics: what to measure besides the loss.
        statistics: how normalisation layers take their statistics: "kept", "recomputed" or "frozen".
        engine: ``"auto"``, ``"one by one"`` or ``"batched"``.
        chunk: points at a time.
        progress: whether to show a bar.
        store: a file, or a `PointStore`, where values are kept and looked up.

    Returns:
        (G,) float64 on the host per name, ``"loss"`` first.

    Raises:
        SettingError: for settings that mean nothing.
        ParameterError: if origin or axes do not fit the model.
        LossError: if the loss or a metric is not a scalar.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import evaluate
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, (torch.eye(2), torch.zeros(2, 1)), criterion=torch.nn.MSELoss())
        >>> evaluate(objective, torch.zeros(2), [torch.tensor([1.0, 1.0])], torch.tensor([[0.0], [2.0]]))
        {'loss': tensor([0., 4.], dtype=torch.float64)}
    """
    evaluator = Evaluator(
        objective, origin, axes, metrics=metrics, statistics=statistics, engine=engine, chunk=chunk,
        progress=progress, store=store,
    )  # fmt: skip
    return evaluator(coordinates)


def evaluate_at(
    objective: Objective,
    points: Iterable[Point],
    *,
    metrics: Metrics = None,
    statistics: str = "kept",
    progress: bool = False,
) -> dict[str, Tensor]:
    """Loss and metrics at any points, by the plain forward pass, with one of them in memory at a time.

    Args:
        objective: the loss.
        points: vectors (n,), state dicts, modules, or None for where the model is; may be a generator.
        metrics: what to measure besides the loss, as in `Evaluator`.
        statistics: how normalisation layers take their statistics: "kept", "recomputed" or "frozen". "kept" are those
            that each point brings along (a vector brings none), and else the model's own.
        progress: whether to show a bar.

    Returns:
        (G,) float64 on the host per name, ``"loss"`` first.

    Raises:
        SettingError: for settings that mean nothing.
        ParameterError: if a point does not fit the model; it is called by its number, from 0.
        LossError: if the loss or a metric is not a scalar.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import evaluate_at
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, (torch.eye(2), torch.zeros(2, 1)), criterion=torch.nn.MSELoss())
        >>> evaluate_at(objective, [torch.zeros(2), {"weight": torch.full((1, 2), 2.0)}])
        {'loss': tensor([0., 4.], dtype=torch.float64)}
    """
    evaluator = Evaluator(objective, metrics=metrics, statistics=statistics)
    rows = []
    for number, point in enumerate(progressing(points, shown=progress)):
        rows.append(evaluator.at(point, f"point {number}"))
    found = torch.stack(rows) if rows else torch.empty(0, len(evaluator.names), dtype=torch.float64)
    return dict(zip(evaluator.names, found.T.contiguous(), strict=True))


def _why_alone(objective: Objective, statistics: str) -> str:
    """Why points cannot be evaluated together; empty where they may be.

    Losses in half precision are so few that three points agree by chance, however the rest differ.
    """
    if statistics == "recomputed":
        return "statistics are recomputed at each point"
    held = (p for module in (objective.model, *objective.also) for p in module.parameters())
    single = torch.finfo(torch.float32).eps
    coarse = next((p.dtype for p in held if p.is_floating_point() and torch.finfo(p.dtype).eps > single), None)
    return "" if coarse is None else f"with weights in {str(coarse).removeprefix('torch.')} rounding would differ"


def _named(axes: Sequence[Axis | Tensor]) -> tuple[Axis, ...]:
    return tuple(axis if isinstance(axis, Axis) else Axis(axis, f"axis {i}") for i, axis in enumerate(axes, start=1))


def _checked(coordinates: Tensor, axes: int) -> Tensor:
    C = torch.as_tensor(coordinates).detach().to("cpu", torch.float64)
    if C.ndim != 2 or C.shape[1] != axes:
        raise SettingError(f"coordinates must be (points, {axes}), one column per axis; got shape {tuple(C.shape)}")
    if not bool(torch.isfinite(C).all()):
        raise SettingError("coordinates must be finite")
    return C
