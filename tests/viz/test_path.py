"""Paths: the curve, the straight line between its ends, and the barrier between them."""

import math

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from artists import entries, inside, line, texts
from drawn_planes import even
from losscope.landscape import SettingError
from losscope.landscape.surface import LossPath
from losscope.viz import plot_path

T = even(0, 1, 25)
HUMP = 4 * T * (1 - T)


def path_of(loss: Tensor, kind: str = "linear", accuracy: Tensor | None = None, **fields: object) -> LossPath:
    def barrier(y: Tensor) -> float:
        return float((y - ((1 - T) * y[0] + T * y[-1])).max())

    values, barriers = {"loss": loss}, {"loss": barrier(loss)}
    if accuracy is not None:
        values["accuracy"], barriers["accuracy"] = accuracy, barrier(-accuracy)
    at = float(T[int((loss - ((1 - T) * loss[0] + T * loss[-1])).argmax())])
    return LossPath(T, values, kind, barriers["loss"], barriers, 0.0, at, 3.0, ends=("seed 0", "seed 1"), **fields)


def linear() -> LossPath:
    return path_of(0.02 + 0.3 * T + 2.3 * HUMP**2, accuracy=0.98 - 0.01 * T - 0.7 * HUMP**2)


def bezier() -> LossPath:
    return path_of(0.02 + 0.3 * T - 0.02 * HUMP, "bezier", 0.98 - 0.01 * T)


def parts(ax: Axes, gid: str) -> list:
    return [each for each in (*ax.lines, *ax.patches, *ax.texts) if each.get_gid() == gid]


def test_the_arrow_spans_the_barrier() -> None:
    path = linear()
    top, bottom = plot_path(path)
    np.testing.assert_array_equal(line(top, "curve").get_ydata(), path.loss)
    (arrow,) = parts(top, "barrier")
    (t0, low), (t1, high) = arrow.xyann, arrow.xy
    assert t0 == t1 == path.position
    assert high - low == pytest.approx(path.barrier)
    assert low == pytest.approx(0.02 + 0.3 * path.position)
    (size,) = parts(top, "barrier-size")
    assert size.get_text() == f"{path.barrier:.3g}"
    assert entries(top) == [f"linear: barrier {path.barrier:.3g}", "straight between the ends"]
    (down,) = parts(bottom, "barrier")  # accuracy is worse where it is lower
    assert down.xyann[1] - down.xy[1] == pytest.approx(path.barriers["accuracy"])
    assert bottom.get_xlabel() == "position t from seed 0 (0) to seed 1 (1)"
    chord = line(top, "chord")
    np.testing.assert_allclose(chord.get_ydata(), 0.02 + 0.3 * chord.get_xdata())


def test_several_paths_together() -> None:
    aligned = path_of(0.02 + 0.3 * T + 0.5 * HUMP)
    ax = plot_path({"linear": linear(), "aligned": aligned, "Bezier": bezier()}, value="loss")
    assert len(parts(ax, "curve")) == 3
    assert len(parts(ax, "chord")) == 1  # they have the same ends
    assert [float(t.get_text()) for t in parts(ax, "barrier-size")] == [2.3, 0.5]  # none where there is no barrier
    assert entries(ax)[:3] == ["linear: barrier 2.3", "aligned: barrier 0.5", "Bezier: barrier 0"]
    assert len({c.get_marker() for c in parts(ax, "curve")}) == 3
    sizes = [t.xyann for t in parts(ax, "barrier-size")]
    assert sizes[0] != sizes[1]
    two = plot_path([linear(), path_of(1 + 0 * T)], value="loss")
    assert len(parts(two, "chord")) == 2
    assert entries(two)[1] == "linear (2): barrier 0"


def test_on_a_logarithmic_scale_the_straight_line_is_bent() -> None:
    ax = plot_path(linear(), value="loss", scale="log")
    assert ax.get_yscale() == "log"
    chord = line(ax, "chord")
    np.testing.assert_allclose(chord.get_ydata(), 0.02 + 0.3 * chord.get_xdata())
    (arrow,) = parts(ax, "barrier")
    assert arrow.xy[1] - arrow.xyann[1] == pytest.approx(linear().barrier)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gaps_have_no_arrow(value: float) -> None:
    loss = 0.02 + 0.3 * T
    loss[10:13] = value
    ax = plot_path(path_of(loss))
    (gap,) = parts(ax, "gaps")
    assert (gap.get_x(), gap.get_x() + gap.get_width()) == pytest.approx((float(T[9]), float(T[13])))
    assert not parts(ax, "barrier")
    assert entries(ax)[0] == "linear: barrier " + ("NaN" if math.isnan(value) else "∞")
    inside(ax.get_figure())
    lost = plot_path(path_of(loss * math.nan))
    assert "no finite value" in texts(lost)


@pytest.mark.parametrize("size", [(3.3, 4.2), (6.4, 4.6)])
def test_everything_is_inside(size: tuple[float, float]) -> None:
    late = path_of(0.02 + 0.3 * T + 3 * T**8 * (1 - T) * 40, accuracy=1 - T)
    for paths in (linear(), {"linear": linear(), "aligned": late, "Bezier": bezier()}):
        axes = plot_path(paths, size=size)
        inside(axes[0].get_figure())


def test_on_axes_of_the_user() -> None:
    one, two = Figure().subplots(2, 1)
    assert plot_path(linear(), one) is one
    assert [*plot_path(linear(), (one, two))] == [one, two]
    with pytest.raises(SettingError, match="one Axes, or on 2"):
        plot_path(linear(), (one,))


def test_bad_input_is_named() -> None:
    with pytest.raises(SettingError, match="got int"):
        plot_path(3)
    with pytest.raises(SettingError, match="there are 'loss'"):
        plot_path(path_of(T), value="accuracy")
    with pytest.raises(SettingError, match="scale must be"):
        plot_path(path_of(T), scale="square")
    flat = plot_path(path_of(0 * T))
    flat.get_figure().draw_without_rendering()
    two = LossPath(even(0, 1, 2), {"loss": torch.tensor([1.0, 2.0])}, "linear", 0.0, {"loss": 0.0}, 0.0, 0.0, 1.0)
    plot_path(two).get_figure().draw_without_rendering()
