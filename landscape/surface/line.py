"""The loss along a line: through where the model is, or through two points."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..objective import Objective
from .batch_statistics import resolved_statistics
from .checks import check_names
from .directions import between
from .evaluation import Evaluator
from .metrics import Metrics
from .points import Point
from .refinement import refine_line
from .results import Line
from .slices import Direction, Grid, axes_along, check_settings, grid, notes, placed, second_order

__all__ = ["line", "line_between"]


def line(
    objective: Objective,
    direction: Direction = "random",
    *,
    span: tuple[float, float] = (-1.0, 1.0),
    points: Grid = 51,
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
) -> Line:
    r"""Loss and metrics along a direction from where the model is, :math:`L(\theta + x d)`.

    The model is not touched, whatever happens. At x = 0, which is put on the grid if it is not there, the loss is that
    of the plain forward pass, to the bit `Objective.value` (with statistics that are not kept, its value within
    `statistics_at`). Not-finite values are kept as such.

    Args:
        objective: the loss.
        direction: ``"random"``, ``"gradient"``, ``"eigenvector"`` (the Hessian's top one), an `Axis` (see
            `update_direction` and the other functions that make one), a vector (n,), or a module or state dict to go
            to, which is then at x = 1.
        span: first and last coordinate, in units of the direction.
        points: how many, evenly spaced over the span; or the coordinates themselves. At least 2.
        normalise: scaling of a random direction: ``"filter"`` (Li et al. 2018, arXiv 1712.09913), ``"layer"``,
            ``"parameter"``, or None for length 1.
        metrics: what to measure besides the loss: ``"accuracy"``, a function ``(outputs, targets) -> scalar`` (a mean
            over samples), another `Objective` of the same model (the loss on test data), or several of them in a list
            or in a mapping from names. Weighted over batches as the loss is.
        statistics: how normalisation layers take their statistics: "kept", "recomputed" or "frozen"; see
            `statistics_at`.
        model: whether to add the quadratic model at the centre (`quadratic_model`).
        refine: how many further points to spend where the loss is steep (`refine_line`).
        engine: ``"one by one"``, ``"batched"``, or ``"auto"`` for what is measured to be faster here (see `Evaluator`).
        chunk: points evaluated together; by default found out.
        progress: whether to show a bar.
        resume: a file that evaluated points are kept in, so that what was interrupted goes on there.
        seed: of a random direction.

    Raises:
        SettingError: for options that mean nothing, and directions that are zero.
        ParameterError: if the direction is of another architecture.
        LossError: if the loss or a metric is not a scalar.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective, line
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.zero_()
        >>> objective = Objective(model, (torch.eye(2), torch.zeros(2, 1)), criterion=torch.nn.MSELoss())
        >>> line(objective, torch.tensor([1.0, 1.0]), points=5).loss
        tensor([1.0000, 0.2500, 0.0000, 0.2500, 1.0000], dtype=torch.float64)
    """
    check_settings(refine, seed)
    axes = axes_along(objective, [direction], normalise, seed)
    evaluator = Evaluator(
        objective,
        None,
        axes,
        metrics=metrics,
        statistics=statistics,
        engine=engine,
        chunk=chunk,
        progress=progress,
        store=resume,
    )
    return _drawn(evaluator, grid(points, span), {}, statistics, refine, model, seed)


def line_between(
    objective: Objective,
    first: Point,
    second: Point,
    *,
    span: tuple[float, float] = (-0.5, 1.5),
    points: Grid = 51,
    metrics: Metrics = None,
    statistics: str = "recomputed",
    model: bool = True,
    refine: int = 0,
    engine: str = "auto",
    chunk: int | None = None,
    progress: bool = False,
    resume: str | Path | None = None,
    seed: int | torch.Generator | None = 0,
    names: tuple[str, str] = ("first", "second"),
) -> Line:
    r"""Loss and metrics along the line through two points, :math:`L(\theta_1 + x (\theta_2 - \theta_1))`.

    For the barrier between them see `linear_path`. The centre is the first point; both are on the grid.

    Args:
        objective: the loss; its model is left as it is.
        first: where x = 0: None for where the model is, a module, a state dict or a vector (n,).
        second: where x = 1: the same.
        span: first and last x.
        points: how many, evenly spaced over the span, or the coordinates themselves; 0 and 1 are added.
        metrics: what to measure besides the loss, as in `line`.
        statistics: how normalisation layers take their statistics. By default "recomputed" at each x, since those of
            one point are not those of another; "kept" are the first point's, where it brings any along (a vector
            brings none), and else the live model's.
        model: whether to add the quadratic model at the first point.
        refine: how many further points to spend where the loss is steep.
        engine: as in `line`.
        chunk: points evaluated together; by default found out.
        progress: whether to show a bar.
        resume: a file that evaluated points are kept in, so that what was interrupted goes on there.
        seed: of what is random in the quadratic model's radius.
        names: what to call the points.

    Raises:
        SettingError: for options that mean nothing, and points that are one.
        ParameterError: if a point is of another architecture; says which tensor differs.
        LossError: if the loss or a metric is not a scalar.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import line_between
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> data = (torch.ones(1, 1), torch.zeros(1, 1))
        >>> objective = Objective(model, data, criterion=lambda x, _: (1 - x**2).square().mean())
        >>> found = line_between(objective, torch.tensor([-1.0]), torch.tensor([1.0]), points=[0.0, 0.5, 1.0])
        >>> found.loss, found.points
        (tensor([0., 1., 0.], dtype=torch.float64), {'first': 0.0, 'second': 1.0})
    """
    check_names("names", names, 2)
    check_settings(refine, seed)
    axis = between(objective, first, second, name=f"from {names[0]} to {names[1]}")
    with placed(objective, first, names[0]):
        evaluator = Evaluator(
            objective, None, [axis], metrics=metrics, statistics=statistics, engine=engine, chunk=chunk,
            progress=progress, store=resume,
        )  # fmt: skip
        marks = {names[0]: 0.0, names[1]: 1.0}
        return _drawn(evaluator, grid(points, span, (0.0, 1.0)), marks, statistics, refine, model, seed)


def _drawn(
    evaluator: Evaluator,
    x: Tensor,
    marks: dict[str, float],
    statistics: str,
    refine: int,
    model: bool,
    seed: int | torch.Generator | None,
) -> Line:
    objective, (axis,) = evaluator.objective, evaluator.axes
    x, values = refine_line(evaluator, x, evaluator(x[:, None]), points=refine)
    second, why = second_order(objective, [axis], statistics, seed) if model else (None, "")
    return Line(
        x, values, evaluator.center["loss"], axis, second, marks, resolved_statistics(objective, statistics)[0],
        evaluator.engine, evaluator.evaluations, evaluator.seconds, notes(evaluator, values, why),
    )  # fmt: skip
