"""The part of a run's story on the edge of stability: where the sharpness crossed it, and where it hovered."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from losscope.probes import Record, Run
from losscope.probes.phases import CATAPULT, EDGE, SHARPENING, Phase
from losscope.probes.rates import wrong_rates

from . import series
from .sentences import Sentence, step, steps_between
from .words import number, times

__all__ = ["Reading", "edge_story", "readings"]

GAP = 10
"""Times the usual distance of measurements, beyond which a distance between two of them is told."""
MOST_GAPS = 3


@dataclass(frozen=True)
class Reading:
    """The sharpness at one step against the threshold of that step.

    Attributes:
        step: the step.
        sharpness: as measured, which is proved from below.
        threshold: of the optimizer.
        high: the upper end of the sharpness; NaN where none is known.
    """

    step: int
    sharpness: float
    threshold: float
    high: float

    @property
    def bounded_below(self) -> bool:
        """Whether an upper bound shows that the sharpness was below the threshold."""
        return self.high < self.threshold

    @property
    def ratio(self) -> float:
        """Measured over threshold."""
        return self.sharpness / self.threshold


def readings(run: Run, player: str | None = None) -> list[Reading]:
    """The sharpness over its threshold at each step where both are known, of either probe.

    Raises:
        RunError: if the run has no such player.
    """
    found: dict[int, Reading] = {}
    for record in (*run.select("sharpness", player), *run.select("stability", player)):
        value, high = _of(record)
        threshold = record.values.get("threshold")
        if value is not None and threshold is not None and math.isfinite(value) and 0 < threshold < math.inf:
            found[record.step] = Reading(record.step, value, threshold, math.nan if high is None else high)
    return [found[at] for at in sorted(found)]


def edge_story(run: Run, player: str | None = None) -> list[Sentence]:
    """Whether and when the sharpness crossed its threshold, and the phases of the run.

    Raises:
        RunError: if the run has no such player.
    """
    found = readings(run, player)
    if not found:
        return _without_threshold(run, player)
    said = [_crossing(found, run, player), *_unseen(found)]
    said += [_phase(phase, found) for phase in run.phases(player)]
    wrong = wrong_rates(run.select("stability", player))
    if len(found) > 1:
        last, which = found[-1], " with a threshold" if wrong.since(found[-1].step).records else ""
        text = f"At the last measurement{which}, {step(last.step)}, it was {times(last.ratio)} times the threshold."
        said.append(Sentence("edge", text, (last.step,)))
    if wrong.records:
        ends = wrong.records[0].step, wrong.records[-1].step
        said.append(Sentence("edge", f"The learning rate was {wrong.words}: there is no stable step.", ends))
    return said + _no_verdict(run, player)


def _of(record: Record) -> tuple[float | None, float | None]:
    """Value and upper end of the sharpness in a record of either probe."""
    if record.probe == "sharpness":
        return record.value, record.high
    return record.values.get("sharpness"), record.values.get("sharpness_high")


def _without_threshold(run: Run, player: str | None) -> list[Sentence]:
    records = [
        (r.step, value)
        for r in run.select("sharpness", player) or run.select("stability", player)
        if (value := _of(r)[0]) is not None and math.isfinite(value)
    ]
    if not records:
        return [Sentence("edge", "There is no measurement of the sharpness.")]
    (first, before), (last, after) = records[0], records[-1]
    course = f"was {number(before)} at {step(first)}"
    if len(records) > 1:
        course = f"went from {number(before)} at {step(first)} to {number(after)} at {step(last)}"
    reason = series.facts(run, player).get("threshold_reason")
    why = f": {reason}" if reason else ""
    return [Sentence("edge", f"The sharpness {course}. No threshold is known to compare it with{why}.", (first, last))]


def _no_verdict(run: Run, player: str | None) -> list[Sentence]:
    """Why the audit makes no verdict of this, where it does not."""
    audit = run.audit(player)
    line = next((each for each in audit.criteria if each.name == "sharpness"), None)
    if audit.steps is None or line is None or line.verdict not in ("INCONCLUSIVE", "NOT_APPLICABLE"):
        return []
    return [Sentence("edge", f"For the audit these ratios are no verdict on stability: {line.reason}.")]


def _crossing(found: Sequence[Reading], run: Run, player: str | None) -> Sentence:
    """When the sharpness was first above its threshold."""
    facts = series.facts(run, player)
    formula = facts.get("seen_formula") or facts.get("threshold_formula")
    subject = f"the sharpness{' of P^-1 H' if facts.get('preconditioned') else ''}"
    above = next((i for i, reading in enumerate(found) if reading.ratio > 1), None)
    if above is None:
        return _never(found, subject, formula)
    first, start = found[above], f"T{subject[1:]}"
    name = f"its threshold, {_threshold(first, formula)},"
    if above == 0:
        text = f"{start} was above {name} at the first measurement already, {step(first.step)}: "
        text += f"{times(first.ratio)} times it."
        return Sentence("edge", text + _often(found), (first.step,))
    before = found[above - 1]
    text = f"{start} was first measured above {name} at {step(first.step)}; at {step(before.step)} it was still below."
    if all(reading.bounded_below for reading in found[:above]):
        text = f"{start} first crossed {name} between {step(before.step)} and {step(first.step)}."
    return Sentence("edge", text + _often(found), (before.step, first.step))


def _often(found: Sequence[Reading]) -> str:
    """How many measurements are above the threshold."""
    above = sum(reading.ratio > 1 for reading in found)
    if len(found) == 1:
        return ""
    often = "once" if above == 1 else f"{above:,} times"
    return f" It was measured above it {often} in {len(found):,} measurements."


def _threshold(reading: Reading, formula: object) -> str:
    return f"{formula} = {number(reading.threshold)}" if formula else number(reading.threshold)


def _never(found: Sequence[Reading], subject: str, formula: object) -> Sentence:
    most = max(found, key=lambda reading: reading.ratio)
    name = f"{times(most.ratio)} times its threshold, {_threshold(most, formula)}."
    if len(found) == 1:
        text = f"At the only measurement, {step(most.step)}, {subject} was {name}"
        return Sentence("edge", text + _proved(found), (most.step,))
    apart = max(b.step - a.step for a, b in itertools.pairwise(found))
    where = f"{steps_between(found[0].step, found[-1].step)}, at most {apart:,} apart"
    text = f"T{subject[1:]} was above its threshold at none of {len(found):,} measurements ({where}). "
    text += f"It came nearest at {step(most.step)}: {name}"
    return Sentence("edge", text + _proved(found), (found[0].step, most.step, found[-1].step))


def _proved(found: Sequence[Reading]) -> str:
    """What the absence of a crossing rests on: values are proved from below."""
    bounded = sum(reading.bounded_below for reading in found)
    if bounded == len(found):
        return " Upper bounds were below it as well."
    if not bounded:
        return " The values are lower bounds; no upper bound shows that the sharpness was not larger."
    known = f"an upper bound below the threshold is known at {bounded:,} of the {len(found):,} measurements"
    return f" The values are lower bounds; {known}."


def _unseen(found: Sequence[Reading]) -> list[Sentence]:
    """Long stretches without a measurement."""
    pairs = [(a.step, b.step) for a, b in itertools.pairwise(found)]
    if len(pairs) < 3:
        return []
    usual = statistics.median(b - a for a, b in pairs)
    long = [(a, b) for a, b in pairs if b - a > GAP * usual][:MOST_GAPS]
    return [
        Sentence("edge", f"Between {step(a)} and {step(b)} the sharpness was not measured.", (a, b)) for a, b in long
    ]


def _phase(phase: Phase, found: Sequence[Reading]) -> Sentence:
    inside = [reading for reading in found if phase.first <= reading.step <= phase.last]
    return PHASES[phase.name](phase, f"From {step(phase.first)} to {step(phase.last)}", inside)


def _sharpening(phase: Phase, where: str, inside: Sequence[Reading]) -> Sentence:
    a, b = inside[0], inside[-1]
    course = f"from {number(a.sharpness)} to {number(b.sharpness)}"
    text = f"{where} it sharpened progressively, {course} ({times(a.ratio)} to {times(b.ratio)} times the threshold)."
    return Sentence("edge", text, (phase.first, phase.last))


def _edge(phase: Phase, where: str, inside: Sequence[Reading]) -> Sentence:
    ratios = sorted(reading.ratio for reading in inside)
    text = f"{where}, {phase.last - phase.first:,} steps, it hovered at the edge of stability: "
    text += f"{len(ratios):,} measurements, median {times(statistics.median(ratios))} times the threshold, "
    text += f"from {times(ratios[0])} to {times(ratios[-1])}."
    return Sentence("edge", text, (phase.first, phase.last))


def _catapult(phase: Phase, where: str, inside: Sequence[Reading]) -> Sentence:
    peak = max(inside, key=lambda reading: reading.ratio)
    text = f"{where} there was a catapult: the sharpness reached {times(peak.ratio)} times the threshold at "
    text += f"{step(peak.step)} and came down while the loss rose and fell again."
    return Sentence("edge", text, (phase.first, peak.step, phase.last))


PHASES = {SHARPENING: _sharpening, EDGE: _edge, CATAPULT: _catapult}
