"""The loss along paths between two points, and the barriers on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from losscope.landscape.surface import LossPath

from . import style
from .curves import COLOURS, by_name, chosen_values, draw_curve, draw_gaps, freeze, panels, set_scale
from .loss_scale import LossScale, said
from .series import drawable
from .sheet import as_array, footnote
from .style import MUTED

__all__ = ["plot_path"]

LEAST_ARROW = 0.03
"""Of the height of a panel, from which a barrier's arrow can be seen."""


def plot_path(
    paths: LossPath | Sequence[LossPath] | Mapping[str, LossPath],
    ax: Axes | Sequence[Axes] | np.ndarray | None = None,
    *,
    value: str | Sequence[str] | None = None,
    scale: str = "linear",
    size: tuple[float, float] | None = None,
) -> Axes | np.ndarray:
    """Draw the loss along one or several paths, each value on a panel of its own.

    An arrow spans each barrier: from the straight line between the values at the ends, dotted, to the curve, where the
    curve is furthest beyond it. Its size is beside it, and for the loss in the legend. Where a value is NaN or infinite
    the curve breaks, and the gap is hatched; of several paths the points that are missing are crosses at the bottom.

    Args:
        paths: one, several, or several by name.
        ax: one Axes draws the loss, or the ``value`` that is named; several draw a value each; None makes a figure.
        value: the loss, a metric, or several of them; None: all of them in a figure of our own.
        scale: of the loss: ``"linear"``, on which a barrier is what it looks like, ``"log"``, or ``"auto"``.
        size: width and height in inches of the figure made.

    Returns:
        The Axes drawn on: one where one value is drawn, else an array.

    Raises:
        SettingError: if this is no path, has no such values, or there are not as many Axes as values.

    Example:
        >>> import torch
        >>> from losscope.landscape.surface import LossPath
        >>> from losscope.viz import plot_path
        >>> t = torch.linspace(0, 1, 21, dtype=torch.float64)
        >>> path = LossPath(t, {"loss": 4 * t * (1 - t)}, "linear", 1.0, {"loss": 1.0}, 1.0, 0.5, 2.0)
        >>> plot_path(path).get_xlabel()
        'position t from first (0) to second (1)'
    """
    found = by_name(paths, LossPath, lambda each: each.kind, "plot_path")
    names = chosen_values(found, value, one=isinstance(ax, Axes))
    own = ax is None
    axes = panels(names, ax, size, "plot_path", len(found))
    for name, each in zip(names, axes, strict=True):
        _draw_panel(each, found, name, scale if name == "loss" else "linear", legend=each is axes[0])
    room = int(3.6 * style.width_of(axes[-1])) - 2
    first, second = (style.plain(end, room) for end in next(iter(found.values())).ends)
    axes[-1].set_xlabel(style.in_two(axes[-1], "position t", f"from {first} (0) to {second} (1)"))
    style.legend_above(axes[0], own=own)
    figure = axes[0].get_figure(root=True)
    if own and isinstance(figure, Figure):
        style.note(figure, footnote(found.values()))
    return axes[0] if len(names) == 1 else axes


def _draw_panel(ax: Axes, paths: Mapping[str, LossPath], name: str, scale: str, *, legend: bool) -> None:
    having = {key: path for key, path in paths.items() if name in path.values}
    curves = {key: (as_array(path.t), as_array(path.values[name])) for key, path in having.items()}
    shown = set_scale(ax, np.concatenate([y for _, y in curves.values()]), scale, name)
    for index, (key, (t, y)) in enumerate(curves.items()):
        size = having[key].barriers.get(name, math.nan)
        words = f"{style.plain(key, int(7 * style.width_of(ax)))}: barrier {said(size)}" + (
            f" of {name}" if name != "loss" else ""
        )
        draw_curve(ax, t, shown.shown(y), index, label=words if legend else "_", gid="curve")
        draw_gaps(ax, t, y, index, len(curves))
    if not any(np.isfinite(drawable(y)).any() for _, y in curves.values()):
        style.say(ax, "no finite value")
        return
    ax.set_xlim(-0.03, 1.03)
    ax.margins(y=0.1)
    freeze(ax, shown)
    _draw_chords(ax, curves, shown)
    low, high = ax.get_ylim()
    tall = LEAST_ARROW * (high - low) if ax.get_yscale() == "linear" else 0.0
    for index, (key, (t, y)) in enumerate(curves.items()):
        size = having[key].barriers.get(name, math.nan)
        if math.isfinite(size) and size > tall:
            _draw_barrier(ax, t, y, size, shown, index)


def _draw_chords(ax: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], shown: LossScale) -> None:
    """The straight lines between the ends, each once: it is bent on a logarithmic scale."""
    ends = {(float(f"{y[0]:.4g}"), float(f"{y[-1]:.4g}")): (y[0], y[-1]) for _, y in curves.values()}
    t = np.linspace(0, 1, 101)
    for index, (first, last) in enumerate(ends.values()):
        if math.isfinite(first) and math.isfinite(last):
            ax.plot(
                t, shown.shown((1 - t) * first + t * last), color=MUTED, linewidth=1.0, linestyle=":", zorder=2,
                label="_" if index else "straight between the ends", gid="chord",
            )  # fmt: skip


def _draw_barrier(ax: Axes, t: np.ndarray, y: np.ndarray, size: float, shown: LossScale, index: int) -> None:
    """An arrow from the chord to the curve; of a value that is better when larger, downward."""
    chord = (1 - t) * y[0] + t * y[-1]
    beyond = y - chord
    if not np.isfinite(beyond).any():
        return
    at = int(np.nanargmin(np.abs(np.abs(np.where(np.isfinite(beyond), beyond, np.nan)) - size)))
    colour, aside = COLOURS[index % len(COLOURS)], 4 * (index % 4)  # arrows at one place stand beside each other
    ends = [(float(t[at]), float(v)) for v in shown.shown(np.array([chord[at], y[at]]))]
    style_of = {"arrowstyle": "<->", "color": colour, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
    ax.annotate("", ends[1], xytext=ends[0], arrowprops=style_of, zorder=4, gid="barrier")
    left = t[at] > 0.7
    ax.annotate(
        said(size), (ends[0][0], (ends[0][1] + ends[1][1]) / 2), xytext=(-4 - aside if left else 4 + aside, 0),
        textcoords="offset points", ha="right" if left else "left", va="center", color=colour,
        fontsize=style.FONT - 1, path_effects=style.halo(ax), zorder=6, gid="barrier-size",
    )  # fmt: skip
