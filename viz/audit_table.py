"""The audit on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from losscope.probes import Assumption, Audit, Criterion
from losscope.probes.phases import Phase

from .cleaned import Cleaned
from .explain import explanation
from .inert import clean
from .words import (
    against,
    course,
    evidence,
    headline,
    interval,
    number,
    rests_on,
    short_symbol,
    split,
    together,
    verdict,
)

__all__ = ["audit_table", "print_audit"]

STYLES = {"good": "green", "edge": "yellow", "bad": "bold red", "open": "blue", "none": "dim"}
HOLDS: tuple[tuple[bool | None, str], ...] = ((False, "not met"), (None, "not checked"), (True, "met"))


def print_audit(
    audit: Audit,
    console: Console | None = None,
    *,
    title: str = "",
    phases: Sequence[Phase] = (),
    explain: bool = False,
) -> None:
    """Print an audit: a row for each criterion that applies, what does not apply and why, and what it all rests on.

    Args:
        audit: the audit.
        console: where to; default: standard output, without colours when that is not a terminal.
        title: what was audited.
        phases: of the run.
        explain: say of every criterion what it compares, means and presumes, and who derived it.

    Example:
        >>> from losscope.probes import Run
        >>> from losscope.viz.audit_table import print_audit
        >>> from rich.console import Console
        >>> print_audit(Run.from_records({"players": {"model": {}}}, []).audit(), Console(width=80, no_color=True))
        <BLANKLINE>
        No verdict: No criterion applies: no measurement...
    """
    console = console or Console(highlight=False)
    shown = audit_table(audit, title=title, phases=phases, signs=_can_show_signs(console), explain=explain)
    console.print(Cleaned(shown), highlight=False)


def audit_table(
    audit: Audit, *, title: str = "", phases: Sequence[Phase] = (), signs: bool = True, explain: bool = False
) -> RenderableType:
    """What `print_audit` prints.

    Args:
        audit: the audit.
        title: what was audited.
        phases: of the run.
        signs: whether the console can show more than ASCII.
        explain: whether to explain every criterion.
    """
    said = headline(audit)
    parts: list[RenderableType] = [Text()]
    if title:
        parts.append(Text(clean(title), style="bold"))
    parts.append(Text.assemble((f"{said.title}: ", STYLES[said.shown.tone]), clean(said.sentence)))
    if audit.steps is not None:
        parts.append(Text(rests_on(audit), style="dim"))
    if phases:
        parts.append(Text(f"Phases: {course(phases)}.", style="dim"))
    if audit.note:
        parts.append(Text(f"Note: {clean(audit.note)}."))
    lines, rest = split(audit)
    if lines:
        parts += [Text(), _table(lines, signs)]
    if audit.steps is not None:
        parts += _section("Does not apply", together(rest), style="dim")
    if explain:
        for criterion in (*lines, *rest):
            parts += _section(*explanation(criterion))
    else:
        parts += _section("What the verdicts rest on", _why(lines))
        for holds, words in HOLDS[:2]:
            parts += _section(f"Presumed and {words}", _presumed(lines, holds), style="dim")
    parts += _section("Preconditions of the run", _preconditions(audit.preconditions))
    if audit.steps is not None:
        reasons = "" if explain else "; ".join(line.reason for line in lines).lower()
        parts += _section("Evidence", [each for each in evidence(audit) if each.lower() not in reasons])
    return Group(*parts)


def _table(lines: Sequence[Criterion], signs: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("criterion", no_wrap=True)
    table.add_column("ratio", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for line in lines:
        shown = verdict(line.verdict)
        ratio, within = number(line.ratio), interval(line.ratio_low, line.ratio_high)
        sign, dash = (shown.symbol, "–") if signs else (shown.plain, "-")
        table.add_row(
            Text.assemble(line.name, "\n", (clean(short_symbol(line)), "dim")),
            Text.assemble(ratio.replace("–", dash), "\n", (within, "dim")),
            Text.assemble(
                (f"{sign} {shown.words}", STYLES[shown.tone]),
                "\n",
                (clean(against(line)).replace("–", dash), "dim"),
            ),
        )
    return table


def _why(lines: Iterable[Criterion]) -> list[str]:
    """Verdicts by code, with kind and reason; those that share all of it in one line."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for line in lines:
        found.setdefault((line.verdict, line.kind, line.reason), []).append(line.name)
    return [f"{', '.join(names)}: {code} ({kind}): {reason}" for (code, kind, reason), names in found.items()]


def _presumed(lines: Sequence[Criterion], holds: bool | None) -> list[str]:
    """Assumptions of that standing, each once, with the criteria that make it."""
    found: dict[str, list[str]] = {}
    for line in lines:
        for assumption in line.assumptions:
            if assumption.holds is holds:
                found.setdefault(assumption.text, []).append(line.name)
    return [f"{text}{_those(names, [line.name for line in lines])}" for text, names in found.items()]


def _those(names: Sequence[str], everyone: Sequence[str]) -> str:
    """Which they are of all, shortly."""
    others = [name for name in everyone if name not in names]
    if not others:
        return ""
    return f" [{', '.join(names)}]" if len(names) <= 2 * len(others) else f" [all but {', '.join(others)}]"


def _preconditions(found: Sequence[Assumption]) -> list[str]:
    return [f"{words}: {each.text}" for holds, words in HOLDS for each in found if each.holds is holds]


def _section(heading: str, said: Sequence[str], style: str = "") -> list[RenderableType]:
    """A heading and what stands below it, indented; nothing where nothing does."""
    if not said:
        return []
    indented = [Padding(Text(clean(each), style=style), (0, 0, 0, 2), expand=False) for each in said]
    return [Text(), Text(clean(heading), style=f"bold {style}".strip()), *indented]


def _can_show_signs(console: Console) -> bool:
    return (console.encoding or "").lower().replace("-", "").startswith("utf")
