"""Labels of y-axes that are as long as there is room beside their panels."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

__all__ = ["RoomForLabels"]

LEAST = 5.0
"""Size in points below which nothing is read."""


class RoomForLabels(ConstrainedLayoutEngine):
    """Matplotlib's constrained layout, which then makes labels small that reach over those above or below them."""

    def execute(self, fig: Figure) -> None:
        """Lay out, and fit the labels into the room that their panels have."""
        for ax in fig.axes:
            label: Any = ax.yaxis.label
            if hasattr(label, "full_size"):
                label.set_fontsize(label.full_size)
        super().execute(fig)
        for ax in fig.axes:
            label = ax.yaxis.label
            if not label.get_text() or not ax.get_visible():
                continue
            length, room = label.get_window_extent().height, _room(ax, fig)
            if length > room > 0:
                label.full_size = label.get_fontsize()
                label.set_fontsize(max(label.full_size * room / length, LEAST))


def _room(ax: Axes, figure: Figure) -> float:
    """Pixels from the middle of the gap below a panel to that of the gap above it, as seen from the panel's middle."""
    own = ax.bbox
    middle = (own.y0 + own.y1) / 2
    low, high = figure.bbox.y0, figure.bbox.y1
    for other in figure.axes:
        box = other.bbox
        if other is ax or box.x1 <= own.x0 or own.x1 <= box.x0:
            continue
        if box.y1 <= own.y0:
            low = max(low, (box.y1 + own.y0) / 2)
        elif box.y0 >= own.y1:
            high = min(high, (box.y0 + own.y1) / 2)
    return 2 * float(min(middle - low, high - middle))
