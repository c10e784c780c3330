"""The sharpness of a run over its steps, against the threshold of its optimizer."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from losscope.probes import Run

from . import series, style
from .lines import draw_bounds, draw_line
from .marks import Threshold, mark_unmeasured
from .style import BLUE, GREEN, INK

__all__ = ["plot_sharpness"]

LABEL = r"sharpness $\lambda_{\max}(H)$"
MOST_MARKERS = 40
MOST_LETTERS = 90
"""Of the reason why there is no threshold."""
LETTERS_PER_INCH = 11
"""Of a legend."""


def plot_sharpness(
    run: Run,
    ax: Axes | Sequence[Axes] | np.ndarray | None = None,
    *,
    player: str | None = None,
    size: tuple[float, float] = (6.4, 4.8),
) -> Axes | np.ndarray:
    r"""Draw the sharpness with its bounds, the stability threshold, and the loss below.

    The sharpness :math:`\lambda_{\max}(H)` is in units of loss per squared unit of parameter. The drawn
    value (a Ritz value) is a rigorous lower bound. Where an upper bound is known it is drawn as a band or a
    bar; other points carry an open triangle, since the true value may lie above them. The threshold is that
    of each measurement's own learning rate.

    Args:
        run: a run with probe ``sharpness`` or ``stability``.
        ax: one Axes draws the sharpness only, two draw the loss on the second; None makes a figure.
        player: which player; default: the first.
        size: width and height in inches of the figure made.

    Returns:
        The Axes drawn on: an array of two, or the one that was given.

    Raises:
        SettingError: if ``ax`` is a number of Axes other than one or two.
        RunError: if the run has no such player.

    Example:
        >>> from losscope.probes import Record, Run
        >>> from losscope.viz import plot_sharpness
        >>> records = [
        ...     Record(step, "model", "sharpness", value=10.0 + step, values={"threshold": 20.0}) for step in range(9)
        ... ]
        >>> top, bottom = plot_sharpness(Run.from_records({"players": {"model": {}}}, records))
        >>> bottom.get_xlabel()
        'optimizer step'
    """
    if isinstance(ax, Axes):
        _draw_sharpness(run, ax, player, own=False)
        style.step_axis(ax, series.sharpness(run, player).steps)
        return ax
    own = ax is None
    if ax is None:
        figure, axes = style.new_figure((2.2, 1.0), size)
        style.title(figure, _title(run, player))
    else:
        axes = style.given_axes(ax, 2, "plot_sharpness", "two (sharpness, loss)")
    _draw_sharpness(run, axes[0], player, own=own)
    _draw_loss(run, axes[1], player, own=own)
    style.step_axis(axes[1], series.sharpness(run, player).steps)
    return axes


def _title(run: Run, player: str | None) -> str:
    name = player if player is not None else next(iter(run.players), None)
    return f"{run.name}: {name}" if len(run.players) > 1 else run.name


def _draw_sharpness(run: Run, ax: Axes, player: str | None, *, own: bool) -> None:
    data = series.sharpness(run, player)
    probe = "sharpness" if run.select("sharpness", player, ok=False) else "stability"
    ax.set_ylabel(LABEL + "\n" + r"[loss / parameter$^2$]")
    missing = series.unmeasured(run, probe, player, value=None if probe == "sharpness" else "sharpness")
    drawn = np.isfinite(data.value)
    if not drawn.any():
        said = "no sharpness recorded" if not len(data) else "no finite sharpness recorded"
        style.say(ax, said)
        mark_unmeasured(ax, missing, "sharpness")
        style.legend(ax, outside=own)
        return
    data = data.thinned()
    _draw_value(ax, data)
    facts = series.facts(run, player)
    threshold = Threshold(data, str(facts.get("threshold_formula") or "2/lr"))
    style.log_if_wide(ax, np.concatenate([data.value, threshold.levels]), wide=30)
    _limit(ax, data, threshold.levels)
    threshold.draw(ax, own=own)
    if not len(threshold.levels):
        known = "finite threshold recorded" if facts.get("threshold_formula") else "threshold known for this optimizer"
        said = f"no threshold: {facts.get('threshold_reason') or f'no {known}'}"
        reason = style.plain(_clauses(said), MOST_LETTERS).replace("P^-1 H", "$P^{-1}H$")
        words = textwrap.fill(reason, int(LETTERS_PER_INCH * style.width_of(ax)))
        ax.plot([], [], linestyle="none", label=words, gid="no-threshold")
    mark_unmeasured(ax, missing, "sharpness")
    style.legend(ax, outside=own)


def _clauses(text: str) -> str:
    """As many clauses of a text as there is room for, the first at least.

    Example:
        >>> from losscope.viz.sharpness import _clauses
        >>> _clauses("no threshold: no rule for LBFGS: there is one for " + "some others, " * 9)
        'no threshold: no rule for LBFGS'
    """
    while len(text) > MOST_LETTERS and text.count(": ") > 1:
        text = text.rpartition(": ")[0]
    return text


def _draw_value(ax: Axes, data: series.Series) -> None:
    """The values, the bounds above them, and a sign on those that have none."""
    bounded = data.bounded if len(data) <= MOST_MARKERS else np.zeros(len(data), dtype=bool)
    draw_line(
        ax, data.steps, data.value, color=BLUE, linewidth=1.3, marked=bounded, markersize=3, label=LABEL, zorder=3,
        gid="sharpness",
    )  # fmt: skip
    draw_bounds(ax, data, color=BLUE, label="bounded on both sides")
    below = np.flatnonzero(~data.bounded & np.isfinite(data.value))
    if len(below):
        some = below[np.unique(np.linspace(0, len(below) - 1, min(len(below), MOST_MARKERS)).astype(int))]
        ax.plot(
            data.steps[some], data.value[some], linestyle="none", marker="^", markersize=4,
            markerfacecolor=ax.get_facecolor(), markeredgecolor=BLUE, markeredgewidth=0.8, zorder=4,
            label="bounded from below only", gid="from-below",
        )  # fmt: skip


def _limit(ax: Axes, data: series.Series, levels: np.ndarray) -> None:
    """Keep a loose upper bound from squeezing the curve; its bar then runs out of the frame."""
    seen = np.concatenate([data.value[np.isfinite(data.value)], levels])
    highs = data.high[data.bounded]
    least = min(float(seen.min()), 0.0)
    if ax.get_yscale() == "log":
        top = max(float(seen.max()) * 1.6, min(float(highs.max(initial=0)) * 1.1, float(seen.max()) * 4))
        ax.set_ylim(float(seen.min()) / 1.6, top)
    else:
        height = float(seen.max()) - least or 1.0
        top = max(float(seen.max()) + 0.16 * height, min(float(highs.max(initial=0)), float(seen.max()) + 0.5 * height))
        ax.set_ylim(least - (0.05 * height if least < 0 else 0), top)


def _draw_loss(run: Run, ax: Axes, player: str | None, *, own: bool) -> None:
    steps, recorded, what = series.loss(run, player)
    ax.set_ylabel(what)
    values, lost = series.drawable(recorded), ~np.isfinite(recorded)
    finite = np.isfinite(values)
    if not finite.any():
        style.say(ax, "no loss recorded" if not len(values) else "no finite loss recorded")
        return
    shown_steps, shown = series.decimate(steps, values)
    few = len(shown) <= MOST_MARKERS
    ax.plot(
        shown_steps, shown, color=GREEN, linewidth=0.9, marker="." if few else None, label=what, gid="loss"
    )  # fmt: skip
    style.log_if_wide(ax, shown, wide=10, dense=100)
    beyond = ~finite & ~lost
    mark_unmeasured(ax, series.Unmeasured(_whole(steps[lost]), (), _whole(steps[beyond])), "loss")
    if lost.any():
        first = int(steps[lost][0])
        ax.text(
            1.0, 1.0, f"not finite {'at' if finite[steps >= first].any() else 'from'} step {first:,}",
            transform=ax.transAxes, ha="right", va="bottom", fontsize=style.FONT - 1, color=INK, gid="lost",
        )  # fmt: skip


def _whole(steps: np.ndarray) -> tuple[int, ...]:
    return tuple(int(step) for step in steps)
