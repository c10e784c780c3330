"""What can be differentiated once only: found, told from other errors, and named with its layer."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from custom_functions import Once, Squares
from landscape_cases import labelled
from losscope.landscape import DoubleBackwardError, KernelError, Objective
from losscope.landscape.kernels.once import is_second_order
from losscope.landscape.kernels.retained import Retained

CE = nn.CrossEntropyLoss()


def nested() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Tanh(), Squares()), nn.Linear(4, 3))


def product(objective: Objective) -> Tensor:
    return Retained(objective)(torch.ones(objective.space.size, 1))


def test_the_innermost_layer_is_named() -> None:
    with pytest.raises(DoubleBackwardError, match=r"through Once, in layer 1\.1 \(Squares\): .*@once_differentiable"):
        product(Objective(nested(), labelled([6]), criterion=CE))


def test_the_loss_is_named_where_no_layer_is_to_blame() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    for loss_fn, operation in (
        (lambda m, b: Once.apply(m(b[0])).mean(), "through Once, in the loss"),
        (lambda m, b: nn.functional.multi_margin_loss(m(b[0]), b[1]), "twice, in the loss"),
    ):
        with pytest.raises(DoubleBackwardError, match=operation):
            product(Objective(model, labelled([6]), loss_fn=loss_fn))


def test_torch_quotes_some_operations() -> None:
    model = nn.Sequential(nn.EmbeddingBag(10, 4, mode="sum"), nn.Linear(4, 3))
    objective = Objective(model, (torch.randint(10, (6, 5)), torch.randint(3, (6,))), criterion=CE)
    with pytest.raises(DoubleBackwardError, match=r"in layer 0 \(EmbeddingBag\)"):
        product(objective)


def test_a_layer_that_only_passes_things_on_is_not_blamed() -> None:
    model = nn.ModuleDict({"body": nested(), "head": nn.Linear(3, 3)})
    objective = Objective(model, labelled([6]), loss_fn=lambda m, b: CE(m["head"](m["body"](b[0])), b[1]))
    with pytest.raises(DoubleBackwardError, match=r"in layer body\.1\.1 \(Squares\)"):
        product(objective)


def test_naming_leaves_no_hooks() -> None:
    model = nested()
    with pytest.raises(DoubleBackwardError):
        product(Objective(model, labelled([6]), criterion=CE))
    assert all(not m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("message", ["derivative for aten::x is not implemented", "Double backward of x", "checkpoint"])
def test_torch_says_it_in_many_ways(message: str) -> None:
    assert is_second_order(RuntimeError(message))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("not implemented"),
        RuntimeError("shape mismatch"),
        RuntimeError("Batching rule not implemented for aten::item. We could not generate a fallback."),
        torch.OutOfMemoryError("derivative for"),
        KernelError("not differentiable"),
        None,
    ],
)
def test_other_errors_stay_what_they_are(error: BaseException | None) -> None:
    assert not is_second_order(error)
    if error is None:
        return

    def loss_fn(m: nn.Module, b: Any) -> Tensor:
        raise error

    with pytest.raises(type(error)) as caught:
        product(Objective(nn.Linear(4, 3), labelled([6]), loss_fn=loss_fn))
    assert caught.value is error
