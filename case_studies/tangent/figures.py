"""Figures of `tangent_kernel.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import geometric_mean, median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from panels import BLUE, GREEN, GREY, ORANGE, RED, band, bars, labels, log, panels

__all__ = ["draw_early", "draw_gap", "draw_grokking", "draw_lazy"]

PREDICTORS: dict[str, dict[str, str]] = {
    "network": {"color": BLUE, "marker": "o", "linestyle": "-", "label": "network"},
    "first": {"color": GREY, "marker": "s", "linestyle": ":", "label": "regression with $K_0$"},
    "last": {"color": ORANGE, "marker": "^", "linestyle": "--", "label": "regression with $K_T$"},
}


def _slope(ax: Axes, points: Sequence[tuple[float, float]], power: float) -> None:
    """A line of this power through the mean of the points at the largest x."""
    xs = sorted({x for x, _ in points})
    end = geometric_mean(y for x, y in points if x == xs[-1])
    ax.plot(
        xs, [end * (x / xs[-1]) ** power for x in xs], color=GREY, linestyle=":", linewidth=1, label=f"slope {power:g}"
    )


def draw_lazy(by_width: Mapping[Any, Any], by_scale: Mapping[Any, Any], by_kink: Mapping[Any, Any]) -> Figure:
    """Drift against width and against alpha, alignment, and accuracy beside kernel regression."""
    figure, (width, scale, alignment, accuracy) = panels(
        "Drift, alpha = 1", "Drift, width 64", "Kernel-label alignment gained", "Test accuracy, trained on 200",
        size=(2.8, 3.2),
    )  # fmt: skip
    looks = (
        ("change", BLUE, "o", "-", "$|K_T - K_0|/|K_0|$"), ("distance", RED, "s", "--", "1 - cos, centred"),
        ("linearisation", GREEN, "^", "-.", "linearised model's error"),
    )  # fmt: skip
    for ax, found, along in ((width, by_width, 0), (scale, by_scale, 1)):
        xs = sorted({c[along] for c in found})
        for name, color, marker, style, label in looks:
            points = [(c[along], getattr(d, name)) for c, d in found.items()]
            band(ax, points, color, marker, linestyle=style, label=label)
            if name == "change":
                _slope(ax, points, -0.5 if along == 0 else -1.0)
        log(ax, "x", xs)
        ax.set_yscale("log")
        ax.set_ylim(ax.get_ylim()[0] / 30, None)  # room for the legend
    band(scale, [(c[1], d.change) for c, d in by_kink.items()], ORANGE, "x", linestyle=(0, (4, 2)),
         label="the first for ReLU")  # fmt: skip
    labels(width, "width", "", "lower left")
    labels(scale, "output scale alpha", "", "lower left")
    xs = sorted({c[1] for c in by_scale})
    band(alignment, [(c[1], d.alignment) for c, d in by_scale.items()], BLUE, "o")
    alignment.axhline(0, color=GREY, linewidth=1, linestyle=":")
    log(alignment, "x", xs)
    labels(alignment, "output scale alpha")
    for (name, look), shift in zip(PREDICTORS.items(), (0.9, 1.0, 1.1), strict=True):
        bars(accuracy, [(shift * c[1], getattr(d, name)) for c, d in by_scale.items()], **look)
    low, high = accuracy.get_ylim()
    accuracy.set_ylim(low - 0.4 * (high - low), high)
    log(accuracy, "x", xs)
    labels(accuracy, "output scale alpha", "", "lower left")
    return figure


def draw_early(found: Mapping[tuple[int, int], Any], early: int) -> Figure:
    """Distance from the start and alignment over the epochs of SGD, and regression with kernels of three times."""
    widths = sorted({width for width, _ in found})
    figure, (distance, alignment, errors) = panels(
        "Distance of the kernel from $K_0$", "Alignment with the labels", f"Test error, width {widths[0]}, each seed",
        size=(3.1, 3.2),
    )  # fmt: skip
    looks = dict(zip(widths, ((RED, "--"), (ORANGE, "-."), (BLUE, "-")), strict=True))
    for width, (color, style) in looks.items():
        runs = [course for (w, _), course in found.items() if w == width]
        for ax, name in ((distance, "distance"), (alignment, "alignment")):
            points = [(epoch, value) for run in runs for epoch, value in enumerate(getattr(run, name))]
            band(ax, points, color, linestyle=style, label=f"width {width}")
    distance.axvline(early, color=GREY, linestyle=":", linewidth=1)
    distance.annotate(f"epoch {early}", (early, 0), xytext=(3, 2), textcoords="offset points", fontsize=7, color=GREY)
    labels(distance, "epoch of SGD", "1 - cos$(K_0, K_t)$", "upper left")
    distance.set_ylim(0, 1.3 * distance.get_ylim()[1])
    labels(alignment, "epoch of SGD", "", "lower right")
    runs = [(c, s) for (c, s) in found if c == widths[0]]
    names = ("$K_0$", f"$K_{early}$", "$K_{30}$", "network")
    for key in runs:
        values = [*found[key].errors, found[key].network]
        errors.plot(range(4), [100 * v for v in values], color=RED, marker="o", markersize=3, linewidth=0.7, alpha=0.7)
    errors.set_xticks(range(4), names)
    errors.set_ylim(0, None)
    labels(errors, "predictor", "%")
    return figure


def draw_gap(fits: Mapping[Any, Any]) -> Figure:
    """Training and test error of the quadratic network, by alpha and by eps; test error beside kernel regression."""
    usual = [s for s in fits if s.eps == 0.5]
    alphas = sorted({s.alpha for s in usual})
    most = alphas[-1]
    figure, (rich, lazy, regression) = panels(
        "Solid: test error, dotted: training", f"alpha = {most:g}, by the activation's eps", "Test error at the end",
        size=(3.1, 3.2),
    )  # fmt: skip
    for alpha, (color, word) in zip(alphas, ((BLUE, "rich"), (RED, "lazy")), strict=True):
        seed = min(s.seed for s in usual)
        fit = next(f for s, f in fits.items() if (s.alpha, s.eps, s.seed) == (alpha, 0.5, seed))
        _course(rich, fit, color, f"alpha = {alpha:g} ({word})")
    labels(rich, "step", "mean squared error", "lower left")
    for eps, color in zip(sorted({s.eps for s in fits}, reverse=True), (RED, GREEN), strict=True):
        seed = min(s.seed for s in fits if s.eps == eps)
        fit = next(f for s, f in fits.items() if (s.alpha, s.eps, s.seed) == (most, eps, seed))
        _course(lazy, fit, color, f"eps = {eps:g}")
    labels(lazy, "step", "", "lower left")
    for ax in (rich, lazy):
        ax.set_xscale("symlog", linthresh=10)
        ax.set_yscale("log")
        ax.set_ylim(1e-5, 4)
    for (name, look), shift in zip(PREDICTORS.items(), (0.94, 1.0, 1.06), strict=True):
        points = [(shift * s.alpha, fits[s].test[-1] if name == "network" else getattr(fits[s], name)) for s in usual]
        bars(regression, points, **look)
    log(regression, "x", alphas)
    regression.set_yscale("log")
    labels(regression, "output scale alpha", "", "lower right")
    return figure


def _course(ax: Axes, fit: Any, color: str, label: str) -> None:
    ax.plot(fit.steps, fit.test, color=color, linewidth=1.3, label=label)
    ax.plot(fit.steps, fit.train, color=color, linewidth=1, linestyle=":")


def draw_grokking(found: Mapping[Any, Any]) -> Figure:
    """Errors over training from usual and from large initial weights, and what norm and kernel do meanwhile."""
    scales = sorted({start.scale for start in found})
    large = [g for start, g in found.items() if start.scale == scales[-1]]
    titles = [
        f"Initial weights {scale:g} times torch's" if scale != 1 else "Torch's initial weights"
        for scale in scales[::-1]
    ]
    figure, (late, usual, norm, kernel) = panels(
        *titles, "Norm of the weights", "The kernel's direction", size=(2.9, 3.2)
    )
    for ax, scale in ((late, scales[-1]), (usual, scales[0])):
        runs = [g for start, g in found.items() if start.scale == scale]
        for name, color, style in (("train", GREY, "--"), ("test", BLUE, "-")):
            points = [(t, 100 * v) for g in runs for t, v in zip(g.steps, getattr(g, name), strict=True) if t]
            band(ax, points, color, linestyle=style, label=f"{'training' if name == 'train' else name} error")
        ax.set_ylim(0, 100)
        labels(ax, "step", "", "upper right")
    late.plot([], [], color=RED, linestyle=":", label="test, linearised at the start")
    late.axhspan(*(100 * end(g.lazy for g in large) for end in (min, max)), color=RED, alpha=0.25, linewidth=0)
    late.axhline(100 * median(g.lazy for g in large), color=RED, linestyle=":", linewidth=1)
    labels(late, "step", "% wrong", "center left")
    band(norm, [(t, v) for g in large for t, v in zip(g.steps, g.norm, strict=True) if t])
    labels(norm, "step")
    norm.set_ylim(0, None)
    for name, color, style, label in (
        ("distance", RED, "-", "distance from $K_0$, centred"), ("alignment", GREEN, "--", "alignment with the labels"),
    ):  # fmt: skip
        points = [(t, v) for g in large for t, v in zip(g.watched, getattr(g, name), strict=True) if t]
        band(kernel, points, color, linestyle=style, label=label)
    kernel.set_ylim(0, 1)
    labels(kernel, "step", "", "upper left")
    for ax in (late, usual, norm, kernel):
        ax.set_xscale("log")
    middle = median(g.steps[g.fitted] for g in large if g.fitted is not None)
    for ax in (late, norm, kernel):
        ax.axvline(middle, color=GREY, linestyle=":", linewidth=1)
    return figure
