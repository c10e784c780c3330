"""On what scale the values of a slice are shown, and the levels of its contours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.ticker import MaxNLocator

from losscope.landscape import SettingError

from . import style

__all__ = ["SCALES", "Levels", "LossScale", "given_levels", "level_text", "levels_of", "loss_scale", "said"]

Extend = Literal["neither", "min", "max", "both"]
SCALES = ("auto", "linear", "log")
OUTERMOST = 0.05
"""Share of the values that must not take nearly all of the colours for themselves."""
INNERMOST = 0.01
"""The same at the lower end of a logarithmic scale, where a minimum is a small part of the picture."""
LADDERS = ((1.0, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))
"""Steps within a decade, from fine to coarse."""


@dataclass(frozen=True)
class LossScale:
    """How values are shown.

    Attributes:
        logarithmic: whether by their logarithm.
        base: what is taken off before the logarithm: 0 where all are positive, else the lowest of them.
        low: least value to tell apart, after the base is taken off.
        high: largest value to tell apart; those beyond it are few and far away.
        below: whether values lie below ``low``.
        above: whether values lie above ``high``.
    """

    logarithmic: bool
    base: float
    low: float
    high: float
    below: bool = False
    above: bool = False

    def shown(self, values: np.ndarray) -> np.ndarray:
        """Values without the base, on which the levels are."""
        return values - self.base

    def label(self, name: str) -> str:
        """What is shown, in words: ``"loss"``, or ``"loss above its lowest, −5.2"``."""
        return name if self.base == 0 else f"{name} above its lowest, {said(self.base, 4)}"


def loss_scale(values: np.ndarray, scale: str = "auto") -> LossScale:
    """Decide on a scale for values, of which those that are not finite do not count.

    Positive values are shown by their logarithm where they spread by more than 20; others where half of them lie
    within a 20th of the range from the lowest: then as what they are above it. Where a 20th of the values would take
    nine tenths of a linear scale, or two decades of a logarithmic one, they are beyond its end.

    Raises:
        SettingError: if there is no such scale.

    Example:
        >>> import numpy as np
        >>> from losscope.viz.loss_scale import loss_scale
        >>> loss_scale(np.array([1e-3, 0.1, 5.0])).logarithmic
        True
        >>> loss_scale(np.array([-3.0, -1.0, 2.0])).logarithmic
        False
    """
    if scale not in SCALES:
        raise SettingError(f"scale must be one of {', '.join(map(repr, SCALES))}; got {scale!r}")
    finite = values[np.isfinite(values)]
    if not len(finite):
        return LossScale(False, 0.0, 0.0, 1.0)
    least, most = float(finite.min()), float(finite.max())
    if scale == "auto":
        middle = float(np.median(finite))
        wide = most > style.WIDE * least if least > 0 else most - least > style.WIDE * (middle - least)
        scale = "log" if wide and most > least else "linear"
    if scale == "log" and most > least:
        return _logarithmic(finite, 0.0 if least > 0 else least)
    low, high = (float(q) for q in np.quantile(finite, (OUTERMOST, 1 - OUTERMOST)))
    high = high if least < high and most - least > 10 * (high - least) else most
    low = low if low < most and most - least > 10 * (most - low) else least
    return LossScale(False, 0.0, low, high, low > least, high < most)


def _logarithmic(finite: np.ndarray, base: float) -> LossScale:
    above = finite[finite > base] - base
    most, top = float(above.max()), float(np.quantile(above, 1 - OUTERMOST))
    high = top if most > 100 * top else most
    least, bottom = float(above.min()), float(np.quantile(above, INNERMOST))
    low = bottom if bottom > 100 * least else max(least, 1e-6 * high if base else 0.0)
    return LossScale(True, base, low, high, base != 0 or low > least, high < most)


@dataclass(frozen=True, eq=False)
class Levels:
    """Contour levels.

    Attributes:
        values: ascending, at least two; with the base taken off.
        extend: ``"neither"``, ``"min"``, ``"max"`` or ``"both"``: where values lie beyond them.
        unit: power of ten that the texts leave out, for the label of the scale.
        texts: of each level.
    """

    values: np.ndarray
    extend: Extend
    unit: int
    texts: tuple[str, ...]

    def label(self, words: str) -> str:
        """The words, with the power of ten that the texts leave out."""
        return words if self.unit == 0 else rf"{words} [$10^{{{self.unit}}}$]"


def levels_of(scale: LossScale, most: int = 11) -> Levels:
    """Round numbers over the range of a scale.

    Args:
        scale: the scale.
        most: about how many at most.
    """
    if scale.high > scale.low:
        values = (_ladder if scale.logarithmic else _even)(scale.low, scale.high, most)
        ends = np.array([scale.low, scale.high])
    else:
        half = 1e-3 * abs(scale.low) or 1e-3
        values = ends = np.array([scale.low - half, scale.low + half])
    if scale.above:
        values = values[values <= scale.high * (1 + 1e-9)]
    if scale.below:
        values = values[values >= scale.low * (1 - 1e-9)]
    return given_levels(values if len(values) > 1 else ends, scale)


def given_levels(values: np.ndarray, scale: LossScale) -> Levels:
    """Levels that are known already, with the base taken off; says where values lie beyond them."""
    ends = (scale.below or scale.low < values[0], scale.above or scale.high > values[-1])
    extend: Extend = "neither"
    if any(ends):
        extend = "both" if all(ends) else "min" if ends[0] else "max"
    unit, largest = 0, float(np.abs(values).max())
    if largest > 0 and (not scale.logarithmic or largest < 1000 * values[0]):
        exponent = math.floor(math.log10(largest) + 1e-9)
        unit = 0 if -3 < exponent < 4 else exponent
    shown = values / 10.0**unit
    return Levels(values, extend, unit, tuple(level_text(float(v), shown) for v in shown))


def _ladder(low: float, high: float, most: int) -> np.ndarray:
    """From at or below the lowest to at or above the highest, as finely as ``most`` allows."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in LADDERS:
        every = np.array([s * 10.0**k for k in range(first, last + 1) for s in steps])
        start = max(int(np.searchsorted(every, low * (1 + 1e-12), side="right")) - 1, 0)
        values = every[start : int(np.searchsorted(every, high * (1 - 1e-12))) + 1]
        if len(values) <= most:
            return values if len(values) >= 5 else (even := _even(low, high, most))[even > 0]
    by = math.ceil((last - first) / (most - 1))
    return np.array([10.0**k for k in range(first, last + by, by)])


def _even(low: float, high: float, most: int) -> np.ndarray:
    return np.asarray(MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))


def level_text(value: float, among: np.ndarray) -> str:
    r"""A level with as many digits as tell it from its neighbours; a power of ten where it is far from 1.

    Example:
        >>> import numpy as np
        >>> from losscope.viz.loss_scale import level_text
        >>> level_text(0.5, np.array([0.0, 0.25, 0.5])), level_text(2e-6, np.array([1e-6, 2e-6]))
        ('0.5', '$2\\cdot10^{-6}$')
    """
    sign, size = ("−" if value < 0 else ""), abs(value)
    if size > 0 and not 1e-3 <= size < 1e4:
        return said(value)
    gaps = np.abs(among - value)
    gap = float(gaps[gaps > 0].min()) if (gaps > 0).any() else max(size, 1.0)
    decimals = max(0, math.ceil(-math.log10(gap)) + 1)
    text = f"{size:.{decimals}f}"
    return sign + (text.rstrip("0").rstrip(".") if "." in text else text)


def said(value: float, digits: int = 3) -> str:
    r"""A number for a figure's text, with a true minus sign and a power of ten where it is far from 1.

    Example:
        >>> from losscope.viz.loss_scale import said
        >>> said(-0.12345), said(1e-6), said(2.5e7)
        ('−0.123', '$10^{-6}$', '$2.5\\cdot10^{7}$')
    """
    sign, size = ("−" if value < 0 else ""), abs(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else sign + "∞"
    if size == 0 or 1e-3 <= size < 1e4:
        return sign + (f"{size:.0f}" if size >= 10**digits else f"{size:.{digits}g}")
    exponent = math.floor(math.log10(size) + 1e-9)
    factor = f"{size / 10.0**exponent:.{digits}g}"
    return sign + (rf"$10^{{{exponent}}}$" if factor == "1" else rf"${factor}\cdot10^{{{exponent}}}$")
