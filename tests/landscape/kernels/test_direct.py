"""Compiled code called again within an isolation: the same products, and the long way where something has changed."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from landscape_cases import labelled, mlp
from landscape_nets import Scaled
from losscope.landscape import Objective
from losscope.landscape.elsewhere import elsewhere
from losscope.landscape.kernels.compiled import Compiled
from losscope.landscape.kernels.direct import WatchedBackend
from losscope.landscape.kernels.retained import Retained

CE = nn.CrossEntropyLoss()


class Counted(Compiled):
    """The compiled kernel, in which calls the long way are counted."""

    def __init__(self, objective: Objective, memory: int | None = None, backend: str = "aot_eager") -> None:
        super().__init__(objective, memory, backend=backend)
        self.long = 0

    def _keep(self, *arguments) -> None:  # type: ignore[no-untyped-def]
        self.long += 1
        super()._keep(*arguments)


def vectors(objective: Objective, k: int, seed: int) -> Tensor:
    return torch.randn(objective.space.size, k, generator=torch.Generator().manual_seed(seed)).to(objective.space.dtype)


def check(kernel: Compiled, k: int = 2, seed: int = 0) -> None:
    V = vectors(kernel.objective, k, seed)
    found, expected = kernel(V), Retained(kernel.objective)(V)
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("samples", [[8], [6, 3]], ids=["one batch", "uneven batches"])
def test_the_first_product_of_an_isolation_goes_the_long_way_and_the_others_do_not(samples: list[int]) -> None:
    kernel = Counted(Objective(mlp(4, 6, 3), labelled(samples), criterion=CE))
    for isolation in (1, 2):
        with kernel.objective.isolated():
            for seed in range(4):
                check(kernel, seed=seed)
        assert kernel.long == isolation * len(samples)
    check(kernel)
    check(kernel)
    assert kernel.long == 4 * len(samples)


def test_products_stay_what_they_were() -> None:
    kernel = Counted(Objective(mlp(4, 6, 3), labelled([8]), criterion=CE))
    V = [vectors(kernel.objective, 2, seed) for seed in range(4)]
    with kernel.objective.isolated():
        found = [kernel(v) for v in V]
        assert kernel.long == 1
        for v, product in zip(V, found, strict=True):
            torch.testing.assert_close(product, Retained(kernel.objective)(v), rtol=1e-4, atol=1e-6)


def test_fewer_vectors_and_more_than_a_chunk() -> None:
    kernel = Counted(Objective(mlp(4, 6, 3), labelled([8]), criterion=CE))
    with kernel.objective.isolated():
        for k in (4, 3, 3, 4, 1, 1, 11, 11):
            check(kernel, k, seed=k)
    assert kernel.long == 4  # 4; 3; 1; of 11 a chunk of 8


class Writes(nn.Module):
    """A model that writes on itself at every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(4, 3), 0
        self.register_buffer("seen", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.mul_(2.0)  # type: ignore[operator]
        return self.linear(x * self.seen).tanh() * self.calls


def test_what_a_pass_writes_on_the_model_is_not_seen_by_the_next() -> None:
    model = Writes()
    kernel = Counted(Objective(model, (torch.randn(6, 4), torch.randn(6, 3)), criterion=nn.MSELoss(), mode="train"))
    with kernel.objective.isolated():
        for seed in range(3):
            check(kernel, seed=seed)
    assert kernel.long == 1
    assert model.calls == 0 and torch.equal(model.seen, torch.ones(4))


def test_parameters_that_are_moved_in_an_isolation_are_seen() -> None:
    model = mlp(4, 6, 3)
    kernel = Counted(Objective(model, labelled([8]), criterion=CE))
    with kernel.objective.isolated():
        check(kernel)
        V = vectors(kernel.objective, 2, 0)
        before = kernel(V)
        with elsewhere(kernel.objective, [1.5 * p.detach() for p in model.parameters()]):
            moved = kernel(V)
            expected = Retained(kernel.objective)(V)
        torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(kernel(V), before)
        assert not torch.allclose(moved, before)


def _scaled(model: nn.Module) -> None:
    model.scale = 3.0  # type: ignore[assignment]


def _in_place(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.3)


def _exchanged(model: nn.Module) -> None:
    for p in model.parameters():
        p.data = 1.1 * p.data


@pytest.mark.parametrize("change", [_scaled, _in_place, _exchanged])
def test_what_changes_between_isolations_is_seen(change: Callable[[nn.Module], None]) -> None:
    model = Scaled()
    kernel = Counted(Objective(model, labelled([8]), criterion=CE))
    with kernel.objective.isolated():
        check(kernel)
        check(kernel, seed=1)
    change(model)
    with kernel.objective.isolated():
        check(kernel)
        check(kernel, seed=1)


def test_nothing_is_kept_beyond_the_memory_allowed() -> None:
    objective = Objective(mlp(4, 6, 3), labelled([2000]), criterion=CE)
    kernel = Counted(objective)
    with objective.isolated():
        kernel(vectors(objective, 1, 0))
        kept = sum(direct.nbytes for direct in kernel._direct.values())
        kernel.memory = kept - 1
        kernel._direct.clear()
        for seed in range(3):
            check(kernel, 1, seed)
    assert not kernel._direct and kernel.long == 4


def test_a_backend_says_nothing_of_a_call_whose_result_is_another() -> None:
    backend = WatchedBackend("eager")
    function = torch.compile(lambda a, b: a * b, backend=backend, fullgraph=True)
    a, b = torch.randn(3), torch.randn(3)
    assert backend.direct([a, b], function(a, b) + 1) is None
    direct = backend.direct([b], function(a, b))
    assert direct is not None and direct.nbytes == a.nbytes
    assert torch.equal(direct([a]), a * a)  # type: ignore[arg-type]
    assert direct([torch.randn(4)]) is None
    assert backend.direct([b], function(a, b)) is not None
    assert backend.direct([b], torch.ones(3)) is None  # no call since then


def test_a_backend_says_nothing_of_code_that_writes_on_its_arguments() -> None:
    backend = WatchedBackend("aot_eager")
    function = torch.compile(lambda a, b: a.mul_(2) + b, backend=backend, fullgraph=True)
    a, b = torch.randn(3), torch.randn(3)
    assert backend.direct([b], function(a, b)) is None


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler")
def test_inductor_too() -> None:
    kernel = Counted(Objective(mlp(4, 6, 3), labelled([6, 3]), criterion=CE), backend="inductor")
    with kernel.objective.isolated():
        for seed in range(3):
            check(kernel, seed=seed)
    assert kernel.long == 2
