"""The curvature of every layer over the steps to hover over; plotly is imported only when asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from losscope.probes import Run

from .inert import inert
from .interactive import _layout, _plotly, say
from .layer_grid import LayerGrid, layer_grid
from .names import distinct
from .sharpness import _title
from .style import MUTED
from .words import interval, number

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["interactive_layers"]

ROW = 18
"""Height in pixels of a layer's row."""


def interactive_layers(run: Run, *, player: str | None = None) -> Figure:
    """The trace of every layer's own block of the Hessian, as a heat map that says its numbers under the pointer.

    The model's first layer is at the top. Colours are on a logarithmic scale, or, where some traces are negative beyond
    their intervals, on one that is logarithmic on both sides of zero. Dots are where the interval holds zero.

    Args:
        run: a run with probe ``layer_traces``.
        player: which player; default: the first.

    Returns:
        A plotly figure: ``figure.show()``, or ``save_html(figure, "layers.html")``.

    Raises:
        RunError: if the run has no such player.
        ImportError: if plotly is not installed.
    """
    graph = _plotly()
    figure = graph.Figure(layout=_layout(inert(_title(run, player))))
    grid = layer_grid(run, player)
    if not np.isfinite(grid.value).any():
        say(figure, "no layers recorded" if not grid.names else "no finite trace recorded")
        return figure
    figure.add_trace(graph.Heatmap(**_heat(grid)))
    rows, columns = np.nonzero(grid.uncertain)
    if len(rows):
        figure.add_trace(
            graph.Scattergl(
                x=grid.steps[columns].tolist(), y=rows.tolist(), mode="markers", name="the interval holds zero",
                marker={"size": 3, "color": MUTED}, hoverinfo="skip",
            )
        )  # fmt: skip
    count = len(grid.names)
    names = [inert(name, 40) for name in distinct(grid.names)]
    figure.update_yaxes(
        tickvals=list(range(count)), ticktext=names, range=[count - 0.5, -0.5], showgrid=False, zeroline=False,
        title="layer, from the input", automargin=True,
    )  # fmt: skip
    figure.update_xaxes(title="optimizer step", showgrid=False, zeroline=False)
    figure.update_layout(height=min(max(420, 160 + ROW * count), 1400))
    return figure


def _heat(grid: LayerGrid) -> dict[str, Any]:
    least, top = grid.span
    z = signed_log(grid.value, least) if grid.negative else np.where(grid.value > 0, grid.value, np.nan)
    z = z if grid.negative else np.log10(np.maximum(z, least))
    most = float(signed_log(np.array([top]), least)[0])
    ends = (-most, most) if grid.negative else (math.log10(least), math.log10(top))
    said = [
        [
            f"{inert(name, 60)}<br>tr(H) = {number(value)} ({interval(low, high) or 'no interval'})"
            + ("<br>the interval holds zero" if unsure else "")
            for value, low, high, unsure in zip(*row, strict=True)
        ]
        for name, *row in zip(grid.names, grid.value, grid.low, grid.high, grid.uncertain, strict=True)
    ]
    return {
        "x": grid.steps.tolist(), "y": list(range(len(grid.names))), "name": "layers",
        "z": [[float(v) if np.isfinite(v) else None for v in row] for row in z],
        "text": said, "hovertemplate": "%{text}<extra>step %{x}</extra>", "zmin": ends[0], "zmax": ends[1],
        "colorscale": "PuOr_r" if grid.negative else "Blues", "hoverongaps": False,
        "colorbar": {"title": {"text": "tr(H<sub>ℓℓ</sub>) [loss / parameter²]", "side": "right"}} | _ticks(grid),
    }  # fmt: skip


def signed_log(values: np.ndarray, least: float) -> np.ndarray:
    """Decades above ``least`` with the sign of the value, linear below it: as matplotlib's scale about zero.

    Example:
        >>> import numpy as np
        >>> from losscope.viz.interactive_layers import signed_log
        >>> signed_log(np.array([-100.0, 0.0, 0.5, 1.0, 10.0]), 1.0).tolist()
        [-3.0, 0.0, 0.5, 1.0, 2.0]
    """
    size = np.abs(values) / least
    with np.errstate(divide="ignore"):
        return np.sign(values) * np.where(size < 1, size, 1 + np.log10(np.maximum(size, 1)))


def _ticks(grid: LayerGrid) -> dict[str, Any]:
    least, top = grid.span
    powers = range(math.ceil(math.log10(least)), math.floor(math.log10(top)) + 1)
    if not grid.negative:
        return {"tickvals": list(powers), "ticktext": [f"10<sup>{p}</sup>" for p in powers]}
    places = signed_log(10.0 ** np.array(powers, dtype=float), least).tolist()
    texts = [f"10<sup>{p}</sup>" for p in powers]
    return {
        "tickvals": [*(-place for place in reversed(places)), 0.0, *places],
        "ticktext": [*("\N{MINUS SIGN}" + text for text in reversed(texts)), "0", *texts],
    }
