"""Gauss-Newton products of models whose outputs are several tensors, a parameter, or used twice."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape_cases import dense_hessian, flat, labelled, mlp, selected
from losscope.landscape import GaussNewton, Objective
from output_cases import by_hand, dense_jacobian


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def eye(operator: GaussNewton) -> Tensor:
    return torch.eye(operator.shape[0], dtype=operator.space.dtype)


class TwoHeads(nn.Module):
    """A body with two heads, whose outputs come in a structure, beside others that the loss does not use."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.left, self.right = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 2)
        self.how = how

    def forward(self, x: Tensor) -> object:
        h = self.body(x).tanh()
        left, right = self.left(h), self.right(h)
        if self.how == "dict":
            return {"classes": left, "hidden": h, "mask": x > 0, "values": right, "name": "two heads"}
        return (left, (right, h.detach()), None)


@pytest.mark.parametrize("coupled", [False, True], ids=["sum of two", "coupled"])
@pytest.mark.parametrize("how", ["dict", "tuple"])
def test_several_outputs(how: str, coupled: bool) -> None:
    torch.manual_seed(0)
    model, x = TwoHeads(how).double(), torch.randn(7, 4).double()
    y, v = torch.randint(3, (7,)), torch.randn(7, 2).double()

    def parts(z: object) -> tuple[Tensor, Tensor]:
        return (z["classes"], z["values"]) if isinstance(z, dict) else (z[0], z[1][0])

    def criterion(z: object, targets: tuple[Tensor, Tensor]) -> Tensor:
        left, right = parts(z)
        loss = F.cross_entropy(left, targets[0]) + 2 * F.mse_loss(right, targets[1])
        return loss * (1 + right.square().mean()) if coupled else loss

    def total(z: Tensor) -> Tensor:
        left, right = z[:21].view(7, 3), z[21:].view(7, 2)
        loss = by_hand(left, y) + 2 * (right - v).square().mean()
        return loss * (1 + right.square().mean()) if coupled else loss

    z = flat(parts(model(x)))
    J, H = dense_jacobian(z, selected(model)), torch.func.hessian(total)(z.detach())
    operator = GaussNewton(Objective(model, (x, (y, v)), criterion=criterion))
    assert operator.psd != coupled
    assert distance(operator @ eye(operator), J.T @ H @ J) <= 1e-11


def test_a_criterion_that_uses_one_output_twice() -> None:
    torch.manual_seed(0)
    model, (x, y) = mlp(4, 5, 3).double(), labelled([6])[0]
    x, t = x.double(), torch.randn(6, 3).double()
    objective = Objective(model, (x, y), criterion=lambda z, y: F.cross_entropy(z, y) + F.mse_loss(z[:, :3], t))
    operator = GaussNewton(objective)
    assert operator.psd
    z = model(x).flatten()
    H = torch.func.hessian(lambda z: by_hand(z.view(6, 3), y) + (z.view(6, 3) - t).square().mean())(z.detach())
    J = dense_jacobian(z, selected(model))
    assert distance(operator @ eye(operator), J.T @ H @ J) <= 1e-11


class Itself(nn.Module):
    """The outputs are the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight


def test_outputs_that_are_a_parameter_leave_the_vectors_alone() -> None:
    y = torch.tensor([0, 3, 1])
    operator = GaussNewton(Objective(Itself(), (torch.ones(3), y), criterion=nn.CrossEntropyLoss()))
    V = torch.randn(12, 1, generator=torch.Generator().manual_seed(0))
    before = V.clone()
    H = torch.func.hessian(lambda z: by_hand(z.view(3, 4), y))(flat(selected(operator.objective.model)).detach())
    assert distance(operator @ V, H.double() @ V.double()) <= 1e-5
    assert torch.equal(V, before)


def test_a_penalty_on_weights_inside_the_criterion_enters_in_full() -> None:
    torch.manual_seed(0)
    model, (x, y) = mlp(4, 5, 3).double(), labelled([6])[0]
    x = x.double()

    def criterion(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z, y) + 0.05 * sum(p.square().sum() for p in model.parameters())

    operator = GaussNewton(Objective(model, (x, y), criterion=criterion))
    plain = GaussNewton(Objective(model, (x, y), criterion=nn.CrossEntropyLoss()))
    assert distance(operator @ eye(plain), plain @ eye(plain) + 0.1 * eye(plain)) <= 1e-12


def test_the_oracle_of_the_oracle() -> None:
    """For outputs that are the parameters, Gauss-Newton is the Hessian that the other tests trust."""
    y = torch.tensor([0, 3, 1])
    model = Itself().double()
    H = dense_hessian(F.cross_entropy(model(None), y), selected(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operator = GaussNewton(Objective(model, (torch.ones(3), y), criterion=nn.CrossEntropyLoss()))
    assert distance(operator @ eye(operator), H) <= 1e-12
