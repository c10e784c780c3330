"""The noise of gradients over training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from losscope.probes import Record, Run

from . import series, style
from .marks import mark_unmeasured
from .sharpness import _title
from .style import BLUE, GREEN, MUTED, ORANGE, VERMILLION

__all__ = ["plot_gradient_noise"]

PROBE = "gradient_noise"
HEIGHTS = (1.5, 1.2, 1.0)
BANDS = (("norm_05", "norm_95", 0.15), ("norm_25", "norm_75", 0.3))
MOST_MARKERS = 40
BELOW = 3.0
"""How far below the least value drawn a logarithmic axis goes, where an interval reaches zero."""


def plot_gradient_noise(
    run: Run,
    ax: Axes | Sequence[Axes] | np.ndarray | None = None,
    *,
    player: str | None = None,
    size: tuple[float, float] = (6.4, 6.0),
) -> Axes | np.ndarray:
    r"""Draw the noise scale of the gradients, what it is the ratio of, and how long single gradients are.

    Above, the simple noise scale :math:`\operatorname{tr}\Sigma / |G|^2` in samples and the curvature-weighted one,
    with their intervals, beside training's batch size. A hollow mark is inconclusive: the gradient may be zero; it is
    at the interval's lower end, since it has no upper one. In the middle :math:`\operatorname{tr}\Sigma` and
    :math:`|G|^2`; a band that reaches the bottom includes zero. Below, quantiles of the lengths of the gradients: 5 to
    95 %, 25 to 75 % and the median.

    Args:
        run: a run with probe ``gradient_noise``.
        ax: one Axes draws the noise scales only, three draw all; None makes a figure.
        player: which player; default: the first.
        size: width and height in inches of the figure made.

    Returns:
        The Axes drawn on: an array of three, or the one that was given.

    Raises:
        SettingError: if ``ax`` is a number of Axes other than one or three.
        RunError: if the run has no such player.

    Example:
        >>> from losscope.probes import Record, Run
        >>> from losscope.viz import plot_gradient_noise
        >>> records = [
        ...     Record(step, "model", "gradient_noise", value=9.0, low=8.0, high=20.0, values={"conclusive": 1.0})
        ...     for step in range(9)
        ... ]
        >>> top, *_ = plot_gradient_noise(Run.from_records({"players": {"model": {}}}, records))
        >>> top.get_yscale()
        'log'
    """
    records = run.select(PROBE, player)
    steps = np.array([r.step for r in records], dtype=int)
    if isinstance(ax, Axes):
        axes = np.array([ax], dtype=object)
    elif ax is None:
        figure, axes = style.new_figure(HEIGHTS, size)
        style.title(figure, _title(run, player))
    else:
        axes = style.given_axes(ax, 3, "plot_gradient_noise", "three")
    panels = (_draw_scales, _draw_parts, _draw_norms)
    for panel, draw in zip(axes, panels, strict=False):
        if not records:
            style.say(panel, "no gradient noise recorded")
            continue
        draw(panel, records, steps)
        if panel is axes[0]:
            mark_unmeasured(panel, series.unmeasured(run, PROBE, player), "gradient noise")
        style.legend(panel, outside=ax is None)
    style.step_axis(axes[-1], steps)
    return ax if isinstance(ax, Axes) else axes


def _draw_scales(ax: Axes, records: Sequence[Record], steps: np.ndarray) -> None:
    ax.set_ylabel("noise scale [samples]")
    ax.set_yscale("log")
    own = [(r.value, r.low, r.high, r.values.get("conclusive")) for r in records]
    weighted = [
        tuple(r.values.get(f"curvature_{end}") for end in ("weighted", "weighted_low", "weighted_high", "conclusive"))
        for r in records
    ]
    _scale(ax, steps, own, BLUE, r"simple, tr$\,\Sigma$ / $|G|^2$", "simple")
    _scale(ax, steps, weighted, ORANGE, r"curvature-weighted, tr$\,H\Sigma$ / $G^T\!HG$", "curvature-weighted")
    batch = _column(r.values.get("batch_size") for r in records)
    if np.isfinite(batch).any():
        ax.plot(steps, batch, color=MUTED, linewidth=1, linestyle=(0, (5, 2)), label="batch size", gid="batch-size")
    _keep_in_view(ax)


def _scale(
    ax: Axes, steps: np.ndarray, rows: Sequence[Sequence[float | None]], colour: str, label: str, gid: str
) -> None:
    value, low, high, conclusive = (_column(column) for column in zip(*rows, strict=True))
    known = (conclusive == 1) & (value > 0)
    if known.any():
        shown = np.where(known, value, np.nan)
        low_end, high_end = np.where(known, np.maximum(low, 0), np.nan), np.where(known, high, np.nan)
        ax.plot(steps, shown, color=colour, linewidth=1.2, label=label, gid=gid, zorder=3, **_marks(len(steps)))
        ax.fill_between(steps, low_end, high_end, color=colour, alpha=0.2, linewidth=0, zorder=2, gid=f"{gid}-band")
        alone = known & ~_beside(known)
        ax.vlines(steps[alone], low_end[alone], high_end[alone], color=colour, linewidth=1, alpha=0.6)
    open_ = ~known & (low > 0)
    if open_.any():
        ax.plot(
            steps[open_], low[open_], linestyle="none", marker="^", markersize=4.5, markerfacecolor="none",
            markeredgecolor=colour, markeredgewidth=0.9, zorder=4, gid=f"{gid}-inconclusive",
            label=f"{label.split(',')[0]}: inconclusive, at least",
        )  # fmt: skip


def _draw_parts(ax: Axes, records: Sequence[Record], steps: np.ndarray) -> None:
    ax.set_ylabel("squared gradient")
    ax.set_yscale("log")
    parts = (("covariance_trace", VERMILLION, r"tr$\,\Sigma$"), ("gradient_square", GREEN, r"$|G|^2$"))
    columns = [
        [_column(r.values.get(f"{name}{end}") for r in records) for end in ("", "_low", "_high")] for name, *_ in parts
    ]
    positive = np.concatenate([value[value > 0] for value, *_ in columns] + [high[high > 0] for *_, high in columns])
    floor = float(positive.min()) / BELOW if len(positive) else 1.0
    for (name, colour, label), (value, low, high) in zip(parts, columns, strict=True):
        shown = np.where(value > 0, value, np.nan)
        ax.plot(steps, shown, color=colour, linewidth=1.2, label=label, gid=name, zorder=3, **_marks(len(steps)))
        ends = (np.maximum(low, floor), np.maximum(high, floor))
        ax.fill_between(steps, *ends, color=colour, alpha=0.2, linewidth=0, zorder=2, gid=f"{name}-band")
        if len(steps) == 1:
            ax.vlines(steps, *ends, color=colour, linewidth=1)
    ax.set_ylim(bottom=floor)


def _draw_norms(ax: Axes, records: Sequence[Record], steps: np.ndarray) -> None:
    several = any((r.values.get("draw_size") or 1) > 1 for r in records)
    ax.set_ylabel("length of a\nbatch's gradient" if several else "length of a\nsample's gradient")
    for lower, upper, alpha in BANDS:
        low, high = (_column(r.values.get(name) for r in records) for name in (lower, upper))
        label = f"{int(lower[-2:])} to {int(upper[-2:])} %"
        ax.fill_between(steps, low, high, color=BLUE, alpha=alpha, linewidth=0, label=label, gid=lower)
        if len(steps) == 1:
            ax.vlines(steps, low, high, color=BLUE, linewidth=1)
    median = _column(r.values.get("norm_50") for r in records)
    ax.plot(steps, median, color=BLUE, linewidth=1.2, label="median", gid="norm_50", **_marks(len(steps)))
    clip = _column(r.values.get("clip") for r in records)
    if np.isfinite(clip).any():
        ax.plot(steps, clip, color=MUTED, linewidth=1, linestyle=(0, (5, 2)), label="clip", gid="clip")
    ends = [_column(r.values.get(name) for r in records) for name in ("norm_05", "norm_95")]
    style.log_if_wide(ax, np.concatenate(ends))


def _column(values: Iterable[float | None]) -> np.ndarray:
    array = np.array([np.nan if v is None else v for v in values], dtype=float)
    array[~np.isfinite(array)] = np.nan
    return array


def _marks(count: int) -> dict[str, Any]:
    return {"marker": "o" if count <= MOST_MARKERS else None, "markersize": 3}


def _beside(mask: np.ndarray) -> np.ndarray:
    """Which have a neighbour in the mask, to which a band can be drawn."""
    padded = np.concatenate(([False], mask, [False]))
    return padded[:-2] | padded[2:]


def _keep_in_view(ax: Axes) -> None:
    """A loose upper end must not squeeze the values."""
    drawn = [line.get_ydata() for line in ax.get_lines()]
    values = np.concatenate([np.asarray(y, dtype=float) for y in drawn]) if drawn else np.array([])
    values = values[np.isfinite(values) & (values > 0)]
    if len(values):
        ax.set_ylim(float(values.min()) / 4, float(values.max()) * 4)
