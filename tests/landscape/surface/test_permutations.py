"""Hidden units: the groups of known networks; the function under their permutations; what is refused or left."""

import copy

import pytest
import torch
from torch import Tensor, nn

from losscope.landscape import Objective, SettingError
from losscope.landscape.surface.permutations import hidden_units
from unit_nets import NETS, generic, objective_of


def sizes(model: nn.Module, x: Tensor) -> list[int]:
    return sorted(group.size for group in hidden_units(objective_of(model, x)).groups)


def test_groups_of_an_mlp_are_its_layers() -> None:
    model, x = generic("mlp")
    found = hidden_units(objective_of(model, x))
    assert [group.places for group in found.groups] == [
        (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)),
        (("2.weight", 0), ("4.weight", 1)),
    ]
    assert found.note == "" and found.error < 1e-5


def test_groups_of_a_residual_network() -> None:
    # Three streams, of which the later ones begin with the earlier (their shortcut pads with zeros), and nine blocks.
    found = hidden_units(objective_of(*generic("residual")))
    assert sorted(group.size for group in found.groups) == sorted([4, 4, 8] + [4] * 3 + [8] * 3 + [16] * 3)
    assert ("0.weight", 0) in found.groups[0].places and len(found.groups[0].places) > 30


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conv", [6, 7]),
        ("bottleneck", [2, 3, 8]),  # two groups of three channels, normalised as such; the gate's halves together
        ("dense", [5, 6, 7]),
        ("recurrent", [4, 5, 5]),
        ("computed", [3, 6]),
        ("grouped", [3, 3, 7, 12]),
        # The stream, and per layer heads, their coordinates and the MLP. A packed projection has query, key and value
        # side by side in one dimension, so that they share the order of coordinates.
        ("transformer", [2, 2, 4, 4, 8, 12, 12]),
    ],
)
def test_groups_of_other_networks(name: str, expected: list[int]) -> None:
    assert sizes(*generic(name)) == expected


@pytest.mark.parametrize("name", NETS)
def test_function_is_the_same_under_random_permutations(name: str) -> None:
    model, x = generic(name)
    found = hidden_units(objective_of(model, x))
    twin = copy.deepcopy(model)
    twin.load_state_dict(found.permuted(model.state_dict(), found.random_orders(3)))
    moved = [a for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True) if not a.equal(b)]
    assert len(moved) > len(found.groups)
    torch.testing.assert_close(twin(x), model(x), rtol=1e-4, atol=1e-5)


def test_model_is_as_it_was() -> None:
    model, x = generic("conv")
    model.train()
    before = copy.deepcopy(model.state_dict())
    objective = Objective(model, (x, torch.zeros(9, 2)), criterion=nn.MSELoss())
    stream = torch.get_rng_state()
    hidden_units(objective)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)


class Sorted(nn.Module):
    """Its hidden units are ranked by number: there is nothing to permute."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        ranked = self.a(x).cumsum(dim=1) / torch.arange(1, 7)
        return self.c(torch.special.erf(self.b(ranked)))


def test_units_whose_order_counts_are_not_hidden_units() -> None:
    torch.manual_seed(0)
    found = hidden_units(objective_of(Sorted(), torch.randn(7, 4)))
    assert [group.places[0] for group in found.groups] == [("b.weight", 0)]


class Opaque(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.linalg.matrix_exp(torch.diag_embed(self.a(x).tanh())).sum(dim=1))


def test_what_has_no_rule_is_left_and_said() -> None:
    found = hidden_units(objective_of(Opaque(), torch.randn(7, 4)))
    assert found.groups == ()
    assert "diag_embed" in found.note or "linalg_matrix_exp" in found.note or "diagonal" in found.note


def test_groups_by_hand() -> None:
    model, x = generic("conv")
    places = [
        ("0.weight", 0),
        ("0.bias", 0),
        *((f"1.{n}", 0) for n in ("weight", "bias", "running_mean", "running_var")),
    ]
    found = hidden_units(objective_of(model, x), spec={"channels": [*places, ("5.weight", 1)]})
    assert [(group.name, group.size) for group in found.groups] == [("channels", 6)]
    automatic = hidden_units(objective_of(model, x))
    order = torch.randperm(6)
    mine = found.permuted(model.state_dict(), {"channels": order})
    theirs = automatic.permuted(model.state_dict(), {automatic.groups[0].name: order})
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_wrong_groups_by_hand_are_dropped_with_a_note() -> None:
    model, x = generic("mlp")
    spec = {"wrong": [("0.weight", 0), ("2.weight", 1)], "right": [("2.weight", 0), ("4.weight", 1)]}
    found = hidden_units(objective_of(model, x), spec=spec)
    assert [group.name for group in found.groups] == ["right"]
    assert "wrong is left" in found.note and found.error < 1e-5


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"g": [("0.weight", 0), ("nothing", 1)]}, "no dimension 1 of 'nothing'"),
        ({"g": [("0.weight", 2)]}, "no dimension 2"),
        ({"g": [("0.weight", 0), ("0.weight", 1)]}, "no multiple of the 5"),
    ],
)
def test_groups_by_hand_that_mean_nothing(spec: dict[str, list[tuple[str, int]]], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        hidden_units(objective_of(*generic("mlp")), spec=spec)


def test_orders_that_are_none() -> None:
    model, x = generic("mlp")
    found = hidden_units(objective_of(model, x))
    with pytest.raises(SettingError, match="no group 'x'"):
        found.permuted(model.state_dict(), {"x": torch.arange(12)})
    with pytest.raises(SettingError, match="permutation of 0"):
        found.permuted(model.state_dict(), {found.groups[0].name: torch.zeros(12, dtype=torch.int64)})


def test_groups_that_reach_outside_the_objective_are_left() -> None:
    model, x = generic("mlp")
    objective = Objective(model, (x, torch.randn(20, 3)), criterion=nn.MSELoss(), params=["2.*", "4.*"])
    found = hidden_units(objective)
    assert [group.places for group in found.groups] == [(("2.weight", 0), ("4.weight", 1))]
    assert "0.weight is not among the objective's parameters" in found.note


def test_a_loss_that_hides_the_outputs() -> None:
    model, x = generic("dense")
    y = torch.randn(11, 2)
    objective = Objective(model, (x, y), loss_fn=lambda m, batch: (m(batch[0]) - batch[1]).square().mean())
    assert sorted(group.size for group in hidden_units(objective).groups) == [5, 6, 7]


class Auxiliary(nn.Module):
    """With a second head that is used in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.other = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.b(x) + self.other(x) if self.training else self.b(x)


def test_what_the_outputs_do_not_depend_on_is_said() -> None:
    found = hidden_units(objective_of(Auxiliary(), torch.randn(7, 4)))
    assert [group.size for group in found.groups] == [6]
    assert "do not depend on other.weight, other.bias" in found.note


def test_an_untrained_deep_network_is_tried_where_its_signal_lives() -> None:
    # With statistics that nothing was normalised by, the outputs of 40 layers are their last bias.
    torch.manual_seed(0)
    layers = [layer for _ in range(40) for layer in (nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(6, 2))
    found = hidden_units(objective_of(model.eval(), torch.randn(9, 6)))
    assert len(found.groups) == 40 and found.note == ""
    wrong = {"wrong": [("0.weight", 0), ("0.bias", 0)]}
    assert hidden_units(objective_of(model, torch.randn(9, 6)), spec=wrong).groups == ()


def test_a_trial_that_shows_nothing_is_said() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Threshold(1e9, 0.5), nn.Linear(4, 2))
    assert "says little" in hidden_units(objective_of(model, torch.randn(5, 3))).note
