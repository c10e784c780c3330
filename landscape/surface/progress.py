"""How far an evaluation is: one line of a terminal or notebook that is written over, and few lines of a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

__all__ = ["Progress", "progressing"]

_Item = TypeVar("_Item")
_SECONDS = 0.1  # between two lines that are written over
_LOGGED = 30.0  # between two lines that stay
_WIDTH = 24


class Progress:
    """A bar on stderr, written over as it goes on; left to stand at the end.

    Where nothing is written over, as in a log file, there is a line at the end, and one every half minute before it. In
    a notebook it is on stdout, since stderr looks like an error there.

    Args:
        total: how many points there are; None where that is not known.
        done: how many of them are known already.
        shown: whether to write anything.
        unit: what is counted.

    Example:
        >>> from losscope.landscape.surface.progress import Progress
        >>> bar = Progress(60, 45)
        >>> print(bar.line(12.0))
         75% |##################......| 45/60 points
        >>> bar.update(5)
        >>> print(bar.line(12.0))
         83% |####################....| 50/60 points, 0:12, 0:24 left
    """

    def __init__(self, total: int | None, done: int = 0, *, shown: bool = True, unit: str = "points") -> None:
        self.total, self.done, self._held, self._unit = total, done, done, unit
        self._shown = shown and total != 0
        self._notebook = type(sys.stdout).__module__.partition(".")[0] == "ipykernel"
        self._over = self._notebook or sys.stderr.isatty()  # whether lines are written over
        self._started, self._written = time.monotonic(), -_SECONDS

    def update(self, points: int) -> None:
        """Count further points."""
        self.done += points
        if self._shown and time.monotonic() - self._written > (_SECONDS if self._over else _LOGGED):
            self._write()

    def line(self, seconds: float) -> str:
        """What is shown after so many seconds."""
        new = self.done - self._held
        times = [_clock(seconds)] if new else []
        if self.total is None:
            return ", ".join([f"{self.done} {self._unit}", *times])
        if new and self.done < self.total:
            times.append(f"{_clock(seconds / new * (self.total - self.done))} left")
        share = self.done / self.total if self.total else 1.0
        bar = "#" * int(share * _WIDTH)
        return ", ".join([f"{int(100 * share):3d}% |{bar:.<{_WIDTH}}| {self.done}/{self.total} {self._unit}", *times])

    def __enter__(self) -> Progress:
        """Show where it starts."""
        if self._shown and self._over:
            self._write()
        self._written = time.monotonic()
        return self

    def __exit__(self, *exception: Any) -> None:
        """Show where it ends, or was left."""
        if self._shown:
            self._write(end="\n")

    def _write(self, end: str = "") -> None:
        self._written = time.monotonic()
        line = self.line(self._written - self._started)
        stream = sys.stdout if self._notebook else sys.stderr
        stream.write(f"\r{line:<79}{end}" if self._over else f"{line}\n")
        stream.flush()


def progressing(items: Iterable[_Item], *, shown: bool = True) -> Iterator[_Item]:
    """The items, with a bar over them where ``shown``."""
    with Progress(len(items) if isinstance(items, Sized) else None, shown=shown) as bar:
        for item in items:
            yield item
            bar.update(1)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
