"""The curves of a run on a terminal: sharpness and loss of each player, in the room there is."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.text import Text

from losscope.probes import Run

from .. import series
from ..words import number
from .plot import curve, in_sight, spans_much

__all__ = ["panels"]

LEAST, USUAL, MOST = 5, 8, 14
"""Lines of a panel, with its title and what sets it off from what is above."""
LEAST_HALF, ROOMY = 60, 100
"""Columns from which two panels can stand side by side, and from which they do."""
KEPT = 20_000


def panels(run: Run, width: int, room: int | None, signs: bool) -> list[RenderableType]:
    """Panels below each other or side by side; fewer where there is little room, none where there is none.

    Args:
        run: the run.
        width: columns.
        room: lines that are left; None for as many as there need be.
        signs: whether more than ASCII can be shown.
    """
    for players, beside in _arrangements(run, width):
        slots = len(players) * (1 if beside else 2)
        height = USUAL if room is None else min(room // max(slots, 1), MOST)
        if height >= LEAST and players:
            each = width // 2 - 1 if beside else width
            pairs = [list(_pair(run, player, each, height - 2, signs)) for player in players]
            if beside:
                return [Columns(pair, width=each, padding=(0, 1, 0, 0)) for pair in pairs if pair]
            return [panel for pair in pairs for panel in pair]
    return []


def _arrangements(run: Run, width: int) -> Iterable[tuple[list[str], bool]]:
    """Whose panels, and whether side by side, the best first."""
    if width < ROOMY:
        yield run.players, False
    if width >= LEAST_HALF:
        yield run.players, True
        yield run.players[:1], True


def _pair(run: Run, player: str, width: int, height: int, signs: bool) -> Iterable[Group]:
    sharpness = series.sharpness(run, player)
    title = "sharpness" + _threshold(sharpness.value, sharpness.threshold)
    lines = curve(
        sharpness.steps, sharpness.value, width=width, height=height, threshold=sharpness.threshold, signs=signs
    )
    if lines:
        yield _titled(title, lines)
    steps, losses, name = series.loss(run, player)
    lines = curve(*series.decimate(steps, losses, KEPT), width=width, height=height, signs=signs)
    if lines:
        yield _titled(f"{name}, logarithmic" if spans_much(losses) else name, lines)


def _threshold(values: np.ndarray, threshold: np.ndarray) -> str:
    """What the title says of it."""
    known = threshold[np.isfinite(threshold)]
    if not len(known):
        return ""
    return ", threshold dashed" if len(in_sight(values, threshold)) else f", far below {number(float(known[-1]), 3)}"


def _titled(title: str, lines: list[Text]) -> Group:
    return Group(Text(), Text(f"{' ' * 10}{title}", style="dim", no_wrap=True, overflow="ellipsis"), *lines)
