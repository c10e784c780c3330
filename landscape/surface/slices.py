"""What lines and planes have in common: directions, grids, where they are drawn, and what is said of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..elsewhere import elsewhere
from ..errors import SettingError, first_line
from ..interrupts import interrupts_held
from ..objective import Objective
from ..space import generator_for
from .axes import checked_axes
from .carried import with_buffers_of
from .checks import finite_numbers
from .directions import between, eigenvector_directions, gradient_direction, random_direction
from .evaluation import Evaluator
from .points import Point, parameters_at
from .quadratic_model import quadratic_model
from .refinement import check_refinement
from .results import Axis, QuadraticModel
from .trajectory_pca import TrajectoryAxes

__all__ = [
    "Direction",
    "Grid",
    "axes_along",
    "check_settings",
    "grid",
    "last_of",
    "notes",
    "pair",
    "placed",
    "projected",
    "second_order",
]

Direction: TypeAlias = "str | Axis | Tensor | nn.Module | Mapping[str, object]"
Grid: TypeAlias = "int | Sequence[float] | Tensor"

NAMED = ("random", "gradient", "eigenvector", "update")
_SAME = 1e-9  # of a grid's width: coordinates closer than this are one


def axes_along(
    objective: Objective, directions: Sequence[Direction], normalise: str | None, seed: int | torch.Generator | None
) -> tuple[Axis, ...]:
    """The axes that directions stand for, where the model is now.

    Args:
        objective: the loss.
        directions: each a name (``"random"``, ``"gradient"``, ``"eigenvector"``: the first of them the top one, the
            next the second), an `Axis`, a vector (n,), or a module or state dict to go to.
        normalise: of random ones; see `random_direction`.
        seed: of random ones, each another.

    Raises:
        SettingError: for another name; if an axis is zero, or they are parallel.
        ParameterError: if one does not fit the model.
        NonFiniteError: if one is NaN or infinite somewhere.
    """
    generator = generator_for(seed, objective.space.device)
    wanted = sum(isinstance(d, str) and d == "eigenvector" for d in directions)
    vectors = iter(eigenvector_directions(objective, wanted, seed=generator) if wanted else ())
    found = []
    for number, direction in enumerate(directions, start=1):
        if isinstance(direction, str) and direction == "eigenvector":
            found.append(next(vectors))
        else:
            name = "direction" if len(directions) == 1 else f"direction {number}"
            found.append(_axis(objective, direction, name, normalise, generator))
    return checked_axes(objective, found)


def _axis(
    objective: Objective, direction: Direction, name: str, normalise: str | None, generator: torch.Generator
) -> Axis:
    if isinstance(direction, Axis):
        return direction
    if isinstance(direction, Tensor):
        return Axis(direction, name)
    if isinstance(direction, nn.Module | Mapping):
        return between(objective, None, direction, name="to the point")
    if direction == "random":
        return random_direction(objective, normalise, seed=generator)
    if direction == "gradient":
        return gradient_direction(objective)
    if direction == "update":
        raise SettingError('"update" needs the point before it: pass update_direction(objective, before)')
    raise SettingError(
        f"a direction must be one of {', '.join(map(repr, NAMED))}, an Axis, a vector (n,), or a module or state dict "
        f"to go to; got {direction!r}"
    )


def check_settings(refine: int, seed: int | torch.Generator | None) -> None:
    """Refuse, before anything is evaluated, what would only be met at the end.

    Raises:
        SettingError: if ``refine`` or ``seed`` means nothing.
    """
    check_refinement(refine)
    generator_for(seed, torch.device("cpu"))


def grid(points: Grid, span: tuple[float, float], include: Sequence[float] = (0.0,), name: str = "points") -> Tensor:
    """Coordinates (G,) float64, ascending, with those of ``include`` among them, exactly.

    Args:
        points: how many, evenly spaced over the span; or the coordinates.
        span: first and last of them.
        include: put on the grid where they are not on it.
        name: for errors.

    Raises:
        SettingError: for fewer than 2 points, or numbers that are not finite.
    """
    low, high = _checked_span(span)
    expected = f"{name} must be a number of points, at least 2, or as many finite coordinates"
    if isinstance(points, int) and not isinstance(points, bool):
        asked = torch.linspace(low, high, max(points, 0), dtype=torch.float64)
    else:
        asked = finite_numbers(points, expected)
    if len(asked) < 2:
        raise SettingError(f"{expected}; got {points!r} (the loss at one point is Objective.value())")
    width = float(asked.max() - asked.min())
    for exact in include:
        asked = asked[(asked - exact).abs() > _SAME * width]
    return torch.cat([asked, torch.tensor(list(include), dtype=torch.float64)]).unique()


def pair(given: Any) -> tuple[Any, Any]:
    """What is given for both axes, for each."""
    return given if isinstance(given, tuple) and len(given) == 2 else (given, given)


def _checked_span(span: tuple[float, float]) -> tuple[float, float]:
    expected = "span must be two numbers, finite and ascending"
    ends = finite_numbers(span, expected).tolist()
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise SettingError(f"{expected}; got {span!r}")
    return ends[0], ends[1]


@contextlib.contextmanager
def placed(objective: Objective, point: Point, name: str) -> Iterator[None]:
    """Inside, the model stands at a point, in tensors laid out as its own, with the buffers that it brings along."""
    if point is None:
        yield
        return
    with objective.isolated():  # first, so that no tensor that the model stands in is one of inference mode
        pieces = objective.space.unflatten(parameters_at(objective, point, name))
        own = objective.parameters.values()
        values = [torch.empty_like(p.data).copy_(v) for p, v in zip(own, pieces, strict=True)]
        with elsewhere(objective, values), with_buffers_of(objective, point):
            yield


def second_order(
    objective: Objective, axes: Sequence[Axis], statistics: str, seed: int | torch.Generator | None
) -> tuple[QuadraticModel | None, str]:
    """The quadratic model where the model is, of the loss that is drawn; or None, and why."""
    try:
        with interrupts_held():
            return quadratic_model(objective, axes, statistics=statistics, seed=seed), ""
    except Exception as error:  # a slice is worth having without it
        return None, f"no quadratic model: {first_line(error)}"


def projected(objective: Objective, points: Iterable[Point], axes: Sequence[Axis]) -> TrajectoryAxes:
    """Points less the last of them in the span of axes: coordinates of the nearest point, and what each axis explains.

    Args:
        objective: says which parameters.
        points: T of them, gone through twice.
        axes: k, at any angles; the share of each is that of its direction alone.
    """
    D = torch.stack([axis.vector.double() for axis in axes])
    products, total = [], torch.zeros((), dtype=torch.float64, device=D.device)
    end = parameters_at(objective, last_of(points)[1], "the last point").double()
    for number, point in enumerate(points):
        difference = parameters_at(objective, point, f"point {number}").double() - end
        products.append(D @ difference)
        total += difference @ difference
    table, gram = torch.stack(products).cpu(), (D @ D.T).cpu()
    shares = table.square().sum(dim=0) / gram.diagonal() / total.cpu()
    return TrajectoryAxes(tuple(axes), torch.linalg.solve(gram, table.T).T.contiguous(), shares)


def last_of(points: Iterable[Point]) -> tuple[int, Point]:
    """How many there are, and the last: of a sequence only that is loaded."""
    if isinstance(points, Sequence):
        return len(points), points[-1] if len(points) else None
    count, last = 0, None
    for count, last in enumerate(points, start=1):  # noqa: B007
        pass
    return count, last


def notes(evaluator: Evaluator, values: Mapping[str, Tensor], *further: str) -> str:
    """What is to be known of a slice, in one line."""
    found = [evaluator.note, *(axis.note for axis in evaluator.axes), *further]
    for name, value in values.items():
        odd = int((~torch.isfinite(value)).sum())
        if odd:
            found.append(f"{name} is NaN or infinite at {odd} of {value.numel()} points")
    return "; ".join(dict.fromkeys(filter(None, found)))
