"""Texts of a run where they must not do anything: in plotly figures, which read tags and formulas, and on terminals."""

from __future__ import annotations

__all__ = ["clean", "inert"]

_SIGNS = {"&": "&amp;", "<": "&lt;", "$": "&#36;", "%{": "%&#123;"}


def clean(text: str, longest: int | None = None) -> str:
    r"""A text of a run without what a terminal might obey: escape sequences, controls, marks of direction.

    Example:
        >>> from losscope.viz.inert import clean
        >>> clean("model\x1b[2J[bold]\u202egnp")
        'model·[2J[bold]·gnp'
    """
    shown = "".join(each if each.isprintable() else "·" for each in text)
    return shown if longest is None or len(shown) <= longest else f"{shown[: longest - 1]}…"


def inert(text: object, most: int = 80) -> str:
    r"""A text that plotly shows as it is, without tags, links, entities, TeX and templates; cut where too long.

    Example:
        >>> from losscope.viz.inert import inert
        >>> print(inert('<a href="x">$y$</a> %{x}'))
        &lt;a href="x">&#36;y&#36;&lt;/a> %&#123;x}
    """
    shown = clean(str(text).replace("\n", " "), most)
    for sign, entity in _SIGNS.items():
        shown = shown.replace(sign, entity)
    return shown
