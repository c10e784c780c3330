"""Evaluating in float64 what a model holds in less: the values of a copy in float64, and nothing left behind."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isolation_cases import batches, busy_with_gradients, state_of, streams
from losscope.landscape import Hessian, Objective
from losscope.landscape.in_double import double_where_it_can, in_double

F64 = torch.float64


class Odd(nn.Module):
    """Constants in every place: a buffer shared by two modules, a tensor attribute, a dict and a list of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        shared = torch.full((4, 4), 0.1)
        self.a.register_buffer("mix", shared)
        self.b.register_buffer("mix", shared)
        self.shift = torch.linspace(0, 1, 4)
        self.table = {"scale": torch.tensor([2.0]), "others": [torch.eye(4)]}
        self.count = torch.tensor(3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x) @ self.a.mix + self.shift
        return torch.tanh(self.b(h) @ self.table["others"][0]) * self.table["scale"] @ self.b.mix / self.count


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm, self.out = nn.Embedding(7, 5), nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(self.words(x))[0][:, -1])


def cases() -> dict[str, tuple[nn.Module, Any, Any]]:
    torch.manual_seed(0)
    x, image = torch.randn(6, 4), torch.randn(6, 3, 8, 8)
    labels, words = torch.randint(3, (6,)), torch.randint(7, (6, 5))
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    attention = nn.Sequential(
        nn.Embedding(7, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 3)
    )
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    return {
        "odd": (Odd(), (x, torch.randn(6, 4)), nn.MSELoss()),
        "convolutions": (nn.Sequential(conv, nn.Linear(4, 3)), (image, labels), weighted),
        "recurrent": (Recurrent(), (words, labels), nn.CrossEntropyLoss()),
        "attention": (attention, (words, labels), nn.CrossEntropyLoss(label_smoothing=0.1)),
    }


def doubled(content: Any) -> Any:
    return tuple(t.double() if t.is_floating_point() else t for t in content)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", ["odd", "convolutions", "recurrent", "attention"])
def test_it_has_the_values_of_a_copy_in_float64(name: str, mode: str) -> None:
    model, data, criterion = cases()[name]
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    other = copy.deepcopy(model).double()
    if isinstance(other, Odd):  # constants that nn.Module knows nothing of
        other.shift, other.table = (
            other.shift.double(),
            {"scale": other.table["scale"].double(), "others": [torch.eye(4, dtype=F64)]},
        )
    before = state_of(model), streams()
    exact = Objective(other, doubled(data), criterion=copy.deepcopy(criterion).double(), mode=mode)
    objective = Objective(model, data, criterion=criterion, mode=mode)
    with double_where_it_can(objective) as (precise, refused):
        assert refused == "" and precise.space.dtype == F64
        assert precise.value() == pytest.approx(exact.value(), rel=1e-14)
        torch.testing.assert_close(precise.gradient(), exact.gradient(), rtol=1e-11, atol=1e-14)
        V = torch.eye(precise.space.size, 3, dtype=F64)
        torch.testing.assert_close(
            Hessian(precise, kernel="retained") @ V, Hessian(exact, kernel="retained") @ V, rtol=1e-9, atol=1e-12
        )
    assert (state_of(model), streams()) == before
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_within_an_isolation_all_is_put_back_as_it_was_in_it() -> None:
    model, data, criterion = cases()["odd"]
    objective = Objective(model, data, criterion=criterion)
    with objective.isolated():
        before = state_of(model)
        with in_double(objective) as precise:
            assert model.a.mix is model.b.mix and model.shift.dtype == F64 and model.count.dtype == torch.int64
            precise.value()
        assert state_of(model) == before


def test_what_is_cast_down_is_not_evaluated_so() -> None:
    """Moves of the weights below float32's precision would not be seen, and rounding be taken for nothing."""
    model = nn.Linear(3, 2)
    objective = Objective(model, [torch.ones(4, 3)], loss_fn=lambda model, x: model(x).float().square().mean())
    with double_where_it_can(objective) as (same, refused):
        assert same is objective and "casts to float32" in refused


def test_what_does_not_fit_is_not_evaluated_so() -> None:
    constant = torch.randn(2, 3)
    objective = Objective(nn.Linear(3, 2), [torch.ones(4, 3)], loss_fn=lambda m, x: (m(x) @ constant).square().mean())
    with double_where_it_can(objective) as (same, refused):
        assert same is objective and "dtype" in refused


def test_another_loss_is_not_evaluated_so() -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        found = model(x)
        return found.square().mean() * (2 if found.dtype == F64 else 1)

    with double_where_it_can(Objective(nn.Linear(3, 2), [torch.ones(4, 3)], loss_fn=loss)) as (_, refused):
        assert "in float64 and" in refused


def test_a_model_in_float64_is_taken_as_it_is() -> None:
    objective = Objective(nn.Linear(3, 2).double(), [torch.ones(4, 3, dtype=F64)], loss_fn=lambda m, x: m(x).sum())
    with double_where_it_can(objective) as (same, refused):
        assert same is objective and refused == ""


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind_after_an_exception(error: type[BaseException]) -> None:
    model = busy_with_gradients()
    objective = Objective(model, batches(), criterion=nn.CrossEntropyLoss(), mode="train")
    before = state_of(model), streams()

    def interrupted() -> None:
        with in_double(objective) as precise:
            precise.gradient()
            raise error("stop")

    with pytest.raises(error, match="stop"):
        interrupted()
    assert (state_of(model), streams()) == before
