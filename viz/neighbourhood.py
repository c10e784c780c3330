"""How far the loss rises around the weights, over the length of the perturbation."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from losscope.landscape.surface import AverageSharpness, Neighbourhood, SamSharpness

from . import style
from .lines import draw_band, draw_line
from .series import drawable, keep, numbers
from .style import BLUE, GRID, MUTED, VERMILLION

__all__ = ["plot_neighbourhood"]

RELATIVE_TO = {
    "absolute": "",
    "model": "relative to the norm of the weights",
    "layer": "each layer relative to its norm",
    "filter": "each filter relative to its norm",
    "adaptive": "each weight relative to itself",
}
OFF = 1e3
"""How far below the least rise the rounding of the loss is still on the axis."""
MARGIN = 3.0
"""How far beyond what was measured a logarithmic axis goes."""


def plot_neighbourhood(
    shown: AverageSharpness | Neighbourhood,
    ax: Axes | None = None,
    *,
    size: tuple[float, float] = (6.4, 4.0),
) -> Axes:
    r"""Draw how far the loss rises on average and in the worst direction, with what curvature alone would have it do.

    On the x-axis is the length of the perturbation: the radius of the ball that the worst is sought in, and the root
    mean square length ``s sqrt(n)`` of noise. Both axes are logarithmic, so that a quadratic is a straight line of
    slope 2, and a gradient one of slope 1. Dashed are the second-order predictions: half the variance times the trace,
    and the gradient's and the Hessian's share of the first step. The band is the interval of the average; where it
    reaches the bottom it includes zero, and where the average is below round-off its mark is hollow. The grey ground is
    what rounding of the loss may make of a rise, which the legend says where all was measured far above it. What is
    found of the worst is a lower bound.

    Args:
        shown: what `average_sharpness` or `neighbourhood` returned.
        ax: where to draw; None makes a figure.
        size: width and height in inches of the figure made.

    Returns:
        The Axes drawn on.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import neighbourhood
        >>> from losscope.viz import plot_neighbourhood
        >>> model = torch.nn.Linear(4, 1).double()
        >>> data = (torch.eye(4).double(), torch.zeros(4, 1).double())
        >>> objective = Objective(model, data, criterion=torch.nn.MSELoss())
        >>> plot_neighbourhood(neighbourhood(objective, [0.01, 0.1, 1.0], max_pairs=32)).get_xscale()
        'log'
    """
    own = ax is None
    if ax is None:
        _, axes = style.new_figure((1,), size)
        ax = axes[0]
    average = shown.average if isinstance(shown, Neighbourhood) else shown
    worst = shown.worst if isinstance(shown, Neighbourhood) else ()
    trace = shown.curvature.trace if isinstance(shown, Neighbourhood) else average.trace
    relative = RELATIVE_TO[average.scale]
    ax.set_xlabel("length of the perturbation" + (f" ({relative})" if relative else ""))
    ax.set_ylabel("rise of the loss")
    rises = numbers([each.value for each in average.rises] + [each.value for each in worst])
    if not (rises > 0).any():
        known = np.isfinite(rises).any()
        style.say(ax, "the loss rises nowhere" if known else "no finite rise of the loss")
        ax.set_xticks([])
        return ax
    ax.set_xscale("log")
    ax.set_yscale("log")
    bottom, top = _limits(average, worst)
    if worst:
        _draw_worst(ax, worst)
    _draw_average(ax, average, None if trace is None else trace.value, bottom)
    ax.axhspan(bottom, max(bottom, average.rounding), color=GRID, alpha=0.6, linewidth=0, zorder=0, gid="rounding")
    _say_rounding(ax, average.rounding, bottom)
    ax.set_ylim(bottom, top)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(numticks=9))
        axis.set_minor_formatter(NullFormatter())
    style.legend(ax, outside=own)
    return ax


def _draw_average(ax: Axes, average: AverageSharpness, trace: float | None, bottom: float) -> None:
    x = average.lengths.numpy()
    value, low, high = (numbers(getattr(rise, name) for rise in average.rises) for name in ("value", "low", "high"))
    above = average.radii.numpy() >= average.floor
    positive = np.where(value > 0, value, np.nan)
    finite = np.isfinite(value)
    high = np.where(above, high, np.maximum(high, average.rounding))  # noise has no shape
    below, upper = (np.where(finite, np.maximum(end, bottom / 10), np.nan) for end in (low, high))
    level = f"{100 * average.rises[0].confidence:g} %"
    draw_band(ax, x, below, upper, color=BLUE, zorder=1.5, gid="average-band")
    draw_line(
        ax, x, np.where(above, positive, np.nan), color=BLUE, linewidth=1.4, markersize=3.5, zorder=3,
        label=rf"average, {average.pairs} pairs, {level} interval", gid="average",
    )  # fmt: skip
    if np.isfinite(hidden := np.where(above, np.nan, positive)).any():
        kept = keep(x, hidden)
        ax.plot(
            x[kept], hidden[kept], linestyle="none", marker="o", markersize=3.5, markerfacecolor="none",
            markeredgecolor=BLUE, markeredgewidth=0.8, zorder=2.5, label="average, below round-off",
            gid="average-hidden",
        )  # fmt: skip
    if trace is not None and trace > 0:
        T = "H" if average.scale == "absolute" else "THT"
        draw_line(
            ax, x, drawable(average.radii.numpy() ** 2 / 2 * trace), color=BLUE, linewidth=1, linestyle=(0, (4, 2)),
            marker="", zorder=2.2, label=rf"$\frac{{s^2}}{{2}}\,$tr({T})", gid="average-predicted",
        )  # fmt: skip


def _draw_worst(ax: Axes, worst: tuple[SamSharpness, ...]) -> None:
    x, value, predicted = (
        drawable(np.array([getattr(ball, name) for ball in worst])) for name in ("radius", "value", "second_order")
    )
    steps = "one step" if worst[0].steps == 1 else f"{worst[0].steps} steps"
    draw_line(
        ax, x, np.where(value > 0, value, np.nan), color=VERMILLION, linewidth=1.4, marker="s",
        markersize=3.5, zorder=3, label=f"worst found, {steps} of ascent", gid="worst",
    )  # fmt: skip
    draw_line(
        ax, x, np.where(predicted > 0, predicted, np.nan), color=VERMILLION, linewidth=1,
        linestyle=(0, (2, 2)), marker="", zorder=2.2, gid="worst-predicted",
        label=r"$g^Te + \frac{1}{2}e^THe$ of the first step",
    )  # fmt: skip


def _limits(average: AverageSharpness, worst: tuple[SamSharpness, ...]) -> tuple[float, float]:
    """From a little below the least rise above round-off to a little above the largest.

    The rounding itself is between them where it is near, or something was measured below it.
    """
    values = numbers([each.value for each in average.rises] + [each.value for each in worst])
    values = values[values > 0]
    seen = values[values > average.rounding]
    lowest = float(seen.min() if len(seen) else values.min())
    hidden = bool((average.radii < average.floor).any())
    if len(seen) and (hidden or lowest < OFF * average.rounding):
        lowest = min(lowest, average.rounding)
    return lowest / MARGIN, float(values.max()) * MARGIN


def _say_rounding(ax: Axes, rounding: float, bottom: float) -> None:
    if 0 < rounding <= bottom:
        words = f"rounding, {style.figure_number(rounding, 2)}: off the axis"
        ax.plot([], [], linestyle="none", marker="s", color=GRID, label=words, gid="rounding-off")
    elif rounding > bottom:
        ax.text(
            0.99, math.sqrt(bottom * rounding), "rounding", transform=ax.get_yaxis_transform(), ha="right", va="center",
            color=MUTED, fontsize=style.FONT - 1, gid="rounding-label",
        )  # fmt: skip
