"""A measurement leaves no trace: everything that a forward pass may write is as it was, bit for bit."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils import checkpoint as checkpointing

from isolation_cases import Busy, batches, busy_with_gradients, described, measure, state_of, streams
from losscope.landscape import Hessian, Objective, SettingError
from losscope.landscape.isolation import isolated

# --------------------------------------------------------------------------- the model


@pytest.mark.parametrize("count", [1, 3], ids=["one batch", "three batches"])
@pytest.mark.parametrize("mode", ["eval", "train", "train_frozen"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
def test_nothing_in_the_model_changes(mode: str, training: bool, count: int) -> None:
    model = busy_with_gradients().train(training)
    model.frozen_norm.eval()
    before, random_state = state_of(model), streams()
    measure(Objective(model, batches()[:count], criterion=nn.CrossEntropyLoss(), mode=mode))
    assert state_of(model) == before
    assert streams() == random_state


@pytest.mark.parametrize("fails_at", range(1, 9))
def test_nothing_changes_when_the_evaluation_fails_half_way(fails_at: int) -> None:
    model = busy_with_gradients()
    countdown = iter(range(1, 100))

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        if next(countdown) >= fails_at:
            raise ZeroDivisionError("on purpose")
        return loss

    before, random_state = state_of(model), streams()
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        measure(Objective(model, batches(), loss_fn=loss_fn, mode="train"))
    assert state_of(model) == before
    assert streams() == random_state


def test_a_failure_while_reading_the_data_leaves_no_trace() -> None:
    model = busy_with_gradients()

    def data() -> Iterator[tuple[Tensor, Tensor]]:
        torch.rand(1), random.random()
        yield batches()[0]
        raise OSError("disk")

    before, random_state = state_of(model), streams()
    with pytest.raises(OSError, match="disk"):
        Objective(model, data(), criterion=nn.CrossEntropyLoss()).value()
    assert state_of(model) == before
    assert streams() == random_state


def test_checking_a_generator_leaves_no_trace() -> None:
    model = busy_with_gradients()
    before, random_state = state_of(model), streams()
    Objective(model, (batch for batch in batches()), criterion=nn.CrossEntropyLoss(), mode="train").check()
    assert state_of(model) == before
    assert streams() == random_state


def test_values_to_evaluate_at_are_exchanged_and_not_written() -> None:
    model = busy_with_gradients()
    objective = Objective(model, batches(), criterion=nn.CrossEntropyLoss(), mode="train")
    at = {p: torch.full_like(p, 0.1) for p in model.parameters()}
    live, before, values = objective.value(), state_of(model), [described(value) for value in at.values()]
    with objective.isolated(at=at):
        there = objective.value()
        Hessian(objective) @ torch.ones(objective.space.size)
    assert there != live and objective.value() == live
    assert state_of(model) == before
    assert [described(value) for value in at.values()] == values
    with pytest.raises(RuntimeError), objective.isolated(at=at):
        raise RuntimeError
    assert state_of(model) == before


def test_a_pending_backward_pass_still_works_and_gives_the_same_gradients() -> None:
    (x, y), other = batches()[0], batches()[1]
    gradients = []
    for watched in (False, True):
        torch.manual_seed(1)
        model = Busy()
        torch.manual_seed(2), random.seed(2), np.random.seed(2)  # noqa: NPY002
        loss = F.cross_entropy(model(x), y) + F.cross_entropy(model(other[0]), other[1])
        if watched:
            objective = Objective(model, batches(), criterion=nn.CrossEntropyLoss(), mode="train")
            measure(objective)
            with objective.isolated(at={p: torch.zeros_like(p) for p in model.parameters()}):
                objective.value()
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *gradients))


def test_training_is_the_same_to_the_bit() -> None:
    """The whole of it: a loop with momentum, dropout and batch norm, measured after every step or never."""
    finals = []
    for watched in (False, True):
        torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
        model = Busy()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for x, y in batches() * 2:
            optimizer.zero_grad()
            F.cross_entropy(model(x + torch.randn_like(x)), y).backward()
            optimizer.step()
            if watched:
                measure(Objective(model, batches(), criterion=nn.CrossEntropyLoss(), mode="train"))
        finals.append([*model.state_dict().values(), torch.tensor(model.history), torch.rand(1)])
    assert all(map(torch.equal, *finals))


def test_each_evaluation_starts_from_the_same_state() -> None:
    """Spectral norm in train mode moves its vectors at every pass; the operator must not drift with them."""
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))
    objective = Objective(model, batches(), criterion=nn.CrossEntropyLoss(), mode="train")
    operator = Hessian(objective)
    V = torch.randn(objective.space.size)
    with objective.isolated():
        first, second = operator @ V, operator @ V
    assert torch.equal(first, second)
    assert torch.equal(operator @ V, first)


# --------------------------------------------------------------------------- modes


@pytest.mark.parametrize(
    ("mode", "norm", "frozen_norm", "drop"),
    [("eval", False, False, False), ("train", True, False, True), ("train_frozen", False, False, True)],
)
def test_flags_inside_are_those_of_the_mode(mode: str, norm: bool, frozen_norm: bool, drop: bool) -> None:
    """A batch norm that the training loop keeps frozen stays frozen in train mode."""
    model = Busy()
    with isolated(model, mode=mode):
        assert (model.norm.training, model.frozen_norm.training, model.drop.training) == (norm, frozen_norm, drop)
    assert (model.norm.training, model.frozen_norm.training, model.drop.training) == (True, False, True)


def test_train_mode_of_a_model_in_eval_mode_is_all_on() -> None:
    model = Busy().eval()
    with isolated(model, mode="train"):
        assert all(m.training for m in model.modules())
    assert not any(m.training for m in model.modules())


def test_an_overridden_train_method_is_not_called() -> None:
    class Refuses(nn.Linear):
        def train(self, mode: bool = True) -> nn.Module:
            raise AssertionError("called")

    measure(Objective(Refuses(4, 3), batches(), criterion=nn.CrossEntropyLoss(), mode="eval"))


def test_a_mode_that_means_nothing_is_refused() -> None:
    with (
        pytest.raises(SettingError, match="'eval', 'train', 'train_frozen'; got 'test'"),
        isolated(Busy(), mode="test"),
    ):
        pass


# --------------------------------------------------------------------------- ambient state


def test_autocast_is_off_inside_and_as_it_was_outside() -> None:
    model = nn.Linear(4, 3)
    objective = Objective(model, batches(), criterion=nn.CrossEntropyLoss())
    V = torch.randn(objective.space.size)
    full = Hessian(objective) @ V
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Hessian(objective) @ V, full)
        assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert model(batches()[0][0]).dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_are_on_inside_and_as_they_were_outside(context: Callable[[], Any]) -> None:
    objective = Objective(Busy(), batches(), criterion=nn.CrossEntropyLoss())
    value, gradient = objective.value_and_gradient()
    with context():
        assert not torch.is_grad_enabled()
        again = objective.value_and_gradient()
        assert not torch.is_grad_enabled()
    assert again[0] == value and torch.equal(again[1], gradient)


def test_the_choice_of_attention_kernels_is_as_it_was() -> None:
    backends = torch.backends.cuda
    flags = (backends.flash_sdp_enabled, backends.math_sdp_enabled, backends.mem_efficient_sdp_enabled)
    backends.enable_flash_sdp(False)
    try:
        before = [flag() for flag in flags]
        measure(Objective(Busy(), batches(), criterion=nn.CrossEntropyLoss()))
        assert [flag() for flag in flags] == before
    finally:
        backends.enable_flash_sdp(True)


def test_a_compiled_model_is_not_compiled_anew() -> None:
    compilations = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        compilations.append(graph)
        return graph.forward

    model = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)), backend=backend)
    x = batches()[0][0]
    first = model(x)
    count = len(compilations)
    assert count >= 1
    measure(Objective(model, batches(), criterion=nn.CrossEntropyLoss()))
    assert torch.equal(model(x), first)
    assert len(compilations) == count


# --------------------------------------------------------------------------- what cannot be differentiated twice


def dense_hessian(model: nn.Module, data: Any, kernel: str = "retained") -> Tensor:
    operator = Hessian(Objective(model, data, criterion=F.cross_entropy, mode="train"), kernel)
    return operator @ torch.eye(operator.space.size, dtype=torch.float64)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.3))
        self.last, self.reentrant = nn.Linear(4, 2), reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = (
            self.inner(x)
            if self.reentrant is None
            else checkpointing.checkpoint(self.inner, x, use_reentrant=self.reentrant)
        )
        return self.last(x)


def test_checkpoints_of_both_kinds_have_the_curvature_of_the_model_without() -> None:
    found = []
    data = torch.randn(6, 3, dtype=torch.float64), torch.randint(2, (6,))
    for reentrant in (None, False, True):
        torch.manual_seed(1)
        found.append(dense_hessian(Checkpointed(reentrant).double(), data))
    assert torch.allclose(found[1], found[0], atol=1e-14) and torch.allclose(found[2], found[0], atol=1e-14)
    assert checkpointing.CheckpointFunction.__module__ == checkpointing.__name__


@pytest.mark.parametrize(
    ("kind", "kernel", "options"),
    [
        (nn.Embedding, "retained", {}),
        (nn.EmbeddingBag, "finite_difference", {"mode": "sum"}),
    ],  # without double backward
)
def test_sparse_gradients_have_the_curvature_of_dense_ones(kind: Any, kernel: str, options: dict[str, Any]) -> None:
    found = []
    data = torch.randint(5, (6, 1)), torch.randint(2, (6,))
    for sparse in (False, True):
        torch.manual_seed(1)
        table = kind(5, 3, sparse=sparse, **options)
        model = nn.Sequential(table, nn.Flatten(), nn.Tanh(), nn.Linear(3, 2)).double()
        found.append(dense_hessian(model, data, kernel))
        assert table.sparse == sparse
    assert torch.equal(found[0], found[1]) and float(found[0].norm()) > 0
