"""The operations of one backward pass, run again without autograd.

A product with the Hessian of a small network takes most of its time in autograd: nodes, views and memory anew for
each. But a pass through a kept graph is the same operations on the same constants every time; only the vector is
another one. So they are recorded once, and then run again, each into the memory that it wrote when it was recorded:
views of it stay what they are, and what does not depend on the vector is there already. The operations are torch's
own, on the same numbers in the same order, so that the result is the same to the bit, and that is checked.

What is not known to be of this kind (operations in place or random ones, others' operations, ones that read a number
out of a tensor, a second device) is not recorded, and autograd goes on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

# What `torch.autograd.grad` calls once it has checked its arguments, which takes a tenth of a small net's product.
from torch.autograd.graph import _engine_run_backward as run_backward
from torch.utils._python_dispatch import TorchDispatchMode

from ..space import PIECE, ParameterSpace

__all__ = ["BackwardPass"]

_PLAIN = 4  # passes that autograd makes first: recording takes as long as some ten are shorter by
_MOST = 32 << 20  # bytes that all a recorded pass writes may take: beyond, arithmetic takes the time
_LIKE = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}
"""Operations that ask a tensor for its shape only."""

Pulled = tuple[Tensor | None, ...]


class BackwardPass:
    """The map from a vector to what a backward pass makes of it, through one kept graph.

    Args:
        heads: the tensors that the pass begins at.
        live: their positions among the parameters, whose entries of the vector are what it begins with.
        parameters: where it ends.
        space: theirs.
        limit: bytes that recorded operations may take.
    """

    def __init__(
        self,
        heads: tuple[Tensor, ...],
        live: list[int],
        parameters: tuple[Tensor, ...],
        space: ParameterSpace,
        limit: int = _MOST,
    ) -> None:
        self.heads, self.live, self.parameters, self.space, self.limit = heads, live, parameters, space, limit
        # A single tensor's product may be what went in, which must not be overwritten by the next.
        self._placed = space.uniform and space.size <= PIECE and len(space.shapes) > 1
        self._place = torch.empty(0)
        self._inputs: tuple[Tensor, ...] = ()
        self._passes = 0
        self._recorded: _Recorded | None = None

    def __call__(self, row: Tensor) -> Pulled:
        """The pass for a vector, a row (1, n): one tensor per parameter, None for none, valid until the next."""
        if not self._placed:
            return self._by_autograd(self._chosen(self.space.unflatten(row[0])))
        if not self._inputs:  # cut once, which is twice as fast
            self._place = torch.empty_like(row)
            self._inputs = self._chosen(self.space.unflatten(self._place[0]))
        self._place.copy_(row)
        self._passes += 1
        if self._recorded is not None and self._passes > _PLAIN + 2:
            return self._recorded.run()
        if self._passes == _PLAIN + 1 and row.device.type == "cpu":
            return self._record()
        result = self._by_autograd(self._inputs)
        if self._recorded is not None and not _same(result, self._recorded.run()):
            self._recorded = None
        return result

    def _chosen(self, pieces: list[Tensor]) -> tuple[Tensor, ...]:
        return tuple(pieces if len(self.live) == len(pieces) else [pieces[i] for i in self.live])

    def _by_autograd(self, pieces: tuple[Tensor, ...]) -> Pulled:
        # torch.autograd.grad(heads, parameters, pieces, retain_graph=True, allow_unused=True)
        found: Pulled = run_backward(self.heads, pieces, True, False, self.parameters, True, accumulate_grad=False)
        return found

    def _record(self) -> Pulled:
        recorder = _Recorder(self._inputs, self.limit)
        try:
            with recorder:
                result = self._by_autograd(self._inputs)
        except Exception:  # what a mode like this cannot see; what autograd cannot do it says again
            return self._by_autograd(self._inputs)
        if not recorder.refused:
            self._recorded = _Recorded(recorder.steps, result)
        return result


class _Recorded(NamedTuple):
    """Operations in their order, and where their results are."""

    steps: list[Callable[[], object]]
    result: Pulled

    def run(self) -> Pulled:
        """Run them, on what the inputs hold now."""
        with torch.no_grad():  # parameters are among the constants
            for step in self.steps:
                step()
        return self.result


def _same(found: Pulled, expected: Pulled) -> bool:
    """Whether they are equal to the bit; NaN is not, and a run that has come to it does not need to be fast."""
    pairs = zip(found, expected, strict=True)
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


class _Recorder(TorchDispatchMode):
    """Takes down the operations on some tensors and on what comes of them.

    Attributes:
        steps: how to run them again.
        refused: whether there was one that cannot be.
    """

    def __init__(self, inputs: Iterable[Tensor], limit: int) -> None:
        super().__init__()
        self.steps: list[Callable[[], object]] = []
        self.refused = False
        self._left = limit
        self._kept: list[Any] = [*inputs]  # all results: none may get the memory, or the name, of one before
        self._moving = {id(t) for t in self._kept}
        self._written: set[int] = set()  # where the steps write

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self.refused:
            self._take_down(func, args, kwargs, result)
        if self.refused:
            self.steps.clear()
            self._kept.clear()
        return result

    def _take_down(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        self._kept.append(result)
        given = [t for t in _flat((*args, *kwargs.values())) if isinstance(t, Tensor)]
        places = {_place(t) for t in given}
        self._left -= sum(t.untyped_storage().nbytes() for t in _flat((result,)) if _place(t) not in places)
        if self._moving.isdisjoint(map(id, given)) or _name(func) in _LIKE:
            self.refused = self._left < 0
            return
        results = list(_flat((result,)))
        self._moving.update(map(id, results))
        self.refused = self._left < 0 or not all(map(_is_plain, results))
        self.refused = self.refused or not self._add_step(func, args, kwargs, results, places)

    def _add_step(self, func: Any, args: Any, kwargs: Any, results: list[Tensor], given: set[int]) -> bool:
        """What brings the results about again; False where nothing is known to."""
        places, how = {_place(t) for t in results}, _how(func)
        if places <= given and not func._schema.is_mutable:  # views
            return True
        if how is None:
            return False
        if not how.out:
            self.steps.append(functools.partial(how.run, *args, **kwargs))
            return places <= self._written  # so that an earlier step writes anew what it is applied to
        if len(how.out) != len(results) or places & given:
            return False
        self._written |= places
        self.steps.append(functools.partial(how.run, *args, **kwargs, **dict(zip(how.out, results, strict=True))))
        return True


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    """Values, and what is in lists among them."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from value
        elif value is not None:
            yield value


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_plain(result: Any) -> bool:
    return type(result) is Tensor and result.device.type == "cpu" and result.layout == torch.strided


# --------------------------------------------------------------------------- operations


class _How(NamedTuple):
    """By what an operation is run again, and the arguments that it writes to; none if it is in place."""

    run: Callable[..., Any]
    out: tuple[str, ...] = ()


def _name(func: Any) -> str:
    name: str = func._schema.name.rpartition("::")[2]
    return name


@functools.cache
def _how(func: Any) -> _How | None:
    """How to run an operation again; None where it may do something else than it did."""
    schema = func._schema
    if func.namespace != "aten" or torch.Tag.nondeterministic_seeded in func.tags:
        return None
    if schema.is_mutable:
        changed = [i for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
        return _How(func) if changed == [0] else None
    asked = [(a.name, str(a.type)) for a in schema.arguments]
    packet = getattr(torch.ops.aten, _name(func))
    for overload in packet.overloads():
        found = getattr(packet, overload)
        arguments = found._schema.arguments
        written = tuple(a.name for a in arguments if a.is_out)
        if written and [(a.name, str(a.type)) for a in arguments if not a.is_out] == asked:
            own = getattr(torch, _name(func), None)  # torch's own function, where it has one, is quicker to call
            quick = written == ("out",) and "out=" in (getattr(own, "__doc__", None) or "")
            return _How(own if quick and own else found, written)
    return None
