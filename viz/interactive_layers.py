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
from .style import GRID, MUTED
from .ticks import signed_decades
from .words import interval, number

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["cells", "interactive_layers"]

FEW = 4
"""Rows below which the bar beside them is short."""
MOST_POWERS = 8
"""Powers of ten beside a bar, about."""
ROW = 18
"""Height in pixels of a layer's row."""


def interactive_layers(run: Run, *, player: str | None = None) -> Figure:
    """The trace of every layer's own block of the Hessian, as a heat map that says its numbers under the pointer.

    The model's first layer is at the top. Colours are on a logarithmic scale, or, where some traces are negative beyond
    their intervals, on one that is logarithmic on both sides of zero. Dots are where the interval holds zero; pale grey
    cells have a value of zero or below on a scale that has none.

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
    figure.add_traces(cells(grid, one="Blues", two="PuOr_r", grey=GRID, dots=MUTED))
    count = len(grid.names)
    names = [inert(name, 40) for name in distinct(grid.names)]
    figure.update_yaxes(
        tickvals=list(range(count)), ticktext=names, range=[count - 0.5, -0.5], showgrid=False, zeroline=False,
        title="layer, from the input", automargin=True,
    )  # fmt: skip
    figure.update_xaxes(title="optimizer step", showgrid=False, zeroline=False)
    figure.update_layout(height=min(max(420, 160 + ROW * count), 1400))
    return figure


def cells(grid: LayerGrid, *, one: Any, two: Any, grey: str, dots: str) -> list[dict[str, Any]]:
    """The heat map, below it the cells that its scale does not hold, above it the dots.

    Args:
        grid: the traces.
        one: colours of a scale of one sign.
        two: of one of both signs, from below zero to above.
        grey: colour of the cells that are not above zero on a scale of one sign.
        dots: colour of the dots where the interval holds zero.
    """
    heat = _heat(grid) | {"colorscale": two if grid.negative else one}
    found = [heat]
    below = np.isfinite(grid.value) & (grid.value <= 0) & (not grid.negative)
    if below.any():
        z = [[1.0 if each else None for each in row] for row in below.tolist()]
        found.insert(0, heat | {"z": z, "colorscale": [[0, grey], [1, grey]], "showscale": False, "name": "below"})
    rows, columns = np.nonzero(grid.uncertain)
    if len(rows):
        found.append(
            {
                "type": "scatter", "x": grid.steps[columns].tolist(), "y": rows.tolist(), "mode": "markers",
                "marker": {"size": 3, "color": dots}, "hoverinfo": "skip", "showlegend": False,
                "name": "the interval holds zero",
            }
        )  # fmt: skip
    return found


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
        "type": "heatmap", "x": grid.steps.tolist(), "y": list(range(len(grid.names))), "name": "layers",
        "z": [[float(v) if np.isfinite(v) else None for v in row] for row in z],
        "text": said, "hovertemplate": "%{text}<extra>step %{x}</extra>", "zmin": ends[0], "zmax": ends[1],
        "hoverongaps": False,
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
    if not grid.negative:
        ticks = round_between(least, top)
        return {"tickvals": np.log10(ticks).tolist(), "ticktext": [_text(tick) for tick in ticks]}
    ticks = signed_decades(least, top, 5 if len(grid.names) < FEW else MOST_POWERS + 1)
    words = ["\N{MINUS SIGN}" * (tick < 0) + _text(abs(tick)) for tick in ticks]
    return {"tickvals": signed_log(np.array(ticks), least).tolist(), "ticktext": words}


def round_between(least: float, top: float) -> list[float]:
    """Some round numbers between two: powers of ten, of few decades twice and five times these, else the ends.

    Example:
        >>> from losscope.viz.interactive_layers import round_between
        >>> round_between(0.3, 4.0), round_between(1.0, 1e4), round_between(1.2, 1.8)
        ([0.5, 1.0, 2.0], [1.0, 10.0, 100.0, 1000.0, 10000.0], [1.2, 1.8])
    """
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(top))
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    every = -(-(last - first) // MOST_POWERS) or 1
    ticks = [float(f"{factor}e{power}") for power in range(first, last + 1, every) for factor in factors]
    ticks = [tick for tick in ticks if least * (1 - 1e-9) <= tick <= top * (1 + 1e-9)]
    return ticks if len(ticks) > 1 else [least, top]


def _text(value: float) -> str:
    """A tick for plotly, with a power of ten where it is far from 1."""
    if value == 0 or 1e-3 <= value < 1e4:
        return f"{value:.3g}"
    power = math.floor(math.log10(value) + 1e-9)
    factor = f"{value / 10.0**power:.3g}"
    return f"10<sup>{power}</sup>" if factor == "1" else f"{factor}·10<sup>{power}</sup>"
