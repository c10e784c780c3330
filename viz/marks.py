"""What the figures share: the threshold's line with its label, and marks where nothing was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from losscope.probes import Record
from losscope.probes.phases import CATAPULT, EDGE, SHARPENING, Phase

from . import style
from .series import LARGEST, Series, Unmeasured, no_stable_step
from .style import MUTED, ORANGE, PURPLE, SKY, VERMILLION

__all__ = ["Threshold", "mark_unmeasured", "mark_wrong_rates", "shade_phases", "spread"]

MOST_PLATEAUS = 4
AXES = 0.7
"""Of a figure's width, between the ends of its data, about."""


class Threshold:
    """The threshold of each measurement as one line, labelled where it runs.

    Args:
        data: the series it belongs to.
        formula: its rule, e.g. ``"2/lr"``.

    Attributes:
        levels: the finite values it takes, over all parameter groups.
    """

    def __init__(self, data: Series, formula: str) -> None:
        self.data = data
        self.formula = style.plain(formula, 40)
        both = np.concatenate([data.threshold, data.threshold_largest])
        self.levels = both[np.isfinite(both)]

    def draw(self, ax: Axes, *, own: bool) -> None:
        """Draw it step-wise, with its formula and value on it."""
        data = self.data
        if not np.isfinite(data.threshold).any():
            return
        steps, least = self._stepwise(data.threshold)
        ax.plot(
            steps, least, color=VERMILLION, linewidth=1.2, linestyle=(0, (5, 2)), drawstyle="steps-post", zorder=3.5,
            gid="threshold",
        )  # fmt: skip
        wide = np.isfinite(data.threshold_largest) & (data.threshold_largest > data.threshold * (1 + 1e-9))
        if wide.any():
            largest = self._stepwise(data.threshold_largest)[1]
            ax.plot(steps, largest, color=VERMILLION, linewidth=0.8, linestyle=":", drawstyle="steps-post", zorder=2.5)
            ax.fill_between(
                steps, least, largest, step="post", color=VERMILLION, alpha=0.1, linewidth=0,
                label="thresholds of the parameter groups",
            )  # fmt: skip
        self._label(ax, own=own)

    def _stepwise(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A lone measurement still gets a line to read."""
        steps = self.data.steps
        if len(steps) == 1:
            return np.array([steps[0] - 1, steps[0] + 1]), np.repeat(values, 2)
        return steps, values

    def _label(self, ax: Axes, *, own: bool) -> None:
        steps, values = self.data.steps, self.data.threshold
        finite = np.isfinite(values)
        same = finite & np.concatenate([[False], np.isclose(values[1:], values[:-1], rtol=1e-9)])
        starts = np.flatnonzero(finite & ~same)
        ends = np.append(starts[1:], len(values))
        span = max(int(steps[-1] - steps[0]), 1)
        plateaus = []
        for first, end in zip(starts, ends, strict=True):
            last = int(end if end < len(steps) else end - 1)
            share = (steps[last] - steps[first]) / span
            if len(starts) == 1 or share > 0.1:
                text = f"{self.formula} = {style.figure_number(float(values[first]))}"
                plateaus.append((int(first), last, text, share * AXES * style.width_of(ax)))
        fit = all(style.inches(text, style.FONT) < room for *_, text, room in plateaus)
        if len(starts) == 1 or (len(starts) <= MOST_PLATEAUS and fit):
            for begin, last, text, _ in plateaus:
                self._write(ax, begin, last, text)
            return
        for index, side, word in ((starts[0], "left", "first"), (starts[-1], "right", "last")):
            text = f"{self.formula}, {word} {style.figure_number(float(values[index]))}"
            self._text(ax, float(steps[0] if side == "left" else steps[-1]), float(values[index]), text, side)

    def _write(self, ax: Axes, first: int, last: int, text: str) -> None:
        """Put a plateau's label at the end where the curve is farther from the line."""
        steps, value = self.data.steps, self.data.value
        level = float(self.data.threshold[first])
        length = max((last - first) // 4, 1)

        def room(part: slice) -> float:
            distance = np.abs(value[part] - level)
            distance = distance[np.isfinite(distance)]
            return float(distance.min()) if len(distance) else np.inf

        left, right = room(slice(first, first + length + 1)), room(slice(max(last - length, first), last + 1))
        if left >= right:
            self._text(ax, float(steps[first]), level, text, "left")
        else:
            self._text(ax, float(steps[last]), level, text, "right")

    def _text(self, ax: Axes, x: float, y: float, text: str, side: str) -> None:
        if len(self.data.steps) == 1:
            x -= 1
        ax.annotate(
            text, (x, y), xytext=(4 if side == "left" else -4, 3), textcoords="offset points", ha=side, va="bottom",
            color=VERMILLION, fontsize=style.FONT, path_effects=style.halo(ax), zorder=5, gid="threshold-label",
        )  # fmt: skip


def mark_unmeasured(ax: Axes, missing: Unmeasured, what: str) -> None:
    """Mark on the x-axis the steps at which nothing could be measured, explained in the legend."""
    kinds = (
        (missing.nonfinite, "x", style.ink(ax), 0.025, f"{what} not finite"),
        (missing.errors, "+", VERMILLION, 0.025, f"{what}: error recorded"),
        (missing.beyond, "^", style.ink(ax), 0.975, rf"{what} above $10^{{{round(math.log10(LARGEST))}}}$"),
    )
    for steps, marker, colour, height, words in kinds:
        if steps:
            shown = np.array(steps)
            if len(shown) > 60:
                shown = shown[np.unique(np.linspace(0, len(shown) - 1, 60).astype(int))]
            ax.plot(
                shown, np.full(len(shown), height), transform=ax.get_xaxis_transform(), linestyle="none", marker=marker,
                markersize=5, markeredgewidth=1.1, color=colour, clip_on=False, zorder=6,
                label=f"{words} ({len(steps)})", gid="unmeasured",
            )  # fmt: skip


def mark_wrong_rates(ax: Axes, records: Sequence[Record]) -> None:
    """Mark at the top the updates whose rate lets no step be stable, so that there is no ratio to draw."""
    steps, words = no_stable_step(records)
    if not len(steps):
        return
    if len(steps) > 60:
        steps = steps[np.unique(np.linspace(0, len(steps) - 1, 60).astype(int))]
    ax.plot(
        steps, np.full(len(steps), 0.975), transform=ax.get_xaxis_transform(), linestyle="none", marker="^",
        markersize=6, color=VERMILLION, clip_on=False, zorder=6, label=words, gid="wrong-rates",
    )  # fmt: skip


SHADES = {SHARPENING: SKY, EDGE: ORANGE, CATAPULT: PURPLE}


def shade_phases(ax: Axes, phases: Sequence[Phase]) -> None:
    """Shade the parts of a run that have a name, with the name on them, or in the legend where it does not fit."""
    left, right = ax.get_xlim()
    letter = 0.075 * style.FONT / 9 / (0.8 * style.width_of(ax))  # of the axes' width, about
    named: set[str] = set()
    for phase in sorted(phases, key=lambda each: each.first - each.last):  # the longest carries the name
        width = (phase.last - phase.first) / max(right - left, 1e-9)
        fits = phase.name not in named and width > letter * len(phase.name)
        known = fits or phase.name in named
        ax.axvspan(
            phase.first, phase.last, color=SHADES[phase.name], alpha=0.14, linewidth=0, zorder=0.2,
            label=None if known else phase.name, gid=f"phase-{phase.name}",
        )  # fmt: skip
        named.add(phase.name)
        if fits:
            ax.text(
                (phase.first + phase.last) / 2, 0.985, phase.name, transform=ax.get_xaxis_transform(), ha="center",
                va="top", color=MUTED, fontsize=style.FONT - 1, path_effects=style.halo(ax), zorder=5, gid="phase",
            )  # fmt: skip
    ax.set_xlim(left, right)


def spread(positions: list[float], gap: float) -> list[float]:
    """Move positions apart until neighbours are ``gap`` from each other, each as little as that takes.

    Example:
        >>> from losscope.viz.marks import spread
        >>> spread([0.0, 0.1, 5.0], 1.0)
        [-0.45, 0.55, 5.0]
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    groups: list[tuple[list[int], float]] = []
    for index in order:
        members, centre = [index], positions[index]
        while groups and centre - (len(members) - 1) / 2 * gap < groups[-1][1] + (len(groups[-1][0]) + 1) / 2 * gap:
            above, middle = groups.pop()
            centre = (middle * len(above) + centre * len(members)) / (len(above) + len(members))
            members = above + members
        groups.append((members, centre))
    moved = [0.0] * len(positions)
    for members, centre in groups:
        for place, index in enumerate(members):
            moved[index] = round(centre + (place - (len(members) - 1) / 2) * gap, 9)
    return moved
