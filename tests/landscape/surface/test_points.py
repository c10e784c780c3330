"""Points in the forms that people have them, and what is said of those that do not fit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from losscope.landscape import Objective, ParameterError, SettingError
from losscope.landscape.surface import buffers_at, parameters_at


class Named(nn.Module):
    """With a child of the name that wrappers give theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.head = nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.module(x))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def objective(model: nn.Module, **options: Any) -> Objective:
    return Objective(model, (torch.randn(5, 3), torch.randn(5, 2)), criterion=nn.MSELoss(), **options)


def moved(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for t in (*other.parameters(), *other.buffers()):
            t += 1
    return other


FORMS: dict[str, Callable[[nn.Module], Any]] = {
    "module": lambda m: m,
    "state dict": lambda m: m.state_dict(),
    "checkpoint": lambda m: {"epoch": 3, "model_state_dict": m.state_dict(), "optimizer": {}},
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "of DataParallel": lambda m: nn.DataParallel(m).state_dict(),
    "of both": lambda m: {f"module._orig_mod.{name}": value for name, value in m.state_dict().items()},
}
LIVE: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda m: m,
    "compiled": lambda m: torch.compile(m, backend="eager"),  # type: ignore[return-value,dict-item]
    "DataParallel": nn.DataParallel,
}


@pytest.mark.parametrize("make", [net, Named])
@pytest.mark.parametrize("live", LIVE)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_with_every_wrapper(form: str, live: str, make: Callable[[], nn.Module]) -> None:
    model = make()
    other = moved(model)
    bound = objective(LIVE[live](model))
    found = parameters_at(bound, FORMS[form](other))
    torch.testing.assert_close(found, torch.cat([p.detach().reshape(-1) for p in other.parameters()]))
    buffers = buffers_at(bound, FORMS[form](other))
    own = dict(bound.model.named_buffers())
    assert set(buffers) == set(own)
    for name, value in buffers.items():
        torch.testing.assert_close(value, own[name] + 1)


def test_some_of_the_parameters() -> None:
    model = Named()
    other = moved(model)
    found = parameters_at(objective(model, params="module.*"), other)
    torch.testing.assert_close(found, torch.cat([other.module.weight, other.module.bias]).detach())


def test_the_live_model_and_vectors_are_copied() -> None:
    model = nn.Linear(3, 2, bias=False)
    bound = objective(model)
    live = parameters_at(bound, None)
    again = parameters_at(bound, live)
    live += 1
    assert torch.equal(again, model.weight.detach().reshape(-1)) and not torch.equal(live, again)
    assert buffers_at(bound, None) == {} and buffers_at(bound, live) == {}


@pytest.mark.parametrize(
    ("point", "words"),
    [
        (lambda: {**net().state_dict(), "3.weight": torch.ones(2, 5)}, r"3\.weight has shape \(2, 5\).*\(2, 4\)"),
        (lambda: {k: v for k, v in net().state_dict().items() if k != "0.bias"}, "the point has no tensor '0.bias'"),
        (lambda: {**net().state_dict(), "4.weight": torch.ones(2)}, "1 tensors that the model has not, 4.weight"),
        (lambda: torch.ones(3), r"shape \(3,\); expected a vector \(34,\)"),
    ],
)
def test_another_architecture_is_named(point: Callable[[], Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        parameters_at(objective(net()), point())


def test_what_is_no_point() -> None:
    with pytest.raises(SettingError, match=r"a module, a state dict, a vector of parameters or None.*got str"):
        parameters_at(objective(net()), "checkpoint.pt")  # type: ignore[arg-type]
