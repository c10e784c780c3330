"""Containers that a measurement leaves as they become: that of plain ones, which a loss writes on, it puts back."""

from typing import Any

__all__ = ["Noted", "NotedCounts"]


class Noted(list[Any]):
    """What a loss was called with, or how often."""

    __slots__ = ()


class NotedCounts(dict[int, int]):
    """How often each of several was called."""

    __slots__ = ()
