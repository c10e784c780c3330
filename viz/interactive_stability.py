"""Stability and sharpness of a run to hover over; plotly is imported only when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from losscope.landscape.stability import judge
from losscope.probes import Criterion, Record, Run
from losscope.probes.catalogue import CATALOGUE

from . import series, style
from .inert import inert
from .interactive import _layout, _plotly, say
from .series import Series
from .sharpness import _title
from .stability import LOOKS, positive_part
from .words import interval, number, short_symbol, verdict

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["interactive_sharpness", "interactive_stability"]

MOST = 1000
"""Points of a curve; of more, those that show its extremes."""
DASHES = {"-": "solid", "-.": "dashdot", ":": "dot"}
SYMBOLS = {
    "o": "circle", "s": "square", "^": "triangle-up", "v": "triangle-down", "D": "diamond", "*": "star", "P": "cross",
    "X": "x", "h": "hexagon", "d": "diamond-tall",
}  # fmt: skip


def interactive_stability(run: Run, *, player: str | None = None) -> Figure:
    """Each criterion of the audit over its threshold, which says under the pointer all that was measured there.

    That is the value with its interval, the threshold, their ratio, what that measurement by itself says, and the
    run's verdict with its reason. Buttons choose between one criterion and all of a step. Criteria that do not apply
    are dotted and hidden until they are clicked in the legend.

    Args:
        run: a run with probe ``stability``.
        player: which player; default: the first.

    Returns:
        A plotly figure: ``figure.show()``, or ``save_html(figure, "stability.html")``.

    Raises:
        RunError: if the run has no such player.
        ImportError: if plotly is not installed.
    """
    graph = _plotly()
    figure = graph.Figure(layout=_layout(inert(_title(run, player))))
    records = run.select("stability", player)
    lines = [(line, series.ratios(run, line.name, player)) for line in run.audit(player).criteria]
    lines = [(line, data) for line, data in lines if np.isfinite(data.value).any()]
    if not lines:
        say(figure, "no stability recorded" if not records else "no ratio to draw: no threshold known")
        return figure
    for line, data in lines:
        kept = _kept(data)
        figure.add_trace(graph.Scatter(**_criterion(line, data, kept, [records[i] for i in kept])))
    steps, words = series.no_stable_step(records)
    if len(steps):
        mark = {"symbol": "triangle-up", "size": 8, "color": style.VERMILLION}
        at = {"x": steps.tolist(), "y": [1.0] * len(steps)}
        figure.add_trace(graph.Scatter(**at, mode="markers", marker=mark, name=words, hoverinfo="name"))
    figure.add_hrect(y0=0.9, y1=1.1, fillcolor=style.VERMILLION, opacity=0.1, line_width=0)
    figure.add_hline(y=1, line={"color": style.VERMILLION, "dash": "dash", "width": 1.5})
    shown = np.concatenate([data.value[np.isfinite(data.value)] for line, data in lines if _applies(line)] or [[1.0]])
    cut = positive_part(shown)
    wide = cut or (shown.min() > 0 and max(shown.max(), 1) / min(shown.min(), 1) > style.WIDE)
    if cut:
        for mark in _not_above_zero(lines, float(shown[shown > 0].min()) / 2):
            figure.add_trace(graph.Scatter(**mark))
    figure.update_yaxes(title="measured / threshold", type="log" if wide else "linear", zeroline=False)
    figure.update_xaxes(title="optimizer step", zeroline=False)
    figure.update_layout(
        updatemenus=[_buttons()], title={"y": 0.98, "yanchor": "top"}, legend={"y": -0.14, "yanchor": "top"}
    )
    return figure


def interactive_sharpness(run: Run, *, player: str | None = None) -> Figure:
    """The sharpness with its bounds and threshold, and the loss below, which say their numbers under the pointer.

    Args:
        run: a run with probe ``sharpness`` or ``stability``.
        player: which player; default: the first.

    Returns:
        A plotly figure: ``figure.show()``, or ``save_html(figure, "sharpness.html")``.

    Raises:
        RunError: if the run has no such player.
        ImportError: if plotly is not installed.
    """
    graph = _plotly()
    figure = graph.Figure(layout=_layout(inert(_title(run, player))))
    data = series.sharpness(run, player)
    if not np.isfinite(data.value).any():
        say(figure, "no sharpness recorded" if not len(data) else "no finite sharpness recorded")
        return figure
    for trace in _sharpness(data, _kept(data), str(series.facts(run, player).get("threshold_formula") or "threshold")):
        figure.add_trace(graph.Scatter(**trace))
    steps, values, what = series.loss(run, player)
    known = np.isfinite(values)
    if known.any():
        steps, values = series.decimate(steps, np.where(known, values, np.nan), MOST)
        figure.add_trace(
            graph.Scatter(
                x=steps.tolist(), y=_listed(values), mode="lines", name=what, yaxis="y2",
                line={"color": style.GREEN, "width": 1}, hovertemplate="step %{x}<br>loss %{y:.5g}<extra></extra>",
            )
        )  # fmt: skip
    positive = bool(known.any() and np.nanmin(values) > 0)
    figure.update_layout(
        hovermode="closest", xaxis={"title": "optimizer step", "zeroline": False},
        yaxis={"title": "sharpness λ<sub>max</sub>(H) [loss / parameter²]", "domain": [0.36, 1], "rangemode": "tozero"},
        yaxis2={"title": what, "domain": [0, 0.26], "type": "log" if positive else "linear", "anchor": "x"},
    )  # fmt: skip
    return figure


def _criterion(line: Criterion, data: Series, kept: np.ndarray, records: Sequence[Record]) -> dict[str, Any]:
    """The curve of one criterion, with a bar where it is bounded."""
    look, applies = LOOKS.get(line.name, {"color": style.MUTED, "linestyle": "-", "marker": "o"}), _applies(line)
    colour = look["color"] if applies else style.MUTED
    symbol = inert(short_symbol(line), 60)
    return {
        "x": data.steps[kept].tolist(), "y": _listed(data.value[kept]), "visible": True if applies else "legendonly",
        "name": f"{symbol}: {verdict(line.verdict).words}", "mode": "lines+markers",
        "error_y": _bars(data, kept, colour),
        "line": {"color": colour, "width": 2, "dash": DASHES.get(look["linestyle"], "dash") if applies else "dot"},
        "marker": {"symbol": SYMBOLS.get(look["marker"], "circle"), "size": 6},
        "text": [_said(line, record, *numbers) for record, numbers in zip(records, _rows(data, kept), strict=True)],
        "hovertemplate": "%{text}<extra>step %{x}</extra>",
    }  # fmt: skip


def _not_above_zero(lines: Sequence[tuple[Criterion, Series]], bottom: float) -> list[dict[str, Any]]:
    """Marks at the bottom of a logarithmic axis, which has no place for these ratios."""
    found = []
    for line, data in lines:
        below = data.value <= 0
        if _applies(line) and below.any():
            look = {
                "symbol": "triangle-down-open",
                "size": 8,
                "color": LOOKS.get(line.name, {}).get("color", style.MUTED),
            }
            said = [f"{inert(short_symbol(line), 60)}: ratio {number(value)}" for value in data.value[below].tolist()]
            at = {"x": data.steps[below].tolist(), "y": [bottom] * int(below.sum()), "text": said}
            name = f"not above zero ({int(below.sum())})"
            found.append(
                {**at, "mode": "markers", "marker": look, "name": name, "hovertemplate": "%{text}<extra></extra>"}
            )
    return found


def _said(line: Criterion, record: Record, ratio: float, low: float, high: float) -> str:
    """What one measurement says, and what the run's verdict rests on."""
    entry = CATALOGUE[line.name]
    numbers = {end: record.values.get(f"{line.name}{end}") for end in ("", "_low", "_high")}
    between = interval(numbers["_low"], numbers["_high"]) or "no interval"
    known = (_known(each) for each in (ratio, low, high))
    here = judge(*known, necessary=entry.kind == "necessary", oscillates=None)
    rows = [
        f"<b>{inert(short_symbol(line), 60)} = {number(numbers[''])}</b> ({between})",
        f"threshold {inert(line.formula, 40)} = {number(record.values.get(entry.threshold))}, ratio {number(ratio)}",
    ]
    if _applies(line):
        rows.append(f"this measurement alone: {verdict(here).words}")
    rows += [f"the run: {verdict(line.verdict).words}", *_wrapped(line.reason)]
    if record.reason:
        rows += _wrapped(f"noted: {record.reason}")
    return "<br>".join(rows)


def _wrapped(text: str, width: int = 70) -> list[str]:
    """Lines of a text of the run, four at most."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + len(word) >= width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return [inert(each, width + 20) for each in [*lines, line][:4]]


def _sharpness(data: Series, kept: np.ndarray, formula: str) -> list[dict[str, Any]]:
    """The band of the bounds, the curve, and the threshold."""
    steps = data.steps[kept].tolist()
    low = np.where(np.isfinite(data.low[kept]), data.low[kept], data.value[kept])
    limits = data.threshold[kept]
    text = [
        "<br>".join(
            [
                f"<b>λ<sub>max</sub>(H) = {number(value, 5)}</b>",
                interval(_known(least), _known(most), 5) if np.isfinite(most) else "bounded from below only",
                *(
                    [f"threshold {inert(formula, 40)} = {number(limit)}, ratio {number(value / limit)}"]
                    if limit > 0
                    else []
                ),
            ]
        )
        for value, least, most, limit in zip(data.value[kept], low, data.high[kept], limits, strict=True)
    ]
    traces: list[dict[str, Any]] = [
        {
            "x": steps, "y": _listed(data.value[kept]), "mode": "lines+markers", "name": "sharpness", "text": text,
            "line": {"color": style.BLUE, "width": 2}, "marker": {"size": 5},
            "error_y": _bars(data, kept, style.BLUE),
            "hovertemplate": "%{text}<extra>step %{x}</extra>",
        }
    ]  # fmt: skip
    if np.isfinite(limits).any():
        traces.append(
            {
                "x": steps, "y": _listed(limits), "mode": "lines", "name": f"threshold {inert(formula, 40)}",
                "line": {"color": style.VERMILLION, "dash": "dash", "shape": "hv", "width": 1.5},
                "hovertemplate": "threshold %{y:.5g}<extra>step %{x}</extra>",
            }
        )  # fmt: skip
    return traces


def _bars(data: Series, kept: np.ndarray, colour: str) -> dict[str, Any]:
    """From the lower bound to the upper one, where both are known."""
    value, low, high = (each[kept] for each in (data.value, data.low, data.high))
    both = np.isfinite(low) & np.isfinite(high)
    above, below = (np.where(both, np.maximum(off, 0), np.nan) for off in (high - value, value - low))
    return {
        "type": "data", "symmetric": False, "array": _listed(above), "arrayminus": _listed(below), "color": colour,
        "thickness": 1, "width": 3,
    }  # fmt: skip


def _buttons() -> dict[str, Any]:
    one, every = ({"hovermode": mode} for mode in ("closest", "x unified"))
    return {
        "type": "buttons", "direction": "right", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom",
        "buttons": [
            {"label": "one criterion", "method": "relayout", "args": [one]},
            {"label": "all of a step", "method": "relayout", "args": [every]},
        ],
    }  # fmt: skip


def _applies(line: Criterion) -> bool:
    return line.verdict != "NOT_APPLICABLE"


def _kept(data: Series) -> np.ndarray:
    """Indices of the points to draw."""
    return series.keep(data.steps, data.value, data.low, data.high, data.threshold, most=MOST)


def _rows(data: Series, kept: np.ndarray) -> zip[tuple[float, float, float]]:
    return zip(data.value[kept], data.low[kept], data.high[kept], strict=True)


def _listed(values: np.ndarray) -> list[float | None]:
    """Gaps are None: JSON has no NaN."""
    return [float(value) if np.isfinite(value) else None for value in values]


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
