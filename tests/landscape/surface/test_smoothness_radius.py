"""Gradient-normalised smoothness against closed forms."""

import math

import pytest
import torch
from torch import nn

from losscope.landscape import GaussNewton, Objective
from losscope.landscape.errors import NonFiniteError, SettingError
from losscope.landscape.operators import DenseOperator
from losscope.landscape.surface import Axis, gradient_direction, gradient_normalised_smoothness
from losscope.landscape.surface.radius_search import RTOL


def objective_of(f, theta, dtype=torch.float64) -> Objective:
    """The objective f(theta) of a vector."""
    model = nn.Linear(len(theta), 1, bias=False).to(dtype)
    model.weight.data[0] = torch.tensor(theta, dtype=dtype)
    return Objective(model, [torch.ones(1, 1)], loss_fn=lambda m, batch: f(m.weight[0]))


def assert_radius(found: float, exact: float, rel: float = 1e-6) -> None:
    assert exact / (1 + RTOL) * (1 - rel) <= found <= exact * (1 + rel)


E1, E2 = torch.eye(2, dtype=torch.float64)


@pytest.mark.parametrize("error", [0.03, 0.1, 1.0])
@pytest.mark.parametrize("a", [1e-4, 2.0, -300.0])
def test_cubic(a, error):
    f = objective_of(lambda w: 1 + a * w[0] + 3 * w[0] ** 2 / 2 + 5 * w[0] ** 3 / 6 + w[1] ** 2, [0.0, 0.0])
    found = gradient_normalised_smoothness(f, E1, error=error)
    assert_radius(found.radius, math.sqrt(2 * error * abs(a) / 5))  # 5 h^2 / 2 <= error |a|
    assert found.gradient_norm == pytest.approx(abs(a))
    assert found.matvecs == 1
    assert found.gradients < 60


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quartic_and_the_worst_of_several_directions(dtype):
    f = objective_of(lambda w: 2 * w[0] + w[0] ** 2 + 7 * w[0] ** 4 / 24 + w[1] ** 3 / 6, [0.0, 0.0], dtype)
    axes = [Axis(-3 * E1, "first"), Axis(1e-3 * E2, "second"), Axis(E1 + 1e-9 * E2, "first again")]
    found = gradient_normalised_smoothness(f, axes, error=0.5)
    exact = [(6 * 0.5 * 2 / 7) ** (1 / 3), math.sqrt(2 * 0.5 * 2 / 1)]
    for radius, expected in zip(found.radii.tolist(), [*exact, exact[0]], strict=True):
        assert_radius(radius, expected, rel=1e-3)
    assert found.radius == float(found.radii.min())
    assert found.names == ("first", "second", "first again")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quadratics_have_no_end(dtype):
    f = objective_of(lambda w: w[0] + 3 * w[0] ** 2 - w[0] * w[1] + 1e-3 * w[1] ** 2, [0.3, -2.0], dtype)
    found = gradient_normalised_smoothness(f, [Axis(E1), Axis(E2), gradient_direction(f)])
    assert found.radii.tolist() == [math.inf] * 3


def test_an_approximation_is_trusted_as_far_as_its_error_allows():
    f = objective_of(lambda w: 4 * w[0] + 3 * w[0] ** 2 + w[1] ** 2, [0.0, 0.0])
    B = DenseOperator(torch.diag(torch.tensor([5.0, 2.0], dtype=torch.float64)))
    found = gradient_normalised_smoothness(f, [E1, E2], curvature=B)
    assert_radius(float(found.radii[0]), 4.0)  # |H - B| h <= |g|
    assert found.radii[1] == math.inf


def test_the_gauss_newton_matrix_along_its_own_step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    data = (torch.randn(30, 3, dtype=torch.float64), torch.randn(30, 2, dtype=torch.float64))
    f = Objective(model, data, criterion=nn.MSELoss())
    G, g = GaussNewton(f), f.gradient()
    n = f.space.size
    step = torch.linalg.solve(G @ torch.eye(n, dtype=torch.float64) + 0.1 * torch.eye(n, dtype=torch.float64), -g)
    gamma = gradient_normalised_smoothness(f, step, curvature=G).radius
    assert 0 < gamma < math.inf
    # The definition, literally, on a fine grid of radii.
    u = step / step.norm()
    theta = [p.detach().clone() for p in model.parameters()]

    def slope(h):
        for p, t, d in zip(model.parameters(), theta, f.space.unflatten(h * u), strict=True):
            p.data = t + d
        remainder = f.gradient() - g - h * Gu
        for p, t in zip(model.parameters(), theta, strict=True):
            p.data = t
        return float(remainder.norm()) / abs(h)

    Gu = G @ u
    grid = torch.linspace(0.01, 2, 400, dtype=torch.float64) * gamma
    worst, literal = 0.0, 0.0
    for r in grid.tolist():
        worst = max(worst, slope(r), slope(-r))
        if worst * r > float(g.norm()):
            break
        literal = r
    assert 0.93 * literal <= gamma <= 1.01 * literal


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_a_minimum_it_vanishes_and_says_so(dtype):
    f = objective_of(lambda w: torch.cosh(w[0] - 1) + (w[1] - 2) ** 2, [1.0, 2.0], dtype)
    found = gradient_normalised_smoothness(f, E1)
    assert found.radius == 0
    assert found.note == "the gradient is zero within rounding, and so is its smoothness radius"


def test_bad_input():
    f = objective_of(lambda w: w[0].log(), [1.0, 1.0])
    with pytest.raises(SettingError, match="error must be a positive, finite share of the gradient, got 0"):
        gradient_normalised_smoothness(f, E1, error=0)
    with pytest.raises(SettingError, match="start must be a positive, finite radius, got -1"):
        gradient_normalised_smoothness(f, E1, start=-1)
    with pytest.raises(SettingError, match="direction 2 is zero"):
        gradient_normalised_smoothness(f, [E1, 0 * E1])
    with pytest.raises(SettingError, match="at least one direction"):
        gradient_normalised_smoothness(f, [])
    assert 0 < gradient_normalised_smoothness(f, E1).radius < 1  # the logarithm ends at 0
    with pytest.raises(NonFiniteError):
        gradient_normalised_smoothness(objective_of(lambda w: w[0].log(), [-1.0, 1.0]), E1)
    with pytest.raises(NonFiniteError):
        gradient_normalised_smoothness(objective_of(lambda w: w[0].abs().sqrt(), [0.0, 1.0]), E1)
