"""Panels side by side, as the figures of the case studies have them: plainly dressed, bands from seed to seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

__all__ = [
    "BLACK", "BLUE", "COLOURS", "GREEN", "GREY", "ORANGE", "PURPLE", "RED", "SKY", "STYLES",
    "band", "bars", "labels", "log", "panels", "shade",
]  # fmt: skip

BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK = COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1f2328",
)  # fmt: skip
"""Okabe and Ito's palette, in an order that keeps neighbours apart with every kind of colour vision."""
GREY = "#6e7781"
STYLES = ("-", "--", "-.", ":")
"""Of lines that colour alone would tell apart."""


def panels(*titles: str, size: tuple[float, float] = (3.6, 3.2), columns: int = 4) -> tuple[Figure, list[Axes]]:
    """One panel for each title, in rows; ``size`` in inches is that of one."""
    columns = min(len(titles), columns)
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(columns * size[0], rows * size[1]), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for spare in axes[len(titles) :]:
        spare.remove()
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title, fontsize=9, loc="left")
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
        ax.grid(color="#d8dee4", linewidth=0.5)
        ax.set_axisbelow(True)
    return figure, axes[: len(titles)]


def labels(ax: Axes, x: str, y: str = "", legend: str | None = None) -> None:
    """Names of the axes, and a legend at a place, where there is to be one."""
    ax.set_xlabel(x, fontsize=8)
    ax.set_ylabel(y, fontsize=8)
    if legend:
        ax.legend(fontsize=7, framealpha=0.6, edgecolor="none", loc=legend)


def _by_x(points: Iterable[tuple[float, float]]) -> dict[float, list[float]]:
    found: dict[float, list[float]] = {}
    for x, y in points:
        found.setdefault(x, []).append(y)
    return dict(sorted(found.items()))


def band(ax: Axes, points: Iterable[tuple[float, float]], color: Any = BLUE, marker: str = "", **look: Any) -> None:
    """The median of the y at each x, and a shade from the smallest to the largest; ``look`` is of the line."""
    by_x = _by_x(points)
    ends = [min(ys) for ys in by_x.values()], [max(ys) for ys in by_x.values()]
    ax.fill_between(list(by_x), *ends, color=color, alpha=0.18, linewidth=0)
    line = {"markersize": 4, "linewidth": 1.3, **look}
    ax.plot(list(by_x), [median(ys) for ys in by_x.values()], color=color, marker=marker, **line)


def bars(ax: Axes, points: Iterable[tuple[float, float]], color: Any = BLUE, marker: str = "o", **look: Any) -> None:
    """The same with a bar at each x, where shades would overlap."""
    by_x = _by_x(points)
    middle = [median(ys) for ys in by_x.values()]
    ends = (
        [m - min(ys) for m, ys in zip(middle, by_x.values(), strict=True)],
        [max(ys) - m for m, ys in zip(middle, by_x.values(), strict=True)],
    )
    line = {"markersize": 4, "linewidth": 1.3, "elinewidth": 0.8, "capsize": 2, **look}
    ax.errorbar(list(by_x), middle, ends, color=color, marker=marker, **line)


def log(ax: Axes, which: str, ticks: Sequence[float] = ()) -> None:
    """Logarithmic axes (``"x"``, ``"y"`` or ``"xy"``) with plain numbers, at 1, 2 and 5 where there are few powers.

    Args:
        ax: with everything drawn.
        which: axes.
        ticks: of the last of them, instead.
    """
    for name in which:
        getattr(ax, f"set_{name}scale")("log")
        axis, (low, high) = getattr(ax, f"{name}axis"), getattr(ax, f"get_{name}lim")()
        wide = high / low
        axis.set_major_locator(LogLocator(subs=(1,) if wide > 300 else (1, 2, 5) if wide > 4 else range(1, 10)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    if ticks:
        getattr(ax, f"set_{which[-1]}ticks")(list(ticks))


def shade(i: int, n: int) -> Any:
    """The color of the i-th of n that have an order."""
    return colormaps["viridis"](0.85 * i / max(1, n - 1))
