"""The figure of a neighbourhood: what is drawn where, what is below round-off, what cannot be drawn."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from drawn_results import rising
from losscope.landscape import Objective, average_sharpness
from losscope.landscape.surface import AverageSharpness, Neighbourhood, neighbourhood
from losscope.viz import plot_neighbourhood


def objective(sign: float = 1.0) -> Objective:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        x, y = torch.randn(20, 4), torch.randn(20, 1)
    return Objective(model, [(x, y)], criterion=lambda a, b: sign * nn.functional.mse_loss(a, b))


@pytest.fixture(scope="module")
def both() -> Neighbourhood:
    return neighbourhood(objective(), [1e-12, 0.01, 0.1, 1.0], steps=2, max_pairs=32)


def drawn(ax: Axes, gid: str) -> np.ndarray:
    (found,) = [line for line in ax.get_lines() if line.get_gid() == gid]
    return np.column_stack(found.get_data())


def gids(ax: Axes) -> set[str]:
    return {str(artist.get_gid()) for artist in ax.get_children()}


def test_what_is_drawn_where(both: Neighbourhood) -> None:
    ax = plot_neighbourhood(both)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert ax.get_xlabel() == "length of the perturbation" and ax.get_ylabel() == "rise of the loss"
    found = [[ball.radius, ball.value or math.nan] for ball in both.worst]  # 0 where float32 sees no rise
    np.testing.assert_allclose(drawn(ax, "worst"), found)
    np.testing.assert_allclose(drawn(ax, "worst-predicted")[:, 1], [ball.second_order for ball in both.worst])
    x, y = drawn(ax, "average").T
    np.testing.assert_allclose(x, [1e-12, 0.01, 0.1, 1.0])
    assert math.isnan(y[0])  # below round-off
    np.testing.assert_allclose(y[1:], [rise.value for rise in both.average.rises[1:]])
    predicted = both.average.radii.numpy() ** 2 / 2 * both.curvature.trace.value
    np.testing.assert_allclose(drawn(ax, "average-predicted")[:, 1], predicted)
    assert {"average-band", "rounding", "rounding-label"} <= gids(ax)
    low, high = ax.get_ylim()
    assert low < both.average.rounding and high > max(ball.value for ball in both.worst)


def test_rounding_far_below_all_that_was_measured_does_not_squeeze_it() -> None:
    far = rising([1e-3, 1e-2, 1e-1])
    average = dataclasses.replace(far.average, rounding=1e-18, floor=0.0)
    ax = plot_neighbourhood(dataclasses.replace(far, average=average))
    least = min(rise.value for rise in average.rises)
    assert ax.get_ylim()[0] > least / 10 and "rounding-label" not in gids(ax)
    assert "rounding, $1\\cdot10^{-18}$: off the axis" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_below_round_off_it_is_hollow(both: Neighbourhood) -> None:
    rises = list(both.average.rises)
    rises[0] = dataclasses.replace(rises[0], value=2 * both.average.rounding)
    ax = plot_neighbourhood(dataclasses.replace(both.average, rises=tuple(rises)))
    (hollow,) = [line for line in ax.get_lines() if line.get_gid() == "average-hidden"]
    assert hollow.get_markerfacecolor() == "none"
    assert np.isfinite(drawn(ax, "average-hidden")[:, 1]).tolist() == [True, False, False, False]


def test_of_the_average_alone_and_of_one_radius() -> None:
    found = average_sharpness(objective(), 0.01, scale="adaptive", max_pairs=32)
    one = Figure().subplots()
    assert plot_neighbourhood(found, one) is one
    assert one.get_xlabel() == "length of the perturbation (each weight relative to itself)"
    assert "worst" not in gids(one)
    assert any("THT" in text.get_text() for text in one.get_legend().get_texts())


def test_what_cannot_be_drawn_is_left_out(both: Neighbourhood) -> None:
    far = dataclasses.replace(both.average.rises[-1], value=math.nan, low=-math.inf, high=math.inf)
    ax = plot_neighbourhood(dataclasses.replace(both.average, rises=(*both.average.rises[:-1], far)))
    assert math.isnan(drawn(ax, "average")[-1, 1])
    ball = dataclasses.replace(both.worst[-1], value=math.inf, second_order=math.nan)
    ax = plot_neighbourhood(dataclasses.replace(both, worst=(*both.worst[:-1], ball)))
    assert math.isnan(drawn(ax, "worst")[-1, 1]) and math.isfinite(ax.get_ylim()[1])


def test_where_the_loss_rises_nowhere() -> None:
    found: AverageSharpness = average_sharpness(objective(-1.0), 0.01, max_pairs=32)
    assert found.rises[0].high < 0
    ax = plot_neighbourhood(found)
    assert ax.texts[0].get_text() == "the loss rises nowhere"
