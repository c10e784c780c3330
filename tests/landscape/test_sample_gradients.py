"""Gradients of single samples: against a loop, where they cannot be vectorised, and what has none."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.landscape import NonFiniteError, Objective, SettingError
from losscope.landscape.sample_gradients import SampleGradients, per_sample_gradients

F64 = torch.float64


def rows(n: int, d: int = 4) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=F64)


def labels(n: int) -> Tensor:
    return torch.randint(3, (n,), generator=torch.Generator().manual_seed(1))


class Recurrent(nn.Module):
    """A cell in a loop, and an embedding: what is not vectorised by a batched kernel of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.out = nn.Embedding(9, 4), nn.GRUCell(4, 5), nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens).new_zeros(len(tokens), 5)
        for step in self.embed(tokens).unbind(1):
            h = self.cell(step, h)
        return self.out(h)


def mlp(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), *middle, nn.Linear(5, 3))


def conv() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 2), nn.GELU(), nn.Flatten(), nn.Linear(2, 3))


def tokens(n: int) -> Tensor:
    return torch.randint(9, (n, 5), generator=torch.Generator().manual_seed(2))


MODELS = {"mlp": (mlp, rows), "conv": (conv, rows), "recurrent": (Recurrent, tokens)}


def objective_of(name: str = "mlp", n: int = 20, cut: int = 7, **options: object) -> Objective:
    make, inputs = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = make().double()
    data = list(zip(inputs(n).split(cut), labels(n).split(cut), strict=True))
    return Objective(model, data, **{"criterion": nn.CrossEntropyLoss(), **options})


def looped(objective: Objective) -> Tensor:
    """One sample at a time, by plain autograd."""
    found = []
    for batch in objective.batches:
        for x, y in zip(*batch.content, strict=True):
            loss = F.cross_entropy(objective.model(x[None]), y[None])
            found.append(
                torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(objective.model.parameters()))])
            )
    return torch.stack(found)


@pytest.mark.parametrize("name", MODELS)
def test_they_are_those_of_a_loop(name: str) -> None:
    objective = objective_of(name)
    found = torch.cat(list(per_sample_gradients(objective)))
    assert torch.allclose(found, looped(objective), rtol=1e-10, atol=1e-13)
    assert torch.allclose(found.mean(dim=0), objective.gradient(), atol=1e-13)


def test_a_sum_s_mean_is_its_gradient() -> None:
    objective = objective_of(criterion=nn.CrossEntropyLoss(reduction="sum"))
    found = torch.cat(list(per_sample_gradients(objective)))
    assert torch.allclose(found.mean(dim=0), objective.gradient(), atol=1e-12)


def test_positions_choose_and_little_memory_changes_nothing() -> None:
    objective, some = objective_of(), torch.tensor([19, 0, 7, 7])
    whole = looped(objective)
    assert torch.allclose(torch.cat(list(per_sample_gradients(objective, samples=some))), whole[some], atol=1e-13)
    small = per_sample_gradients(objective, memory=8000)
    blocks = list(small)
    assert len(blocks) > 3
    assert torch.allclose(torch.cat(blocks), whole, atol=1e-13)
    assert torch.equal(torch.cat(list(small)), torch.cat(blocks))  # again, as they were not kept


def test_batches_of_several() -> None:
    objective = objective_of()
    chosen = torch.tensor([[0, 3, 9], [3, 3, 19]])
    found = torch.cat(list(SampleGradients(objective, chosen)))
    assert torch.allclose(found, looped(objective)[chosen].mean(dim=1), atol=1e-13)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if float(x.sum()) > 0 else self.inner(2 * x)


def test_what_cannot_be_vectorised_goes_one_by_one() -> None:
    torch.manual_seed(0)
    model = Branching().double()
    objective = Objective(model, (rows(9), labels(9)), criterion=nn.CrossEntropyLoss())
    gradients = per_sample_gradients(objective)
    found = torch.cat(list(gradients))
    assert gradients.engine == "one by one"
    assert gradients.reason
    assert torch.allclose(found, looped(objective), atol=1e-13)


def test_what_differs_together_goes_one_by_one() -> None:
    def held(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) + 0.1 * weights.square().sum()  # of the live parameters

    objective = objective_of(criterion=lambda o, t: held(o, t))
    weights = objective.model[0].weight
    gradients = per_sample_gradients(objective)
    found = torch.cat(list(gradients))
    assert gradients.engine == "one by one"
    assert torch.allclose(found.mean(dim=0), objective.gradient(), atol=1e-12)


def test_dropout_is_drawn_for_each_and_repeats() -> None:
    torch.manual_seed(0)
    model = mlp(nn.Dropout(0.5)).double()
    data = (rows(1).expand(40, -1), labels(1).expand(40))
    gradients = per_sample_gradients(Objective(model, data, criterion=nn.CrossEntropyLoss(), mode="train"), memory=1)
    first, again = (torch.cat(list(gradients)) for _ in range(2))
    assert torch.equal(first, again)
    assert len(first.unique(dim=0)) > 4


def test_bad_input() -> None:
    objective = objective_of()
    for samples in (torch.tensor([20]), torch.tensor([-1]), torch.tensor([[0]]), torch.tensor([], dtype=torch.long)):
        with pytest.raises(SettingError, match="positions from 0 to 19"):
            per_sample_gradients(objective, samples=samples)
    with pytest.raises(SettingError, match="have weights"):
        per_sample_gradients(objective.weighted(torch.ones(20)))
    broken = Objective(mlp().double(), (rows(3) * math.inf, labels(3)), criterion=nn.CrossEntropyLoss())
    with pytest.raises(NonFiniteError, match="gradient of a sample"):
        list(per_sample_gradients(broken))
