"""Figures of `neural_collapse.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from panels import BLUE, GREEN, GREY, ORANGE, RED, band, labels, log, panels

__all__ = ["draw_free", "draw_networks", "draw_properties"]


def _over(x: Sequence[float], columns: Iterable[Sequence[float]]) -> list[tuple[float, float]]:
    """The points of several curves over one x."""
    return [point for column in columns for point in zip(x, column, strict=True)]


def _of(found: Mapping[Any, Any], normalised: bool, decay: float, rare: int = 1) -> list[Any]:
    return [t for c, t in found.items() if (c.normalised, c.decay, c.rare) == (normalised, decay, rare)]


def draw_properties(found: Mapping[Any, Any], properties: Sequence[str]) -> Figure:
    """NC1 to NC3 over training, with batch normalisation and without."""
    titles = {
        "nc1": "NC1: within classes", "equinorm": "NC2: spread of lengths",
        "equiangularity": "NC2: angles from -1/(C-1)", "nc3": "NC3: classifier from means",
    }  # fmt: skip
    figure, axes = panels(*(titles[name] for name in properties), size=(2.7, 3.2))
    looks = (
        (True, 5e-3, BLUE, "-", "normalised, decay 5e-3"), (False, 5e-3, ORANGE, "-.", "plain, decay 5e-3"),
        (False, 5e-4, RED, "--", "plain, decay 5e-4"),
    )  # fmt: skip
    for ax, name in zip(axes, properties, strict=True):
        for normalised, decay, color, style, label in looks:
            runs = _of(found, normalised, decay)
            band(ax, _over(runs[0].epochs, [t.column(name) for t in runs]), color, linestyle=style, label=label)
        fitted = [t.fitted for t in _of(found, True, 5e-3) if t.fitted is not None]
        if fitted:
            ax.axvline(median(fitted), color=GREY, linewidth=1, linestyle=":", label="normalised: all samples fitted")
        log(ax, "y")
        labels(ax, "epoch")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def draw_networks(found: Mapping[Any, Any]) -> Figure:
    """The quotient along the path by weight decay, at the end against it, and by layer."""
    titles = "The quotient along the path", "At the end, each seed", "By layer, decay 5e-3"
    figure, (along, against, layers) = panels(*titles, size=(3.1, 3.2))
    decays = sorted({c.decay for c in found if c.normalised and c.rare == 1})
    looks = dict(zip(decays, zip((GREY, ORANGE, BLUE, GREEN), (":", "--", "-", "-."), strict=False), strict=False))
    for decay, (color, style) in looks.items():
        runs = _of(found, True, decay)
        band(along, _over(runs[0].epochs, [t.column("nc1_quotient") for t in runs]), color, linestyle=style,
             label=f"decay {decay:g}")  # fmt: skip
    log(along, "y")
    labels(along, "epoch", r"tr $\Sigma_W$ / tr $\Sigma_B$", "upper right")
    for normalised, color, marker, label in ((True, BLUE, "o", "normalised"), (False, RED, "s", "plain")):
        for position, decay in enumerate(decays):
            ends = [t.values[-1]["nc1_quotient"] for t in _of(found, normalised, decay)]
            against.plot([position] * len(ends), ends, marker, color=color, markersize=4, alpha=0.8,
                         label=label if ends and decay == 5e-3 else None)  # fmt: skip
    against.set_xticks(range(len(decays)), [f"{d:g}" for d in decays])
    log(against, "y")
    labels(against, "weight decay", "", "lower left")
    for when, color, style in ((0, GREY, ":"), (-1, BLUE, "-")):
        chains = [_chain(t, when) for t in _of(found, True, 5e-3)]
        band(layers, _over(range(1, len(chains[0]) + 1), chains), color, "o", linestyle=style, markersize=3,
             label="before training" if when == 0 else "at the end")  # fmt: skip
    layers.set_xticks(range(1, len(chains[0]) + 1))
    log(layers, "y")
    labels(layers, "hidden layer", "", "lower left")
    return figure


def _chain(training: Any, when: int) -> list[float]:
    values = training.values[when]
    return [*(values[n] for n in sorted(n for n in values if n.endswith("/nc1_quotient"))), values["nc1_quotient"]]


def draw_free(found: Mapping[int, Mapping[str, float]], betas: Sequence[float], ratios: Sequence[int]) -> Figure:
    """The models of free features: along the path, against the tether, and with rare classes."""
    figure, (descent, tether, rare) = panels(
        "Tethered features: along the path", "Tethered features: at the minimum", "Rare classes: cosine of their rows",
        size=(3.1, 3.2),
    )  # fmt: skip
    runs = list(found.values())
    steps = sorted(int(name[5:]) for name in runs[0] if name.startswith("path "))
    band(descent, _over([10 * s for s in steps], [[r[f"path {s}"] for s in steps] for r in runs]))
    labels(descent, "step of gradient descent", "quotient / that at the start")
    band(tether, _over(betas, [[r[f"beta {b:g}"] for b in betas] for r in runs]), BLUE, "o")
    log(tether, "xy")
    labels(tether, r"tether $\beta$", "quotient / that of the given ones")
    band(rare, _over(ratios, [[r[f"ratio {q}"] for q in ratios] for r in runs]), RED, "s")
    rare.axhline(-1 / 9, color=GREY, linestyle=":", linewidth=1)
    rare.annotate("simplex, -1/9", (ratios[0], -1 / 9), xytext=(0, -10), textcoords="offset points", fontsize=7)
    log(rare, "x")
    rare.set_ylim(-0.3, 1.08)
    labels(rare, "ratio of class sizes")
    return figure
