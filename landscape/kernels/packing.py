"""Recorded operations in little memory: each writes where what is read no more was written.

A recording holds what every operation has written. Run again like that, the operations of a larger batch would pass
through memory that no cache holds, which takes longer than autograd, whose results are freed as they are used up.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Operation", "bound", "packed"]


class Operation(NamedTuple):
    """One operation as it was recorded.

    Attributes:
        run: what runs it.
        args: its arguments.
        kwargs: those by name.
        results: what it returned.
        out: the arguments by which it is told where to write; none if it is in place, or returns views.
        is_view: whether it returns views.
        is_pointwise: whether each entry of its result comes of those at the same position.
    """

    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Tensor, ...]
    out: tuple[str, ...] = ()
    is_view: bool = False
    is_pointwise: bool = False


def bound(operations: Iterable[Operation]) -> list[Callable[[], object]]:
    """What runs them again, each where it wrote when it was recorded."""
    return [
        functools.partial(o.run, *o.args, **o.kwargs, **dict(zip(o.out, o.results, strict=False)))
        for o in operations
        if not o.is_view
    ]


def packed(
    operations: list[Operation], results: tuple[Tensor | None, ...]
) -> tuple[list[Callable[[], object]], tuple[Tensor | None, ...]]:
    """What runs them again in little memory, and where their results are then.

    Args:
        operations: in their order.
        results: those that are wanted in the end, which nothing is to be written over.
    """
    packing = _Packing(operations, results)
    steps = [step for i, operation in enumerate(operations) if (step := packing.step(i, operation)) is not None]
    return steps, tuple(r if r is None else packing.moved(r) for r in results)


class _Packing:
    """Where everything is written, operation by operation."""

    def __init__(self, operations: list[Operation], results: tuple[Tensor | None, ...]) -> None:
        self._writer: dict[int, int] = {}  # of the memory of each tensor: which operation
        self._read: list[set[int]] = []  # whose memory each operation reads
        self._last: dict[int, float] = {}  # the last one to
        for i, operation in enumerate(operations):
            read = {self._writer[id(t)] for t in _flat(operation) if id(t) in self._writer}
            self._read.append(read)
            self._last.update(dict.fromkeys(read, i))
            if operation.out:
                self._writer.update((id(r), i) for r in operation.results)
            elif id(base := operation.args[0]) in self._writer:  # a view of it, or itself
                self._writer.update((id(r), self._writer[id(base)]) for r in operation.results)
        self._last.update((self._writer[id(r)], math.inf) for r in results if id(r) in self._writer)
        self._held: dict[int, list[Tensor]] = {}  # what each operation writes to
        self._free: dict[Any, list[Tensor]] = defaultdict(list)
        self._moved: dict[int, Any] = {}

    def moved(self, value: Any) -> Any:
        """What stands for a recorded argument or result now."""
        if isinstance(value, list | tuple):
            return [self.moved(v) for v in value]
        return self._moved.get(id(value), value)

    def step(self, i: int, operation: Operation) -> Callable[[], object] | None:
        """What runs an operation again; None for a view, which is made here once."""
        args = [self.moved(a) for a in operation.args]
        kwargs = {name: self.moved(a) for name, a in operation.kwargs.items()}
        dying = [w for w in self._read[i] if self._last[w] == i]
        if operation.is_view:
            found = operation.run(*args, **kwargs)
            self._remember(operation, [found] if isinstance(found, Tensor) else found)
            self._release(dying)
            return None
        if not operation.out:
            self._remember(operation, args[:1])
            self._release(dying)
            return functools.partial(operation.run, *args, **kwargs)
        early = [w for w in dying if operation.is_pointwise and self._is_read_whole(w, operation)]
        self._release(early)
        places = [self._taken(r) for r in operation.results]
        self._held[i] = places
        self._remember(operation, places)
        self._release(set(dying) - set(early))
        return functools.partial(operation.run, *args, **kwargs, **dict(zip(operation.out, places, strict=True)))

    def _is_read_whole(self, writer: int, operation: Operation) -> bool:
        """Whether an operation may write over what this one wrote as it reads it: position by position."""
        place, *others = self._held[writer]
        like = operation.results[0]
        same = (place.shape, place.stride()) == (like.shape, like.stride()) and not others
        return same and all(self.moved(t) is place for t in _flat(operation) if self._writer.get(id(t), None) == writer)

    def _remember(self, operation: Operation, places: Iterable[Tensor]) -> None:
        self._moved.update((id(r), place) for r, place in zip(operation.results, places, strict=True))

    def _taken(self, like: Tensor) -> Tensor:
        free = self._free[like.shape, like.stride(), like.dtype]
        return free.pop() if free else like

    def _release(self, writers: Iterable[int]) -> None:
        for writer in writers:
            for place in self._held[writer]:
                self._free[place.shape, place.stride(), place.dtype].append(place)


def _flat(operation: Operation) -> Iterator[Any]:
    for value in (*operation.args, *operation.kwargs.values()):
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield value
