"""The loss over a plane as a surface to turn and hover over; plotly is imported only when asked for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from losscope.landscape import SettingError
from losscope.landscape.surface import Plane

from . import style
from .inert import inert
from .interactive import _layout, _plotly
from .loss_scale import Levels, LossScale, levels_of, loss_scale
from .plane_marks import model_sheet
from .series import keep
from .sheet import Sheet, as_array
from .words import number

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["interactive_surface"]

COLOURS = [[0.0, "#f4f9fd"], [0.25, "#c6dff0"], [0.5, "#8fc1e3"], [0.75, "#4f97cc"], [1.0, "#2a6fae"]]
LIFT = 0.012
"""Of the height of the surface, by which what is draped over it stands above it."""


def interactive_surface(
    plane: Plane, *, value: str = "loss", scale: str = "auto", model: bool = True, title: str = ""
) -> Figure:
    """A plane as a surface in three dimensions, which says its numbers under the pointer.

    Where a value is NaN or infinite there is a hole. Centre, named points and trajectory lie on the surface; of the
    trajectory what lies outside the plane or over a hole is left out. The quadratic model of the centre is a
    translucent sheet, as far as it holds.

    Args:
        plane: what to draw; its refined points shape the surface.
        value: the loss, or the name of a metric.
        scale: ``"linear"``; ``"log"``, which shows how far values are above the lowest where not all are positive; or
            ``"auto"``, which takes the logarithm where values spread far.
        model: whether to draw the quadratic model, of the loss.
        title: above the figure.

    Returns:
        A plotly figure: ``figure.show()``, or ``save_html(figure, "plane.html")``.

    Raises:
        SettingError: if this is no plane, has a single row or column, or has no such values.
        ImportError: if plotly is not installed.
    """
    if not isinstance(plane, Plane):
        raise SettingError(f"interactive_surface draws a Plane; got {type(plane).__name__}")
    graph = _plotly()
    sheet = Sheet.of(plane, value)
    height = _Height(loss_scale(sheet.heights, scale), sheet)
    figure = graph.Figure(layout=_layout(inert(title)))
    figure.add_trace(_surface(graph, sheet, height, value))
    if plane.trajectory is not None and len(plane.trajectory):
        figure.add_trace(graph.Scatter3d(**_trajectory(plane, height)))
    figure.add_trace(graph.Scatter3d(**_marks(plane, height)))
    if model and value == "loss" and plane.model is not None and plane.model.radius > 0:
        figure.add_trace(graph.Surface(**_model(plane, sheet, height)))
    lengths = [axis.norm * (end - start) for axis, (start, end) in zip(plane.axes, _ends(sheet), strict=True)]
    stretched = not 0 < max(lengths) <= 3 * min(lengths)
    figure.update_layout(
        scene={
            "xaxis": {"title": {"text": _words(plane, 0)}, "range": _ends(sheet)[0]},
            "yaxis": {"title": {"text": _words(plane, 1)}, "range": _ends(sheet)[1]},
            "zaxis": {"title": {"text": _html(height.levels.label(height.scale.label(value)))}} | height.ticks(),
            "aspectmode": "manual", "camera": {"eye": {"x": 1.35, "y": -1.55, "z": 1.3}},
            "aspectratio": {"x": 1, "y": 1 if stretched else lengths[1] / lengths[0], "z": 0.7},
        },
        margin={"l": 0, "r": 20, "b": 0},
    )  # fmt: skip
    return figure


class _Height:
    """Where a value stands on the third axis."""

    def __init__(self, scale: LossScale, sheet: Sheet) -> None:
        self.scale, self.sheet = scale, sheet
        self.levels: Levels = levels_of(scale, 8)
        placed = self.place(sheet.heights)
        known = placed[np.isfinite(placed)]
        self.low, self.high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)

    def place(self, values: np.ndarray, *, clipped: bool = True) -> np.ndarray:
        """Heights of values; of those beyond the ends of the scale, its ends."""
        shown = self.scale.shown(np.where(np.isfinite(values), values, np.nan))
        if clipped:
            shown = np.clip(shown, self.scale.low, self.scale.high)
        if not self.scale.logarithmic:
            return shown
        return np.log10(shown, where=shown > 0, out=np.full(shown.shape, np.nan))

    def over(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Heights on the surface, a little lifted; NaN over holes and outside."""
        surface = RegularGridInterpolator(
            (self.sheet.y, self.sheet.x), self.place(self.sheet.z), bounds_error=False, fill_value=np.nan
        )
        return np.asarray(surface(np.stack([y, x], axis=-1))) + LIFT * (self.high - self.low)

    def ticks(self) -> dict[str, Any]:
        """Of the levels, on an axis of plotly."""
        values = self.levels.values
        places = np.log10(values) if self.scale.logarithmic else values
        return {"tickvals": places.tolist(), "ticktext": [_html(text) for text in self.levels.texts]}


def _surface(graph: Any, sheet: Sheet, height: _Height, value: str) -> Any:
    common: dict[str, Any] = {
        "lighting": {"ambient": 0.75, "diffuse": 0.4, "specular": 0.05}, "name": value,
        "colorscale": COLOURS, "cmin": height.low, "cmax": height.high,
        "colorbar": {"title": {"text": _html(height.levels.label(height.scale.label(value))), "side": "right"}}
        | height.ticks(), "hoverinfo": "text",
    }  # fmt: skip
    if sheet.triangles is None:
        X, Y = np.meshgrid(sheet.x, sheet.y)
        text = _hover(X, Y, sheet.z, value)
        place = {"x": sheet.x.tolist(), "y": sheet.y.tolist(), "z": _with_none(height.place(sheet.z))}
        lines = {"z": {"show": True, "color": style.MUTED, "width": 1} | _levels_of_contours(height)}
        return graph.Surface(**place, text=text, contours=lines, connectgaps=False, **common)
    shown = sheet.triangles.get_masked_triangles()
    z = height.place(sheet.heights)
    place = {"x": sheet.triangles.x.tolist(), "y": sheet.triangles.y.tolist(), "z": _with_none(z)}
    corners = dict(zip("ijk", shown.T.tolist(), strict=True))
    text = _hover(sheet.triangles.x, sheet.triangles.y, sheet.heights, value)
    return graph.Mesh3d(**place, **corners, intensity=place["z"], text=text, showscale=True, **common)


def _levels_of_contours(height: _Height) -> dict[str, Any]:
    """Plotly draws contours at even distances only."""
    return {"start": height.low, "end": height.high, "size": max((height.high - height.low) / 12, 1e-300)}


def _trajectory(plane: Plane, height: _Height) -> dict[str, Any]:
    assert plane.trajectory is not None
    path = as_array(plane.trajectory)
    kept = keep(np.arange(len(path)), *path.T)
    few, path = len(path) <= 60, path[kept]
    z = height.over(path[:, 0], path[:, 1])
    return {
        "x": path[:, 0].tolist(), "y": path[:, 1].tolist(), "z": _with_none(z), "name": "trajectory",
        "mode": "lines+markers" if few else "lines", "line": {"color": style.ORANGE, "width": 5},
        "marker": {"size": 2.5, "color": style.ORANGE}, "connectgaps": False, "text": [str(index) for index in kept],
        "hovertemplate": "point %{text} of the trajectory<br>(%{x:.4g}, %{y:.4g})<extra></extra>",
    }  # fmt: skip


def _marks(plane: Plane, height: _Height) -> dict[str, Any]:
    others = {name: (float(x), float(y)) for name, (x, y) in plane.points.items()}
    there = [name for name, at in others.items() if at == (0.0, 0.0)]
    named = {", ".join(["centre", *there]): (0.0, 0.0)} | {n: at for n, at in others.items() if n not in there}
    x, y = np.array(list(named.values())).T
    return {
        "x": x.tolist(), "y": y.tolist(), "z": _with_none(height.over(x, y)), "mode": "markers+text",
        "text": [inert(name) for name in named], "textposition": "top center", "name": "points",
        "marker": {"size": 4, "color": style.INK, "symbol": ["cross"] + ["circle"] * (len(named) - 1)},
        "customdata": [number(plane.center, 5)] + [""] * (len(named) - 1), "showlegend": False,
        "hovertemplate": "%{text} (%{x:.4g}, %{y:.4g}) %{customdata}<extra></extra>",
    }  # fmt: skip


def _model(plane: Plane, sheet: Sheet, height: _Height) -> dict[str, Any]:
    assert plane.model is not None
    X, Y, q = model_sheet(plane, sheet, 25, 73)
    (x0, x1), (y0, y1) = _ends(sheet)
    seen = (x0 <= X) & (x1 >= X) & (y0 <= Y) & (y1 >= Y)
    placed = height.place(q)
    seen &= height.place(q, clipped=False) == placed  # it may leave the picture, up and down
    placed = placed + 0.3 * LIFT * (height.high - height.low)  # two sheets at one height flicker
    words = f"quadratic model, holds to {100 * plane.model.error:g} % up to radius {number(plane.model.radius, 3)}"
    return {
        "x": X.tolist(), "y": Y.tolist(), "z": _with_none(np.where(seen, placed, np.nan)), "opacity": 0.45,
        "colorscale": [[0, style.VERMILLION], [1, style.VERMILLION]], "showscale": False, "showlegend": True,
        "name": words, "text": _hover(X, Y, q, "quadratic model"), "hoverinfo": "text", "connectgaps": False,
    }  # fmt: skip


def _ends(sheet: Sheet) -> tuple[list[float], list[float]]:
    x0, x1, y0, y1 = sheet.extent
    return [x0, x1], [y0, y1]


def _words(plane: Plane, index: int) -> str:
    axis = plane.axes[index]
    share = "" if plane.explained is None else f" ({100 * float(plane.explained[index]):.3g} %)"
    alike = f" ({index + 1})" if len({each.name for each in plane.axes}) == 1 else ""
    return f"{_html(axis.name)}{alike}{share}<br>[unit: length {number(axis.norm, 3)}]"


def _hover(x: np.ndarray, y: np.ndarray, values: np.ndarray, name: str) -> np.ndarray:
    """What is said under the pointer, of their shape; an array, since plotly takes lists of lists for words."""
    name = _html(style.plain(name))
    each = zip(x.flat, y.flat, values.flat, strict=True)
    said = [f"({a:.4g}, {b:.4g})<br>{name} {number(float(v), 5)}" for a, b, v in each]
    return np.array(said).reshape(values.shape)


def _with_none(values: np.ndarray) -> list[Any]:
    """As lists, with None for what is not finite: JSON has no NaN."""
    found = values.astype(object)
    found[~np.isfinite(values)] = None
    return list(found.tolist())


def _html(text: str) -> str:
    """A figure's text for plotly, whose powers are HTML: ``"$10^{-3}$"`` becomes ``"10<sup>-3</sup>"``."""
    text = text.replace("<", "&lt;").replace(r"\$", "&#36;").replace(r"\cdot", "·")
    return re.sub(r"\^\{(.*?)\}", r"<sup>\1</sup>", text).replace("$", "")
