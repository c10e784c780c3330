"""Directions of slices against what they are called."""

import copy

import pytest
import torch
from torch import nn

from losscope.landscape import Hessian, Objective, top_eigenpairs
from losscope.landscape.errors import NonFiniteError, ParameterError, SettingError
from losscope.landscape.surface import (
    between,
    eigenvector_directions,
    gradient_direction,
    parameters_at,
    random_direction,
    update_direction,
)


def objective_of(sizes=(4, 6, 3), **options) -> Objective:
    model = nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.Tanh(), nn.Linear(sizes[1], sizes[2])).double()
    data = (torch.randn(20, sizes[0], dtype=torch.float64), torch.randint(0, sizes[2], (20,)))
    return Objective(model, data, criterion=nn.CrossEntropyLoss(), **options)


def test_a_seed_fixes_the_direction_and_a_generator_goes_on():
    objective = objective_of()
    before = torch.get_rng_state()
    first, again, other = (random_direction(objective, seed=s).vector for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    generator = torch.Generator().manual_seed(5)
    one, two = (random_direction(objective, seed=generator).vector for _ in range(2))
    assert torch.equal(one, first)
    assert not torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_normalisation_directions_are_uniform_on_the_sphere():
    objective = objective_of()
    n = objective.space.size
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([random_direction(objective, None, seed=generator).vector for _ in range(4000)])
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(4000, dtype=torch.float64))
    covariance = drawn.T @ drawn / 4000
    assert (covariance - torch.eye(n) / n).abs().max() < 6 * (2 / 4000) ** 0.5 / n
    weights_only = random_direction(objective, None, biases=False)
    assert weights_only.norm == pytest.approx(1.0)
    pieces = objective.space.unflatten(weights_only.vector)
    assert [bool(p.any()) for p in pieces] == [True, False, True, False]


def test_gradient():
    objective = objective_of()
    axis = gradient_direction(objective)
    g = objective.gradient()
    torch.testing.assert_close(axis.vector, g / g.norm())
    for size in (1e200, 1e-200):  # whose squares overflow and vanish
        scaled = Objective(objective.model, objective.data, loss_fn=lambda m, b, s=size: s * m(b[0]).pow(2).mean())
        assert gradient_direction(scaled).norm == pytest.approx(1.0)


def test_eigenvectors_of_an_objective_and_of_pairs():
    objective = objective_of()
    H = Hessian(objective) @ torch.eye(objective.space.size, dtype=torch.float64)
    exact = torch.linalg.eigh(H).eigenvectors.flip(1)[:, :3]
    axes = eigenvector_directions(objective, 3, tol=1e-8, seed=1)
    for axis, v in zip(axes, exact.T, strict=True):
        assert abs(float(axis.vector @ v)) == pytest.approx(1, abs=1e-8)
        assert axis.vector[axis.vector.abs().argmax()] > 0
    pairs = top_eigenpairs(Hessian(objective), 3, tol=1e-8, seed=2)
    for axis, other in zip(axes, eigenvector_directions(pairs, 3), strict=True):
        torch.testing.assert_close(axis.vector, other.vector, atol=1e-5, rtol=0)
    smallest = top_eigenpairs(Hessian(objective), 1, which="SA", tol=1e-3, max_matvecs=2, seed=2)
    assert eigenvector_directions(smallest, 1)[0].note == "these eigenvectors have not converged"


def test_from_one_point_to_another_in_every_form():
    objective = objective_of()
    theta = parameters_at(objective, None)
    other = copy.deepcopy(objective.model)
    with torch.no_grad():
        for p in other.parameters():
            p += 0.5
    for form in (other, other.state_dict(), {"model_state_dict": other.state_dict()}, theta + 0.5):
        torch.testing.assert_close(between(objective, form).vector, torch.full_like(theta, -0.5))
        torch.testing.assert_close(between(objective, None, form).vector, torch.full_like(theta, 0.5))
        update = update_direction(objective, form)
        assert update.name == "update"
        torch.testing.assert_close(theta - update.vector, parameters_at(objective, form))


def test_a_point_is_a_copy_also_of_one_parameter():
    model = nn.Linear(3, 1, bias=False)
    objective = Objective(model, (torch.eye(3), torch.ones(3, 1)), criterion=nn.MSELoss())
    points = [parameters_at(objective, form) for form in (None, model, model.state_dict())]
    kept = model.weight.detach().clone()
    model.weight.data.add_(1)
    assert all(torch.equal(p, kept.view(-1)) for p in points)
    assert update_direction(objective, points[0]).norm == pytest.approx(3**0.5)


def test_part_of_the_parameters():
    objective = objective_of(params="2.*")
    assert len(random_direction(objective).vector) == 21
    assert len(gradient_direction(objective).vector) == 21
    other = copy.deepcopy(objective.model)
    with torch.no_grad():
        other[0].weight.add_(1)
    with pytest.raises(SettingError, match="both points are the same in every selected parameter"):
        between(objective, other)


def test_bad_input():
    objective = objective_of()
    with pytest.raises(ParameterError, match=r"the second point is of another architecture: 0\.weight has shape"):
        between(objective, None, objective_of((4, 7, 3)).model)
    with pytest.raises(ParameterError, match=r"the first point has no tensor '0\.weight'"):
        update_direction(objective, nn.Linear(4, 3))
    with pytest.raises(SettingError, match="both points are the same"):
        between(objective, None, copy.deepcopy(objective.model))
    with pytest.raises(NonFiniteError, match=r"first in 0\.weight"):
        between(objective, None, torch.full((objective.space.size,), torch.nan, dtype=torch.float64))
    with pytest.raises(SettingError, match="k must be between 1 and the 1 eigenpairs"):
        eigenvector_directions(top_eigenpairs(Hessian(objective), 1, seed=0), 2)
    with pytest.raises(SettingError, match="got str"):
        eigenvector_directions("top")
    flat = Objective(objective.model, objective.data, loss_fn=lambda m, b: 0 * m(b[0]).sum())
    with pytest.raises(SettingError, match="the gradient is zero"):
        gradient_direction(flat)
    broken = Objective(objective.model, objective.data, loss_fn=lambda m, b: m(b[0]).sum() * torch.inf)
    with pytest.raises(NonFiniteError, match=r"first in 0\.weight"):
        gradient_direction(broken)
