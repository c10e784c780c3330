"""Figures of `sgd_stability.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from panels import BLUE, GREEN, GREY, RED, SKY, band, labels, log, panels

__all__ = ["draw_bounds", "draw_diagonal", "draw_rows"]


def draw_rows(found: Mapping[tuple[str, int], Any], batches: Sequence[int]) -> Figure:
    """The exact threshold by batch size in units of 2/tr(H), and of the Frobenius bound with mu = 1."""
    figure, (left, right) = panels("Exact threshold over 2/tr(H)", "over the Frobenius bound with mu = 1")
    looks = {"equal norms": (BLUE, "o"), "gaussian": (GREEN, "s"), "lognormal": (RED, "^")}
    for kind, (color, marker) in looks.items():
        rows = [rows for (k, _), rows in found.items() if k == kind]
        label = "rows of equal norm" if kind == "equal norms" else f"{kind.title()} rows"
        band(left, [(B, r.exact[B]) for r in rows for B in batches], color, marker, label=label)
        band(right, [(B, r.frobenius[B]) for r in rows for B in batches], color, marker)
    for ax in (left, right):
        ax.axhline(1, color=GREY, linestyle="--", linewidth=1)
        log(ax, "yx", batches)
    labels(left, "batch size B (with replacement)", r"$\eta^*\,\mathrm{tr}(H)/2$", "lower right")
    labels(right, "batch size B (with replacement)", r"$\eta^*\,\|H\|_F/\sqrt{B}$")
    return figure


def draw_diagonal(found: Mapping[tuple[int, float, bool], Any]) -> Figure:
    """Trace, test error, and one against the other."""
    figure, (trace, error, both) = panels("Trace of the Hessian", "Test error", "Flatter is better")
    for descent, color, marker, label in ((False, BLUE, "o", "SGD, B = 1"), (True, RED, "s", "gradient descent")):
        runs = [(rate, run) for (_, rate, d), run in found.items() if d == descent and run is not None]
        band(trace, [(rate, run.trace) for rate, run in runs], color, marker, label=label)
        band(error, [(rate, run.error) for rate, run in runs], color, marker)
        both.scatter([r.trace for _, r in runs], [r.error for _, r in runs], s=12, color=color, marker=marker)
    rates = sorted({rate for _, rate, _ in found})
    trace.plot(rates, [2 / rate for rate in rates], color=GREY, linestyle="--", linewidth=1, label="2/lr")
    log(trace, "xy")
    log(error, "xy")
    log(both, "y")
    labels(trace, "learning rate", "tr(H)", "lower left")
    labels(error, "learning rate", "squared distance from the true weights")
    labels(both, "tr(H)", "squared distance from the true weights")
    return figure


def draw_bounds(found: Mapping[tuple[int, int, float], Any], full: int) -> Figure:
    """Trace with its bound, sharpness with its own, and the test error against the trace."""
    figure, (trace, sharpness, both) = panels("Trace of the Hessian", "Largest eigenvalue", "Test error")
    looks = {1: (BLUE, "o", "SGD, B = 1"), 8: (GREEN, "^", "SGD, B = 8"), full: (RED, "s", "gradient descent")}
    for size, (color, marker, label) in looks.items():
        runs = [(rate, run) for (_, B, rate), run in found.items() if size == B and run is not None]
        band(trace, [(rate, run.trace) for rate, run in runs], color, marker, label=label)
        band(sharpness, [(rate, 2 * run.sharpness / rate) for rate, run in runs], color, marker)
        both.scatter([r.trace for _, r in runs], [r.error for _, r in runs], s=12, color=color, marker=marker)
        if size == 1:
            exact = [(rate, 2 * run.exact / rate) for rate, run in runs]
            band(trace, exact, SKY, "D", label=r"$2/\eta^*$ of SGD, B = 1")
    rates = sorted({rate for _, _, rate in found})
    for ax in (trace, sharpness):
        ax.plot(rates, [2 / rate for rate in rates], color=GREY, linestyle="--", linewidth=1, label="2/lr")
        log(ax, "xy")
    log(both, "x")
    labels(trace, "learning rate", "tr(H)", "lower left")
    labels(sharpness, "learning rate", r"$\lambda_{\max}(H)$")
    labels(both, "tr(H)", "mean squared error on unseen samples")
    return figure
