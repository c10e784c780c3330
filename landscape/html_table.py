"""Results as small HTML tables, which notebooks show: plain HTML, every word escaped, no library."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

__all__ = ["Shown", "between", "html_table", "number"]

MOST = 20
"""Rows; more are counted."""


def html_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """A table with a title above it; columns that are empty in all rows are left out.

    Args:
        title: a line of words.
        header: of the columns.
        rows: words of the cells; of more than 20 rows the first are shown.
        note: a line below.

    Example:
        >>> from losscope.landscape.html_table import html_table
        >>> print(html_table("<title>", ["name", ""], [["loss", ""]]))
        <table><caption style="text-align:left">&lt;title&gt;</caption><thead><tr><th style="text-align:left">name</th></tr></thead><tbody><tr><td style="text-align:left">loss</td></tr></tbody></table>
    """  # noqa: E501
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    shown = [[row[i] for i in kept] for row in rows[:MOST]]
    if len(rows) > MOST and kept:
        shown.append([f"and {len(rows) - MOST} more", *("" for _ in kept[1:])])
    head = "".join(_cell("th", header[i]) for i in kept)
    body = "".join("<tr>" + "".join(_cell("td", word) for word in row) + "</tr>" for row in shown)
    below = f'<div style="font-size:smaller">{html.escape(note)}</div>' if note else ""
    caption = f'<caption style="text-align:left">{html.escape(title)}</caption>'
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"


def _cell(tag: str, text: str) -> str:
    return f'<{tag} style="text-align:left">{html.escape(text)}</{tag}>'


def number(value: float | None, digits: int = 5) -> str:
    """A number to so many significant digits; nothing where there is none.

    Example:
        >>> from losscope.landscape.html_table import number
        >>> number(20.0), number(0.1234567), number(None), number(float("nan"))
        ('20', '0.12346', '', 'nan')
    """
    return "" if value is None else f"{float(value):.{digits}g}"


def between(low: float | None, high: float | None, confidence: float | None = None) -> str:
    """An interval in words, one-sided where one end is not known; nothing where neither is.

    Example:
        >>> from losscope.landscape.html_table import between
        >>> between(1.0, 2.0, 0.95), between(1.0, float("inf")), between(1.0, 1.0)
        ('1 to 2 (95 %)', 'at least 1', 'exact')
    """
    if low is not None and low == high:
        return "exact"
    low, high = (None if end is None or not math.isfinite(end) else end for end in (low, high))
    said = "" if confidence is None else f" ({100 * confidence:.3g} %)"
    if low is None or high is None:
        return f"at least {number(low)}" if low is not None else f"at most {number(high)}" if high is not None else ""
    return f"{number(low)} to {number(high)}{said}"


class Shown:
    """A result that notebooks show as a table."""

    def _repr_html_(self) -> str:
        """What a notebook shows: see `losscope.landscape.html_rows`."""
        from .html_rows import as_html  # it knows all results

        return as_html(self)
