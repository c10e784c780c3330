"""A backward pass whose operations are run again: the same to the bit as autograd's, or autograd's own."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from landscape_cases import CASES, build
from losscope.landscape import Objective
from losscope.landscape.kernels import replay
from losscope.landscape.kernels.replay import BackwardPass
from losscope.landscape.kernels.retained import Gradient, Retained

PASSES = 20


def vectors(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, PASSES, generator=torch.Generator().manual_seed(3), dtype=dtype)


def by_autograd(objective: Objective, gradient: Gradient, v: Tensor) -> Tensor:
    parameters = list(objective.parameters.values())
    if not gradient.live:
        return torch.zeros_like(v)
    pieces = objective.space.unflatten(v.contiguous())
    found = torch.autograd.grad(
        gradient.heads, parameters, [pieces[i] for i in gradient.live], retain_graph=True, allow_unused=True,
        materialize_grads=True,
    )  # fmt: skip
    return objective.space.flatten(list(found))


def is_recorded(gradient: Gradient) -> bool:
    return gradient.backward._recorded is not None


def gradient_after_passes(objective: Objective) -> Gradient:
    """The graph of the only batch after some products, each of which is autograd's to the bit."""
    kernel = Retained(objective)
    with objective.isolated():
        for v in vectors(objective.space.size).T:
            found = kernel(v[:, None])[:, 0]
            (gradient,) = kernel.graphs
            assert torch.equal(found, by_autograd(objective, gradient, v))
    return gradient


@pytest.mark.parametrize(
    ("dtype", "is_packed"), [(torch.float32, False), (torch.float64, False), (torch.float32, True)],
    ids=["single", "double", "packed"],
)  # fmt: skip
@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_autograd_to_the_bit(
    name: str, dtype: torch.dtype, is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_packed:
        monkeypatch.setattr(replay, "_CACHED", 0)
    objective = build(name, dtype).objective()
    kernel = Retained(objective)
    with objective.isolated():
        for v in vectors(objective.space.size, dtype).T:
            found = kernel(v[:, None])[:, 0]
            parts = [by_autograd(objective, gradient, v) for gradient in kernel.graphs]
            assert torch.equal(found, torch.stack(parts).sum(dim=0) if len(parts) == 1 else sum(parts[1:], parts[0]))
        assert all(map(is_recorded, kernel.graphs))


def small_net(*layers: nn.Module, width: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), *layers, nn.Linear(width, 2))


def objective_of(model: nn.Module, samples: int = 6) -> Objective:
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(samples, 3, generator=generator), torch.randn(samples, 2, generator=generator)
    return Objective(model, data, criterion=mse_loss)


class _Custom(torch.autograd.Function):
    """The cube, with a derivative written as the test says."""

    backward_as: Callable[[Tensor], Tensor]

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return _Derivative.apply(x, g)


class _Derivative(torch.autograd.Function):
    """Its backward pass, which itself has one that autograd cannot see into."""

    @staticmethod
    def forward(ctx, x, g):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, g)
        return 3 * x**2 * g

    @staticmethod
    def backward(ctx, v):  # type: ignore[no-untyped-def]
        x, g = ctx.saved_tensors
        return _Custom.backward_as(6 * x * g * v), _Custom.backward_as(3 * x**2 * v)


class Cube(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Custom.apply(x)


def in_numpy(t: Tensor) -> Tensor:
    return torch.from_numpy(np.array(t.detach().numpy()))


def by_what_it_is(t: Tensor) -> Tensor:
    return 2 * t if float(t.flatten()[0]) > 0 else t  # not linear: no Hessian, but autograd's answer


def in_place_of_a_constant(t: Tensor) -> Tensor:
    return torch.zeros_like(t).add_(t)


def at_random(t: Tensor) -> Tensor:
    return t * (1 + 0 * torch.rand_like(t))


def of_another_shape(t: Tensor) -> Tensor:
    return (1 * t).unsqueeze_(0).squeeze(0)


def only_without_a_mode(t: Tensor) -> Tensor:
    if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
        raise NotImplementedError("higher-order operators have no rule for this mode")
    return t.clone()


UNSEEN = [in_numpy, by_what_it_is, in_place_of_a_constant, at_random, of_another_shape, only_without_a_mode]


@pytest.mark.parametrize("way", UNSEEN, ids=lambda way: way.__name__)
def test_what_cannot_be_run_again_stays_with_autograd(way: Callable[[Tensor], Tensor], monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(_Custom, "backward_as", staticmethod(way), raising=False)
    objective = objective_of(small_net(Cube()))
    assert not is_recorded(gradient_after_passes(objective))


def test_an_operation_in_place_on_a_result_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Custom, "backward_as", staticmethod(lambda t: (2 * t).div_(2)), raising=False)
    objective = objective_of(small_net(Cube()))
    assert is_recorded(gradient_after_passes(objective))


def test_moved_parameters_make_another_graph() -> None:
    model = small_net(nn.Tanh())
    objective = objective_of(model)
    kernel = Retained(objective)
    V = vectors(objective.space.size)
    before = kernel(V)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    after = kernel(V)
    assert torch.equal(after, Retained(objective)(V))
    assert not torch.allclose(after, before)


def test_a_result_is_not_overwritten_by_the_next() -> None:
    objective = objective_of(small_net(nn.Tanh()))
    kernel = Retained(objective)
    V = vectors(objective.space.size)
    with objective.isolated():
        one_by_one = [kernel(v[:, None]) for v in V.T]
    assert torch.equal(torch.cat(one_by_one, dim=1), kernel(V))


def test_a_parameter_that_lies_otherwise_in_memory_or_is_not_reached_has_its_place() -> None:
    """Weights in channels-last, and biases of a loss that is linear in them, beside others."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    model = nn.ModuleList([convolution, nn.Linear(1, 3)])
    x = torch.randn(5, 3, 4, 4).to(memory_format=torch.channels_last)

    def loss_fn(m: nn.Module, batch: list[Tensor]) -> Tensor:
        return m[0](batch[0]).tanh().square().mean() + m[1].bias.sum() + m[1].weight.square().sum()

    gradient = gradient_after_passes(Objective(model, [[x]], loss_fn=loss_fn))
    assert is_recorded(gradient)
    assert len(gradient.live) == 3


def test_parameters_among_the_constants_stay_as_they_are_and_products_have_no_graph() -> None:
    objective = objective_of(small_net(nn.Tanh(), nn.Linear(5, 5), nn.Tanh()))
    before = [(p.detach().clone(), p._version) for p in objective.parameters.values()]
    gradient = gradient_after_passes(objective)
    with objective.isolated(), torch.enable_grad():
        assert is_recorded(gradient) and not gradient.backward(torch.ones(objective.space.size)).requires_grad
    parameters = objective.parameters.values()
    assert all(torch.equal(p, t) and p._version == v for p, (t, v) in zip(parameters, before, strict=True))


def test_nothing_is_recorded_beyond_the_memory_allowed() -> None:
    objective = objective_of(small_net(nn.Tanh(), width=50), samples=100)
    for memory, expected in ((1 << 20, True), (1 << 10, False)):
        gradient = next(iter(Retained(objective).graphs))
        arguments = gradient.heads, gradient.live, tuple(objective.parameters.values()), objective.space
        limited = BackwardPass(*arguments, limit=memory)
        with objective.isolated():
            for v in vectors(objective.space.size).T:
                limited(v.contiguous())
        assert (limited._recorded is not None) == expected


def test_all_batches_together_keep_to_the_memory_allowed() -> None:
    data = [(torch.randn(6, 3), torch.randn(6, 2)) for _ in range(8)]
    objective = Objective(small_net(nn.Tanh()), data, criterion=mse_loss)
    for memory, allowed in ((None, replay.MOST), (1 << 20, 1 << 20)):
        kernel = Retained(objective, memory=memory)
        with objective.isolated():
            assert sum(gradient.backward.limit for gradient in kernel.graphs) <= allowed


@pytest.mark.parametrize(("samples", "expected"), [(10, True), (4_000, False)], ids=["few samples", "many samples"])
def test_what_is_recorded_depends_on_what_is_written_not_on_parameters(
    samples: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_PLAIN_LONG", 4)
    wide = nn.Sequential(nn.Linear(3, 300), nn.Tanh(), nn.Linear(300, 400), nn.Tanh(), nn.Linear(400, 2))
    gradient = gradient_after_passes(objective_of(wide, samples=samples))  # 122,402 parameters
    assert is_recorded(gradient) == expected
    assert expected or not gradient.backward._inputs  # a long vector is not copied for nothing


def test_graphs_that_are_thrown_away_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = Objective(small_net(nn.Tanh()), [(torch.randn(6, 3), torch.randn(6, 2))] * 2, criterion=mse_loss)
    monkeypatch.setattr("losscope.landscape.kernels.graphs._CPU_MEMORY", 1)
    monkeypatch.setattr(BackwardPass, "_record", None)
    kernel = Retained(objective)
    kernel.graphs.planned = 40
    V = vectors(objective.space.size)
    torch.testing.assert_close(kernel(V), torch.cat([kernel(v[:, None]) for v in V.T], dim=1))


def test_what_cannot_be_written_where_it_was_stays_with_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_self: object) -> None:
        raise RuntimeError("result type Float can't be cast to the desired output type Long")

    monkeypatch.setattr(replay._Recorded, "__call__", run)
    objective = objective_of(small_net(nn.Tanh()))
    assert not is_recorded(gradient_after_passes(objective))


def test_it_is_recorded_at_once_where_many_products_are_planned() -> None:
    objective = objective_of(small_net(nn.Tanh()))
    for planned, passes in ((0, replay._PLAIN + 1), (40, 1)):
        kernel = Retained(objective)
        kernel.graphs.planned = planned
        V = vectors(objective.space.size)
        with objective.isolated():
            for i in range(passes):
                (gradient,) = kernel.graphs
                assert not is_recorded(gradient)
                kernel(V[:, i : i + 1])
            assert is_recorded(gradient)


def test_a_recorded_pass_has_fewer_operations_than_autograd() -> None:
    objective = objective_of(small_net(nn.Tanh()))
    gradient = next(iter(Retained(objective).graphs))
    counts = []
    with objective.isolated():
        for v in vectors(objective.space.size).T:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                gradient.backward(v.contiguous())
            counts.append(sum(event.name.startswith("aten::") for event in profile.events()))
    assert counts[-1] < counts[0] / 2


@pytest.mark.parametrize("name", sorted(replay._QUICK))
def test_functions_that_are_said_to_take_a_place_do(name: str) -> None:
    x = torch.randn(4, 5)
    arguments = {
        "sum": (x, [0], True),
        "_log_softmax_backward_data": (x, x.log_softmax(1), 1, torch.float32),
        "_softmax": (x, 1, False),
        "_log_softmax": (x, 1, False),
    }[(packet := name.split(".")[1])]
    function, operation = getattr(torch, packet), getattr(getattr(torch.ops.aten, packet), name.split(".")[2])
    found = torch.empty(0)
    function(*arguments, out=found)
    assert torch.equal(found, operation(*arguments))
    assert replay._how(operation).run is function
