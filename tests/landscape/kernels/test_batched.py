"""A block of vectors pulled back together: chunks that fit, and what torch cannot vmap."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from landscape_cases import labelled, mlp
from losscope.landscape import Hessian, KernelError, Objective
from losscope.landscape.kernels.batched import Batched
from losscope.landscape.kernels.retained import Retained

CE = nn.CrossEntropyLoss()


@pytest.fixture
def objective() -> Objective:
    return Objective(mlp(4, 6, 3), labelled([8, 3]), criterion=CE)


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many vectors went together, call by call."""
    seen: list[int] = []
    real = Batched._pulled_back_together

    def watched(self: Batched, flat: Tensor, rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return real(self, flat, rows)

    monkeypatch.setattr(Batched, "_pulled_back_together", watched)
    return seen


def graph_bytes(objective: Objective) -> int:
    assert len(objective.batches) == 2
    with objective.isolated():
        return Retained(objective).graphs.bytes_of_one()


@pytest.mark.parametrize("fitting", [1, 2, 3, 5, 9])
def test_as_many_vectors_go_together_as_memory_holds(objective: Objective, widths: list[int], fitting: int) -> None:
    kernel = Batched(objective, memory=fitting * graph_bytes(objective))
    V = torch.randn(objective.space.size, 7)
    torch.testing.assert_close(kernel(V), Retained(objective)(V), rtol=1e-4, atol=1e-6)
    one = min(fitting, 7)
    assert widths == 2 * ([one] * (7 // one) + ([7 % one] if 7 % one else []))


def test_a_narrow_block_does_not_make_later_ones_narrow(objective: Objective, widths: list[int]) -> None:
    kernel = Batched(objective)
    V = torch.randn(objective.space.size, 8)
    kernel(V[:, :1])
    kernel(V)
    assert widths == [1, 1, 8, 8]


def test_running_out_of_memory_halves_the_chunk(
    objective: Objective, widths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Batched._pulled_back_together

    def limited(self: Batched, flat: Tensor, rows: Tensor) -> Tensor:
        found = watched(self, flat, rows)
        if len(rows) > 3:
            raise torch.OutOfMemoryError("too many at once")
        return found

    monkeypatch.setattr(Batched, "_pulled_back_together", limited)
    kernel, V = Batched(objective), torch.randn(objective.space.size, 9)
    torch.testing.assert_close(kernel(V), Retained(objective)(V), rtol=1e-4, atol=1e-6)
    assert widths[:3] == [9, 4, 2]
    assert max(widths[3:]) == 2  # and stays so


def test_one_vector_that_does_not_fit_is_out_of_memory(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(Batched, "_pulled_back_together", full)
    with pytest.raises(torch.OutOfMemoryError):
        Batched(objective)(torch.randn(objective.space.size, 4))


class ReadsNumbers(torch.autograd.Function):
    """Twice differentiable, but its backward reads a number from a tensor, which a vmap has none of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return _Scaled.apply(2 * x * grad)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * (1.0 if float(grad.sum()) < 1e30 else 0.0)


def test_what_has_no_vmap_is_refused_with_advice_and_auto_goes_round_it() -> None:
    objective = Objective(mlp(4, 6, 3), labelled([8]), loss_fn=lambda m, b: ReadsNumbers.apply(m(b[0])).mean())
    plain = Objective(objective.model, objective.data, loss_fn=lambda m, b: m(b[0]).square().mean())
    V = torch.randn(objective.space.size, 3)
    with pytest.raises(KernelError, match=r'together here .*kernel="retained"'):
        Hessian(objective, "batched") @ V
    operator = Hessian(objective, planned=1000)
    torch.testing.assert_close(operator @ V, Retained(plain)(V), rtol=1e-4, atol=1e-6)
    assert operator.kernel == "retained"
    assert "together here" in {c.name: c.refused for c in operator.choice.candidates}["batched"]
