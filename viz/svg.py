"""Figures as inline SVG: several on one page, in the page's own colours, readable by a screen reader."""

from __future__ import annotations

import html
import io
import re
from collections import Counter

import matplotlib
from matplotlib.figure import Figure

from . import style

__all__ = ["COLOURS", "inline_svg"]

COLOURS = {
    name.lower(): getattr(style, name)
    for name in ("INK", "MUTED", "GRID", "PAPER", "BLUE", "VERMILLION", "GREEN", "ORANGE", "PURPLE", "SKY")
}
"""Colours of our figures by the name of the page's CSS variable."""


def inline_svg(figure: Figure, *, prefix: str, title: str, description: str = "") -> str:
    """Render a figure as an ``<svg>`` element to put into an HTML page.

    Text becomes outlines, so that it looks alike everywhere; ``title`` and ``description`` are what a
    screen reader says. Colours of our palette become CSS variables (``var(--blue)``), so that the page's
    dark scheme reaches into the figure. All ids carry the prefix, and style rules stay inside the element.

    Args:
        figure: the figure.
        prefix: distinguishes this figure's ids from others on the page: letters, digits and hyphens.
        title: its accessible name.
        description: its accessible description.

    Returns:
        The element; it refers to nothing outside itself.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->\s*|<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    seen: Counter[str] = Counter()

    def own(match: re.Match[str]) -> str:
        name = match.group(1)
        seen[name] += 1
        return f'id="{prefix}-{name}"' if seen[name] == 1 else f'id="{prefix}-{name}-{seen[name]}"'

    text = re.sub(r'\bid="([^"]+)"', own, text)
    text = re.sub(r'\bhref="#([^"]+)"', rf'href="#{prefix}-\1"', text)
    text = text.replace("url(#", f"url(#{prefix}-")
    text = re.sub(r"<style[^>]*>\s*\*\s*\{", f"<style>#{prefix} * {{", text)
    for name, colour in COLOURS.items():
        text = re.sub(colour, f"var(--{name})", text, flags=re.IGNORECASE)
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    named = f'<title id="{prefix}-title">{html.escape(title)}</title>'
    named += f'<desc id="{prefix}-desc">{html.escape(description)}</desc>' if description else ""
    labelled = f"{prefix}-title {prefix}-desc" if description else f"{prefix}-title"
    width = figure.get_figwidth() * 96
    opening = f'<svg id="{prefix}" role="img" aria-labelledby="{labelled}" {box.group()} style="width:{width:.0f}px">'
    return opening + named + body.rstrip()
