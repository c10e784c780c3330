"""The run on a terminal, for those who work over ssh."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from losscope.landscape.errors import first_line
from losscope.probes import Run

from .. import series
from . import lines
from .feed import Feed
from .plot import curve, spans_much

__all__ = ["follow", "screen"]

SECONDS = 0.5
LEAST_PLOT, MOST_PLOT = 5, 12
SIDE_BY_SIDE = 100
SHARE = 0.2  # of one core at most, for reading and drawing
DRAWN = 20_000


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
        said += [lines.numbers(run, player), Text(), *lines.verdicts(run.audit(player), signs)]
    if not run.players:
        said += [Text(), Text("Nothing is recorded yet. This view goes on as soon as the training begins.")]
    rest = _room(Group(*head, *said, *tail), width, height)
    whole = Group(*head, *said, *_curves(run, width, rest, signs), *tail)
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


def _curves(run: Run, width: int, room: int | None, signs: bool) -> list[RenderableType]:
    """Sharpness and loss of each player, below each other, or side by side where there is width for it."""
    beside = width >= SIDE_BY_SIDE
    each = width // 2 - 1 if beside else width
    stacked = len(run.players) * (1 if beside else 2)
    for count in (stacked, 1):
        height = MOST_PLOT // 2 + 2 if room is None else min(room // max(count, 1) - 1, MOST_PLOT)
        if height >= LEAST_PLOT:
            break
    else:
        return []
    pairs = [_pair(run, player, each, height, signs) for player in run.players]
    found: list[RenderableType] = []
    for pair in pairs:
        found += [Columns(pair, width=each, padding=(0, 1, 0, 0))] if beside else pair
    return found[:count]


def _pair(run: Run, player: str, width: int, height: int, signs: bool) -> list[RenderableType]:
    sharpness = series.sharpness(run, player)
    steps, losses, name = series.loss(run, player)
    drawn = [
        ("sharpness, and its threshold (dashed)", sharpness.steps, sharpness.value, sharpness.threshold),
        (f"{name}, logarithmic" if spans_much(losses) else name, steps, losses, None),
    ]
    found: list[RenderableType] = []
    for title, at, values, threshold in drawn:
        if threshold is None:
            at, values = series.decimate(at, values, DRAWN)
        plotted = curve(at, values, width=width, height=height - 2, threshold=threshold, signs=signs) if len(at) else []
        if plotted:
            heading = Text(f"{' ' * 10}{title}", style="dim", no_wrap=True, overflow="ellipsis")
            found.append(Group(Text(), heading, *plotted))
    return found


def _signs(console: Console) -> bool:
    return (console.encoding or "").lower().replace("-", "").startswith("utf")
