"""A figure in equal cells, with axes in each that are as large as their words leave them.

Each cell is measured once: matplotlib's constrained layout measures all of them at every draw, several times.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.gridspec import GridSpec
from matplotlib.transforms import Bbox

__all__ = ["LEAST", "cells", "fit", "grid"]

LEAST = (2.2, 2.3)
"""Width and height in inches below which a cell cannot be read."""
FIRST = (0.2, 0.2, 0.95, 0.75)
"""Left, bottom, right and top of axes before they are measured, in shares of their cell."""
LITTLE = 0.1
"""Of a cell, that axes keep whatever their words take."""
APART = 0.06
"""Inches between the words of neighbouring cells."""


def grid(count: int, width: float) -> tuple[int, int]:
    """Rows and columns of so many cells on a page that is so many inches wide, and wider than high where it can be.

    Example:
        >>> from losscope.viz.cells import grid
        >>> [grid(count, 11.7) for count in (2, 3, 4, 6, 7, 9, 12)]
        [(1, 2), (1, 3), (2, 2), (2, 3), (2, 4), (3, 3), (3, 4)]
        >>> grid(12, 3.4), grid(12, 7.0)
        ((12, 1), (4, 3))
    """
    rows = 1 if count <= 3 else 2 if count <= 8 else 3
    columns = min(int(np.ceil(count / rows)), 4, max(int(width / LEAST[0]), 1))
    rows = int(np.ceil(count / columns))
    return rows, int(np.ceil(count / rows))


def cells(figure: Figure, rows: int, columns: int, count: int, *, above: float) -> list[Axes]:
    """Axes, one in each of the first cells, row by row.

    Args:
        figure: where.
        rows: of cells.
        columns: of cells.
        count: how many axes.
        above: inches that are left free at the top.
    """
    height = (figure.get_figheight() - above) / rows
    spec = GridSpec(rows + 1, columns, figure, wspace=0, hspace=0, height_ratios=[above] + [height] * rows)
    parts = [figure.add_subfigure(spec[1 + index // columns, index % columns]) for index in range(count)]
    return [part.add_subplot(GridSpec(1, 1, None, *FIRST)[0, 0]) for part in parts]


def fit(axes: Sequence[Axes], heads: Sequence[float]) -> None:
    """Give the axes of each cell, and what stands beside them, the room that their words leave.

    Args:
        axes: one of each cell.
        heads: inches at the top of each cell that something else takes.
    """
    for ax, head in zip(axes, heads, strict=True):
        part = ax.get_figure(root=False)
        assert isinstance(part, SubFigure)
        size = np.array([part.bbox.width, part.bbox.height]) / part.dpi
        to_shares = part.transSubfigure.inverted()
        places = [each.get_position(original=True) for each in part.axes]
        drawn = [box for each in part.axes if (box := each.get_tightbbox(for_layout_only=True)) is not None]
        now = [each.get_position() for each in part.axes]  # colour bars may be less than their place
        inside, frames, around = (np.asarray(Bbox.union(each).get_points()) for each in (places, now, drawn))
        around = to_shares.transform(around)
        low = APART / size + np.maximum(frames[0] - around[0], 0)
        high = 1 - (APART, APART + head) / size - np.maximum(around[1] - frames[1], 0)
        high = np.maximum(high, low + LITTLE)
        for each, place in zip(part.axes, places, strict=True):
            each.set_position(Bbox(low + (place.get_points() - inside[0]) / (inside[1] - inside[0]) * (high - low)))
