"""The story of a run in plain sentences, each from the records and no more certain than they are."""

from __future__ import annotations

import math

import numpy as np

from losscope.probes import Run
from losscope.probes.cost import NO_PROBES

from . import series
from .changes import changes
from .edge_story import edge_story
from .sentences import Sentence, listed, step, steps_between
from .spikes import spike_story
from .words import NAMES, number, seconds, verdict

__all__ = ["Sentence", "story"]

LAST_PART = 0.05
"""Of the logged losses, whose median is where the loss ended."""
MOST_REASONS, LONGEST_REASON = 3, 240


def story(run: Run, player: str | None = None) -> tuple[Sentence, ...]:
    """Tell what happened in a run, for one player.

    How training went, where the sharpness stood against the threshold of stability and when it crossed it, where it
    hovered, what spiked and what the curvature was just before, how other quantities changed, what the audit says of
    the end, what was not measured and why, and what it cost. Where measurements are sparse, an event is told to lie
    between two steps.

    Args:
        run: a run, also one that is being written, failed or diverged, or that recorded little.
        player: which player; default: the first.

    Returns:
        The sentences in that order, each with the steps it rests on.

    Raises:
        RunError: if the run has no such player.

    Example:
        >>> from losscope.probes import Record, Run
        >>> from losscope.viz.story import story
        >>> ratios = [0.85, 0.95, 1.05]
        >>> records = [
        ...     Record(50 * i, "model", "sharpness", value=20 * r, values={"threshold": 20.0})
        ...     for i, r in enumerate(ratios)
        ... ]
        >>> for sentence in story(Run.from_records({"players": {"model": {}}}, records)):
        ...     if sentence.about == "edge":
        ...         print(sentence.text)
        The sharpness was first measured above its threshold, 20, at step 100; at step 50 it was still below.
        It was measured above it once in 3 measurements.
        At the last measurement, step 100, it was 1.05 times the threshold.
    """
    run.select("log", player)  # refuses a player that the run does not have
    return (
        *_training(run, player),
        *edge_story(run, player),
        *spike_story(run, player),
        *changes(run, player),
        *_verdicts(run, player),
        *_gaps(run, player),
        *_cost(run),
    )


# --------------------------------------------------------------------------- how training went


def _training(run: Run, player: str | None) -> list[Sentence]:
    said = [*_standing(run, player)]
    steps, values, what = series.loss(run, player)
    finite = np.isfinite(values)
    if not len(steps):
        said.append(Sentence("training", "No loss was recorded."))
    elif not finite.any():
        said.append(Sentence("training", f"The {what} was not finite at any of {len(steps):,} steps.", _ends(steps)))
    else:
        said += _loss(steps, values, what)
    rates = [(r.step, r.lr) for r in run.records if r.lr is not None and r.player == _name(run, player)]
    if rates and all(math.isfinite(rate) for _, rate in rates):
        said.append(_rates(sorted(rates)))
    return said


def _standing(run: Run, player: str | None) -> list[Sentence]:
    """Whether the run ended, and how far it came."""
    name = _name(run, player)
    made = run.meta.get("steps")
    updates = made.get(name) if isinstance(made, dict) else None
    recorded = [r.step for r in run.records if r.player == name]
    reach = ""
    if isinstance(updates, int):
        reach = "1 update was made" if updates == 1 else f"{updates:,} updates were made"
    if not reach and recorded:
        begin, end = min(recorded), max(recorded)
        reach = f"records reach from {step(begin)} to {step(end)}" if begin < end else f"all records are of {step(end)}"
    if run.status == "failed":
        reason = str(run.meta.get("reason") or "").strip(" :")
        text = f"The run failed{f': {reason}' if reason else ''}{f'; {reach}' if reach else ''}."
    elif run.status == "finished":
        text = f"The run finished{f'; {reach}' if reach else ''}."
    else:
        text = f"The run is not finished: it is still going on, or was killed{f'; {reach}' if reach else ''}."
    said = [Sentence("training", text)]
    first = run.meta.get("first_step")
    if isinstance(first, int) and recorded and min(recorded) < first:
        said.append(Sentence("training", f"It was resumed at {step(first)}.", (first,)))
    if not recorded:
        said.append(Sentence("training", "Nothing was recorded."))
    return said


def _loss(steps: np.ndarray, values: np.ndarray, what: str) -> list[Sentence]:
    finite = np.isfinite(values)
    known, numbers = steps[finite], values[finite]
    first, last, least = int(known[0]), int(known[-1]), int(numbers.argmin())
    if len(known) == 1:
        said = [Sentence("training", f"The {what} was {number(numbers[0])} at {step(first)}.", (first,))]
    else:
        part = max(round(len(numbers) * LAST_PART), 1)
        end = f"{number(numbers[-1])} at {step(last)}"
        if part > 2:
            median = number(float(np.median(numbers[-part:])))
            end = f"{median}, the median of the last {part:,} of {len(numbers):,} values"
        lowest = f" The lowest was {number(numbers[least])}, at {step(int(known[least]))}."
        text = f"The {what} went from {number(numbers[0])} at {step(first)} to {end}.{lowest}"
        said = [Sentence("training", text, (first, int(known[least]), last))]
    if not finite.all():
        broken = steps[~finite]
        since = " and at all after it" if not finite[steps >= broken[0]].any() and len(broken) > 1 else ""
        text = f"The {what} was not finite at {len(broken):,} of {len(steps):,} steps, "
        text += f"first at {step(int(broken[0]))}{since}."
        said.append(Sentence("training", text, _ends(broken)))
    return said


def _rates(rates: list[tuple[int, float]]) -> Sentence:
    values = [rate for _, rate in rates]
    text = f"The learning rate was {number(values[0])} wherever it was recorded."
    if min(values) < max(values):
        text = f"The learning rate was between {number(min(values))} and {number(max(values))}, "
        text += f"and {number(values[-1])} at the last record."
    return Sentence("training", text, (rates[0][0], rates[-1][0]))


# --------------------------------------------------------------------------- verdicts, gaps, cost


def _verdicts(run: Run, player: str | None) -> list[Sentence]:
    audit = run.audit(player)
    if audit.steps is None:
        return [Sentence("verdict", "There is no verdict on stability: nothing was measured that one could rest on.")]
    groups: dict[str, list[str]] = {}
    for line in audit.criteria:
        if line.verdict != "NOT_APPLICABLE":
            name = NAMES.get(line.name, line.name)
            groups.setdefault(verdict(line.verdict).words, []).append(name)
    where = f"At {step(audit.steps[0])}" if audit.steps[0] == audit.steps[1] else f"Over {steps_between(*audit.steps)}"
    if not groups:
        return [Sentence("verdict", f"{where} no criterion of stability applies.", audit.steps)]
    parts = [f"{words}: {listed(names)}" for words, names in groups.items()]
    return [Sentence("verdict", f"{where} the audit finds: {'; '.join(parts)}.", audit.steps)]


def _gaps(run: Run, player: str | None) -> list[Sentence]:
    """What was not measured, failed or was put off."""
    name = _name(run, player)
    said = []
    found: dict[str, list] = {}
    for record in run.records:
        if record.player == name and record.probe not in NO_PROBES:
            found.setdefault(record.probe, []).append(record)
    for probe, records in found.items():
        records.sort(key=lambda r: r.step)
        for status, words in (
            ("error", "failed"),
            ("nonfinite", "met numbers that were not finite"),
            ("skipped", "was skipped"),
        ):
            bad = [r for r in records if r.status == status]
            if bad:
                said.append(_failures(probe, words, bad, len(records)))
    if isinstance(asked := run.meta.get("probes"), list):
        missing = [str(probe) for probe in asked if isinstance(probe, str) and probe not in found]
        if missing:
            verb = "has" if len(missing) == 1 else "have"
            said.append(
                Sentence("gaps", f"Of the probes that were asked for, {listed(missing)} {verb} left no record.")
            )
    for each in run.cost().probes:
        if each.player == name and (each.postponed or each.left_out):
            parts = [f"{each.postponed:,} made later than due"] if each.postponed else []
            parts += [f"{each.left_out:,} left out"] if each.left_out else []
            said.append(
                Sentence("gaps", f"The budget of time put off measurements of {each.probe}: {' and '.join(parts)}.")
            )
    if run.malformed:
        lines = "line" if run.malformed == 1 else "lines"
        said.append(
            Sentence("gaps", f"{run.malformed:,} {lines} of the records could not be read, and are missing here.")
        )
    return said


def _failures(probe: str, words: str, bad: list, many: int) -> Sentence:
    reasons = list(dict.fromkeys(_short(str(r.reason)) for r in bad if r.reason))
    why = f": {'; '.join(reasons[:MOST_REASONS])}" if reasons else ""
    more = f"; and {len(reasons) - MOST_REASONS} other reasons" if len(reasons) > MOST_REASONS else ""
    where = step(bad[0].step) if len(bad) == 1 else steps_between(bad[0].step, bad[-1].step)
    text = f"Probe {probe} {words} at {len(bad):,} of {many:,} measurements ({where}){why}{more}."
    return Sentence("gaps", text, tuple(dict.fromkeys((bad[0].step, bad[-1].step))))


def _short(reason: str) -> str:
    return reason if len(reason) <= LONGEST_REASON else f"{reason[: LONGEST_REASON - 1]}…"


def _cost(run: Run) -> list[Sentence]:
    cost = run.cost()
    if not cost.probes:
        return []
    products = sum(r.matvecs for r in run.records)
    share = f" of {seconds(cost.total)} ({100 * cost.share:.0f} %)" if cost.total and cost.share is not None else ""
    several = "of all players " if len(run.players) > 1 else ""
    text = f"Measuring {several}took {seconds(cost.seconds)}{share} and {products:,} curvature products."
    return [Sentence("cost", text)]


def _name(run: Run, player: str | None) -> str:
    return player if player is not None else next(iter(run.players), "model")


def _ends(steps: np.ndarray) -> tuple[int, ...]:
    return tuple(dict.fromkeys((int(steps[0]), int(steps[-1]))))
