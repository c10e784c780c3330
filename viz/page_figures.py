"""The page's interactive figures: the same numbers as those of matplotlib, as data that plotly.js draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from losscope.probes import Criterion, Run
from losscope.probes.catalogue import CATALOGUE
from losscope.probes.phases import CATAPULT, EDGE, SHARPENING

from . import page_spectra, series
from .collapse import HEIGHTS, PANELS
from .stability import positive_part
from .svg import COLOURS
from .traces import Drawn, curve, layout, level, numbers, scale, span
from .words import short_symbol, verdict

__all__ = ["DRAWN", "drawn"]

FEW = 5
"""Steps up to which each has a tick."""
NAMES = {colour: name for name, colour in COLOURS.items()}
LINES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
SHADES = {SHARPENING: "sky", EDGE: "orange", CATAPULT: "purple"}
LOOKS = {
    "sharpness": ("blue", "solid"), "trace": ("orange", "dashdot"), "aligned_trace": ("orange", "solid"),
    "frobenius": ("orange", "dash"), "s_mu": ("purple", "dash"), "mean_square": ("purple", "solid"),
    "batch_sharpness": ("green", "solid"), "batch_sharpness_ratio": ("green", "dash"),
    "interaction_aware": ("sky", "solid"), "noise_interaction": ("ink", "dashdot"),
}  # fmt: skip


def drawn(run: Run, kind: str, player: str) -> Drawn | None:
    """Traces and layout of one figure; None where there is nothing to draw, or no interactive one of that kind."""
    made = DRAWN[kind](run, player) if kind in DRAWN else None
    if made is None or not made[0]:
        return None
    traces, arranged = made
    used = {trace.get("yaxis", "y") for trace in traces}
    for name in [each for each in arranged if each.startswith("yaxis")]:
        if (row := name.replace("axis", "")) not in used:
            arranged[name] |= {"showticklabels": False, "ticks": "", "showgrid": False}
            traces = [*traces, _nothing(traces[0]["x"][0], row)]
    if arranged["meta"]["steps"]:
        arranged["xaxis"] |= _few_steps(traces)
    return traces, arranged


def _nothing(step: Any, row: str) -> dict[str, Any]:
    """A word in a panel that has nothing to draw."""
    words = {"text": ["nothing to draw"], "textfont": {"color": "--muted"}, "hoverinfo": "skip", "showlegend": False}
    return {
        "type": "scatter",
        "mode": "text",
        "x": [step],
        "y": [1],
        "yaxis": row,
        "textposition": "top right",
        **words,
    }


def _few_steps(traces: list[dict[str, Any]]) -> dict[str, Any]:
    """There are no steps between steps: where there are few, so are the ticks."""
    steps = [x for trace in traces for x in trace["x"] if x is not None]
    apart = max(steps) - min(steps)
    if apart == 0:
        return {"tickvals": steps[:1]}
    return {"nticks": math.floor(apart) + 1} if apart <= FEW else {}


def _sharpness(run: Run, player: str) -> Drawn:
    data = series.sharpness(run, player)
    formula = str(series.facts(run, player).get("threshold_formula") or "threshold")
    traces = curve(data.steps, data.value, "sharpness", "blue", low=data.low, high=data.high)
    traces += curve(data.steps, data.threshold, formula, "vermillion", dash="dash", width=1.2, stepwise=True)
    steps, values, what = series.loss(run, player)
    values = np.where(np.isfinite(values), values, np.nan)
    traces += curve(steps, values, what, "green", row=2, width=1.2)
    rows = [
        {"title": "sharpness\n[loss / parameter²]", "type": scale(np.append(data.value, data.threshold), 30)},
        {"title": what, "type": scale(values, 10)},
    ]
    return traces, layout(rows, (2.2, 1), shapes=_phases(run, player))


def _stability(run: Run, player: str) -> Drawn:
    traces: list[dict[str, Any]] = []
    lines: list[tuple[Criterion, series.Series]] = []
    records = run.select("stability", player)
    table = series.Table(records)
    for line in run.audit(player).criteria:
        if line.name not in CATALOGUE or line.verdict == "NOT_APPLICABLE":
            continue
        lines.append((line, series.ratios_of(table, line.name)))
    values = np.concatenate([np.ones(1), *(data.value for _, data in lines)])
    cut = positive_part(values)
    least, marked = float(values[values > 0].min()) / 2, False
    for line, data in lines:
        colour, dash = LOOKS.get(line.name, ("muted", "solid"))
        name = f"{short_symbol(line)}: {verdict(line.verdict).words}"
        value, low, high = (
            np.where(each > 0, each, np.nan) if cut else each for each in (data.value, data.low, data.high)
        )
        low = np.where(data.low <= 0, least, low) if cut else low
        traces += curve(data.steps, value, name, colour, low=low, high=high, dash=dash)
        if cut and (below := data.value <= 0).any():
            (mark,) = curve(data.steps[below], np.full(below.sum(), least), "not above zero", colour, mode="markers")
            said = {"text": numbers(data.value[below]), "hovertemplate": "%{text}", "showlegend": not marked}
            marked = True
            traces.append(mark | said | {"marker": mark["marker"] | {"symbol": "triangle-down-open", "size": 7}})
    steps, words = series.no_stable_step(records)
    traces += curve(steps, np.ones(len(steps)), words, "vermillion", mode="markers", every=True)
    shapes = [span(0.9, 1.1, "vermillion", across="y", strength=0.12), level(1, "vermillion"), *_phases(run, player)]
    rows = [{"title": "measured / threshold", "type": "log" if cut else scale(values, 8)}]
    return traces, layout(rows, shapes=shapes)


def _phases(run: Run, player: str) -> list[dict[str, Any]]:
    return [span(phase.first, phase.last, SHADES[phase.name]) for phase in run.phases(player)]


def _collapse(run: Run, player: str) -> Drawn:
    records = run.select("neural_collapse", player)
    steps = np.array([r.step for r in records], dtype=int)
    traces: list[dict[str, Any]] = []
    rows = []
    for row, (label, curves) in enumerate(PANELS, 1):
        shown = [np.zeros(0)]
        for name, words, colour, line, _ in curves:
            values = series.column(records, name)
            traces += curve(steps, values, words, NAMES[colour], row=row, dash=LINES[line])
            shown.append(values)
        shares = label == "share of samples"
        rows.append(
            {"title": label.replace("of ", "of\n"), "type": "linear" if shares else scale(np.concatenate(shown), 20)}
        )
    others = dict.fromkeys(name for r in records for name in r.values if name.endswith("/nc1"))
    for name in others:
        words = f"NC1 of {name.removesuffix('/nc1')}"
        traces += curve(steps, series.column(records, name), words, "muted", width=0.9, legend=False)
    return traces, layout(rows, HEIGHTS, height=620)


def _tangent(run: Run, player: str) -> Drawn:
    records = run.select("tangent_kernel", player)
    steps = np.array([r.step for r in records], dtype=int)
    traces = curve(steps, series.numbers(r.value for r in records), "distance from the first, 1 − cos", "blue")
    traces += curve(steps, series.column(records, "centred"), "the same, centred", "orange", dash="dash")
    traces += curve(steps, series.column(records, "alignment"), "alignment with the labels", "green", dash="dot")
    between = (steps[1:] + steps[:-1]) / 2
    for name, colour, dash in (("velocity", "blue", "solid"), ("velocity_centred", "orange", "dash")):
        values = series.column(records, name)[1:]
        values = np.where(values > 0, values, np.nan)
        traces += curve(between, values, name.replace("_", ", "), colour, dash=dash, row=2, legend=False)
    rows = [{"title": "distance, alignment"}, {"title": "velocity\n[distance / step]", "type": "log"}]
    return traces, layout(rows, (1.8, 1), height=460)


def _noise(run: Run, player: str) -> Drawn:
    records = run.select("gradient_noise", player)
    steps = np.array([r.step for r in records], dtype=int)

    def column(name: str) -> np.ndarray:
        values = series.column(records, name)
        return np.where(values > 0, values, np.nan)

    own = [series.numbers(getattr(r, end) for r in records) for end in ("value", "low", "high")]
    traces = curve(steps, own[0], "noise scale, tr Σ / |G|²", "blue", low=own[1], high=own[2])
    ends: dict[str, Any] = {end.strip("_"): column(f"curvature_weighted{end}") for end in ("_low", "_high")}
    traces += curve(steps, column("curvature_weighted"), "curvature-weighted", "orange", dash="dash", **ends)
    traces += curve(steps, column("batch_size"), "batch size", "muted", dash="dash", width=1, stepwise=True)
    for name, words, colour in (("covariance_trace", "tr Σ", "vermillion"), ("gradient_square", "|G|²", "green")):
        ends = {end.strip("_"): column(f"{name}{end}") for end in ("_low", "_high")}
        traces += curve(steps, column(name), words, colour, row=2, **ends)
    norms: dict[str, Any] = {"low": column("norm_25"), "high": column("norm_75")}
    traces += curve(
        steps, column("norm_50"), "length of single gradients, median and quartiles", "blue", row=3, **norms
    )
    rows = [
        {"title": "noise scale\n[samples]", "type": "log"}, {"title": "squared\ngradient", "type": "log"},
        {"title": "length", "type": scale(column("norm_50"), 20)},
    ]  # fmt: skip
    return traces, layout(rows, (1.4, 1.2, 1), height=620)


DRAWN: dict[str, Callable[[Run, str], Drawn | None]] = {
    "sharpness": _sharpness, "stability": _stability, "spectrum": page_spectra.spectrum,
    "spectrum_over_time": page_spectra.spectrum_over_time, "outliers": page_spectra.outliers, "collapse": _collapse,
    "tangent_kernel": _tangent, "gradient_noise": _noise, "trajectory": page_spectra.trajectory,
    "layers": page_spectra.layers,
}  # fmt: skip
"""By the names that `losscope.viz.figure` knows them by."""
