"""Refinement: what it is worth on steep functions, where it stops, and what it does at the border of a NaN region."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.interpolate import LinearNDInterpolator
from torch import Tensor, nn

from losscope.landscape import Objective, SettingError
from losscope.landscape.surface import (
    evaluate,
    line,
    next_on_line,
    next_on_plane,
    plane,
    refine_line,
    refine_plane,
)

Function = Callable[[Tensor], Tensor]
F64 = torch.float64

STEEP_LINES: dict[str, Function] = {
    "valley": lambda c: 1 - torch.exp(-(((c[:, 0] - 0.137) / 0.05) ** 2)),
    "cliff": lambda c: torch.tanh((c[:, 0] - 0.3) / 0.01),
    "kink": lambda c: (c[:, 0] - 0.137).abs(),
    "wall": lambda c: torch.exp(10 * c[:, 0]),
}
STEEP_PLANES: dict[str, Function] = {
    "ravine": lambda c: 1 - torch.exp(-(((c[:, 0] + c[:, 1] / 2 - 0.137) / 0.05) ** 2)),
    "round cliff": lambda c: torch.tanh((c.norm(dim=1) - 0.5) / 0.02),
    "hole": lambda c: -torch.exp(-(((c - 0.21) / 0.1) ** 2).sum(dim=1)),
    "crater": lambda c: torch.exp(6 * c.square().sum(dim=1)),
}


class Counted:
    """A function that counts where it was asked, and refuses to be asked twice."""

    def __init__(self, function: Function) -> None:
        self.function, self.asked = function, set[tuple[float, ...]]()

    def __call__(self, coordinates: Tensor) -> dict[str, Tensor]:
        asked = set(map(tuple, coordinates.tolist()))
        assert len(asked) == len(coordinates) and not asked & self.asked
        self.asked |= asked
        return {"loss": self.function(coordinates), "other": coordinates.sum(dim=1)}


def on_line(points: int) -> Tensor:
    return torch.linspace(-1, 1, points, dtype=F64)


def on_plane(points: int) -> Tensor:
    x = on_line(points)
    return torch.cartesian_prod(x, x).flip(1)


def mean_error_of_line(x: Tensor, loss: Tensor, function: Function) -> float:
    asked = on_line(20001)
    right = torch.searchsorted(x, asked).clamp(1, len(x) - 1)
    share = (asked - x[right - 1]) / (x[right] - x[right - 1])
    interpolated = torch.lerp(loss[right - 1], loss[right], share)
    return float((interpolated - function(asked[:, None])).abs().mean())


def mean_error_of_plane(points: Tensor, loss: Tensor, function: Function) -> float:
    asked = on_plane(251)
    interpolated = torch.tensor(LinearNDInterpolator(points.numpy(), loss.numpy())(asked.numpy()))
    return float((interpolated - function(asked)).abs().mean())


@pytest.mark.parametrize("name", STEEP_LINES)
def test_line_is_several_times_better_than_a_grid_of_as_many_points(name: str) -> None:
    function, x = STEEP_LINES[name], on_line(21)
    evaluate = Counted(function)
    fine, values = refine_line(evaluate, x, evaluate(x[:, None]), points=40, tolerance=1e-4, scale="linear")
    assert len(evaluate.asked) == len(fine) <= 61
    assert bool((fine.diff() > 0).all()) and set(x.tolist()) <= set(fine.tolist())
    assert torch.equal(values["loss"], function(fine[:, None])) and torch.equal(values["other"], fine)
    even = on_line(61)
    uniform = mean_error_of_line(even, function(even[:, None]), function)
    assert mean_error_of_line(fine, values["loss"], function) < uniform / 5


@pytest.mark.parametrize("name", STEEP_PLANES)
def test_plane_is_several_times_better_than_a_grid_of_as_many_points(name: str) -> None:
    function, x, grid = STEEP_PLANES[name], on_line(21), on_plane(21)
    evaluate = Counted(function)
    values = {key: value.view(21, 21) for key, value in evaluate(grid).items()}
    refined = refine_plane(evaluate, x, x, values, points=1600, tolerance=1e-4, scale="linear")
    assert refined is not None
    assert len(evaluate.asked) == 441 + len(refined.x) <= 2041
    further = torch.stack([refined.x, refined.y], dim=1)
    assert torch.equal(refined.values["loss"], function(further))
    assert torch.equal(refined.values["other"], further.sum(dim=1))
    even = on_plane(45)
    points, loss = torch.cat([grid, further]), torch.cat([function(grid), refined.values["loss"]])
    uniform = mean_error_of_plane(even, function(even), function)
    assert mean_error_of_plane(points, loss, function) < uniform / 3


def test_uneven_grid_of_another_shape() -> None:
    x, y = torch.tensor([-1.0, -0.2, 0.1, 2.0], dtype=F64), torch.tensor([0.0, 3.0, 3.5], dtype=F64)
    evaluate = Counted(lambda c: torch.tanh(20 * (c[:, 0] - 1)))
    grid = torch.cartesian_prod(y, x).flip(1)
    loss = evaluate(grid)["loss"].view(3, 4)
    refined = refine_plane(evaluate, x, y, {"loss": loss}, points=150)
    assert refined is not None
    assert bool((refined.x >= 0.1).all()) and float((refined.x - 1).abs().min()) < 0.06
    assert bool((refined.y <= 3.5).all())


def test_what_interpolation_is_right_about_is_left_alone() -> None:
    x, grid = on_line(9), on_plane(9)
    line, bilinear = 3 * x - 1, (2 + grid[:, 0] * grid[:, 1] - grid[:, 1]).view(9, 9)
    for scale in ("linear", "auto"):
        same, values = refine_line(pytest.fail, x, {"loss": line}, points=100, scale=scale)
        assert torch.equal(same, x) and torch.equal(values["loss"], line)
    assert refine_plane(pytest.fail, x, x, {"loss": bilinear}, points=100, tolerance=1e-9, scale="linear") is None
    assert refine_plane(pytest.fail, x, x, {"loss": torch.ones(9, 9, dtype=F64)}, points=100) is None


def test_stops_where_the_error_is_below_the_tolerance() -> None:
    def parabola(c: Tensor) -> Tensor:
        return c[:, 0] ** 2

    x = on_line(5)
    evaluate = Counted(parabola)
    for tolerance in (0.1, 0.01, 0.001):
        evaluate.asked.clear()
        fine, values = refine_line(evaluate, x, {"loss": parabola(x[:, None])}, points=10_000, tolerance=tolerance)
        asked = on_line(10_001)
        right = torch.searchsorted(fine, asked).clamp(1, len(fine) - 1)
        share = (asked - fine[right - 1]) / (fine[right] - fine[right - 1])
        worst = (torch.lerp(values["loss"][right - 1], values["loss"][right], share) - asked**2).abs().max()
        assert tolerance / 5 < float(worst) <= tolerance * (1 + 1e-6)


def test_budget_is_kept_to() -> None:
    x, grid = on_line(5), on_plane(5)
    cliff = STEEP_LINES["cliff"]
    for points in (0, 1, 2, 7):
        fine, _ = refine_line(Counted(cliff), x, {"loss": cliff(x[:, None])}, points=points, tolerance=0)
        assert len(fine) == 5 + points
    for points in (0, 4, 5, 23):
        refined = refine_plane(Counted(cliff), x, x, {"loss": cliff(grid).view(5, 5)}, points=points, tolerance=0)
        assert (0 if refined is None else len(refined.x)) in range(max(0, points - 4), points + 1)


def test_a_jump_is_not_cut_for_ever() -> None:
    x = on_line(5)
    step = Counted(lambda c: (c[:, 0] > 0.3).to(F64))
    fine, _ = refine_line(step, x, {"loss": (x > 0.3).to(F64)}, points=10_000)
    assert float(fine.diff().min()) == 0.5 / 2**8 and len(fine) < 60


def test_the_border_of_a_nan_region_is_found_and_its_inside_left_alone() -> None:
    def broken(c: Tensor) -> Tensor:
        return torch.where(c[:, 0] > 0.31, torch.nan, c[:, 0])

    x, grid = on_line(11), on_plane(11)
    fine, values = refine_line(Counted(broken), x, {"loss": broken(x[:, None])}, points=8, scale="linear")
    known = torch.isfinite(values["loss"])
    assert bool((fine[known] <= 0.31).all()) and bool((fine[~known] > 0.31).all())
    assert float(fine[~known].min() - fine[known].max()) == pytest.approx(0.2 / 2**8)
    assert float(fine[~known][1:].diff().min()) > 0.001  # only the border is cut
    refined = refine_plane(Counted(broken), x, x, {"loss": broken(grid).view(11, 11)}, points=1000, scale="linear")
    assert refined is not None
    assert bool(((refined.x > 0.19) & (refined.x < 0.41)).all())
    near = refined.x[torch.isfinite(refined.values["loss"])]
    assert float(near.max()) > 0.305


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_where_nothing_is_finite_nothing_is_cut(value: float) -> None:
    x = on_line(5)
    assert len(next_on_line(x, torch.full((5,), value), count=9)) == 0
    none = torch.empty(0)
    assert len(next_on_plane(x, x, torch.full((5, 5), value), none.view(0, 2), none, count=9)) == 0


def test_the_border_of_an_infinite_region_beside_a_constant() -> None:
    loss = torch.tensor([1.0, 1.0, 1.0, math.inf, math.inf], dtype=F64)
    assert next_on_line(on_line(5), loss, count=9).tolist() == [0.25]


def test_grids_of_one_and_two_points() -> None:
    one, two = torch.zeros(1, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    none = torch.empty(0)
    assert len(next_on_line(one, one, count=5)) == 0
    assert next_on_line(two, two, count=5).tolist() == [0.5]  # all that is known is that it changes
    assert len(next_on_plane(one, two, torch.zeros(2, 1), none.view(0, 2), none, count=5)) == 0
    corner = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert len(next_on_plane(two, two, corner, none.view(0, 2), none, count=5)) == 5


def test_scale() -> None:
    """A loss over twelve decades: on the linear scale only its wall is steep, on the logarithmic one its valley too."""
    x = on_line(41)

    def loss(c: Tensor) -> Tensor:
        return torch.exp(20 * c[:, 0] ** 2) * (1e-4 + (1 - torch.exp(-((c[:, 0] / 0.1) ** 2))))

    nearest = {}
    for scale in ("linear", "log", "auto"):
        fine, _ = refine_line(Counted(loss), x, {"loss": loss(x[:, None])}, points=30, scale=scale)
        added = fine[~torch.isin(fine, x)]
        nearest[scale] = float(added.abs().min())
    assert nearest["linear"] > 0.5 and nearest["log"] < 0.05 and nearest["auto"] < 0.05


@pytest.mark.parametrize("options", [{"points": -1}, {"points": 3, "tolerance": -0.1}, {"points": 3, "scale": "cubic"}])
def test_bad_settings_are_refused(options: dict) -> None:
    x = on_line(3)
    with pytest.raises(SettingError):
        refine_line(pytest.fail, x, {"loss": x}, **options)
    with pytest.raises(SettingError):
        refine_plane(pytest.fail, x, x, {"loss": torch.zeros(3, 3)}, **options)


def objective() -> Objective:
    """A loss that blows up to the sides."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 1)).double()
    return Objective(model, (torch.randn(30, 3, dtype=F64), torch.randn(30, 1, dtype=F64)), criterion=nn.MSELoss())


@pytest.mark.parametrize("seed", range(4))
def test_refined_line_of_a_network(seed: int) -> None:
    """With the default tolerance of 1 % of the range (of logarithms: this loss spreads over six decades)."""
    found = line(objective(), span=(-100, 100), points=21, refine=100, model=False, seed=seed)
    again = evaluate(objective(), None, [found.axis], found.x[:, None])["loss"]
    torch.testing.assert_close(found.loss, again, rtol=1e-5, atol=0)
    assert 21 < len(found.x) == found.evaluations < 60 and bool((found.x.diff() > 0).all())
    asked = torch.linspace(-100, 100, 2001, dtype=F64)
    exact = evaluate(objective(), None, [found.axis], asked[:, None])["loss"].log()

    def worst(x: Tensor, loss: Tensor) -> float:
        right = torch.searchsorted(x, asked).clamp(1, len(x) - 1)
        share = (asked - x[right - 1]) / (x[right] - x[right - 1])
        apart = torch.lerp(loss[right - 1].log(), loss[right].log(), share) - exact
        return float(apart.abs().max() / (exact.max() - exact.min()))

    even = line(objective(), found.axis, span=(-100, 100), points=len(found.x), model=False)
    assert worst(found.x, found.loss) < min(0.025, worst(even.x, even.loss) / 2)


def test_refined_plane_of_a_network() -> None:
    found = plane(objective(), span=(-5, 5), points=9, refine=60, model=False)
    assert found.refined is not None and found.evaluations == 81 + len(found.refined.x) <= 141
    C = torch.stack([found.refined.x, found.refined.y], dim=1)
    again = evaluate(objective(), None, found.axes, C)["loss"]
    torch.testing.assert_close(found.refined.values["loss"], again, rtol=1e-5, atol=0)
    assert plane(objective(), points=3, model=False).refined is None
