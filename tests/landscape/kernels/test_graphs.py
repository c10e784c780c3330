"""Graphs of batches: kept where they fit, thrown away where they are of another point."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from landscape_cases import labelled, mlp
from losscope.landscape import GaussNewton, Hessian, Objective, SettingError, top_eigenpairs
from losscope.landscape.kernels.batched import Batched
from losscope.landscape.kernels.retained import Retained

CE = nn.CrossEntropyLoss()


class Counted(nn.Module):
    """A network that counts how often it is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(4, 6, 3)
        self.also = nn.Linear(2, 2)
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        COUNT.append(len(x))
        return self.layers(x)


COUNT: list[int] = []


@pytest.fixture(autouse=True)
def _fresh() -> None:
    COUNT.clear()


def objective(sizes: tuple[int, ...]) -> Objective:
    built = Objective(Counted(), labelled(list(sizes)), criterion=CE, params="layers.*")
    assert len(built.batches) == len(sizes)
    return built


def forwards(work: Callable[[], Any]) -> int:
    COUNT.clear()
    work()
    return len(COUNT)


def ones(operator: Hessian, k: int = 1) -> Tensor:
    return torch.ones(operator.shape[0], k)


# --------------------------------------------------------------------------- how often the model runs


def test_graphs_that_fit_are_built_once_for_a_whole_run() -> None:
    for sizes in ((8,), (8, 8, 3)):
        operator = Hessian(objective(sizes), "retained")
        operator @ ones(operator)
        assert forwards(lambda: top_eigenpairs(operator, seed=0, tol=1e-4)) == 0  # noqa: B023
        fresh = Hessian(operator.objective, "retained")
        first = forwards(lambda: top_eigenpairs(fresh, seed=0, tol=1e-4))  # noqa: B023
        assert first <= len(sizes) + 1  # one more to measure what a graph takes


def test_graphs_that_do_not_fit_are_built_once_per_block_of_vectors() -> None:
    built = objective((8, 8, 3))
    kernel = Retained(built)
    with built.isolated():
        one = kernel.graphs.bytes_of_one()
    kernel = Retained(built, memory=2 * one)
    V = torch.ones(built.space.size, 8)
    kernel(V)
    assert forwards(lambda: kernel(V)) == 3  # for eight vectors
    assert forwards(lambda: kernel(V[:, :1])) == 3
    assert not kernel.graphs._kept
    roomy = Retained(built, memory=3 * one)
    roomy(V)
    assert forwards(lambda: roomy(V)) == 0


@pytest.mark.parametrize("sizes", [(8,), (8, 8, 3)])
def test_the_gradient_and_products_share_graphs_that_are_kept(sizes: tuple[int, ...]) -> None:
    operator = Hessian(objective(sizes), "retained")
    expected = operator.objective.value_and_gradient()
    operator.plan(1, 1)
    first = forwards(lambda: (operator.value_and_gradient(), operator @ ones(operator)))
    assert first <= len(sizes) + 1  # one more to measure what a graph takes
    assert forwards(operator.value_and_gradient) == 0
    found = operator.value_and_gradient()
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    torch.testing.assert_close(found[1], expected[1])
    found[1].zero_()  # which is nothing of the graph's
    torch.testing.assert_close(operator.value_and_gradient()[1], expected[1])


def test_the_gradient_takes_no_graph_where_they_are_not_kept() -> None:
    built = objective((8, 8, 3))
    kernel = Retained(built, memory=1)  # too little for a product
    value, gradient = kernel.value_and_gradient()
    assert forwards(kernel.value_and_gradient) == 3
    assert (value, gradient.tolist()) == (built.value_and_gradient()[0], built.gradient().tolist())
    with pytest.raises(SettingError, match="memory=1 bytes is too little"):  # after the gradient, too
        kernel(torch.ones(built.space.size, 1))


def test_one_batch_is_kept_whatever_the_default_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("losscope.landscape.kernels.graphs._CPU_MEMORY", 1)
    for sizes, again in (((8,), 0), ((8, 8), 2)):
        operator = Hessian(objective(sizes), "retained")
        operator @ ones(operator)
        assert forwards(lambda: operator @ ones(operator)) == again  # noqa: B023


# --------------------------------------------------------------------------- stale graphs


def _in_place(p: nn.Parameter) -> None:
    with torch.no_grad():
        p.mul_(1.5)


def _through_data(p: nn.Parameter) -> None:
    p.data.mul_(1.5)


def _replaced(p: nn.Parameter) -> None:
    p.data = 1.5 * p.data


@pytest.mark.parametrize("kernel", ["retained", "batched"])
@pytest.mark.parametrize("sizes", [(8,), (8, 3)])
@pytest.mark.parametrize("change", [_in_place, _through_data, _replaced])
def test_graphs_of_another_point_are_dropped(
    change: Callable[[nn.Parameter], None], sizes: tuple[int, ...], kernel: str
) -> None:
    built = objective(sizes)
    operator = Hessian(built, kernel)
    before = operator @ ones(operator, 2)
    change(built.model.layers[0].weight)
    expected = Hessian(built, kernel) @ ones(operator, 2)
    assert forwards(lambda: operator @ ones(operator, 2)) == len(sizes)
    assert torch.equal(operator @ ones(operator, 2), expected)
    assert float((expected - before).norm()) > 1e-2 * float(before.norm())


def test_a_step_and_back_is_the_same_point() -> None:
    built = objective((8, 3))
    operator = Hessian(built, "retained")
    before = operator @ ones(operator)
    weight = built.model.layers[0].weight
    with torch.no_grad():
        weight.mul_(2.0)
    between = operator @ ones(operator)
    with torch.no_grad():
        weight.mul_(0.5)
    assert torch.equal(operator @ ones(operator), before)
    assert not torch.equal(between, before)


def test_values_put_in_place_for_one_isolation_do_not_stay() -> None:
    built = objective((8,))
    operator = Hessian(built, "retained")
    live = operator @ ones(operator)
    weight = built.model.layers[0].weight
    with built.isolated(at={weight: 2 * weight.detach()}):
        there = operator @ ones(operator)
    assert torch.equal(operator @ ones(operator), live)
    assert not torch.equal(there, live)


# --------------------------------------------------------------------------- memory


@pytest.mark.parametrize("make", [Retained, Batched, GaussNewton])
def test_graphs_go_with_what_holds_them(make: Callable[[Objective], Any]) -> None:
    """At once, and not when Python looks for cycles: else every run takes fresh memory for its own."""
    given = objective((8, 3))
    gc.disable()
    try:
        holder = make(given)
        product = holder.product if isinstance(holder, GaussNewton) else holder
        product(torch.ones(given.space.size, 1))
        gone = weakref.ref(holder._engine.graphs if isinstance(holder, GaussNewton) else holder.graphs)
        del holder, product
        assert gone() is None
    finally:
        gc.enable()


# --------------------------------------------------------------------------- what products are made of


class Half(torch.autograd.Function):
    """Half the squared length, whose second derivative hands on the very tensor that it gets."""

    @staticmethod
    def forward(ctx: Any, p: Tensor) -> Tensor:
        ctx.save_for_backward(p)
        return p.square().sum() / 2

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        return p.view_as(p)


class Quadratic(nn.Module):
    """A model whose output has the identity for its Hessian."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.parts = nn.ParameterList(torch.randn(3, 2) for _ in range(count))

    def forward(self, _: Tensor) -> Tensor:
        return sum((Half.apply(p) for p in self.parts), start=torch.zeros(()))


@pytest.mark.parametrize("count", [1, 3])
def test_a_product_is_no_part_of_the_next_one(count: int) -> None:
    """Nor of the vector, which is cut into pieces in a place of the kernel's own."""
    given = Objective(Quadratic(count), (torch.ones(1), torch.ones(1)), criterion=lambda out, _: out)
    times = Retained(given)
    vectors = torch.randn(4, given.space.size, 1)
    with given.isolated():
        products = [times(v) for v in vectors]
    for v, product in zip(vectors, products, strict=True):
        torch.testing.assert_close(product, v)


def test_too_little_memory_for_one_vector_is_refused_with_numbers() -> None:
    built = objective((8, 3))
    for kernel in ("retained", "batched", "compiled", "auto"):
        with pytest.raises(SettingError, match=r"memory=100 bytes is too little for one vector: .* about \d+; allow"):
            Hessian(built, kernel, memory=100) @ torch.ones(built.space.size)
    found = Hessian(built, "finite_difference", memory=100) @ torch.ones(built.space.size)
    torch.testing.assert_close(found, Hessian(built) @ torch.ones(built.space.size), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("batch", [64, 256])
def test_bytes_of_a_graph_are_near_a_count_by_hand(batch: int) -> None:
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10))
    built = Objective(model, (torch.randn(batch, 64), torch.randint(10, (batch,))), criterion=CE)
    # Inputs, two activations and their gradients, logits, log-probabilities and their gradient.
    counted = 4 * batch * (64 + 2 * 2 * 128 + 3 * 10)
    with built.isolated():
        measured = Retained(built).graphs.bytes_of_one()
    assert counted / 2 <= measured <= 2 * counted


def test_parameters_are_not_counted() -> None:
    model = nn.Linear(1000, 100)
    built = Objective(model, (torch.randn(2, 1000), torch.randint(100, (2,))), criterion=CE)
    with built.isolated():
        assert Retained(built).graphs.bytes_of_one() < 4 * 100_000


@pytest.mark.parametrize("kernel", ["auto", "retained"])
@pytest.mark.parametrize("memory", [None, 1 << 20])
def test_a_loss_with_functional_transforms_allows_no_measure_and_keeps_nothing(kernel: str, memory: int | None) -> None:
    """One step of gradient descent inside the loss; the same by plain autograd is the oracle."""
    model = mlp(2, 6, 1)
    data = [tuple(torch.randn(8, n) for n in (2, 1, 2, 1)) for _ in range(2)]

    def inner(weights: dict[str, Tensor], b: Any) -> Tensor:
        return nn.functional.mse_loss(functional_call(model, weights, (b[0],)), b[1])

    def stepped(m: nn.Module, b: Any, gradients: dict[str, Tensor]) -> Tensor:
        weights = {name: p - 0.1 * gradients[name] for name, p in m.named_parameters()}
        return nn.functional.mse_loss(functional_call(m, weights, (b[2],)), b[3])

    def functional(m: nn.Module, b: Any) -> Tensor:
        return stepped(m, b, torch.func.grad(inner)(dict(m.named_parameters()), b))

    def plain(m: nn.Module, b: Any) -> Tensor:
        weights = dict(m.named_parameters())
        found = torch.autograd.grad(inner(weights, b), list(weights.values()), create_graph=True)
        return stepped(m, b, dict(zip(weights, found, strict=True)))

    operator = Hessian(Objective(model, data, loss_fn=functional), kernel, memory=memory)
    V = torch.randn(operator.shape[0], 2)
    expected = Hessian(Objective(model, data, loss_fn=plain), "retained") @ V
    torch.testing.assert_close(operator @ V, expected, rtol=1e-4, atol=1e-6)
