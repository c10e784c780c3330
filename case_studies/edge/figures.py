"""The figures of edge_of_stability.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from edge.beside import EVERY, Beside
from edge.sweep import ABSENT, FAMILIES, Trained
from study import COLOURS, panels, save_figure

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
    figure, axes = panels(len(families), list(families), size=(3.3, 2.5), columns=3)
    for ax, some in zip(axes, families.values(), strict=True):
        for (label, seeds), colour in zip(some.items(), COLOURS, strict=False):
            for run in reversed(seeds):
                first = run is seeds[0]
                ax.plot(list(run.ratio), list(run.ratio.values()), color=colour, lw=1.3 if first else 0.5,
                        alpha=1 if first else 0.45, label=label.split(", ")[-1] if first else None)  # fmt: skip
        ax.axhline(1, color="#1f2328", lw=0.9, ls="--")
        ax.set(xlabel="step", ylim=(0, 1.35))
        if len(some) > 1:
            ax.legend(fontsize=7, framealpha=0.9, edgecolor="none", loc="lower right")
    for ax in axes[::3]:
        ax.set_ylabel("sharpness / threshold")
    return save_figure(figure, out, name)


def draw_crossings(families: Mapping[str, Runs], out: Path) -> Path:
    """Crossing step by rate, and the hovering medians of all seeds."""
    figure, (left, right) = panels(2, ["first crossing", "hovering: median of the later half"], size=(4.2, 3.2))
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
    left.set(yscale="log", ylabel="step", xticks=[], xlabel="from the largest to the smallest rate of each")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    left.yaxis.set_minor_formatter(NullFormatter())
    left.legend(fontsize=7, frameon=False)
    right.axvline(1, color="#1f2328", lw=0.9, ls="--")
    right.set_yticks(range(len(rows)), labels=rows, fontsize=7)
    right.invert_yaxis()
    right.set(xlabel="sharpness / threshold")
    return save_figure(figure, out, "crossings")


def draw_flow(found: Beside, out: Path) -> Path:
    """Gradient descent beside gradient flow: sharpness, and distance over the way from the start."""
    figure, (left, right) = panels(2, ["sharpness", "distance from gradient flow"], size=(4.2, 3.0))
    steps = EVERY * np.arange(len(found.flow))
    left.plot(
        EVERY * np.arange(len(found.sharpness)), found.sharpness, color=COLOURS[0], lw=1.2, label="gradient descent"
    )
    left.plot(steps, found.flow, color=COLOURS[1], lw=1.2, ls="-.", label="gradient flow")
    left.axhline(1, color="#1f2328", lw=0.9, ls="--")
    left.set(ylabel="sharpness / (2 / lr)", ylim=(0, None))
    left.legend(fontsize=8, frameon=False, loc="lower right")
    right.plot(steps[4:], found.apart[4:], color=COLOURS[0], lw=1.2)
    right.set(ylabel="distance / way from the start", ylim=(0, None))
    for ax in (left, right):
        ax.axvline(found.crossing, color="#6e7781", lw=0.8)
        ax.set_xlabel("step (time / lr)")
    right.text(found.crossing, 0.98, " crossing", transform=right.get_xaxis_transform(), fontsize=8, va="top")
    return save_figure(figure, out, "flow")


def draw_central(found: Beside, out: Path) -> Path:
    """Loss, oscillation and sharpness beside what the central flow predicts of them."""
    figure, axes = panels(3, ["loss", "oscillation along the top eigenvector", "sharpness"], size=(3.7, 3.0))
    steps = found.crossing + np.arange(len(found.averages))
    losses = np.array(found.losses[found.crossing :][: len(steps)])
    axes[0].plot(steps, losses, color="#6e7781", lw=0.7, label="gradient descent")
    axes[0].plot(steps, found.averages, color=COLOURS[1], lw=1.4, label="predicted average")
    axes[0].plot(steps, found.below, color=COLOURS[0], lw=1.2, ls="--", label="L(w) on the central flow")
    axes[0].set_ylabel("loss")

    squares, variances = np.array(found.squares), np.array(found.variances)
    count = np.arange(1, len(steps) + 1)
    axes[1].plot(steps, np.cumsum(squares) / count, color="#6e7781", lw=1.2, label="measured, mean since the crossing")
    axes[1].plot(steps, np.cumsum(variances) / count, color=COLOURS[1], lw=1.4, label=r"predicted $\sigma^2$, likewise")
    axes[1].set(ylabel="mean square", ylim=(None, 1.3 * max((np.cumsum(squares) / count).max(), variances.max())))

    measured = EVERY * np.arange(len(found.sharpness))
    axes[2].plot(measured, found.sharpness, color="#6e7781", lw=1.2, label="gradient descent")
    axes[2].plot(steps, found.centred, color=COLOURS[1], lw=1.4, label="central flow")
    axes[2].plot(steps, found.second, color=COLOURS[0], lw=1.2, ls="--", label="its second eigenvalue")
    axes[2].set(ylabel="eigenvalue / (2 / lr)", ylim=(0.7, 1.15), xlim=(steps[0], steps[-1]))
    for ax in axes:
        ax.set_xlabel("step")
        ax.legend(fontsize=7, framealpha=0.9, edgecolor="none", loc="lower right" if ax is axes[2] else "upper right")
        if found.single < len(steps):
            ax.axvline(found.crossing + found.single, color="#6e7781", lw=0.8, ls=":")
    return save_figure(figure, out, "central_flow")
