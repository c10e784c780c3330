"""Figures of `sgd_stability.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

__all__ = ["draw_bounds", "draw_diagonal", "draw_rows"]

BLUE, RED, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#6e7781"


def _panels(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(3.6 * len(titles), 3.2), layout="constrained")
    axes = list(figure.subplots(1, len(titles)))
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=9, loc="left")
        ax.tick_params(labelsize=8)
        ax.grid(color="#d8dee4", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def _band(ax: Axes, points: Iterable[tuple[float, float]], color: str, marker: str, label: str) -> None:
    """Median and range of the y at each x."""
    by_x: dict[float, list[float]] = {}
    for x, y in points:
        by_x.setdefault(x, []).append(y)
    xs = sorted(by_x)
    ax.fill_between(xs, [min(by_x[x]) for x in xs], [max(by_x[x]) for x in xs], color=color, alpha=0.2, linewidth=0)
    ax.plot(xs, [median(by_x[x]) for x in xs], color=color, marker=marker, markersize=4, linewidth=1.2, label=label)


def _log(ax: Axes, which: str, ticks: Sequence[float] = ()) -> None:
    for axis in which:
        getattr(ax, f"set_{axis}scale")("log")
        if axis == "x" and ticks:
            ax.set_xticks(list(ticks))
            ax.xaxis.set_major_formatter(ScalarFormatter())
            ax.xaxis.set_minor_formatter(NullFormatter())


def _labels(ax: Axes, x: str, y: str, **legend: Any) -> None:
    ax.set_xlabel(x, fontsize=8)
    ax.set_ylabel(y, fontsize=8)
    if legend.pop("show", True):
        ax.legend(fontsize=7, frameon=False, **legend)


def draw_rows(found: Mapping[tuple[str, int], Any], batches: Sequence[int]) -> Figure:
    """The exact threshold by batch size in units of 2/tr(H), and of the Frobenius bound with mu = 1."""
    figure, (left, right) = _panels(["Exact threshold over 2/tr(H)", "Exact threshold over the bound with mu = 1"])
    looks = {"equal norms": (BLUE, "o"), "gaussian": (GREEN, "s"), "lognormal": (RED, "^")}
    for kind, (color, marker) in looks.items():
        rows = [rows for (k, _), rows in found.items() if k == kind]
        _band(left, [(B, r.exact[B]) for r in rows for B in batches], color, marker, f"{kind} of rows"
              if kind == "equal norms" else f"{kind} rows")  # fmt: skip
        _band(right, [(B, r.frobenius[B]) for r in rows for B in batches], color, marker, kind)
    for ax in (left, right):
        _log(ax, "xy", batches)
        ax.axhline(1, color=GREY, linestyle="--", linewidth=1)
    _labels(left, "batch size B (with replacement)", r"$\eta^*\,\mathrm{tr}(H)/2$", loc="lower right")
    _labels(right, "batch size B (with replacement)", r"$\eta^*\,\|H\|_F/\sqrt{B}$", show=False)
    return figure


def draw_diagonal(found: Mapping[tuple[int, float, bool], Any]) -> Figure:
    """Trace, test error, and one against the other."""
    figure, (trace, error, both) = _panels(["Trace of the Hessian", "Test error", "Flatter is better"])
    for descent, color, marker, label in ((False, BLUE, "o", "SGD, B = 1"), (True, RED, "s", "gradient descent")):
        runs = [(rate, run) for (_, rate, d), run in found.items() if d == descent and run is not None]
        _band(trace, [(rate, run.trace) for rate, run in runs], color, marker, label)
        _band(error, [(rate, run.error) for rate, run in runs], color, marker, label)
        both.scatter([r.trace for _, r in runs], [r.error for _, r in runs], s=12, color=color, marker=marker)
    rates = sorted({rate for _, rate, _ in found})
    trace.plot(rates, [2 / rate for rate in rates], color=GREY, linestyle="--", linewidth=1, label="2/lr")
    _log(trace, "xy")
    _log(error, "xy")
    _log(both, "y")
    _labels(trace, "learning rate", "tr(H)", loc="lower left")
    _labels(error, "learning rate", "squared distance from the true weights", show=False)
    _labels(both, "tr(H)", "squared distance from the true weights", show=False)
    return figure


def draw_bounds(found: Mapping[tuple[int, int, float], Any], full: int) -> Figure:
    """Trace with its bound, sharpness with its own, and the test error against the trace."""
    figure, (trace, sharpness, both) = _panels(["Trace of the Hessian", "Largest eigenvalue", "Test error"])
    looks = {1: (BLUE, "o", "SGD, B = 1"), 8: (GREEN, "^", "SGD, B = 8"), full: (RED, "s", "gradient descent")}
    for size, (color, marker, label) in looks.items():
        runs = [(rate, run) for (_, B, rate), run in found.items() if size == B and run is not None]
        _band(trace, [(rate, run.trace) for rate, run in runs], color, marker, label)
        _band(sharpness, [(rate, 2 * run.sharpness / rate) for rate, run in runs], color, marker, label)
        both.scatter([r.trace for _, r in runs], [r.error for _, r in runs], s=12, color=color, marker=marker)
    rates = sorted({rate for _, _, rate in found})
    for ax in (trace, sharpness):
        ax.plot(rates, [2 / rate for rate in rates], color=GREY, linestyle="--", linewidth=1, label="2/lr")
        _log(ax, "xy")
    _log(both, "x")
    _labels(trace, "learning rate", "tr(H)", loc="lower left")
    _labels(sharpness, "learning rate", r"$\lambda_{\max}(H)$", show=False)
    _labels(both, "tr(H)", "mean squared error on unseen digits", show=False)
    return figure
