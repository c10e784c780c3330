"""Figures to hover over and zoom into, made with plotly, which is imported only here and only when asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from losscope.probes import Run

from . import style
from .eigenvalue_axis import density_label, least_density, readable_ticks
from .inert import inert
from .sharpness import _title
from .spectra import Spectra, spectra
from .words import number

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["interactive_spectrum", "say"]

BINS = 240


def interactive_spectrum(run: Run, *, player: str | None = None, logarithmic: bool | None = None) -> Figure:
    """The spectral density of a run over its steps, as a heat map that says its numbers under the pointer.

    Args:
        run: a run with probe ``spectrum``.
        player: which player; default: the first.
        logarithmic: whether eigenvalues are on a logarithmic axis; None decides by how far the outermost are from
            the rest.

    Returns:
        A plotly figure: ``figure.show()``, or ``save_html(figure, "spectrum.html")``.

    Raises:
        RunError: if the run has no such player.
        ImportError: if plotly is not installed.
    """
    graph = _plotly()
    figure, found = begun(run, player, logarithmic)
    if found is None:
        return figure
    figure.add_trace(graph.Heatmap(**_heat(found)))
    figure.add_trace(graph.Scattergl(**_ranked(found)))
    if np.isfinite(found.shown_threshold).any():
        figure.add_trace(graph.Scattergl(**_threshold(found)))
    figure.update_yaxes(**eigenvalues(found), showgrid=False)
    figure.update_xaxes(title="optimizer step", showgrid=False, zeroline=False)
    return figure


def _plotly() -> Any:
    try:
        import plotly.graph_objects
    except ImportError as error:
        raise ImportError('interactive figures need plotly: pip install "losscope[plotly]"') from error
    return plotly.graph_objects


def begun(run: Run, player: str | None, logarithmic: bool | None) -> tuple[Figure, Spectra | None]:
    """A figure of a run's spectra with nothing in it yet, and these; where there is none it says so."""
    figure = _plotly().Figure(layout=_layout(inert(_title(run, player))))
    found = spectra(run, player, logarithmic=logarithmic)
    if found is None:
        say(figure, "no spectrum recorded")
    return figure, found


def eigenvalues(found: Spectra) -> dict[str, Any]:
    """An axis of eigenvalues, for plotly."""
    axis = {"title": "eigenvalue λ [loss / parameter²]", "range": found.span, "zeroline": False}
    if not found.axis.logarithmic:
        return axis
    ticks = readable_ticks(found.axis, found.span, 0.06)
    texts = [f"{tick:g}".replace("-", "\N{MINUS SIGN}") for tick in ticks]
    return axis | {"tickvals": found.axis.place(np.array(ticks)).tolist(), "ticktext": texts}


def density_words(found: Spectra) -> str:
    """What a density of these spectra is, for plotly."""
    return density_label(found.axis, "parameter² / loss").replace(r"$\phi(\lambda)$", "φ(λ)")


def say(figure: Figure, text: str) -> None:
    """Write in the middle of a figure that has nothing to draw."""
    figure.add_annotation(text=text, showarrow=False, xref="paper", yref="paper", x=0.5, y=0.5)


def _layout(title: str) -> dict[str, Any]:
    return {
        "title": {"text": title, "x": 0.01}, "template": "none", "font": {"color": style.INK},
        "paper_bgcolor": style.PAPER, "plot_bgcolor": style.PAPER, "hovermode": "closest",
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"}, "margin": {"l": 80, "r": 20, "t": 70, "b": 60},
    }  # fmt: skip


def _heat(found: Spectra) -> dict[str, Any]:
    _, image = found.image(BINS)
    top = float(image.max())
    least = least_density(found.axis, found.span, found.densities[0].size, top)
    places = np.linspace(*found.span, BINS + 1)
    middles = (places[1:] + places[:-1]) / 2
    values = [number(float(v)) for v in found.axis.value(middles)]
    said = [[[v, number(float(share), 3)] for share in row] for v, row in zip(values, image, strict=True)]
    powers = range(math.ceil(math.log10(least)), math.floor(math.log10(top)) + 1)
    label = density_words(found)
    return {
        "x": found.steps.tolist(), "y": middles.tolist(), "z": np.log10(np.maximum(image, least)).tolist(),
        "customdata": said, "name": "density", "colorscale": "Blues", "zmin": math.log10(least),
        "zmax": math.log10(top), "hovertemplate": "step %{x}<br>λ ≈ %{customdata[0]}<br>%{customdata[1]} per "
        + ("decade" if found.axis.logarithmic else "unit") + "<extra></extra>",
        "colorbar": {
            "title": {"text": label, "side": "right"}, "tickvals": list(powers),
            "ticktext": [f"10<sup>{p}</sup>" for p in powers],
        },
    }  # fmt: skip


def _ranked(found: Spectra) -> dict[str, Any]:
    """The largest eigenvalues with their rank."""
    steps, ranks, values = zip(*found.ranked, strict=True)
    return {
        "x": list(steps), "y": found.axis.place(np.array(values)).tolist(), "mode": "markers",
        "customdata": [[rank, number(value, 5)] for rank, value in zip(ranks, values, strict=True)],
        "marker": {"size": 4, "color": style.ORANGE}, "name": "largest eigenvalues, one by one",
        "hovertemplate": "step %{x}<br>λ<sub>%{customdata[0]}</sub> = %{customdata[1]}<extra></extra>",
    }  # fmt: skip


def _threshold(found: Spectra) -> dict[str, Any]:
    return {
        "x": found.steps.tolist(), "y": found.axis.place(found.shown_threshold).tolist(), "mode": "lines",
        "line": {"color": style.VERMILLION, "dash": "dash", "width": 1.5}, "name": "stability threshold",
        "customdata": [number(float(value)) for value in found.shown_threshold],
        "hovertemplate": "threshold %{customdata}<extra></extra>",
    }  # fmt: skip
