"""Formulas as MathML, which browsers draw by themselves: no script, no network, and none of it to be installed."""

from __future__ import annotations

import html
import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def mathml(tex: str, display: str, where: Any) -> str:
    """One formula; what cannot be converted is a warning, which fails the build, and is shown as its TeX."""
    try:
        found = convert(tex, display=display)
    except Exception as error:
        logger.warning("cannot make MathML of %r: %s", tex, error, location=where)
        return f"<code>{html.escape(tex)}</code>"
    if unknown := re.findall(r"<mi>(\\[A-Za-z]+)</mi>", found):
        logger.warning("unknown in %r: %s", tex, ", ".join(unknown), location=where)
    return found


def visit_inline(self: Any, node: nodes.math) -> None:
    self.body.append(mathml(node.astext(), "inline", node))
    raise nodes.SkipNode


def visit_block(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula">{mathml(node.astext().strip(), "block", node)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.connect("config-inited", lambda app, config: setattr(config, "html_math_renderer", "mathml"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
