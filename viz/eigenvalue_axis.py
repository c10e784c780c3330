"""Axes of eigenvalues and of their density, with ticks that can be read."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axis import XAxis, YAxis
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from . import style
from .loss_scale import said
from .smoothing import Axis

__all__ = ["density_label", "eigenvalue_axis", "least_density", "power", "readable_ticks"]

_DECADES = 7


def density_label(axis: Axis, unit: str) -> str:
    """What a density over such an axis is, with its unit on a linear one."""
    return "share of eigenvalues per decade" if axis.logarithmic else rf"density $\phi(\lambda)$ [{unit}]"


def least_density(axis: Axis, span: tuple[float, float], size: int, top: float) -> float:
    """The least density to draw: a fraction of one eigenvalue spread over the whole axis, at most 7 decades down.

    Args:
        axis: how eigenvalues are placed.
        span: ends of the axis, on display.
        size: of how many eigenvalues.
        top: the largest density.
    """
    return max(0.3 * axis.unit / (size * (span[1] - span[0])), top / 10**_DECADES)


def eigenvalue_axis(shown: XAxis | YAxis, axis: Axis, span: tuple[float, float]) -> None:
    """Make an axis of a plot one of eigenvalues.

    Args:
        shown: ``ax.xaxis`` or ``ax.yaxis``.
        axis: how eigenvalues are placed.
        span: its ends, on display.
    """
    ax = shown.axes
    scale, limit = (ax.set_xscale, ax.set_xlim) if shown.axis_name == "x" else (ax.set_yscale, ax.set_ylim)
    wide = style.width_of(ax) > 5
    ticks = readable_ticks(axis, span, 0.065 if wide else 0.14) if axis.logarithmic else []
    if axis.logarithmic:
        scale("asinh", linear_width=axis.linear)
    if len(ticks) > 1:
        plain = all(1e-2 <= abs(tick) <= 1e2 for tick in ticks if tick)
        shown.set_major_locator(FixedLocator(ticks))
        shown.set_major_formatter(FuncFormatter(lambda v, _: _signed(v, f"{abs(v):g}") if plain else power(v)))
    else:
        ends = axis.value(np.array(span))
        digits = min(max(5, math.ceil(math.log10(np.abs(ends).max() / np.ptp(ends))) + 2), 12) if np.ptp(ends) else 5
        short = digits == 5 and 1e-3 <= max(map(abs, axis.value(np.array(span)))) < 1e4
        nbins = (8 if wide else 5) if short else (6 if wide else 3)
        shown.set_major_locator(MaxNLocator(nbins=nbins, steps=[1, 2, 2.5, 5, 10]))
        shown.set_major_formatter(FuncFormatter(lambda v, _: said(v, digits)))
    shown.set_minor_locator(NullLocator())
    limit(*(float(v) for v in axis.value(np.array(span))))


def readable_ticks(axis: Axis, span: tuple[float, float], apart: float) -> list[float]:
    """Zero and powers of ten on both sides of it, no closer on display than a share of it.

    Example:
        >>> from losscope.viz.eigenvalue_axis import readable_ticks
        >>> from losscope.viz.smoothing import Axis
        >>> readable_ticks(Axis(0.01), (-3.0, 8.0), 0.06)
        [-0.1, -0.01, 0.0, 0.01, 0.1, 1.0, 10.0]
    """
    gap = apart * (span[1] - span[0])
    first = math.ceil(math.log10(float(axis.value(np.array(gap)))))
    every = max(math.ceil(gap / axis.unit), 1)
    low, high = axis.value(np.array(span))
    ticks = [0.0]
    for sign, end in ((-1.0, -low), (1.0, high)):
        last = math.floor(math.log10(end)) if end > 0 else first - 1
        ticks += [sign * float(f"1e{exponent}") for exponent in range(first, last + 1, every)]
    return sorted(tick for tick in ticks if low <= tick <= high)


def power(value: float) -> str:
    """Zero, or a power of ten with its sign, in mathematics."""
    if value == 0 or abs(value) == 1:
        return _signed(value, f"{abs(value):g}")
    return _signed(value, rf"$10^{{{round(math.log10(abs(value)))}}}$")


def _signed(value: float, magnitude: str) -> str:
    return "\N{MINUS SIGN}" + magnitude if value < 0 else magnitude
