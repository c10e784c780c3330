"""Ticks beside axes of any size: no text above the axes, none on another one."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.axes import Axes

from drawn_everything import everything
from losscope.viz import plot_layers, plot_outliers, plot_sharpness, plot_stability, plot_trajectory
from losscope.viz.style import new_figure
from losscope.viz.ticks import signed_decades


def ticks(ax: Axes) -> list[str]:
    ax.figure.draw_without_rendering()
    low, high = sorted(ax.get_ylim())
    return [t.label1.get_text() for t in ax.yaxis.get_major_ticks() if low <= t.get_loc() <= high]


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-5, 1.0, 1e5, 1e12, 1e300])
@pytest.mark.parametrize("shift", [0.0, -3.0])
def test_a_linear_axis_says_all_of_its_numbers(scale: float, shift: float) -> None:
    figure, (ax,) = new_figure((1,), (4.0, 3.0))
    ax.plot([0, 1], [shift * scale, (shift + 4) * scale])
    texts = ticks(ax)
    assert len(texts) > 3 and len(set(texts)) == len(texts)
    assert ax.yaxis.get_offset_text().get_text() == ax.xaxis.get_offset_text().get_text() == ""
    assert all("e" not in text for text in texts)
    assert any(text in ("0", "0.0", "0.00") for text in texts) and (shift == 0) == (not texts[0].startswith("−"))
    assert all(("10^{" in text) == (scale < 1e-4 or scale > 1e5) for text in texts if text != "0")
    figure.draw_without_rendering()


def test_neighbours_far_from_zero_differ() -> None:
    _, (ax,) = new_figure((1,), (4.0, 3.0))
    ax.plot([0, 1], [1.000001e9, 1.000002e9])
    assert len(set(ticks(ax))) == len(ticks(ax)) > 2


@pytest.mark.parametrize("most", [3, 5, 9, 40])
@pytest.mark.parametrize(("least", "top"), [(0.1, 10.0), (1e-6, 1e13), (2.0, 9.0), (1e-9, 1e-8)])
def test_decades_on_both_sides_are_no_more_than_there_is_room_for(least: float, top: float, most: int) -> None:
    found = signed_decades(least, top, most)
    assert 3 <= len(found) <= max(most, 3) and found == sorted(found) and 0.0 in found
    assert found == [-each for each in reversed(found)] and found[-1] <= top * (1 + 1e-9)


def test_a_scale_of_both_signs_has_room_between_its_ticks() -> None:
    run = everything(range(0, 100, 10), lambda index, number: number * (-1) ** index * 10.0 ** (2 * index))
    ax = plot_layers(run)
    bar = ax.figure.axes[1]
    ax.figure.draw_without_rendering()
    low, high = bar.get_ylim()
    shown = [t for t in bar.yaxis.get_major_ticks() if low <= t.get_loc() <= high]
    boxes = sorted(t.label2.get_window_extent().intervaly.tolist() for t in shown)
    assert len(boxes) >= 3 and all(a[1] < b[0] for a, b in pairwise(boxes))


def test_ratios_stay_in_sight_below_one_that_is_huge() -> None:
    """At step 0 Adam divides by one gradient; what comes after it is near zero, some of it below."""
    run = everything(
        range(0, 100, 10), lambda index, number: number * (1e4 if index == 0 else -0.01 if index == 3 else 0.01)
    )
    ax = plot_stability(run)
    ax.figure.draw_without_rendering()
    assert ax.get_yscale() == "symlog"
    (curve,) = [each for each in ax.lines if each.get_gid() == "ratio-sharpness"]
    places = ax.transAxes.inverted().transform(ax.transData.transform(np.array(curve.get_xydata())))[:, 1]
    assert np.ptp(places[4:]) > 0.03 or places[5] - places[3] > 0.1


def test_no_text_lies_on_a_legend_at_any_scale() -> None:
    for scale in (1e-12, 1e12):
        run = everything(range(0, 100, 10), lambda index, number, scale=scale: number * scale)
        for draw in (plot_sharpness, plot_trajectory, plot_outliers):
            for ax in np.ravel(draw(run)):
                ax.figure.draw_without_rendering()
                assert not ax.yaxis.get_offset_text().get_text() and not ax.xaxis.get_offset_text().get_text()
