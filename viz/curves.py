"""What figures of lines and of paths share: several results by name, a panel for each value, gaps that are seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes

from losscope.landscape import SettingError

from . import style
from .loss_scale import LossScale, loss_scale
from .series import drawable, runs_of
from .style import BLUE, GREEN, GRID, INK, MUTED, ORANGE, PURPLE, SKY, VERMILLION

__all__ = ["COLOURS", "MARKERS", "by_name", "chosen_values", "draw_curve", "draw_gaps", "freeze", "panels", "set_scale"]

Result = TypeVar("Result")
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK)
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
MARKERS_PER_INCH = 9
"""Of the figure's width, up to which every point has its marker."""
MARKED = 8
"""Of more points, so many have a marker, by which lines are told apart without colour."""


def by_name(results: Any, kind: type[Result], names: Any, plot: str) -> dict[str, Result]:
    """One result, several, or a mapping, as a mapping.

    Args:
        results: what a figure was given.
        kind: of each result.
        names: what a result is called that came without a name.
        plot: name of the function, for errors.

    Raises:
        SettingError: if there is none, or one of another kind.
    """
    if isinstance(results, kind):
        results = {names(results): results}
    elif isinstance(results, Sequence):
        found: dict[str, Any] = {}
        for each in results:
            name = names(each) if isinstance(each, kind) else "it"
            found[name if name not in found else f"{name} ({len(found) + 1})"] = each
        results = found
    if not isinstance(results, Mapping) or not results:
        given = "none" if isinstance(results, Mapping) else type(results).__name__
        raise SettingError(f"{plot} draws a {kind.__name__}, several in a list, or several by name; got {given}")
    for name, each in results.items():
        if not isinstance(each, kind):
            raise SettingError(f"{plot} draws {kind.__name__}s; {str(name)!r} is a {type(each).__name__}")
    return {str(name): each for name, each in results.items()}


def chosen_values(results: Mapping[str, Any], value: str | Sequence[str] | None, *, one: bool) -> list[str]:
    """Names of the values to draw, one panel each.

    Args:
        results: each with ``values``.
        value: what was asked for; None takes the loss, and what else there is unless ``one``.
        one: whether there is room for one only.

    Raises:
        SettingError: if no result has such values.
    """
    every = list(dict.fromkeys(name for each in results.values() for name in each.values))
    names = [value] if isinstance(value, str) else list(value) if value is not None else every[: 1 if one else None]
    for name in names:
        if name not in every:
            raise SettingError(f"there are no values {name!r}; there are {', '.join(map(repr, every))}")
    if not names:
        raise SettingError(f"name one or more of the values {', '.join(map(repr, every))}")
    return names


def panels(names: Sequence[str], ax: Any, size: tuple[float, float] | None, plot: str, count: int) -> np.ndarray:
    """The Axes to draw on: those given, or a new figure's, the first taller than the others."""
    if ax is not None:
        return style.given_axes(ax, len(names), plot, f"{len(names)} (one for each of the values)")
    height = 3.2 + 1.3 * (len(names) - 1) + 0.3 * (count - 1)  # the legend's
    return style.new_figure([1.8] + [1.0] * (len(names) - 1), size or (5.0, height))[1]


def set_scale(ax: Axes, values: np.ndarray, scale: str, name: str) -> LossScale:
    """Make the y-axis linear or logarithmic, and label it."""
    values = drawable(values)
    found = loss_scale(values, scale)
    ax.set_ylabel(found.label(style.plain(name, 40)))
    if found.logarithmic:
        ax.set_yscale("log", nonpositive="clip")
        shown = found.shown(values[np.isfinite(values)])
        style.log_if_wide(ax, shown[shown > 0], 1.0)
    return found


def freeze(ax: Axes, scale: LossScale) -> None:
    """Keep the y-axis to what is drawn so far; where a logarithm has no zero, to a little below the lowest."""
    low, high = ax.get_ylim()
    ax.set_ylim(scale.low / 2 if scale.logarithmic and scale.base else low, high)


def draw_curve(ax: Axes, x: np.ndarray, y: np.ndarray, index: int, **options: Any) -> None:
    """A line that breaks where a value is not finite; a point alone between such is a dot."""
    y = drawable(y)
    known = np.isfinite(y)
    beside = np.concatenate([[False], known[:-1]]) | np.concatenate([known[1:], [False]])
    marked = known & ~beside
    marked[:: 1 if len(x) <= MARKERS_PER_INCH * style.width_of(ax) else max(len(x) // MARKED, 1)] = True
    ax.plot(
        x, y, color=COLOURS[index % len(COLOURS)], linewidth=1.4, marker=MARKERS[index % len(MARKERS)], markersize=3,
        markevery=np.flatnonzero(marked).tolist(), zorder=3, **options,
    )  # fmt: skip


def draw_gaps(ax: Axes, x: np.ndarray, y: np.ndarray, index: int, of: int) -> None:
    """Where values are not finite: hatched up to the finite neighbours, or crosses where several lines are drawn."""
    lost = ~np.isfinite(drawable(y))
    if not lost.any():
        return
    counts = {"NaN": int(np.isnan(y).sum()), "infinite": int(np.isinf(y).sum())}
    counts["too large"] = int(lost.sum()) - sum(counts.values())
    words = ", ".join(f"{name}: {count:,}" for name, count in counts.items() if count) + f" of {len(y):,} points"
    if of > 1:
        ax.plot(
            x[lost], np.full(int(lost.sum()), 0.03 + 0.045 * index), transform=ax.get_xaxis_transform(), marker="x",
            linestyle="none", markersize=4, color=COLOURS[index % len(COLOURS)], label=words, zorder=4, gid="gaps",
        )  # fmt: skip
        return
    for first, end in runs_of(lost):
        ax.axvspan(
            x[max(first - 1, 0)], x[min(end, len(x) - 1)], facecolor=GRID, edgecolor=MUTED, hatch="/////", linewidth=0,
            zorder=0.5, label=words, gid="gaps",
        )  # fmt: skip
        words = "_"
