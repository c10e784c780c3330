"""The noise of gradients over training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from losscope.probes import Record, Run

from . import series, style
from .lines import draw_band, draw_line
from .marks import mark_unmeasured
from .sharpness import _title
from .style import BLUE, GREEN, MUTED, ORANGE, VERMILLION

__all__ = ["plot_gradient_noise"]

PROBE = "gradient_noise"
HEIGHTS = (1.5, 1.2, 1.0)
BANDS = (("norm_05", "norm_95", 0.15), ("norm_25", "norm_75", 0.3))
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
    own = [series.numbers(getattr(r, end) for r in records) for end in ("value", "low", "high")]
    own.append(series.column(records, "conclusive"))
    weighted = [
        series.column(records, f"curvature_{end}")
        for end in ("weighted", "weighted_low", "weighted_high", "conclusive")
    ]
    _scale(ax, steps, own, BLUE, r"simple, tr$\,\Sigma$ / $|G|^2$", "simple")
    _scale(ax, steps, weighted, ORANGE, r"curvature-weighted, tr$\,H\Sigma$ / $G^T\!HG$", "curvature-weighted")
    batch = series.column(records, "batch_size")
    if np.isfinite(batch).any():
        draw_line(
            ax, steps, batch, color=MUTED, linewidth=1, linestyle=(0, (5, 2)), marker="", label="batch size",
            gid="batch-size",
        )  # fmt: skip
    _keep_in_view(ax)
    style.log_ticks(ax, *ax.get_ylim())
    if not ax.get_lines():
        style.say(ax, "no finite gradient noise recorded")


def _scale(ax: Axes, steps: np.ndarray, columns: Sequence[np.ndarray], colour: str, label: str, gid: str) -> None:
    value, low, high, conclusive = columns
    dash, marker = ("-", "o") if gid == "simple" else ((0, (4, 1)), "s")
    known = (conclusive == 1) & (value > 0)
    if known.any():
        shown = np.where(known, value, np.nan)
        low_end, high_end = np.where(known, np.maximum(low, 0), np.nan), np.where(known, high, np.nan)
        draw_line(
            ax, steps, shown, color=colour, linewidth=1.2, linestyle=dash, marker=marker, markersize=3, label=label,
            gid=gid, zorder=3,
        )  # fmt: skip
        draw_band(ax, steps, low_end, high_end, color=colour, zorder=2, gid=f"{gid}-band")
    open_ = np.where(~known & (low > 0), low, np.nan)
    if np.isfinite(open_).any():
        kept = series.keep(steps, open_)
        kept = kept[np.isfinite(open_[kept])]
        ax.plot(
            steps[kept], open_[kept], linestyle="none", marker="^", markersize=4.5, markerfacecolor="none",
            markeredgecolor=colour, markeredgewidth=0.9, zorder=4, gid=f"{gid}-inconclusive",
            label=f"{label.split(',')[0]}: inconclusive, at least",
        )  # fmt: skip


def _draw_parts(ax: Axes, records: Sequence[Record], steps: np.ndarray) -> None:
    ax.set_ylabel("squared gradient")
    parts = (
        ("covariance_trace", VERMILLION, "-", "o", r"tr$\,\Sigma$"), ("gradient_square", GREEN, "--", "s", r"$|G|^2$"),
    )  # fmt: skip
    columns = [[series.column(records, f"{name}{end}") for end in ("", "_low", "_high")] for name, *_ in parts]
    positive = np.concatenate([value[value > 0] for value, *_ in columns] + [high[high > 0] for *_, high in columns])
    if not len(positive):
        style.say(ax, "no squared gradient above zero recorded")
        return
    ax.set_yscale("log")
    floor = float(positive.min()) / BELOW
    for (name, colour, dash, marker, label), (value, low, high) in zip(parts, columns, strict=True):
        draw_line(
            ax, steps, np.where(value > 0, value, np.nan), color=colour, linewidth=1.2, linestyle=dash, marker=marker,
            markersize=3, label=label, gid=name, zorder=3,
        )  # fmt: skip
        draw_band(
            ax, steps, np.maximum(low, floor), np.maximum(high, floor), color=colour, zorder=2, gid=f"{name}-band"
        )
    ax.set_ylim(bottom=floor)
    style.log_ticks(ax, *ax.get_ylim())


def _draw_norms(ax: Axes, records: Sequence[Record], steps: np.ndarray) -> None:
    several = any((r.values.get("draw_size") or 1) > 1 for r in records)
    ax.set_ylabel("length of a\nbatch's gradient" if several else "length of a\nsample's gradient")
    median = series.column(records, "norm_50")
    if not np.isfinite(median).any():
        style.say(ax, "no finite lengths recorded")
        return
    ends = []
    for lower, upper, alpha in BANDS:
        low, high = series.column(records, lower), series.column(records, upper)
        ends += [low, high]
        label = f"{int(lower[-2:])} to {int(upper[-2:])} %"
        draw_band(ax, steps, low, high, color=BLUE, alpha=alpha, label=label, gid=lower)
    draw_line(ax, steps, median, color=BLUE, linewidth=1.2, markersize=3, label="median", gid="norm_50")
    clip = series.column(records, "clip")
    if np.isfinite(clip).any():
        draw_line(ax, steps, clip, color=MUTED, linewidth=1, linestyle=(0, (5, 2)), marker="", label="clip", gid="clip")
    style.log_if_wide(ax, np.concatenate(ends))


def _keep_in_view(ax: Axes) -> None:
    """A loose upper end must not squeeze the values."""
    drawn = [line.get_ydata() for line in ax.get_lines()]
    values = np.concatenate([np.asarray(y, dtype=float) for y in drawn]) if drawn else np.array([])
    values = values[np.isfinite(values) & (values > 0)]
    if len(values):
        ax.set_ylim(float(values.min()) / 4, float(values.max()) * 4)
