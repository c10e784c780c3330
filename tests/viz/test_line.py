"""Lines: what is drawn, what is not, and whether it can be read."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from artists import entries, inside, line, texts
from drawn_planes import even, taylor
from losscope.landscape import SettingError
from losscope.landscape.surface import Axis, Line, LossPath
from losscope.viz import plot_line

Loss = Callable[[Tensor], Tensor]


def line_of(
    loss: Loss, x: Tensor | None = None, *, norm: float = 1.0, name: str = "random, by filters",
    radius: float | None = None, **fields: object,
) -> Line:  # fmt: skip
    x = even(-1, 1, 41) if x is None else x
    metrics = fields.pop("metrics", {})
    values = {"loss": loss(x)} | {key: f(x) for key, f in metrics.items()}
    axis = Axis(torch.tensor([norm, 0.0], dtype=torch.float64), name)
    model = None if radius is None else taylor(lambda c: loss(c[0]), radius, dimension=1)
    return Line(x, values, float(loss(torch.zeros((), dtype=torch.float64))), axis, model, **fields)


def wavy(x: Tensor) -> Tensor:
    return 0.2 + 2 * x**2 + 0.3 * torch.sin(5 * x) ** 2


def torn(x: Tensor) -> Tensor:
    z = torch.where(x > 0.61, torch.full_like(x, math.nan), 0.3 + torch.log1p(4 * x**2))
    return torch.where(x < -0.91, torch.full_like(x, math.inf), z)


def parts(ax: Axes, gid: str) -> list:
    return [each for each in (*ax.lines, *ax.patches, *ax.texts) if each.get_gid() == gid]


def test_values_are_the_lines() -> None:
    shown = line_of(wavy, norm=3.2, metrics={"accuracy": lambda x: 1 / (1 + x**2)})
    top, bottom = plot_line(shown)
    np.testing.assert_array_equal(line(top, "curve").get_xdata(), shown.x)
    np.testing.assert_array_equal(line(top, "curve").get_ydata(), shown.loss)
    np.testing.assert_array_equal(line(bottom, "curve").get_ydata(), shown.values["accuracy"])
    assert (top.get_ylabel(), bottom.get_ylabel()) == ("loss", "accuracy")
    assert bottom.get_xlabel() == "random, by filters [unit: length 3.2]"
    assert line(top, "center").get_xydata().tolist() == [[0, shown.center]]
    assert "centre, loss 0.2" in entries(top)
    assert plot_line(shown, value="accuracy").get_ylabel() == "accuracy"


def test_the_scale_is_logarithmic_where_values_spread() -> None:
    assert plot_line(line_of(lambda x: 0.1 + x**2)).get_yscale() == "linear"
    assert plot_line(line_of(lambda x: 1e-6 + x**2)).get_yscale() == "log"
    assert plot_line(line_of(lambda x: 1e-6 + x**2), scale="linear").get_yscale() == "linear"
    walls = line_of(lambda x: -5 + x**2 + torch.exp(20 * x.abs()) / 1e3)
    ax = plot_line(walls)
    assert (ax.get_yscale(), ax.get_ylabel()) == ("log", "loss above its lowest, −4.999")
    np.testing.assert_allclose(line(ax, "curve").get_ydata(), walls.loss - walls.loss.min())
    assert ax.get_ylim()[0] > 0 and ax.get_ylim()[1] > float(walls.loss.max()) + 5
    assert line(ax, "center").get_ydata()[0] == ax.get_ylim()[0]  # where the lowest is, at the bottom


def test_gaps_are_hatched_up_to_finite_neighbours() -> None:
    shown = line_of(torn)
    ax = plot_line(shown)
    spans = [(p.get_x(), p.get_x() + p.get_width()) for p in parts(ax, "gaps")]
    np.testing.assert_allclose(spans, [(-1, -0.9), (0.6, 1)], atol=1e-9)
    assert all(p.get_hatch() for p in parts(ax, "gaps"))
    y = line(ax, "curve").get_ydata()
    assert np.isnan(y).sum() == int((~shown.loss.isfinite()).sum())
    assert "NaN: 8, infinite: 2 of 41 points" in entries(ax)
    lost = plot_line(line_of(lambda x: x * math.nan))
    assert "no finite value" in texts(lost)


def test_a_point_alone_is_a_dot() -> None:
    shown = line_of(wavy, even(-1, 1, 401))
    shown.loss[100], shown.loss[102] = math.nan, math.nan
    curve = line(plot_line(shown), "curve")
    assert 101 in curve.get_markevery()


def test_the_model_is_drawn_as_far_as_it_holds() -> None:
    shown = line_of(wavy, norm=2.0, radius=0.5)
    ax = plot_line(shown)
    x, q = line(ax, "model").get_data()
    assert (x[0], x[-1]) == (-0.25, 0.25)  # a length of 0.5
    np.testing.assert_allclose(q, shown.model.at(torch.from_numpy(x)))
    (strip,) = parts(ax, "radius")
    assert (strip.get_x(), strip.get_width()) == (-0.25, 0.5)
    assert {"quadratic model", "it holds to 10 % (radius 0.5)"} <= set(entries(ax))
    high = ax.get_ylim()[1]
    wide = plot_line(line_of(wavy, norm=2.0, radius=math.inf))
    assert wide.get_ylim()[1] == pytest.approx(high)  # the model does not set the scale
    assert "quadratic model: to 10 % all over" in entries(wide)
    nowhere = plot_line(line_of(wavy, radius=0.0))
    assert "quadratic model: to 10 % nowhere" in entries(nowhere) and not parts(nowhere, "model")


def test_several_lines() -> None:
    lines = {
        "gradient": line_of(lambda x: 0.2 + x + x**2, norm=0.3, name="gradient", radius=0.1),
        "random": line_of(torn, norm=4.0, radius=9.0),
        "costs $5": line_of(wavy, metrics={"accuracy": wavy}),
    }
    ax, below = plot_line(lines)
    assert [e.split(" (")[0] for e in entries(ax) if "unit" in e] == ["gradient", "random", r"costs \$5"]
    assert "gradient (unit: 0.3)" in entries(ax) and "NaN: 8, infinite: 2 of 41 points" in entries(ax)
    assert len(parts(ax, "curve")) == 3 and len(parts(below, "curve")) == 1
    (gaps,) = parts(ax, "gaps")
    assert gaps.get_color() == parts(ax, "curve")[1].get_color()
    np.testing.assert_allclose(gaps.get_xdata(), lines["random"].x[~lines["random"].loss.isfinite()])
    assert [m.get_color() for m in parts(ax, "model")] == [c.get_color() for c in parts(ax, "curve")[:2]]
    assert not parts(ax, "radius")
    markers = [c.get_marker() for c in parts(ax, "curve")]
    assert len(set(markers)) == 3  # not by colour alone
    same = plot_line([line_of(wavy), line_of(torn)])
    assert same.get_xlabel() == "random, by filters [unit: length 1]"
    assert entries(same)[0] == "random, by filters"
    assert "random, by filters (2)" in entries(same)


def test_named_points() -> None:
    x = even(-0.3, 1.3, 33)
    ax = plot_line(line_of(wavy, x, points={"SGD": 0.0, "Adam": 1.0}))
    assert sorted(p.get_xdata()[0] for p in parts(ax, "point")) == [0, 1]
    assert {t.get_text(): t.xy[0] for t in parts(ax, "point-name")} == {"SGD": 0.0, "Adam": 1.0}


@pytest.mark.parametrize("size", [(3.3, 3.4), (6.4, 3.6)])
@pytest.mark.parametrize("loss", [wavy, torn, lambda x: 1e-6 * torch.exp(27 * x.abs()), lambda x: -500 + x**2])
def test_everything_is_inside(loss: Loss, size: tuple[float, float]) -> None:
    x = even(-0.3, 1.3, 61)
    shown = line_of(loss, x, radius=0.2, points={"first model": 0.0, "second": 1.0}, note="left early " * 9)
    ax = plot_line(shown, size=size)
    inside(ax.get_figure())
    inside(plot_line({"one": shown, "two": line_of(torn)}, size=size).get_figure())
    assert "left early" in ax.get_figure().get_supxlabel()


def test_few_points_and_flat_lines() -> None:
    for x in (even(0, 0, 1), even(-1, 1, 2), even(-1, 1, 3)):
        plot_line(line_of(wavy, x, radius=0.2)).get_figure().draw_without_rendering()
    plot_line(line_of(lambda x: 0 * x)).get_figure().draw_without_rendering()
    plot_line(line_of(lambda x: 0 * x + 2.3), scale="log").get_figure().draw_without_rendering()
    float32 = dataclasses.replace(line_of(wavy), values={"loss": wavy(even(-1, 1, 41)).float().requires_grad_()})
    plot_line(float32).get_figure().draw_without_rendering()


def test_on_axes_of_the_user() -> None:
    one, two, three = Figure().subplots(3, 1)
    shown = line_of(wavy, metrics={"accuracy": wavy})
    assert plot_line(shown, one) is one
    assert plot_line(shown, one, value="accuracy") is one
    assert [*plot_line(shown, (two, three))] == [two, three]
    with pytest.raises(SettingError, match="draws on one Axes, or on 2"):
        plot_line(shown, (one, two, three))


def test_bad_input_is_named() -> None:
    with pytest.raises(SettingError, match="'loss', 'accuracy'"):
        plot_line(line_of(wavy, metrics={"accuracy": wavy}), value="error")
    with pytest.raises(SettingError, match="got Tensor"):
        plot_line(torch.zeros(3))
    with pytest.raises(SettingError, match="got none"):
        plot_line([])
    t = even(0, 1, 3)
    path = LossPath(t, {"loss": t}, "linear", 0.0, {"loss": 0.0}, 0.0, 0.0, 1.0)
    with pytest.raises(SettingError, match="'b' is a LossPath"):
        plot_line({"a": line_of(wavy), "b": path})
