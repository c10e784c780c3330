"""Figures of the live page that have no interactive version: drawn here, as pictures, now and then."""

from __future__ import annotations

from importlib.util import find_spec

from losscope.probes import Run

from ..captions import CAPTIONS, NARROW, WIDE, kinds
from ..figure import figure
from ..page_figures import drawn
from ..svg import inline_svg

__all__ = ["every", "still"]


def every(run: Run) -> list[str]:
    """The page's names of all figures that a run has now."""
    return [f"0-{i}-{kind}" for i, player in enumerate(run.players) for kind in kinds(run, player)]


def still(run: Run) -> list[dict[str, str]]:
    """Of each figure that the page's script does not draw: ``id``, ``place``, ``caption``, and SVG in two widths.

    Without plotly the script draws none.
    """
    interactive = find_spec("plotly") is not None
    return [
        {
            "id": f"0-{i}-{kind}", "place": f"0-{i}", "caption": CAPTIONS[kind],
            "wide": _svg(run, player, kind, WIDE[kind], f"still-{i}-{kind}-wide"),
            "narrow": _svg(run, player, kind, NARROW[kind], f"still-{i}-{kind}-narrow"),
        }
        for i, player in enumerate(run.players)
        for kind in kinds(run, player)
        if not (interactive and drawn(run, kind, player))
    ]  # fmt: skip


def _svg(run: Run, player: str, kind: str, size: tuple[float, float], prefix: str) -> str:
    made = figure(run, kind, player=player, size=size)
    made.suptitle("")  # the page says whose figure it is
    return inline_svg(made, prefix=prefix, title=f"{kind.replace('_', ' ').capitalize()} of {player}")
