"""The lines of several runs in one figure: which there are, what each is called and how it looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps

from losscope.landscape import SettingError
from losscope.probes import Run

from . import style
from .names import distinct, run_names, shortened
from .quantities import Quantity, quantity, recorded
from .series import Series, facts
from .style import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, VERMILLION

__all__ = ["LEGIBLE", "Line", "Look", "lines_of", "nothing"]

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK)
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "<", ">", "h", "*", "p")
LEGIBLE = len(MARKERS)
"""Lines that are told apart one by one; of more the colour says the order."""


@dataclass(frozen=True)
class Look:
    """How a line looks among others.

    Attributes:
        index: its place.
        of: how many there are.
    """

    index: int
    of: int

    @property
    def many(self) -> bool:
        """Whether there are more than can be told apart one by one."""
        return self.of > LEGIBLE

    @property
    def options(self) -> dict[str, Any]:
        """For matplotlib's lines: colour, dash and marker, or the colour alone of very many."""
        if self.many:
            return {"color": colormaps["viridis"](0.9 * self.index / (self.of - 1)), "linestyle": "-"}
        return {
            "color": COLOURS[self.index % len(COLOURS)], "linestyle": "-" if self.index < len(COLOURS) else "-.",
            "marker": MARKERS[self.index], "markersize": 4,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Line:
    """One quantity of one player of one run.

    Attributes:
        name: as the legend has it.
        found: the quantity; empty where it is missing.
        formula: of its threshold.
        run: where it is from.
        player: whose it is.
    """

    name: str
    found: Quantity
    formula: str
    run: Run
    player: str

    @property
    def label(self) -> str:
        """The name, what is to be known of the quantity, and how many measurements gave no number."""
        lost = self.found.missing
        kinds = ((lost.nonfinite, "not finite"), (lost.errors, "failed"), (lost.beyond, "beyond any axis"))
        said = [self.found.of] if self.found.of else []
        said += [f"{len(steps):,} {word}" for steps, word in kinds if steps]
        return f"{self.name} ({', '.join(said)})" if said else self.name

    @property
    def from_below(self) -> bool:
        """Whether some of its values are lower bounds alone."""
        data = self.found.data
        return self.found.from_below and not data.bounded[np.isfinite(data.value)].all()

    @property
    def thinned(self) -> Series:
        """Its numbers, of very many those that show the extremes."""
        return self.found.data.thinned()


def lines_of(runs: Any, name: str, player: str | None, plot: str) -> list[Line]:
    """A line for every player of every run, by names that differ.

    Args:
        runs: one run, several, or several by name.
        name: of the quantity.
        player: one player of each; None for all.
        plot: the function that draws them, for errors.

    Raises:
        SettingError: if there is no run.
    """
    if isinstance(runs, Run):
        runs = [runs]
    every = list(runs.values()) if isinstance(runs, Mapping) else list(runs) if isinstance(runs, Sequence) else [runs]
    if wrong := [type(run).__name__ for run in every if not isinstance(run, Run)]:
        raise SettingError(f"{plot} draws runs: Run(folder), several in a list, or several by name; got {wrong[0]}")
    if not every:
        raise SettingError(f"{plot} draws runs, one or more; got none")
    names = [str(key) for key in runs] if isinstance(runs, Mapping) else run_names(every)
    several = player is None and any(len(run.players) > 1 for run in every)
    found = []
    for title, run in zip(names, every, strict=True):
        known = run.players or ["model"]
        for one in known if player is None else [player]:
            there = one in known
            source = run if there else Run.from_records({"players": {one: {}}}, [])  # it has nothing of this player
            formula = str(facts(run, one).get("threshold_formula") or "") if there else ""
            found.append((f"{title}: {one}" if several else title, quantity(source, name, one), formula, run, one))
    titles = shortened(distinct([title for title, *_ in found]))
    return [Line(style.plain(title), *rest) for title, (_, *rest) in zip(titles, found, strict=True)]


def nothing(lines: Sequence[Line], name: str) -> str:
    """What to say where no run has the quantity, and which they have."""
    name = style.plain(name, 40)
    if any(line.found.missing.nonfinite or line.found.missing.errors for line in lines):
        return f"no finite {name} recorded"
    there = list(dict.fromkeys(each for line in lines for each in recorded(line.run)))
    said = ", ".join(there[:3]) + (", ..." if len(there) > 3 else "")
    return f"no {name} recorded" + (f"\nthere is {style.plain(said)}" if there else "")
