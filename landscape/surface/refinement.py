"""Further points where the loss is steep: a few of them do what a grid several times as fine would.

Lines are cut at midpoints. Planes are cut as a quadtree is: a cell into four, by its centre and the middles of its
sides. What is cut next is where interpolation between what is known is wrong by the most, times the length or area
that it is wrong over, so that a cliff, whose height no cutting lowers, does not take all points.

Nothing is interpolated where the loss is not finite: the border of such a region is cut, as if it were a cliff, and
its inside is not. What lies between the points of the first grid, and bends the loss at none of them, is not found.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from ..errors import SettingError
from .results import Refined

__all__ = ["check_refinement", "next_on_line", "next_on_plane", "refine_line", "refine_plane"]

Evaluate = Callable[[Tensor], Mapping[str, Tensor]]
"""Coordinates (M, k) float64 to (M,) values per name, ``"loss"`` first."""

_Known: TypeAlias = tuple[float, float]  # a coordinate, and the loss there
_Cell: TypeAlias = tuple[int, int, int]
_Item = TypeVar("_Item")

_DEPTH = 8  # how often an interval of the first grid is halved at most: beyond, no figure shows it
_SHARE = 0.5  # of the largest priority: what has more is cut in the same round
_WIDE = 20.0  # positive losses that spread by more are shown by their logarithm
SCALES = ("auto", "linear", "log")


def refine_line(
    evaluate: Evaluate,
    x: Tensor,
    values: Mapping[str, Tensor],
    *,
    points: int,
    tolerance: float = 0.01,
    scale: str = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add up to ``points`` further points to a line, where it is steep.

    Args:
        evaluate: coordinates (M, 1) to values; called once per round, with what can be evaluated together.
        x: (G,) float64 ascending.
        values: (G,) per name, ``"loss"`` first: the one that decides.
        points: the most points to add; 0 for none.
        tolerance: stop where linear interpolation is seen to be right to this share of the range of the finite
            losses.
        scale: "linear", or "log" for that of their logarithms; "auto" as figures show them: the logarithm where all
            are positive and spread by more than 20.

    Returns:
        All coordinates, ascending, and the values there.

    Raises:
        SettingError: if ``points`` or ``tolerance`` is negative, or there is no such scale.

    Example:
        >>> import torch
        >>> from losscope.landscape.surface import refine_line
        >>> cliff = lambda c: {"loss": torch.tanh(100 * (c[:, 0] - 0.3))}
        >>> x = torch.linspace(-1, 1, 5, dtype=torch.float64)
        >>> x, values = refine_line(cliff, x, cliff(x[:, None]), points=20)
        >>> len(x), int(((x > 0.25) & (x < 0.35)).sum())
        (25, 11)
    """
    check_refinement(points, tolerance, scale)
    found = dict(values)
    finest = _finest(x)
    while points > 0:
        shown = _as_shown(found["loss"], scale)
        added = next_on_line(x, shown, count=points, tolerance=tolerance, finest=finest)
        if not len(added):
            break
        new = evaluate(added[:, None])
        order = torch.cat([x, added]).argsort()
        x = torch.cat([x, added])[order]
        found = {name: torch.cat([value, new[name].to(value)])[order] for name, value in found.items()}
        points -= len(added)
    return x, found


def next_on_line(
    x: Tensor, loss: Tensor, *, count: int, tolerance: float = 0.01, finest: float | None = None
) -> Tensor:
    """Where to evaluate a line next: at most ``count`` midpoints (M,) float64, ascending; none when it is right.

    Args:
        x: (G,) ascending coordinates.
        loss: (G,) what is known there (on the scale on which it matters).
        count: the most points.
        tolerance: see `refine_line`.
        finest: intervals below this length are not cut; default: 2^-8 of the largest.
    """
    xs, ys = x.tolist(), loss.tolist()
    span = _range(ys)
    finest = _finest(x) if finest is None else finest
    ranked = []
    for i in range(len(xs) - 1):
        width = xs[i + 1] - xs[i]
        outer = [(xs[k], ys[k]) for k in (i - 1, i + 2) if 0 <= k < len(xs)]
        error = _error((xs[i], ys[i]), (xs[i + 1], ys[i + 1]), outer, span)
        if error > tolerance * span and width > finest * 1.5:
            ranked.append((error * width, (xs[i] + xs[i + 1]) / 2))
    chosen = _largest(ranked)[:count]
    return torch.tensor(sorted(chosen), dtype=torch.float64)


def refine_plane(
    evaluate: Evaluate,
    x: Tensor,
    y: Tensor,
    values: Mapping[str, Tensor],
    *,
    points: int,
    tolerance: float = 0.01,
    scale: str = "auto",
) -> Refined | None:
    """Evaluate up to ``points`` further points of a plane, in the cells where bilinear interpolation is wrong.

    Args:
        evaluate: coordinates (M, 2) to values; called once per round, with what can be evaluated together.
        x: (Gx,) float64 ascending.
        y: (Gy,) float64 ascending.
        values: (Gy, Gx) per name, ``"loss"`` first: the one that decides.
        points: the most points to add; 0 for none.
        tolerance: stop where interpolation is seen to be right to this share of the range of the finite losses.
        scale: "linear", "log" or "auto", as in `refine_line`.

    Returns:
        The further points; None if none were asked for or needed.

    Raises:
        SettingError: if ``points`` or ``tolerance`` is negative, or there is no such scale.

    Example:
        >>> import torch
        >>> from losscope.landscape.surface import refine_plane
        >>> cliff = lambda c: {"loss": torch.tanh(100 * (c[:, 0] - 0.3))}
        >>> x = torch.linspace(-1, 1, 5, dtype=torch.float64)
        >>> grid = torch.cartesian_prod(x, x).flip(1)
        >>> refined = refine_plane(cliff, x, x, {"loss": cliff(grid)["loss"].view(5, 5)}, points=100)
        >>> len(refined.x), int((refined.x - 0.3).abs().le(0.2).sum())
        (99, 53)
    """
    check_refinement(points, tolerance, scale)
    C = torch.empty(0, 2, dtype=torch.float64)
    found = {name: torch.empty(0, dtype=torch.float64) for name in values}
    while len(C) < points:
        shown = _as_shown(torch.cat([values["loss"].flatten(), found["loss"]]), scale)
        on_grid, further = shown[: values["loss"].numel()].view(len(y), len(x)), shown[values["loss"].numel() :]
        added = next_on_plane(x, y, on_grid, C, further, count=points - len(C), tolerance=tolerance)
        if not len(added):
            break
        new = evaluate(added)
        C = torch.cat([C, added])
        found = {name: torch.cat([value, new[name].to(value)]) for name, value in found.items()}
    return Refined(C[:, 0].contiguous(), C[:, 1].contiguous(), found) if len(C) else None


def next_on_plane(
    x: Tensor, y: Tensor, loss: Tensor, further: Tensor, further_loss: Tensor, *, count: int, tolerance: float = 0.01
) -> Tensor:
    """Where to evaluate a plane next: at most ``count`` points (M, 2) float64; none when interpolation is right.

    Args:
        x: (Gx,) ascending coordinates of the grid.
        y: (Gy,) the same.
        loss: (Gy, Gx) what is known on the grid (on the scale on which it matters).
        further: (K, 2) further points, as earlier calls returned them.
        further_loss: (K,) what is known there.
        count: the most points.
        tolerance: see `refine_plane`.
    """
    tree = _Quadtree(x.tolist(), y.tolist(), loss.tolist())
    tree.add(further.tolist(), further_loss.tolist())
    ranked = []
    for cell in tree.leaves():
        error = tree.error(cell)
        if error > tolerance * tree.span and cell[2] > 1:
            ranked.append((error * tree.area(cell), cell))
    chosen: dict[tuple[int, int], None] = {}
    for cell in _largest(ranked):
        missing = [p for p in tree.middles(cell) if p not in tree.loss and p not in chosen]
        if len(chosen) + len(missing) <= count:
            chosen.update(dict.fromkeys(missing))
    return torch.tensor([tree.coordinates(p) for p in chosen], dtype=torch.float64).reshape(-1, 2)


class _Quadtree:
    """Losses on the lattice that halving the grid's intervals `_DEPTH` times would give, where they are known.

    A cell is (i, j, s): the lattice position of its corner, and its side. It has been cut if its centre is known.
    """

    def __init__(self, x: list[float], y: list[float], loss: list[list[float]]) -> None:
        self.grid, self.side = (x, y), 2**_DEPTH
        self.loss = {(i * self.side, j * self.side): v for j, row in enumerate(loss) for i, v in enumerate(row)}
        self.span = _range(self.loss.values())

    def add(self, points: list[list[float]], losses: list[float]) -> None:
        """Add points that lie on the lattice."""
        for point, loss in zip(points, losses, strict=True):
            self.loss[self._index(0, point[0]), self._index(1, point[1])] = loss
        self.span = _range(self.loss.values())

    def leaves(self) -> Iterator[_Cell]:
        """The cells that have not been cut."""
        side, (x, y) = self.side, self.grid
        pending = [(i * side, j * side, side) for j in range(len(y) - 1) for i in range(len(x) - 1)]
        while pending:
            i, j, s = pending.pop()
            h = s // 2
            if h and (i + h, j + h) in self.loss:
                pending += [(i, j, h), (i + h, j, h), (i, j + h, h), (i + h, j + h, h)]
            else:
                yield i, j, s

    def error(self, cell: _Cell) -> float:
        """What bilinear interpolation within a cell is wrong by, as seen from its sides."""
        i, j, s = cell
        across = max(self._side(0, i, j, s), self._side(0, i, j + s, s))
        along = max(self._side(1, i, j, s), self._side(1, i + s, j, s))
        return min(across + along, self.span)

    def _side(self, axis: int, i: int, j: int, s: int) -> float:
        """What linear interpolation is wrong by on the side of length s that begins at (i, j)."""
        at = (lambda n: (i + n, j)) if axis == 0 else (lambda n: (i, j + n))
        start = (i, j)[axis]

        def known(n: int) -> _Known:
            return self._position(axis, start + n), self.loss[at(n)]

        if s > 1 and at(s // 2) in self.loss:  # the neighbour has been cut, so that the error is known
            left, middle, right = (self.loss[at(n)] for n in (0, s // 2, s))
            finite = sum(map(math.isfinite, (left, middle, right)))
            return abs(middle - (left + right) / 2) if finite == 3 else self.span * (finite > 0)
        outer = []
        for end, way in ((0, -1), (s, 1)):
            reached = next((end + way * n for n in _doubling(s, self.side) if at(end + way * n) in self.loss), None)
            outer += [] if reached is None else [known(reached)]
        return _error(known(0), known(s), outer, self.span)

    def middles(self, cell: _Cell) -> list[tuple[int, int]]:
        """The centre of a cell, and the middles of its sides."""
        i, j, s = cell
        h = s // 2
        return [(i + h, j + h), (i + h, j), (i, j + h), (i + s, j + h), (i + h, j + s)]

    def area(self, cell: _Cell) -> float:
        """The area of a cell, in units of the coordinates."""
        i, j, s = cell
        (x0, y0), (x1, y1) = self.coordinates((i, j)), self.coordinates((i + s, j + s))
        return (x1 - x0) * (y1 - y0)

    def coordinates(self, at: tuple[int, int]) -> tuple[float, float]:
        """Of a lattice position."""
        return self._position(0, at[0]), self._position(1, at[1])

    def _position(self, axis: int, index: int) -> float:
        grid, (whole, part) = self.grid[axis], divmod(index, self.side)
        return grid[whole] + (part / self.side * (grid[whole + 1] - grid[whole]) if part else 0.0)

    def _index(self, axis: int, coordinate: float) -> int:
        grid = self.grid[axis]
        whole = min(bisect.bisect_right(grid, coordinate), len(grid) - 1) - 1
        return whole * self.side + round(self.side * (coordinate - grid[whole]) / (grid[whole + 1] - grid[whole]))


def _error(start: _Known, end: _Known, outer: list[_Known], span: float) -> float:
    """What linear interpolation between two points is wrong by, from the curvature that points outside show.

    With the divided difference D over both ends and an outer point it is ``|D| w^2 / 4`` for the width w, and where
    the outer point is nearer than w the curvature may be a bend that lies beyond: it counts by that distance.
    """
    (x0, y0), (x1, y1) = start, end
    if not (math.isfinite(y0) and math.isfinite(y1)):
        return span if math.isfinite(y0) or math.isfinite(y1) else 0.0
    width, slope = x1 - x0, (y1 - y0) / (x1 - x0)
    seen = []
    for x, y in outer:
        if math.isfinite(y):
            near, distance = ((x0, y0), x0 - x) if x < x0 else ((x1, y1), x - x1)
            bend = abs(slope - (y - near[1]) / (x - near[0])) / (width + distance)
            seen.append(bend * width * min(width, distance) / 4)
    return sum(seen) / len(seen) if seen else abs(y1 - y0)


def _doubling(first: int, last: int) -> Iterator[int]:
    while first <= last:
        yield first
        first *= 2


def _largest(ranked: list[tuple[float, _Item]]) -> list[_Item]:
    """Those with the largest priorities, within `_SHARE` of the largest, in order."""
    ranked = sorted(ranked, key=lambda item: -item[0])
    return [item for priority, item in ranked if priority >= _SHARE * ranked[0][0]]


def _range(losses: Iterable[float]) -> float:
    """Of those that are finite; 1 where they are all equal, so that a border counts there too."""
    finite = [v for v in losses if math.isfinite(v)]
    return (max(finite) - min(finite) if finite else 0.0) or 1.0


def _as_shown(loss: Tensor, scale: str) -> Tensor:
    """What interpolation is to be right about; where there is no logarithm it is not finite."""
    finite = loss[torch.isfinite(loss)]
    positive = len(finite) > 0 and float(finite.min()) > 0
    wide = positive and float(finite.max()) > _WIDE * float(finite.min())
    return loss.log() if scale == "log" or (scale == "auto" and wide) else loss


def _finest(x: Tensor) -> float:
    return float(x.diff().max()) / 2**_DEPTH if len(x) > 1 else math.inf


def check_refinement(points: object, tolerance: object = 0.0, scale: str = "auto") -> None:
    """Refuse what `refine_line` and `refine_plane` cannot work with, before anything is evaluated.

    Raises:
        SettingError: if ``points`` is no integer, or it or ``tolerance`` is negative, or there is no such scale.
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 0:
        raise SettingError(f"the number of further points (refine) must be an integer, 0 for none; got {points!r}")
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not tolerance >= 0:
        raise SettingError(f"tolerance, a share of the range of the losses, must be 0 or more; got {tolerance!r}")
    if scale not in SCALES:
        raise SettingError(f"scale must be one of {', '.join(map(repr, SCALES))}; got {scale!r}")
