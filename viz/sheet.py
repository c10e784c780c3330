"""The values of a plane as something to draw contours of: its grid, or a triangulation where it was refined."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.contour import ContourSet
from matplotlib.tri import Triangulation
from torch import Tensor

from losscope.landscape import SettingError
from losscope.landscape.surface import Plane

__all__ = ["Sheet", "as_array", "chosen", "footnote"]


def as_array(values: Tensor) -> np.ndarray:
    """A tensor as float64 on the host."""
    return np.asarray(values.detach().double().cpu().numpy())


def footnote(results: Collection[Any]) -> str:
    """The first thing to be known of results and of their quadratic models, in short; the rest is in their notes.

    A note's parts are divided by semicolons, and what comes after a part's first colon is detail. What the legend
    counts is left out.
    """
    models = [model for each in results if (model := getattr(each, "model", None)) is not None]
    parts = [part for each in [*results, *models] for part in each.note.split("; ")]
    found = [part for part in parts if part and " is NaN or infinite at " not in part]
    if not found:
        return ""
    first, more = found[0].partition(": ")[0], len(dict.fromkeys(found)) - 1
    return f"{first} (and {more} more: see note)" if more else first


def chosen(values: Any, value: str) -> Tensor:
    """One of the values by name.

    Raises:
        SettingError: if there is none of that name.
    """
    if value not in values:
        raise SettingError(f"there are no values {value!r}; there are {', '.join(map(repr, values))}")
    found = values[value]
    assert isinstance(found, Tensor)
    return found


@dataclass(frozen=True, eq=False)
class Sheet:
    """Values over a plane. What is not finite stays a hole: no contour reaches into a cell that touches it.

    Attributes:
        x: (Gx,) coordinates of the grid.
        y: (Gy,) those of its rows.
        z: (Gy, Gx) values.
        heights: (N,) of every point, refined ones included.
        triangles: of these points, without those that touch a value that is not finite; None where the grid suffices.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    heights: np.ndarray
    triangles: Triangulation | None = None

    @classmethod
    def of(cls, plane: Plane, value: str = "loss") -> Sheet:
        """Of a plane's loss, or of one of its metrics.

        Raises:
            SettingError: if there are no such values, or the plane has a single row or column.
        """
        x, y, z = as_array(plane.x), as_array(plane.y), as_array(chosen(plane.values, value))
        if min(z.shape) < 2:
            raise SettingError(
                f"the plane has {len(y)} x {len(x)} points, which span no area: draw a Line with plot_line instead"
            )
        refined = plane.refined
        if refined is None or not len(refined.x) or value not in refined.values:
            return cls(x, y, z, z.ravel())
        X, Y = np.meshgrid(x, y)
        points = np.stack([np.append(X, as_array(refined.x)), np.append(Y, as_array(refined.y))])
        heights = np.append(z, as_array(refined.values[value]))
        points, kept = np.unique(points, axis=1, return_index=True)
        return cls(x, y, z, heights[kept], _triangulated(points, heights[kept]))

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Ends of x, and of y."""
        return float(self.x[0]), float(self.x[-1]), float(self.y[0]), float(self.y[-1])

    @property
    def holes(self) -> dict[str, int]:
        """How many values are NaN, and infinite, where some are."""
        counts = {"NaN": int(np.isnan(self.heights).sum()), "infinite": int(np.isinf(self.heights).sum())}
        return {name: count for name, count in counts.items() if count}

    @property
    def drawable(self) -> bool:
        """Whether there is a cell or a triangle of which all corners are finite."""
        if self.triangles is not None:
            return self.triangles.mask is None or not self.triangles.mask.all()
        known = np.isfinite(self.z)
        square = known[1:, 1:].astype(int) + known[1:, :-1] + known[:-1, 1:] + known[:-1, :-1]
        return bool((square >= 3).any())

    def contours(self, ax: Axes, base: float, *, filled: bool, **options: Any) -> ContourSet:
        """Contours of the values with ``base`` taken off."""
        shown = np.ma.masked_invalid((self.z if self.triangles is None else self.heights) - base)
        if self.triangles is None:
            return (ax.contourf if filled else ax.contour)(self.x, self.y, shown, **options)
        return (ax.tricontourf if filled else ax.tricontour)(self.triangles, shown, **options)


def _triangulated(points: np.ndarray, heights: np.ndarray) -> Triangulation:
    """Delaunay's, on a square, so that the lengths of the axes do not matter."""
    span = points.max(axis=1) - points.min(axis=1)
    corners = Triangulation(*(points / span[:, None])).triangles
    made = Triangulation(points[0], points[1], corners)
    made.set_mask(~np.isfinite(heights)[corners].all(axis=1))
    return made
