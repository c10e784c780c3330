"""Compiled products: the same numbers, code that is made once, and a refusal where it would be another Hessian."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch.nn import functional as F

from landscape_cases import build, labelled, mlp, reference
from landscape_nets import Scaled
from losscope.landscape import Hessian, KernelError, Objective
from losscope.landscape.kernels.compiled import Compiled, _frames_compiled
from losscope.landscape.kernels.retained import Retained

CE = nn.CrossEntropyLoss()
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler: install g++"
)


def vectors(objective: Objective, k: int) -> Tensor:
    return torch.randn(objective.space.size, k, generator=torch.Generator().manual_seed(k)).to(objective.space.dtype)


def engine(objective: Objective) -> Compiled:
    return Compiled(objective, backend="aot_eager")


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def check(objective: Objective, k: int = 2) -> None:
    V = vectors(objective, k)
    assert distance(engine(objective)(V), Retained(objective)(V)) <= 1e-5


# --------------------------------------------------------------------------- reuse


def test_code_is_reused_while_weights_and_batches_change() -> None:
    model = mlp(4, 6, 3)
    data = labelled([6, 3])
    objective = Objective(model, data, criterion=CE)
    check(objective)
    compiled, seconds = _frames_compiled(), engine(objective).compile_seconds
    assert seconds > 0
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.3)
    check(objective)
    for p in model.parameters():
        p.data = 1.1 * p.data
    check(objective)
    for x, _ in data:
        x.mul_(2.0)
    check(objective.snapshot(1))
    assert _frames_compiled() == compiled
    assert engine(objective).compile_seconds == seconds


def test_a_constant_that_the_loss_reads_is_compiled_for_anew() -> None:
    model, outside = Scaled(), {"beta": 1.0}
    objective = Objective(model, labelled([6]), criterion=lambda out, y: outside["beta"] * F.cross_entropy(out, y))
    check(objective)
    for change in (lambda: setattr(model, "scale", 3.0), lambda: outside.update(beta=0.5)):
        compiled = _frames_compiled()
        change()
        check(objective)
        assert _frames_compiled() == compiled + 1


def test_a_tensor_that_the_loss_reads_is_not_a_constant() -> None:
    beta = torch.tensor(1.0)
    objective = Objective(mlp(4, 5, 3), labelled([6]), criterion=lambda out, y: beta * F.cross_entropy(out, y))
    check(objective)
    beta.mul_(3.0)
    check(objective)


def test_frozen_parameters_are_not_constants() -> None:
    model = mlp(4, 5, 3)
    model[0].requires_grad_(False)
    objective = Objective(model, labelled([6]), criterion=CE)
    check(objective)
    with torch.no_grad():
        model[0].weight.mul_(2.0)
    check(objective)
    model[0].weight.data = -model[0].weight.data
    check(objective)


@torch._dynamo.config.patch(recompile_limit=2)  # of 8, at a quarter of the cost
def test_more_models_than_torch_keeps_variants_of_one_function() -> None:
    for _ in range(4):
        check(Objective(nn.Linear(4, 3), labelled([5]), criterion=CE))


@torch._dynamo.config.patch(recompile_limit=2)
def test_numbers_that_never_stay_are_refused_in_words() -> None:
    outside = {"beta": 1.0}
    objective = Objective(nn.Linear(4, 3), labelled([5]), criterion=lambda out, y: outside["beta"] * CE(out, y))
    with pytest.raises(KernelError, match=r"numbers that the loss reads.*kernel=.retained."):  # noqa: PT012
        for _ in range(4):
            outside["beta"] += 0.1
            check(objective)


# --------------------------------------------------------------------------- the right Hessian, or none


def test_a_width_compiled_already_serves_fewer_vectors() -> None:
    objective = Objective(mlp(4, 5, 3), labelled([6]), criterion=CE)
    V = vectors(objective, 11)
    expected = Retained(objective)(V)
    kernel = engine(objective)
    assert not kernel.is_ready(8)
    assert distance(kernel(V[:, :8]), expected[:, :8]) <= 1e-5
    compiled = _frames_compiled()
    for k in (2, 3, 5, 7, 11):  # 11 is 8 and 3 more
        assert kernel.is_ready(min(k, 8))
        found = kernel(V[:, :k])
        assert found.shape == (objective.space.size, k)
        assert distance(found, expected[:, :k]) <= 1e-5
    assert _frames_compiled() == compiled
    assert not kernel.is_ready(1)
    assert distance(kernel(V[:, :1]), expected[:, :1]) <= 1e-5
    assert _frames_compiled() == compiled + 1


def test_blocks_are_cut_to_the_memory_allowed() -> None:
    objective = Objective(mlp(4, 5, 3), labelled([64, 7]), criterion=CE)
    one = Retained(objective).graphs
    with objective.isolated():
        allowed = 3 * one.bytes_of_one()
    V = vectors(objective, 8)
    kernel = Compiled(objective, allowed, backend="aot_eager")
    assert distance(kernel(V), Retained(objective)(V)) <= 1e-5
    program = objective.kept[kernel._key]
    assert {width for _, width in program.made} == {3}  # 3, 3 and 2 of them
    assert kernel.is_ready(8)
    assert not Compiled(objective, backend="aot_eager").is_ready(8)


def test_uneven_tails_are_weighted_as_they_are() -> None:
    data = labelled([7, 7, 1])
    whole = [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    model = mlp(4, 6, 3)
    parts, one = (Objective(model, d, criterion=CE) for d in (data, whole))
    V = vectors(one, 3)
    assert distance(engine(parts)(V), Retained(one)(V)) <= 1e-5


def test_batch_statistics_are_used_and_buffers_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    before = {name: b.clone() for name, b in model.named_buffers()}
    check(Objective(model, labelled([8]), criterion=CE, mode="train"))
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    frozen = Objective(model, labelled([8]), criterion=CE)
    check(frozen)
    model[1].running_mean.add_(1.0)
    check(frozen)


def test_vectors_made_in_inference_mode_and_columns_of_zeros() -> None:
    objective = Objective(mlp(4, 5, 3), labelled([6]), criterion=CE)
    with torch.inference_mode():
        V = torch.cat([torch.zeros(objective.space.size, 1), torch.ones(objective.space.size, 1)], dim=1)
        found = engine(objective)(V)
    assert torch.equal(found[:, 0], torch.zeros(objective.space.size))
    assert float(found[:, 1].norm()) > 0


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_dropout_is_refused_where_it_draws(mode: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    objective = Objective(model, labelled([8]), criterion=CE, mode=mode)
    if mode == "eval":
        check(objective)
        return
    state = torch.get_rng_state()
    with pytest.raises(KernelError, match="draws random numbers"):
        engine(objective)(vectors(objective, 2))
    assert torch.equal(torch.get_rng_state(), state)


class Square(torch.autograd.Function):
    """Right to the second order; torch 2.13 leaves a part of it out when it traces a double backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


def assert_right_or_refused(objective: Objective, V: Tensor, expected: Tensor) -> None:
    reason = ""
    try:
        found = engine(objective)(V)
    except KernelError as error:
        reason, found = str(error), expected
    assert distance(found, expected) <= 1e-5
    assert not reason or "differ from double backward's: norms" in reason


def test_custom_functions_are_right_or_refused() -> None:
    model = mlp(4, 5, 3)
    objective = Objective(model, labelled([6]), loss_fn=lambda m, b: Square.apply(m(b[0])).square().mean())
    plain = Objective(model, objective.data, loss_fn=lambda m, b: m(b[0]).square().square().mean())
    V = vectors(objective, 2)
    expected = Retained(plain)(V)
    assert distance(Retained(objective)(V), expected) <= 1e-5
    for _ in range(2):  # the second time, too
        assert_right_or_refused(objective, V, expected)


def test_an_error_in_one_vectors_product_alone_is_refused_too() -> None:
    """Traced, torch's weight norm has the wrong second derivative of its fused kernel, and biases come first."""
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))
    objective = Objective(model, labelled([6]), criterion=CE)
    unit = torch.eye(objective.space.size)
    assert_right_or_refused(objective, unit, Retained(objective)(unit))


def test_parameters_that_the_loss_holds_on_to_are_refused() -> None:
    model = mlp(4, 5, 3)
    held = list(model.parameters())

    def decayed(parameters: Callable[[nn.Module], Any]) -> Objective:
        return Objective(
            model,
            labelled([6]),
            loss_fn=lambda m, b: F.cross_entropy(m(b[0]), b[1]) + sum(p.square().sum() for p in parameters(m)),
        )

    check(decayed(lambda m: m.parameters()))
    with pytest.raises(KernelError, match=r"holds on to the parameter 0\.weight itself"):
        Hessian(decayed(lambda m: held), "compiled") @ vectors(decayed(lambda m: held), 1)[:, 0]


def test_what_cannot_be_traced_is_refused_with_a_way_out() -> None:
    def loss_fn(m: nn.Module, b: Any) -> Tensor:
        out = m(b[0]).square().mean()
        return out if float(out.detach()) > 0 else -out

    objective = Objective(mlp(4, 5, 3), labelled([6]), loss_fn=loss_fn)
    with pytest.raises(KernelError, match=r'cannot be compiled .*kernel="retained"'):
        engine(objective)(vectors(objective, 2))


# --------------------------------------------------------------------------- the code that inductor writes


@pytest.mark.slow
@needs_compiler
def test_inductor_equals_the_dense_hessian() -> None:
    """Alone, in a block, padded, and in a chunk and a rest."""
    _, _, H = reference("uneven_batches")
    objective = build("uneven_batches", torch.float32).objective()
    kernel = Compiled(objective)
    for k in (8, 3, 11, 1):
        V = vectors(objective, k)
        assert distance(kernel(V).double(), H @ V.double()) <= 1e-5
    state = torch.get_rng_state(), [p._version for p in objective.model.parameters()]
    Hessian(objective, "compiled") @ vectors(objective, 3)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert [p._version for p in objective.model.parameters()] == state[1]
    assert all(p.grad is None for p in objective.model.parameters())
