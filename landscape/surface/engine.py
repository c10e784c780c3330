"""How points are evaluated: one by one or several at once, whichever is found to be faster, here and now."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from ..errors import KernelError, SettingError, first_line
from ..kernels.choice import check_count
from .batched_points import Batched
from .one_by_one import OneByOne

__all__ = ["ENGINES", "Engine"]

ENGINES = ("auto", "one by one", "batched")

_TRIED = 3  # points evaluated both ways
_CLOSE = 1e-5  # relative
_FEW = 12  # points: fewer do not repay a trial
_SIZES = (4, 16, 64, 256, 1024)  # points at once that are tried, as long as it gets faster; the first where one is slow
_SIMPLER = 1.05  # batches must be this much faster
_HOPELESS = 2.0  # times slower, where launches do not explain it: larger batches are not tried
_LAUNCHES = 5e-3  # seconds: what a pass takes of them at most
_CALLS = 2  # at each size, of which the fastest counts
_GAIN = 1.1  # times faster than a smaller batch, for larger ones to be tried
_LONG = 0.02  # seconds: a call that takes longer is not repeated


class Engine:
    """Evaluates points by the faster of two ways that agree.

    The first few points are evaluated both ways; where they differ by more than 1e-5, or torch cannot vectorise the
    model or the loss, all are evaluated one by one. Else batches of growing size are timed. All that is evaluated in
    the trial is kept, but for the few that were compared.

    Args:
        plain: the one way.
        batched: the other, or None.
        engine: ``"auto"``, or one of the two by name.
        chunk: points at a time; None to find it out.
        refused: why there is no other.

    Raises:
        SettingError: for settings that mean nothing.
    """

    def __init__(
        self,
        plain: OneByOne,
        batched: Batched | None,
        engine: str = "auto",
        chunk: int | None = None,
        refused: str = "",
    ) -> None:
        if engine not in ENGINES:
            raise SettingError(f"engine must be one of {', '.join(map(repr, ENGINES))}; got {engine!r}")
        check_count("chunk", chunk)
        self._plain, self._batched, self._asked, self._chunk = plain, batched, engine, chunk
        self.reason = "" if engine == "auto" else "asked for"
        self._seconds: dict[int, float] = {}  # per point, by points at a time; 0 is one by one
        self._calls = 0
        self._done = {False: 0, True: 0}  # points, by whether they were batched
        self._sizes: list[int] = []
        self._size = 0  # points at a time
        self._settled = engine == "one by one"
        if batched is None and not self._settled:
            self._give_up(refused)

    @property
    def name(self) -> str:
        """What evaluated most of the points, and why."""
        what = Batched.name if self._done[True] > self._done[False] else OneByOne.name
        return f"{what} ({self.reason})" if self.reason else what

    def __call__(self, coordinates: Tensor) -> Tensor:
        """At points with coordinates (G, k): (G, m) float64 on the host."""
        parts = []
        with self._plain.measured.objective.isolated():  # once: entering it takes as long as a small model's pass
            while len(coordinates):
                parts.append(self._some(coordinates))
                coordinates = coordinates[len(parts[-1]) :]
        return torch.cat(parts)

    def _some(self, coordinates: Tensor) -> Tensor:
        """At the first of these points, as many as are due together."""
        left = len(coordinates)
        if self._settled or (not self._seconds and self._asked == "auto" and left < _FEW):
            return self._together(coordinates[: self._size]) if self._size else self._alone(coordinates)
        if not self._seconds:
            return self._compared(coordinates[:_TRIED])
        if left >= self._sizes[0]:
            return self._tried(coordinates[: self._sizes[0]])
        known = left if self._asked == Batched.name else min(self._seconds, key=self._seconds.__getitem__)
        return self._together(coordinates[:known]) if known else self._alone(coordinates)

    def _compared(self, coordinates: Tensor) -> Tensor:
        """Both ways."""
        assert self._batched is not None
        most = self._batched.fitting(self._plain.bytes_of_one())
        if most < _SIZES[0] and self._chunk is None:
            self._give_up(f"{_SIZES[0]} points together take too much memory")
            return self._alone(coordinates)
        found = torch.cat([self._clocked(row, 0) for row in coordinates.split(1)])
        try:
            again = self._batched(coordinates)
        except Exception as error:  # torch's own kinds are many
            self._give_up(f"it cannot be vectorised: {first_line(error)}")
            return found
        worst = _distance(again, found)
        if worst > _CLOSE:
            self._give_up(f"vectorised, values differ by {worst:.2g}")
            return found
        first = _SIZES[1] if self._seconds[0] < _LAUNCHES and most >= _SIZES[1] else _SIZES[0]
        self._sizes = [self._chunk] if self._chunk else [s for s in _SIZES if first <= s <= most]
        return found

    def _tried(self, coordinates: Tensor) -> Tensor:
        """A batch of the size that is being tried."""
        size = len(coordinates)
        found = self._clocked(coordinates, size)
        if self._settled:  # it failed
            return found
        self._calls += 1
        each, plain = self._seconds[size], self._seconds[0]
        if self._calls < _CALLS and each * size < _LONG:  # short ones are disturbed by whatever else runs
            return found
        self._calls, self._sizes = 0, self._sizes[1:]
        smaller = min((s for n, s in self._seconds.items() if 0 < n < size), default=math.inf)
        if not self._sizes or each * _GAIN > smaller or (each > _HOPELESS * plain and plain > _LAUNCHES):
            self._choose()
        return found

    def _choose(self) -> None:
        plain = self._seconds[0]
        size = min((n for n in self._seconds if n), key=self._seconds.__getitem__)
        reason = f"{1e3 * self._seconds[size]:.3g} ms a point {size} at a time, {1e3 * plain:.3g} one by one"
        faster = self._seconds[size] * _SIMPLER < plain
        self._settle(size if faster or self._asked == Batched.name else 0, reason)

    def _clocked(self, coordinates: Tensor, size: int) -> Tensor:
        started = time.perf_counter()
        found = self._together(coordinates) if size else self._alone(coordinates)
        taken = (time.perf_counter() - started) / len(coordinates)
        self._seconds[size] = min(taken, self._seconds.get(size, math.inf))
        return found

    def _alone(self, coordinates: Tensor) -> Tensor:
        self._done[False] += len(coordinates)
        return self._plain(coordinates)

    def _together(self, coordinates: Tensor) -> Tensor:
        """Batched; smaller batches where memory runs out, and one by one where even that fails."""
        assert self._batched is not None
        try:
            found = self._batched(coordinates)
        except torch.OutOfMemoryError:
            half = len(coordinates) // 2
            if half == 0:
                self._give_up("out of memory")
                return self._alone(coordinates)
            self._size, self._sizes = min(self._size, half), [s for s in self._sizes if s <= half] or [half]
            return torch.cat([self._together(part) for part in (coordinates[:half], coordinates[half:])])
        except Exception as error:
            self._give_up(f"it cannot be vectorised: {first_line(error)}")
            return self._alone(coordinates)
        self._done[True] += len(coordinates)
        return found

    def _settle(self, size: int, reason: str = "") -> None:
        self._settled, self._size = True, size
        self.reason = "; ".join(filter(None, (self.reason, reason)))

    def _give_up(self, reason: str) -> None:
        if self._asked == Batched.name:
            raise KernelError(f"engine='batched' cannot evaluate this: {reason}; leave the choice to engine='auto'")
        self._settle(0, reason)


def _distance(again: Tensor, found: Tensor) -> float:
    """The largest relative difference; infinite where one is finite and the other not."""
    same = (again == found) | (again.isnan() & found.isnan())
    apart = ((again - found).abs() / found.abs()).masked_fill(same, 0.0)
    return float(apart.nan_to_num(nan=math.inf).max())
