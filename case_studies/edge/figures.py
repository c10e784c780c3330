"""The figures of edge_of_stability.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edge.beside import EVERY, Beside
from edge.sweep import ABSENT, FAMILIES, Trained
from panels import BLACK, BLUE, COLOURS, GREY, RED, STYLES, labels, log, panels
from study import save_figure

__all__ = ["draw", "draw_sweep"]

Runs = Mapping[str, Sequence[Trained]]


def draw(runs: Runs, flows: Sequence[Beside], out: Path) -> list[Path]:
    """All figures: optimizers, crossings, gradient flow, the central flow, and where the edge is absent."""
    families = {
        family: {case.name: runs[case.name] for case in cases if case.name in runs}
        for family, cases in FAMILIES.items()
    }
    families = {family: some for family, some in families.items() if some}
    absent = {name: {case.name: runs[case.name]} for name, case in ABSENT.items() if case.name in runs}
    paths = [draw_sweep(families, out, "optimizers"), draw_crossings(families, out)]
    if flows:
        paths += [draw_flow(flows[0], out), draw_central(flows[0], out)]
    return [*paths, draw_sweep(absent, out, "absent")] if absent else paths


def draw_sweep(families: Mapping[str, Runs], out: Path, name: str) -> Path:
    """Sharpness over threshold by step, all seeds thin, the first one strong."""
    figure, axes = panels(*families, size=(3.3, 2.5), columns=3)
    for ax, some in zip(axes, families.values(), strict=True):
        for (label, seeds), colour, style in zip(some.items(), COLOURS, STYLES, strict=False):
            for run in reversed(seeds):
                first = run is seeds[0]
                ax.plot(list(run.ratio), list(run.ratio.values()), color=colour, lw=1.4 if first else 0.5, ls=style,
                        alpha=1 if first else 0.45, label=label.split(", ")[-1] if first else None)  # fmt: skip
        ax.axhline(1, color=BLACK, lw=0.7)
        ax.set_ylim(0, 1.35)
        labels(ax, "step", "sharpness / threshold" if ax in axes[::3] else "", "lower right" if len(some) > 1 else None)
    return save_figure(figure, out, name)


def draw_crossings(families: Mapping[str, Runs], out: Path) -> Path:
    """Crossing step by rate, and the hovering medians of all seeds."""
    figure, (left, right) = panels("First crossing", "Hovering: median of the later half", size=(4.2, 3.2))
    rows: list[str] = []
    for (family, some), colour, marker in zip(families.items(), COLOURS, "osD^v*", strict=False):
        slowest = len(some)
        steps = np.array([[run.crossing for run in seeds] for seeds in some.values()])
        finite = np.where(np.isfinite(steps), steps, np.nan)
        places = np.arange(slowest)[:, None] + 0 * finite
        left.plot(places.ravel(), finite.ravel(), marker, color=colour, ms=3, mfc="none", alpha=0.6, label=family)
        known = [np.nanmedian(row) if np.isfinite(row).any() else math.nan for row in finite]
        left.plot(range(slowest), known, color=colour, lw=1.2)
        for label, seeds in some.items():
            right.plot([run.late for run in seeds], [len(rows)] * len(seeds), marker, color=colour, ms=4, mfc="none")
            rows.append(label)
    most = max(map(len, families.values()))
    left.set_xticks(range(most), ["largest", "second", "third", "fourth", *map(str, range(5, most + 1))][:most])
    log(left, "y")
    labels(left, "rate of the family", "step", "lower right")
    right.axvline(1, color=BLACK, lw=0.9, ls="--")
    right.set_yticks(range(len(rows)), labels=rows, fontsize=7)
    right.invert_yaxis()
    labels(right, "sharpness / threshold")
    return save_figure(figure, out, "crossings")


def draw_flow(found: Beside, out: Path) -> Path:
    """Gradient descent beside gradient flow: sharpness, and distance over the way from the start."""
    figure, (left, right) = panels("Sharpness", "Distance from gradient flow", size=(4.2, 3.0))
    steps = EVERY * np.arange(len(found.flow))
    left.plot(EVERY * np.arange(len(found.sharpness)), found.sharpness, color=BLUE, lw=1.2, label="gradient descent")
    left.plot(steps, found.flow, color=RED, lw=1.2, ls="-.", label="gradient flow")
    left.axhline(1, color=BLACK, lw=0.9, ls="--")
    labels(left, "step (time / lr)", "sharpness / (2 / lr)", "lower right")
    right.plot(steps[4:], found.apart[4:], color=BLUE, lw=1.2)
    labels(right, "step (time / lr)", "distance / way from the start")
    for ax in (left, right):
        ax.axvline(found.crossing, color=GREY, lw=0.8)
        ax.set_ylim(0, None)
    right.text(found.crossing, 0.98, " crossing", transform=right.get_xaxis_transform(), fontsize=8, va="top")
    return save_figure(figure, out, "flow")


def draw_central(found: Beside, out: Path) -> Path:
    """Loss, oscillation and sharpness beside what the central flow predicts of them."""
    figure, axes = panels("Loss", "Oscillation along the top eigenvector", "Sharpness", size=(3.7, 3.0))
    steps = found.crossing + np.arange(len(found.averages))
    losses = np.array(found.losses[found.crossing :][: len(steps)])
    axes[0].plot(steps, losses, color=GREY, lw=0.7, label="gradient descent")
    axes[0].plot(steps, found.averages, color=RED, lw=1.4, label="predicted average")
    axes[0].plot(steps, found.below, color=BLUE, lw=1.2, ls="--", label="L(w) on the central flow")
    labels(axes[0], "step", "training loss", "lower left")

    squares, variances = np.array(found.squares), np.array(found.variances)
    count = np.arange(1, len(steps) + 1)
    axes[1].plot(steps, np.cumsum(squares) / count, color=GREY, lw=1.2, label="measured, mean since the crossing")
    axes[1].plot(steps, np.cumsum(variances) / count, color=RED, lw=1.4, label=r"predicted $\sigma^2$, likewise")
    labels(axes[1], "step", "mean square", "upper right")
    axes[1].set(ylim=(None, 1.3 * max((np.cumsum(squares) / count).max(), variances.max())))

    measured = EVERY * np.arange(len(found.sharpness))
    axes[2].plot(measured, found.sharpness, color=GREY, lw=1.2, label="gradient descent")
    axes[2].plot(steps, found.centred, color=RED, lw=1.4, label="central flow")
    axes[2].plot(steps, found.second, color=BLUE, lw=1.2, ls="--", label="its second eigenvalue")
    labels(axes[2], "step", "eigenvalue / (2 / lr)", "lower right")
    axes[2].set(ylim=(0.7, 1.15), xlim=(steps[0], steps[-1]))
    for ax in axes:
        if found.single < len(steps):
            ax.axvline(found.crossing + found.single, color=GREY, lw=0.8, ls=":")
    return save_figure(figure, out, "central_flow")
