"""Estimators of all blocks of a matrix at once, in step, so that one pass over the data makes the products of all.

An estimator asks for products in the midst of its work. To have them made together with those that others ask for,
it has to stand still there; so each runs on a thread of its own. Only one ever runs, and none of them multiplies:
that is done on the caller's thread, with the model, when all of them wait. They are coroutines, and no parallelism.
"""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from .compositions import BlockDiagonal, Restricted
from .errors import SettingError
from .operators import SymmetricOperator
from .space import VectorSpace, generator_for

__all__ = ["in_step"]

_MEMORY = 2 << 30  # cap on what those in step hold, bytes

T = TypeVar("T")
Estimator = Callable[[SymmetricOperator, int], T]


def in_step(
    B: BlockDiagonal,
    estimate: Estimator[T],
    *,
    seed: int | torch.Generator | None,
    vectors: int = 0,
    memory: int | None = None,
) -> dict[str, T]:
    """What an estimator makes of every block.

    Args:
        B: the blocks.
        estimate: ``estimate(operator, seed)``; every block has a seed of its own.
        seed: int, generator, or None for fresh entropy.
        vectors: how many of a block's own length an estimator may hold.
        memory: bytes that those in step may hold, by default 2 GiB; blocks that need more follow one another.

    Raises:
        SettingError: if B is no `BlockDiagonal`.
        Exception: whatever an estimator or a product raises.
    """
    blocks, generator = blocks_of(B), generator_for(seed, B.space.device)
    seeds = torch.randint(2**62, (len(blocks),), generator=generator, device=generator.device).tolist()
    of_its_own = dict(zip(blocks, seeds, strict=True))
    found: dict[str, T] = {}
    with B.held():
        for names in _groups(blocks, vectors, _MEMORY if memory is None else memory):
            found |= _together(B, {name: _Strand(estimate, blocks[name], of_its_own[name]) for name in names})
    return found


def blocks_of(B: object) -> dict[str, Restricted]:
    """The blocks by name.

    Raises:
        SettingError: if it is no `BlockDiagonal`.
    """
    if not isinstance(B, BlockDiagonal):
        raise SettingError(f"expected a BlockDiagonal, e.g. BlockDiagonal(Hessian(objective)); got {type(B).__name__}")
    return B.blocks


def _together(B: BlockDiagonal, strands: dict[str, _Strand[T]]) -> dict[str, T]:
    try:
        for strand in strands.values():
            strand.go_on()
        B.plan(*(max(strand.operator.planned[i] for strand in strands.values()) for i in range(2)))
        while asked := {name: s.asked for name, s in strands.items() if s.asked is not None}:
            for name, product in B.products(asked).items():
                strands[name].go_on(product)
    finally:
        for strand in strands.values():
            strand.stop()
    return {name: strand.found[0] for name, strand in strands.items()}


def _groups(blocks: dict[str, Restricted], vectors: int, memory: int) -> Iterator[list[str]]:
    """Blocks whose vectors fit into the memory together; what one by itself may hold, its estimator knows."""
    group: list[str] = []
    held = 0
    for name, block in blocks.items():
        space = block.space
        wanted = space.size * min(space.size, vectors) * torch.finfo(space.dtype).bits // 8
        if group and held + wanted > memory:
            yield group
            group, held = [], 0
        group.append(name)
        held += wanted
    if group:
        yield group


class _Stopped(BaseException):
    """Ends an estimator whose result nobody waits for."""


class _Strand(Generic[T]):
    """An estimator that stands still where it asks for products.

    Args:
        estimate: the estimator.
        block: its operator.
        seed: for it.

    Attributes:
        operator: the block as the estimator sees it.
        asked: (n, k) what it wants multiplied; None when it is done.
        found: what it returned, as the only entry.
    """

    def __init__(self, estimate: Estimator[T], block: Restricted, seed: int) -> None:
        self.operator = _Asking(block, self)
        self.asked: Tensor | None = None
        self.found: list[T] = []
        self._given: queue.SimpleQueue[Tensor | None] = queue.SimpleQueue()
        self._turn = threading.Semaphore(0)
        self._error: BaseException | None = None
        self._surroundings = _Surroundings(block.space.device)
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run, estimate, seed), daemon=True)

    def go_on(self, product: Tensor | None = None) -> None:
        """Let it run until it asks for the next products, or is done.

        Args:
            product: of what it asked for; nothing at the start.
        """
        if product is None:
            self._thread.start()
        else:
            self._given.put(product)
        self._turn.acquire()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End it, if it is not done."""
        if self._thread.ident is not None:
            self._given.put(None)
            self._thread.join()

    def ask(self, V: Tensor) -> Tensor:
        """Stand still until V is multiplied."""
        self.asked = V
        self._turn.release()
        product = self._given.get()
        if product is None:
            raise _Stopped
        return product

    def _run(self, estimate: Estimator[T], seed: int) -> None:
        try:
            with self._surroundings.entered():
                self.found.append(estimate(self.operator, seed))
        except _Stopped:
            pass
        except BaseException as error:
            self._error = error
        self.asked = None
        self._turn.release()


class _Surroundings:
    """What torch keeps for each thread, and an estimator should find as its caller has it."""

    def __init__(self, device: torch.device) -> None:
        self._grad, self._inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        with torch.cuda.stream(self._stream), torch.inference_mode(self._inference), torch.set_grad_enabled(self._grad):
            yield


class _Asking(SymmetricOperator):
    """A block whose products somebody else makes.

    Attributes:
        planned: the products that are to come, and how many at a time.
    """

    def __init__(self, block: Restricted, strand: _Strand[Any]) -> None:
        self.block, self._strand = block, strand
        self.psd, self.parts = block.psd, (block,)
        self.planned = (1, 1)

    @property
    def space(self) -> VectorSpace:  # type: ignore[override]
        """The block's."""
        return self.block.space

    @property
    def kernel(self) -> str:  # type: ignore[override]
        """The block's engine."""
        return self.block.kernel

    def product(self, V: Tensor) -> Tensor:
        """A V, (n, k) -> (n, k)."""
        return self._strand.ask(V)

    def plan(self, vectors: int, block: int) -> None:
        """Note what is to come; an engine is chosen for all blocks, and not on this thread."""
        self.planned = (vectors, block)

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Nothing: they are all held."""
        return contextlib.nullcontext()
