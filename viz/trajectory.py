"""The path of the weights through parameter space, in its first two principal components and over steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import FuncFormatter, MaxNLocator

from losscope.landscape import RunError, SettingError
from losscope.landscape.surface import WeightTrajectory
from losscope.probes import Record, Run, trajectory_of
from losscope.probes.trajectory_arrays import chained

from . import series, style
from .lines import draw_band, draw_line
from .marks import mark_unmeasured
from .sharpness import _title
from .style import BLUE, INK, MUTED, ORANGE, PAPER

__all__ = ["plot_trajectory"]

PROBE = "trajectory"
HEIGHTS = (2.6, 1.2, 1.0)
MOST_MARKERS = 40
ERRORS = 1.96  # standard errors on each side
NOTHING = "no trajectory recorded"
COLOURS = ListedColormap(colormaps["viridis"](np.linspace(0.15, 0.9, 256)))  # its ends vanish on black, on white


def plot_trajectory(
    run: Run | WeightTrajectory,
    ax: Axes | Sequence[Axes] | np.ndarray | None = None,
    *,
    player: str | None = None,
    size: tuple[float, float] = (6.4, 6.6),
) -> Axes | np.ndarray:
    """Draw where training went: a map of the path of the weights, its distance from the start and length, its turns.

    The map is that of the first two principal components, to scale, with the share of the points' variance that each
    explains, from a circle to a square, coloured by step. Bars are 95 % intervals, where the sketch leaves any. In the
    middle the distance from the first point and the length of the polyline through the points; below, the cosine of
    the angle between successive displacements: 1 where the path goes straight on, -1 where it turns back.

    A random walk in many dimensions draws a parabola too, with shares of 61 and 15 % (Antognini and Sohl-Dickstein,
    "PCA of high dimensional random walks with comparison to neural network training", NeurIPS 2018).

    Args:
        run: a run with probe ``trajectory``, or what `losscope.landscape.surface.weight_trajectory` found.
        ax: one Axes draws the map only, three draw all; None makes a figure.
        player: which player; default: the first.
        size: width and height in inches of the figure made.

    Returns:
        The Axes drawn on: an array of three, or the one that was given; the colour bar has its own.

    Raises:
        SettingError: if ``ax`` is a number of Axes other than one or three, or ``run`` is something else.
        RunError: if the run has no such player.

    Example:
        >>> import torch
        >>> from losscope.landscape.surface import weight_trajectory
        >>> from losscope.viz import plot_trajectory
        >>> path = weight_trajectory(torch.randn(20, 100).cumsum(0), steps=range(0, 1000, 50))
        >>> where, lengths, turns = plot_trajectory(path)
        >>> turns.get_xlabel()
        'optimizer step'
    """
    if not isinstance(run, Run | WeightTrajectory):
        raise SettingError(f"expected a Run or a WeightTrajectory, got {type(run).__name__}")
    own = ax is None
    if isinstance(ax, Axes):
        axes = np.array([ax], dtype=object)
    elif ax is None:
        axes = _new_axes(size, _title(run, player) if isinstance(run, Run) else "")
    else:
        axes = style.given_axes(ax, 3, "plot_trajectory", "three (map, lengths, turns)")
    path, why = (_read(run, player)) if isinstance(run, Run) else (run, "")
    if path is None:
        style.say(axes[0], why)
        axes[0].set_xticks([])
    else:
        _draw_map(axes[0], path, own=own)
    if len(axes) > 1:
        curves = _of_run(run, player) if isinstance(run, Run) else _of_path(run)
        _draw_lengths(axes[1], curves, own=own)
        _draw_turns(axes[2], curves)
        if isinstance(run, Run):
            mark_unmeasured(axes[1], series.unmeasured(run, PROBE, player), "weights")
        style.legend(axes[1], outside=own, columns=2 if style.width_of(axes[1]) > 5 else 1)
        style.step_axis(axes[2], curves.steps)
    return ax if isinstance(ax, Axes) else axes


def _new_axes(size: tuple[float, float], title: str) -> np.ndarray:
    """The map above, and two panels below that share their steps."""
    figure = style.blank(size)
    axes = figure.subplots(3, 1, height_ratios=list(HEIGHTS))
    axes[2].sharex(axes[1])
    axes[1].tick_params(labelbottom=False)
    for each in axes:
        style.dress(each)
    if title:
        style.title(figure, title)
    return np.asarray(axes, dtype=object)


def _read(run: Run, player: str | None) -> tuple[WeightTrajectory | None, str]:
    """The run's trajectory; what to say where there is none."""
    if not any(r.arrays for r in run.select(PROBE, player)):
        return None, NOTHING
    try:
        return trajectory_of(run, player), ""
    except RunError:
        return None, "the arrays of the trajectory are gone"


# --------------------------------------------------------------------------- the map


def _draw_map(ax: Axes, path: WeightTrajectory, *, own: bool) -> None:
    steps, at, errors = (each.numpy() for each in (path.steps, path.coordinates, ERRORS * path.coordinate_errors))
    kept = series.keep(steps, *at[:, :2].T)
    steps, at, errors = steps[kept], at[kept], errors[kept]
    if at.shape[1] < 2:
        at, errors = (np.column_stack((each, np.zeros(len(steps)))) for each in (at, errors))
    scale = Normalize(steps[0], max(steps[-1], steps[0] + 1))
    pieces = LineCollection(
        list(np.stack((at[:-1, :2], at[1:, :2]), axis=1)), array=(steps[:-1] + steps[1:]) / 2, norm=scale, cmap=COLOURS,
        linewidths=1.6, capstyle="round", zorder=3, gid="path",
    )  # fmt: skip
    ax.add_collection(pieces)
    ax.plot(*at.T[:2], color=MUTED, linewidth=2.8, alpha=0.5, solid_capstyle="round", zorder=2.5, gid="rim")
    if errors[:, :2].any():
        shown = np.unique(np.linspace(0, len(at) - 1, 30).astype(int))
        ax.errorbar(
            at[shown, 0], at[shown, 1], xerr=errors[shown, 0], yerr=errors[shown, 1], fmt="none", ecolor=MUTED,
            elinewidth=0.7, alpha=0.7, zorder=2,
        )  # fmt: skip
    if len(at) <= MOST_MARKERS:
        ax.scatter(at[:, 0], at[:, 1], c=steps, norm=scale, cmap=COLOURS, s=16, linewidths=0, zorder=3.5, gid="points")
    for index, marker, word in ((0, "o", "start"), (len(at) - 1, "s", "end")):
        ax.plot(
            *at[index, :2], linestyle="none", marker=marker, markersize=7, markerfacecolor=PAPER, markeredgecolor=INK,
            markeredgewidth=1.2, zorder=5, label=f"{word}, step {steps[index]:,}", gid=word, clip_on=False,
        )  # fmt: skip
    _frame(ax)
    ax.set_xlabel(_share(path, 0, narrow=style.width_of(ax) <= 5), fontsize=style.FONT)
    ax.set_ylabel(_share(path, 1), fontsize=style.FONT)
    if own:
        ax.grid(axis="x", color=style.GRID, linewidth=0.6)
    _draw_scale(ax, pieces)
    style.legend(ax, outside=own, columns=2 if style.width_of(ax) > 5 else 1)


def _frame(ax: Axes) -> None:
    """To scale, with a margin around everything."""
    ax.set_aspect("equal", adjustable="datalim")  # which needs limits that are left to matplotlib
    ax.margins(0.08)
    ax.autoscale_view()
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=7 if style.width_of(ax) > 5 else 4, steps=[1, 2, 2.5, 5, 10]))


def _share(path: WeightTrajectory, component: int, *, narrow: bool = False) -> str:
    """The label of an axis: which component, and what it explains."""
    if component >= len(path.explained) or not math.isfinite(float(path.explained[component])):
        return f"component {component + 1}"
    share, error = float(path.explained[component]), ERRORS * float(path.explained_errors[component])
    said = f"{100 * share:.1f} %" if not error else f"{100 * share:.1f} ± {max(100 * error, 0.1):.1f} %"
    return f"component {component + 1}" + ("\n" if narrow else " ") + f"({said})"


def _draw_scale(ax: Axes, pieces: LineCollection) -> None:
    bar = style.colour_bar(ax, pieces, "optimizer step")
    bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))


# --------------------------------------------------------------------------- over steps


@dataclass(frozen=True, eq=False)
class _Curves:
    """Value, lower and upper end over steps, (3, T) each; of turns, at the points where they are."""

    steps: np.ndarray
    distances: np.ndarray
    lengths: np.ndarray
    turns_at: np.ndarray
    turns: np.ndarray


def _of_run(run: Run, player: str | None) -> _Curves:
    records = chained(run.select(PROBE, player))
    turns = [r for r in records if r.values.get("cosine") is not None and r.values.get("since") is not None]
    return _Curves(
        np.array([r.step for r in records], dtype=int),
        _rows(records, lambda r, end: {"": r.value, "_low": r.low, "_high": r.high}[end]),
        _rows(records, lambda r, end: r.values.get(f"path_length{end}")),
        np.array([r.values["since"] for r in turns], dtype=float),
        _rows(turns, lambda r, end: r.values.get(f"cosine{end}")),
    )


def _rows(records: Sequence[Record], entry: Callable[[Record, str], float | None]) -> np.ndarray:
    found = [[entry(record, end) for record in records] for end in ("", "_low", "_high")]
    return np.array([series.numbers(row) for row in found]).reshape(3, -1)


def _of_path(path: WeightTrajectory) -> _Curves:
    def ends(values: np.ndarray, errors: np.ndarray, least: float, most: float) -> np.ndarray:
        half = ERRORS * errors
        return np.stack((values, np.maximum(values - half, least), np.minimum(values + half, most)))

    return _Curves(
        path.steps.numpy(),
        ends(path.distances.numpy(), path.distance_errors.numpy(), 0, np.inf),
        ends(path.lengths.numpy(), path.length_errors.numpy(), 0, np.inf),
        path.steps[1:-1].numpy(),
        ends(path.cosines.numpy(), path.cosine_errors.numpy(), -1, 1),
    )


def _draw_lengths(ax: Axes, curves: _Curves, *, own: bool) -> None:
    ax.set_ylabel("length")
    if not len(curves.steps):
        style.say(ax, NOTHING)
        return
    _draw_curve(ax, curves.steps, curves.distances, BLUE, "-", "distance from the start", "distance")
    _draw_curve(ax, curves.steps, curves.lengths, ORANGE, "--", "length of the path", "length")
    ax.set_ylim(0, None)


def _draw_turns(ax: Axes, curves: _Curves) -> None:
    ax.set_ylabel("cosine of\nsuccessive\ndisplacements")
    if not np.isfinite(curves.turns).any():
        style.say(ax, "no turns: fewer than\nthree points that differ")
        return
    ax.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
    _draw_curve(ax, curves.turns_at, curves.turns, BLUE, "-", "", "turns")
    low, high = np.nanmin(curves.turns), np.nanmax(curves.turns)
    ax.set_ylim(max(-1.05, min(low, 0) - 0.08), min(1.05, max(high, 0) + 0.08))


def _draw_curve(ax: Axes, steps: np.ndarray, rows: np.ndarray, colour: str, dash: str, label: str, gid: str) -> None:
    value, low, high = rows
    draw_line(ax, steps, value, color=colour, linestyle=dash, linewidth=1.3, label=label, gid=gid, zorder=3,
              marker="o" if dash == "-" else "s", markersize=2.8)  # fmt: skip
    if (high > low).any():
        draw_band(ax, steps, low, high, color=colour, zorder=2, gid=f"{gid}-band")
