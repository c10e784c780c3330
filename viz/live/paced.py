"""Something costly that is made again and again, for no more than a share of the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["LEAST_PAUSE", "Paced"]

T = TypeVar("T")

LEAST_PAUSE = 0.5


class Paced(Generic[T]):
    """Something costly, made anew when it has changed, but for no more than a share of the time.

    Args:
        share: of the time that may be spent on making it.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._key = -1
        self._made: T | None = None
        self._error: Exception | None = None
        self._not_before = 0.0
        self._lock = threading.Lock()

    def due(self, key: int) -> bool:
        """Whether it would be made now."""
        return key > self._key and time.monotonic() >= self._not_before

    def hurry(self) -> None:
        """Let it be made as soon as it changes: what was made is of no use any more."""
        self._not_before = 0.0

    def get(self, key: int, make: Callable[[], T]) -> T:
        """What was made, or what is made now.

        Args:
            key: counts up with what it depends on.
            make: makes it.

        Raises:
            Exception: what making it raised, until it can be made.
        """
        with self._lock:
            if self.due(key):
                self._make(key, make)
            if self._error is not None:
                raise self._error
            assert self._made is not None
            return self._made

    def _make(self, key: int, make: Callable[[], T]) -> None:
        begun = time.thread_time()  # of the processor: on a busy machine the page is slow enough
        try:
            self._made, self._error = make(), None
        except Exception as error:
            self._error = error
        spent = time.thread_time() - begun
        self._key, self._not_before = key, time.monotonic() + max(LEAST_PAUSE, spent * (1 / self._share - 1))
