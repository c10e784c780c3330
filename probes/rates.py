"""Learning rates at which no step is stable: negative ones, and such as are no finite number.

With a negative rate the linearised step is unstable if and only if there is positive curvature, however little: one of
curvature s multiplies its mode by 1 - lr s > 1, with momentum and behind a positive preconditioner too (their companion
polynomials are then negative at z = 1). The threshold is 0, and no ratio to it says how far beyond a run is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .records import Record

__all__ = ["WrongRates", "is_wrong", "wrong_rates"]

ROUNDED = 1e-6
"""Share of the run's largest rate within which a negative one is what rounding made of zero at a schedule's end."""


@dataclass(frozen=True)
class WrongRates:
    """The measured updates whose rate lets no step be stable.

    Attributes:
        records: theirs, in the order of the steps.
    """

    records: tuple[Record, ...]

    @property
    def words(self) -> str:
        """Which rates, and at which steps; empty where there are none."""
        if not self.records:
            return ""
        steps = [r.step for r in self.records]
        if len(steps) == 1:
            return f"{self.rates} at step {steps[0]:,}"
        return f"{self.rates} in {len(steps)} measured updates, steps {steps[0]:,} to {steps[-1]:,}"

    @property
    def rates(self) -> str:
        """The first and the last of them, or the one; empty where there are none."""
        listed = list(dict.fromkeys(f"{r.lr:.3g}" for r in self.records))
        return " to ".join(dict.fromkeys((listed[0], listed[-1]))) if listed else ""

    def since(self, step: int) -> WrongRates:
        """Those from a step on."""
        return WrongRates(tuple(r for r in self.records if r.step >= step))

    def uphill_end(self, judged: Sequence[Record]) -> list[Record]:
        """Those after the last measurement that has a threshold, where the last one's rate is a negative number."""
        last = judged[-1].step if judged else -1
        found = [r for r in self.records if r.step > last]
        return found if found and found[-1].lr is not None and -math.inf < found[-1].lr < 0 else []


def is_wrong(rate: float | None) -> bool:
    """Whether there is a rate, and no step with it is stable. Zero moves nothing, and does no harm."""
    return rate is not None and not 0 <= rate < math.inf


def wrong_rates(measured: Sequence[Record]) -> WrongRates:
    """Those among a run's measurements.

    Args:
        measured: in the order of the steps. Where parameter groups have several rates, the order of size shows by the
            threshold.
    """
    rates = [abs(r.lr) for r in measured if r.lr is not None and math.isfinite(r.lr)]
    rates += [1 / limit for r in measured if (limit := r.values.get("threshold")) is not None and limit > 0]
    least = ROUNDED * max(rates, default=0.0)
    return WrongRates(tuple(r for r in measured if is_wrong(r.lr) and not abs(r.lr or 0.0) < least))
