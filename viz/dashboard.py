"""All that a run has recorded, on one page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import NullLocator

from losscope.probes import Run

from . import series, style
from .collapse import plot_collapse
from .gradient_noise import plot_gradient_noise
from .layers import plot_layers
from .marks import spread
from .outliers import plot_outliers
from .overlay import plot_overlay
from .sharpness import _title, plot_sharpness
from .spectrum import plot_spectrum
from .spectrum_over_time import plot_spectrum_over_time
from .stability import plot_stability
from .style import INK, MUTED
from .tangent import plot_tangent_kernel
from .trajectory import plot_trajectory

__all__ = ["plot_dashboard"]

Draw = Callable[..., Any]
WIDTH, HEIGHT = 11.69, 8.27
"""Of a landscape page of A4, in inches."""
SMALL, SMALLEST = 6.5, 5.0
MARGIN = 1.0
"""Inches of a panel's width that a legend's words have not: the axis at the left, and the handles."""
ENTRIES = 6
"""Of a panel's legend."""

PANELS: dict[str, tuple[tuple[str, ...], Draw]] = {
    "Stability": (("stability",), plot_stability),
    "Trace": (("trace", "stability"), lambda run, ax, player: _one(plot_overlay(run, "trace", ax, player=player))),
    "Spectrum, last": (("spectrum",), plot_spectrum),
    "Spectrum over time": (("spectrum",), plot_spectrum_over_time),
    "Largest eigenvalues": (("spectrum",), plot_outliers),
    "Curvature by layer": (("layer_traces",), plot_layers),
    "Neural collapse": (("neural_collapse",), plot_collapse),
    "Tangent kernel": (("tangent_kernel",), plot_tangent_kernel),
    "Gradient noise": (("gradient_noise",), plot_gradient_noise),
    "Trajectory": (("trajectory",), plot_trajectory),
}
"""Which probes a panel is of, any of them, and what draws it."""


def plot_dashboard(run: Run, *, player: str | None = None, size: tuple[float, float] | None = None) -> np.ndarray:
    """Draw all that a run has recorded of one player, on one page: a panel for each probe that left records.

    The loss, and the sharpness against the threshold, are always there; the others where they were recorded. A legend
    is cut where there is no room: the figure of that name by itself has all of it.

    Args:
        run: the run.
        player: which player; default: the first.
        size: width and height in inches; by default a landscape page of A4, less high where there is little.

    Returns:
        The panels' Axes, one after the other.

    Raises:
        RunError: if the run has no such player.

    Example:
        >>> from losscope.probes import Record, Run
        >>> from losscope.viz import plot_dashboard
        >>> records = [Record(step, "model", "trace", value=2.0, low=1.0, high=3.0) for step in range(9)]
        >>> [ax.get_ylabel().split()[0] for ax in plot_dashboard(Run.from_records({"players": {"model": {}}}, records))]
        ['loss', 'sharpness', 'trace']
    """
    panels = {title: draw for title, (probes, draw) in PANELS.items() if _is_there(run, player, title, probes)}
    titles = ("Loss", "Sharpness", *panels)
    rows, columns = _grid(len(titles))
    figure = Figure(figsize=size or (WIDTH, min(HEIGHT, 1 + 3.6 * rows)), layout="constrained", facecolor=style.PAPER)
    parts = np.ravel(figure.subfigures(rows, columns, squeeze=False))[: len(titles)]
    axes = [part.subplots() for part in parts]
    for ax in axes:
        style.dress(ax)
    plot_sharpness(run, (axes[1], axes[0]), player=player)
    style.step_axis(axes[1], series.sharpness(run, player).steps)
    for ax, draw in zip(axes[2:], panels.values(), strict=True):
        draw(run, ax, player=player)
    for ax, title in zip(axes, titles, strict=True):
        ax.set_xlabel(ax.get_xlabel() or "optimizer step")
        _head(ax, title)
        _settle_ends(ax, 72 * (figure.get_figheight() / rows - 1.2))
    style.title(figure, _title(run, player))
    return np.array(axes, dtype=object)


def _is_there(run: Run, player: str | None, title: str, probes: tuple[str, ...]) -> bool:
    if title == "Trace" and not run.select("trace", player, ok=False):
        return any("trace" in record.values for record in run.select("stability", player)[:1])
    return any(run.select(probe, player, ok=False) for probe in probes)


def _grid(count: int) -> tuple[int, int]:
    """Rows and columns of so many panels on a page that is wider than high.

    Example:
        >>> from losscope.viz.dashboard import _grid
        >>> [_grid(count) for count in (2, 3, 4, 6, 7, 9, 12)]
        [(1, 2), (1, 3), (2, 2), (2, 3), (2, 4), (3, 3), (3, 4)]
    """
    rows = 1 if count <= 3 else 2 if count <= 8 else 3
    rows = max(rows, int(np.ceil(count / 4)))
    return rows, int(np.ceil(count / rows))


def _one(ax: Axes) -> None:
    """A legend of one line says nothing that the title does not."""
    legend = ax.get_legend()
    if legend is not None:
        legend.remove()
    for line in ax.lines:
        line.set_label("_")


def _head(ax: Axes, title: str) -> None:
    """The panel's name, and below it its legend, as far as there is room, above what is drawn; all of it small."""
    old = ax.get_legend()
    handles, labels = ax.get_legend_handles_labels()
    if old is not None:
        old.remove()
    bars = [each for each in ax.get_figure(root=False).axes if each is not ax]  # type: ignore[union-attr]
    for each in (ax, *bars):
        for axis in (each.xaxis, each.yaxis):
            axis.label.set_fontsize(SMALL + 1)
            axis.set_tick_params(labelsize=SMALL + 0.5, which="both")
            if len(axis.get_majorticklocs()[1:-1]) > 1:  # at this size nobody counts the others, and they take time
                axis.set_minor_locator(NullLocator())
        for text in each.texts:
            text.set_fontsize(SMALL)
    if not handles:
        ax.set_title(title, loc="left", fontdict={"fontsize": style.FONT, "fontweight": "bold"}, color=INK)
        return
    room = style.width_of(ax) - MARGIN
    size = max(min(SMALL, SMALL * room / max(style._inches(label, SMALL) for label in labels[:ENTRIES])), SMALLEST)
    if len(handles) > ENTRIES:  # then curves before areas
        order = sorted(range(len(handles)), key=lambda i: not isinstance(handles[i], Line2D))
        handles, labels = [handles[i] for i in order], [labels[i] for i in order]
        rest = len(handles) - ENTRIES + 1
        handles = [*handles[: ENTRIES - 1], Line2D([], [], linestyle="none")]
        labels = [*labels[: ENTRIES - 1], f"and {rest} more"]
    made = ax.legend(
        handles, [_cut(label, size, room) for label in labels], title=title, loc="lower left",
        title_fontproperties={"size": style.FONT, "weight": "bold"}, alignment="left", frameon=False, borderpad=0,
        bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2, fontsize=size, handlelength=1.8, labelspacing=0.2,
    )  # fmt: skip
    for text in (*made.get_texts(), made.get_title()):
        text.set_color(INK)


def _cut(label: str, size: float, room: float) -> str:
    """A label as far as there is room; one with a formula is left whole."""
    while "$" not in label and len(label) > 4 and style._inches(label, size) > room:
        label = f"{label[: -2 if label.endswith('…') else -1]}…"
    return label


def _settle_ends(ax: Axes, height: float) -> None:
    """Move the labels at the curves' ends apart in axes so many points high; those of grey curves have no room."""
    labels = [each for each in ax.texts if isinstance(each, Annotation) and each.get_gid() == "end-label"]
    for label in [each for each in labels if each.get_color() == MUTED]:
        label.remove()
        labels.remove(label)
    inside = ax.transData - ax.transAxes
    points = [float(inside.transform((0, label.xy[1]))[1]) * height for label in labels]
    for label, at, moved in zip(labels, points, spread(points, 1.6 * SMALL), strict=True):
        label.set_position((5, moved - at))
