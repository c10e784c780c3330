"""Whether the gradients that the optimizer stepped with had been clipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .records import Record
from .window import column

__all__ = ["Clipping", "clipping"]

SCALED = 0.98
"""A full-batch step's gradient that is shorter than this share of the objective's own was made shorter."""

LEAST = 3
"""As many measured updates at exactly the largest value are no chance."""

APART = 20.0
"""The others must spread this much wider than those at the largest value, or it is how gradients are anyway."""

_EQUAL = {"float64": 1e-4, "float32": 1e-4, "bfloat16": 8e-3, "float16": 2e-3}
"""What norms clipped to the same value differ by: the norm that they are divided by has the gradients' own dtype."""


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

    The step of full-batch training is compared with the objective's own gradient. For mini-batches, whose gradient is
    not known beside the step's, clipped ones are told by the same norm (``clip_grad_norm_``) or largest entry
    (``clip_grad_value_``), again and again, that none exceeds. Clipping that is active in less than three of all
    measured updates is not seen there, nor any in groups of parameters or by each layer's own norm.

    Args:
        window: the measurements that the share is of.
        everything: all measurements of the run, which show the value.
        full_batch: whether steps are those of all the data; None where that is not known.
        dtype: of the parameters.
    """
    found = [
        Clipping(*_share(window, name, at, tolerance), kind, at)
        for kind, name in (("norm", "training_gradient_norm"), ("value", "training_gradient_largest"))
        if (tolerance := _EQUAL.get(dtype, 1e-4)) and (at := _ceiling(column(everything, name), tolerance)) is not None
    ]
    scales = column(window, "gradient_scale") if full_batch else []
    if scales:
        share = sum(scale < SCALED for scale in scales) / len(scales)
        kind, at = (found[0].kind, found[0].at) if found and share else ("", None)
        return Clipping(share, len(scales), kind, at)
    return found[0] if found else Clipping(0.0, len(column(window, "training_gradient_norm")))


def _share(window: Sequence[Record], name: str, at: float, tolerance: float) -> tuple[float, int]:
    values = column(window, name)
    return sum(v >= at * (1 - tolerance) for v in values) / max(len(values), 1), len(values)


def _ceiling(values: list[float], tolerance: float) -> float | None:
    """The largest value, if it was reached again and again and the others are much further away; else None."""
    if len(values) < LEAST or not (top := max(values)) > 0:
        return None
    reached = [v for v in values if v >= top * (1 - tolerance)]
    others = sorted(v for v in values if v < top * (1 - tolerance))
    if len(reached) < LEAST:
        return None
    if others and top - others[len(others) // 2] < APART * (top - min(reached)):
        return None
    return top
