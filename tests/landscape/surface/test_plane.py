"""Planes: through one point, through three, along a trajectory; the centre to the bit, and what is refused."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from isolation_cases import batches, busy_with_gradients, state_of, streams
from landscape_cases import mlp
from losscope.landscape import Objective, plane
from losscope.landscape.errors import ParameterError, SettingError
from losscope.landscape.surface import (
    Axis,
    evaluate,
    evaluate_at,
    line_between,
    parameters_at,
    plane_through,
    trajectory_axes,
)


def quadratic() -> Objective:
    """``L = (w_1^2 + 9 w_2^2) / 2`` at (1, 1)."""
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data.fill_(1.0)
    x = torch.diag(torch.tensor([1.0, 3.0])).double()
    return Objective(model, (x, torch.zeros(2, 1).double()), criterion=nn.MSELoss())


def classifier(seed: int = 0) -> Objective:
    torch.manual_seed(seed)
    data = (torch.randn(30, 4), torch.randint(3, (30,)))
    return Objective(mlp(4, 6, 3), data, criterion=nn.CrossEntropyLoss())


def loss_of(objective: Objective, model: nn.Module) -> float:
    return Objective(model, objective.data, criterion=nn.CrossEntropyLoss()).value()


# --------------------------------------------------------------------------- through one point


@pytest.mark.parametrize("engine", ["one by one", "auto", "batched"])
def test_a_quadratic_in_closed_form(engine: str) -> None:
    axes = torch.tensor([1.0, 2.0]), Axis(torch.tensor([0.5, -1.0]), "other")
    found = plane(quadratic(), axes, points=(9, 7), span=((-1, 1), (-2, 3)), engine=engine)
    x, y = torch.meshgrid(found.x, found.y, indexing="xy")
    exact = ((1 + x + 0.5 * y) ** 2 + 9 * (1 + 2 * x - y) ** 2) / 2
    assert found.loss.shape == (len(found.y), len(found.x)) == (8, 9)
    torch.testing.assert_close(found.loss, exact, rtol=1e-12, atol=1e-12)
    assert found.model is not None
    torch.testing.assert_close(found.model.at(x, y), exact, rtol=1e-9, atol=1e-9)
    assert [axis.name for axis in found.axes] == ["direction 1", "other"]


@pytest.mark.parametrize("engine", ["one by one", "auto", "batched"])
@pytest.mark.parametrize("points", [11, 10, (4, [0.5, 1.0])])
def test_the_centre_is_on_every_grid_and_is_the_plain_loss(points: int | tuple, engine: str) -> None:
    objective = classifier()
    found = plane(objective, points=points, model=False, engine=engine)
    assert float(found.loss[found.y == 0][:, found.x == 0]) == found.center == objective.value()


def test_two_random_directions_differ_and_follow_the_seed() -> None:
    objective = classifier()
    first, second = plane(objective, points=2, model=False, seed=3).axes
    assert abs(float(torch.cosine_similarity(first.vector, second.vector, dim=0))) < 0.9
    again = plane(objective, points=2, model=False, seed=3).axes
    assert torch.equal(first.vector, again[0].vector) and torch.equal(second.vector, again[1].vector)
    assert not torch.equal(first.vector, plane(objective, points=2, model=False, seed=4).axes[0].vector)


def test_the_top_two_eigenvectors() -> None:
    first, second = plane(quadratic(), ("eigenvector", "eigenvector"), points=2, model=False).axes
    torch.testing.assert_close(first.vector.abs(), torch.tensor([0.0, 1.0]).double(), rtol=0, atol=2e-2)
    torch.testing.assert_close(second.vector.abs(), torch.tensor([1.0, 0.0]).double(), rtol=0, atol=2e-2)


def test_metrics_refinement_and_a_file(tmp_path: Path) -> None:
    objective, options = classifier(), {"points": 9, "span": (-4, 4), "metrics": "accuracy", "model": False}
    found = plane(objective, refine=20, resume=tmp_path / "points.jsonl", **options)
    assert found.refined is not None and 0 < len(found.refined.x) <= 20
    assert found.evaluations == 81 + len(found.refined.x)
    assert set(found.values) == set(found.refined.values) == {"loss", "accuracy"}
    again = plane(objective, refine=20, resume=tmp_path / "points.jsonl", **options)
    assert again.evaluations == 0 and torch.equal(again.loss, found.loss)


def test_second_differences_along_both_axes_are_curvatures() -> None:
    torch.manual_seed(0)
    model = mlp(4, 6, 3).double()
    objective = Objective(
        model, (torch.randn(30, 4).double(), torch.randint(3, (30,))), criterion=nn.CrossEntropyLoss()
    )
    h = 1e-3
    found = plane(objective, points=[-h, 0.0, h])
    along = (
        found.loss[1, 0] - 2 * found.loss[1, 1] + found.loss[1, 2],
        found.loss[0, 1] - 2 * found.loss[1, 1] + found.loss[2, 1],
    )
    mixed = (found.loss[2, 2] - found.loss[2, 0] - found.loss[0, 2] + found.loss[0, 0]) / 4
    assert found.model is not None
    for i in range(2):
        assert float(along[i]) / h**2 == pytest.approx(float(found.model.curvatures[i, i]), rel=1e-3)
    assert float(mixed) / h**2 == pytest.approx(float(found.model.curvatures[0, 1]), rel=1e-3, abs=1e-6)


# --------------------------------------------------------------------------- through three points


def test_through_three_models() -> None:
    objective, models = classifier(), [classifier(seed).model for seed in (1, 2, 3)]
    found = plane_through(objective, *models, names=("a", "b", "c"), points=6)
    gram = found.gram
    assert float(gram[0, 1]) == pytest.approx(0.0, abs=1e-5 * float(gram[0, 0]))
    assert float(gram[0, 0]) == pytest.approx(float(gram[1, 1]), rel=1e-5)
    for name, model in zip("abc", models, strict=True):
        x, y = found.points[name]
        cell = found.loss[found.y == y][:, found.x == x]
        assert float(cell) == pytest.approx(loss_of(objective, model), rel=1e-5)
    assert found.center == loss_of(objective, models[0])
    distance = parameters_at(objective, models[2]) - parameters_at(objective, models[1])
    (bx, by), (cx, cy) = found.points["b"], found.points["c"]
    assert math.hypot(cx - bx, cy - by) * found.axes[0].norm == pytest.approx(float(distance.norm()), rel=1e-5)
    for name in "abc":
        assert found.x[0] < found.points[name][0] < found.x[-1]
        assert found.y[0] < found.points[name][1] < found.y[-1]


def test_points_on_one_line_are_refused() -> None:
    objective, other = classifier(), classifier(1)
    start = parameters_at(objective, None)
    beyond = start + 2 * (parameters_at(objective, other.model) - start)
    with pytest.raises(SettingError, match="from first to second and from first to third are parallel"):
        plane_through(objective, None, other.model, beyond)
    with pytest.raises(SettingError, match="from first to third: both points are the same"):
        plane_through(objective, None, other.model, None)
    with pytest.raises(ParameterError, match=r"another architecture: 0.weight has shape \(7, 4\)"):
        plane_through(objective, None, mlp(4, 7, 3), other.model)


# --------------------------------------------------------------------------- along a trajectory


def walked(objective: Objective, steps: int = 6) -> list[dict[str, torch.Tensor]]:
    """State dicts on the way, the last one where the model is."""
    optimizer = torch.optim.SGD(objective.model.parameters(), lr=0.5, momentum=0.5)
    recorded = []
    for _ in range(steps):
        recorded.append({name: p.detach().clone() for name, p in objective.model.named_parameters()})
        optimizer.zero_grad()
        nn.functional.cross_entropy(objective.model(objective.data[0]), objective.data[1]).backward()
        optimizer.step()
    recorded[-1] = {name: p.detach().clone() for name, p in objective.model.named_parameters()}
    return recorded


def test_along_a_trajectory() -> None:
    objective = classifier()
    recorded = walked(objective)
    found = plane(objective, trajectory=recorded, points=5)
    axes, coordinates, explained = trajectory_axes(objective, recorded)
    assert found.trajectory is not None and found.explained is not None
    torch.testing.assert_close(found.trajectory, coordinates)
    torch.testing.assert_close(found.explained, explained)
    assert all(torch.equal(a.vector, b.vector) for a, b in zip(found.axes, axes, strict=True))
    assert found.center == objective.value()
    for t, grid in zip(found.trajectory.T, (found.x, found.y), strict=True):
        assert grid[0] < t.min() and t.max() < grid[-1]


def test_the_centre_is_the_last_point_wherever_the_model_is() -> None:
    objective = classifier()
    recorded = walked(objective)
    last = objective.value()
    expected = plane(objective, trajectory=recorded, points=5)
    objective.model.load_state_dict(recorded[0])
    found = plane(objective, trajectory=recorded, points=5)
    assert found.center == last != objective.value()
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=0)


def test_a_trajectory_in_given_axes_is_projected() -> None:
    objective = quadratic()
    trajectory = [torch.tensor(p).double() for p in ([4.0, 2.0], [1.0, 3.0], [1.0, 1.0])]
    axes = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])
    found = plane(objective, axes, trajectory=trajectory, points=3)
    assert found.trajectory is not None and found.explained is not None
    expected = torch.tensor([[1.0, 1.0], [-1.0, 2.0], [0.0, 0.0]]).double()  # (3, 1) = x (2, 0) + y (1, 1), ...
    torch.testing.assert_close(found.trajectory, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.explained, torch.tensor([9 / 14, (16 + 4) / 2 / 14]).double())
    again = plane(objective, axes, trajectory=(point for point in trajectory), points=3)
    assert again.trajectory is not None and torch.equal(again.trajectory, found.trajectory)
    with pytest.raises(SettingError, match="trajectory must be at least two points, got 1"):
        plane(objective, trajectory=trajectory[:1])
    with pytest.raises(SettingError, match="trajectory must be several points in order, got Linear"):
        plane(objective, trajectory=objective.model)


# --------------------------------------------------------------------------- what it leaves, and refuses


def test_nothing_in_the_model_changes() -> None:
    model = busy_with_gradients()
    objective = Objective(model, batches(), criterion=nn.CrossEntropyLoss())
    torch.manual_seed(0)
    others = [{name: p.detach() + torch.randn_like(p) for name, p in model.named_parameters()} for _ in range(3)]
    before, random_state = state_of(model), streams()
    plane(objective, ("gradient", "random"), points=4, refine=3, metrics="accuracy")
    plane_through(objective, *others, points=3)
    plane(objective, trajectory=others, points=3)
    assert state_of(model) == before and streams() == random_state


def test_nan_regions_stay_and_are_counted() -> None:
    objective = Objective(quadratic().model, quadratic().data, criterion=lambda out, _: (out - 0.5).sqrt().mean())
    found = plane(objective, (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])), points=5)
    bad = torch.meshgrid(1 + found.x < 0.5, 3 * (1 + found.y) < 0.5, indexing="xy")
    assert torch.equal(found.loss.isnan(), bad[0] | bad[1])
    assert f"loss is NaN or infinite at {int((bad[0] | bad[1]).sum())} of 25 points" in found.note


def test_directions_that_span_no_plane_are_refused() -> None:
    objective, d = quadratic(), torch.tensor([1.0, 2.0])
    with pytest.raises(SettingError, match="direction 1 and direction 2 are parallel: they span no plane"):
        plane(objective, (d, -3 * d))
    with pytest.raises(SettingError, match="direction 2 is zero"):
        plane(objective, (d, 0 * d))
    with pytest.raises(SettingError, match="gradient and gradient are parallel"):
        plane(objective, ("gradient", "gradient"))
    for directions in ("random", (d,), (d, d, d), 3):
        with pytest.raises(SettingError, match="a plane has two directions"):
            plane(objective, directions)
    with pytest.raises(SettingError, match="points must be a number of points, at least 2"):
        plane(objective, points=(5, 1))


# --------------------------------------------------------------------------- statistics that points bring along


def normalised_training() -> tuple[Objective, list[dict[str, torch.Tensor]]]:
    """A network with BatchNorm, and its states while it learns; afterwards the model is elsewhere, statistics too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    data = [(3 + 2 * torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(3)]
    optimizer, states = torch.optim.SGD(model.parameters(), 0.1), []
    for _ in range(4):
        for x, y in data:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    model(100 * torch.randn(16, 4))
    with torch.no_grad():
        model[0].weight.add_(1.0)
    return Objective(model, data, criterion=nn.CrossEntropyLoss()), states


def own_value(objective: Objective, state: dict[str, torch.Tensor]) -> float:
    model = copy.deepcopy(objective.model)
    model.load_state_dict(state)
    return Objective(model, objective.data, criterion=nn.CrossEntropyLoss()).value()


def test_kept_statistics_are_those_that_the_last_point_brings_along() -> None:
    objective, states = normalised_training()
    found = plane(objective, trajectory=states, points=5, engine="one by one")
    assert found.center == own_value(objective, states[-1]) != objective.value()
    assert found.model is not None
    assert found.model.value == found.center
    objective.model.load_state_dict(states[-1])
    assert torch.equal(plane(objective, trajectory=states, points=5, engine="one by one").loss[0], found.loss[0])


def test_a_last_point_that_differs_in_its_statistics_alone() -> None:
    objective, states = normalised_training()
    objective.model.load_state_dict(states[-1])
    objective.model[1].running_mean.add_(1.0)
    before = copy.deepcopy(objective.model.state_dict())
    found = plane(objective, trajectory=states, points=3, model=False)
    assert found.center == own_value(objective, states[-1]) != objective.value()
    assert all(torch.equal(value, before[name]) for name, value in objective.model.state_dict().items())


def test_vectors_bring_no_statistics_along() -> None:
    objective, states = normalised_training()
    vectors = [parameters_at(objective, state) for state in states]
    found = plane(objective, trajectory=vectors, points=3, model=False)
    mixed = {**copy.deepcopy(objective.model.state_dict())}
    mixed.update({name: states[-1][name] for name in objective.parameters})
    assert found.center == own_value(objective, mixed)


@pytest.mark.parametrize("engine", ["one by one", "batched"])
def test_lines_and_planes_between_points_keep_the_first_ones_statistics(engine: str) -> None:
    objective, states = normalised_training()
    settings = {"statistics": "kept", "points": 3, "engine": engine, "model": False}
    expected = own_value(objective, states[0])
    assert line_between(objective, states[0], states[1], **settings).center == expected
    assert plane_through(objective, *states[:3], **settings).center == expected
    there = own_value(objective, {**states[1], **{n: v for n, v in states[0].items() if "running" in n}})
    found = line_between(objective, states[0], states[1], **settings)
    assert float(found.loss[found.x == 1]) == pytest.approx(there, rel=1e-5)


def test_evaluated_points_and_origins_bring_their_statistics_along() -> None:
    objective, states = normalised_training()
    expected = torch.tensor([own_value(objective, state) for state in states], dtype=torch.float64)
    assert torch.equal(evaluate_at(objective, states)["loss"], expected)
    axis = parameters_at(objective, states[1]) - parameters_at(objective, states[0])
    found = evaluate(objective, states[0], [axis], torch.zeros(1, 1))["loss"]
    assert torch.equal(found, expected[:1])


def test_a_plane_is_resumed_where_the_last_point_brings_its_statistics_along(tmp_path: Path) -> None:
    objective, states = normalised_training()
    first = plane(objective, trajectory=states, points=5, model=False, resume=tmp_path / "points.jsonl")
    objective.model(torch.randn(8, 4))  # the model's own statistics do not matter
    again = plane(objective, trajectory=states, points=5, model=False, resume=tmp_path / "points.jsonl")
    assert again.evaluations == 0
    assert torch.equal(again.loss, first.loss)


def test_a_note_of_both_axes_is_given_once() -> None:
    objective = classifier()
    objective.model[0].weight.data[0] = 0.0
    found = plane(objective, points=3, model=False)
    assert found.note.count("zero weights, so that the direction is zero there") == 1
