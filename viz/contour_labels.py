"""The value of each contour written on it, where it meets neither another label nor another contour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.contour import ContourSet
from matplotlib.transforms import Bbox

from . import style

__all__ = ["label_contours"]

LETTER = 0.58
"""Mean width of a letter, as a share of the font size."""
EVERY = 3.0
"""Distance in points between the places that are tried."""


def label_contours(
    ax: Axes, contours: ContourSet, texts: Mapping[float, str], avoid: np.ndarray, fontsize: float, colour: str
) -> None:
    """Write each level once, along its contour.

    Of all places on a contour the one is taken that is furthest from other contours, from labels and marks that are
    there already, and from the frame. Where there is not room enough, the level stays without a label.

    Args:
        ax: where the contours are; its layout must be final, since distances are those on paper.
        contours: as ``ax.contour`` or ``ax.tricontour`` makes them.
        texts: what to write, by level.
        avoid: (m, 2) places in data coordinates that labels keep away from.
        fontsize: of the labels.
        colour: of the labels.
    """
    points = 72 / ax.get_figure(root=True).dpi  # type: ignore[union-attr]
    to_paper, levels = ax.transData, [float(level) for level in contours.levels]
    lines = [
        [points * to_paper.transform(np.asarray(s)) for s in segments if len(s) > 1] for segments in contours.allsegs
    ]
    places = [[_spaced(segment) for segment in segments] for segments in lines]
    taken = [points * to_paper.transform(avoid)] if len(avoid) else []
    taken += [points * _corners(text.get_window_extent()) for text in ax.texts if text.get_text()]
    frame = ax.get_window_extent()
    box = points * np.array([[frame.x0, frame.y0], [frame.x1, frame.y1]])
    order = sorted(range(len(lines)), key=lambda i: sum(len(s) for s in places[i]))  # those with least choice first
    for i in order:
        text = texts.get(levels[i])
        if text is None:
            continue
        width = LETTER * fontsize * _letters(text)
        others = [p for j in range(len(places)) if j != i for p in places[j]]
        found = _best(places[i], others, taken, box, width, fontsize)
        if found is None:
            continue
        place, angle = found
        x, y = to_paper.inverted().transform(place / points)
        ax.text(
            float(x), float(y), text, rotation=angle, rotation_mode="anchor", ha="center", va="center", color=colour,
            fontsize=fontsize, path_effects=style.halo(ax), zorder=3.2, gid="level", clip_on=True,
        )  # fmt: skip
        taken.append(place + np.linspace(-0.5, 0.5, 5)[:, None] * width * _direction(angle))


def _best(
    segments: Sequence[np.ndarray], others: Sequence[np.ndarray], taken: Sequence[np.ndarray], box: np.ndarray,
    width: float, height: float,
) -> tuple[np.ndarray, float] | None:  # fmt: skip
    """The place with most room around it, and the angle of the text there; None where there is none."""
    reach = max(1, round(width / 2 / EVERY))
    found, most = None, 1.0
    for line in segments:
        if len(line) <= 2 * reach + 2:
            continue
        middle = np.arange(reach, len(line) - reach)
        chords = line[middle + reach] - line[middle - reach]
        straight = np.hypot(*chords.T) / (2 * reach * EVERY)
        at = line[middle]
        edge = np.minimum(at - box[0], box[1] - at)
        room = np.minimum.reduce(
            [
                _nearest(at, taken) / (0.75 * width + height),
                _nearest(at, others) / (0.75 * height),
                edge.min(axis=1) / (0.5 * width + 0.5 * height),
                np.where(straight > 0.93, 3.0, 0.0),
            ]
        )
        best = int(room.argmax())
        if room[best] > most:
            angle = math.degrees(math.atan2(chords[best, 1], chords[best, 0]))
            found, most = (at[best], (angle + 90) % 180 - 90), float(room[best])
    return found


def _nearest(at: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """Distance of each place to the nearest of the others."""
    if not len(others):
        return np.full(len(at), math.inf)
    every = np.concatenate(list(others))
    if len(every) > 4000:
        every = every[:: math.ceil(len(every) / 4000)]
    return np.sqrt(((at[:, None] - every[None]) ** 2).sum(axis=2).min(axis=1))


def _spaced(line: np.ndarray) -> np.ndarray:
    """Places along a line at even distances."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    at = np.arange(0.0, along[-1] + 1e-9, EVERY)
    return np.stack([np.interp(at, along, line[:, 0]), np.interp(at, along, line[:, 1])], axis=1)


def _direction(angle: float) -> np.ndarray:
    return np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))])


def _corners(box: Bbox) -> np.ndarray:
    """Places over a box."""
    x, y = np.meshgrid(np.linspace(box.x0, box.x1, 5), (box.y0, box.y1))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def _letters(text: str) -> int:
    r"""How many letters wide it is; mathematics without its commands, e.g. ``$2\cdot 10^{-6}$``."""
    for command in ("$", "{", "}", "^", r"\cdot"):
        text = text.replace(command, "")
    return len(text)
