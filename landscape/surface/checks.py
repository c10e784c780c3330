"""Arguments that are numbers: what means something, and what is said of the rest."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from ..errors import SettingError

__all__ = ["check_names", "check_positive", "finite_numbers"]


def check_positive(name: str, value: object, unit: str = "number") -> None:
    """Refuse what is no number, is not positive, or not finite.

    Raises:
        SettingError: naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise SettingError(f"{name} must be a positive, finite {unit}, got {value!r}")


def finite_numbers(values: object, expected: str) -> Tensor:
    """Several finite numbers as (G,) float64 on the host.

    Args:
        values: a sequence of numbers, or a tensor (G,).
        expected: what the argument must be, for the error: ``"points must be ..."``.

    Raises:
        SettingError: if they are not; says what was expected, and what was given.
    """
    try:
        kind = torch.as_tensor(values).dtype
        if kind == torch.bool or kind.is_complex:
            raise TypeError
        found = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        raise SettingError(f"{expected}; got {values!r}") from None
    if found.ndim != 1 or not bool(found.isfinite().all()):
        raise SettingError(f"{expected}; got {values!r}")
    return found


def check_names(name: str, values: Collection[str], count: int | None = None) -> None:
    """Refuse what is not several names, or not so many different ones; a text alone is none.

    Raises:
        SettingError: naming the argument.
    """
    several = not isinstance(values, str) and isinstance(values, Collection) and all(isinstance(v, str) for v in values)
    if not several or (count is not None and (len(values) != count or len(set(values)) != count)):
        what = "several names" if count is None else f"{count} different names"
        raise SettingError(f"{name} must be {what}, got {values!r}")
