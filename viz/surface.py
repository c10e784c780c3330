"""The loss over a plane through parameter space, as contours."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from losscope.landscape import SettingError
from losscope.landscape.surface import Plane

from . import style
from .contour_labels import label_contours
from .loss_scale import Levels, LossScale, given_levels, levels_of, loss_scale, said
from .plane_marks import draw_center, draw_model, draw_points, draw_trajectory, settle_names
from .sheet import Sheet, footnote
from .style import GRID, INK, MUTED, PAPER

__all__ = ["plot_surface"]

COLOURS = LinearSegmentedColormap.from_list("losscope", ["#f4f9fd", "#c6dff0", "#8fc1e3", "#4f97cc", "#2a6fae"])
"""Light where the value is low: lightness rises evenly, so that it reads in grey and with every kind of vision."""
MOST_STRETCHED = 2.0
"""Of a picture in which lengths are true; beyond that its axes are stretched instead."""

LETTERS_PER_INCH = 12
"""Of an axis label."""
SKEW = 0.1
"""Cosine from which axes are not drawn as if they were orthogonal."""


def plot_surface(
    plane: Plane,
    ax: Axes | None = None,
    *,
    value: str = "loss",
    levels: int | Sequence[float] | None = None,
    scale: str = "auto",
    size: tuple[float, float] | None = None,
) -> Axes:
    r"""Draw a plane as filled contours, with what was checked about it.

    Marked are the centre, the points that the plane was drawn through and the trajectory, where it has them. Where a
    value is NaN or infinite, cells that touch it are hatched; nothing is interpolated across them. Further points of a
    refined plane shape the contours. The quadratic model of the centre has its contours at the same levels, dashed,
    within the Euclidean radius up to which it holds to its error; that radius is an ellipse where the axes are not
    orthonormal. Distances on paper are those in parameter space where the axes are orthogonal (their cosine below 0.1)
    and neither side of the picture becomes longer than twice the other.

    Args:
        plane: what to draw.
        ax: where to draw; None makes a figure. A colour bar takes some of its room.
        value: the loss, or the name of a metric.
        levels: how many contours about, or their values.
        scale: ``"linear"``; ``"log"``, which shows how far values are above the lowest where not all are positive; or
            ``"auto"``, which takes the logarithm where values spread far.
        size: width and height in inches of the figure made; default: 5 wide, and as high as the picture is.

    Returns:
        The Axes drawn on; the colour bar has its own.

    Raises:
        SettingError: if this is no plane, has a single row or column, has no such values, or an option means nothing.

    Example:
        >>> import torch
        >>> from losscope.landscape.surface import Axis, Plane
        >>> from losscope.viz import plot_surface
        >>> x = torch.linspace(-1, 1, 21, dtype=torch.float64)
        >>> loss = x**2 + 3 * x[:, None] ** 2
        >>> axes = (Axis(torch.tensor([1.0, 0.0]), "weight"), Axis(torch.tensor([0.0, 1.0]), "bias"))
        >>> plot_surface(Plane(x, x, {"loss": loss}, 0.0, axes)).get_ylabel().split()
        ['bias', '[unit:', 'length', '1]']
    """
    if not isinstance(plane, Plane):
        raise SettingError(f"plot_surface draws a Plane; got {type(plane).__name__}: see plot_line and plot_path")
    sheet = Sheet.of(plane, value)
    shown = loss_scale(sheet.heights, scale)
    chosen = _levels(levels, shown)
    own = ax is None
    if ax is None:
        figure, axes = style.new_figure((1,), size or (5.0, 4.8))
        ax = axes[0]
        ax.grid(visible=False)
        style.note(figure, footnote([plane]))
    _lay_out(ax, plane, sheet)
    marks = [draw_center(ax, plane, value), draw_trajectory(ax, plane), draw_points(ax, plane)]
    if value == "loss":
        marks.append(draw_model(ax, plane, sheet, shown, chosen))
    _draw_holes(ax, sheet)
    style.legend_above(ax, own=own)
    if sheet.drawable:
        lines = _draw_contours(ax, sheet, shown, chosen)
        bar = _draw_bar(ax, lines[0], chosen, shown.label(style.plain(value)), own=own)
        if own:
            _final_layout(ax, bar, chosen, fitted=size is None)
        else:
            _thin(bar, chosen)
        settle_names(ax)
        texts = dict(zip(map(float, chosen.values), chosen.texts, strict=True))
        label_contours(ax, lines[1], texts, np.concatenate(marks), style.FONT - 2, INK)
    else:
        style.say(ax, "no finite values side by side")
        ax.texts[-1].set(y=0.3, bbox={"facecolor": PAPER, "edgecolor": "none"})
    return ax


def _levels(levels: int | Sequence[float] | None, scale: LossScale) -> Levels:
    if levels is None:
        return levels_of(scale)
    if isinstance(levels, int):
        if isinstance(levels, bool) or levels < 2:
            raise SettingError(f"levels must be at least 2, or a sequence of values; got {levels}")
        return levels_of(scale, levels)
    values = np.unique(np.asarray(levels, dtype=float))
    if len(values) < 2 or not np.isfinite(values).all():
        raise SettingError(f"levels must be two or more different finite values; got {levels!r}")
    return given_levels(values, scale)


def _lay_out(ax: Axes, plane: Plane, sheet: Sheet) -> None:
    """Limits, labels and aspect."""
    x0, x1, y0, y1 = sheet.extent
    ax.set_xlim(x0, x1)
    ax.set_ylim(y0, y1)
    first, second = plane.axes
    frame = ax.get_window_extent().transformed(ax.get_figure(root=True).dpi_scale_trans.inverted())  # type: ignore[union-attr]
    ax.set_xlabel(_axis_label(plane, 0, frame.width))
    ax.set_ylabel(_axis_label(plane, 1, frame.height))
    lengths = np.array([first.norm * (x1 - x0), second.norm * (y1 - y0)])
    true = bool(np.isfinite(lengths).all()) and 0 < lengths.max() <= MOST_STRETCHED * lengths.min()
    if true and abs(float(plane.gram[0, 1])) < SKEW * first.norm * second.norm:
        ax.set_aspect(second.norm / first.norm, adjustable="box", anchor="NW")
    ax.spines[:].set_visible(True)
    plain = 1e-3 <= max(map(abs, sheet.extent)) < 1e4
    ax.locator_params(nbins=7 if style.width_of(ax) > 5 else 5 if plain else 3, steps=[1, 2, 2.5, 5, 10])
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda v, _: said(v, 6)))


def _axis_label(plane: Plane, index: int, inches: float) -> str:
    """Name, share and unit, in as many lines as there is room for."""
    axis, room = plane.axes[index], int(LETTERS_PER_INCH * inches)
    alike = f" ({index + 1})" if len({each.name for each in plane.axes}) == 1 else ""
    label = style.plain(axis.name, max(room - len(alike), 12)) + alike
    further = [f"[unit: length {said(axis.norm)}]"]
    if plane.explained is not None:
        further.insert(0, f"({100 * float(plane.explained[index]):.3g} %)")
    for each in further:
        fits = len(label.splitlines()[-1] if label else "") + len(each) < room
        label += (" " if fits else "\n") + each
    return label


def _draw_holes(ax: Axes, sheet: Sheet) -> None:
    """The ground that contours do not cover is hatched."""
    if not sheet.holes:
        return
    x0, x1, y0, y1 = sheet.extent
    words = ", ".join(f"{name}: {count:,}" for name, count in sheet.holes.items())
    ground = Rectangle(
        (x0, y0), x1 - x0, y1 - y0, facecolor=GRID, edgecolor=MUTED, hatch="/////", linewidth=0.0, zorder=0.5,
        label=f"{words} of {sheet.heights.size:,} points", gid="holes",
    )  # fmt: skip
    ax.add_patch(ground)


def _draw_contours(ax: Axes, sheet: Sheet, scale: LossScale, levels: Levels) -> tuple[ContourSet, ContourSet]:
    """The bands, and the lines between them."""
    norm = BoundaryNorm(levels.values, COLOURS.N, extend=levels.extend)
    filled = sheet.contours(
        ax, scale.base, filled=True, levels=levels.values, cmap=COLOURS, norm=norm, extend=levels.extend, zorder=1
    )
    filled.set_edgecolor("face")  # without it viewers show seams between the bands of a PDF
    filled.set(linewidth=0.3, gid="bands")
    lines = sheet.contours(
        ax, scale.base, filled=False, levels=levels.values, colors=INK, linewidths=0.6, linestyles="solid", alpha=0.7,
        zorder=2,
    )  # fmt: skip
    lines.set_gid("contours")
    return filled, lines


def _draw_bar(ax: Axes, bands: ContourSet, levels: Levels, words: str, *, own: bool) -> Colorbar:
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    room = {"cax": ax.inset_axes((1.03, 0, 0.045, 1))} if own else {"ax": ax, "pad": 0.02, "fraction": 0.05}
    bar = figure.colorbar(bands, spacing="uniform", **room)
    bar.set_ticks(levels.values.tolist(), labels=list(levels.texts))
    bar.set_label(levels.label(words), color=INK, fontsize=style.FONT)
    bar.ax.tick_params(labelsize=style.FONT - 1, colors=INK, which="both")
    bar.ax.minorticks_off()
    bar.outline.set_linewidth(0.6)
    return bar


def _final_layout(ax: Axes, bar: Colorbar, levels: Levels, *, fitted: bool) -> None:
    """Lay the figure out, which labels on contours need; without the room that true lengths leave, if ``fitted``."""
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    box, slot = ax.get_position(), ax.get_position(original=True)
    for label in (ax.yaxis.label, bar.ax.yaxis.label):
        if label.get_window_extent().height > box.height * figure.bbox.height:
            letters = max(int(LETTERS_PER_INCH * box.height * figure.get_figheight()), 16)
            lines = label.get_text().replace(" [", "\n[").replace(" (", "\n(").splitlines()
            label.set_text("\n".join(textwrap.fill(each, letters) for each in lines))
    _thin(bar, levels)
    if fitted:
        figure.set_figheight(figure.get_figheight() * (1 - slot.height + box.height))
    figure.draw_without_rendering()


def _thin(bar: Colorbar, levels: Levels) -> None:
    """As many levels on the colour bar as there is room for."""
    figure = bar.ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    fitting = bar.ax.get_window_extent().height * 72 / figure.dpi / (1.25 * style.FONT)
    every = math.ceil(len(levels.values) / max(fitting, 1))
    bar.set_ticks(levels.values[::every].tolist(), labels=list(levels.texts[::every]))
