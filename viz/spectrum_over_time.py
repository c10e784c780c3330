"""The spectral density of a run over its steps, as a heat map."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from losscope.probes import Run

from . import style
from .eigenvalue_axis import density_label, eigenvalue_axis, least_density
from .marks import mark_unmeasured
from .sharpness import _title
from .spectra import Spectra, spectra
from .style import ORANGE, PAPER, VERMILLION

__all__ = ["plot_spectrum_over_time"]

BINS = 300
PER_INCH = 45
"""Columns of the figure's width, of very many measurements: finer than the eye tells apart."""


def plot_spectrum_over_time(
    run: Run,
    ax: Axes | None = None,
    *,
    player: str | None = None,
    logarithmic: bool | None = None,
    size: tuple[float, float] = (6.4, 4.2),
) -> Axes:
    """Draw the spectral density over the optimizer's steps: a column for each measurement, dark where it is dense.

    A column reaches half-way to its neighbours; one that could not be measured stays empty and is marked. Dots are
    the largest eigenvalues, where the records have them one by one; the dashed line is the optimizer's stability
    threshold.

    Args:
        run: a run with probe ``spectrum``.
        ax: where to draw; None makes a figure.
        player: which player; default: the first.
        logarithmic: whether eigenvalues are on a logarithmic axis; None decides by how far the outermost are from
            the rest.
        size: width and height in inches of the figure made.

    Returns:
        The Axes drawn on; the colour bar has its own.

    Raises:
        RunError: if the run has no such player.

    Example:
        >>> from losscope.probes import Run
        >>> from losscope.viz import plot_spectrum_over_time
        >>> plot_spectrum_over_time(Run.from_records({"players": {}}, [])).get_xlabel()
        'optimizer step'
    """
    own = ax is None
    if ax is None:
        figure, axes = style.new_figure((1,), size)
        style.title(figure, _title(run, player))
        ax = axes[0]
        ax.grid(visible=False)
    found = spectra(run, player, logarithmic=logarithmic, most=int(PER_INCH * style.width_of(ax)))
    if found is None:
        style.say(ax, "no spectrum recorded")
        style.step_axis(ax, np.array([]))
        return ax
    _draw(ax, found)
    mark_unmeasured(ax, found.missing, "spectrum")
    style.step_axis(ax, found.steps)
    ax.set_ylabel(r"eigenvalue $\lambda$ [loss / parameter$^2$]")
    style.legend(ax, outside=own)
    return ax


def _draw(ax: Axes, found: Spectra) -> None:
    edges, image = found.image(BINS)
    top = float(image.max())
    least = least_density(found.axis, found.span, found.densities[0].size, top)
    every = np.union1d(found.steps, np.array(found.missing.nonfinite + found.missing.errors, dtype=int))
    columns = np.full((len(edges) - 1, len(every)), np.nan)
    columns[:, np.searchsorted(every, found.steps)] = np.maximum(image, least)
    mesh = ax.pcolormesh(
        _between(every), edges, columns, norm=LogNorm(least, top), cmap=colormaps["Blues"], rasterized=True, zorder=1,
        gid="density",
    )  # fmt: skip
    eigenvalue_axis(ax.yaxis, found.axis, found.span)
    _draw_ranked(ax, found)
    _draw_threshold(ax, found)
    style.colour_bar(ax, mesh, density_label(found.axis, "parameter$^2$ / loss"))


def _between(steps: np.ndarray) -> np.ndarray:
    """Edges of the columns of these steps, half-way between neighbours."""
    gaps = np.diff(steps) if len(steps) > 1 else np.ones(1)
    return np.concatenate(([steps[0] - gaps[0] / 2], (steps[1:] + steps[:-1]) / 2, [steps[-1] + gaps[-1] / 2]))


def _draw_ranked(ax: Axes, found: Spectra) -> None:
    """A dot for each of the largest eigenvalues."""
    if not found.ranked:
        return
    steps, _, values = zip(*found.ranked, strict=True)
    room = 72 * 0.7 * style.width_of(ax) / len(found.steps)  # points to a column
    ax.plot(
        steps, values, linestyle="none", marker="o", markersize=min(max(room / 2, 1.8), 4.0), color=ORANGE,
        markeredgecolor=PAPER, markeredgewidth=0.5 if room > 5 else 0, zorder=3,
        label="largest eigenvalues, one by one", gid="largest", rasterized=True,
    )  # fmt: skip


def _draw_threshold(ax: Axes, found: Spectra) -> None:
    look: dict[str, Any] = {"color": VERMILLION, "linewidth": 1.2, "linestyle": (0, (5, 2))}
    if np.isfinite(found.shown_threshold).any():
        ax.plot(found.steps, found.shown_threshold, **look, zorder=4, label="stability threshold", gid="threshold")
    elif np.isfinite(found.threshold).any():
        last = style.figure_number(float(found.threshold[np.isfinite(found.threshold)][-1]))
        ax.plot([], [], **look, label=f"stability threshold {last}: off the axis", gid="threshold-off")
