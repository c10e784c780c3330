"""Figures as SVG inside a page: the same drawing, smaller, with ids of their own."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from losscope.viz.svg import Glyphs, inline_svg


def drawing(points: int = 30) -> Figure:
    figure = Figure(figsize=(4, 3))
    ax = figure.subplots()
    x = np.linspace(0, 10, points)
    ax.plot(x, np.sin(x), marker="o", color="#0072b2", gid="wave")
    ax.set_xlabel("time one two")
    ax.set_ylabel(r"$\lambda_{\max}$")
    return figure


def references(text: str) -> set[str]:
    return set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))


def ids(text: str) -> list[str]:
    return re.findall(r'\sid="([^"]+)"', text)


def test_alone_it_holds_all_it_refers_to() -> None:
    text = inline_svg(drawing(), prefix="fig", title="A <wave>", description="up & down")
    ElementTree.fromstring(text)  # well-formed
    assert references(text) <= set(ids(text)) and len(references(text)) > 10
    assert all(each.startswith("fig") for each in ids(text)) and len(ids(text)) == len(set(ids(text)))
    assert "A &lt;wave&gt;" in text and "up &amp; down" in text
    assert "var(--blue)" in text and "#0072b2" not in text


def test_several_share_their_letters() -> None:
    glyphs = Glyphs()
    first, second = (inline_svg(drawing(), prefix=name, title=name, glyphs=glyphs) for name in ("one", "two"))
    both = glyphs.element() + first + second
    assert references(both) <= set(ids(both)) and len(ids(both)) == len(set(ids(both)))
    letters = ids(glyphs.element())
    assert 10 < len(letters) < 40
    alone = inline_svg(drawing(), prefix="one", title="one")
    assert len(first) < 0.7 * len(alone)


def test_the_drawing_is_the_same() -> None:
    """Where matplotlib draws a letter or a point, the lean one does, to a hundredth of a point."""
    text = inline_svg(drawing(), prefix="fig", title="wave")
    figure = drawing()
    figure.draw_without_rendering()
    ax = figure.axes[0]
    pixels = ax.transData.transform(np.column_stack(ax.lines[0].get_data()))
    expected = np.column_stack((pixels[:, 0], figure.bbox.height - pixels[:, 1])) * 72 / figure.dpi
    marker = max(re.findall(r'<g style="[^"]*">((?:<use [^>]*/>)+)</g>', text), key=len)
    found = [(float(x), float(y)) for x, y in re.findall(r'x="([^"]+)" y="([^"]+)"', marker)]
    assert np.array(found) == pytest.approx(expected, abs=0.006)
    path = next(d for d in re.findall(r'd="([^"]+)"', text) if d.count("L") == 29)
    assert np.array(re.findall(r"[ML](\S+) ([^ML]+)", path), dtype=float) == pytest.approx(expected, abs=0.006)


def test_long_curves_keep_their_shape() -> None:
    figure = Figure(figsize=(4, 3))
    figure.subplots().plot(np.random.default_rng(0).standard_normal(3000))
    text = inline_svg(figure, prefix="fig", title="noise")
    path = max(re.findall(r'd="([^"]+)"', text), key=len)
    assert path.count("L") > 200
    assert not re.search(r"\.\d\d", path)
