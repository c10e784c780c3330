"""The loss over a plane: through where the model is, through three points, or along a trajectory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import SettingError
from ..objective import Objective
from .axes import checked_axes
from .batch_statistics import resolved_statistics
from .carried import Carried
from .checks import check_names
from .directions import between
from .evaluation import Evaluator
from .metrics import Metrics
from .points import Point, parameters_at
from .refinement import refine_plane
from .results import Axis, Plane
from .slices import (
    Direction,
    Grid,
    axes_along,
    check_settings,
    grid,
    last_of,
    notes,
    pair,
    placed,
    projected,
    second_order,
)
from .trajectory_pca import trajectory_axes

__all__ = ["plane", "plane_through"]

_MARGIN = 0.25  # of their extent, around points
Span = tuple[float, float]


def plane(
    objective: Objective,
    directions: tuple[Direction, Direction] | None = None,
    *,
    span: Span | tuple[Span, Span] | None = None,
    points: Grid | tuple[Grid, Grid] = 51,
    normalise: str | None = "filter",
    metrics: Metrics = None,
    statistics: str = "kept",
    model: bool = True,
    refine: int = 0,
    engine: str = "auto",
    chunk: int | None = None,
    progress: bool = False,
    resume: str | Path | None = None,
    seed: int | torch.Generator | None = 0,
    trajectory: Iterable[Point] | None = None,
) -> Plane:
    r"""Loss and metrics over two directions from where the model is, :math:`L(\theta + x d_1 + y d_2)`.

    The model is not touched, whatever happens. At (0, 0), which is put on the grid if it is not there, the loss is that
    of the plain forward pass, to the bit `Objective.value` (with statistics that are not kept, its value within
    `statistics_at`). Not-finite values are kept as such.

    Args:
        objective: the loss.
        directions: two of ``"random"``, ``"gradient"``, ``"eigenvector"`` (twice: the top two), an `Axis`, a vector
            (n,), or a module or state dict to go to, which is then at 1. Not made orthogonal: see `orthogonalised`,
            and `Plane.gram`. By default two random ones, or with a trajectory its two principal axes.
        span: first and last coordinate along both, or a pair of these. By default (-1, 1), or a quarter more than the
            trajectory extends.
        points: how many along each, evenly spaced; or a pair, each a number or the coordinates. At least 2.
        normalise: scaling of random directions: ``"filter"`` (Li et al. 2018, arXiv 1712.09913), ``"layer"``,
            ``"parameter"``, or None for length 1.
        metrics: what to measure besides the loss: ``"accuracy"``, a function ``(outputs, targets) -> scalar`` (a mean
            over samples), another `Objective` of the same model (the loss on test data), or several of them in a list
            or in a mapping from names. Weighted over batches as the loss is.
        statistics: how normalisation layers take their statistics: "kept", "recomputed" or "frozen"; see
            `statistics_at`.
        model: whether to add the quadratic model at the centre (`quadratic_model`).
        refine: how many further points to spend where the loss is steep (`refine_plane`).
        engine: ``"one by one"``, ``"batched"``, or ``"auto"`` for what is measured to be faster here (see `Evaluator`).
        chunk: points evaluated together; by default found out.
        progress: whether to show a bar.
        resume: a file that evaluated points are kept in, so that what was interrupted goes on there.
        seed: of random directions.
        trajectory: recorded weights in order, each a module, a state dict or a vector (n,), one of them in memory at a
            time if they are read from files; they are projected into the plane, the centre of which is the last of
            them (`trajectory_axes`), with the statistics of normalisation layers that it brings along.

    Raises:
        SettingError: for options that mean nothing, and directions that are zero or parallel.
        ParameterError: if a direction is of another architecture.
        LossError: if the loss or a metric is not a scalar.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective, plane
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.zero_()
        >>> objective = Objective(model, (torch.eye(2), torch.zeros(2, 1)), criterion=torch.nn.MSELoss())
        >>> plane(objective, (torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])), points=3).loss  # (4 x^2 + y^2) / 2
        tensor([[2.5000, 0.5000, 2.5000],
                [2.0000, 0.0000, 2.0000],
                [2.5000, 0.5000, 2.5000]], dtype=torch.float64)
    """
    check_settings(refine, seed)
    trajectory = _several(trajectory)
    center = None if trajectory is None else _last(objective, trajectory)
    path = trajectory_axes(objective, trajectory) if trajectory is not None and directions is None else None
    with placed(objective, center, "the last point"):
        axes = axes_along(objective, _two(directions) if path is None else path.axes, normalise, seed)
    if trajectory is not None and path is None:
        path = projected(objective, trajectory, axes)
    xs, ys = ((-1.0, 1.0), (-1.0, 1.0)) if path is None else map(_around, path.coordinates.T.tolist())
    if span is not None:
        xs, ys = _spans(span)
    across, along = pair(points)
    with placed(objective, center, "the last point"):
        evaluator = Evaluator(
            objective, None, axes, metrics=metrics, statistics=statistics, engine=engine, chunk=chunk,
            progress=progress, store=resume,
        )  # fmt: skip
        found = _drawn(evaluator, (grid(across, xs), grid(along, ys)), {}, statistics, refine, model, seed)
    return found if path is None else replace(found, trajectory=path.coordinates, explained=path.explained)


def plane_through(
    objective: Objective,
    first: Point,
    second: Point,
    third: Point,
    *,
    span: Span | tuple[Span, Span] | None = None,
    points: Grid | tuple[Grid, Grid] = 51,
    metrics: Metrics = None,
    statistics: str = "recomputed",
    model: bool = True,
    refine: int = 0,
    engine: str = "auto",
    chunk: int | None = None,
    progress: bool = False,
    resume: str | Path | None = None,
    seed: int | torch.Generator | None = 0,
    names: tuple[str, str, str] = ("first", "second", "third"),
) -> Plane:
    """Loss and metrics over the plane through three points (Garipov et al. 2018, arXiv 1802.10026, appendix).

    The axes are at right angles and of one length, that from the first point to the second, so that the plane is seen
    without distortion: the first is at (0, 0), the second at (1, 0). The coordinates of all three are on the grid.

    Args:
        objective: the loss; its model is left as it is.
        first: None for where the model is, a module, a state dict or a vector (n,); it is the centre.
        second: the same.
        third: the same.
        span: first and last coordinate along both, or a pair of these. By default a quarter more than the
            points extend, to all sides.
        points: how many along each, evenly spaced; or a pair, each a number or the coordinates. At least 2.
        metrics: what to measure besides the loss, as in `plane`.
        statistics: how normalisation layers take their statistics. By default "recomputed" at each point, since those
            of one are not those of another; "kept" are the first point's, where it brings any along (a vector brings
            none), and else the live model's.
        model: whether to add the quadratic model at the first point.
        refine: how many further points to spend where the loss is steep.
        engine: as in `plane`.
        chunk: points evaluated together; by default found out.
        progress: whether to show a bar.
        resume: a file that evaluated points are kept in, so that what was interrupted goes on there.
        seed: of what is random in the quadratic model's radius.
        names: what to call the points.

    Raises:
        SettingError: for options that mean nothing, and points that lie on one line.
        ParameterError: if a point is of another architecture; says which tensor differs.
        LossError: if the loss or a metric is not a scalar.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import plane_through
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, (torch.eye(2), torch.zeros(2, 1)), criterion=torch.nn.MSELoss())
        >>> corners = torch.tensor([0.0, 0.0]), torch.tensor([2.0, 0.0]), torch.tensor([1.0, 2.0])
        >>> plane_through(objective, *corners, points=3).points
        {'first': (0.0, 0.0), 'second': (1.0, 0.0), 'third': (0.5, 1.0)}
    """
    check_names("names", names, 3)
    check_settings(refine, seed)
    to_second = between(objective, first, second, name=f"from {names[0]} to {names[1]}")
    to_third = between(objective, first, third, name=f"from {names[0]} to {names[2]}")
    (u, v), (a, b) = _right_angled(*checked_axes(objective, (to_second, to_third)))
    marks = {names[0]: (0.0, 0.0), names[1]: (1.0, 0.0), names[2]: (a, b)}
    xs, ys = zip(*marks.values(), strict=True)
    spans = _spans(span) if span is not None else (_around(xs), _around(ys))
    across, along = pair(points)
    x, y = grid(across, spans[0], xs), grid(along, spans[1], ys)
    with placed(objective, first, names[0]):
        evaluator = Evaluator(
            objective, None, (u, v), metrics=metrics, statistics=statistics, engine=engine, chunk=chunk,
            progress=progress, store=resume,
        )  # fmt: skip
        return _drawn(evaluator, (x, y), marks, statistics, refine, model, seed)


def _spans(span: Span | tuple[Span, Span]) -> tuple[Span, Span]:
    """What is given for both axes, or for each."""
    several = isinstance(span, tuple | list) and len(span) == 2 and all(isinstance(s, tuple | list) for s in span)
    return span if several else (span, span)  # type: ignore[return-value]


def _two(directions: tuple[Direction, Direction] | None) -> Sequence[Direction]:
    directions = ("random", "random") if directions is None else directions
    if isinstance(directions, str) or not isinstance(directions, Sequence) or len(directions) != 2:
        raise SettingError(f"a plane has two directions, got {directions!r}")
    return directions


def _several(trajectory: Iterable[Point] | None) -> Iterable[Point] | None:
    """The points, in a form that can be gone through again and again."""
    if trajectory is None:
        return None
    if isinstance(trajectory, nn.Module | Mapping) or not isinstance(trajectory, Iterable):
        raise SettingError(f"trajectory must be several points in order, got {type(trajectory).__name__}")
    return list(trajectory) if iter(trajectory) is trajectory else trajectory


def _last(objective: Objective, trajectory: Iterable[Point]) -> Point:
    """The last point; None where the model is there, buffers and all."""
    count, last = last_of(trajectory)
    if count < 2:
        raise SettingError(f"trajectory must be at least two points, got {count}")
    there = parameters_at(objective, last, "the last point")
    live = torch.equal(there, parameters_at(objective, None)) and not Carried.between(objective, last, last).buffers
    return None if live else last


def _right_angled(u: Axis, w: Axis) -> tuple[tuple[Axis, Axis], tuple[float, float]]:
    """Axes of the length of u at right angles, and the coordinates that w has in them."""
    along = float((u.vector.double() @ w.vector.double()) / u.norm**2)
    rest = w.vector - along * u.vector
    height = float(torch.linalg.vector_norm(rest.double())) / u.norm
    return (u, Axis(rest / height, f"at right angles, to {w.name.rpartition(' to ')[2]}")), (along, height)


def _around(values: Sequence[float]) -> Span:
    margin = _MARGIN * (max(values) - min(values))
    return min(values) - margin, max(values) + margin


def _drawn(
    evaluator: Evaluator,
    coordinates: tuple[Tensor, Tensor],
    marks: dict[str, tuple[float, float]],
    statistics: str,
    refine: int,
    model: bool,
    seed: int | torch.Generator | None,
) -> Plane:
    objective, (x, y), (first, second) = evaluator.objective, coordinates, evaluator.axes
    cells = torch.cartesian_prod(y, x).flip(1)
    values = {name: value.view(len(y), len(x)) for name, value in evaluator(cells).items()}
    refined = refine_plane(evaluator, x, y, values, points=refine)
    quadratic, why = second_order(objective, evaluator.axes, statistics, seed) if model else (None, "")
    return Plane(
        x, y, values, evaluator.center["loss"], (first, second), quadratic, refined, marks,
        statistics=resolved_statistics(objective, statistics)[0], engine=evaluator.engine,
        evaluations=evaluator.evaluations, seconds=evaluator.seconds, note=notes(evaluator, values, why),
    )  # fmt: skip
