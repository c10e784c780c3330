"""Small multiples: one panel for each run, quantity, player or layer, on shared axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from losscope.landscape import SettingError
from losscope.probes import Run

from . import style
from .layer_grid import layer_grid
from .names import distinct, shortened
from .overlay import _draw_runs, _draw_thresholds, _lacking, _legend, _scale, in_lines
from .overlay_lines import Line, Look, lines_of
from .style import GRID, INK, MUTED

__all__ = ["plot_multiples"]

WAYS = ("run", "quantity", "player", "layer")
MOST = 48
"""Panels in one figure."""
PANEL = (2.3, 1.7)
"""Width and height in inches of a panel."""
NARROWEST = 1.4
"""Inches of width of a panel that is beside others."""
LETTERS_PER_INCH = 8
"""Of a panel's title."""


@dataclass(frozen=True, eq=False)
class _Panel:
    """What one panel shows.

    Attributes:
        title: above it.
        lines: drawn in colour.
        behind: drawn in grey, to compare with.
        label: of its y-axis.
    """

    title: str
    lines: list[Line]
    behind: list[Line]
    label: str


def plot_multiples(
    runs: Run | Sequence[Run] | Mapping[str, Run],
    quantity: str | Sequence[str] = "sharpness",
    *,
    by: str = "run",
    player: str | None = None,
    columns: int | None = None,
    size: tuple[float, float] | None = None,
) -> np.ndarray:
    """Draw a panel for each run, quantity, player or layer, all on the same axes.

    By run, each panel has the others in grey behind it. By player, quantity or layer, each has a line for each run, of
    the same colour in all. Quantities have y-axes of their own; the steps are shared in any case.

    Args:
        runs: one run, several, or several by name.
        quantity: as in `plot_overlay`; several where ``by="quantity"``; of no account where ``by="layer"``, which draws
            what probe ``layer_traces`` recorded.
        by: ``"run"``, ``"quantity"``, ``"player"`` or ``"layer"``.
        player: which player of each run; default: all of them.
        columns: how many panels are beside each other.
        size: width and height in inches.

    Returns:
        The panels' Axes in their order.

    Raises:
        SettingError: if there is no run, there are more than 48 panels, or an argument means nothing.

    Example:
        >>> from losscope.probes import Record, Run
        >>> from losscope.viz import plot_multiples
        >>> records = [Record(t, "model", "sharpness", value=1.0 + t) for t in range(9)]
        >>> runs = [Run.from_records({"players": {"model": {}}}, records) for _ in range(3)]
        >>> [ax.get_title(loc="left") for ax in plot_multiples(runs)]
        ['run (1)', 'run (2)', 'run (3)']
    """
    if by not in WAYS:
        raise SettingError(f"by must be one of {', '.join(map(repr, WAYS))}; got {by!r}")
    if columns is not None and (isinstance(columns, bool) or not isinstance(columns, int) or columns < 1):
        raise SettingError(f"columns must be a whole number of at least 1, got {columns!r}")
    names = [quantity] if isinstance(quantity, str) else list(quantity)
    if not names or (len(names) > 1 and by != "quantity"):
        raise SettingError(f'several quantities, one or more, go with by="quantity"; got {quantity!r} and by={by!r}')
    panels = _panels(runs, names, by, player)
    if len(panels) > MOST:
        raise SettingError(f"{len(panels)} panels do not fit; {MOST} do: pass fewer runs, quantities, or one player")
    fitting = len(panels) if size is None else max(int(size[0] / NARROWEST), 1)
    across = columns or min(_columns(len(panels)), fitting)
    rows = math.ceil(len(panels) / across)
    figure = style.blank(size or (max(PANEL[0] * across, 4.0) + 0.6, PANEL[1] * rows + 0.9))
    grid = figure.subplots(rows, across, sharex=True, sharey=by != "quantity", squeeze=False).ravel()
    for unused in grid[len(panels) :]:
        unused.remove()
    axes = grid[: len(panels)]
    every = [line for panel in panels for line in panel.lines if line.found]
    entries: dict[str, Any] = {}
    for index, (ax, panel) in enumerate(zip(axes, panels, strict=True)):
        style.dress(ax)
        _draw(ax, panel, entries, by, every)
        below, first = index + across >= len(panels), index % across == 0 or by == "quantity"
        _label(ax, panel, below=below, first=first)
    if every:
        style.step_axis(axes[-1], np.concatenate([line.found.data.steps for line in every]))
        for ax in axes:
            ax.set_xlabel("optimizer step" if ax.get_xlabel() else "")
    if entries:
        _legend(axes[0], list(entries.values()), own=True)
    return np.asarray(axes, dtype=object)


def _columns(count: int) -> int:
    """How many panels beside each other: about as many as below each other, with few places empty.

    Example:
        >>> from losscope.viz.multiples import _columns
        >>> [_columns(count) for count in (1, 2, 3, 4, 5, 6, 12, 48)]
        [1, 2, 3, 2, 3, 3, 4, 8]
    """
    about = math.ceil(math.sqrt(1.3 * count))
    choices = range(min(2, count), min(about + 1, count) + 1)
    near = [each for each in choices if abs(each - about) <= 1] or [count]
    return min(near, key=lambda each: (-count % each, abs(each - about)))


def _panels(runs: Any, names: Sequence[str], by: str, player: str | None) -> list[_Panel]:
    lines = lines_of(runs, names[0], player, "plot_multiples")
    if by == "run":
        return [_Panel(line.name, [line], [other for other in lines if other is not line], names[0]) for line in lines]
    if by == "quantity":
        return [_Panel(name, lines_of(runs, name, player, "plot_multiples"), [], name) for name in names]
    several = list(dict.fromkeys(line.run for line in lines))
    if by == "player":
        players = list(dict.fromkeys(each for run in several for each in (run.players or ["model"])))
        wanted = [each for each in players if player in (None, each)]
        return [_Panel(each, lines_of(runs, names[0], each, "plot_multiples"), [], names[0]) for each in wanted]
    layers = list(dict.fromkeys(name for line in lines for name in layer_grid(line.run, line.player).names))
    titles = shortened(distinct(layers), 24)
    found = [lines_of(runs, f"{name}/trace", player, "plot_multiples") for name in layers]
    panels = [_Panel(t, each, [], "trace") for t, each in zip(titles, found, strict=True)]
    return panels or [_Panel("", lines_of(runs, "layer_traces", player, "plot_multiples"), [], "trace")]


def _draw(ax: Axes, panel: _Panel, entries: dict[str, Any], by: str, every: Sequence[Line]) -> None:
    """The lines of a panel, and what the legend of all is to say of them."""
    drawn = [line for line in panel.lines if line.found]
    if scaled := drawn if by == "quantity" else every:
        _scale(ax, scaled)
    single = by == "run"
    for other in panel.behind:
        if other.found:
            data = other.thinned
            (handle,) = ax.plot(
                data.steps, data.value, color=MUTED, alpha=0.35, linewidth=0.7, zorder=1.5, gid="behind"
            )
            entries["behind"] = Line2D(
                [], [], color=handle.get_color(), alpha=0.6, linewidth=0.7, label="the other runs"
            )
    looks = [Look(0 if single else index, 1 if single else len(panel.lines)) for index in range(len(panel.lines))]
    handles = _draw_runs(ax, panel.lines, looks)
    limits = _draw_thresholds(ax, [(line, look) for line, look in zip(panel.lines, looks, strict=True) if line.found])
    if not single:
        alone = len(panel.lines) == 1
        names = [line.name for line in drawn] if len(handles) == len(drawn) else [h.get_label() for h in handles]
        for name, handle in zip(names, handles, strict=True):
            handle.set_label(name)  # what is lost differs from panel to panel
            entries |= {} if alone else {str(name): handle}
    if not drawn:
        ax.text(0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center", va="center", color=MUTED, gid="nothing")
    elif by == "quantity":
        lacking = _lacking([line for line in panel.lines if not line.found], panel.label)
        entries |= {str(word.get_label()): word for word in lacking}
    for limit in limits:
        limit.set(color=INK, label="threshold")
        entries["threshold"] = limit


def _label(ax: Axes, panel: _Panel, *, below: bool, first: bool) -> None:
    """The panel's title; labels where no neighbour has them."""
    room = int(LETTERS_PER_INCH * style.width_of(ax))
    ax.set_title(style.plain(panel.title, min(room, 30)), loc="left", fontsize=style.FONT, fontweight="bold", color=INK)
    ax.grid(axis="x", color=GRID, linewidth=0.4)
    ax.tick_params(labelsize=style.FONT - 2, which="both")
    label = next((line.found.label for line in panel.lines if line.found), panel.lines[0].found.label)
    ax.set_ylabel(in_lines(label) if first else "", fontsize=style.FONT - 2)
    ax.set_xlabel("optimizer step" if below else "", fontsize=style.FONT - 1.5)
    if below:
        ax.tick_params(labelbottom=True)
