"""What a run comes to just now, in lines for a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from losscope.probes import Audit, Record, Run

from .. import series
from ..audit_table import STYLES
from ..inert import clean
from ..words import headline, interval, number, seconds, short_symbol, split, times, verdict

__all__ = ["clean", "cost", "failures", "heading", "numbers", "others", "standing", "verdicts"]

MOST_FAILURES = 3
LONGEST = 60
SILENCE = 60.0
"""Seconds without a record after which a run may have been killed."""
SAID_ELSEWHERE = ("log", "oscillation", "stability", "sharpness", "trace", "midpoint")


def standing(status: str, age: float | None) -> str:
    """How a run stands, in a word or two.

    Args:
        status: of the run; ``"waiting"`` where there is nothing yet.
        age: of its last record, in seconds; None where there is none.

    Example:
        >>> from losscope.viz.live.lines import standing
        >>> standing("running", 2.0), standing("running", 3600.0), standing("finished", 3600.0)
        ('running', 'running, or killed', 'finished')
    """
    if status == "waiting":
        return "waiting for the run to begin"
    silent = status == "running" and age is not None and age > SILENCE
    return "running, or killed" if silent else clean(status, LONGEST)


def heading(run: Run, problem: str = "", now: float | None = None) -> list[Text]:
    """Name, status, last step, and how old the last record is; then what is wrong, if anything."""
    youngest = max(run.records, key=lambda record: (record.time, record.step), default=None)
    age = None
    if youngest is not None and youngest.time > 0:
        age = max((time.time() if now is None else now) - youngest.time, 0.0)
    said = [standing(run.status if run.players else "waiting", age)]
    if youngest is not None:
        many = f"{len(run.records):,} record" + ("s" if len(run.records) > 1 else "")
        said += [f"step {youngest.step:,}", many]
    elif run.players:
        said.append("no records yet")
    if age is not None:
        said.append(f"last one {seconds(age)} ago")
    lines = [Text.assemble((clean(run.name, LONGEST), "bold"), "  ", " · ".join(said))]
    if reason := run.meta.get("reason"):
        lines.append(Text(clean(str(reason)), style="bold red"))
    if run.malformed:
        lines.append(Text(f"{run.malformed:,} lines of records.jsonl cannot be read", style="yellow"))
    if problem:
        lines.append(Text(clean(problem), style="bold red"))
    return lines


def numbers(run: Run, player: str) -> Table:
    """The latest loss, sharpness and trace."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=24)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(overflow="fold")
    steps, losses, _ = series.loss(run, player)
    if len(steps):
        table.add_row("loss", number(float(losses[-1])), Text(f"step {steps[-1]:,}", style="dim"))
    sharpness = series.sharpness(run, player)
    if len(sharpness):
        table.add_row("sharpness", number(float(sharpness.value[-1])), Text(_sharpness(run, player), style="dim"))
    trace = _trace(run, player)
    if trace is not None:
        said = [interval(trace.low, trace.high), f"step {trace.step:,}"]
        table.add_row("trace", number(trace.value), Text(", ".join(each for each in said if each), style="dim"))
    return table


def others(run: Run, player: str) -> list[Text]:
    """The latest value of each further probe, in a line."""
    found: dict[str, Record] = {}
    for record in run.records:
        if record.player == player and record.status == "ok" and record.probe not in SAID_ELSEWHERE:
            found[record.probe] = max(found.get(record.probe, record), record, key=lambda each: each.step)
    said = [
        f"{clean(probe, LONGEST)} {number(record.value)} (step {record.step:,})"
        for probe, record in found.items()
        if record.value is not None
    ]
    return [Text(f"also  {', '.join(said)}", style="dim")] if said else []


def _sharpness(run: Run, player: str) -> str:
    """Interval, ratio to the threshold, step."""
    found = series.sharpness(run, player)
    low, high, threshold = (_known(each[-1]) for each in (found.low, found.high, found.threshold))
    said = [interval(low, high)]
    if threshold:
        formula = clean(str(series.facts(run, player).get("threshold_formula") or "its threshold"), 30)
        said.append(f"{times(float(found.value[-1]) / threshold)} times {formula} = {number(threshold)}")
    return ", ".join([each for each in said if each] + [f"step {found.steps[-1]:,}"])


def _known(value: float) -> float | None:
    return float(value) if value == value else None


def _trace(run: Run, player: str) -> Record | None:
    """The last one, of probe ``trace`` or of ``stability``."""
    if measured := run.select("trace", player):
        return measured[-1]
    for record in reversed(run.select("stability", player)):
        if (value := record.values.get("trace")) is not None:
            low, high = record.values.get("trace_low"), record.values.get("trace_high")
            return Record(record.step, player, "trace", value=value, low=low, high=high)
    return None


def verdicts(audit: Audit, signs: bool = True) -> list[Text]:
    """The verdict in a sentence, and each criterion that applies in a line."""
    said = headline(audit)
    applies, _ = split(audit)
    lines = [Text.assemble((f"{said.title}: ", STYLES[said.shown.tone]), clean(said.sentence))]
    for line in applies:
        shown = verdict(line.verdict)
        within = interval(line.ratio_low, line.ratio_high)
        ratio = f"{number(line.ratio)}" + (f" ({within})" if within else "")
        lines.append(
            Text.assemble(
                (f"{shown.symbol if signs else shown.plain} ", STYLES[shown.tone]), f"{clean(line.name)}  {ratio}  ",
                (shown.words, STYLES[shown.tone]), (f"  {clean(short_symbol(line))}", "dim"),
                no_wrap=True, overflow="ellipsis",
            )
        )  # fmt: skip
    return lines


def failures(run: Run) -> list[Text]:
    """The last measurements that failed, the latest first; those with the same words once."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for record in run.records:
        if record.status != "ok":
            found.setdefault((record.probe, record.status, record.reason or ""), []).append(record.step)
    latest = sorted(found.items(), key=lambda each: -max(each[1]))[:MOST_FAILURES]
    return [_failure(*kind, steps) for kind, steps in latest]


def _failure(probe: str, status: str, reason: str, steps: Sequence[int]) -> Text:
    what = "not finite" if status == "nonfinite" else clean(status, LONGEST)
    times = f", {len(steps)} times" if len(steps) > 1 else ""
    said = f"step {max(steps):,}{times}: {clean(probe, LONGEST)} {what}" + (f": {clean(reason)}" if reason else "")
    return Text(said, style="red", no_wrap=True, overflow="ellipsis")


def cost(run: Run) -> Text:
    """What the measuring took, as a whole and by probe."""
    found = run.cost()
    probes = [f"{clean(each.probe, 24)} {each.seconds:.2g} s" for each in found.probes if each.seconds > 0]
    said = found.notes()[0] + (f": {', '.join(probes)}" if probes else "")
    return Text(said[0].upper() + said[1:], style="dim", no_wrap=True, overflow="ellipsis")
