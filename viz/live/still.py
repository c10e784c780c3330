"""Figures of the live page that have no interactive version: drawn here, as pictures, now and then."""

from __future__ import annotations

from importlib.util import find_spec

from losscope.landscape import RunError
from losscope.landscape.errors import first_line
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

    Where it cannot be drawn, ``missing`` says why. Without plotly the script draws none.
    """
    return [
        {"id": f"0-{i}-{kind}", "place": f"0-{i}", "caption": CAPTIONS[kind]}
        | _pictures(run, player, kind, f"{i}-{kind}")
        for i, player in enumerate(run.players)
        for kind in kinds(run, player)
        if not _by_script(run, player, kind)
    ]


def _by_script(run: Run, player: str, kind: str) -> bool:
    try:
        return find_spec("plotly") is not None and drawn(run, kind, player) is not None
    except Exception:  # which the picture tells of
        return False


def _pictures(run: Run, player: str, kind: str, key: str) -> dict[str, str]:
    try:
        return {
            width: _svg(run, player, kind, sizes[kind], f"still-{key}-{width}")
            for width, sizes in (("wide", WIDE), ("narrow", NARROW))
        }
    except RunError as error:  # e.g. its arrays are gone
        return {"missing": str(error)}
    except Exception as error:  # one that fails must not take the others with it
        return {"missing": f"{type(error).__name__}: {first_line(error)}"}


def _svg(run: Run, player: str, kind: str, size: tuple[float, float], prefix: str) -> str:
    made = figure(run, kind, player=player, size=size)
    made.suptitle("")  # the page says whose figure it is
    return inline_svg(made, prefix=prefix, title=f"{kind.replace('_', ' ').capitalize()} of {player}")
