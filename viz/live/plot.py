"""A curve in characters: Braille dots, eight to a cell, or signs of ASCII."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from rich.text import Text

from ..words import number

__all__ = ["curve", "in_sight", "spans_much"]

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a Braille cell by row and column (Unicode 2800)."""

GUTTER = 9
WIDE_RANGE = 20.0
OUT_OF_SIGHT = 4.0


@dataclass(frozen=True)
class _Scale:
    """From a value to a row of dots, 0 on top."""

    low: float
    high: float
    rows: int
    log: bool

    def row(self, value: float) -> int | None:
        if not math.isfinite(value) or (self.log and value <= 0):
            return None
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        place = (high - at) / (high - low) * (self.rows - 1)
        return round(place) if -0.5 <= place <= self.rows - 0.5 else None


def curve(
    steps: np.ndarray,
    values: np.ndarray,
    *,
    width: int,
    height: int,
    threshold: np.ndarray | None = None,
    signs: bool = True,
) -> list[Text]:
    """Draw one curve, on a logarithmic scale where it spans much and has no threshold.

    Where several points share a column, all between the least and the greatest is drawn, so that no spike is lost.

    Args:
        steps: (n,) abscissae, ascending.
        values: (n,) ordinates; what is not finite leaves a gap.
        width: columns in all.
        height: lines in all, the line of steps included; at least 3.
        threshold: (n,) what the values are compared with: a dashed line, if it is not far above them.
        signs: whether more than ASCII can be shown.

    Returns:
        Lines of text; none where there is nothing to draw.

    Example:
        >>> import numpy as np
        >>> from losscope.viz.live.plot import curve
        >>> for line in curve(np.arange(40), np.arange(40.0), width=30, height=4, signs=False):
        ...     print(line.plain)
               39                *****
                       **********
                0 *****
                  0                 39
    """
    finite = np.isfinite(values)
    columns, rows = width - GUTTER - 1, height - 1
    if not finite.any() or columns < 4 or rows < 2:
        return []
    across, down = (2, 4) if signs else (1, 1)
    scale = _scale(values[finite], threshold, rows * down)
    lows, highs = _columns(steps, values, columns * across)
    cells = np.zeros((rows, columns), dtype=int)
    for x, (low, high) in enumerate(zip(lows, highs, strict=True)):
        top, bottom = scale.row(high), scale.row(low)
        if top is None or bottom is None:
            continue
        for y in range(top, bottom + 1):
            cells[y // down, x // across] |= DOTS[y % down][x % across] if signs else 1
    edges = _edges(steps, threshold, columns, scale, down)
    labels = _labels(scale, rows, edges, threshold)
    lines = [_line(labels.get(y, ""), cells[y], edges, y, signs) for y in range(rows)]
    first, last = f"{int(steps[0]):,}", f"{int(steps[-1]):,}"
    axis = first if first == last else first + last.rjust(columns - len(first))
    return [*lines, Text(" " * (GUTTER + 1) + axis, style="dim")]


def spans_much(values: np.ndarray) -> bool:
    """Whether values are all positive and so far apart that a logarithmic scale shows them.

    Example:
        >>> import numpy as np
        >>> from losscope.viz.live.plot import spans_much
        >>> spans_much(np.array([0.01, 1.0, np.nan])), spans_much(np.array([0.0, 1.0]))
        (True, False)
    """
    finite = values[np.isfinite(values)]
    return len(finite) > 0 and bool(0 < WIDE_RANGE * finite.min() < finite.max())


def in_sight(values: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """The thresholds that are not far above all values, which they would press flat."""
    finite = values[np.isfinite(values)]
    return threshold[threshold <= OUT_OF_SIGHT * max(finite.max(initial=0.0), 0.0)]


def _scale(values: np.ndarray, threshold: np.ndarray | None, rows: int) -> _Scale:
    low, high = float(values.min()), float(values.max())
    if threshold is None and spans_much(values):
        return _Scale(low, high, rows, log=True)
    if threshold is not None:
        seen = in_sight(values, threshold)
        high, low = max([high, *seen.tolist()]), min(low, 0.0)
    if high == low:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    return _Scale(low, high, rows, log=False)


def _columns(steps: np.ndarray, values: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest value of each column; between neighbouring points that are farther apart, a line."""
    lows, highs = np.full(columns, np.nan), np.full(columns, np.nan)
    span = max(float(steps[-1] - steps[0]), 1.0)
    place = np.minimum(((steps - steps[0]) / span * (columns - 1) + 0.5).astype(int), columns - 1)
    previous: tuple[int, float] | None = None
    for x, value in zip(place.tolist(), values.tolist(), strict=True):
        if not math.isfinite(value):
            previous = None
            continue
        if previous is not None and x > previous[0] + 1:
            between = np.arange(previous[0] + 1, x)
            lows[between] = highs[between] = np.interp(between, (previous[0], x), (previous[1], value))
        lows[x], highs[x] = np.fmin(lows[x], value), np.fmax(highs[x], value)
        previous = x, value
    return lows, highs


def _edges(steps: np.ndarray, threshold: np.ndarray | None, columns: int, scale: _Scale, down: int) -> dict[int, int]:
    """The row of the threshold in each column where it is in sight."""
    if threshold is None or not np.isfinite(threshold).any():
        return {}
    known = np.isfinite(threshold)
    at = np.linspace(float(steps[0]), float(steps[-1]), columns)
    nearest = np.minimum(np.searchsorted(steps[known], at), int(known.sum()) - 1)
    rows = {x: scale.row(float(value)) for x, value in enumerate(threshold[known][nearest])}
    return {x: row // down for x, row in rows.items() if row is not None}


def _labels(scale: _Scale, rows: int, edges: dict[int, int], threshold: np.ndarray | None) -> dict[int, str]:
    labels = {0: number(scale.high, 3), rows - 1: number(scale.low, 3)}
    if edges and threshold is not None:
        labels[edges[max(edges)]] = number(float(threshold[np.isfinite(threshold)][-1]), 3)
    return labels


def _line(label: str, cells: np.ndarray, edges: dict[int, int], y: int, signs: bool) -> Text:
    line = Text(f"{label[:GUTTER]:>{GUTTER}} ", style="dim")
    for x, bits in enumerate(cells.tolist()):
        if bits:
            style = "not dim bold yellow" if edges.get(x) == y else "not dim cyan"
            line.append(chr(0x2800 + bits) if signs else "*", style=style)
        elif edges.get(x) == y:
            line.append("╌" if signs else "-", style="not dim yellow")
        else:
            line.append(" ")
    return line
