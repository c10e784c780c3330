"""Figures as inline SVG: several on one page, small, in the page's own colours, readable by a screen reader."""

from __future__ import annotations

import html
import io
import itertools
import re

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from . import style
from .words import shown

__all__ = ["COLOURS", "Glyphs", "inline_svg"]

COLOURS = {
    name.lower(): getattr(style, name)
    for name in ("INK", "MUTED", "GRID", "PAPER", "BLUE", "VERMILLION", "GREEN", "ORANGE", "PURPLE", "SKY")
}
"""Colours of our figures by the name of the page's CSS variable."""


class Glyphs:
    """The outlines of letters that the figures of a page share; without, they are a third of its size."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._others = itertools.count()

    def name(self, outline: str) -> str:
        """The id under which a path is drawn."""
        return self._names.setdefault(outline, f"g{len(self._names)}")

    @property
    def names(self) -> set[str]:
        """The ids of the outlines so far."""
        return set(self._names.values())

    def another(self) -> str:
        """An id that nothing else on the page has."""
        return f"m{next(self._others)}"

    def defs(self) -> str:
        """The outlines so far."""
        paths = (f'<path id="{name}" {outline}/>' for outline, name in self._names.items())
        return f"<defs>{''.join(paths)}</defs>"

    def element(self) -> str:
        """An ``<svg>`` that shows nothing, to be put before the figures."""
        return f'<svg class="glyphs" width="0" height="0" aria-hidden="true" focusable="false">{self.defs()}</svg>'


def inline_svg(figure: Figure, *, prefix: str, title: str, description: str = "", glyphs: Glyphs | None = None) -> str:
    """Render a figure as an ``<svg>`` element to put into an HTML page.

    Text becomes outlines, so that it looks alike everywhere; ``title`` and ``description`` are what a
    screen reader says. Colours of our palette become CSS variables (``var(--blue)``), so that the page's
    dark scheme reaches into the figure. All ids carry the prefix, and style rules stay inside the element.

    Args:
        figure: the figure.
        prefix: distinguishes this figure's ids from others on the page: letters, digits and hyphens.
        title: its accessible name.
        description: its accessible description.
        glyphs: takes the outlines of letters; the page puts ``glyphs.element()`` before its figures. None keeps
            them in the figure.

    Returns:
        The element; it refers to nothing outside itself but ``glyphs``.
    """
    text = _drawn(figure, prefix)
    text = re.sub(r"<!--.*?-->\s*|<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    own = glyphs if glyphs is not None else Glyphs()
    text = _named(_shared(_lean(text), own), own, prefix)
    for name, colour in COLOURS.items():
        text = re.sub(colour, f"var(--{name})", text, flags=re.IGNORECASE)
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    named = f'<title id="{prefix}-title">{html.escape(shown(title))}</title>'
    named += f'<desc id="{prefix}-desc">{html.escape(shown(description))}</desc>' if description else ""
    labelled = f"{prefix}-title {prefix}-desc" if description else f"{prefix}-title"
    width = figure.get_figwidth() * 96
    opening = f'<svg id="{prefix}" role="img" aria-labelledby="{labelled}" {box.group()} style="width:{width:.0f}px">'
    if glyphs is None:
        body = re.sub(r'(href="#|url\(#|id=")([gm])(?=\d)', rf"\1{prefix}-\2", f"{own.defs()}{body}")
    return opening + named + body.rstrip()


def _drawn(figure: Figure, salt: str) -> str:
    """As matplotlib draws it; not by ``savefig``, which draws every figure that has a layout twice."""
    buffer, canvas = io.StringIO(), figure.canvas
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": salt}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    figure.set_canvas(canvas)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _shared(text: str, glyphs: Glyphs) -> str:
    """The figure without the outlines of its letters, which are paths with an id and a scale; spaces have none."""
    names: dict[str, str] = {}

    def kept(match: re.Match[str]) -> str:
        names[match[1]] = glyphs.name(match[2]) if " d=" in match[0] else ""
        return ""

    text = re.sub(r'<path id="([^"]+)" ((?:d="[^"]*" )?transform="scale\([^"]*\)")/>', kept, text)
    text = text.replace("<defs></defs>", "")

    def used(match: re.Match[str]) -> str:
        name = names.get(match[1], match[1])
        return f'<use href="#{name}"{match[2]}/>' if name else ""

    return re.sub(r'<use href="#([^"]+)"([^>]*)/>', used, text)


def _named(text: str, glyphs: Glyphs, prefix: str) -> str:
    """The ids that something refers to under names of their own, the others gone."""
    used, drawn = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)), glyphs.names
    own = {name: glyphs.another() for name in sorted(used) if name not in drawn}
    text = re.sub(r'\sid="([^"]+)"', lambda m: f' id="{own[m[1]]}"' if m[1] in own else "", text)
    text = re.sub(r'(href="#|url\(#)([^")]+)', lambda m: f"{m[1]}{own.get(m[2], m[2])}", text)
    return re.sub(r"<style[^>]*>\s*\*\s*\{", f"<style>#{prefix} * {{", text)


NUMBER = r"-?\d+\.\d+"
MARKER = r'<use href="[^"]+" x="[^"]+" y="[^"]+" style="'
"""How matplotlib writes one marker of a curve, up to its style."""
LONG = 100
"""Points from which a line is so dense that a tenth of a point will do."""


def _lean(text: str) -> str:
    """The same drawing in fewer letters: a hundredth of a point is finer than any screen."""
    text = re.sub(r">\s+<", "><", text)
    text = re.sub(r'\bd="([^"]*)"', lambda m: f'd="{_path(m[1])}"', text)
    text = re.sub(r'\b(x|y|width|height)="(-?\d+\.\d+)"', lambda m: f'{m[1]}="{_rounded(m[2])}"', text)
    text = re.sub(
        r"translate\(([^)]*)\)", lambda m: f"translate({re.sub(NUMBER, lambda n: _rounded(n[0]), m[1])})", text
    )
    text = re.sub(r'transform="translate\((\S+) (\S+)\)"/>', _letter, text).replace(' y="0"/>', "/>")
    text = _unwrapped(text)
    # Of many equal markers the style once, around them.
    return re.sub(rf'{MARKER}([^"]*)"/>(?:{MARKER}\1"/>)+', _with_one_style, text)


def _letter(place: re.Match[str]) -> str:
    """Where a letter is, in thousandths of its height: whole ones will do."""
    return f'x="{float(place[1]):.0f}" y="{float(place[2]):.0f}"/>'


def _unwrapped(text: str) -> str:
    """Without the groups that say nothing."""
    text = re.sub(r"<g(?: [^>]*)?/>", "", text)
    kept: list[bool] = []
    parts = []
    for part in re.split(r"(<g(?: [^>]*)?>|</g>)", text):
        if part.startswith(("<g>", "<g ")):
            kept.append(bool(re.sub(r'^<g(?: id="[^"]*")?>$', "", part)))
        if not part.startswith(("<g>", "<g ", "</g>")) or kept[-1]:
            parts.append(part)
        if part == "</g>":
            kept.pop()
    return "".join(parts)


def _with_one_style(markers: re.Match[str]) -> str:
    said = f' style="{markers[1]}"'
    return f"<g{said}>{markers[0].replace(said, '')}</g>"


def _path(commands: str) -> str:
    """The commands of a path; a long one in steps from point to point, which take fewer letters."""
    long = commands.count("L") >= LONG
    digits = 1 if long else 2
    if long and not set("QCZ") & set(commands):
        strokes = (part.partition("z") for part in commands.split("M")[1:])
        return "".join(_steps(part.split("L"), digits) + end for part, end, _ in strokes)
    commands = re.sub(NUMBER, lambda m: _rounded(m[0], digits), commands)
    return re.sub(r"\s*([MLQCZz])\s*", r"\1", " ".join(commands.split()))


def _steps(points: list[str], digits: int) -> str:
    """One stroke: a point, and steps in whole multiples of the last digit, so that errors do not add up."""
    unit = 10**digits
    places = [tuple(round(float(each) * unit) for each in point.split()) for point in points]
    steps = [f"{(x - a) / unit:.7g} {(y - b) / unit:.7g}" for (a, b), (x, y) in itertools.pairwise(places)]
    moves = re.sub(r"(?<!\d)0\.", ".", " ".join(steps)).replace(" -", "-")
    return f"M{places[0][0] / unit:.7g} {places[0][1] / unit:.7g}" + (f"l{moves}" if steps else "")


def _rounded(number: str, digits: int = 2) -> str:
    return f"{float(number):.{digits}f}".rstrip("0").rstrip(".")
