"""The largest eigenvalues of a run over its steps, and the edge of the bulk below them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from losscope.probes import Record, Run

from . import series, style
from .lines import draw_band, draw_line
from .marks import Threshold, mark_unmeasured
from .sharpness import _title
from .style import BLUE, MUTED, PURPLE

__all__ = ["plot_outliers"]

CLOSE = 0.09
"""Of the axes' height, below which two labels lie on each other."""


def plot_outliers(
    run: Run,
    ax: Axes | Sequence[Axes] | np.ndarray | None = None,
    *,
    player: str | None = None,
    size: tuple[float, float] = (6.4, 4.8),
) -> Axes | np.ndarray:
    """Draw the largest eigenvalues of the Hessian over the steps, and how many of them stand apart from the bulk.

    Those that were counted as outliers are drawn in colour, the others grey; the edge of the bulk has the interval of
    the method that found it. Below, the number of outliers, with a bar from the least to the largest that any of the
    methods counts (see `losscope.landscape.outliers`).

    Args:
        run: a run with probe ``spectrum``, or ``sharpness`` with ``k`` above 1.
        ax: one Axes draws the eigenvalues only, two draw the number on the second; None makes a figure.
        player: which player; default: the first.
        size: width and height in inches of the figure made.

    Returns:
        The Axes drawn on: an array of two, or the one that was given.

    Raises:
        SettingError: if ``ax`` is a number of Axes other than one or two.
        RunError: if the run has no such player.

    Example:
        >>> from losscope.probes import Record, Run
        >>> from losscope.viz import plot_outliers
        >>> records = [
        ...     Record(step, "model", "spectrum", value=9.0, values={"lambda_2": 5.0, "lambda_3": 1.0, "outliers": 2.0})
        ...     for step in range(9)
        ... ]
        >>> top, bottom = plot_outliers(Run.from_records({"players": {"model": {}}}, records))
        >>> bottom.get_ylabel()
        'outliers'
    """
    if isinstance(ax, Axes):
        _draw_values(run, ax, player, own=False)
        style.step_axis(ax, _steps(_records(run, player)))
        return ax
    own = ax is None
    if ax is None:
        figure, axes = style.new_figure((2.6, 1.0), size)
        style.title(figure, _title(run, player))
    else:
        axes = style.given_axes(ax, 2, "plot_outliers", "two (eigenvalues, number)")
    _draw_values(run, axes[0], player, own=own)
    _draw_number(axes[1], _records(run, player), own=own)
    style.step_axis(axes[1], _steps(_records(run, player)))
    return axes


def _records(run: Run, player: str | None) -> list[Record]:
    return run.select("spectrum", player) or run.select("sharpness", player)


def _steps(records: Sequence[Record]) -> np.ndarray:
    return np.array([r.step for r in records], dtype=int)


def _eigenvalues(records: Sequence[Record]) -> np.ndarray:
    """(k, t) the largest eigenvalues, descending, NaN where fewer were found."""
    first = series.numbers(r.value for r in records)
    known = {name for r in records for name in r.values}
    rows, rank = [first], 2
    while f"lambda_{rank}" in known:
        rows.append(series.column(records, f"lambda_{rank}"))
        rank += 1
    return np.array(rows)


def _draw_values(run: Run, ax: Axes, player: str | None, *, own: bool) -> None:
    records = _records(run, player)
    ax.set_ylabel(r"largest eigenvalues $\lambda_i$" + "\n" + r"[loss / parameter$^2$]")
    values, steps = _eigenvalues(records), _steps(records)
    if not np.isfinite(values).any():
        style.say(ax, "no eigenvalues recorded")
    else:
        counts = series.column(records, "outliers")
        several = f"the {len(values)} largest eigenvalues" if len(values) > 1 else "the largest eigenvalue"
        words = {"eigenvalue": several, "outlier": "outliers"}
        for rank, row in enumerate(values):
            draw_line(
                ax, steps, row, color=MUTED, linewidth=0.8, marker=".", markersize=2.5, zorder=2.5, gid="eigenvalue",
                label=words.pop("eigenvalue", "_"),
            )  # fmt: skip
            above = np.where(rank < counts, row, np.nan)
            if np.isfinite(above).any():
                draw_line(
                    ax, steps, above, color=BLUE, linewidth=1.3, markersize=3, zorder=3, gid="outlier",
                    label=words.pop("outlier", "_"),
                )  # fmt: skip
        _draw_edge(ax, records, steps)
        threshold = _threshold(run, records, values[0])
        everything = np.concatenate([values[np.isfinite(values)], threshold.levels])
        if style.log_if_wide(ax, everything, wide=15):
            ax.set_ylim(float(everything.min()) / 1.3, float(everything.max()) * 1.7)
        else:
            ax.margins(y=0.14)
        threshold.draw(ax, own=own)
        _label_ends(ax, values)
    mark_unmeasured(ax, series.unmeasured(run, "spectrum", player), "spectrum")
    style.legend(ax, outside=own)


def _label_ends(ax: Axes, values: np.ndarray) -> None:
    """The first and the last rank at the right end of their curves, at one end where they would lie on each other."""
    last = values[[0, -1], -1]
    ax.get_ylim()  # matplotlib brings its limits up to date when asked for them
    apart = np.ptp(ax.transData.transform(np.column_stack((np.zeros(2), last)))[:, 1]) / ax.bbox.height
    ranks = {0: r"$\lambda_1$", len(values) - 1: rf"$\lambda_{{{len(values)}}}$"}
    if len(values) > 1 and apart < CLOSE:
        ranks = {0: rf"$\lambda_1 \ldots \lambda_{{{len(values)}}}$"}
    for rank, words in ranks.items():
        if np.isfinite(values[rank, -1]):
            ax.annotate(
                words, (1.0, values[rank, -1]), xycoords=("axes fraction", "data"),
                xytext=(3, 0), textcoords="offset points", va="center", color=style.ink(ax), fontsize=style.FONT - 1,
                annotation_clip=False, gid="rank",
            )  # fmt: skip


def _draw_edge(ax: Axes, records: Sequence[Record], steps: np.ndarray) -> None:
    edge, low, high = (series.column(records, f"bulk_edge{end}") for end in ("", "_low", "_high"))
    if np.isfinite(edge).any():
        draw_line(
            ax, steps, edge, color=PURPLE, linewidth=1.2, linestyle="-.", marker="", zorder=2.8,
            label="edge of the bulk", gid="edge",
        )  # fmt: skip
        draw_band(ax, steps, low, high, color=PURPLE, alpha=0.25, zorder=1.5)


def _threshold(run: Run, records: Sequence[Record], top: np.ndarray) -> Threshold:
    nothing = np.full(len(records), np.nan)
    of = series.Series(
        _steps(records), top, nothing, nothing, series.column(records, "threshold"),
        series.column(records, "threshold_largest"),
    )  # fmt: skip
    return Threshold(of.thinned(), str(series.facts(run, None).get("threshold_formula") or "2/lr"))


def _draw_number(ax: Axes, records: Sequence[Record], *, own: bool) -> None:
    ax.set_ylabel("outliers")
    counts, steps = series.column(records, "outliers"), _steps(records)
    if not np.isfinite(counts).any():
        style.say(ax, "no outliers counted")
        return
    low, high = (series.column(records, f"outliers_{end}") for end in ("low", "high"))
    apart = np.isfinite(low) & np.isfinite(high) & (high > low)
    bars = series.keep(steps, np.where(apart, low, np.nan), np.where(apart, high, np.nan))
    bars = bars[apart[bars]]
    ax.vlines(
        steps[bars], low[bars], high[bars], color=MUTED, linewidth=1.0, label="range of the methods", gid="disputed"
    )
    draw_line(
        ax, steps, counts, color=BLUE, linewidth=0.8, marker="o" if len(steps) <= 40 else ".", markersize=3,
        drawstyle="steps-mid", gid="count",
    )  # fmt: skip
    if not counts[np.isfinite(counts)].any():
        ax.text(
            0.5, 0.6, "none separated from the bulk", transform=ax.transAxes, ha="center", color=MUTED,
            fontsize=style.FONT - 1, gid="none",
        )  # fmt: skip
    ax.set_ylim(-0.4, max(float(np.nanmax(np.fmax(counts, high))), 1.0) + 0.6)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
    if apart.any():
        style.legend(ax, outside=own)
