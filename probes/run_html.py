"""A run and its audit as small HTML tables, which notebooks show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from losscope.landscape.html_table import between, html_table, number

from .records import Record

if TYPE_CHECKING:
    from .audit import Audit
    from .run import Run

__all__ = ["audit_html", "run_html"]

UNITS = {"curvature": "loss / parameter²", "threshold": "of the threshold", "ratio": ""}


def run_html(run: Run) -> str:
    """What every probe of a run last measured, with its interval, and what failed."""
    last = max((record.step for record in run.records), default=None)
    steps = "" if last is None else f", up to step {last:,}"
    rows = [
        row
        for player in run.players or ["model"]
        for probe in run.probes
        if (row := _row(player if len(run.players) > 1 else "", run.select(probe, player, ok=False)))
    ]
    header = ("player", "probe", "measured", "step", "last value", "interval", "unit", "failed")
    return html_table(f"Run {run.name}: {run.status}{steps}", header, rows, str(run.meta.get("reason") or ""))


def _row(player: str, records: list[Record]) -> list[str]:
    if not records:
        return []
    kept = [record for record in records if record.status == "ok"]
    failed = len(records) - len(kept)
    row = [player, records[0].probe, str(len(kept)), "", "", "", "", str(failed) if failed else ""]
    if kept and kept[-1].value is not None:
        last = kept[-1]
        unit = UNITS.get(last.unit, last.unit)
        row[3:7] = [f"{last.step:,}", number(last.value), between(last.low, last.high), unit]
    return row


def audit_html(audit: Audit) -> str:
    """The criteria that apply: what was measured against what, verdict and reason; the others below, by reason."""
    rows = [
        [
            line.name, line.verdict.lower().replace("_", " "), number(line.ratio, 3), line.symbol,
            number(line.measured, 4), between(line.low, line.high),
            f"{line.formula} = {number(line.threshold, 4)}" if line.threshold is not None else line.formula,
            line.reason,
        ]
        for line in audit.criteria if line.verdict != "NOT_APPLICABLE"
    ]  # fmt: skip
    left_out: dict[str, list[str]] = {}
    for line in audit.criteria:
        if line.verdict == "NOT_APPLICABLE":
            left_out.setdefault(line.reason, []).append(line.name)
    not_applied = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in left_out.items())
    where = "nothing measured" if audit.steps is None else f"steps {audit.steps[0]:,} to {audit.steps[1]:,}"
    header = ("criterion", "verdict", "ratio", "", "measured", "interval", "threshold", "reason")
    note = ". ".join(filter(None, (audit.evidence, audit.note, not_applied and f"Does not apply: {not_applied}")))
    return html_table(f"Stability audit of {audit.player}: {where}", header, rows, note)
