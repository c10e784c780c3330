"""A module called with other tensors: every place of a tensor is filled, and every place is as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from losscope.landscape import Hessian, Objective
from losscope.landscape.functional_call import FunctionalModule, TensorPlaces
from losscope.landscape.surface import plane


class Reused(nn.Module):
    """A block under two names, in a list three times, and a tensor that two modules share."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh())
        self.again = self.block
        self.stack = nn.ModuleList([self.block] * 3)
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again(self.stack[2](self.block(self.first(x)))))


def places(module: nn.Module) -> list[tuple[str, int]]:
    tables = (table for m in module.modules() for table in (m._parameters, m._buffers))
    return [(name, id(tensor)) for table in tables for name, tensor in table.items()]


def test_all_places_are_filled_and_all_are_put_back():
    torch.manual_seed(0)
    model, other, x = Reused().eval(), Reused().eval(), torch.randn(5, 3)
    before, tensors = places(model), {**dict(other.named_parameters()), **dict(other.named_buffers())}
    found = FunctionalModule(model)(tensors, (x,))
    assert torch.equal(found, other(x))
    assert not torch.equal(found, model(x))
    assert places(model) == before


def test_all_is_put_back_where_a_name_or_the_function_fails():
    model = Reused()
    before = places(model)
    replaced = {"first.weight": torch.zeros(3, 3)}
    for tensors, x in (
        (replaced, torch.randn(5, 4)),
        ({**replaced, "nowhere.weight": torch.zeros(3)}, torch.randn(5, 3)),
    ):
        with pytest.raises((RuntimeError, KeyError)):
            FunctionalModule(model)(tensors, (x,))
        assert places(model) == before


def test_places_are_found_once_and_read_as_they_are_now():
    model = Reused()
    found = TensorPlaces({"0.": model, "1.": model.first})
    named = {f"0.{name}": id(t) for name, t in (*model.named_parameters(), *model.named_buffers())}
    assert {name: identity for identity, name in found.names.items()} == named
    model.block[1]._buffers["running_mean"] = other = torch.ones(3)
    model.block[1]._buffers["running_var"] = None
    now = found.now("_buffers")
    assert now["0.block.1.running_mean"] is other
    assert set(now) == {"0.block.1.running_mean", "0.block.1.num_batches_tracked"}
    assert set(found.now("_parameters")) == {f"0.{name}" for name, _ in model.named_parameters()}


@pytest.mark.parametrize("kernel", ["auto", "batched"])
def test_measuring_a_model_with_modules_that_are_reused_leaves_it_as_it_is(kernel: str):
    torch.manual_seed(0)
    model, x, y = Reused().eval(), torch.randn(8, 3), torch.randint(3, (8,))
    before, values = places(model), [p.clone() for p in model.parameters()]
    H = Hessian(Objective(model, (x, y), criterion=nn.CrossEntropyLoss()), kernel=kernel)
    v = torch.randn(H.shape[0])
    found = H @ v

    parameters = list(model.parameters())
    gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), parameters, create_graph=True)
    inner = sum((g * piece).sum() for g, piece in zip(gradients, H.space.unflatten(v), strict=True))
    expected = torch.cat([h.flatten() for h in torch.autograd.grad(inner, parameters)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    assert places(model) == before
    assert all(torch.equal(p, value) for p, value in zip(parameters, values, strict=True))


def test_a_plane_of_such_a_model_leaves_it_as_it_is():
    torch.manual_seed(0)
    model, x, y = Reused().eval(), torch.randn(8, 3), torch.randint(3, (8,))
    before, dtypes = places(model), [p.dtype for p in model.parameters()]
    plane(Objective(model, (x, y), criterion=nn.CrossEntropyLoss()), points=3)
    assert places(model) == before
    assert [p.dtype for p in model.parameters()] == dtypes
