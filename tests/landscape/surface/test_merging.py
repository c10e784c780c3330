"""Merging against closed forms: convex losses, quadratics, statistics of normalisation, renumbered copies, errors."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from losscope.landscape import LossError, NonFiniteError, Objective, ParameterError, SettingError
from losscope.landscape.surface.merging import merge
from losscope.landscape.surface.paths import linear_path
from losscope.landscape.surface.permutations import hidden_units
from unit_nets import generic, objective_of


def quadratic() -> tuple[Objective, torch.Tensor]:
    """A linear model with squared loss, and its Hessian."""
    torch.manual_seed(0)
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.randn(30, 1, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    return Objective(model, (x, y), criterion=nn.MSELoss()), 2 * x.T @ x / 30


def test_of_a_quadratic_the_barrier_is_the_spread_in_its_curvature() -> None:
    objective, hessian = quadratic()
    points = [torch.randn(4, dtype=torch.float64) for _ in range(3)]
    found = merge(objective, points, weights=[1, 2, 5], pairwise=3)
    w = torch.tensor([1, 2, 5], dtype=torch.float64) / 8
    mean = sum(a * p for a, p in zip(w, points, strict=True))
    torch.testing.assert_close(found.vector, mean)
    expected = -sum(0.5 * a * (p - mean) @ hessian @ (p - mean) for a, p in zip(w, points, strict=True))
    assert found.barrier == pytest.approx(float(expected))
    assert found.mergeability == -found.barrier > 0
    spread = sum(a * (p - mean).square().sum() for a, p in zip(w, points, strict=True))
    assert found.consensus_distance == pytest.approx(float(spread)) == pytest.approx(found.spread_before)
    assert torch.equal(found.pairwise, torch.zeros(3, 3, dtype=torch.float64))  # convex: no line rises
    assert found.above_best == pytest.approx(found.merged["loss"] - float(found.values["loss"].min()))


def test_members_have_their_own_losses_and_metrics() -> None:
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)) for _ in range(2)]
    x, y = torch.randn(40, 3), torch.randint(2, (40,))
    objective = Objective(nets[0], (x, y), criterion=nn.CrossEntropyLoss())
    found = merge(objective, [None, nets[1]], metrics="accuracy")
    middle = copy.deepcopy(nets[0])
    middle.load_state_dict(dict(found.state))
    for net, loss, hits in [
        *zip(nets, found.values["loss"], found.values["accuracy"], strict=True),
        (middle, found.merged["loss"], found.merged["accuracy"]),
    ]:
        assert float(loss) == pytest.approx(float(nn.functional.cross_entropy(net(x), y).detach()), rel=1e-6)
        assert float(hits) == pytest.approx(float((net(x).argmax(dim=1) == y).double().mean()))
    assert found.barriers["accuracy"] == pytest.approx(
        float(found.values["accuracy"].mean()) - found.merged["accuracy"]
    )
    path = linear_path(objective, None, nets[1], points=3)
    assert found.barrier == pytest.approx(float(path.loss[1] - path.loss[[0, 2]].mean()), rel=1e-5)


def test_statistics_of_the_mean_are_those_of_weight_averaging() -> None:
    model, x = generic("conv")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.3 * torch.randn_like(p))
    found = merge(objective_of(model, x), [model, other])
    average = AveragedModel(model)
    average.update_parameters(model)
    average.update_parameters(other)
    update_bn([x], average)
    merged = copy.deepcopy(model)
    merged.load_state_dict(dict(found.state))
    torch.testing.assert_close(merged[1].running_mean, average.module[1].running_mean)
    torch.testing.assert_close(merged.eval()(x), average.eval()(x), rtol=1e-4, atol=1e-5)
    kept = merge(objective_of(model, x), [model, other], statistics="kept")
    expected = (model[1].running_mean + other[1].running_mean) / 2
    torch.testing.assert_close(kept.state["1.running_mean"], expected)
    assert kept.merged["loss"] != found.merged["loss"]


@pytest.mark.parametrize("name", ["mlp", "conv", "residual"])
def test_renumbered_copies_merge_to_themselves(name: str) -> None:
    model, x = generic(name)
    objective = objective_of(model, x)
    units = hidden_units(objective)
    copies = [units.permuted(model.state_dict(), units.random_orders(seed)) for seed in (1, 2)]
    plain = merge(objective, [model, *copies])
    found = merge(objective, [model, *copies], align=True)
    assert found.consensus_distance == pytest.approx(0, abs=1e-9) and plain.consensus_distance > 0.1
    assert found.spread_before == pytest.approx(plain.consensus_distance)
    # The copies' own losses differ from the model's by rounding, which normalisation of few samples magnifies.
    assert abs(found.barrier) < 1e-4 * float(found.values["loss"].mean())
    assert abs(plain.barrier) > 10 * abs(found.barrier)


def test_many_independent_networks_come_closer_than_by_matching_with_the_first() -> None:
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3)) for _ in range(5)]
    objective = Objective(nets[0], (torch.randn(50, 6), torch.randn(50, 3)), criterion=nn.MSELoss())
    units = hidden_units(objective)
    assert len(units.groups) == 1
    found = merge(objective, nets, align=True)
    assert found.consensus_distance < 0.95 * found.spread_before
    one = merge(objective, nets[:1] * 2, align=True)
    assert one.consensus_distance == 0 and one.barrier == pytest.approx(0, abs=1e-7)


def test_model_is_as_it_was() -> None:
    model, x = generic("conv")
    before = copy.deepcopy(model.state_dict())
    objective, stream = objective_of(model, x), torch.get_rng_state()
    merge(objective, [None, {k: v * 1.1 for k, v in before.items()}], align=True, pairwise=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)


def test_bad_input() -> None:
    objective, _ = quadratic()
    a, b = torch.zeros(4), torch.ones(4)
    with pytest.raises(SettingError, match="two points at least, got 1"):
        merge(objective, [a])
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(SettingError, match="weights must be 2 finite numbers"):
            merge(objective, [a, b], weights=weights)
    with pytest.raises(SettingError, match="pairwise"):
        merge(objective, [a, b], pairwise=2)
    with pytest.raises(ParameterError, match="point 1 is of another architecture"):
        merge(objective, [a, nn.Linear(5, 1, bias=False)])
    with pytest.raises(NonFiniteError, match="weight of point 1"):
        merge(objective, [a, b * torch.nan])
    with pytest.raises(SettingError, match="statistics must be"):
        merge(objective, [a, b], statistics="best")
    with pytest.raises(LossError, match="scalar"):
        merge(objective, [a, b], metrics=lambda outputs, targets: outputs)
