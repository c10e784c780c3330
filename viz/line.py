"""The loss along a line through parameter space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from losscope.landscape.surface import Line

from . import style
from .curves import COLOURS, by_name, chosen_values, draw_curve, draw_gaps, freeze, panels, set_scale
from .loss_scale import LossScale, said
from .series import LARGEST, drawable
from .sheet import as_array, footnote
from .style import INK, MUTED, PAPER, VERMILLION

__all__ = ["plot_line"]


def plot_line(
    lines: Line | Sequence[Line] | Mapping[str, Line],
    ax: Axes | Sequence[Axes] | np.ndarray | None = None,
    *,
    value: str | Sequence[str] | None = None,
    scale: str = "auto",
    size: tuple[float, float] | None = None,
) -> Axes | np.ndarray:
    """Draw a line, or several, each value on a panel of its own.

    Where a value is NaN or infinite the curve breaks, and the gap is hatched, up to its finite neighbours; of several
    lines the points that are missing are crosses at the bottom. The quadratic model of the centre is dashed, as far as
    it holds to its error, which for one line is shaded. Points that the line was drawn through are named.

    Args:
        lines: one, several, or several by name.
        ax: one Axes draws the loss, or the ``value`` that is named; several draw a value each; None makes a figure.
        value: the loss, a metric, or several of them; None: all of them in a figure of our own.
        scale: of the first panel: ``"linear"``; ``"log"``, which shows how far values are above the lowest where not
            all are positive; or ``"auto"``, which takes the logarithm where values spread far.
        size: width and height in inches of the figure made.

    Returns:
        The Axes drawn on: one where one value is drawn, else an array.

    Raises:
        SettingError: if this is no line, has no such values, or there are not as many Axes as values.

    Example:
        >>> import torch
        >>> from losscope.landscape.surface import Axis, Line
        >>> from losscope.viz import plot_line
        >>> x = torch.linspace(-1, 1, 21, dtype=torch.float64)
        >>> plot_line(Line(x, {"loss": x**2}, 0.0, Axis(torch.ones(4), "all ones"))).get_xlabel()
        'all ones [unit: length 2]'
    """
    found = by_name(lines, Line, lambda each: each.axis.name, "plot_line")
    names = chosen_values(found, value, one=isinstance(ax, Axes))
    own = ax is None
    axes = panels(names, ax, size, "plot_line", len(found))
    for name, each in zip(names, axes, strict=True):
        _draw_panel(each, found, name, scale if name == names[0] else "auto")
    axes[-1].set_xlabel(_label(axes[-1], list(found.values())))
    style.legend_above(axes[0], own=own)
    figure = axes[0].get_figure(root=True)
    if own and isinstance(figure, Figure):
        style.note(figure, footnote(found.values()))
    return axes[0] if len(names) == 1 else axes


def _label(ax: Axes, lines: Sequence[Line]) -> str:
    names = dict.fromkeys((line.axis.name, said(line.axis.norm)) for line in lines)
    if len(names) > 1:
        return "coordinate [units: lengths in the legend]"
    ((name, norm),) = names
    return style.in_two(ax, name, f"[unit: length {norm}]")


def _draw_panel(ax: Axes, lines: Mapping[str, Line], name: str, scale: str) -> None:
    having = {key: line for key, line in lines.items() if name in line.values}
    curves = {key: (as_array(line.x), as_array(line.values[name])) for key, line in having.items()}
    shown = set_scale(ax, np.concatenate([y for _, y in curves.values()]), scale, name)
    units = len({said(line.axis.norm) for line in lines.values()}) > 1
    for index, (key, (x, y)) in enumerate(curves.items()):
        words = style.plain(key, int(7 * style.width_of(ax))) + (
            f" (unit: {said(having[key].axis.norm)})" if units else ""
        )
        draw_curve(ax, x, shown.shown(y), index, label=words if len(lines) > 1 else name, gid="curve")
        draw_gaps(ax, x, y, index, len(lines))
    if not any(np.isfinite(drawable(y)).any() for _, y in curves.values()):
        style.say(ax, "no finite value")
    if name == "loss":
        freeze(ax, shown)  # models may go far beyond what was measured
        _draw_models(ax, having, shown)
        _draw_centers(ax, having, shown)
    _draw_points(ax, having, labelled=name == next(iter(next(iter(lines.values())).values)))


def _draw_models(ax: Axes, lines: Mapping[str, Line], shown: LossScale) -> None:
    for index, line in enumerate(lines.values()):
        model, alone = line.model, len(lines) == 1
        if model is None or not math.isfinite(model.value):
            continue
        share = f"{100 * model.error:g} %"
        if not model.radius > 0:
            if alone:
                ax.plot([], [], color=VERMILLION, linestyle="--", label=f"quadratic model: to {share} nowhere")
            continue
        ends = as_array(line.x)[[0, -1]]
        reach = model.radius / line.axis.norm if line.axis.norm > 0 else math.inf
        x = np.linspace(max(ends[0], -reach), min(ends[1], reach), 201)
        q = model.value + float(model.slopes[0]) * x + float(model.curvatures[0, 0]) * x**2 / 2
        everywhere = -reach <= ends[0] and ends[1] <= reach
        words = "quadratic model" + (f": to {share} all over" if everywhere else "")
        ax.plot(
            x, shown.shown(q), color=VERMILLION if alone else COLOURS[index % len(COLOURS)], linestyle=(0, (4, 2)),
            linewidth=1.3, zorder=4, label=words if alone else "_", gid="model",
        )  # fmt: skip
        if alone and not everywhere:
            ax.axvspan(x[0], x[-1], color=VERMILLION, alpha=0.1, linewidth=0, zorder=0.6, gid="radius",
                       label=f"it holds to {share} (radius {said(model.radius, 2)})")  # fmt: skip
    if len(lines) > 1 and any(line.model is not None and line.model.radius > 0 for line in lines.values()):
        ax.plot([], [], color=MUTED, linestyle=(0, (4, 2)), label="quadratic model, as far as it holds")


def _draw_centers(ax: Axes, lines: Mapping[str, Line], shown: LossScale) -> None:
    for index, center in enumerate(dict.fromkeys(line.center for line in lines.values())):
        if math.isfinite(center) and abs(center) < LARGEST:
            place = max(float(shown.shown(np.array(center))), ax.get_ylim()[0])  # a logarithm has no zero
            ax.plot(
                0, place, clip_on=False, marker="+", markersize=10, markeredgewidth=1.6, color=INK,
                linestyle="none", zorder=6, path_effects=[withStroke(linewidth=3.4, foreground=PAPER)], gid="center",
                label="_" if index else f"centre, loss {said(center, 4)}",
            )  # fmt: skip


def _draw_points(ax: Axes, lines: Mapping[str, Line], *, labelled: bool) -> None:
    """An upright line for each named point, with its name on the first panel."""
    places = {(name, at) for line in lines.values() for name, at in line.points.items() if math.isfinite(at)}
    for name, at in sorted(places, key=lambda each: each[1]):
        ax.axvline(at, color=MUTED, linewidth=0.9, linestyle=":", zorder=1.5, gid="point")
        if labelled:
            left = at > sum(ax.get_xlim()) / 2
            ax.annotate(
                style.plain(name, 24), (at, 0.97), xycoords=("data", "axes fraction"), textcoords="offset points",
                xytext=(-3 if left else 3, 0), ha="right" if left else "left", va="top", rotation=90, color=INK,
                fontsize=style.FONT - 1, path_effects=style.halo(ax), zorder=6, gid="point-name",
            )  # fmt: skip
