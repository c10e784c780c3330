"""How our own figures look. Nothing global is touched: everything is set on the artists themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from losscope.landscape import SettingError

__all__ = [
    "BLUE",
    "GREEN",
    "GRID",
    "INK",
    "MUTED",
    "ORANGE",
    "PAPER",
    "PURPLE",
    "SKY",
    "VERMILLION",
    "YELLOW",
    "dress",
    "halo",
    "in_two",
    "legend",
    "legend_above",
    "log_if_wide",
    "new_figure",
    "note",
    "plain",
    "say",
    "step_axis",
    "tick_text",
    "title",
    "width_of",
]  # fmt: skip

# Okabe and Ito's palette: distinguishable with every kind of colour vision.
BLUE, VERMILLION, GREEN, ORANGE = "#0072b2", "#d55e00", "#009e73", "#e69f00"
PURPLE, SKY, YELLOW = "#cc79a7", "#56b4e9", "#f0e442"
INK, MUTED, GRID, PAPER = "#1f2328", "#6e7781", "#d8dee4", "#ffffff"
FONT = 9.0
LETTER = 0.062
"""Mean width in inches of a letter in a legend."""
HANDLE = 0.56
"""Width in inches of a legend's handle and the space after its words."""
LEFT = 0.75
"""Width in inches of what is commonly left of the axes."""
WIDE = 20.0
"""Positive numbers that spread by more than this factor are drawn on a logarithmic axis."""


def new_figure(heights: Sequence[float], size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure of panels above each other that share their x-axis; pyplot knows nothing of it.

    Args:
        heights: relative heights of the panels.
        size: width and height in inches.
    """
    figure = Figure(figsize=size, layout="constrained", facecolor=PAPER)
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=list(heights))[:, 0]
    for ax in axes:
        dress(ax)
    return figure, axes


def given_axes(ax: Any, count: int, plot: str, words: str) -> np.ndarray:
    """The Axes that a figure of several panels was given, in one dimension.

    Args:
        ax: several Axes.
        count: how many there must be.
        plot: name of the function that draws on them.
        words: how many, in words.

    Raises:
        SettingError: if there are not as many.
    """
    axes = np.asarray(ax, dtype=object).ravel()
    if len(axes) != count:
        raise SettingError(f"{plot} draws on one Axes, or on {words}; got {len(axes)}")
    return axes


def dress(ax: Axes) -> None:
    """Spines, ticks, grid and labels as in all our figures."""
    ax.set_facecolor(PAPER)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(INK)
    ax.tick_params(colors=INK, labelsize=FONT - 1, which="both")
    ax.grid(axis="y", color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set(color=INK, fontsize=FONT)


def step_axis(ax: Axes, steps: np.ndarray) -> None:
    """Label the x-axis and keep its ticks at whole steps."""
    ax.set_xlabel("optimizer step")
    nbins = 7 if width_of(ax) > 5 else 4
    ax.xaxis.set_major_locator(MaxNLocator(nbins=nbins, integer=True, min_n_ticks=1, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 0 else ""))
    if len(steps) and steps.min() == steps.max():
        drawn = [each.dataLim.intervalx for each in ax.get_shared_x_axes().get_siblings(ax)]  # e.g. what failed
        ax.set_xlim(min([steps.min() - 1, *(d[0] for d in drawn)]), max([steps.max() + 1, *(d[1] for d in drawn)]))


def log_if_wide(ax: Axes, values: np.ndarray, wide: float = WIDE, *, dense: float = 500) -> bool:
    """Make the y-axis logarithmic when the finite values are positive and spread by more than ``wide``.

    Up to a spread of ``dense`` there are ticks at 1, 2 and 5, beyond it at powers of ten only.
    """
    finite = values[np.isfinite(values)]
    if len(finite) == 0 or finite.min() <= 0 or finite.max() / finite.min() <= wide:
        return False
    ax.set_yscale("log")
    if finite.max() / finite.min() < 1e4:
        subs = (1.0, 2.0, 5.0) if finite.max() / finite.min() < dense else (1.0,)
        ax.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: tick_text(y)))
        ax.yaxis.set_minor_formatter(NullFormatter())
    return True


def tick_text(value: float) -> str:
    r"""A tick of a logarithmic axis: 1, 2 or 5 times a power of ten.

    Example:
        >>> from losscope.viz.style import tick_text
        >>> tick_text(0.05), tick_text(2000.0), tick_text(1e-6), tick_text(5e7)
        ('0.05', '2,000', '$10^{-6}$', '$5\\cdot10^{7}$')
    """
    if 1e-4 < value < 1e5:
        return f"{value:,.0f}" if value >= 1 else f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    factor = f"{value / 10.0**exponent:.0f}"
    return rf"$10^{{{exponent}}}$" if factor == "1" else rf"${factor}\cdot10^{{{exponent}}}$"


def width_of(ax: Axes) -> float:
    """Width in inches of the figure that the axes are in, or of their columns where they share it with others."""
    figure, place = ax.get_figure(root=False), ax.get_subplotspec()
    grid = None if place is None else place.get_topmost_subplotspec()
    share = 1.0 if grid is None else len(grid.colspan) / grid.get_gridspec().ncols
    return share * float(figure.bbox.width / figure.dpi) if figure is not None else 6.4


def in_two(ax: Axes, first: str, second: str) -> str:
    """A label for the x-axis: in two lines where the figure is too narrow for one, its first part cut to fit."""
    room = int(10 * width_of(ax))
    first = plain(first, room)
    return f"{first} {second}" if len(first) + len(second) < room else f"{first}\n{second}"


def halo(ax: Axes) -> list[Any]:
    """A rim in the colour of the background, which keeps text legible where it meets lines."""
    colour = to_rgba(ax.get_facecolor())
    return [withStroke(linewidth=2.5, foreground=colour if colour[3] > 0 else PAPER)]


def plain(text: str, most: int = 60) -> str:
    r"""A user's words for a figure: cut where too long, dollar signs taken as they are and not as mathematics.

    Example:
        >>> from losscope.viz.style import plain
        >>> print(plain("costs $5"), plain("x" * 100, 4))
        costs \$5 xxx…
    """
    return (text if len(text) <= most else text[: most - 1] + "…").replace("$", r"\$")


def say(ax: Axes, text: str) -> None:
    """Write in the middle of axes that have nothing to draw."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=MUTED, gid="nothing")
    ax.set_yticks([])


def title(figure: Figure, text: str) -> None:
    """A title above all panels, at the left."""
    figure.suptitle(plain(text), x=0.01, ha="left", fontsize=FONT + 1, fontweight="bold", color=INK)


def note(figure: Figure, text: str) -> None:
    """What is to be known of the numbers, small, in one line below all panels; nothing where there is nothing."""
    if not text:
        return
    figure.supxlabel(
        plain(text, min(90, round(figure.get_figwidth() * 17))), x=0.01, ha="left", fontsize=FONT - 2, color=MUTED
    )


def legend(ax: Axes, *, outside: bool, columns: int = 3) -> None:
    """The legend of one panel: above it in our own figures, where matplotlib finds room in a user's."""
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    size = FONT - 1
    where: dict[str, Any] = {"loc": "best", "frameon": True, "labelspacing": 0.5}
    if outside:
        size = FONT - 1 if width_of(ax) > 5 else FONT - 1.5
        where = {
            "loc": "lower left",
            "bbox_to_anchor": (0.0, 1.0),
            "borderaxespad": 0.3,
            "frameon": False,
            "labelspacing": 0.5 if width_of(ax) > 5 else 0.3,
            "ncols": _columns(labels, size, width_of(ax) - LEFT, columns),
        }
    made = ax.legend(handles, labels, fontsize=size, handlelength=2.4, columnspacing=1.6, borderpad=0.2, **where)
    if outside:
        for text in made.get_texts():
            text.set_color(INK)


def _columns(labels: Sequence[str], size: float, room: float, most: int) -> int:
    """In how many columns words of this size fit into so many inches; they are filled one after the other."""
    widths = [_inches(label, size) + HANDLE for label in labels]
    for columns in range(min(most, len(labels)), 1, -1):
        rows, more = divmod(len(labels), columns)
        ends = np.cumsum([rows + (column < more) for column in range(columns)])
        if sum(max(part) for part in np.split(widths, ends[:-1])) <= room:
            return columns
    return 1


def _inches(label: str, size: float) -> float:
    """Width of words, mathematics included, in the font that they are drawn in."""
    font = FontProperties(size=size)
    every = [
        text_to_path.get_text_width_height_descent(line, font, ismath="$" in line)[0] for line in label.split("\n")
    ]
    return float(max(every)) / 72


def legend_above(ax: Axes, *, own: bool) -> None:
    """The legend of one panel: above all of a figure of ours and as wide as it, else where matplotlib finds room."""
    figure = ax.get_figure(root=True)
    handles, labels = ax.get_legend_handles_labels()
    if not own or not handles or not isinstance(figure, Figure):
        legend(ax, outside=False)
        return
    made = figure.legend(
        handles, labels, loc="outside upper left", ncols=_columns(labels, FONT - 1, figure.get_figwidth() - 0.1, 2),
        frameon=False, fontsize=FONT - 1, handlelength=2.4, columnspacing=1.6, borderpad=0.2, borderaxespad=0.2,
    )  # fmt: skip
    for text in made.get_texts():
        text.set_color(INK)
