"""The run on a terminal, for those who work over ssh."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from losscope.landscape.errors import first_line
from losscope.probes import Run

from . import lines
from .feed import Feed
from .panels import panels

__all__ = ["follow", "screen"]

SECONDS = 0.5
SHARE = 0.2  # of one core at most, for reading and drawing


def follow(path: Path, console: Console | None = None, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show a run until Ctrl-C; where standard output is no terminal, once.

    Args:
        path: the run folder.
        console: where to; default: standard output.
        sleep: waits so many seconds.

    Raises:
        RunError: if there is no run.
    """
    console = console or Console(highlight=False)
    feed = Feed(path)
    # Not console.is_terminal, which FORCE_COLOR sets.
    if not getattr(console.file, "isatty", bool)() or console.is_dumb_terminal:
        console.print(screen(feed.run, feed.problem, width=console.width, signs=_signs(console)))
        return
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                begun = time.monotonic()
                feed.look()
                live.update(_fitting(feed, console), refresh=True)
                sleep(max(SECONDS, (time.monotonic() - begun) * (1 / SHARE - 1)))
    except KeyboardInterrupt:
        console.print(screen(feed.run, feed.problem, width=console.width, signs=_signs(console)))


def _fitting(feed: Feed, console: Console) -> RenderableType:
    width, height = console.size
    try:
        return screen(feed.run, feed.problem, width=width, height=height, signs=_signs(console))
    except Exception as error:  # what cannot be shown now may be with the next record
        return Text(lines.clean(f"this run cannot be shown: {type(error).__name__}: {first_line(error)}"))


def screen(
    run: Run, problem: str = "", *, width: int = 80, height: int | None = None, signs: bool = True
) -> RenderableType:
    """Everything in one picture: numbers, verdicts, curves, failures, cost.

    Args:
        run: the run as it stands.
        problem: why it cannot be followed just now.
        width: columns.
        height: lines; what does not fit is left out, curves first. None for as many as there need be.
        signs: whether more than ASCII can be shown.

    Example:
        >>> from losscope.probes import Record, Run
        >>> from losscope.viz.live.terminal import screen
        >>> from rich.console import Console
        >>> run = Run.from_records({"players": {"model": {}}}, [Record(3, "model", "trace", value=2.5)])
        >>> Console(width=60, no_color=True).print(screen(run, width=60))
        run  running · step 3 · 1 record
        <BLANKLINE>
        trace  2.5  step 3
        <BLANKLINE>
        No verdict: No criterion applies: ...
        <BLANKLINE>
        Measuring took 0 s
    """
    head, tail = lines.heading(run, problem), _tail(run)
    said: list[RenderableType] = []
    for player in run.players:
        said.append(
            Text(lines.clean(player, lines.LONGEST), style="bold underline") if len(run.players) > 1 else Text()
        )
        said += [lines.numbers(run, player), *lines.others(run, player), Text()]
        said += lines.verdicts(run.audit(player), signs)
    if not run.players:
        said += [Text(), Text("Nothing is recorded yet. This view goes on as soon as the training begins.")]
    rest = _room(Group(*head, *said, *tail), width, height)
    whole = Group(*head, *said, *panels(run, width, rest, signs), *tail)
    return whole if signs else _Ascii(whole)


class _Ascii:
    """The same for a terminal that shows no more than ASCII."""

    def __init__(self, said: RenderableType) -> None:
        self._said = said

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text, style, control in console.render(self._said, options):
            plain = text.translate({ord("·"): "-", ord("–"): "-", ord("…"): "."}).encode("ascii", "replace")
            yield Segment(plain.decode("ascii"), style, control)


def _tail(run: Run) -> list[RenderableType]:
    failed = lines.failures(run)
    found: list[RenderableType] = [Text(), *failed] if failed else []
    return [*found, Text(), lines.cost(run)] if run.records else found


def _room(said: RenderableType, width: int, height: int | None) -> int | None:
    """Lines that are left for curves."""
    if height is None:
        return None
    return height - len(Console(width=width, height=height).render_lines(said, pad=False))


def _signs(console: Console) -> bool:
    return (console.encoding or "").lower().replace("-", "").startswith("utf")
