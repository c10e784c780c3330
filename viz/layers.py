"""The curvature of every layer of a run over its steps, as a heat map."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm, Normalize, SymLogNorm
from matplotlib.figure import Figure

from losscope.probes import Run

from . import style
from .layer_grid import LayerGrid, layer_grid
from .marks import mark_unmeasured
from .names import shortened
from .sharpness import _title
from .spectrum_over_time import _between
from .style import GRID, MUTED

__all__ = ["plot_layers"]

ROW = 0.16
"""Height in inches of a layer's row with its name."""
LONGEST = 26
"""Letters of a layer's name."""
MOST_DOTS = 60
"""In a row."""


def plot_layers(
    run: Run, ax: Axes | None = None, *, player: str | None = None, size: tuple[float, float] | None = None
) -> Axes:
    r"""Draw the trace of every layer's own block of the Hessian: a row for each layer, the model's first at the top.

    Colours are on a logarithmic scale, or, where some traces are negative beyond their intervals, on one that is
    logarithmic on both sides of zero. Cells with a dot are those whose interval holds zero; pale grey ones have a value
    of zero or below on a scale that has none. What was not measured stays empty.

    Args:
        run: a run with probe ``layer_traces``.
        ax: where to draw; None makes a figure.
        player: which player; default: the first.
        size: width and height in inches of the figure made; by default it grows with the layers.

    Returns:
        The Axes drawn on; the colour bar has its own.

    Raises:
        RunError: if the run has no such player.

    Example:
        >>> from losscope.probes import Record, Run
        >>> from losscope.viz import plot_layers
        >>> values = {f"{name}/trace{end}": 2.0 for name in ("0", "2") for end in ("", "_low", "_high")}
        >>> records = [Record(step, "model", "layer_traces", value=4.0, values=values) for step in (0, 10)]
        >>> ax = plot_layers(Run.from_records({"players": {"model": {}}}, records))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['0', '2']
    """
    grid = layer_grid(run, player)
    own = ax is None
    if ax is None:
        figure, axes = style.new_figure((1,), size or (6.4, min(max(2.6, 1.5 + ROW * len(grid.names)), 9.0)))
        style.title(figure, _title(run, player))
        ax = axes[0]
    ax.grid(visible=False)
    if not np.isfinite(grid.value).any():
        style.say(ax, "no layers recorded" if not grid.names else "no finite trace recorded")
        mark_unmeasured(ax, grid.missing, "trace")
        style.step_axis(ax, grid.steps)
        style.legend(ax, outside=own)
        return ax
    _draw(ax, grid)
    ax.set_ylabel("layer, from the input" if own else "layer")
    mark_unmeasured(ax, grid.missing, "trace")
    style.step_axis(ax, grid.steps)
    style.legend(ax, outside=own)
    return ax


def _draw(ax: Axes, grid: LayerGrid) -> None:
    every = np.union1d(grid.steps, np.array(grid.missing.nonfinite + grid.missing.errors, dtype=int))
    columns = np.full((len(grid.names), len(every)), np.nan)
    columns[:, np.searchsorted(every, grid.steps)] = grid.value
    norm, colours = scale(grid)
    if not grid.negative:
        below = np.where(columns <= 0, 0.0, np.nan)
        edges = (_between(every), np.arange(len(grid.names) + 1) - 0.5)
        ax.pcolormesh(
            *edges, below, cmap=ListedColormap([GRID]), vmin=0, vmax=1, rasterized=True, zorder=0.9, gid="below"
        )
        if np.isfinite(below).any():
            ax.plot([], [], linestyle="none", marker="s", markersize=6, color=GRID, label="zero or below")
        columns = np.where(columns > 0, np.maximum(columns, norm.vmin or 0), np.nan)
    mesh = ax.pcolormesh(
        _between(every), np.arange(len(grid.names) + 1) - 0.5, columns, norm=norm, cmap=colormaps[colours],
        rasterized=True, zorder=1, gid="layers",
    )  # fmt: skip
    ax.set_ylim(len(grid.names) - 0.5, -0.5)
    _name_rows(ax, grid.names)
    _mark(ax, grid)
    style.colour_bar(ax, mesh, r"$\mathrm{tr}(H_{\ell\ell})$ [loss / parameter$^2$]")


def scale(grid: LayerGrid) -> tuple[Normalize, str]:
    """The scale of the colours and their name: of one sign, or of two about a white zero."""
    least, top = grid.span
    if grid.negative:
        return SymLogNorm(least, vmin=-top, vmax=top, base=10), "PuOr_r"
    return LogNorm(least, top), "Blues"


def _name_rows(ax: Axes, names: list[str]) -> None:
    """The layers' names, of many only some."""
    figure = ax.get_figure(root=True)
    height = ax.get_position().height * (figure.get_figheight() if isinstance(figure, Figure) else 4.8)
    every = max(int(np.ceil(len(names) * ROW / max(height, ROW))), 1)
    room = LONGEST if style.width_of(ax) > 5 else LONGEST // 2
    ax.set_yticks(range(0, len(names), every), [style.plain(n) for n in shortened(names, room)[::every]])
    ax.tick_params(axis="y", length=2)


def _mark(ax: Axes, grid: LayerGrid) -> None:
    """A dot in every cell whose sign is not known."""
    shown = np.zeros(len(grid.steps), dtype=bool)
    shown[:: max(len(grid.steps) // MOST_DOTS, 1)] = True
    rows, columns = np.nonzero(grid.uncertain & shown)
    if len(rows):
        ax.plot(
            grid.steps[columns], rows, linestyle="none", marker="o", color=MUTED, markeredgewidth=0, zorder=2,
            markersize=2.2 if len(grid.names) < 40 else 1.2, label="the interval holds zero", gid="uncertain",
        )  # fmt: skip
