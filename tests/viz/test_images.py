"""Pictures of every figure against those that were looked at and kept: `tests/support/baselines.py` makes them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

import colour_vision
from artists import inside, line
from drawn_runs import hovering, run_of
from figure_cases import PICTURES, figure_of, sizes_of
from losscope import viz
from losscope.viz import plot_sharpness
from losscope.viz.figure import FIGURES
from pictures import BASELINES, compare, differing, drawn, kept, own_settings

MINOR = "3.11"
"""The matplotlib that drew the baselines; text and ticks are a little different in others."""
other_version = pytest.mark.skipif(
    matplotlib.__version__.rsplit(".", 1)[0] != MINOR,
    reason=f"THE BASELINES ARE MATPLOTLIB {MINOR}'S, THIS IS {matplotlib.__version__}: NO PICTURE IS COMPARED",
)

EVERY = [
    pytest.param(name, size, id=f"{name}-{width}")
    for name, picture in PICTURES.items()
    for width, size in sizes_of(picture).items()
]


@other_version
@pytest.mark.parametrize(("name", "size"), EVERY)
def test_it_looks_as_it_did(name: str, size: tuple[float, float], tmp_path: Path, request: Any) -> None:
    with own_settings():
        figure = figure_of(PICTURES[name].draw(size))
        picture = drawn(figure)
        inside(figure)
    assert not compare(request.node.callspec.id, picture, tmp_path)
    for ax in figure.axes:
        check_series(ax)


def test_every_figure_has_a_picture_and_every_picture_a_figure() -> None:
    plots = {name for name in viz.__all__ if name.startswith("plot_")}
    by_name = {plot.__name__: name for name, plot in FIGURES.items()}
    covered = {picture.of for picture in PICTURES.values()}
    missing = {by_name.get(plot, plot) for plot in plots} - covered - {"plot_" + name for name in covered}
    assert not missing, "add a picture to tests/support/figure_cases.py"
    files = {f"{name}-{width}" for name, picture in PICTURES.items() for width in sizes_of(picture)}
    assert {file.stem for file in BASELINES.glob("*.png")} == files
    assert sum(file.stat().st_size for file in BASELINES.glob("*.png")) < 2e6


# --------------------------------------------------------------------------- what the comparison sees


@pytest.fixture(scope="module")
def sharpness() -> Iterator[Any]:
    run = run_of(hovering(300))
    with own_settings():
        yield lambda: plot_sharpness(run, size=(3.4, 3.6))


def change(axes: Any, what: str) -> None:
    top, _ = axes
    curve, limit = line(top, "sharpness"), line(top, "threshold")
    if what == "missing line":
        limit.set_visible(False)
    elif what == "moved threshold":
        limit.set_ydata(np.asarray(limit.get_ydata()) * 1.06)
    elif what == "changed colour":
        curve.set_color(viz.style.GREEN)
    elif what == "missing label":
        top.set_ylabel("")
    elif what == "other word":
        top.texts[0].set_text("1/lr = 10.5")
    elif what == "missing marks":
        line(top, "from-below").set_visible(False)


@pytest.mark.parametrize(
    "what",
    ["missing line", "moved threshold", "changed colour", "missing label", "other word",
     "missing marks"],
)  # fmt: skip
def test_a_change_is_seen(sharpness: Any, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = drawn(figure_of(sharpness()))
    axes = sharpness()
    change(axes, what)
    after = drawn(figure_of(axes))
    monkeypatch.setattr("pictures.kept", lambda name: before)
    assert not compare("same", drawn(figure_of(sharpness())), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "pixels differ" in compare("it", after, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["it-difference.png", "it.png"]


def test_antialiasing_is_not_seen(sharpness: Any) -> None:
    figure = figure_of(sharpness())
    before = drawn(figure)
    for artist in (*figure.axes[0].lines, *figure.axes[1].lines):
        artist.set_path_effects([])
        artist.set_snap(False)
    figure.axes[0].lines[0].set_linewidth(1.4)
    after = drawn(figure)
    assert (before != after).any()
    assert not differing(before, after).any()


def test_another_size_is_seen(tmp_path: Path) -> None:
    name = next(iter(BASELINES.glob("*.png"))).stem
    assert "its size" in compare(name, kept(name)[:-1], tmp_path)


# --------------------------------------------------------------------------- with every kind of vision


def check_series(ax: Axes) -> None:
    """Curves that the legend tells apart differ in marker or dash, and all of them can be seen on paper."""
    curves = [each for each in ax.lines if not str(each.get_label()).startswith("_") and len(each.get_xdata())]
    for one, other in itertools.combinations(curves, 2):
        assert look(one) != look(other), (one.get_label(), other.get_label())
    for each in curves:
        for seen in colour_vision.KINDS:
            assert colour_vision.contrast(each.get_color(), "white", seen) > 1.9, (each.get_label(), seen)


def look(curve: Line2D) -> tuple[Any, ...]:
    """What is left of a curve without its colour."""
    return curve.get_linestyle(), str(curve._dash_pattern), curve.get_marker(), curve.get_markersize()


@pytest.mark.parametrize("seen", [kind for kind in colour_vision.KINDS if kind != "grey"])
def test_our_colours_are_told_apart(seen: str) -> None:
    names = ("BLUE", "VERMILLION", "GREEN", "ORANGE", "PURPLE", "SKY", "INK")
    for one, other in itertools.combinations(names, 2):
        distance = colour_vision.distance(getattr(viz.style, one), getattr(viz.style, other), seen)
        assert distance > 10, (one, other, distance)
