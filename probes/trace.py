"""Trace of the Hessian."""

from __future__ import annotations

from typing import Any

from losscope.landscape import SettingError

from .probe import Measurement, Needs, Probe
from .snapshot import Snapshot

__all__ = ["Trace"]


class Trace(Probe):
    """The Hessian's trace, with a 95 % interval.

    Args:
        rtol: relative half-width of the interval to stop at.
        max_matvecs: most curvature products a measurement may take; a wider interval is reported then.
        every: when; None follows `watch`.

    Raises:
        SettingError: if ``rtol`` is not positive.
    """

    name = "trace"
    data_parallel = True

    def __init__(self, *, rtol: float = 0.1, max_matvecs: int = 100, every: Any = None) -> None:
        super().__init__(every)
        if not rtol > 0 or max_matvecs < 2:
            raise SettingError(f"rtol must be positive and max_matvecs at least 2, got {rtol!r} and {max_matvecs!r}")
        self.rtol, self.max_matvecs = rtol, max_matvecs

    def needs(self) -> Needs:
        """The trace, to this accuracy."""
        return Needs(trace_rtol=self.rtol, trace_matvecs=self.max_matvecs)

    def measure(self, snapshot: Snapshot) -> Measurement:
        """The trace and how it was obtained."""
        estimate = snapshot.trace(self.rtol, self.max_matvecs)
        values = {"stderr": estimate.stderr, "converged": float(estimate.converged), "loss": snapshot.loss}
        note = estimate.note or None
        return Measurement(estimate.value, estimate.low, estimate.high, "curvature", estimate.kernel, note, values)
