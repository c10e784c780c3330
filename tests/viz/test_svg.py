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


def test_it_is_well_formed_with_empty_groups() -> None:
    figure = drawing()
    figure.axes[0].set_yticks([])
    figure.axes[0].scatter([], [])
    ElementTree.fromstring(inline_svg(figure, prefix="fig", title="wave"))


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
    """They are written as steps from point to point, whose errors do not add up."""
    figure = Figure(figsize=(4, 3))
    ax = figure.subplots()
    ax.plot(np.random.default_rng(0).standard_normal(3000))
    ax.fill_between(np.arange(300), np.arange(300) * 0.01, np.random.default_rng(1).random(300))
    text = inline_svg(figure, prefix="fig", title="noise")
    figure.draw_without_rendering()
    pixels = ax.transData.transform(np.column_stack(ax.lines[0].get_data()))
    expected = np.column_stack((pixels[:, 0], figure.bbox.height - pixels[:, 1])) * 72 / figure.dpi
    line, area = sorted((d for d in re.findall(r'd="([^"]+)"', text) if d.count("-") > 90), key=len)[:-3:-1]
    assert not re.search(r"\.\d\d", line) and area.endswith("z") and not line.endswith("z")
    start, steps = line[1:].split("l")
    moves = np.array(re.findall(r"-?(?:\d+\.?\d*|\.\d+)", steps), dtype=float).reshape(-1, 2)
    points = np.array(start.split(), dtype=float) + np.cumsum(moves, axis=0)
    assert 200 < len(points) < 3000  # matplotlib leaves out what would not be seen
    assert points[-1] == pytest.approx(expected[-1], abs=0.06)
    distance = np.abs(expected[None] - points[:, None]).max(axis=2).min(axis=1)
    assert np.quantile(distance, 0.9) < 0.3  # points where matplotlib joins several are between them
