"""The criteria of the stability audit over the steps, each as a ratio to its threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from losscope.probes import Audit, Run

from . import series, style
from .marks import mark_unmeasured, spread
from .sharpness import _title
from .style import BLUE, INK, MUTED, ORANGE, PURPLE, VERMILLION
from .words import verdict

__all__ = ["plot_stability"]

CRITERIA: dict[str, dict[str, Any]] = {
    "sharpness": {"symbol": r"$\lambda_{\max}(H)$", "color": BLUE, "linestyle": "-", "marker": "o"},
    "trace": {"symbol": r"$\mathrm{tr}(H)$", "color": ORANGE, "linestyle": "-.", "marker": "s"},
    "s_mu": {"symbol": r"$S_\mu$", "color": PURPLE, "linestyle": (0, (6, 2)), "marker": "D"},
}
EDGE = (0.9, 1.1)


def plot_stability(
    run: Run, ax: Axes | None = None, *, player: str | None = None, size: tuple[float, float] = (6.4, 4.2)
) -> Axes:
    """Draw measured over threshold for each criterion, with its interval and the audit's verdict in words.

    A ratio of 1 is the threshold; between 0.9 and 1.1 the audit speaks of the edge. Sharpness is compared
    with the optimizer's own threshold, trace and S_mu with 2/lr. A criterion that does not apply is drawn
    grey and dotted, and says so.

    Args:
        run: a run with probe ``stability``.
        ax: where to draw; None makes a figure.
        player: which player; default: the first.
        size: width and height in inches of the figure made.

    Returns:
        The Axes drawn on.

    Raises:
        RunError: if the run has no such player.

    Example:
        >>> from losscope.probes import Record, Run
        >>> from losscope.viz import plot_stability
        >>> values = {"sharpness": 19.0, "threshold": 20.0, "two_over_lr": 20.0}
        >>> records = [Record(step, "model", "stability", value=0.95, values=values) for step in range(9)]
        >>> plot_stability(Run.from_records({"players": {"model": {}}}, records)).get_ylabel()
        'measured / threshold'
    """
    own = ax is None
    if ax is None:
        figure, axes = style.new_figure((1,), size)
        style.title(figure, _title(run, player))
        ax = axes[0]
    facts = series.facts(run, player)
    formula = style.plain(str(facts.get("seen_formula") or facts.get("threshold_formula") or "2/lr"), 40)
    drawn = [(name, data) for name in CRITERIA if np.isfinite((data := series.ratios(run, name, player)).value).any()]
    ax.set_ylabel("measured / threshold")
    if drawn:
        audit = run.audit(player)
        _edge(ax)
        everything = np.concatenate([data.value for _, data in drawn] + [np.ones(1)])
        style.log_if_wide(ax, everything, wide=8)
        _limit(ax, everything, [data for _, data in drawn])
        ends = [_draw(ax, name, data, audit, formula, bool(facts.get("preconditioned"))) for name, data in drawn]
        _window(ax, audit)
    else:
        style.say(ax, _nothing(run, player))
    mark_unmeasured(ax, series.unmeasured(run, "stability", player), "measurement")
    style.step_axis(ax, drawn[0][1].steps if drawn else np.array([]))
    style.legend(ax, outside=own, columns=1)
    if drawn:
        _label_ends(ax, ends)
    return ax


def _nothing(run: Run, player: str | None) -> str:
    if not run.select("stability", player):
        return "no stability recorded"
    reason = series.facts(run, player).get("threshold_reason")
    return style.plain(f"no ratio to draw: {reason}", 80) if reason else "no ratio to draw: no threshold known"


def _edge(ax: Axes) -> None:
    ax.axhspan(*EDGE, color=VERMILLION, alpha=0.12, linewidth=0, zorder=0.5, label="edge: 0.9 to 1.1", gid="edge")
    ax.axhline(1.0, color=VERMILLION, linewidth=1.1, linestyle=(0, (5, 2)), zorder=3.5, gid="one")


def _limit(ax: Axes, values: np.ndarray, drawn: list[series.Series]) -> None:
    finite = values[np.isfinite(values)]
    highs = [float(d.high[d.bounded].max()) for d in drawn if d.bounded.any()]
    top, least = float(finite.max()), float(finite.min())
    if ax.get_yscale() == "log":
        ax.set_ylim(min(least, 0.9) / 1.3, max(max(top, 1.1) * 1.3, min(max(highs, default=0), top * 2)))
    else:
        ax.set_ylim(min(0.0, least * 1.1), max(max(top, 1.1) * 1.08, min(max(highs, default=0), top * 1.4)))


def _draw(
    ax: Axes, name: str, data: series.Series, audit: Audit, formula: str, preconditioned: bool
) -> tuple[float, str, str]:
    """One criterion; returns where its curve ends, its symbol and its colour."""
    look = dict(CRITERIA[name])
    symbol = look.pop("symbol")
    code = audit[name].verdict if any(c.name == name for c in audit.criteria) else "NOT_APPLICABLE"
    if preconditioned and name == "sharpness":
        symbol = r"$\lambda_{\max}(P^{-1}H)$"
    divisor = formula if name == "sharpness" else "2/lr"
    divisor = f"({divisor})" if any(sign in divisor for sign in "/+ ") else divisor
    muted = code == "NOT_APPLICABLE"
    if muted:
        look |= {"color": MUTED, "linestyle": ":"}
    finite = np.flatnonzero(np.isfinite(data.value))
    ax.plot(
        data.steps, data.value, linewidth=1.0 if muted else 1.4, markersize=3, zorder=2.8 if muted else 3,
        markevery=max(len(data) // 20, 1), markerfacecolor="none" if muted else None,
        label=f"{symbol} / {divisor}: {verdict(code).words}", gid=f"ratio-{name}", **look,
    )  # fmt: skip
    if not muted:
        low = np.where(np.isfinite(data.low), data.low, data.value)
        _band(ax, data, low, look["color"])
    return float(data.value[finite[-1]]), symbol, look["color"]


def _band(ax: Axes, data: series.Series, low: np.ndarray, colour: str) -> None:
    for first, end in series.runs_of(data.bounded & np.isfinite(low)):
        part = slice(first, end)
        if end - first > 1:
            ax.fill_between(data.steps[part], low[part], data.high[part], color=colour, alpha=0.2, linewidth=0)
        else:
            ax.errorbar(
                data.steps[part], data.value[part], color=colour, linewidth=1, capsize=2.5, fmt="none",
                yerr=[np.maximum(data.value[part] - low[part], 0), np.maximum(data.high[part] - data.value[part], 0)],
            )  # fmt: skip


def _window(ax: Axes, audit: Audit) -> None:
    """A bar along the bottom over the steps that the audit rests on."""
    if audit.steps is None or audit.steps[0] == audit.steps[1]:
        return
    first, last = audit.steps
    ax.plot(
        [first, last], [0.012, 0.012], transform=ax.get_xaxis_transform(), color=INK, linewidth=2.5, alpha=0.55,
        solid_capstyle="butt", label=f"steps the verdicts rest on: {first:,} to {last:,}", gid="window",
    )  # fmt: skip


def _label_ends(ax: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Each curve's symbol at its right end, moved apart where they would lie on each other."""
    figure = ax.get_figure()
    assert figure is not None
    points = [float(ax.transData.transform((0, max(y, ax.get_ylim()[0])))[1]) * 72 / figure.dpi for y, _, _ in ends]
    for (y, symbol, colour), at, moved in zip(ends, points, spread(points, style.FONT * 1.35), strict=True):
        ax.annotate(
            symbol, (1.0, y), xycoords=("axes fraction", "data"), xytext=(5, moved - at), textcoords="offset points",
            ha="left", va="center", color=colour, fontsize=style.FONT, annotation_clip=False, gid="end-label",
        )  # fmt: skip
