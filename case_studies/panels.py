"""Panels side by side, as the figures of several case studies have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

__all__ = ["BLUE", "GREEN", "GREY", "RED", "SKY", "band", "describe", "labels", "log", "panels", "shade", "untitled"]

BLUE, RED, GREEN, SKY, GREY = "#0072b2", "#d55e00", "#009e73", "#56b4e9", "#6e7781"


def panels(*titles: str, width: float = 3.6) -> tuple[Figure, list[Axes]]:
    """One panel for each title, `width` inches wide."""
    figure = Figure(figsize=(width * len(titles), 3.2), layout="constrained")
    axes = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=9, loc="left")
        ax.tick_params(labelsize=8)
        ax.grid(color="#d8dee4", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def untitled(count: int, width: float = 3.1) -> tuple[Figure, list[Axes]]:
    """So many panels, which `describe` gives their titles."""
    return panels(*[""] * count, width=width)


def describe(ax: Axes, title: str, x: str, y: str = "", **legend: Any) -> None:
    """A panel's title and the names of its axes, and a legend where something in it has a label."""
    ax.set_title(title, fontsize=9, loc="left")
    ax.set_xlabel(x, fontsize=8)
    ax.set_ylabel(y, fontsize=8)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=7, frameon=False, **legend)


def band(
    ax: Axes, points: Iterable[tuple[float, float]], color: Any = BLUE, marker: str = "o", label: str = ""
) -> None:
    """The median of the y at each x, and their range."""
    by_x: dict[float, list[float]] = {}
    for x, y in points:
        by_x.setdefault(x, []).append(y)
    xs = sorted(by_x)
    ax.fill_between(xs, [min(by_x[x]) for x in xs], [max(by_x[x]) for x in xs], color=color, alpha=0.2, linewidth=0)
    ax.plot(xs, [median(by_x[x]) for x in xs], color=color, marker=marker, markersize=4, linewidth=1.2, label=label)


def log(ax: Axes, which: str, ticks: Sequence[float] = ()) -> None:
    """Logarithmic axes (``"x"``, ``"y"`` or ``"xy"``) with plain numbers, at 1, 2 and 5 where there are few powers.

    Args:
        ax: with everything drawn.
        which: axes.
        ticks: of the x-axis, instead.
    """
    for name in which:
        getattr(ax, f"set_{name}scale")("log")
        axis, (low, high) = getattr(ax, f"{name}axis"), getattr(ax, f"get_{name}lim")()
        wide = high / low
        axis.set_major_locator(LogLocator(subs=(1,) if wide > 300 else (1, 2, 5) if wide > 4 else range(1, 10)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    if ticks and "x" in which:
        ax.set_xticks(list(ticks))


def labels(ax: Axes, x: str, y: str, legend: str | None = None) -> None:
    """Names of the axes, and a legend at a place, where there is to be one."""
    ax.set_xlabel(x, fontsize=8)
    ax.set_ylabel(y, fontsize=8)
    if legend:
        ax.legend(fontsize=7, frameon=False, loc=legend)


def shade(i: int, n: int) -> Any:
    """The color of the i-th of n that have an order."""
    return colormaps["viridis"](0.85 * i / max(1, n - 1))
