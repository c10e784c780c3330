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
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# What `torch.autograd.grad` calls once it has checked its arguments, which takes a tenth of a small net's product.
from torch.autograd.graph import _engine_run_backward as run_backward
from torch.utils._python_dispatch import TorchDispatchMode

from ..space import PIECE, ParameterSpace

__all__ = ["BackwardPass"]

_REPAID = 16  # passes: recording takes as long as ten are shorter by
_PLAIN = 4  # passes that autograd makes first where it is not known that so many are to come
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
        planned: passes that are known to come.
        limit: bytes that recorded operations may take.
    """

    def __init__(
        self,
        heads: tuple[Tensor, ...],
        live: list[int],
        parameters: tuple[Tensor, ...],
        space: ParameterSpace,
        planned: int = 0,
        limit: int = _MOST,
    ) -> None:
        self.heads, self.live, self.parameters, self.space, self.limit = heads, live, parameters, space, limit
        # A single tensor's product may be what went in, which must not be overwritten by the next.
        self._placed = space.uniform and space.size <= PIECE and len(space.shapes) > 1
        self._place = torch.empty(0)
        self._inputs: tuple[Tensor, ...] = ()
        self._plain = 0 if planned >= _REPAID else _PLAIN
        self._passes = 0
        self._recorded: _Recorded | None = None

    def __call__(self, vector: Tensor) -> Pulled:
        """The pass for a vector (n,): one tensor per parameter, None for none, valid until the next."""
        if not self._placed:
            return self._by_autograd(self._chosen(self.space.unflatten(vector)))
        if not self._inputs:  # cut once, which is twice as fast
            self._place = torch.empty_like(vector)
            self._inputs = self._chosen(self.space.unflatten(self._place))
        self._place.copy_(vector)
        self._passes += 1
        if self._recorded is not None and self._passes > self._plain + 2:
            return self._recorded.run()
        if self._passes == self._plain + 1 and vector.device.type == "cpu":
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

    It need not see everything: what comes of the steps is compared with autograd's before it is used.

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
        result = func(*args, **kwargs) if kwargs else func(*args)
        if not self.refused:
            self._kept.append(result)
            self.refused = not self._take_down(_how(func), args, kwargs or {}, result)
            if self.refused:
                self.steps.clear()
                self._kept.clear()
        return result

    def _take_down(self, how: _How, args: Any, kwargs: Any, result: Any) -> bool:
        """Whether what comes of it is right when the steps are run again."""
        moving = self._moving
        if how.is_constant or not any(id(a) in moving or _is_among(a, moving) for a in (*args, *kwargs.values())):
            return how.is_view or self._fits(result)
        if type(result) is Tensor:
            moving.add(id(result))
            if how.is_view:
                return True
            result = (result,)
        moving.update(map(id, result))
        if how.is_view:
            return True
        if how.run is None or not all(map(_is_plain, result)):
            return False
        places = {t.untyped_storage().data_ptr() for t in result}
        if how.out and places.isdisjoint(_places(args)):
            self._written |= places
            self.steps.append(functools.partial(how.run, *args, **kwargs, **dict(zip(how.out, result, strict=True))))
            return self._fits(result)
        if how.out:  # it may return its input, as a view
            return how.out == ("out",) and len(places) == 1
        self.steps.append(functools.partial(how.run, *args, **kwargs))
        return places <= self._written  # an earlier step writes anew what it is applied to

    def _fits(self, results: Any) -> bool:
        for result in (results,) if isinstance(results, Tensor) else results:
            self._left -= result.nbytes if isinstance(result, Tensor) else 0
        return self._left >= 0


def _is_among(value: Any, ids: set[int]) -> bool:
    """Whether a list of tensors has one of these."""
    return isinstance(value, list | tuple) and not ids.isdisjoint(map(id, value))


def _places(args: Any) -> set[int]:
    return {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}


def _is_plain(result: Any) -> bool:
    return type(result) is Tensor and result.device.type == "cpu" and result.layout == torch.strided


# --------------------------------------------------------------------------- operations


class _How(NamedTuple):
    """What is known of an operation.

    Attributes:
        is_constant: whether it asks tensors for their shapes only.
        is_view: whether it returns views.
        run: what runs it again; None where nothing is known to do the same.
        out: the arguments that this writes to; none if it is in place.
    """

    is_constant: bool = False
    is_view: bool = False
    run: Callable[..., Any] | None = None
    out: tuple[str, ...] = ()


@functools.cache
def _how(func: Any) -> _How:
    """What is known of an operation."""
    schema = func._schema
    namespace, _, name = schema.name.partition("::")
    if namespace != "aten" or torch.Tag.nondeterministic_seeded in func.tags:
        return _How()
    if schema.is_mutable:
        changed = [i for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
        return _How(run=func if changed == [0] else None)
    if name in _LIKE or func.is_view:
        return _How(is_constant=name in _LIKE, is_view=func.is_view)
    asked = [(a.name, str(a.type)) for a in schema.arguments]
    packet = getattr(torch.ops.aten, name)
    for overload in packet.overloads():
        found = getattr(packet, overload)
        arguments = found._schema.arguments
        written = tuple(a.name for a in arguments if a.is_out)
        if written and [(a.name, str(a.type)) for a in arguments if not a.is_out] == asked:
            own = getattr(torch, name, None)  # torch's own function, where it has one, is quicker to call
            quick = written == ("out",) and "out=" in (getattr(own, "__doc__", None) or "")
            return _How(run=own if quick else found, out=written)
    return _How()
