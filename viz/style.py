"""How our own figures look. Nothing global is touched: everything is set on the artists themselves."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colorbar import Colorbar
from matplotlib.colorizer import ColorizingArtist as ScalarMappable
from matplotlib.colors import LogNorm, SymLogNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator, SymmetricalLogLocator

from losscope.landscape import SettingError

from .label_room import RoomForLabels
from .ticks import WholeNumbers, signed_decades
from .words import number

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
    "blank",
    "colour_bar",
    "dress",
    "figure_number",
    "halo",
    "in_two",
    "inches",
    "ink",
    "legend",
    "legend_above",
    "log_if_wide",
    "log_ticks",
    "new_figure",
    "note",
    "plain",
    "say",
    "step_axis",
    "symmetric",
    "symmetric_if_wide",
    "tick_text",
    "title",
    "width_of",
]  # fmt: skip

# Okabe and Ito's palette: distinguishable with every kind of colour vision.
BLUE, VERMILLION, GREEN, ORANGE = "#0072b2", "#d55e00", "#009e73", "#e69f00"
PURPLE, SKY, YELLOW = "#cc79a7", "#56b4e9", "#f0e442"
INK, MUTED, GRID, PAPER = "#1f2328", "#6e7781", "#d8dee4", "#ffffff"
BOX = "\N{WHITE SQUARE}"
FONT = 9.0
LETTER = 0.062
"""Mean width in inches of a letter in a legend."""
HANDLE = 0.56
"""Width in inches of a legend's handle and the space after its words."""
LEFT = 0.75
"""Width in inches of what is commonly left of the axes."""
CLOSEST = 0.15
"""Inches between the labels of ticks above each other, at least."""
LETTERS, NOTES = 17, 3
"""Letters of a note to an inch, and its lines at most."""
WIDE = 20.0
"""Positive numbers that spread by more than this factor are drawn on a logarithmic axis."""


def blank(size: tuple[float, float], *, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty figure of ours; pyplot knows nothing of it.

    It has the canvas of PNGs, which keeps what was measured of words until they are drawn; other formats take theirs.

    Args:
        size: width and height in inches.
        layout: matplotlib's.
    """
    figure = Figure(figsize=size, layout=RoomForLabels() if layout else None, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def new_figure(heights: Sequence[float], size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure of panels above each other that share their x-axis.

    Args:
        heights: relative heights of the panels.
        size: width and height in inches.
    """
    figure = blank(size)
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
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set(color=INK, fontsize=FONT)
        axis.set_major_formatter(WholeNumbers())


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
    log_ticks(ax, float(finite.min()), float(finite.max()), dense=dense)
    return True


def symmetric_if_wide(ax: Axes, values: np.ndarray, wide: float = 100.0) -> bool:
    """Make the y-axis logarithmic on both sides of zero when not all values are positive and some are far from most.

    It is linear below the size of half of those that are not zero.
    """
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if len(sizes) == 0 or values[np.isfinite(values)].min() > 0 or sizes.max() < wide * np.median(sizes):
        return False
    symmetric(ax, 10.0 ** math.ceil(math.log10(float(np.median(sizes)))))
    return True


def symmetric(ax: Axes, linear: float) -> None:
    """Make the y-axis logarithmic on both sides of zero, and linear between ``-linear`` and ``linear``."""
    ax.set_yscale("symlog", linthresh=linear)
    locator = SymmetricalLogLocator(base=10, linthresh=linear)
    locator.set_params(numticks=max(int(_height(ax) / (2 * CLOSEST)), 3))
    ax.yaxis.set_major_locator(locator)
    ax.yaxis.set_major_formatter(FuncFormatter(_signed))


def _signed(value: float, _: object = None) -> str:
    return ("\N{MINUS SIGN}" if value < 0 else "") + tick_text(abs(value)) if value else "0"


def _height(ax: Axes) -> float:
    """Inches of height of the axes, before the layout is made."""
    figure = ax.get_figure(root=False)
    return float(ax.get_position().height * figure.bbox.height / figure.dpi) if figure is not None else 3.0


def log_ticks(ax: Axes, low: float, high: float, *, dense: float = 500) -> None:
    """Ticks of a logarithmic y-axis between two values: at 1, 2 and 5 where there is room, else at powers of ten.

    Within less than a factor of 5, where there may be none of these, they are at equal distances.
    """
    wide = high / low
    if not wide < 1e4:
        return
    if wide < 5:
        ax.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.5g}"))
    else:
        room = _height(ax) / CLOSEST
        subs = (1.0, 2.0, 5.0) if wide < dense and 3 * math.log10(wide) <= room else (1.0,)
        ax.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: tick_text(y)))
    ax.yaxis.set_minor_formatter(NullFormatter())


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


def ink(ax: Axes) -> Any:
    """The colour of the words of these axes: ours, or, of a user's, that of the user's style."""
    return ax.yaxis.label.get_color()


def halo(ax: Axes) -> list[Any]:
    """A rim in the colour of the background, which keeps text legible where it meets lines."""
    colour = to_rgba(ax.get_facecolor())
    return [withStroke(linewidth=2.5, foreground=colour if colour[3] > 0 else PAPER)]


def figure_number(value: float | None, digits: int = 4) -> str:
    r"""A number in the words of a figure: as elsewhere, but with a true minus sign and power of ten.

    Example:
        >>> from losscope.viz.style import figure_number
        >>> figure_number(12667.0), figure_number(-0.5), figure_number(4e-11)
        ('12,667', '−0.5', '$4\\cdot10^{-11}$')
    """
    text = number(value, digits).replace("-", "\N{MINUS SIGN}")
    if "e" not in text or value is None:
        return text
    mantissa, _, power = f"{abs(value):.{digits - 1}e}".partition("e")
    return ("\N{MINUS SIGN}" if value < 0 else "") + rf"${float(mantissa):g}\cdot10^{{{int(power)}}}$"


def plain(text: str, most: int = 60) -> str:
    r"""A user's words for a figure: cut where too long, dollar signs taken as they are and not as mathematics.

    What the font has no sign for, such as an emoji in most, is a box, of which matplotlib then need not warn.

    Example:
        >>> from losscope.viz.style import plain
        >>> print(plain("costs $5"), plain("x" * 100, 4), plain("run \N{FIRE}"))
        costs \$5 xxx… run □
    """
    short = text if len(text) <= most else text[: most - 1] + "…"
    if not short.isascii() or not short.isprintable():
        fonts = [get_font(findfont(FontProperties(family=[name]))) for name in FontProperties().get_family()]
        known = [sign.isprintable() and any(font.get_char_index(ord(sign)) for font in fonts) for sign in short]
        short = "".join(sign if there else BOX for sign, there in zip(short, known, strict=True))
    return short.replace("$", r"\$")


def say(ax: Axes, text: str) -> None:
    """Write in the middle of axes that have nothing to draw."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=MUTED, fontsize=FONT, gid="nothing")
    ax.set_yticks([])


def colour_bar(ax: Axes, shown: ScalarMappable, label: str) -> Colorbar:
    """A colour bar beside axes and as high as they are; it has its own."""
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    bar = figure.colorbar(shown, ax=ax, pad=0.02, fraction=0.05 if width_of(ax) <= 5 else 0.03, aspect=30)
    bar.set_label(label, color=ink(ax), fontsize=FONT)
    if isinstance(shown.norm, LogNorm):
        log_ticks(bar.ax, float(shown.norm.vmin or 1), float(shown.norm.vmax or 1))
    elif isinstance(shown.norm, SymLogNorm):
        room = int(_height(ax) / (1.4 * CLOSEST))
        bar.set_ticks(signed_decades(shown.norm.linthresh, float(shown.norm.vmax or 1), room))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(_signed))
        bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(labelsize=FONT - 1, colors=ink(ax), which="both")
    bar.outline.set_visible(False)
    return bar


def title(figure: Figure, text: str, y: float | None = None) -> None:
    """A title above all panels, at the left; at a share of the figure's height, or where the layout puts it."""
    figure.suptitle(plain(text), x=0.01, y=y, ha="left", fontsize=FONT + 1, fontweight="bold", color=INK)


def note(figure: Figure, text: str) -> None:
    """What is to be known of the numbers, small, in a line below all panels or two; nothing where there is nothing."""
    if not text:
        return
    lines = textwrap.wrap(text, round(figure.get_figwidth() * LETTERS), max_lines=NOTES, placeholder=" …")
    words = "\n".join(plain(line, len(line)) for line in lines)
    figure.supxlabel(words, x=0.01, ha="left", fontsize=FONT - 2, color=MUTED)


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
    widths = [inches(label, size) + HANDLE for label in labels]
    for columns in range(min(most, len(labels)), 1, -1):
        rows, more = divmod(len(labels), columns)
        ends = np.cumsum([rows + (column < more) for column in range(columns)])
        if sum(max(part) for part in np.split(widths, ends[:-1])) <= room:
            return columns
    return 1


def inches(label: str, size: float) -> float:
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
