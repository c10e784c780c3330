"""The spectral density of the Hessian at one step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from losscope.landscape import SettingError, SpectralDensity
from losscope.landscape.outliers import Outliers
from losscope.probes import Record, Run

from . import series, style
from .eigenvalue_axis import density_label, eigenvalue_axis, least_density
from .sharpness import _title
from .smoothing import Axis, Smoothed, smooth
from .style import BLUE, GRID, MUTED, ORANGE, PURPLE, VERMILLION

__all__ = ["plot_spectrum"]

EIGENVALUE, UNIT = r"eigenvalue $\lambda$", r" [loss / parameter$^2$]"
BLURRED = 0.02
"""Standard deviation of a peak, as a share of the axis, from which its shape is seen rather than the density's."""
NEAR_ZERO = 1e-3
"""Share of the largest magnitude within which an eigenvalue counts as near zero."""


def plot_spectrum(
    shown: SpectralDensity | Run,
    ax: Axes | None = None,
    *,
    step: int | None = None,
    player: str | None = None,
    logarithmic: bool | None = None,
    outliers: Outliers | None = None,
    size: tuple[float, float] = (6.4, 4.0),
) -> Axes:
    r"""Draw a spectral density over its eigenvalues, with its error band and the eigenvalues known one by one.

    The density is logarithmic, so that outliers are seen beside the bulk: on a linear axis it is counted per unit of
    the eigenvalue, on a logarithmic one per decade of its magnitude. Each node is drawn as wide as the quadrature
    leaves its place open, and no narrower than a 300th of the axis (see `smoothing`); nothing else is smoothed, and
    the area under the curve is 1. The band is the interval at each place by itself for what random starts add to or
    take from it. Where the shape of single nodes is what is seen, the ground is grey. Eigenvalues that were found one
    by one have a tick each.

    Args:
        shown: a spectral density, or a run with probe ``spectrum``.
        ax: where to draw; None makes a figure.
        step: of a run, at which step; default: the last one.
        player: of a run, which player; default: the first.
        logarithmic: whether the axis of eigenvalues is logarithmic in their magnitude, on both sides of zero, and
            linear close to it; None decides by how far the outermost are from the rest.
        outliers: those of the density (`losscope.landscape.outliers`), to be marked beyond the bulk's edge; a run's
            record has its own.
        size: width and height in inches of the figure made.

    Returns:
        The Axes drawn on.

    Raises:
        SettingError: if it is neither a density nor a run.
        RunError: if the run has no such player, or no spectrum of that step.

    Example:
        >>> import torch
        >>> from losscope.landscape import spectral_density
        >>> from losscope.viz import plot_spectrum
        >>> density = spectral_density(torch.diag(torch.linspace(-1.0, 3.0, 500)), seed=0)
        >>> plot_spectrum(density).get_yscale()
        'log'
    """
    if not isinstance(shown, SpectralDensity | Run):
        raise SettingError(
            f"plot_spectrum draws a SpectralDensity (of spectral_density) or a Run (of a folder: Run(path)), got "
            f"{type(shown).__name__}"
        )
    own = ax is None
    record = None
    if isinstance(shown, Run):
        run, records = shown, shown.select("spectrum", player)
        if records or step is not None:
            shown = run.spectrum(step, player)
            record = [r for r in records if step is None or r.step == step][-1]
    if ax is None:
        figure, axes = style.new_figure((1,), size)
        ax = axes[0]
        if record is not None:
            style.title(figure, f"{_title(run, player)}, step {record.step:,}")
        elif isinstance(shown, Run):
            style.title(figure, _title(run, player))
    if isinstance(shown, Run):
        ax.set_xlabel(EIGENVALUE + UNIT)
        style.say(ax, "no spectrum recorded")
        ax.set_xticks([])
        return ax
    curve = smooth(shown, Axis.of(shown, logarithmic=logarithmic))
    eigenvalue_axis(ax.xaxis, curve.axis, curve.span)
    ax.set_xlabel(EIGENVALUE + (UNIT if record is not None else ""))
    _draw_density(ax, shown, curve, "parameter$^2$ / loss" if record is not None else "1 / eigenvalue")
    _draw_unresolved(ax, curve)
    _say_shares(ax, shown)
    _draw_known(ax, shown)
    if record is not None:
        _draw_threshold(ax, record, curve)
        _draw_edge(ax, record.values.get("bulk_edge"), int(record.values.get("outliers") or 0), "above")
    for side in () if outliers is None else (outliers.upper, outliers.lower):
        _draw_edge(ax, side.edge, side.count, side.side)
    style.legend(ax, outside=own)
    return ax


def _draw_density(ax: Axes, density: SpectralDensity, curve: Smoothed, unit: str) -> None:
    top = float(curve.density.max())
    floor = least_density(curve.axis, curve.span, density.size, top)
    ax.axvline(0, color=MUTED, linewidth=0.8, zorder=1, gid="zero")
    drawn = np.maximum(curve.density, floor / 100)  # a logarithmic axis has no zero
    ax.plot(
        curve.values,
        drawn,
        color=BLUE,
        linewidth=1.2,
        zorder=3,
        label=_words(density, ax),
        gid="density",
    )
    if (band := curve.band) is not None:
        low, high = (np.maximum(end, floor / 100) for end in band)
        starts = f"{curve.starts} random start" + ("s" if curve.starts > 1 else "")
        ax.fill_between(
            curve.values, low, high, color=BLUE, alpha=0.22, linewidth=0, zorder=2,
            label=f"{100 * curve.confidence:g} % interval, {starts}", gid="band",
        )  # fmt: skip
    ax.set_yscale("log")
    ax.set_ylim(floor, top * (top / floor) ** 0.12)
    ax.yaxis.set_major_locator(LogLocator(numticks=9))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel(density_label(curve.axis, unit))


def _words(density: SpectralDensity, ax: Axes) -> str:
    known = 0 < density.wasserstein < math.inf and style.width_of(ax) > 5
    error = rf", $W_1$ error $\leq$ {style.figure_number(density.wasserstein, 2)}" if known else ""
    return f"{density.size:,} eigenvalue{'s' if density.size != 1 else ''}{error}"


def _draw_unresolved(ax: Axes, curve: Smoothed) -> None:
    """Shade where a peak is so wide that its own shape is what is seen."""
    edges, label = curve.axis.value(curve.edges), "not resolved further"
    for first, end in series.runs_of((curve.blur > BLURRED) & (curve.density > 1e-3 * curve.density.max())):
        ax.axvspan(edges[first], edges[end], color=GRID, alpha=0.6, linewidth=0, zorder=0, label=label, gid="blurred")
        label = "_"


def _say_shares(ax: Axes, density: SpectralDensity) -> None:
    """The shares below, near and above zero in words."""
    cut = NEAR_ZERO * max(map(abs, density.bounds))
    near, above = density.mass(-cut, cut).value, 1 - density.mass(-math.inf, cut).value
    below = 1 - density.mass(-cut, math.inf).value
    if style.width_of(ax) > 5:
        c = style.figure_number(cut, 2).replace("$", "")
        ends = (rf"< -{c}", rf"| \leq {c}", rf"> {c}") if cut > 0 else ("< 0", "| = 0", "> 0")
        words = (
            rf"$\lambda {ends[0]}$: {below:.0%}    $|\lambda{ends[1]}$: {near:.0%}    $\lambda {ends[2]}$: {above:.0%}"
        )
    else:
        words = f"below, near, above zero: {100 * below:.0f}, {100 * near:.0f}, {100 * above:.0f} %"
    ax.text(
        0.99, 0.98, words, transform=ax.transAxes, ha="right", va="top", color=MUTED, fontsize=style.FONT - 1, zorder=6,
        path_effects=style.halo(ax), gid="shares",
    )  # fmt: skip


def _draw_known(ax: Axes, density: SpectralDensity) -> None:
    if not density.starts or not len(density.deflated):
        return
    values = density.deflated.numpy()
    ax.plot(
        values, np.full(len(values), 0.025), transform=ax.get_xaxis_transform(), linestyle="none", marker="|",
        markersize=9, markeredgewidth=1.2, color=ORANGE, zorder=5, gid="known",
        label=f"{len(values)} of them found one by one",
    )  # fmt: skip


def _draw_edge(ax: Axes, edge: float | None, count: int, side: str) -> None:
    if edge is None or not math.isfinite(edge) or not count:
        return
    words = f"edge of the bulk, {count} {'outlier' if count == 1 else 'outliers'} {side}"
    ax.axvline(edge, color=PURPLE, linewidth=1.2, linestyle="-.", zorder=2.6, label=words, gid="edge")


def _draw_threshold(ax: Axes, record: Record, curve: Smoothed) -> None:
    threshold = record.values.get("threshold")
    if threshold is None or not math.isfinite(threshold):
        return
    if not curve.values[0] < threshold < curve.values[-1]:
        look: dict[str, Any] = {"color": VERMILLION, "linewidth": 1.2, "linestyle": (0, (5, 2))}
        ax.plot([], [], **look, label=f"threshold {style.figure_number(threshold)}: off the axis", gid="threshold-off")
        return
    ax.axvline(threshold, color=VERMILLION, linewidth=1.2, linestyle=(0, (5, 2)), zorder=2.5, gid="threshold")
    words = f"threshold {style.figure_number(threshold)}"
    ax.annotate(
        words, (threshold, 0.89), xycoords=("data", "axes fraction"), xytext=(-3, 0), textcoords="offset points",
        ha="right", va="top", rotation=90, color=VERMILLION, fontsize=style.FONT - 1, path_effects=style.halo(ax),
        gid="threshold-label",
    )  # fmt: skip
