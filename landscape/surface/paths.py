r"""The loss along a path between two points, and the barrier between them.

.. math:: \text{barrier} = \max_t \; [\, L(\theta(t)) - ((1 - t) L(\theta(0)) + t L(\theta(1))) \,]

(Frankle et al. 2020, "Linear mode connectivity and the lottery ticket hypothesis", arXiv 1912.05671, take the mean of
the ends' losses in place of the line between them, which is the same where both ends are as good.)
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..errors import SettingError
from ..interrupts import interrupts_held
from ..objective import Objective
from .batch_statistics import resolved_statistics
from .carried import Carried
from .checks import check_names, finite_numbers
from .curves import Curve
from .evaluation import Evaluator
from .metrics import Metrics
from .points import Point, parameters_at
from .progress import progressing
from .refinement import check_refinement, refine_line
from .results import LossPath

__all__ = ["barrier", "barrier_matrix", "linear_path", "path_along"]

POINTS = 25
_NOTICEABLE = 0.05  # of the barrier
LARGER_IS_BETTER = ("accuracy",)


def linear_path(
    objective: Objective,
    first: Point,
    second: Point,
    *,
    points: int | Sequence[float] | Tensor = POINTS,
    refine: int = 0,
    metrics: Metrics = None,
    statistics: str = "recomputed",
    larger_is_better: Collection[str] = LARGER_IS_BETTER,
    names: tuple[str, str] = ("first", "second"),
    progress: bool = False,
) -> LossPath:
    """Loss and metrics on the straight line between two points, and the barrier on it.

    The losses at the ends are those of the models there, to the bit `Objective.value`, where no layer keeps running
    statistics or they are ``"kept"``. Recomputed ones are of this objective's data, at the ends as in between, so that
    a barrier compares like with like: interpolated statistics are those of no network, and make barriers that are
    not there (Jordan et al. 2022, "REPAIR", arXiv 2211.08403).

    Args:
        objective: the loss; its model is left as it is, to the bit.
        first: None for where the model is now, a module, a state dict, or a vector (n,).
        second: the same for the other end.
        points: how many, evenly spaced from 0 to 1; or t in [0, 1], to which 0 and 1 are added.
        refine: at most so many further ones, where the loss is steep or bends (`refine_line`). The barrier is that of
            the points there are, and so a lower bound of that of the path; the note says where it looks too low.
        metrics: what to measure besides the loss, as in `line`.
        statistics: how normalisation layers take theirs; see `statistics_at`. ``"kept"`` and ``"frozen"`` ones, and all
            other buffers, are interpolated between those that the ends bring along; a vector brings none, and has
            the model's own.
        larger_is_better: names of metrics whose barrier is that of their negative.
        names: what to call the ends.
        progress: show how far it is.

    Raises:
        ParameterError: if a point is of another architecture; says which tensor differs.
        SettingError: if an option means nothing.
        LossError: if the loss or a metric is not a scalar.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective, linear_path
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> data = (torch.ones(1, 1), torch.zeros(1, 1))
        >>> objective = Objective(model, data, criterion=lambda x, _: (1 - x**2).square().mean())
        >>> linear_path(objective, torch.tensor([-1.0]), torch.tensor([1.0]))  # two minima, and 1 at 0 between them
        LossPath(linear, 25 points, barrier 1 at t = 0.5, length 2, ends at 0 and 0)
    """
    t = checked_path(points, refine, larger_is_better, names)
    ends = parameters_at(objective, first, names[0]), parameters_at(objective, second, names[1])
    return path_along(
        objective, Curve("linear", ends), Carried.between(objective, first, second), t, refine=refine,
        metrics=metrics, statistics=statistics, larger_is_better=larger_is_better, names=names, progress=progress,
    )  # fmt: skip


def barrier_matrix(
    objective: Objective,
    points: Sequence[Point],
    *,
    samples: int | Sequence[float] | Tensor = POINTS,
    statistics: str = "recomputed",
    progress: bool = False,
) -> Tensor:
    """The barriers of the loss on the straight lines between each two of several points, (m, m) float64.

    Args:
        objective: the loss.
        points: the m of them.
        samples: t on each line, as ``points`` of `linear_path`.
        statistics: how normalisation layers take theirs.
        progress: show how far each line is.

    Raises:
        ParameterError: if a point is of another architecture; says which tensor differs.
        SettingError: if an option means nothing.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import barrier_matrix
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> data = (torch.ones(1, 1), torch.zeros(1, 1))
        >>> objective = Objective(model, data, criterion=lambda x, _: (1 - x**2).square().mean())
        >>> barrier_matrix(objective, [torch.tensor([x]) for x in (-1.0, 1.0, 1.0)])
        tensor([[0., 1., 1.],
                [1., 0., 0.],
                [1., 0., 0.]], dtype=torch.float64)
    """
    found = torch.zeros(len(points), len(points), dtype=torch.float64)
    for i, j in itertools.combinations(range(len(points)), 2):
        path = linear_path(
            objective, points[i], points[j], points=samples, statistics=statistics, names=(f"point {i}", f"point {j}"),
            progress=progress,
        )  # fmt: skip
        found[i, j] = found[j, i] = path.barrier
    return found


def barrier(t: Tensor, values: Tensor, *, larger_is_better: bool = False) -> float:
    """How far a path rises above the line between its ends' values; 0 where it nowhere does.

    Over the t given, so that it is a lower bound of that of the whole path.

    Args:
        t: (G,) from 0 to 1.
        values: (G,), a loss or an error; NaN among them makes it NaN.
        larger_is_better: of an accuracy, whose barrier is that of its negative.

    Raises:
        SettingError: if they are not as said.

    Example:
        >>> import torch
        >>> from losscope.landscape.surface import barrier
        >>> barrier(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 3.0, 2.0]))
        1.5
    """
    if t.ndim != 1 or t.shape != values.shape or len(t) < 2 or (float(t[0]), float(t[-1])) != (0.0, 1.0):
        raise SettingError(
            f"a barrier is that of values (G,) at t (G,) from 0 to 1; got values {tuple(values.shape)} at t "
            f"{tuple(t.shape)}{f' from {float(t[0]):.3g} to {float(t[-1]):.3g}' if t.numel() else ''}"
        )
    return float(excess(t, -values if larger_is_better else values).max())


def excess(t: Tensor, values: Tensor) -> Tensor:
    """How far values lie above the line between their ends, (G,) float64: 0 at the ends where these are finite."""
    t, values = t.double().cpu(), values.detach().double().cpu()
    above = values - ((1 - t) * values[0] + t * values[-1])
    above[[0, -1]] = values[[0, -1]] - values[[0, -1]]  # without rounding; infinity less infinity is NaN
    return above


def path_along(
    objective: Objective, curve: Curve, carried: Carried, t: Tensor, *, refine: int,
    metrics: Metrics, statistics: str, larger_is_better: Collection[str], names: tuple[str, str], progress: bool,
) -> LossPath:  # fmt: skip
    """Loss and metrics along a curve, as `linear_path` and `bezier_path` have them."""
    started = time.perf_counter()
    with interrupts_held():
        resolved, _ = resolved_statistics(objective, statistics)
        evaluator = Evaluator(objective, metrics=metrics, statistics=resolved)

    def evaluated(coordinates: Tensor) -> dict[str, Tensor]:
        rows = []
        for each in progressing(coordinates.flatten().tolist(), shown=progress):
            with interrupts_held(), carried.held():
                carried.write(each)
                rows.append(evaluator.at(curve.at(each)))
        return dict(zip(evaluator.names, torch.stack(rows).T.contiguous(), strict=True))

    t, values = refine_line(evaluated, t, evaluated(t), points=refine, scale="linear")
    loss, above = values["loss"], excess(t, values["loss"])
    barriers = {name: barrier(t, found, larger_is_better=name in larger_is_better) for name, found in values.items()}
    return LossPath(
        t, values, curve.kind, barriers["loss"], barriers, float(loss[1:-1].max() - loss[[0, -1]].max()),
        float(t[above.argmax()]), curve.length, curve.control, statistics=resolved, ends=names,
        seconds=time.perf_counter() - started, note=_too_low(above),
    )  # fmt: skip


def _too_low(above: Tensor) -> str:
    """A warning where the barrier may be noticeably higher between the points.

    A parabola whose top lies between points is higher than they are by an eighth, at most, of the fall from the highest
    to the lower of its neighbours; a quarter allows for narrower hills.
    """
    i = int(above.argmax())
    if not 0 < i < len(above) - 1 or not bool(above[i].isfinite()):
        return ""
    missed = float(above[i] - above[[i - 1, i + 1]].min()) / 4
    if not missed > _NOTICEABLE * float(above[i]):
        return ""
    return f"between the points the barrier may be {missed:.2g} higher: take more points=, or refine="


def checked_path(
    points: int | Sequence[float] | Tensor, refine: int, larger_is_better: Collection[str], names: Collection[str]
) -> Tensor:
    """The t that a path is evaluated at, (G,) float64 ascending, 0 and 1 among them; before anything is computed.

    Raises:
        SettingError: if no t lies between the ends, or one beyond them, or another argument means nothing.
    """
    check_refinement(refine)
    check_names("larger_is_better", larger_is_better)
    check_names("names", names, 2)
    expected = "points must be a number of them, 3 at least, or t between 0 and 1, one at least between the ends"
    if isinstance(points, int) and not isinstance(points, bool):
        t = torch.linspace(0, 1, max(points, 0), dtype=torch.float64)
    else:
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        t = torch.cat([finite_numbers(points, expected), ends]).unique()
    if len(t) < 3 or not bool(((t >= 0) & (t <= 1)).all()):
        raise SettingError(f"{expected}; got {points!r}")
    return t
