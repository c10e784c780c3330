"""What is marked on a plane: centre, named points, a trajectory, and the quadratic model where it holds."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patheffects import Normal, withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from losscope.landscape.surface import Plane

from . import style
from .loss_scale import Levels, LossScale, said
from .series import keep
from .sheet import Sheet, as_array
from .style import INK, ORANGE, PAPER, VERMILLION

__all__ = ["draw_center", "draw_model", "draw_points", "draw_trajectory", "ellipse", "model_sheet", "settle_names"]

MOST_MARKERS = 40
ARROWS = (0.2, 0.5, 0.8)
"""Where arrow heads are, as shares of a trajectory's length."""


def draw_center(ax: Axes, plane: Plane, value: str) -> np.ndarray:
    """A cross at (0, 0), with the loss there in the legend."""
    words = f"centre, loss {said(plane.center, 4)}" if value == "loss" else "centre"
    ax.plot(
        0, 0, marker="+", markersize=10, markeredgewidth=1.6, color=INK, linestyle="none", label=words, zorder=6,
        path_effects=[withStroke(linewidth=3.4, foreground=PAPER)], gid="center",
    )  # fmt: skip
    return np.zeros((1, 2))


def draw_points(ax: Axes, plane: Plane) -> np.ndarray:
    """A dot with its name for each point that the plane was drawn through."""
    if not plane.points:
        return np.empty((0, 2))
    at = np.array(list(plane.points.values()), dtype=float)
    for name, (x, y) in zip(plane.points, at, strict=True):
        if (x, y) != (0.0, 0.0):  # where the centre's cross is
            ax.plot(
                x, y, marker="o", markersize=5.5, color=INK, markeredgecolor=PAPER, markeredgewidth=1.0,
                linestyle="none", zorder=5.5, gid="point",
            )  # fmt: skip
        ax.annotate(
            style.plain(name, 24), (x, y), xytext=(6, 5), textcoords="offset points", ha="left", va="bottom",
            color=INK, fontsize=style.FONT - 1, fontweight="bold", path_effects=style.halo(ax), zorder=6.5,
            gid="point-name",
        )  # fmt: skip
    return at


def settle_names(ax: Axes) -> None:
    """Put each name on the side of its point where it is inside and on nothing else; the layout must be final."""
    frame = ax.get_window_extent()
    names = [t for t in ax.texts if isinstance(t, Annotation) and t.get_gid() == "point-name"]
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in (ax.transData.transform(n.xy) for n in names)]
    for name in names:
        tried: list[tuple[float, int, dict[str, Any], Bbox]] = []
        for across, up in itertools.product((6, -6, 0), (True, False)):
            place: dict[str, Any] = {"position": (across, 6 if up else -6), "va": "bottom" if up else "top"}
            place["ha"] = "left" if across > 0 else "right" if across else "center"
            name.set(**place)
            box = name.get_window_extent()
            seen = Bbox.intersection(box, frame)
            outside = box.width * box.height - (seen.width * seen.height if seen else 0)
            meets = [each for each in (Bbox.intersection(box, other) for other in taken) if each]
            tried.append((outside + sum(each.width * each.height for each in meets), len(tried), place, box))
        _, _, place, box = min(tried, key=lambda each: each[:2])
        name.set(**place)
        taken.append(box)


def draw_trajectory(ax: Axes, plane: Plane) -> np.ndarray:
    """The recorded weights as a line with arrow heads, from a circle to a square."""
    if plane.trajectory is None or not len(plane.trajectory):
        return np.empty((0, 2))
    path = as_array(plane.trajectory)
    rim = [withStroke(linewidth=3.2, foreground=PAPER), Normal()]
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    outside = int(((path < (x0, y0)) | (path > (x1, y1))).any(axis=1).sum())
    words = f"trajectory, {len(path)} points from \N{WHITE CIRCLE} to \N{BLACK SQUARE}"
    words += f",\n{outside} of them outside" if outside else ""
    drawn = path[keep(np.arange(len(path)), *path.T)]
    ax.plot(
        *drawn.T, color=ORANGE, linewidth=1.5, marker="o" if len(path) <= MOST_MARKERS else None, markersize=2.6,
        path_effects=rim, label=words, zorder=4, gid="trajectory",
    )  # fmt: skip
    for (x, y), marker, face in ((path[0], "o", PAPER), (path[-1], "s", ORANGE)):  # the centre's cross stays visible
        ax.plot(
            x, y, marker=marker, markersize=5, color=face, markeredgecolor=INK, markeredgewidth=0.9, zorder=6.2,
            linestyle="none", gid="end",
        )  # fmt: skip
    _draw_arrows(ax, path)
    return path[:: math.ceil(len(path) / 200)]


def _draw_arrows(ax: Axes, path: np.ndarray) -> None:
    """Heads along it; their direction is that over some of its length, since single steps may go anywhere."""
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    known = path[np.isfinite(path).all(axis=1)]
    steps = np.hypot(*(np.diff(known, axis=0) / (x1 - x0, y1 - y0)).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    if not along[-1] > 0.05:
        return
    for share in ARROWS:
        tail, head = (
            np.array([np.interp(at * along[-1], along, known[:, i]) for i in (0, 1)]) for at in (share - 0.02, share)
        )
        inside = all(x0 <= x <= x1 and y0 <= y <= y1 for x, y in (head, tail))
        if not inside or (head == tail).all():
            continue
        ax.annotate(
            "", tuple(head), xytext=tuple(tail), zorder=4.5, gid="arrow", annotation_clip=True,
            arrowprops={"arrowstyle": "-|>,head_width=0.28,head_length=0.5", "color": ORANGE, "linewidth": 0.8,
                        "mutation_scale": 11, "shrinkA": 0, "shrinkB": 0, "path_effects": rim_of_arrows()},
        )  # fmt: skip


def rim_of_arrows() -> list[withStroke | Normal]:
    """A thin rim in white."""
    return [withStroke(linewidth=2.2, foreground=PAPER), Normal()]


def ellipse(gram: np.ndarray, radius: float, shares: np.ndarray, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the displacements whose Euclidean length is these shares of the radius.

    Args:
        gram: (2, 2) inner products of the axes.
        radius: a Euclidean length.
        shares: of the radius.
        angles: in which directions, as on a circle.

    Returns:
        Both of the shape that shares and angles have together.

    Example:
        >>> import numpy as np
        >>> from losscope.viz.plane_marks import ellipse
        >>> x, y = ellipse(np.diag([4.0, 1.0]), 2.0, np.ones(2), np.array([0.0, np.pi / 2]))
        >>> x.round(9).tolist(), y.round(9).tolist()  # an axis of length 2 reaches 2 at coordinate 1
        ([1.0, 0.0], [0.0, 2.0])
    """
    lower = np.linalg.cholesky(gram)
    circle = np.stack([np.cos(angles) * shares, np.sin(angles) * shares]) * radius
    x, y = np.einsum("ij,j...->i...", np.linalg.inv(lower).T, circle)
    return x, y


def reach(plane: Plane, sheet: Sheet) -> float:
    """Euclidean length to the furthest corner."""
    gram, (x0, x1, y0, y1) = as_array(plane.gram), sheet.extent
    corners = np.array([[x, y] for x in (x0, x1) for y in (y0, y1)])
    return float(np.sqrt(np.einsum("ci,ij,cj->c", corners, gram, corners).max()))


def model_sheet(plane: Plane, sheet: Sheet, rings: int, spokes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates as far as the quadratic model holds, and its values there, each (spokes, rings)."""
    assert plane.model is not None
    shares, angles = np.meshgrid(np.linspace(0, 1, rings), np.linspace(0, 2 * np.pi, spokes))
    X, Y = ellipse(as_array(plane.gram), min(plane.model.radius, reach(plane, sheet)), shares, angles)
    return X, Y, as_array(plane.model.at(torch.from_numpy(X), torch.from_numpy(Y)))


def draw_model(ax: Axes, plane: Plane, sheet: Sheet, scale: LossScale, levels: Levels) -> np.ndarray:
    """The quadratic model's contours, dashed, and the line within which it holds."""
    model = plane.model
    if model is None:
        return np.empty((0, 2))
    share = f"{100 * model.error:g} %"
    dashed: dict[str, Any] = {"color": VERMILLION, "linestyle": "--", "linewidth": 1.1}
    if not model.radius > 0:
        ax.plot([], [], **dashed, label=f"quadratic model: to {share} nowhere")
        return np.empty((0, 2))
    X, Y, q = model_sheet(plane, sheet, 61, 181)
    if np.isfinite(q).all():
        ax.contour(
            X, Y, scale.shown(q), levels=levels.values, colors=VERMILLION, linestyles="--", linewidths=1.1, zorder=3.5,
        ).set_gid("model")  # fmt: skip
    everywhere = model.radius >= reach(plane, sheet)
    ax.plot([], [], **dashed, label="quadratic model" + (f": to {share} all over" if everywhere else ""))
    if everywhere:
        return np.empty((0, 2))
    ring = np.linspace(0, 2 * np.pi, 181)
    edge = np.stack(ellipse(as_array(plane.gram), model.radius, np.ones_like(ring), ring), axis=1)
    ax.plot(
        *edge.T, color=VERMILLION, linewidth=1.1, zorder=3.4, gid="radius",
        label=f"it holds to {share} (radius {said(model.radius, 2)})",
    )  # fmt: skip
    return edge
