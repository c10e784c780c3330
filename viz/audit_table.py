"""The audit on a terminal."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from losscope.probes import Audit, Criterion

from .words import headline, interval, number, verdict

__all__ = ["audit_table", "print_audit"]

STYLES = {"good": "green", "edge": "yellow", "bad": "bold red", "open": "blue", "none": "dim"}


def print_audit(audit: Audit, console: Console | None = None, *, title: str = "") -> None:
    """Print an audit: a table with one row per criterion, and below it what each verdict rests on.

    Args:
        audit: the audit.
        console: where to; default: standard output, without colours when that is not a terminal.
        title: what was audited.

    Example:
        >>> from losscope.probes import Run
        >>> from losscope.viz.audit_table import print_audit
        >>> from rich.console import Console
        >>> print_audit(Run.from_records({"players": {"model": {}}}, []).audit(), Console(width=80, no_color=True))
        <BLANKLINE>
        No verdict: No criterion applies: no measurement...
    """
    console = console or Console(highlight=False)
    console.print(audit_table(audit, title=title, signs=_can_show_signs(console)), highlight=False)


def audit_table(audit: Audit, *, title: str = "", signs: bool = True) -> RenderableType:
    """What `print_audit` prints.

    Args:
        audit: the audit.
        title: what was audited.
        signs: whether the console can show more than ASCII.
    """
    said = headline(audit)
    parts: list[RenderableType] = [Text()]
    if title:
        parts.append(Text(title, style="bold"))
    parts.append(Text.assemble((f"{said.title}: ", STYLES[said.shown.tone]), said.sentence))
    if audit.steps is not None:
        many = f"{audit.measurements} measurement" + ("s" if audit.measurements != 1 else "")
        parts.append(Text(f"Medians over {many}, steps {audit.steps[0]:,} to {audit.steps[1]:,}.", style="dim"))
    if audit.note:
        parts.append(Text(f"Note: {audit.note}."))
    if audit.steps is not None:
        parts += [Text(), _table(audit, signs)]
    for criterion in audit.criteria:
        parts += [Text(), _why(criterion)]
    return Group(*parts)


def _table(audit: Audit, signs: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for name in ("criterion", "measured", "threshold", "ratio", "verdict"):
        table.add_column(name, no_wrap=name == "criterion", overflow="fold")
    for criterion in audit.criteria:
        shown = verdict(criterion.verdict)
        sign = shown.symbol if signs else shown.plain
        table.add_row(
            f"{criterion.name}\n{criterion.symbol.rpartition(' = ')[2]}",
            _plain(f"{number(criterion.measured)}\n{interval(criterion.low, criterion.high)}", signs),
            _plain(f"{number(criterion.threshold)}\n{criterion.formula}", signs),
            _plain(f"{number(criterion.ratio)}\n{interval(criterion.ratio_low, criterion.ratio_high)}", signs),
            Text(f"{sign} {shown.words}", style=STYLES[shown.tone]),
            style="dim" if criterion.verdict == "NOT_APPLICABLE" else "",
        )
    return table


def _why(criterion: Criterion) -> Text:
    """The verdict's code, its kind, its reason, and the assumptions that do not simply hold."""
    text = Text.assemble((f"{criterion.name}: {criterion.verdict}", "bold"), f" ({criterion.kind})\n", criterion.reason)
    for holds, words in ((False, "not met"), (None, "not checked")):
        found = [a.text for a in criterion.assumptions if a.holds is holds]
        if found:
            text.append(f"\n{words}: {'; '.join(found)}", style="dim")
    return text


def _plain(text: str, signs: bool) -> str:
    return text if signs else text.replace("–", "-")


def _can_show_signs(console: Console) -> bool:
    return (console.encoding or "").lower().replace("-", "").startswith("utf")
