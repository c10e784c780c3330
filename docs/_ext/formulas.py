"""Formulas as SVG, drawn by matplotlib: readable without a script, a network, LaTeX, or a mathematical font."""

from __future__ import annotations

import html
import re
from typing import Any

from docutils import nodes
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

SIZE = 100.0  # of the letters, in units of the drawing
LARGER = 1.15  # than the text around: its letters are smaller than a sans-serif's of the same size
FONT = FontProperties(family="serif", math_fontfamily="stix", size=SIZE)
PARSER: MathTextParser[Any] = MathTextParser("path")
END = r"(?![A-Za-z])"  # of a command
ONE = r"(\\[A-Za-z]+|[^\s{\\])"  # what stands for an argument without braces
ALIASES = (
    (rf"\\[lr]Vert{END}|\\\|", r"\\Vert "),
    (rf"\\[lr]vert{END}", r"\\vert "),
    (r"\\(text|operatorname)(?=\{)", r"\\mathrm"),
    (rf"\\mathrm\s+{ONE}", r"\\mathrm{\1}"),
    (rf"\\tfrac{END}", r"\\frac"),
    (rf"\\(d?frac)\s*{ONE}", r"\\\1{\2}"),
    (rf"(\\d?frac\{{[^{{}}]*\}})\s*{ONE}", r"\1{\2}"),
    (rf"\\sqrt\s*{ONE}", r"\\sqrt{\1}"),
    (rf"\\top{END}", r"\\mathsf{T}"),
    (rf"\\dots{END}", r"\\ldots"),
    (rf"\\([lg])e{END}", r"\\\1eq"),
    (rf"\\[bB]ig+[lr]?{END}", ""),
    (r"\\(max|min)(?=\})", r"\\mathrm{\1}"),
    (r"\s*\n\s*", " "),
)
"""What LaTeX knows and matplotlib calls otherwise, or lacks."""


def svg(tex: str, where: Any) -> str:
    """One formula. What cannot be drawn is a warning, which fails the build, and is shown as its TeX."""
    known = tex.strip()
    for pattern, replacement in ALIASES:
        known = re.sub(pattern, replacement, known)
    try:
        width, height, depth, _, _ = PARSER.parse(f"${known}$", dpi=72, prop=FONT)
        path = TextPath((0, 0), f"${known}$", prop=FONT)
    except ValueError as error:
        logger.warning("cannot draw the formula %r: %s", tex, str(error).splitlines()[-1], location=where)
        return f"<code>{html.escape(tex)}</code>"
    pad = 4
    box = f"{-pad} {-height - pad:.0f} {width + 2 * pad:.0f} {height + depth + 2 * pad:.0f}"
    em = SIZE / LARGER
    style = f"height:{(height + depth + 2 * pad) / em:.3f}em;vertical-align:{-(depth + pad) / em:.3f}em"
    said = html.escape(tex, quote=True)
    return (
        f'<svg class="formula" role="img" aria-label="{said}" viewBox="{box}" style="{style}">'
        f'<path d="{outline(path)}"/></svg>'
    )


def outline(path: Path) -> str:
    """The path in SVG's words, downwards."""
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
    parts = []
    for points, code in path.iter_segments(simplify=False, curves=True):
        pairs = "" if code == Path.CLOSEPOLY else " ".join(
            f"{x:.1f} {-y:.1f}" for x, y in zip(points[::2], points[1::2], strict=True)
        )  # fmt: skip
        parts.append(letters[code] + pairs)
    return "".join(parts).replace(".0 ", " ")


def visit_inline(self: Any, node: nodes.math) -> None:
    self.body.append(svg(node.astext(), node))
    raise nodes.SkipNode


def visit_block(self: Any, node: nodes.math_block) -> None:
    tex = re.sub(rf"\\frac{END}", r"\\dfrac", node.astext())
    lines = re.split(r"\\\\", re.sub(r"\\(begin|end)\{\w+\}|&", "", tex))
    drawn = "".join(f"<div>{svg(line, node)}</div>" for line in lines if line.strip())
    self.body.append(f'<div class="formulas">{drawn}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("drawn", (visit_inline, None), (visit_block, None))
    app.connect("config-inited", lambda app, config: setattr(config, "html_math_renderer", "drawn"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
