"""Estimators of all blocks in step: as each would be by itself, with one pass over the data for all."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from landscape_cases import labelled, mlp
from losscope.landscape import BlockDiagonal, Hessian, NonFiniteError, Objective, SettingError
from losscope.landscape.in_step import in_step
from losscope.landscape.operators import SymmetricOperator


def layers() -> BlockDiagonal:
    torch.manual_seed(0)
    return BlockDiagonal(Hessian(Objective(mlp(4, 6, 5, 3), labelled([7, 7, 3]), criterion=nn.CrossEntropyLoss())))


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def powers(steps: Callable[[SymmetricOperator], int]) -> Callable[[SymmetricOperator, int], Tensor]:
    """A few products of a random vector, as many as the block's."""

    def estimate(A: SymmetricOperator, seed: int) -> Tensor:
        v = torch.randn(A.space.size, 2, generator=torch.Generator().manual_seed(seed))
        for _ in range(steps(A)):
            v = A @ v
        return v

    return estimate


def test_each_estimator_has_what_it_would_have_by_itself() -> None:
    B, seeds = layers(), {}

    def estimate(A: SymmetricOperator, seed: int) -> Tensor:
        seeds[A.space.size] = seed
        return powers(lambda A: A.space.size % 7)(A, seed)

    found = in_step(B, estimate, seed=0)
    assert list(found) == list(B.blocks) and len(set(seeds.values())) == 3
    for name, block in B.blocks.items():
        alone = powers(lambda A: A.space.size % 7)(block, seeds[block.space.size])
        torch.testing.assert_close(found[name], alone, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("memory", "passes"), [(None, 5), (0, 11)], ids=["together", "one after the other"])
def test_passes_over_the_data(monkeypatch: pytest.MonkeyPatch, memory: int | None, passes: int) -> None:
    """Blocks of 30, 35 and 18 entries take 2, 4 and 5 products."""
    B, seen = layers(), []
    products = Hessian.block_products

    def counting(A: Hessian, V: Tensor, groups: list) -> Tensor:
        seen.append(len(groups))
        return products(A, V, groups)

    monkeypatch.setattr(Hessian, "block_products", counting)
    in_step(B, powers(lambda A: {30: 2, 35: 4, 18: 5}[A.space.size]), seed=0, vectors=1, memory=memory)
    assert len(seen) == passes and sum(seen) == 11


def test_blocks_that_ask_for_different_numbers_of_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """No block has zeros multiplied for the sake of another."""
    B, work = layers(), []
    products = Hessian.block_products

    def counting(A: Hessian, V: Tensor, groups: list) -> Tensor:
        work.append(V.shape[1] * len(groups))
        return products(A, V, groups)

    monkeypatch.setattr(Hessian, "block_products", counting)
    found = in_step(B, lambda A, seed: A @ torch.eye(A.space.size), seed=0)
    assert sum(work) == 30 + 35 + 18
    for name, block in B.blocks.items():
        torch.testing.assert_close(found[name], block @ torch.eye(block.space.size))


RAN: set[int] = set()  # not of the module, whose attributes are put back


class Seen(nn.Linear):
    """A layer that notes which threads run it."""

    def forward(self, x: Tensor) -> Tensor:
        RAN.add(threading.get_ident())
        return super().forward(x).tanh()


def test_the_model_runs_on_the_callers_thread_alone() -> None:
    threads = set()
    hessian = Hessian(Objective(Seen(4, 3), labelled([6, 3]), criterion=nn.CrossEntropyLoss()))

    def estimate(A: SymmetricOperator, seed: int) -> None:
        threads.add(threading.get_ident())
        A @ torch.ones(A.space.size)

    in_step(BlockDiagonal(hessian, {"weight": "weight", "bias": "bias"}), estimate, seed=0)
    assert {threading.get_ident()} == RAN
    assert len(threads) == 2 and not threads & RAN


def test_estimators_run_one_at_a_time_and_in_the_callers_mode() -> None:
    running, modes, B = [], set(), layers()

    def mode() -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def estimate(A: SymmetricOperator, seed: int) -> int:
        for _ in range(3):
            running.append(1)
            assert len(running) == 1
            modes.add(mode())
            running.pop()
            A @ torch.ones(A.space.size)
        return seed

    for outer in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with outer:
            in_step(B, estimate, seed=0)
            with B.held():
                assert modes == {mode()}
        modes.clear()


def test_an_error_of_one_ends_all() -> None:
    ended = []

    def estimate(A: SymmetricOperator, seed: int) -> None:
        try:
            for i in range(10):
                A @ torch.ones(A.space.size)
                if A.space.size == 35 and i == 3:
                    raise ZeroDivisionError("of one block")
        finally:
            ended.append(A.space.size)

    with pytest.raises(ZeroDivisionError, match="of one block"):
        in_step(layers(), estimate, seed=0)
    assert sorted(ended) == [18, 30, 35]


@pytest.mark.parametrize("error", [NonFiniteError("a product"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_error_in_a_product_ends_all(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    B = layers()

    def failing(A: Hessian, V: Tensor, groups: list) -> Tensor:
        raise error

    monkeypatch.setattr(Hessian, "block_products", failing)
    with pytest.raises(type(error)):
        in_step(B, powers(lambda A: 2), seed=0)


def test_nothing_is_held_afterwards() -> None:
    seen = []

    def estimate(A: SymmetricOperator, seed: int) -> float:
        seen.append(weakref.ref(A))
        return float((A @ torch.ones(A.space.size)).sum())

    in_step(layers(), estimate, seed=0)
    gc.collect()
    assert len(seen) == 3 and not any(ref() for ref in seen)


def test_bad_input_is_refused() -> None:
    hessian = layers().operator
    with pytest.raises(SettingError, match=r"expected a BlockDiagonal, e\.g\. .*; got Hessian"):
        in_step(hessian, powers(lambda A: 1), seed=0)
    with pytest.raises(SettingError, match=r"seed must be"):
        in_step(layers(), powers(lambda A: 1), seed="no")
