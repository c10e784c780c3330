"""Figures of `tangent_kernel.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import geometric_mean, median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from panels import BLUE, GREEN, GREY, RED, describe, log, untitled

__all__ = ["draw_early", "draw_gap", "draw_lazy"]

ORANGE = "#e69f00"
PREDICTORS: dict[str, dict[str, str]] = {
    "network": {"color": BLUE, "marker": "o", "linestyle": "-", "label": "network"},
    "first": {"color": GREY, "marker": "s", "linestyle": ":", "label": "regression with $K_0$"},
    "last": {"color": ORANGE, "marker": "^", "linestyle": "--", "label": "regression with $K_T$"},
}


def _band(ax: Axes, points: Iterable[tuple[float, float]], color: str, **look: Any) -> list[tuple[float, float]]:
    """Median of the seeds at each x, and from the smallest to the largest; returns the medians."""
    by_x: dict[float, list[float]] = {}
    for x, y in points:
        by_x.setdefault(x, []).append(y)
    xs = sorted(by_x)
    ax.fill_between(xs, [min(by_x[x]) for x in xs], [max(by_x[x]) for x in xs], color=color, alpha=0.15, linewidth=0)
    ax.plot(xs, [median(by_x[x]) for x in xs], color=color, linewidth=1.3, markersize=4, **look)
    return [(x, geometric_mean(by_x[x]) if min(by_x[x]) > 0 else median(by_x[x])) for x in xs]


def _slope(ax: Axes, through: tuple[float, float], xs: Sequence[float], power: float, label: str) -> None:
    ax.plot(
        xs, [through[1] * (x / through[0]) ** power for x in xs], color=GREY, linestyle=":", linewidth=1, label=label
    )


def _bars(ax: Axes, points: Iterable[tuple[float, float]], shift: float, **look: Any) -> None:
    """Median of the seeds at each x on a logarithmic axis, a little beside it, and from the smallest to the largest."""
    by_x: dict[float, list[float]] = {}
    for x, y in points:
        by_x.setdefault(x, []).append(y)
    middle = [median(ys) for ys in by_x.values()]
    ends = (
        [m - min(ys) for m, ys in zip(middle, by_x.values(), strict=True)],
        [max(ys) - m for m, ys in zip(middle, by_x.values(), strict=True)],
    )
    ax.errorbar([shift * x for x in by_x], middle, ends, linewidth=1.3, elinewidth=0.8, markersize=4, **look)


def draw_lazy(by_width: Mapping[Any, Any], by_scale: Mapping[Any, Any], by_kink: Mapping[Any, Any]) -> Figure:
    """Drift against width and against alpha, alignment, and accuracy beside kernel regression."""
    figure, (width, scale, alignment, accuracy) = untitled(4, 2.8)
    looks = (
        ("change", BLUE, "o", "-", "$|K_T - K_0|/|K_0|$"), ("distance", RED, "s", "--", "1 - cos, centred"),
        ("linearisation", GREEN, "^", "-.", "linearised model's error"),
    )  # fmt: skip
    for ax, found, along in ((width, by_width, 0), (scale, by_scale, 1)):
        xs = sorted({c[along] for c in found})
        for name, color, marker, style, label in looks:
            points = [(c[along], getattr(d, name)) for c, d in found.items()]
            middle = _band(ax, points, color, marker=marker, linestyle=style, label=label)
            if name == "change":
                power = -0.5 if along == 0 else -1.0
                _slope(ax, middle[-1], xs, power, f"slope {power:g}")
        log(ax, "x", xs)
        ax.set_yscale("log")
    _band(scale, [(c[1], d.change) for c, d in by_kink.items()], ORANGE, marker="x", linestyle=(0, (4, 2)),
          label="the first for ReLU")  # fmt: skip
    describe(width, "Drift, alpha = 1", "width", "")
    describe(scale, "Drift, width 64", "output scale alpha", "", loc="lower left")
    xs = sorted({c[1] for c in by_scale})
    _band(alignment, [(c[1], d.alignment) for c, d in by_scale.items()], BLUE, marker="o")
    alignment.axhline(0, color=GREY, linewidth=1, linestyle=":")
    log(alignment, "x", xs)
    describe(alignment, "Kernel-label alignment gained", "output scale alpha")
    for (name, look), shift in zip(PREDICTORS.items(), (0.9, 1.0, 1.1), strict=True):
        _bars(accuracy, [(c[1], getattr(d, name)) for c, d in sorted(by_scale.items())], shift, **look)
    low, high = accuracy.get_ylim()
    accuracy.set_ylim(low - 0.4 * (high - low), high)
    log(accuracy, "x", xs)
    describe(accuracy, "Test accuracy, trained on 200 digits", "output scale alpha", loc="lower left")
    return figure


def draw_early(found: Mapping[tuple[int, int], Any], early: int) -> Figure:
    """Distance from the start and alignment over the epochs of SGD, and regression with kernels of three times."""
    figure, (distance, alignment, errors) = untitled(3)
    widths = sorted({width for width, _ in found})
    looks = dict(zip(widths, ((RED, "--"), (ORANGE, "-."), (BLUE, "-")), strict=True))
    for width, (color, style) in looks.items():
        runs = [course for (w, _), course in found.items() if w == width]
        for ax, name in ((distance, "distance"), (alignment, "alignment")):
            points = [(epoch, value) for run in runs for epoch, value in enumerate(getattr(run, name))]
            _band(ax, points, color, linestyle=style, label=f"width {width}")
    distance.axvline(early, color=GREY, linestyle=":", linewidth=1)
    distance.annotate(f"epoch {early}", (early, 0), xytext=(3, 2), textcoords="offset points", fontsize=7, color=GREY)
    describe(distance, "Distance of the kernel from $K_0$", "epoch of SGD", "1 - cos$(K_0, K_t)$", loc="upper left")
    distance.set_ylim(0, 1.3 * distance.get_ylim()[1])
    describe(alignment, "Alignment with the labels", "epoch of SGD")
    runs = [(c, s) for (c, s) in found if c == widths[0]]
    names = ("$K_0$", f"$K_{early}$", "$K_{30}$", "network")
    for key in runs:
        values = [*found[key].errors, found[key].network]
        errors.plot(range(4), [100 * v for v in values], color=RED, marker="o", markersize=3, linewidth=0.7, alpha=0.7)
    errors.set_xticks(range(4), names)
    errors.set_ylim(0, None)
    describe(errors, f"Test error, width {widths[0]}, each seed", "", "%")
    return figure


def draw_gap(fits: Mapping[Any, Any]) -> Figure:
    """Training and test error of the quadratic network, by alpha and by eps; test error beside kernel regression."""
    figure, (rich, lazy, regression) = untitled(3)
    usual = [s for s in fits if s.eps == 0.5]
    alphas = sorted({s.alpha for s in usual})
    most = alphas[-1]
    for alpha, (color, word) in zip(alphas, ((BLUE, "rich"), (RED, "lazy")), strict=True):
        seed = min(s.seed for s in usual)
        fit = next(f for s, f in fits.items() if (s.alpha, s.eps, s.seed) == (alpha, 0.5, seed))
        _course(rich, fit, color, f"alpha = {alpha:g} ({word})")
    describe(rich, "Solid: test error, dotted: training", "step", "mean squared error", loc="lower left")
    for eps, color in zip(sorted({s.eps for s in fits}, reverse=True), (RED, GREEN), strict=True):
        seed = min(s.seed for s in fits if s.eps == eps)
        fit = next(f for s, f in fits.items() if (s.alpha, s.eps, s.seed) == (most, eps, seed))
        _course(lazy, fit, color, f"eps = {eps:g}")
    describe(lazy, f"alpha = {most:g}, by the activation's eps", "step", loc="lower left")
    for ax in (rich, lazy):
        ax.set_xscale("symlog", linthresh=10)
        ax.set_yscale("log")
        ax.set_ylim(1e-5, 4)
    for (name, look), shift in zip(PREDICTORS.items(), (0.94, 1.0, 1.06), strict=True):
        points = [
            (s.alpha, fits[s].test[-1] if name == "network" else getattr(fits[s], name))
            for s in sorted(usual, key=lambda s: s.alpha)
        ]
        _bars(regression, points, shift, **look)
    log(regression, "x", alphas)
    regression.set_yscale("log")
    describe(regression, "Test error at the end", "output scale alpha")
    return figure


def _course(ax: Axes, fit: Any, color: str, label: str) -> None:
    ax.plot(fit.steps, fit.test, color=color, linewidth=1.3, label=label)
    ax.plot(fit.steps, fit.train, color=color, linewidth=1, linestyle=":")
