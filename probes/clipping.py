"""Whether the gradients that the optimizer stepped with had been clipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .records import Record
from .window import column

__all__ = ["Clipping", "clipping"]

SCALED = 0.98
"""A full-batch step's gradient that is shorter than this share of the objective's own was made shorter."""

LEAST, LEAST_SHARE = 3, 0.02
"""As many measured updates at exactly the largest value, and that share of them, are no chance."""

ALONE = 5
"""As many where there are no others."""

APART = 20.0
"""The others must be this much further away than those at the largest value, or it is how gradients are anyway."""

_NORMS = {"float64": 1e-5, "float32": 3e-5, "bfloat16": 1.6e-2, "float16": 2e-3}
"""What norms clipped to the same value differ by, relatively, by the gradients' dtype.

``clip_grad_norm_`` divides by the norm in that dtype, plus 1e-6: measured with it on 10^4 to 10^6 gradients and values
from 0.1 on.
"""

_VALUES = {"float64": 1e-7, "float32": 1e-6, "bfloat16": 8e-3, "float16": 1e-3}
"""What largest entries may differ by and be the same: what is clipped is set to the value itself, rounded."""


@dataclass(frozen=True)
class Clipping:
    """What the measured updates show of clipping.

    Attributes:
        share: of the measured updates that were clipped.
        measured: how many there are.
        kind: ``"norm"`` or ``"value"``; empty where nothing shows what they are clipped at.
        at: the largest norm, or entry, that is let through; None where that does not show.
    """

    share: float
    measured: int
    kind: str = ""
    at: float | None = None


def clipping(
    window: Sequence[Record], everything: Sequence[Record], *, full_batch: bool | None, dtype: str
) -> Clipping:
    """The share of the updates in a window that were clipped.

    Clipped gradients are told by the same norm (``clip_grad_norm_``) or largest entry (``clip_grad_value_``), again and
    again, that none exceeds; in full-batch training also by being shorter than the objective's own. With mini-batches,
    clipping that is active in less than three of all measured updates is not seen, nor any in groups of parameters or
    by each layer's own norm.

    Args:
        window: the measurements that the share is of.
        everything: all measurements of the run, which show the value.
        full_batch: whether steps are those of all the data; None where that is not known.
        dtype: of the parameters.
    """
    scales = column(window, "gradient_scale") if full_batch else []
    if scales and all(abs(scale - 1) <= 1 - SCALED for scale in scales):  # e.g. of a gradient that stays as it is
        return Clipping(0.0, len(scales))
    found = []
    for kind, name, tolerance in (
        ("norm", "training_gradient_norm", _NORMS.get(dtype, _NORMS["float32"])),
        ("value", "training_gradient_largest", _VALUES.get(dtype, _VALUES["float32"])),
    ):
        if (at := _ceiling(column(everything, name), tolerance)) is not None:
            found.append(Clipping(*_share(window, name, at, tolerance), kind, at))
    shown = found[0] if found else Clipping(0.0, len(column(window, "training_gradient_norm")))
    shorter = sum(scale < SCALED for scale in scales)
    if shorter > shown.share * len(scales):
        return Clipping(shorter / len(scales), len(scales), shown.kind, shown.at)
    return shown


def _share(window: Sequence[Record], name: str, at: float, tolerance: float) -> tuple[float, int]:
    values = column(window, name)
    return sum(v >= at * (1 - tolerance) for v in values) / max(len(values), 1), len(values)


def _ceiling(values: list[float], tolerance: float) -> float | None:
    """The largest value, if it was reached again and again and the others are much further away; else None."""
    if not values or not (top := max(values)) > 0:
        return None
    floor = top * (1 - tolerance)
    others = sorted(v for v in values if v < floor)
    if len(values) - len(others) < max(LEAST if others else ALONE, LEAST_SHARE * len(values)):
        return None
    if others and top - others[len(others) // 2] < APART * (top - floor):
        return None
    return top
