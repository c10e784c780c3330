"""Alignment: renumbered copies are found again, exactly; the assignment against all permutations; bad input."""

import copy
import itertools

import pytest
import torch
from torch import nn

from digits_nets import digits
from losscope.landscape import NonFiniteError, Objective, ParameterError, SettingError
from losscope.landscape.surface.alignment import align
from losscope.landscape.surface.paths import linear_path
from losscope.landscape.surface.permutations import hidden_units
from unit_nets import NETS, generic, objective_of


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("name", NETS)
def test_a_renumbered_copy_is_found_again(name: str, method: str) -> None:
    model, x = generic(name)
    objective = objective_of(model, x)
    units = hidden_units(objective)
    orders = units.random_orders(5)
    before = copy.deepcopy(model.state_dict())
    found = align(objective, model, units.permuted(model.state_dict(), orders), method=method)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found.distance_before > 0.1
    if method == "weights":
        assert found.distance == 0 and found.converged
        assert all(
            torch.equal(orders[group][order], torch.arange(len(order))) for group, order in found.permutations.items()
        )
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in found.state.items())
    else:  # units that answer to nothing on this data cannot be told apart
        assert found.distance < found.distance_before / 2


def test_the_permuted_function_is_that_of_the_second_network() -> None:
    model, x = generic("conv")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.randn_like(p))
    other[1].running_mean.uniform_(-1, 1)
    aligned = copy.deepcopy(model)
    found = align(objective_of(model, x), model, other)
    aligned.load_state_dict(dict(found.state))
    assert found.moved > 0 and found.distance < found.distance_before
    torch.testing.assert_close(aligned(x), other(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.vector, torch.cat([p.detach().flatten() for p in aligned.parameters()]))


def test_one_hidden_layer_is_solved_exactly() -> None:
    torch.manual_seed(1)
    first, second = (nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)) for _ in range(2))
    found = align(Objective(first, (torch.randn(4, 3), torch.randn(4, 2)), criterion=nn.MSELoss()), None, second)

    def distance(order: tuple[int, ...]) -> float:
        index = list(order)
        pairs = [
            (first[0].weight, second[0].weight[index]), (first[0].bias, second[0].bias[index]),
            (first[2].weight, second[2].weight[:, index]), (first[2].bias, second[2].bias),
        ]  # fmt: skip
        return float(sum((a - b).square().sum() for a, b in pairs).sqrt().detach())

    least = min(itertools.permutations(range(5)), key=distance)
    assert found.permutations["0.weight:0"].tolist() == list(least)
    assert found.distance == pytest.approx(distance(least), rel=1e-6)


def test_coordinate_ascent_never_moves_away() -> None:
    # In a plain residual layer x + W x the units are in both dimensions of W: no linear assignment.
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.w, self.b = nn.Linear(3, 9), nn.Linear(9, 9), nn.Linear(9, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            return self.b(x + self.w(x).tanh())

    torch.manual_seed(0)
    first, second = Layer(), Layer()
    with torch.no_grad():
        for layer in (first, second):
            layer.w.weight.mul_(20)
    objective = Objective(first, (torch.randn(4, 3), torch.randn(4, 2)), criterion=nn.MSELoss())
    distances = [align(objective, None, second, iterations=sweeps, restarts=0).distance for sweeps in (1, 2, 4, 50)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < align(objective, None, second).distance_before
    assert align(objective, None, second, restarts=20).distance <= distances[-1]


def test_half_precision_and_double_are_aligned_alike() -> None:
    model, x = generic("mlp")
    other, _ = generic("mlp")
    with torch.no_grad():
        for p in other.parameters():
            p.copy_(torch.randn_like(p))
    found = []
    for dtype in (torch.float32, torch.float64):
        objective = objective_of(copy.deepcopy(model).to(dtype), x.to(dtype))
        found.append(align(objective, None, copy.deepcopy(other).to(dtype)).permutations)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_model_without_hidden_units_stays_and_says_so() -> None:
    objective = Objective(nn.Linear(3, 2), (torch.randn(4, 3), torch.randn(4, 2)), criterion=nn.MSELoss())
    found = align(objective, None, nn.Linear(3, 2))
    assert found.distance == found.distance_before and found.permutations == {}
    assert "no hidden units were found" in found.note


def test_bad_input() -> None:
    model, x = generic("mlp")
    objective = objective_of(model, x)
    deeper = nn.Sequential(nn.Linear(5, 11), nn.ReLU(), nn.Linear(11, 12, bias=False), nn.Tanh(), nn.Linear(12, 3))
    with pytest.raises(ParameterError, match=r"0.weight has shape \(11, 5\)"):
        align(objective, None, deeper)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken[2].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"2.weight of the second point"):
        align(objective, None, broken)
    with pytest.raises(SettingError, match="'weights', 'activations'"):
        align(objective, None, model, method="luck")
    with pytest.raises(SettingError, match="restarts must be"):
        align(objective, None, model, restarts=-1)
    with pytest.raises(SettingError, match="iterations must be"):
        align(objective, None, model, iterations=0)


def _trained(width: int, start: int, order: int) -> nn.Module:
    """64-w-w-10 with ReLU on the digits: 20 epochs of SGD."""
    x, y = digits()
    torch.manual_seed(start)
    model = nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    ).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    torch.manual_seed(order)
    for _ in range(20):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
    return model


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("width", [64, 256])
def test_aligned_networks_have_a_quarter_of_the_barrier(width: int, seed: int) -> None:
    # Over three seeds the aligned barrier was at most .12 of that between independent networks, at both widths.
    first, second = _trained(width, seed, 10 + seed), _trained(width, 100 + seed, 20 + seed)
    objective = Objective(first, digits(), criterion=nn.CrossEntropyLoss())
    apart = linear_path(objective, None, second, points=11)
    found = align(objective, None, second)
    together = linear_path(objective, None, found.vector, points=11)
    assert apart.barrier > 0.1 and together.barrier <= apart.barrier / 4
    assert float(together.loss[-1]) == pytest.approx(float(apart.loss[-1]), rel=1e-9)
    assert found.distance < found.distance_before and found.converged
