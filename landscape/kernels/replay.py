"""The operations of one backward pass, run again without autograd.

A product with the Hessian of a small network takes most of its time in autograd: nodes, views and memory anew for
each. But a pass through a kept graph is the same operations on the same constants every time; only the vector is
another one. So they are recorded once, and then run again, each into the memory that it wrote when it was recorded:
views of it stay what they are, and what does not depend on the vector is there already. The operations are torch's
own, on the same numbers in the same order, so that the result is the same to the bit, and that is checked.

What is not known to be of this kind (random operations, others' operations, ones that read a number out of a tensor or
write on what was there before, a second device) is not recorded, and autograd goes on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _AutoDispatchBelowAutograd
from torch.utils._python_dispatch import TorchDispatchMode

from ..space import ParameterSpace
from .packing import Operation, bound, packed
from .pullback import pulled_back

__all__ = ["MOST", "BackwardPass"]

MOST = 32 << 20
"""Bytes that what recorded passes write may take: beyond, arithmetic takes the time."""

_REPAID = 16  # passes: recording takes as long as ten are shorter by
_PLAIN = 16  # passes that autograd makes first where it is not known that so many are to come
_PLAIN_LONG = 32  # of a long vector, whose passes are mostly arithmetic, and shorter by less
_CACHED = 1 << 20  # bytes that are near the processor however they are used
_SHORT = 256 << 10  # bytes of a vector that takes no time to copy
_HEAPED = 16 << 20
"""Bytes up to which results are kept until the next pass makes new ones. They lie where the pass had most memory, and
while something lies there, glibc does not give all that is below back to the system, to be had again page by page: with
a ResNet-20 on 512 images that was a quarter of a product's time."""
_LIKE = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}
"""Operations that ask a tensor for its shape only."""

_QUICK = {
    "aten.sum.dim_IntList", "aten._log_softmax_backward_data.default", "aten._softmax.default",
    "aten._log_softmax.default",
}  # fmt: skip
"""Operations whose functions in torch take a place to write to, though their documentation does not say so."""

Pulled = tuple[Tensor | None, ...]


class BackwardPass:
    """The map from a vector to what a backward pass makes of it, another vector, through one kept graph.

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
        limit: int = MOST,
    ) -> None:
        self.heads, self.live, self.parameters, self.space, self.limit = heads, live, parameters, space, limit
        # A long vector has a place where there is memory for it and the product. A single tensor's product may be what
        # went in, which must not be overwritten by the next.
        longest = max(_SHORT, limit // 2 if space.device.type == "cpu" else 0)
        self._placed = space.uniform and space.size * space.dtype.itemsize <= longest and len(space.shapes) > 1
        self._place = torch.empty(0)
        self._inputs: tuple[Tensor, ...] = ()
        self._is_long = space.size * space.dtype.itemsize > _SHORT
        self._plain = _PLAIN_LONG if self._is_long else 0 if planned >= _REPAID else _PLAIN
        self._passes = 0
        self._last: Pulled = ()
        self._recorded: _Recorded | None = None

    def __call__(self, vector: Tensor) -> Tensor:
        """The pass for a vector (n,): (n,), zero for parameters that it does not reach."""
        self._passes += 1
        if not self._placed or (self._is_long and self._passes <= self._plain):
            found = self._by_autograd(self._chosen(self.space.unflatten(vector)))
            self._last = found if vector.nbytes <= _HEAPED else ()
            return self._flat(found)
        if not self._inputs:  # cut once, which is twice as fast
            self._place = torch.empty_like(vector)
            self._inputs = self._chosen(self.space.unflatten(self._place))
        self._place.copy_(vector)
        if self._recorded is not None and self._passes > self._plain + 2:
            return self._recorded()
        if self._passes == self._plain + 1 and self.limit and vector.device.type == "cpu":
            result = self._flat(self._record())
            if self._recorded is None and self._is_long:
                self._placed, self._place, self._inputs = False, torch.empty(0), ()
            return result
        result = self._flat(self._by_autograd(self._inputs))
        if self._recorded is not None and not self._recorded.makes(result):
            self._recorded = None
        return result

    def _flat(self, pulled: Pulled) -> Tensor:
        pairs = zip(self.parameters, pulled, strict=True)
        return self.space.flatten([torch.zeros_like(p) if g is None else g for p, g in pairs])

    def _chosen(self, pieces: list[Tensor]) -> tuple[Tensor, ...]:
        return tuple(pieces if len(self.live) == len(pieces) else [pieces[i] for i in self.live])

    def _by_autograd(self, pieces: tuple[Tensor, ...]) -> Pulled:
        return pulled_back(self.heads, self.parameters, pieces)

    def _record(self) -> Pulled:
        recorder = _Recorder(self._inputs, self.limit)
        try:
            with recorder:
                result = self._by_autograd(self._inputs)
        except Exception:  # what a mode like this cannot see; what autograd cannot do it says again
            return self._by_autograd(self._inputs)
        if not recorder.refused:
            self._recorded = _recorded(*recorder.steps(result), self.parameters)
        return result


class _Recorded(NamedTuple):
    """Operations in their order, and where their results are.

    Attributes:
        steps: run the operations.
        pieces: what comes of them, as vectors end to end.
    """

    steps: list[Callable[[], object]]
    pieces: list[Tensor]

    def __call__(self) -> Tensor:
        """Run them, on what the inputs hold now: a vector of its own."""
        with _AutoDispatchBelowAutograd():  # parameters are among the constants
            for step in self.steps:
                step()
            return torch.cat(self.pieces)

    def makes(self, expected: Tensor) -> bool:
        """Whether they make this, to the bit; NaN is not equal, and where there is one nothing needs to be fast."""
        try:
            return torch.equal(self(), expected)
        except Exception:  # one that cannot write to where its result was
            return False


def _recorded(steps: list[Callable[[], object]], result: Pulled, parameters: tuple[Tensor, ...]) -> _Recorded:
    """With a copy of what does not lie in memory as vectors do."""
    pieces = []
    for found, p in zip(result, parameters, strict=True):
        if found is None:
            whole = torch.zeros(p.shape, dtype=p.dtype)
        elif found.is_contiguous():
            whole = found
        else:
            whole = torch.empty(p.shape, dtype=p.dtype)
            steps.append(functools.partial(whole.copy_, found))
        pieces.append(whole.view(-1))
    return _Recorded(steps, pieces)


class _Recorder(TorchDispatchMode):
    """Takes down the operations on some tensors and on what comes of them.

    It need not see everything: what comes of the steps is compared with autograd's before it is used.

    Attributes:
        operations: those, in their order.
        refused: whether there was one that cannot be run again.
    """

    def __init__(self, inputs: Iterable[Tensor], limit: int) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.refused = False
        self._limit = self._left = limit
        self._kept: list[Any] = [*inputs]  # all results: none may get the memory, or the name, of one before
        self._moving = {id(t) for t in self._kept}
        self._written: set[int] = set()  # where the steps write
        self._memory: dict[int, int] = {}  # of what is kept, by identity: where it is

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not to be wrapped against being compiled, which nobody does here and takes longer than a small operation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs) if kwargs else func(*args)
        if not self.refused:
            self._kept.append(result)
            how = _KNOWN.get(id(func)) or _how(func)
            self.refused = not self._take_down(how, args, kwargs or {}, result)
            if self.refused:
                self.operations.clear()
                self._kept.clear()
        return result

    def steps(self, result: Pulled) -> tuple[list[Callable[[], object]], Pulled]:
        """What runs them again, and where the result is then."""
        if self._limit - self._left <= _CACHED:
            return bound(self.operations), result
        return packed(self.operations, result)

    def _take_down(self, how: _How, args: Any, kwargs: Any, result: Any) -> bool:
        """Whether what comes of it is right when the steps are run again."""
        if how.is_constant or not (self._moves(args) or (kwargs and self._moves(kwargs.values()))):
            return how.is_view or self._fits(_given(result))
        results = (result,) if type(result) is Tensor else _given(result)
        self._moving.update(map(id, results))
        if how.run is None or not all(map(_is_plain, results)):
            return False
        if how.is_view:  # half of all operations
            self.operations.append(Operation(how.func, args, kwargs, results, (), True, how.is_pointwise))
            return True
        run, out, is_view = how.run, how.out, False
        if out and len(out) != len(results):  # one that can write to a place only where all are asked for
            run, out = _copying(how.func, len(results))
        places = set(map(self._place, results))
        if out and not places.isdisjoint(self._place(a) for a in args if isinstance(a, Tensor)):
            run, out, is_view = how.func, (), True  # some return their input as they are asked to
        elif out:
            self._written |= places
        elif not places <= self._written:  # in place: right where an earlier step writes anew what it is applied to
            return False
        self.operations.append(Operation(run, args, kwargs, results, out, is_view, how.is_pointwise))
        return is_view or self._fits(results)

    def _moves(self, values: Iterable[Any]) -> bool:
        """Whether some are, or are lists of, what depends on the inputs."""
        moving = self._moving
        for value in values:
            if id(value) in moving or (type(value) in (list, tuple) and not moving.isdisjoint(map(id, value))):
                return True
        return False

    def _place(self, tensor: Tensor) -> int:
        """Where the memory of a tensor is that is kept from now on, if by an operation's arguments."""
        found = self._memory.get(id(tensor))
        if found is None:
            found = self._memory[id(tensor)] = tensor.untyped_storage().data_ptr()
        return found

    def _fits(self, results: tuple[Any, ...]) -> bool:
        for result in results:
            self._left -= result.nbytes
        return self._left >= 0


def _is_plain(result: Any) -> bool:
    return type(result) is Tensor and result.is_cpu and result.layout == torch.strided


# --------------------------------------------------------------------------- operations


class _How(NamedTuple):
    """What is known of an operation.

    Attributes:
        func: the operation.
        is_constant: whether it asks tensors for their shapes only.
        is_view: whether it returns views.
        run: what runs it again; None where nothing is known to do the same.
        out: the arguments that this writes to; none if it is in place.
        is_pointwise: whether each entry of the result comes of those at the same position.
    """

    func: Callable[..., Any]
    is_constant: bool = False
    is_view: bool = False
    run: Callable[..., Any] | None = None
    out: tuple[str, ...] = ()
    is_pointwise: bool = False


_KNOWN: dict[int, _How] = {}
"""By identity, since torch's operations compute their hash in Python; they stay for as long as there is a process."""


def _how(func: Any) -> _How:
    """What is known of an operation, from now on."""
    how = _KNOWN[id(func)] = _looked_up(func)
    return how


def _looked_up(func: Any) -> _How:
    schema = func._schema
    namespace, _, name = schema.name.partition("::")
    if namespace != "aten" or not {torch.Tag.nondeterministic_seeded, torch.Tag.inplace_view}.isdisjoint(func.tags):
        return _How(func)
    if schema.is_mutable:
        changed = [i for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
        return _How(func, run=func if changed == [0] else None)
    if name in _LIKE or func.is_view:
        return _How(func, name in _LIKE, func.is_view, func)
    asked = [(a.name, str(a.type)) for a in schema.arguments]
    packet = getattr(torch.ops.aten, name)
    for overload in packet.overloads():
        found = getattr(packet, overload)
        arguments = found._schema.arguments
        written = tuple(a.name for a in arguments if a.is_out)
        if written and [(a.name, str(a.type)) for a in arguments if not a.is_out] == asked:
            own = getattr(torch, name, None)  # torch's own function, where it has one, is quicker to call
            quick = written == ("out",) and (str(func) in _QUICK or "out=" in (getattr(own, "__doc__", None) or ""))
            pointwise = torch.Tag.pointwise in func.tags
            return _How(func, run=own if quick else found, out=written, is_pointwise=pointwise)
    run, out = _copying(func, len(schema.returns))
    return _How(func, run=run, out=out)


def _copying(func: Any, count: int) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """An operation that writes nowhere in particular, with so many results, and a copy of these; and its places."""
    names = tuple(f"place{i}" for i in range(count))

    def run(*args: Any, **kwargs: Any) -> None:
        places = [kwargs.pop(name) for name in names]
        for place, result in zip(places, _given(func(*args, **kwargs)), strict=True):
            place.copy_(result)

    return run, names


def _given(result: Any) -> tuple[Any, ...]:
    """The results of an operation that were asked for."""
    return (result,) if isinstance(result, Tensor) else tuple(r for r in result if r is not None)
