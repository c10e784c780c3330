"""The sinks of a live run: each gets every record, and what goes wrong in one stays there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from losscope.landscape import SettingError

from .guard import say
from .records import Record

__all__ = ["Outlets"]


class Outlets:
    """Hands records to sinks. One that fails is warned about once, and goes on getting records.

    Args:
        sinks: functions of a `Record`.

    Raises:
        SettingError: if one cannot be called.

    Attributes:
        failures: how often each sink has failed, by its name; those that have not are left out.
    """

    def __init__(self, sinks: Any) -> None:
        one = callable(sinks) or isinstance(sinks, str) or not isinstance(sinks, Iterable)
        self._sinks: list[Any] = [sinks] if one else list(sinks)
        for sink in self._sinks:
            if not callable(sink) or isinstance(sink, type):
                given = repr(sink) if isinstance(sink, type | str) else type(sink).__name__
                raise SettingError(f"a sink is a function of a Record, e.g. TensorBoard(log_dir); got {given}")
        self.failures: dict[str, int] = {}

    def __call__(self, record: Record) -> None:
        """Hand over one record."""
        for sink in self._sinks:
            try:
                sink(record)
            except Exception as error:
                self._failed(sink, error)

    def close(self) -> None:
        """Close the sinks that can be closed."""
        for sink in self._sinks:
            try:
                if (close := getattr(sink, "close", None)) is not None:
                    close()
            except Exception as error:
                self._failed(sink, error)

    def _failed(self, sink: Any, error: Exception) -> None:
        name = getattr(sink, "__name__", type(sink).__name__)
        if name not in self.failures:
            say(
                f"losscope: sink {name} failed: {type(error).__name__}: {error}; training goes on, the run has all "
                "records, further failures are counted"
            )
        self.failures[name] = self.failures.get(name, 0) + 1
