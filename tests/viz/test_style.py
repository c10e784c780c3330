"""What all figures share: ticks that can be read, and words as they are."""

import itertools
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes

from losscope.viz import style


def axes(height: float = 3.0) -> Axes:
    return style.new_figure((1,), (4.0, height))[1][0]


@pytest.mark.parametrize("height", [0.8, 3.0])
@pytest.mark.parametrize(("low", "high"), [(6.0, 8.0), (2.2, 9.0), (3e-6, 8e-6), (0.4, 90.0), (0.011, 40.0), (1, 1e12)])
def test_a_logarithmic_axis_has_some_labels_and_none_on_another(low: float, high: float, height: float) -> None:
    ax = axes(height)
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    style.log_ticks(ax, low, high)
    figure = ax.get_figure(root=True)
    figure.draw_without_rendering()
    drawn = [label for label in ax.get_yticklabels(which="both") if label.get_text()]
    shown = [label for label in drawn if ax.bbox.y0 - 1 <= sum(label.get_window_extent().intervaly) / 2 <= ax.bbox.y1]
    assert len(shown) >= (2 if height > 1 else 1)
    boxes = sorted((label.get_window_extent().intervaly for label in shown), key=lambda ends: ends[0])
    assert all(above[0] >= below[1] - 1 for below, above in itertools.pairwise(boxes))


def test_signs_that_the_font_lacks_are_boxes_and_others_stay() -> None:
    ax = axes()
    ax.set_title(style.plain("αβ שלום 🙂 \x1b[2J\n$x_"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax.get_figure(root=True).draw_without_rendering()
    assert ax.get_title() == "αβ שלום □ □[2J□\\$x_"
    assert style.plain("e" * 99, 5) == "eeee…"


def test_a_font_of_the_users_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with matplotlib.rc_context({"font.family": ["DejaVu Sans Mono"]}):
        assert style.plain("ﬁ λ") == "ﬁ λ"
        assert style.plain("\U0001f642") == "□"


def test_a_colour_bar_is_as_high_as_its_axes() -> None:
    ax = axes()
    mesh = ax.pcolormesh(np.array([[2.0, 9.0]]), norm=matplotlib.colors.LogNorm(2.0, 9.0))
    bar = style.colour_bar(ax, mesh, "what")
    ax.get_figure(root=True).draw_without_rendering()
    assert bar.ax.bbox.height == pytest.approx(ax.bbox.height, rel=0.02)


def test_values_on_both_sides_of_zero_that_are_far_apart_can_be_told_apart() -> None:
    values = np.array([-3.0, 0.0, 2.0, 5.0, 5.0, 1e18, np.nan])
    ax = axes()
    assert style.symmetric_if_wide(ax, values)
    ax.set_ylim(-5, 1e19)
    places = ax.transData.transform([(0, v) for v in (-3.0, 0.0, 2.0, 5.0, 1e18)])[:, 1]
    assert (np.diff(places) > 1).all()
    for plain in (values[:5], np.array([1.0, 1e9]), np.zeros(3), np.array([np.nan])):
        assert not style.symmetric_if_wide(axes(), plain)


def test_words_on_axes_of_a_user_are_in_their_colour() -> None:
    with matplotlib.rc_context({"axes.labelcolor": "white", "axes.facecolor": "black"}):
        ax = matplotlib.figure.Figure().subplots()
        mesh = ax.pcolormesh(np.array([[2.0, 9.0]]))
        assert style.ink(ax) == style.colour_bar(ax, mesh, "what").ax.yaxis.label.get_color() == "white"
    assert style.ink(axes()) == style.INK
