"""Curves, bands and axes of the page's interactive figures, as plain data that plotly.js draws."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import series
from .words import interval, shown

__all__ = ["Drawn", "band", "curve", "inert", "layout", "level", "numbers", "scale", "span"]

Drawn = tuple[list[dict[str, Any]], dict[str, Any]]
"""Traces and layout of a figure."""

MOST = 2000
"""Points of a curve that are kept: more than a screen has columns."""
MOST_MARKERS = 40


def inert(text: str, most: int = 120) -> str:
    """A user's words for plotly, which reads some HTML tags, entities and mathematics in every text; cut if too long.

    Example:
        >>> from losscope.viz.traces import inert
        >>> inert("<b>bold</b> & co")
        '&lt;b&gt;bold&lt;/b&gt; &amp; co'
    """
    text = shown(text)
    short = text if len(text) <= most else text[: most - 1] + "…"
    return html.escape(short, quote=False).replace("$", "&#36;")


def numbers(values: Any) -> list[float | None]:
    """Six significant digits of each; None where there is no finite number."""
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in np.asarray(values, dtype=float).tolist()]


def curve(
    x: np.ndarray,
    y: np.ndarray,
    name: str,
    colour: str,
    *,
    low: np.ndarray | None = None,
    high: np.ndarray | None = None,
    row: int = 1,
    dash: str = "solid",
    width: float = 1.6,
    legend: bool = True,
    stepwise: bool = False,
    mode: str = "",
    every: bool = False,
) -> list[dict[str, Any]]:
    """A curve and the band of its interval, which the pointer reads out.

    Args:
        x: (n,) abscissae, ascending.
        y: (n,) ordinates; NaN is a gap.
        name: in the legend and under the pointer.
        colour: name of one of the page's colours.
        low: (n,) lower ends.
        high: (n,) upper ends.
        row: which panel, from the top.
        dash: plotly's name of the line's style.
        width: of the line.
        legend: whether the legend names it.
        stepwise: whether each value holds until the next.
        every: keep every point, also of a long curve.
        mode: plotly's; default: markers as well where there are few points.

    Returns:
        Traces; none where there is nothing to draw.
    """
    if not np.isfinite(y).any():
        return []
    kept = np.arange(len(y)) if every else _kept(y)
    x, y = x[kept], y[kept]
    few = len(x) == 1 or (len(x) <= MOST_MARKERS and not stepwise)
    low, high = (None if each is None else each[kept] for each in (low, high))
    trace: dict[str, Any] = {
        "type": "scatter", "x": _plain(x), "y": numbers(y), "name": inert(name), "yaxis": _axis(row),
        "mode": mode or ("lines+markers" if few else "lines"), "showlegend": legend,
        "line": {"color": f"--{colour}", "width": width, "dash": dash} | ({"shape": "hv"} if stepwise else {}),
        "marker": {"color": f"--{colour}", "size": 5}, "hovertemplate": "%{y:.5g}",
    }  # fmt: skip
    traces = []
    if low is not None and high is not None:
        trace["text"] = [interval(_known(a), _known(b)) for a, b in zip(low, high, strict=True)]
        trace["hovertemplate"] = "%{y:.5g}  (%{text})"
        traces = [each | {"meta": inert(name)} for each in band(x, low, high, colour, row=row)]
    return [*traces, trace]


def band(x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, *, row: int = 1) -> list[dict[str, Any]]:
    """The area between two curves, wherever both are known at two neighbours at least."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    for first, end in series.runs_of(np.isfinite(low) & np.isfinite(high)):
        if end - first > 1:
            part = slice(first, end)
            xs += [*_plain(x[part]), *_plain(x[part][::-1]), None]
            ys += [*numbers(low[part]), *numbers(high[part][::-1]), None]
    if not xs:
        return []
    return [
        {
            "type": "scatter", "x": xs, "y": ys, "mode": "lines", "line": {"width": 0}, "fill": "toself",
            "fillcolor": f"--{colour}/0.2", "hoverinfo": "skip", "showlegend": False, "yaxis": _axis(row),
        }
    ]  # fmt: skip


def span(first: float, last: float, colour: str, *, across: str = "x", row: int = 1, strength: float = 0.1) -> dict:
    """A shaded stretch of one panel, of the steps or (``across="y"``) of the values."""
    places = (
        {"x0": first, "x1": last, "y0": 0, "y1": 1} if across == "x" else {"y0": first, "y1": last, "x0": 0, "x1": 1}
    )
    refs = {"xref": "x", "yref": f"{_axis(row)} domain"} if across == "x" else {"xref": "x domain", "yref": _axis(row)}
    look = {"type": "rect", "layer": "below", "line": {"width": 0}, "fillcolor": f"--{colour}/{strength}"}
    return {**look, **places, **refs}


def level(value: float, colour: str, *, across: str = "y", row: int = 1, dash: str = "dash") -> dict:
    """A straight line through one panel at a value, or (``across="x"``) at a step."""
    refs = {"yref": _axis(row), "xref": "x domain"} if across == "y" else {"xref": "x", "yref": f"{_axis(row)} domain"}
    places = (
        {"y0": value, "y1": value, "x0": 0, "x1": 1} if across == "y" else {"x0": value, "x1": value, "y0": 0, "y1": 1}
    )
    return {"type": "line", "line": {"color": f"--{colour}", "width": 1.2, "dash": dash}, **places, **refs}


def layout(
    rows: Sequence[dict[str, Any]], heights: Sequence[float] = (1,), *, x: str = "optimizer step", **more: Any
) -> dict[str, Any]:
    """Panels above each other on one x-axis.

    Args:
        rows: what plotly is to know of each panel's y-axis, from the top; ``title`` as a string, in lines.
        heights: of the panels, relative.
        x: title of the x-axis; steps are linked over all figures of a player.
        more: shapes, annotations and other entries.
    """
    gap, total = 0.06, float(sum(heights))
    made: dict[str, Any] = {
        "xaxis": {"title": {"text": inert(x)}, "anchor": _axis(len(rows)), "showgrid": False, "zeroline": False},
        "meta": {"steps": x == "optimizer step"},
    }  # fmt: skip
    top = 1.0
    for row, (entries, height) in enumerate(zip(rows, heights, strict=True), 1):
        share = height / total * (1 - gap * (len(rows) - 1))
        said = {"text": inert(str(entries.get("title", ""))).replace("\n", "<br>")}
        name = "yaxis" if row == 1 else f"yaxis{row}"
        made[name] = {
            "zeroline": False,
            **entries,
            "title": said,
            "domain": [max(top - share, 0.0), top],
            "anchor": "x",
        }
        top -= share + gap
    return made | more


def scale(values: np.ndarray, wide: float) -> str:
    """Whether an axis is logarithmic: where all is positive and spreads by more than a factor."""
    finite = values[np.isfinite(values)]
    positive = len(finite) > 0 and finite.min() > 0
    return "log" if positive and finite.max() / finite.min() > wide else "linear"


def _axis(row: int) -> str:
    return "y" if row == 1 else f"y{row}"


def _kept(values: np.ndarray) -> np.ndarray:
    """Places of the points that stay when a long curve is thinned out: the extremes of equal stretches."""
    return series.decimate(np.arange(len(values)), values, MOST)[0]


def _plain(values: np.ndarray) -> list[Any]:
    return values.tolist() if values.dtype.kind == "i" else numbers(values)


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
