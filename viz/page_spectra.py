"""The page's interactive figures of spectra, of layers, and of the weights' path."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from losscope.landscape import RunError
from losscope.probes import Run, trajectory_of

from . import series
from .eigenvalue_axis import density_label, least_density, readable_ticks
from .interactive_layers import cells
from .layer_grid import layer_grid
from .smoothing import Axis, smooth
from .spectra import Spectra, spectra
from .traces import Drawn, band, curve, inert, layout, level, numbers, scale
from .words import number

__all__ = ["layers", "outliers", "spectrum", "spectrum_over_time", "trajectory"]

BINS, MOST_STEPS, MOST_LAYERS = 120, 150, 120
"""Cells of a heat map."""
EIGENVALUE = "eigenvalue λ [loss / parameter²]"


def spectrum(run: Run, player: str) -> Drawn | None:
    """The density at the last step that has one."""
    records = run.select("spectrum", player)
    try:
        density = run.spectrum(None, player)
    except RunError:  # none was measured, or its arrays are gone
        return None
    shown = smooth(density, Axis.of(density))
    floor = least_density(shown.axis, shown.span, density.size, float(shown.density.max()))
    places = shown.axis.place(shown.values)
    drawn = np.where(shown.density > floor, shown.density, np.nan)
    said = [number(float(value)) for value in shown.values]
    traces: list[dict[str, Any]] = []
    if shown.band is not None:
        low, high = (np.maximum(end, floor) for end in shown.band)
        traces += band(places, low, high, "blue")
    (line,) = curve(places, drawn, f"{density.size:,} eigenvalues", "blue", mode="lines", every=True)
    traces.append(line | {"text": said, "hovertemplate": "λ ≈ %{text}: %{y:.3g}<extra></extra>"})
    if len(density.deflated):
        known = density.deflated.numpy()
        marks = {
            "x": numbers(shown.axis.place(known)),
            "y": [floor] * len(known),
            "text": [number(float(v), 5) for v in known],
            "mode": "markers",
            "marker": {"symbol": "line-ns-open", "size": 11, "color": "--orange"},
        }
        name = f"{len(known)} of them found one by one"
        traces.append({"type": "scatter", "name": name, "hovertemplate": "λ = %{text}<extra></extra>", **marks})
    shapes = [level(0.0, "muted", across="x", dash="solid")]
    threshold = records[-1].values.get("threshold")
    if threshold is not None and shown.values[0] < threshold < shown.values[-1]:
        shapes.append(level(float(shown.axis.place(np.array(threshold))), "vermillion", across="x"))
    title = density_label(shown.axis, "parameter² / loss").replace(r"$\phi(\lambda)$", "φ(λ)")
    made = layout([{"title": title, "type": "log"}], x=EIGENVALUE, shapes=shapes, hovermode="closest")
    made["xaxis"] |= _ticks(shown.axis, shown.span)
    return traces, made


def spectrum_over_time(run: Run, player: str) -> Drawn | None:
    """The densities as a heat map, with the eigenvalues known one by one."""
    found = spectra(run, player)
    if found is None:
        return None
    threshold = found.shown_threshold
    traces = [_heat(found)]
    (steps, ranks, values) = zip(*found.ranked, strict=True) if found.ranked else ((), (), ())
    said = [f"λ<sub>{rank}</sub> = {number(value, 5)}" for rank, value in zip(ranks, values, strict=True)]
    traces.append(
        {
            "type": "scatter",
            "mode": "markers",
            "x": list(steps),
            "y": numbers(found.axis.place(np.array(values))),
            "text": said,
            "hovertemplate": "step %{x}: %{text}<extra></extra>",
            "name": "largest, one by one",
            "marker": {"size": 4, "color": "--orange"},
        }
    )
    line = curve(found.steps, found.axis.place(threshold), "threshold", "vermillion", dash="dash", mode="lines")
    if line:
        (drawn,) = line
        shown = [number(float(v)) for v in threshold] if len(drawn["x"]) == len(threshold) else None
        hover = {"text": shown, "hovertemplate": "threshold %{text}<extra></extra>"} if shown else {"hoverinfo": "skip"}
        traces.append(drawn | hover)
    made = layout(
        [{"title": EIGENVALUE, "range": list(found.span), "showgrid": False}], hovermode="closest", height=420
    )
    made["yaxis"] |= _ticks(found.axis, found.span)
    return traces, made


def outliers(run: Run, player: str) -> Drawn | None:
    """The largest eigenvalues, the bulk's edge and how many stand above it."""
    records = run.select("spectrum", player)
    steps = np.array([r.step for r in records], dtype=int)
    rows = [series.numbers(r.value for r in records)]
    known = {name for r in records for name in r.values}
    while f"lambda_{len(rows) + 1}" in known:
        rows.append(series.column(records, f"lambda_{len(rows) + 1}"))
    counts = series.column(records, "outliers")
    traces: list[dict[str, Any]] = []
    for rank, row in enumerate(rows, 1):
        traces += curve(steps, row, f"λ{rank}", "muted", width=0.8, legend=False)
        above = curve(steps, np.where(counts >= rank, row, np.nan), "outliers", "blue", width=1.3, legend=rank == 1)
        traces += [trace | {"hoverinfo": "skip", "hovertemplate": None, "meta": rank} for trace in above]
    edge, low, high = (series.column(records, f"bulk_edge{end}") for end in ("", "_low", "_high"))
    traces += curve(steps, edge, "edge of the bulk", "purple", low=low, high=high, dash="dashdot")
    threshold = series.column(records, "threshold")
    traces += curve(steps, threshold, "threshold", "vermillion", dash="dash", width=1.2, stepwise=True)
    low, high = (series.column(records, f"outliers_{end}") for end in ("low", "high"))
    traces += curve(steps, counts, "how many stand apart", "green", low=low, high=high, row=2, stepwise=True)
    values = np.concatenate([*rows, threshold])
    rows_of = [
        {"title": "largest eigenvalues\n[loss / parameter²]", "type": scale(values, 15)},
        {"title": "outliers", "rangemode": "tozero"},
    ]
    return traces, layout(rows_of, (2.6, 1), hovermode="closest", height=460)


def layers(run: Run, player: str) -> Drawn | None:
    """The trace of every layer over the steps."""
    grid = layer_grid(run, player)
    if not np.isfinite(grid.value).any() or len(grid.names) > MOST_LAYERS:
        return None
    kept = _some(len(grid.steps))
    some = {name: getattr(grid, name)[:, kept] for name in ("value", "low", "high")}
    grid = dataclasses.replace(grid, steps=grid.steps[kept], **some)
    traces = cells(grid, one=_COLOURS, two=_SIGNED, grey="--grid", dots="--muted")
    axis = {
        "title": "layer, from the input",
        "range": [len(grid.names) - 0.5, -0.5],
        "showgrid": False,
        "tickvals": list(range(len(grid.names))),
        "ticktext": [inert(name, 40) for name in grid.names],
    }
    return traces, layout([axis], hovermode="closest", height=max(260, 26 * len(grid.names) + 90))


def trajectory(run: Run, player: str) -> Drawn | None:
    """The map of the weights' path."""
    try:
        path = trajectory_of(run, player, components=2)
    except (RunError, ValueError):  # none was recorded, or its arrays are gone
        return None
    at = path.coordinates.numpy()
    if at.shape[1] < 2:
        return None
    steps = path.steps.tolist()
    few = steps[0] == steps[-1]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": numbers(at[:, 0]),
        "y": numbers(at[:, 1]),
        "text": [
            f"step {step:,}, {number(float(d))} from the start" for step, d in zip(steps, path.distances, strict=True)
        ],
        "hovertemplate": "%{text}<extra></extra>",
        "showlegend": False,
        "line": {"color": "--muted", "width": 1},
        "marker": {
            "size": 6,
            "color": steps,
            "colorscale": [[0, "--sky"], [0.5, "--blue"], [1, "--ink"]],
            "showscale": True,
            "colorbar": {"title": {"text": "step"}, "thickness": 12} | ({"tickvals": [steps[0]]} if few else {}),
        },
    }
    ends = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [trace["x"][i]],
            "y": [trace["y"][i]],
            "name": name,
            "hoverinfo": "skip",
            "marker": {"symbol": symbol, "size": 11, "color": "--paper", "line": {"color": "--ink", "width": 1.5}},
        }
        for i, symbol, name in ((0, "circle", "start"), (-1, "square", "end"))
    ]
    shares = [
        f"component {i}" + (f" ({100 * share:.1f} %)" if math.isfinite(share) else "")
        for i, share in enumerate(path.explained[:2].tolist(), 1)
    ]
    made = layout([{"title": shares[1], "scaleanchor": "x"}], x=shares[0], hovermode="closest", height=460)
    return [trace, *ends], made


_COLOURS = [[0, "--paper"], [0.45, "--sky"], [0.8, "--blue"], [1, "--ink"]]
_SIGNED = [[0, "--purple"], [0.5, "--paper"], [1, "--orange"]]


def _heat(found: Spectra) -> dict[str, Any]:
    _, image = found.image(BINS)
    top = float(image.max())
    least = least_density(found.axis, found.span, found.densities[0].size, top)
    kept = _some(len(found.steps))
    places = np.linspace(*found.span, BINS + 1)
    middles = (places[1:] + places[:-1]) / 2
    values = [number(float(v), 3) for v in found.axis.value(middles)]
    logs = np.log10(np.maximum(image[:, kept], least))
    return {
        "type": "heatmap",
        "x": found.steps[kept].tolist(),
        "y": numbers(middles),
        "name": "density",
        "z": [[round(float(z), 2) for z in row] for row in logs],
        "colorscale": _COLOURS,
        "text": [
            [f"λ ≈ {value}: {number(10 ** float(z), 2)}" for z in row] for value, row in zip(values, logs, strict=True)
        ],
        "hovertemplate": "step %{x}, %{text} per "
        + ("decade" if found.axis.logarithmic else "unit")
        + "<extra></extra>",
        "zmin": round(math.log10(least), 2),
        "zmax": round(math.log10(top), 2),
        "showscale": False,
    }


def _some(count: int) -> np.ndarray:
    """Places of some at equal distances, where there are more than a heat map shows."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_STEPS)).round().astype(int))


def _ticks(axis: Axis, span: tuple[float, float]) -> dict[str, Any]:
    """Ticks at eigenvalues, on an axis that is not linear in them."""
    if not axis.logarithmic:
        return {}
    ticks = readable_ticks(axis, span, 0.06)
    words = [f"{tick:g}".replace("-", "\N{MINUS SIGN}") for tick in ticks]
    return {"tickvals": axis.place(np.array(ticks)).tolist(), "ticktext": words}
