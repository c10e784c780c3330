"""The criteria of the stability audit over the steps, each as a ratio to its threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from losscope.probes import Audit, Criterion, Run
from losscope.probes.catalogue import CATALOGUE, tex_of

from . import series, style
from .lines import draw_bounds
from .marks import mark_unmeasured, mark_wrong_rates, shade_phases, spread
from .sharpness import _title
from .style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, VERMILLION
from .words import verdict

__all__ = ["plot_stability"]

LOOKS: dict[str, dict[str, Any]] = {
    "sharpness": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "trace": {"color": ORANGE, "linestyle": "-.", "marker": "s"},
    "aligned_trace": {"color": ORANGE, "linestyle": "-", "marker": "^"},
    "frobenius": {"color": ORANGE, "linestyle": (0, (4, 2)), "marker": "v"},
    "s_mu": {"color": PURPLE, "linestyle": (0, (6, 2)), "marker": "D"},
    "mean_square": {"color": PURPLE, "linestyle": "-", "marker": "*"},
    "batch_sharpness": {"color": GREEN, "linestyle": "-", "marker": "P"},
    "batch_sharpness_ratio": {"color": GREEN, "linestyle": (0, (4, 2)), "marker": "X"},
    "interaction_aware": {"color": SKY, "linestyle": "-", "marker": "h"},
    "noise_interaction": {"color": INK, "linestyle": "-.", "marker": "d"},
}
"""Kin share a colour; line style, marker and the label at the end tell them apart."""

TWO_EDGES = [entry.name for entry in CATALOGUE.values() if entry.kind == "empirical" and entry.threshold == "threshold"]
"""Criteria whose edge under momentum depends on the batch size."""

EDGE = (0.9, 1.1)
CROWD = 4
"""Curves that a narrow figure has room to name at their ends."""
NARROW = 0.6
"""Inches of a name that it has room for."""
HANDLE = 0.5
"""Inches that a legend takes beside its words."""
FAR = 100.0
"""Ratio from which others that are not positive would lie flat on a linear axis."""


def plot_stability(
    run: Run, ax: Axes | None = None, *, player: str | None = None, size: tuple[float, float] = (6.4, 4.2)
) -> Axes:
    """Draw measured over threshold for each criterion, with its interval and the audit's verdict in words.

    A ratio of 1 is the threshold; between 0.9 and 1.1 the audit speaks of the edge. Sharpness and batch sharpness
    are compared with the optimizer's own threshold; under momentum, where that is the edge of large batches, the edge
    of small ones is dotted. Criteria that do not apply are grey and dotted, and may leave the frame. The phases
    that the run went through are shaded.

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
    audit = run.audit(player)
    records = run.select("stability", player)
    table = series.Table(records)
    preconditioned = bool(series.facts(run, player).get("preconditioned"))
    curves = [curve for line in audit.criteria if (curve := _Curve.of(table, line, preconditioned)) is not None]
    ax.set_ylabel("measured / threshold")
    if curves:
        applying = [curve for curve in curves if curve.applies]
        two = any(curve.line.name in TWO_EDGES for curve in applying)
        small = series.small_batch_edge(records if two else []).thinned()
        _scale(ax, applying or curves, small)
        _edge(ax, small)
        for curve in curves:
            curve.draw(ax, many=len(applying) > 3)
        _barred(ax, [c for c in curves if not c.applies])
        _window(ax, audit)
    else:
        style.say(ax, _nothing(run, player))
    mark_unmeasured(ax, series.unmeasured(run, "stability", player), "measurement")
    mark_wrong_rates(ax, records)
    style.step_axis(ax, curves[0].data.steps if curves else np.array([]))
    if curves:
        shade_phases(ax, run.phases(player))
    style.legend(ax, outside=own, columns=2 if len(curves) > 3 else 1)
    longest = max((style.inches(curve.symbol, style.FONT) for curve in curves), default=0.0)
    if curves and (style.width_of(ax) > 5 or (len(curves) <= CROWD and longest < NARROW)):  # else the legend has to do
        _label_ends(ax, curves, settle=own)
    return ax


def _nothing(run: Run, player: str | None) -> str:
    if not run.select("stability", player):
        return "no stability recorded"
    reason = series.facts(run, player).get("threshold_reason")
    return style.plain(f"no ratio to draw: {reason}", 80) if reason else "no ratio to draw: no threshold known"


@dataclass(frozen=True, eq=False)
class _Curve:
    """One criterion over the steps."""

    line: Criterion
    data: series.Series
    symbol: str

    @classmethod
    def of(cls, table: series.Table, line: Criterion, preconditioned: bool) -> _Curve | None:
        """None where there is nothing to draw."""
        if line.name not in LOOKS or not np.isfinite((data := series.ratios_of(table, line.name)).value).any():
            return None
        return cls(line, data.thinned(), tex_of(line.name, preconditioned=preconditioned))

    @property
    def applies(self) -> bool:
        return self.line.verdict != "NOT_APPLICABLE"

    @property
    def look(self) -> dict[str, Any]:
        muted = {} if self.applies else {"color": MUTED, "linestyle": ":"}
        return LOOKS[self.line.name] | muted

    @property
    def end(self) -> float:
        return float(self.data.value[np.isfinite(self.data.value)][-1])

    def draw(self, ax: Axes, *, many: bool) -> None:
        """The curve; with its interval where it applies."""
        data, look = self.data, self.look
        room = style.width_of(ax) - style.LEFT - HANDLE
        letters = min(int((room - style.inches(self.symbol, style.FONT - 1)) / style.LETTER) - 4, 40)
        bare = self.line.threshold is None or (many and self.line.name != "sharpness")
        against = "" if bare else f" / {self._divisor(max(letters, 12))}"
        label = f"{self.symbol}{against}: {verdict(self.line.verdict).words}" if self.applies else None
        if label and style.inches(label, style.FONT - 1) > room:
            label = label.replace(": ", ":\n")
        ax.plot(
            data.steps, data.value, linewidth=1.4 if self.applies else 1.0, markersize=3.5 if many else 3,
            markevery=max(len(data) // 20, 1), markerfacecolor=None if self.applies else "none", label=label,
            zorder=3 if self.applies else 2.8, gid=f"ratio-{self.line.name}", **look,
        )  # fmt: skip
        if self.applies:
            draw_bounds(ax, data, color=look["color"], alpha=0.1 if many else 0.2)

    def _divisor(self, most: int) -> str:
        formula = style.plain(self.line.formula, most)
        return f"({formula})" if any(sign in formula for sign in "/+ ") else formula


def _barred(ax: Axes, curves: Sequence[_Curve]) -> None:
    """One entry of the legend for all that does not apply."""
    if curves:
        symbols = ", ".join(curve.symbol for curve in curves) if len(curves) <= 2 else f"{len(curves)} criteria"
        label = f"{symbols}: {'does' if len(curves) == 1 else 'do'} not apply"
        ax.plot([], [], color=MUTED, linestyle=":", linewidth=1.0, label=label, gid="barred")


def _edge(ax: Axes, small: series.Series) -> None:
    ax.axhspan(*EDGE, color=VERMILLION, alpha=0.12, linewidth=0, zorder=0.5, label="edge: 0.9 to 1.1", gid="edge")
    ax.axhline(1.0, color=VERMILLION, linewidth=1.1, linestyle=(0, (5, 2)), zorder=3.5, gid="one")
    if len(small):
        ax.plot(
            small.steps, small.value, color=VERMILLION, linewidth=1.1, linestyle=":", drawstyle="steps-post",
            zorder=3.4, label="edge of small batches", gid="small-batch-edge",
        )  # fmt: skip


def _scale(ax: Axes, curves: Sequence[_Curve], small: series.Series) -> None:
    """Scale and limits, which the curves that apply set."""
    drawn = [curve.data for curve in curves]
    values = np.concatenate([*[data.value for data in drawn], small.value, np.ones(1)])
    values = values[np.isfinite(values)]
    style.log_if_wide(ax, values, wide=8)
    highs = max((float(d.high[d.bounded].max()) for d in drawn if d.bounded.any()), default=0.0)
    top, least = max(float(values.max()), 1.1), float(values.min())
    if ax.get_yscale() == "log":
        ax.set_ylim(min(least, 0.9) / 1.3, max(top * 1.6, min(highs, top * 2)))
    elif max(top, -least) > FAR:  # and not all are positive
        sizes = np.abs(np.concatenate([data.value for data in drawn]))
        usual = float(np.median(sizes[np.isfinite(sizes) & (sizes > 0)]))
        style.symmetric(ax, min(1.0, 10.0 ** math.floor(math.log10(usual))))
        ax.set_ylim(min(0.0, least * 1.6), top * 1.6)
    else:
        ax.set_ylim(min(0.0, least * 1.1), max(top * 1.14, min(highs, top * 1.4)))


def positive_part(values: np.ndarray) -> bool:
    """Whether ratios are drawn on a logarithmic axis although some are not positive, which it marks at its bottom.

    That is where the largest would have all others lie flat on a linear axis, and most are positive; plotly's axes have
    no scale about zero.

    Example:
        >>> import numpy as np
        >>> from losscope.viz.stability import positive_part
        >>> positive_part(np.array([2000.0, -0.1, 0.01, 0.01])), positive_part(np.array([2.0, -0.1, 0.01, 0.01]))
        (True, False)
    """
    finite = values[np.isfinite(values)]
    return bool(len(finite) and finite.min() <= 0 < np.median(finite) and finite.max() > FAR)


def _window(ax: Axes, audit: Audit) -> None:
    """A bar along the bottom over the steps that the audit rests on."""
    if audit.steps is None or audit.steps[0] == audit.steps[1]:
        return
    first, last = audit.steps
    ax.plot(
        [first, last], [0.012, 0.012], transform=ax.get_xaxis_transform(), color=style.ink(ax), linewidth=2.5,
        alpha=0.55, solid_capstyle="butt", label=f"steps the verdicts rest on: {first:,} to {last:,}", gid="window",
    )  # fmt: skip


def _label_ends(ax: Axes, curves: Sequence[_Curve], *, settle: bool) -> None:
    """Each curve's symbol at its right end, moved apart where they would lie on each other."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    low, high = ax.get_ylim()
    shown = [curve for curve in curves if low <= curve.end <= high]
    engine = figure.get_layout_engine() if isinstance(figure, Figure) else None
    if settle and engine is not None:  # the legend takes room from the axes
        engine.execute(figure)
    points = [float(ax.transData.transform((0, curve.end))[1]) * 72 / figure.dpi for curve in shown]
    for curve, at, moved in zip(shown, points, spread(points, style.FONT * 1.35), strict=True):
        ax.annotate(
            curve.symbol, (1.0, curve.end), xycoords=("axes fraction", "data"), xytext=(5, moved - at),
            textcoords="offset points", ha="left", va="center", color=curve.look["color"], fontsize=style.FONT,
            annotation_clip=False, gid="end-label",
        )  # fmt: skip
