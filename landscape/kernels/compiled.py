"""Hessian-vector products as one compiled function: reverse over reverse mode, vmapped over the vectors.

What is compiled is the whole product (`torch.func` inside `torch.compile`), never the model: compiled
models have no double backward (pytorch#91469). It pays where Python and kernel launches dominate, which
are small models, and on a GPU most.
"""

from __future__ import annotations

import contextlib
import math
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from ..batches import tensors_of
from ..errors import KernelError, first_line
from ..objective import Objective
from ..space import contiguous_rows
from .direct import Direct, WatchedBackend
from .functional import FunctionalLoss, traceable
from .graphs import default_memory
from .retained import Retained, allowed_distance

__all__ = ["Compiled", "shapes_of"]

Shapes = tuple[tuple[int, ...], ...]

_CHUNK = 8
"""Most vectors in one call: beyond it the time per vector stays, and memory grows."""


class Compiled:
    """The map ``V -> H V``, (n, k) -> (n, k), as compiled code that is reused while shapes hold.

    The code is kept with the objective and shared by its snapshots. torch's own guards make it anew when
    something the model or the loss reads has changed; within an isolation only the first product of each
    batch asks them (`direct`).

    Args:
        objective: what is differentiated.
        memory: bytes that the vectors computed together may take; None for the default (`graphs.default_memory`).
        backend: of ``torch.compile``.
    """

    name = "compiled"

    def __init__(self, objective: Objective, memory: int | None = None, backend: str = "inductor") -> None:
        self.objective, self.memory = objective, memory
        self.backend = backend
        self._direct: dict[tuple[int, int], Direct] = {}  # by batch, and vectors at a time
        self._isolation, self._places = 0, [0]  # that they are of, and where the parameters were then

    @property
    def compile_seconds(self) -> float:
        """Seconds that calls which had to compile have taken so far."""
        program = self.objective.kept.get(self._key)
        return program.compile_seconds if program is not None else 0.0

    @property
    def _key(self) -> tuple[str, str, int]:
        return ("compiled", self.backend, id(self.objective.loss))

    def __call__(self, V: Tensor) -> Tensor:
        """H V for a block of vectors V (n, k).

        Raises:
            KernelError: if the product cannot be compiled, or is another than double backward's: it draws random
                numbers, the loss holds on to parameters, or a custom function is traced wrongly.
        """
        _ = self.objective.batches  # reading them is an exchange of its own between ranks
        return self.objective.ranks.total(lambda: self._own(V))

    def _own(self, V: Tensor) -> Tensor:
        """What this rank's batches contribute to H V."""
        objective = self.objective
        with objective.isolated():
            program = objective.kept.get(self._key)
            if program is None:
                _refuse_random_numbers(objective)
                _refuse_captured_parameters(objective)
                graphs = Retained(objective, self.memory).graphs
                graphs.refuse_too_little()
                program = objective.kept[self._key] = _Program(objective, self.backend, graphs.bytes_of_one())
            self._drop_if_stale()
            rows, most = contiguous_rows(V), self._fitting(program)
            if len(rows) <= most:
                out = self._over_batches(program, rows)
            else:
                out = torch.empty_like(rows)
                for chunk, place in zip(rows.split(most), out.split(most), strict=True):
                    place.copy_(self._over_batches(program, chunk))
            if not program.checked:
                self._compare(rows, out)
                program.checked = True
        return out.T

    def _drop_if_stale(self) -> None:
        """Forget code that was called before something could change, or where the parameters were elsewhere."""
        places = [p.data_ptr() for p in self.objective.parameters.values()]
        if self._isolation != self.objective.isolations or self._places != places:
            self._direct.clear()
            self._isolation, self._places = self.objective.isolations, places

    def _over_batches(self, program: _Program, rows: Tensor) -> Tensor:
        """The products of a chunk of vectors, as rows."""
        out: Tensor | None = None
        for index, share in enumerate(self.objective.shares):
            product = self._product(program, index, rows)
            if out is None:
                out = product if share == 1.0 else product.mul_(share)
            else:
                out.add_(product, alpha=share)
        return torch.zeros_like(rows) if out is None else out

    def _compare(self, rows: Tensor, out: Tensor) -> None:
        """Compare the first products with double backward, once: torch traces some custom functions wrongly.

        All of them in one: the product of a random combination of the vectors.

        Raises:
            KernelError: if they differ.
        """
        shares = torch.randn(len(rows), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(rows)
        expected, found = Retained(self.objective).own((shares @ rows)[:, None])[:, 0], shares @ out
        size, apart = float(expected.norm()), float((found - expected).norm())
        allowed = allowed_distance(self.objective)
        if math.isfinite(size) and not apart <= allowed * max(size, float(found.norm())):
            del self.objective.kept[self._key]
            raise KernelError(
                f"compiled products differ from double backward's: norms {float(found.norm()):.6g} and {size:.6g}, "
                f'{apart / (size or 1.0):.2g} apart, relative; pass kernel="retained"'
            )

    def is_ready(self, block: int) -> bool:
        """Whether blocks of this many vectors, on batches of these shapes, have been compiled for."""
        program = self.objective.kept.get(self._key)
        if program is None:
            return False
        k = min(block, self._fitting(program))
        return all((s, program.width(k, s)) in program.made for s in shapes_of(self.objective))

    def _fitting(self, program: _Program) -> int:
        """How many vectors at once: each is taken to need as much memory as a kept graph of the gradient."""
        return max(1, min(_CHUNK, self._allowed() // max(program.bytes_of_one, 1)))

    def _allowed(self) -> int:
        return default_memory(self.objective.space.device) if self.memory is None else self.memory

    def _product(self, program: _Program, index: int, rows: Tensor) -> Tensor:
        """The products with one batch's Hessian, in a tensor of their own."""
        known = self._direct.get((index, len(rows)))
        if known is not None:
            with _as_kernel_errors():
                again = program.again(known, rows)
            if again is not None:
                return again.to(rows.dtype)
        with self.objective.evaluation(index) as batch, _as_kernel_errors():
            found, direct = program(rows, batch)
            self._keep(direct, index, len(rows))
            return found.to(rows.dtype)

    def _keep(self, direct: Direct | None, index: int, k: int) -> None:
        """Keep code that was called, where what all of it is called with fits in the memory allowed."""
        if direct is not None and sum(d.nbytes for d in (direct, *self._direct.values())) <= self._allowed():
            self._direct[index, k] = direct


class _Program:
    """The compiled function of one model and loss.

    torch keeps compiled code with the Python code object it was made from, for at most eight variants, so
    the function gets a code object of its own: else a ninth model in a process would find no room.
    """

    def __init__(self, objective: Objective, backend: str, bytes_of_one: int) -> None:
        self.bytes_of_one = bytes_of_one  # what the graph of one batch's gradient holds
        self.space, self.parameters = objective.space, list(objective.parameters.values())
        self.compile_seconds = 0.0
        self.made: set[tuple[Shapes, int]] = set()  # shapes of batches, and vectors at a time
        self.checked = False
        function = _block_product(FunctionalLoss(objective))
        code = function.__code__.replace(co_name="hessian_block_product")
        own = types.FunctionType(code, function.__globals__, code.co_name, None, function.__closure__)
        on_gpu = objective.space.device.type == "cuda" and backend == "inductor"
        # CUDA graphs, for the launches; what they return lives until the next call only, hence `clone` below.
        mode = "reduce-overhead" if on_gpu else None
        self._cloned = on_gpu
        self._backend = None if on_gpu else WatchedBackend(backend)
        self.function = torch.compile(own, fullgraph=True, dynamic=False, backend=self._backend or backend, mode=mode)

    def width(self, k: int, shapes: Shapes) -> int:
        """How wide a block to compute k vectors in: one compiled already, if it is not for a vector alone."""
        fitting = [width for made_for, width in self.made if made_for == shapes and (width >= k > 1 or width == k)]
        return min(fitting, default=k)

    def __call__(self, rows: Tensor, batch: Any) -> tuple[Tensor, Direct | None]:
        """The products of rows, and what came of the call, by which those of others are had `again`."""
        k, shapes = len(rows), _shapes(batch)
        width = self.width(k, shapes)
        blocks = self._blocks(rows, width)
        parameters = [p.detach() for p in self.parameters]
        compiled_before, started = _frames_compiled(), time.perf_counter()
        # The isolation makes user's compiled modules run eagerly; this one is ours.
        with torch.compiler.set_stance("default"), traceable(), _transforms_put_back():
            result = self.function(parameters, blocks, batch)
        if _frames_compiled() != compiled_before:
            self.compile_seconds += time.perf_counter() - started
        self.made.add((shapes, width))
        direct = None if self._backend is None else self._backend.direct(blocks, result)
        return (result.clone() if self._cloned else result)[:k], direct

    def again(self, direct: Direct, rows: Tensor) -> Tensor | None:
        """The products of as many other rows with the same batch, where they are to be had from a call before."""
        k, width = len(rows), direct.layouts[0][0][0]
        found = direct(self._blocks(rows, width))
        return None if found is None else found[:k]

    def _blocks(self, rows: Tensor, width: int) -> list[Tensor]:
        """Vectors cut into parameters, and some zero ones to have so many."""
        if len(rows) < width:
            rows = torch.cat([rows, rows.new_zeros(width - len(rows), rows.shape[1])])
        return self.space.unflatten_rows(rows)


def _block_product(loss: FunctionalLoss) -> Callable[..., Tensor]:
    """The function ``(parameters, rows of vectors, batch) -> rows of products (k, n)``."""

    def product(parameters: list[Tensor], rows: list[Tensor], batch: Any) -> Tensor:
        def value(values: list[Tensor]) -> Tensor:
            return loss(values, batch)

        pullback: Any = vjp(grad(value), parameters)[1]
        products = vmap(pullback)(rows)[0]
        return torch.cat([t.reshape(t.shape[0], -1) for t in products], dim=1)

    return product


@contextlib.contextmanager
def _as_kernel_errors() -> Iterator[None]:
    """Say of what fails in compiled code what to do about it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # dynamo, functorch and inductor each have their own kinds
        reason = first_line(error)
        if type(error).__name__ == "FailOnRecompileLimitHit":
            reason = "shapes of the data, or numbers that the loss reads, were other ones too often"
        raise KernelError(
            f'the product cannot be compiled ({reason}); pass kernel="retained", or leave the choice to "auto"'
        ) from error


@contextlib.contextmanager
def _transforms_put_back() -> Iterator[None]:
    """Undo what a transform leaves behind when it fails half-way.

    A trace that breaks off inside ``torch.func.grad`` leaves hooks on saved tensors forbidden for the whole
    process, and with them every checkpointed model of the training.
    """
    state = torch._C._autograd
    before = state._saved_tensors_hooks_get_disabled_error_message()
    try:
        yield
    finally:
        if state._saved_tensors_hooks_get_disabled_error_message() != before:
            if before is None:
                state._saved_tensors_hooks_enable()
            else:
                state._saved_tensors_hooks_disable(before)


def shapes_of(objective: Objective) -> set[Shapes]:
    """The different shapes that the objective's batches have: each is compiled for."""
    return {_shapes(batch.content) for batch in objective.batches}


def _shapes(content: Any) -> Shapes:
    return tuple(tuple(t.shape) for t in tensors_of(content))


def _frames_compiled() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _refuse_random_numbers(objective: Objective) -> None:
    """Refuse losses that draw random numbers: compiled code draws others than the objective's own masks.

    Raises:
        KernelError: if one evaluation moves a random stream.
    """
    with objective.evaluation(0) as batch:
        before = _streams(objective)
        objective.loss(objective.model, batch)
        if any(not torch.equal(a, b) for a, b in zip(before, _streams(objective), strict=True)):
            raise KernelError(
                "the loss draws random numbers (dropout, sampling), and compiled code would draw others than the "
                'masks that define the objective; pass kernel="retained"'
            )


def _refuse_captured_parameters(objective: Objective) -> None:
    with objective.evaluation(0) as batch:
        loss = FunctionalLoss(objective)
        loss.refuse_captured(loss([p.detach() for p in objective.parameters.values()], batch))


def _streams(objective: Objective) -> list[Tensor]:
    device = objective.space.device
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
