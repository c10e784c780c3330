r"""The plane that recorded weights lie closest to: principal components of a trajectory, from its inner products.

With T points of n parameters, T far below n, the components are those of the (T, T) matrix of inner products

.. math:: G = X X^\top = U \Lambda U^\top, \qquad V = X^\top U \Lambda^{-1/2}

where the rows of X are the points less the last one (Li et al. 2018, section 7). It adds up over pieces of the
parameters, so that of checkpoints in files one at a time is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError, SettingError
from ..noise_scale import check_count
from ..objective import Objective
from .points import Point, parameters_at
from .results import Axis

__all__ = ["TrajectoryAxes", "trajectory_axes"]

_MEMORY = 256 << 20  # bytes, by default
_RANK = 1e-13  # of the largest eigenvalue: rounding of a matrix of inner products in float64, with room


class TrajectoryAxes(NamedTuple):
    """What `trajectory_axes` finds; unpacks as ``axes, coordinates, explained``.

    Attributes:
        axes: k axes of length 1, at right angles, the one that explains most first.
        coordinates: (T, k) float64 of the points along them, from the last point: its own are 0. An axis points to the
            side of the first point.
        explained: (k,) float64 shares of the sum of squared distances that each axis explains.
    """

    axes: tuple[Axis, ...]
    coordinates: Tensor
    explained: Tensor


def trajectory_axes(
    objective: Objective, points: Iterable[Point], k: int = 2, *, about: str = "last", memory: int = _MEMORY
) -> TrajectoryAxes:
    """The directions that recorded weights spread in most.

    Args:
        objective: says which parameters, their order, dtype and device.
        points: recorded weights in order, the last one where the plane's centre is to be: modules, state dicts, vectors
            (n,), None for the live model. An iterable that gives them anew each time it is gone through, as a list
            does, or an object that loads files, is gone through three times, and more often where T float64 vectors
            outgrow ``memory``; what can be gone through once only, a generator, is kept as T vectors.
        k: how many axes.
        about: ``"last"``: the plane through the last point that lies closest to all points; shares are of the squared
            distances from the last point. ``"mean"``: directions of largest variance, as the published code
            (``projection.py`` with scikit-learn's PCA) computes them, where the plane that is drawn passes through
            the last point all the same; shares are of the variance.
        memory: bytes that pieces of the points may take, besides k + 2 vectors.

    Raises:
        ParameterError: if a point is of another architecture; says which point, and which tensor differs.
        NonFiniteError: if a point is NaN or infinite somewhere.
        SettingError: if the points do not span k directions, or an option means nothing.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import trajectory_axes
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, (torch.eye(2), torch.ones(2, 1)), criterion=torch.nn.MSELoss())
        >>> points = [torch.tensor(p) for p in ([9.0, 0.0], [0.0, 3.0], [0.0, 0.0])]
        >>> axes, coordinates, explained = trajectory_axes(objective, points)
        >>> coordinates, explained
        (tensor([[9., 0.],
                [0., 3.],
                [0., 0.]], dtype=torch.float64), tensor([0.9000, 0.1000], dtype=torch.float64))
    """
    if about not in ("last", "mean"):
        raise SettingError(f'about must be "last" or "mean", got {about!r}')
    check_count("k", k, 1)
    path = _Path(objective, points)
    if path.length <= k:
        raise SettingError(f"{path.length} points span fewer than {k} directions: give at least {k + 1}")
    G = path.gram(memory)
    centring = torch.eye(path.length, dtype=torch.float64)
    if about == "mean":
        centring -= 1 / path.length
    values, vectors = torch.linalg.eigh(centring @ G @ centring)
    values, vectors = values.flip(0)[:k], vectors.flip(1)[:, :k]
    total = float((centring @ G @ centring).trace())
    if not float(values[-1]) > _RANK * path.length * total:
        rank = int((values > _RANK * path.length * total).sum())
        raise SettingError(f"the points span {rank} directions, and k is {k}: they are the same, or on one line")
    combination = centring @ vectors / values.sqrt()  # (T, k): V = X' combination
    coordinates = G @ combination
    signs = torch.where(coordinates[0] < 0, -1.0, 1.0).double()
    axes = tuple(
        Axis(v, f"trajectory, component {i}") for i, v in enumerate(path.combined(combination * signs), start=1)
    )
    return TrajectoryAxes(axes, coordinates * signs + 0.0, values / total)  # no zero below zero


class _Path:
    """Points that are gone through again and again, less the last of them.

    Attributes:
        length: T.
        last: (n,) the last point.
    """

    def __init__(self, objective: Objective, points: Iterable[Point]) -> None:
        self.objective = objective
        self._points: Iterable[Point] = points
        if isinstance(points, nn.Module) or not isinstance(points, Iterable):
            raise SettingError(f"points must be several, in a list or another iterable, got {type(points).__name__}")
        if iter(points) is points:  # it can be gone through once
            self._points = [parameters_at(objective, p, f"point {i}") for i, p in enumerate(points)]
        self.length = 0
        for vector in self._vectors():
            self.length, self.last = self.length + 1, vector

    def _vectors(self) -> Iterator[Tensor]:
        """The points as (n,), checked."""
        for i, point in enumerate(self._points):
            vector = parameters_at(self.objective, point, f"point {i}")
            if not bool(torch.isfinite(vector).all()):
                raise NonFiniteError(f"point {i} of the trajectory is NaN or infinite somewhere: leave it out")
            yield vector

    def gram(self, memory: int) -> Tensor:
        """Inner products of the points less the last one, (T, T) float64 on the host."""
        n = len(self.last)
        passes = math.ceil(8 * self.length * n / max(memory, 1))
        width = math.ceil(n / min(passes, n))
        G = torch.zeros(self.length, self.length, dtype=torch.float64)
        for start in range(0, n, width):
            piece = slice(start, start + width)
            # The difference in float64, before anything is multiplied: late points differ by little.
            X = torch.stack([v[piece].cpu().double() - self.last[piece].cpu().double() for v in self._again()])
            G += X @ X.T
        return G

    def combined(self, coefficients: Tensor) -> list[Tensor]:
        """``X' coefficients``, one vector (n,) of length 1 for each column."""
        sums = [torch.zeros(len(self.last), dtype=torch.float64) for _ in range(coefficients.shape[1])]
        last = self.last.cpu().double()
        for vector, row in zip(self._again(), coefficients.tolist(), strict=True):
            difference = vector.cpu().double() - last
            for total, c in zip(sums, row, strict=True):
                total.add_(difference, alpha=c)
        return [(s / torch.linalg.vector_norm(s)).to(self.last) for s in sums]

    def _again(self) -> Iterator[Tensor]:
        """The points once more; as many as the first time."""
        count = 0
        for vector in self._vectors():
            count += 1
            yield vector
        if count != self.length:
            raise SettingError(f"points gave {self.length} points at first and {count} later: pass them as a list")
