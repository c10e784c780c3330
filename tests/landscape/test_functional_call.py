"""A module called with other tensors: every place of a tensor is filled, and every place is as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from losscope.landscape import Hessian, Objective
from losscope.landscape.functional_call import FunctionalModule
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
