"""Where a run's loss spiked, and what the curvature was just before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from losscope.probes import Run

from . import series
from .edge_story import Reading, readings
from .sentences import Sentence, step
from .words import times

__all__ = ["Spike", "spike_story", "spikes"]

BEFORE, FEWEST = 25, 5
"""Values before one, whose median it is compared with; near the beginning fewer."""
BLOCK = 250
"""Values before one, from which the noise is estimated; near the beginning fewer."""
LEAST = 1.4
"""Factor over that median from which a value is a spike."""
NOISE = 6.0
"""Standard deviations of the noise that it must exceed as well, so that mini-batches that differ are none."""
MOST = 3
"""Spikes that are told one by one: the highest."""


@dataclass(frozen=True)
class Spike:
    """A rise of the loss above what it was before.

    Attributes:
        before: last step before it.
        first: step at which it stood out.
        peak: step of its highest value.
        height: that value over the median before.
        back: first step after the peak at which it stood out no more; None where that is not in the records.
    """

    before: int
    first: int
    peak: int
    height: float
    back: int | None


def spikes(steps: np.ndarray, values: np.ndarray) -> list[Spike]:
    """Find where a positive loss rises above the median of the 25 values before it, by 40 % at least.

    The rise must also be six times the noise of the logarithm (more where few values tell it), which is taken from
    the differences of neighbours, so that the scatter of mini-batches is not a spike.

    Args:
        steps: (n,) ascending.
        values: (n,) the loss; what is not finite or not positive is left out.

    Returns:
        The spikes in order.

    Example:
        >>> import numpy as np
        >>> from losscope.viz.spikes import spikes
        >>> loss = np.full(100, 0.5)
        >>> loss[60:63] = [1.0, 2.0, 0.9]
        >>> [(spike.first, spike.peak, spike.back, spike.height) for spike in spikes(np.arange(100), loss)]
        [(60, 61, 63, 4.0)]
    """
    kept = np.isfinite(values) & (values > 0)
    steps, logs = steps[kept], np.log(values[kept])
    usual, rise = _usual(logs), np.maximum(math.log(LEAST), NOISE * _noise(logs))
    over = logs - usual > rise
    found: list[Spike] = []
    end = 0
    for at in np.flatnonzero(over).tolist():
        if at < end:
            continue
        end = at + int(np.append(over[at:], False).argmin())  # the next value that does not stand out
        peak = at + int(logs[at:end].argmax())
        inside = np.flatnonzero(logs[peak:] - usual[at] <= rise[at])
        back = int(steps[peak + inside[0]]) if len(inside) else None
        height = math.exp(logs[peak] - usual[at])
        found.append(Spike(int(steps[at - 1]), int(steps[at]), int(steps[peak]), height, back))
    return found


def _usual(logs: np.ndarray) -> np.ndarray:
    """Of each value the median of those before it; NaN where there are too few."""
    usual = np.full(len(logs), np.nan)
    for at in range(FEWEST, min(BEFORE, len(logs))):
        usual[at] = np.median(logs[:at])
    if len(logs) > BEFORE:
        usual[BEFORE:] = np.median(np.lib.stride_tricks.sliding_window_view(logs, BEFORE)[:-1], axis=1)
    return usual


def _noise(logs: np.ndarray) -> np.ndarray:
    """Standard deviation about a smooth course, from the values before: by the median size of second differences.

    The fewer these are, the larger it is made, since an estimate from few may be far too small.
    """
    second = np.abs(np.diff(logs, 2))
    noise = np.zeros(len(logs))
    for at in range(FEWEST, len(logs)):
        if at < BLOCK or at % BLOCK == 0:
            few = second[max(at - BLOCK, 0) : at - 2]
            estimate = float(np.median(few)) / 0.6745 / math.sqrt(6) * (1 + 4 / math.sqrt(len(few)))
        noise[at] = estimate
    return noise


def spike_story(run: Run, player: str | None = None) -> list[Sentence]:
    """The spikes of the loss in words, the highest one by one with the sharpness before them.

    Raises:
        RunError: if the run has no such player.
    """
    steps, values, what = series.loss(run, player)
    found = spikes(steps, values)
    if not found:
        many = int((np.isfinite(values) & (values > 0)).sum())
        if many < 2 * BEFORE:
            return []
        none = f"none rises {LEAST:g}-fold, and clear of the noise, above the median of the {BEFORE} before it"
        return [Sentence("spikes", f"The {what} shows no spike in {many:,} values: {none}.")]
    shown = sorted(sorted(found, key=lambda spike: -spike.height)[:MOST], key=lambda spike: spike.peak)
    often = "once" if len(found) == 1 else f"{len(found):,} times"
    which = "" if len(found) <= MOST else f" The highest {MOST}:"
    known = readings(run, player)
    parts = [_said(spike, known) for spike in shown]
    text = f"The {what} spiked {often}.{which} {' '.join(parts)}{_scattered(run, player)}"
    return [Sentence("spikes", text, tuple(spike.peak for spike in shown))]


def _said(spike: Spike, known: Sequence[Reading]) -> str:
    end = ", and had not come back where the records end or cease to be finite"
    if spike.back is not None:
        end = f", and back by {step(spike.back)}"
    text = f"At {step(spike.peak)} it was {times(spike.height)} times the median before{end}"
    if spike.first < spike.peak:
        text = f"From {step(spike.first)} on it stood out, at most {times(spike.height)} times the median before, at "
        text += f"{step(spike.peak)}{end}"
    earlier = [reading for reading in known if reading.step <= spike.before]
    if not earlier:
        return f"{text}; the sharpness had not been measured by then."
    last = earlier[-1]
    text += f"; the last sharpness before, at {step(last.step)}, was {times(last.ratio)} times its threshold"
    if len(earlier) > 1:
        way = _way(earlier[-2].ratio, last.ratio)
        text += f", {way} {times(earlier[-2].ratio)} at {step(earlier[-2].step)}"
    return text + "."


def _scattered(run: Run, player: str | None) -> str:
    """What is to be known of spikes where each value is that of another batch."""
    facts = series.facts(run, player)
    batch, samples = facts.get("batch_size"), facts.get("samples")
    if isinstance(batch, int) and isinstance(samples, int) and batch >= samples:
        return ""
    return " With mini-batches, a single high value may be no more than a hard batch."


def _way(before: float, after: float) -> str:
    if times(before) == times(after):
        return "as"
    return "up from" if after > before else "down from"
