"""The spectral density of one step after the other, with a slider; plotly is imported only when asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from losscope.probes import Run

from . import style
from .eigenvalue_axis import least_density
from .interactive import _plotly, begun, density_words, eigenvalues
from .spectra import Spectra
from .words import number

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["interactive_density"]

BINS = 240
MOST = 80
"""Steps on the slider; of more, some at equal distances."""


def interactive_density(run: Run, *, player: str | None = None, logarithmic: bool | None = None) -> Figure:
    """The spectral density at one step, with a slider over all steps at which there is one, and a button that plays.

    The first step's density stays as a grey line. Ticks at the bottom are eigenvalues that were found one by one, the
    dashed line is the optimizer's stability threshold at that step.

    Args:
        run: a run with probe ``spectrum``.
        player: which player; default: the first.
        logarithmic: whether eigenvalues are on a logarithmic axis; None decides by how far the outermost are from
            the rest.

    Returns:
        A plotly figure: ``figure.show()``, or ``save_html(figure, "density.html")``.

    Raises:
        RunError: if the run has no such player.
        ImportError: if plotly is not installed.
    """
    graph = _plotly()
    figure, found = begun(run, player, logarithmic)
    if found is None:
        return figure
    _, image = found.image(BINS)
    top = float(image.max())
    least = least_density(found.axis, found.span, found.densities[0].size, top)
    kept = np.unique(np.linspace(0, len(found.densities) - 1, min(len(found.densities), MOST)).astype(int))
    frames = [_traces(found, image, int(i), least, top) for i in kept]
    steps = [int(found.steps[i]) for i in kept]
    figure.add_trace(graph.Scatter(**_first(found, image, least)))
    for trace in frames[-1]:
        figure.add_trace(graph.Scatter(**trace))
    moving = list(range(1, 1 + len(frames[-1])))
    figure.frames = [
        graph.Frame(name=str(step), data=[graph.Scatter(**trace) for trace in traces], traces=moving)
        for step, traces in zip(steps, frames, strict=True)
    ]
    figure.update_xaxes(**eigenvalues(found))
    ends = [math.log10(least), math.log10(top) + 0.1]
    figure.update_yaxes(title=density_words(found), type="log", range=ends, exponentformat="power")
    figure.update_layout(sliders=[_slider(steps)], updatemenus=[_play()], margin={"b": 130})
    return figure


def _traces(found: Spectra, image: np.ndarray, index: int, least: float, top: float) -> list[dict[str, Any]]:
    """The density of one step, the eigenvalues known one by one, and the threshold."""
    places = _middles(found)
    values = [number(float(v)) for v in found.axis.value(np.array(places))]
    known = found.densities[index].deflated.tolist()
    at = found.axis.place(np.array(known)).tolist()
    limit = found.shown_threshold[index]
    here = [float(found.axis.place(np.array(limit)))] * 2 if np.isfinite(limit) else []
    return [
        {
            "x": places, "y": np.maximum(image[:, index], least).tolist(), "mode": "lines", "fill": "tozeroy",
            "line": {"color": style.BLUE, "width": 2}, "fillcolor": "rgba(0,114,178,0.12)", "name": "density",
            "customdata": values, "hovertemplate": "λ ≈ %{customdata}: %{y:.3g}<extra></extra>",
        },
        {
            "x": at, "y": [least * 1.3] * len(at), "mode": "markers", "name": "found one by one",
            "marker": {"symbol": "line-ns", "size": 12, "line": {"width": 1.5, "color": style.ORANGE}},
            "customdata": [number(v, 5) for v in known], "hovertemplate": "λ = %{customdata}<extra></extra>",
        },
        {
            "x": here, "y": [least, top * 1.2] if here else [], "mode": "lines", "name": "stability threshold",
            "line": {"color": style.VERMILLION, "dash": "dash", "width": 1.5}, "hoverinfo": "skip",
        },
    ]  # fmt: skip


def _first(found: Spectra, image: np.ndarray, least: float) -> dict[str, Any]:
    return {
        "x": _middles(found), "y": np.maximum(image[:, 0], least).tolist(), "mode": "lines", "hoverinfo": "skip",
        "line": {"color": style.MUTED, "width": 1}, "name": f"step {int(found.steps[0]):,}",
    }  # fmt: skip


def _middles(found: Spectra) -> list[float]:
    edges = np.linspace(*found.span, BINS + 1)
    return [float(each) for each in (edges[1:] + edges[:-1]) / 2]


def _slider(steps: list[int]) -> dict[str, Any]:
    now = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 0}}
    return {
        "active": len(steps) - 1, "currentvalue": {"prefix": "step "}, "pad": {"t": 50}, "x": 0.08, "len": 0.92,
        "steps": [{"label": f"{step:,}", "method": "animate", "args": [[str(step)], now]} for step in steps],
    }  # fmt: skip


def _play() -> dict[str, Any]:
    going = {"fromcurrent": True, "frame": {"duration": 120, "redraw": False}, "transition": {"duration": 0}}
    stop = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}}
    return {
        "type": "buttons", "direction": "left", "x": 0.07, "xanchor": "right", "y": 0, "yanchor": "top",
        "pad": {"t": 65},
        "buttons": [
            {"label": "▶", "method": "animate", "args": [None, going]},
            {"label": "❚❚", "method": "animate", "args": [[None], stop]},
        ],
    }  # fmt: skip
