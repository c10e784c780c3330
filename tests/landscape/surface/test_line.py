"""Lines: grids with the centre on them, directions of every kind, exact values, and what is refused."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from isolation_cases import batches, busy_with_gradients, state_of, streams
from landscape_cases import mlp
from losscope.landscape import Objective, line
from losscope.landscape.errors import ParameterError, SettingError
from losscope.landscape.surface import Axis, line_between, random_direction, update_direction


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


# --------------------------------------------------------------------------- values


@pytest.mark.parametrize("engine", ["one by one", "auto", "batched"])
def test_a_quadratic_in_closed_form(engine: str) -> None:
    found = line(quadratic(), torch.tensor([1.0, 2.0]), points=41, engine=engine)
    exact = ((1 + found.x) ** 2 + 9 * (1 + 2 * found.x) ** 2) / 2
    torch.testing.assert_close(found.loss, exact, rtol=1e-12, atol=1e-12)
    assert found.model is not None
    torch.testing.assert_close(found.model.at(found.x), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("points", [51, 50, [-1.0, 0.3, 0.7], torch.tensor([0.5, 0.25])])
def test_the_centre_is_on_every_grid_and_is_the_plain_loss(points: int | list[float] | Tensor) -> None:
    objective = classifier()
    found = line(objective, points=points, model=False)
    assert float(found.loss[found.x == 0]) == found.center == objective.value()
    assert bool((found.x.diff() > 0).all())
    asked = torch.as_tensor(points).double() if not isinstance(points, int) else torch.linspace(-1, 1, points).double()
    assert len(found.x) == len(asked) + (len(asked) != 51)
    assert all(float((found.x - c).abs().min()) < 1e-7 for c in asked)


def test_directions_by_name_are_those_of_the_functions() -> None:
    objective = classifier()
    assert torch.equal(
        line(objective, points=3, model=False, seed=4).axis.vector, random_direction(objective, seed=4).vector
    )
    plain = line(objective, points=3, model=False, normalise=None).axis
    assert plain.norm == pytest.approx(1.0) and "filter" not in plain.name
    gradient = line(objective, "gradient", points=[-1e-3, 1e-3])
    assert gradient.axis.norm == pytest.approx(1.0) and gradient.axis.name == "gradient"
    assert gradient.model is not None
    assert float(gradient.model.slopes) == pytest.approx(float(objective.gradient().norm()), rel=1e-4)
    top = line(quadratic(), "eigenvector", points=3).axis.vector
    torch.testing.assert_close(top.abs(), torch.tensor([0.0, 1.0]).double(), rtol=0, atol=1e-2)


def test_directions_to_a_point_and_of_an_update() -> None:
    objective, other = classifier(), classifier(1)
    found = line(objective, other.model, points=3, model=False)
    there = Objective(other.model, objective.data, criterion=nn.CrossEntropyLoss())
    assert float(found.loss[-1]) == pytest.approx(there.value(), rel=1e-5)
    before = [p.detach().clone() for p in objective.parameters.values()]
    state = dict(zip(objective.parameters, before, strict=True))
    with torch.no_grad():
        for p in objective.parameters.values():
            p.add_(0.1)
    found = line(objective, update_direction(objective, state), points=3, model=False)
    with torch.no_grad():
        for p, value in zip(objective.parameters.values(), before, strict=True):
            p.copy_(value)
    assert float(found.loss[0]) == pytest.approx(objective.value(), rel=1e-5)


def test_metrics_refinement_and_seconds() -> None:
    found = line(quadratic(), points=5, metrics={"size": lambda out, _: out.abs().mean()}, refine=10)
    assert list(found.values) == ["loss", "size"] and 5 < len(found.x) <= 15
    assert found.evaluations == len(found.x) and found.seconds > 0
    assert bool((found.x.diff() > 0).all())


def test_second_differences_along_the_axis_are_the_curvature() -> None:
    torch.manual_seed(0)
    model = mlp(4, 6, 3).double()
    objective = Objective(
        model, (torch.randn(30, 4).double(), torch.randint(3, (30,))), criterion=nn.CrossEntropyLoss()
    )
    h = 1e-3
    found = line(objective, points=[-h, 0.0, h])
    bend = float(found.loss[0] - 2 * found.loss[1] + found.loss[2]) / h**2
    assert found.model is not None
    assert bend == pytest.approx(float(found.model.curvatures), rel=1e-3)
    assert float(found.model.second_differences) == pytest.approx(float(found.model.curvatures), rel=1e-3)


def test_resumed_from_a_file(tmp_path: Path) -> None:
    objective, file = classifier(), tmp_path / "points.jsonl"
    first = line(objective, points=21, resume=file, model=False)
    again = line(objective, points=41, resume=file, model=False)
    assert first.evaluations == 21 and again.evaluations == 20
    torch.testing.assert_close(again.loss[::2], first.loss, rtol=0, atol=0)


# --------------------------------------------------------------------------- between points


def test_between_two_models() -> None:
    objective, a, b = classifier(), classifier(1), classifier(2)
    found = line_between(objective, a.model, b.model.state_dict(), metrics="accuracy", names=("a", "b"))
    assert found.points == {"a": 0.0, "b": 1.0} and found.axis.name == "from a to b"
    ends = [Objective(m, objective.data, criterion=nn.CrossEntropyLoss()).value() for m in (a.model, b.model)]
    assert float(found.loss[found.x == 0]) == found.center == ends[0]
    assert float(found.loss[found.x == 1]) == pytest.approx(ends[1], rel=1e-5)
    assert found.statistics == "kept" and found.model is not None
    assert found.model.value == ends[0]


def test_from_the_live_model_to_another() -> None:
    objective, other = classifier(), classifier(1)
    found = line_between(objective, None, other.model, points=5, model=False)
    towards = line(objective, other.model, points=found.x.tolist(), model=False)
    torch.testing.assert_close(found.loss, towards.loss, rtol=1e-6, atol=0)


# --------------------------------------------------------------------------- what it leaves, what it says, refuses


def test_nothing_in_the_model_changes() -> None:
    model = busy_with_gradients()
    objective = Objective(model, batches(), criterion=nn.CrossEntropyLoss())
    other = {name: p.detach() + 0.1 for name, p in model.named_parameters()}
    before, random_state = state_of(model), streams()
    line(objective, "gradient", points=21, refine=3, metrics="accuracy", statistics="recomputed")
    line_between(objective, None, other, points=5)
    line_between(objective, other, None, points=5)
    assert state_of(model) == before and streams() == random_state


def test_a_centre_that_is_not_a_number_is_said() -> None:
    objective = quadratic()
    objective.model.weight.data[0, 0] = math.nan
    found = line(objective, Axis(torch.ones(2)), points=5)
    assert math.isnan(found.center) and bool(found.loss.isnan().all()) and found.model is None
    assert "the loss is nan at the centre" in found.note and "no quadratic model: " in found.note
    assert "loss is NaN or infinite at 5 of 5 points" in found.note


@pytest.mark.parametrize("points", [1, 0, -3, [0.0], [], True, [0.0, math.inf], [[0.0, 1.0]]])
def test_grids_that_are_none_are_refused(points: int | list[float]) -> None:
    with pytest.raises(SettingError, match="points must be a number of points, at least 2, or as many finite"):
        line(quadratic(), points=points)


@pytest.mark.parametrize("span", [(1, -1), (0, 0), (0, math.inf), 3, ("a", 1), (0, 1, 2)])
def test_spans_that_are_none_are_refused(span: object) -> None:
    with pytest.raises(SettingError, match="span must be"):
        line(quadratic(), span=span)


def test_directions_that_are_none_are_refused() -> None:
    objective = quadratic()
    with pytest.raises(SettingError, match="direction is zero"):
        line(objective, torch.zeros(2))
    with pytest.raises(ParameterError, match=r"direction has shape \(3,\)"):
        line(objective, torch.ones(3))
    with pytest.raises(SettingError, match=r"a direction must be one of 'random', .* got 'up'"):
        line(objective, "up")
    with pytest.raises(SettingError, match=r"pass update_direction\(objective, before\)"):
        line(objective, "update")
    with pytest.raises(ParameterError, match=r"another architecture: weight has shape \(1, 3\)"):
        line(objective, nn.Linear(3, 1, bias=False))
    with pytest.raises(SettingError, match="both points are the same"):
        line_between(objective, None, objective.model)
