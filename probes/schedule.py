"""When to measure: a schedule is a callable ``step -> bool``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from losscope.landscape import SettingError

__all__ = ["as_schedule", "logarithmic"]

Schedule = Callable[[int], bool]
"""Whether to measure before update t."""


def as_schedule(every: Any) -> Schedule:
    """A schedule from what a user writes.

    Args:
        every: an integer n (steps 0, n, 2n ...), explicit steps, or any callable ``step -> bool``.

    Raises:
        SettingError: if it is none of these.

    Example:
        >>> from losscope.probes.schedule import as_schedule
        >>> due = as_schedule([0, 5])
        >>> [t for t in range(10) if due(t)]
        [0, 5]
    """
    if isinstance(every, (bool, float | str | bytes)):
        raise SettingError(f"every must be a positive integer, steps, or a callable step -> bool; got {every!r}")
    if isinstance(every, int):
        if every < 1:
            raise SettingError(f"every must be at least 1, got {every}")
        return lambda step: step % every == 0
    if callable(every):
        return lambda step: bool(every(step))
    if isinstance(every, Iterable):
        given = list(every)
        if not given or not all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in given):
            raise SettingError(f"explicit steps must be integers >= 0, at least one; got {given!r}")
        steps = frozenset(given)
        return lambda step: step in steps
    raise SettingError(f"every must be a positive integer, steps, or a callable step -> bool; got {every!r}")


def logarithmic(per_decade: int = 10) -> Schedule:
    """Steps 0, 1, and then so many per factor of ten.

    Raises:
        SettingError: if ``per_decade`` is not positive.

    Example:
        >>> from losscope.probes.schedule import logarithmic
        >>> [t for t in range(100) if logarithmic(3)(t)]
        [0, 1, 2, 5, 10, 22, 46]
    """
    if per_decade < 1:
        raise SettingError(f"per_decade must be at least 1, got {per_decade}")
    return lambda step: step == 0 or any(round(10 ** (i / per_decade)) == step for i in _near(step, per_decade))


def _near(step: int, per_decade: int) -> range:
    i = round(per_decade * math.log10(step))
    return range(max(i - 1, 0), i + 2)
