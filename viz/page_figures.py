"""The page's interactive figures: the same numbers as those of matplotlib, as data that plotly.js draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from losscope.probes import Run
from losscope.probes.catalogue import CATALOGUE
from losscope.probes.phases import CATAPULT, EDGE, SHARPENING, phases

from . import series
from .traces import curve, layout, level, span
from .words import short_symbol, verdict

__all__ = ["DRAWN", "drawn"]

Drawn = tuple[list[dict[str, Any]], dict[str, Any]]
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
    return made if made is not None and made[0] else None


def _sharpness(run: Run, player: str) -> Drawn:
    data = series.sharpness(run, player)
    formula = str(series.facts(run, player).get("threshold_formula") or "threshold")
    traces = curve(data.steps, data.value, "sharpness", "blue", low=data.low, high=data.high)
    traces += curve(data.steps, data.threshold, formula, "vermillion", dash="dash", width=1.2, stepwise=True)
    steps, values, what = series.loss(run, player)
    values = np.where(np.isfinite(values), values, np.nan)
    traces += curve(steps, values, what, "green", row=2, width=1.2)
    rows = [
        {"title": "sharpness [loss / parameter²]", "type": _scale(np.append(data.value, data.threshold), 30)},
        {"title": what, "type": _scale(values, 10)},
    ]
    return traces, layout(rows, (2.2, 1), shapes=_phases(run, player))


def _stability(run: Run, player: str) -> Drawn:
    traces: list[dict[str, Any]] = []
    shown = [np.ones(1)]
    for line in run.audit(player).criteria:
        if line.name not in CATALOGUE or line.verdict == "NOT_APPLICABLE":
            continue
        data = series.ratios(run, line.name, player)
        colour, dash = LOOKS.get(line.name, ("muted", "solid"))
        name = f"{short_symbol(line)}: {verdict(line.verdict).words}"
        traces += curve(data.steps, data.value, name, colour, low=data.low, high=data.high, dash=dash)
        shown.append(data.value)
    shapes = [span(0.9, 1.1, "vermillion", across="y", strength=0.12), level(1, "vermillion"), *_phases(run, player)]
    rows = [{"title": "measured / threshold", "type": _scale(np.concatenate(shown), 8)}]
    return traces, layout(rows, shapes=shapes)


def _phases(run: Run, player: str) -> list[dict[str, Any]]:
    return [span(phase.first, phase.last, SHADES[phase.name]) for phase in phases(run, player)]


def _scale(values: np.ndarray, wide: float) -> str:
    """Whether an axis is logarithmic: where all is positive and spreads by more than a factor."""
    finite = values[np.isfinite(values)]
    positive = len(finite) > 0 and finite.min() > 0
    return "log" if positive and finite.max() / finite.min() > wide else "linear"


DRAWN: dict[str, Callable[[Run, str], Drawn | None]] = {"sharpness": _sharpness, "stability": _stability}
"""By the names that `losscope.viz.figure` knows them by."""
