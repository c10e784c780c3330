"""A bound on the share of wall-clock time that watching may take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from losscope.landscape import SettingError

__all__ = ["Budget"]


class Budget:
    """Counts the time spent on measuring, and says whether more may be spent.

    Args:
        share: at most this share of the wall-clock time; None is no bound. A due measurement is
            postponed until the share allows it; the first is always made.

    Raises:
        SettingError: if ``share`` is not in (0, 1].
    """

    def __init__(self, share: float | None) -> None:
        if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1):
            raise SettingError(f"budget is a share of the wall-clock time in (0, 1], e.g. 0.05; got {share!r}")
        self.share = share
        self.spent = 0.0
        self._started = time.perf_counter()

    @property
    def total(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._started

    def allows(self) -> bool:
        """Whether a measurement may start now."""
        return self.share is None or self.spent <= self.share * self.total

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Count the time spent inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spent += time.perf_counter() - started

    def state_dict(self) -> dict[str, float]:
        """Seconds spent and seconds in all, for a checkpoint."""
        return {"spent": self.spent, "total": self.total}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on counting from a checkpoint: the time in between is nobody's."""
        self.spent = float(state["spent"])
        self._started = time.perf_counter() - float(state["total"])
