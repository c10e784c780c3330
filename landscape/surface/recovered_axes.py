"""The axes of a trajectory that only its sketches were analysed of, in a second pass over stored checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..errors import SettingError
from ..objective import Objective
from .axes import unit
from .points import Point, parameters_at
from .results import Axis
from .trajectory_pca import TrajectoryAxes

__all__ = ["trajectory_axes_from"]

_BALANCED = 1e-6  # of a combination's sum, relative to its entries: a component is made of differences of points


def trajectory_axes_from(objective: Objective, checkpoints: Iterable[Point], combination: Tensor) -> TrajectoryAxes:
    """Principal components as directions of the parameters, from the combination of points that each of them is.

    What `weight_trajectory` finds out from sketches are combinations of points; the directions themselves take the
    points. With these in files, one is in memory at a time, and they are gone through twice; `trajectory_axes`, which
    needs no sketches, takes more passes or the memory of many points.

    Args:
        objective: says which parameters, their order, dtype and device.
        checkpoints: the very points that were sketched, in order: modules, state dicts, vectors (n,). An iterable that
            gives them anew each time, as a list does, or an object that loads files.
        combination: (T, k) of `WeightTrajectory.combination`.

    Returns:
        As `trajectory_axes`: axes of length 1, at right angles; the points' coordinates along them, from the last
        point; and the share of the points' variance along each. Coordinates and shares are exact for these axes, and
        the axes as accurate as the sketch: a little less is along them than along the principal components.

    Raises:
        ParameterError: if a point is of another architecture; says which point, and which tensor differs.
        SettingError: if the checkpoints are not as many as the combination says, or a component is made of none.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import trajectory_axes_from, weight_trajectory
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, (torch.eye(2), torch.ones(2, 1)), criterion=torch.nn.MSELoss())
        >>> points = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> axes, coordinates, explained = trajectory_axes_from(
        ...     objective, points, weight_trajectory(points).combination
        ... )
        >>> axes[0].vector.abs(), explained
        (tensor([1., 0.]), tensor([0.9412, 0.0588], dtype=torch.float64))
    """
    combination = _checked(combination, checkpoints)
    n, k = objective.space.size, combination.shape[1]
    sums, total = torch.zeros(k, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    squares, first, count = 0.0, total, 0
    for count, (point, row) in enumerate(_paired(checkpoints, combination), 1):
        vector = _vector(objective, point, count)
        first = vector if count == 1 else first
        apart = vector - first  # in float64, before anything is added: late points differ by little
        sums.addr_(row, apart)
        total += apart
        squares += float(apart @ apart)
    basis = _at_right_angles(sums)
    coordinates = torch.stack([
        basis @ (_vector(objective, point, i) - first) for i, point in enumerate(checkpoints, 1)
    ])  # fmt: skip
    coordinates -= coordinates[-1].clone()
    sign = torch.where(coordinates[0] < 0, -1.0, 1.0).double()
    variance = squares - float(total @ total) / count
    explained = (coordinates - coordinates.mean(dim=0)).square().sum(dim=0) / variance
    like = parameters_at(objective, None)
    axes = tuple(Axis(v.to(like), f"trajectory, component {i}") for i, v in enumerate(sign[:, None] * basis, 1))
    return TrajectoryAxes(axes, coordinates * sign, explained)


def _checked(combination: Tensor, checkpoints: Iterable[Point]) -> Tensor:
    if not isinstance(combination, Tensor) or combination.ndim != 2 or not combination.numel():
        raise SettingError("combination must be a tensor (T, k), as WeightTrajectory.combination is")
    if iter(checkpoints) is checkpoints:
        raise SettingError("checkpoints are gone through twice: pass a list, or an object that loads them anew")
    combination = combination.detach().to("cpu", torch.float64)
    for i, column in enumerate(combination.T, 1):
        largest = float(column.abs().max())
        if not 0 < largest < math.inf:
            raise SettingError(f"component {i} is made of no points: the trajectory has {i - 1} directions only")
        if abs(float(column.sum())) > _BALANCED * largest * len(column):
            raise SettingError(f"component {i} must be made of differences of points: its coefficients add up to zero")
    return combination


def _paired(checkpoints: Iterable[Point], combination: Tensor) -> Iterator[tuple[Point, Tensor]]:
    count = 0
    for count, point in enumerate(checkpoints, 1):
        if count <= len(combination):
            yield point, combination[count - 1]
    if count != len(combination):
        raise SettingError(f"there must be one checkpoint for each of the {len(combination)} points, got {count}")


def _vector(objective: Objective, point: Point, number: int) -> Tensor:
    return parameters_at(objective, point, f"point {number - 1}").to("cpu", torch.float64)


def _at_right_angles(rows: Tensor) -> Tensor:
    """Unit vectors in the span of the first rows each: from a sketch they are at right angles only nearly."""
    basis = torch.zeros_like(rows)
    for i, row in enumerate(rows):
        for _ in range(2):
            row = unit(row - basis[:i].T @ (basis[:i] @ row))
        basis[i] = row
    return basis
