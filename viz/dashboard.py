"""All that a run has recorded, on one page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import NullLocator

from losscope.probes import Run

from . import series, style
from .cells import LEAST, cells, fit, grid
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
TITLE = 0.3
"""Inches above the panels."""
SMALL, SMALLEST = 6.5, 5.0
MARGIN = 0.4
"""Inches of a panel's width that a legend's words have not: the handles have them."""
ENTRIES = 6
"""Of a panel's legend, at most."""
LINE = 0.13
"""Inches of height of an entry, about."""
LEAST_AXES = 1.6
"""Inches of height that a legend leaves to the axes and the words below them."""

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
        size: width and height in inches; by default a landscape page of A4, less high where there is little. A page
            that is too low for its panels is made higher.

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
    player = player if player is not None else next(iter(run.players), None)
    panels = {title: draw for title, (probes, draw) in PANELS.items() if _is_there(run, player, title, probes)}
    titles = ("Loss", "Sharpness", *panels)
    width, height = size or (WIDTH, HEIGHT)
    rows, columns = grid(len(titles), width)
    height = max(height if size or rows > 2 else 1 + 3.6 * rows, TITLE + LEAST[1] * rows)
    figure = style.blank((width, height), layout=None)
    axes = cells(figure, rows, columns, len(titles), above=TITLE)
    for ax in axes:
        style.dress(ax)
    plot_sharpness(run, (axes[1], axes[0]), player=player)
    style.step_axis(axes[1], series.sharpness(run, player).steps)
    for ax, draw in zip(axes[2:], panels.values(), strict=True):
        draw(run, ax, player=player)
    heads = []
    for ax, title in zip(axes, titles, strict=True):
        ax.set_xlabel(ax.get_xlabel() or "optimizer step")
        heads.append(_head(ax, title, (height - TITLE) / rows))
    style.title(figure, _title(run, player), y=1 - 0.08 / height)
    fit(axes, heads)
    for ax in axes:
        _settle_ends(ax, 72 * ax.get_window_extent().height / figure.dpi)
    return np.array(axes, dtype=object)


def _is_there(run: Run, player: str | None, title: str, probes: tuple[str, ...]) -> bool:
    if title == "Trace" and not run.select("trace", player, ok=False):
        return any("trace" in record.values for record in run.select("stability", player)[:1])
    return any(run.select(probe, player, ok=False) for probe in probes)


def _one(ax: Axes) -> None:
    """A legend of one line says nothing that the title does not."""
    legend = ax.get_legend()
    if legend is not None:
        legend.remove()
    for line in ax.lines:
        line.set_label("_")


def _head(ax: Axes, title: str, height: float) -> float:
    """The panel's name, and below it its legend, as far as there is room, above what is drawn; all of it small.

    Args:
        ax: the panel.
        title: its name.
        height: of its cell, in inches.

    Returns:
        Inches that they take.
    """
    part, old = ax.get_figure(root=False), ax.get_legend()
    assert isinstance(part, SubFigure)
    handles, labels = ax.get_legend_handles_labels()
    if old is not None:
        old.remove()
    most = max(min(ENTRIES, int((height - LEAST_AXES - LINE) / LINE)), 1)
    if len(handles) > most:  # then curves before areas
        order = sorted(range(len(handles)), key=lambda i: not isinstance(handles[i], Line2D))
        handles, labels = [handles[i] for i in order], [labels[i] for i in order]
        rest = len(handles) - most + 1
        handles = [*handles[: most - 1], Line2D([], [], linestyle="none")]
        labels = [*labels[: most - 1], f"and {rest} more"]
    for each in part.axes:
        _small(each, height - 0.6 - LINE * (1 + len(handles)))
    room = style.width_of(ax) - MARGIN
    longest = max((style.inches(label, SMALL) for label in labels), default=room)
    size = max(min(SMALL, SMALL * room / longest), SMALLEST)
    made = ax.legend(
        handles, [_cut(label, size, room) for label in labels], title=title, loc="upper left",
        title_fontproperties={"size": style.FONT, "weight": "bold"}, alignment="left", frameon=False, borderpad=0,
        bbox_to_anchor=(0.02, 1.0), bbox_transform=part.transSubfigure, borderaxespad=0.0, fontsize=size,
        handlelength=1.8, labelspacing=0.2,
    )  # fmt: skip
    made.set_in_layout(False)
    for text in (*made.get_texts(), made.get_title()):
        text.set_color(INK)
    return float(made.get_window_extent().height / part.dpi)


def _small(ax: Axes, height: float) -> None:
    """Small words and few ticks; a label that is longer than so many inches in two lines."""
    for axis in (ax.xaxis, ax.yaxis):
        axis.label.set_fontsize(SMALL + 1)
        axis.set_tick_params(labelsize=SMALL + 0.5, which="both")
        if len(axis.get_majorticklocs()[1:-1]) > 1:  # at this size nobody counts the others, and they take time
            axis.set_minor_locator(NullLocator())
    label = ax.yaxis.label
    if style.inches(label.get_text(), SMALL + 1) > height:
        label.set_text(label.get_text().replace(" [", "\n["))
    for text in ax.texts:
        text.set_fontsize(SMALL)


def _cut(label: str, size: float, room: float) -> str:
    """A label as far as there is room; one with a formula is left whole."""
    while "$" not in label and len(label) > 4 and style.inches(label, size) > room:
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
