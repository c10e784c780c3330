"""Figures of `hessian_outliers.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from panels import BLUE, GREY, RED, band, labels, log, panels, shade

__all__ = ["draw_clusters", "draw_elsewhere", "draw_paths", "draw_widths"]


def draw_widths(found: Mapping[Any, Any], beyond: float) -> Figure:
    """Ordered eigenvalues of one seed; how many stand out and the share about zero, by parameters."""
    figure, (top, count, bulk) = panels(
        "Largest eigenvalues, by width",
        f"Eigenvalues beyond {beyond:.0%} of the largest",
        "Share in the bulk about zero",
    )
    one = _first_seed(found, "width")
    for i, (width, spectrum) in enumerate(one.items()):
        values = (spectrum.top / spectrum.top[0]).tolist()
        top.plot(range(1, len(values) + 1), values, ".-", color=shade(i, len(one)), linewidth=0.8, markersize=4,
                 label=f"{width}: P = {spectrum.parameters:,}")  # fmt: skip
    top.axhline(beyond, color=GREY, linestyle="--", linewidth=1)
    band(count, [(s.parameters, s.beyond) for s in found.values()], BLUE, "o")
    band(bulk, [(s.parameters, s.bulk) for s in found.values()], RED, "s")
    count.set_ylim(0, None)
    log(top, "y")
    log(count, "x")
    log(bulk, "x")
    labels(top, "rank", "eigenvalue over the largest", "upper right")
    labels(count, "parameters P", "count")
    labels(bulk, "parameters P", "share of all eigenvalues")
    return figure


def draw_clusters(found: Mapping[Any, Any], apart: Mapping[Any, Any], clusters: int, beyond: float) -> Figure:
    """Ordered eigenvalues for several k; how many stand out; the gap by the clusters' distance."""
    figure, (top, count, gap) = panels(
        "Largest eigenvalues, k clusters of k classes", f"Eigenvalues beyond {beyond:.0%} of the largest",
        f"{clusters} clusters that come closer",
    )  # fmt: skip
    one = _by_clusters(top, found)
    for i, k in enumerate(one):
        top.axvline(k * k + 0.5, color=shade(i, len(one)), linewidth=0.6, linestyle=":")
    band(count, [(case.clusters, s.beyond) for case, s in found.items()], BLUE, "o", label="measured")
    count.plot(list(one), [k * k for k in one], color=GREY, linestyle="--", linewidth=1, label="k²")
    count.plot(list(one), list(one), color=GREY, linestyle=":", linewidth=1, label="k")
    band(gap, [(case.apart, float(s.factors[clusters**2 - 1])) for case, s in apart.items()], RED, "s")
    log(top, "xy")
    log(count, "y")
    log(gap, "y")
    labels(top, "rank (dotted: after k²)", "eigenvalue over the largest", "lower left")
    labels(count, "clusters k", "count", "upper left")
    labels(gap, "distance from the origin over the noise's length", f"{clusters**2}th eigenvalue over the next")
    return figure


def draw_elsewhere(digits: Mapping[Any, Any], entropy: Mapping[Any, Any]) -> Figure:
    """Ordered eigenvalues where the count is not clean."""
    figure, axes = panels("Real data of k classes, squared error", "k clusters of k classes, cross-entropy")
    for ax, found in zip(axes, (digits, entropy), strict=True):
        _by_clusters(ax, found)
        log(ax, "xy")
    labels(axes[0], "rank", "eigenvalue over the largest", "lower left")
    labels(axes[1], "rank", "")
    return figure


def _first_seed(found: Mapping[Any, Any], name: str) -> dict[int, Any]:
    """The spectra of the smallest seed, by a number of their cases."""
    first = min(case.seed for case in found)
    return {getattr(case, name): spectrum for case, spectrum in found.items() if case.seed == first}


def _by_clusters(ax: Axes, found: Mapping[Any, Any]) -> dict[int, Any]:
    """The ordered eigenvalues of the first seed, by k."""
    one = _first_seed(found, "clusters")
    for i, (k, spectrum) in enumerate(one.items()):
        values = [value for value in (spectrum.top / spectrum.top[0]).tolist() if value > 1e-4]
        ax.plot(range(1, len(values) + 1), values, ".-", color=shade(i, len(one)), linewidth=0.8, markersize=4,
                label=f"k = {k}")  # fmt: skip
    return one


def draw_paths(found: Mapping[int, Any]) -> Figure:
    """The losses of all seeds along the four paths."""
    names = {"onward": "Small batches from there", "faster": "at three times the rate",
             "apart": "From other initial weights", "bent": "to those by a Bezier curve"}  # fmt: skip
    figure, axes = panels(*names.values(), size=(2.8, 3.2))
    paths = [(ax, i, seed, getattr(batches, name)) for ax, name in zip(axes, names, strict=True)
             for i, (seed, batches) in enumerate(found.items())]  # fmt: skip
    losses = [float(end) for *_, path in paths for end in (path.loss.min(), path.loss.max())]
    for ax, i, seed, path in paths:
        ax.plot(path.t.tolist(), path.loss.tolist(), color=shade(i, len(found)), linewidth=1.2, label=f"seed {seed}")
        ax.set_ylim(min(losses) / 1.5, max(losses) * 1.5)
    for ax in axes:
        log(ax, "y")
        labels(ax, "from large (0) to small batches (1)", "training loss" if ax is axes[0] else "",
               "lower left" if ax is axes[0] else None)  # fmt: skip
    return figure
