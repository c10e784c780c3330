"""Several runs side by side: a table of facts and verdicts in which differences are marked, and curves in one panel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from losscope.probes import Criterion, Run

from .edge_story import readings
from .facts import player_facts, run_facts
from .names import run_names, shortened
from .overlay import plot_overlay
from .quantities import quantity
from .traces import curve, layout
from .words import headline, number, times, verdict

__all__ = ["Compared", "Row", "compare", "distinct_runs", "overlaid", "overlay", "overlays"]

QUANTITIES = {
    "sharpness": "Sharpness of each run, at the weights before each step. Dashed: the threshold of its optimizer.",
    "sharpness/threshold": "Sharpness of each run over the threshold of its own optimizer and rate: at 1 it is met.",
    "loss": "The loss of each run.",
    "trace": "The trace of the Hessian of each run.",
}
"""What is drawn of all runs together where any of them has it, with its caption."""
LABELS = {
    "sharpness": "sharpness [loss / parameter²]", "sharpness/threshold": "sharpness / threshold", "loss": "loss",
    "trace": "trace [loss / parameter²]",
}  # fmt: skip
COLOURS = ("blue", "vermillion", "green", "purple", "orange", "sky", "ink")
DASHES = ("solid", "dash", "dot", "dashdot")
WIDE_RATIO = 30.0
VARYING = ("created", "finished", "cost of watching")
"""Facts that differ between any two runs, so that to mark them says nothing."""


NOWHERE = f"{verdict('NOT_APPLICABLE').symbol} {verdict('NOT_APPLICABLE').words}"


@dataclass(frozen=True)
class Row:
    """One fact of all runs.

    Attributes:
        name: what it is.
        cells: its words, one for each column; empty where a run does not say.
        differs: whether the columns do.
    """

    name: str
    cells: tuple[str, ...]
    differs: bool


@dataclass(frozen=True)
class Compared:
    """Runs side by side.

    Attributes:
        columns: names of the runs; of runs with several players, one for each.
        rows: facts, readings and verdicts.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def distinct_runs(runs: Sequence[Run]) -> list[Run]:
    """The runs without those that were given before: the same object, or the same folder."""
    found: dict[Any, Run] = {}
    for run in runs:
        found.setdefault(id(run) if run.path is None else run.path.resolve(), run)
    return list(found.values())


def compare(runs: Sequence[Run]) -> Compared:
    """Set the facts and verdicts of runs side by side.

    Args:
        runs: two or more; they may have watched different things.

    Returns:
        A row for each fact that any of them has.

    Example:
        >>> from losscope.probes import Run
        >>> from losscope.viz.compare import compare
        >>> a, b = (Run.from_records({"status": s, "players": {"model": {}}}, []) for s in ("finished", "failed"))
        >>> compare([a, b]).rows[0]
        Row(name='status', cells=('finished', 'failed'), differs=True)
    """
    columns, facts = [], []
    for name, run in zip(run_names(runs), runs, strict=True):
        for player in run.players or ["model"]:
            columns.append(f"{name}: {player}" if len(run.players) > 1 else name)
            facts.append(dict(_facts(run, player)))
    names = _in_order([list(each) for each in facts])
    rows = []
    for name in names:
        cells = tuple(each.get(name, "") for each in facts)
        if set(cells) - {"", NOWHERE}:
            rows.append(Row(name, cells, differs=len(set(cells)) > 1 and name not in VARYING))
    return Compared(tuple(columns), tuple(rows))


def _facts(run: Run, player: str) -> Iterator[tuple[str, str]]:
    """What is told of one column, by name."""
    facts = run_facts(run)
    yield from facts[:1]
    audit = run.audit(player)
    yield "verdict", headline(audit).title
    yield from _readings(run, player)
    yield from player_facts(run, player)
    for line in audit.criteria:
        yield f"audit: {line.name}", _verdict(line)
    yield from facts[1:]


def _readings(run: Run, player: str) -> Iterator[tuple[str, str]]:
    found = readings(run, player)
    if found:
        first = next((reading.step for reading in found if reading.ratio > 1), None)
        yield "sharpness / threshold, last", f"{times(found[-1].ratio)} at step {found[-1].step:,}"
        most = max(found, key=lambda reading: reading.ratio)
        yield "sharpness / threshold, largest", f"{times(most.ratio)} at step {most.step:,}"
        yield "first measured above the threshold", "never" if first is None else f"at step {first:,}"
    for name in ("loss", "trace"):
        data = quantity(run, name, player).data
        known = np.flatnonzero(np.isfinite(data.value))
        if len(known):
            yield f"{name}, last", f"{number(float(data.value[known[-1]]))} at step {int(data.steps[known[-1]]):,}"


def _verdict(line: Criterion) -> str:
    said = verdict(line.verdict)
    ratio = "" if line.ratio is None or line.verdict == "NOT_APPLICABLE" else f", ratio {times(line.ratio)}"
    return f"{said.symbol} {said.words}{ratio}"


def _in_order(lists: Sequence[Sequence[str]]) -> list[str]:
    """All names, each list's in its order: what only a later list has comes after what it follows there."""
    order: list[str] = []
    for names in lists:
        at = 0
        for name in names:
            if name in order:
                at = max(at, order.index(name) + 1)
            else:
                order.insert(at, name)
                at += 1
    return order


# --------------------------------------------------------------------------- curves


def overlays(runs: Sequence[Run]) -> list[str]:
    """Names of the quantities that are drawn of all runs together: those that any of them has."""
    found = [name for name in QUANTITIES if any(quantity(run, name, p) for run in runs for p in run.players)]
    levels = {float(level) for run in runs for p in run.players for level in _levels(run, p)}
    return [name for name in found if name != "sharpness/threshold" or len(levels) > 1]


def _levels(run: Run, player: str) -> np.ndarray:
    threshold = quantity(run, "sharpness", player).data.threshold
    return np.unique(threshold[np.isfinite(threshold)].round(9))


def overlay(runs: Sequence[Run], name: str, size: tuple[float, float]) -> Figure:
    """One quantity of all runs as a figure."""
    named = dict(zip(run_names(runs), runs, strict=True))
    made = plot_overlay(named, name, size=size).get_figure(root=True)
    assert isinstance(made, Figure)
    return made


def overlaid(runs: Sequence[Run], name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The same for the page's script: traces and layout."""
    several = any(len(run.players) > 1 for run in runs)
    pairs = [(run, title, player) for title, run in zip(run_names(runs), runs, strict=True) for player in run.players]
    titles = shortened([f"{title}: {player}" if several else title for _, title, player in pairs])
    drawn: list[tuple[float, list[dict[str, Any]]]] = []
    shown = [np.zeros(0)]
    for index, ((run, _, player), title) in enumerate(zip(pairs, titles, strict=True)):
        data = quantity(run, name, player).data
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]
        low, high = (data.low, data.high) if np.isfinite(data.low).any() else (None, None)
        traces = curve(data.steps, data.value, title, colour, low=low, high=high, dash=dash)
        if name == "sharpness":
            words = f"threshold of {title}"
            traces += curve(
                data.steps, data.threshold, words, colour, dash="dash", width=1, legend=False, stepwise=True
            )
        drawn.append((_roughness(data.value), [trace | {"legendrank": 1000 + index} for trace in traces]))
        shown.append(data.value)
    drawn.sort(key=lambda each: -each[0])  # a noisy curve must not cover a smooth one
    values = np.concatenate(shown)
    values = values[np.isfinite(values)]
    far = len(values) > 0 and values.min() > 0 and values.max() / values.min() > WIDE_RATIO
    rows = [{"title": LABELS[name], "type": "log" if far else "linear"}]
    return [trace for _, traces in drawn for trace in traces], layout(rows)


def _roughness(values: np.ndarray) -> float:
    """How far neighbours are from a smooth course."""
    second = np.abs(np.diff(values[np.isfinite(values)], 2))
    return float(np.median(second)) if len(second) else 0.0
