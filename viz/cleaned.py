"""What is printed on a terminal, without what a terminal might obey: folders of runs may come from anyone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from .inert import clean

__all__ = ["Cleaned"]


@dataclass(frozen=True)
class Cleaned:
    r"""Something to print, with escape sequences, controls and marks of direction in its words made visible.

    Attributes:
        shown: what rich would print.

    Example:
        >>> from rich.console import Console
        >>> from rich.text import Text
        >>> from losscope.viz.cleaned import Cleaned
        >>> Console(width=40, no_color=True).print(Cleaned(Text("probe\x1b[2J\nof a run")))
        probe·[2J
        of a run
    """

    shown: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        """The segments of what is shown, their words cleaned line by line."""
        for segment in console.render(self.shown, options):
            words = "\n".join(map(clean, segment.text.split("\n")))
            yield segment if segment.control else Segment(words, segment.style)
