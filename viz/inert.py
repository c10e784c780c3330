"""Texts of a run in plotly figures: plotly reads tags, entities, templates and formulas in them, and must not here."""

from __future__ import annotations

__all__ = ["inert"]

_SIGNS = {"&": "&amp;", "<": "&lt;", "$": "&#36;", "%{": "%&#123;", "\n": " "}


def inert(text: object, most: int = 80) -> str:
    r"""A text that plotly shows as it is, without tags, links, entities, TeX and templates; cut where too long.

    Example:
        >>> from losscope.viz.inert import inert
        >>> print(inert('<a href="x">$y$</a> %{x}'))
        &lt;a href="x">&#36;y&#36;&lt;/a> %&#123;x}
    """
    shown = "".join(letter if letter.isprintable() else " " for letter in str(text))
    shown = shown if len(shown) <= most else shown[: most - 1] + "…"
    for sign, entity in _SIGNS.items():
        shown = shown.replace(sign, entity)
    return shown
