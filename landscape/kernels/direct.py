"""Compiled code that is called again without torch's looking at all it depends on.

Before each call of a compiled function torch looks whether everything that was read as it was traced is as it was: the
attributes of all modules, globals, shapes. Together with what surrounds an evaluation that takes a small network a
third of its product. Within an isolation nothing of it changes from one product to the next but the vectors. So the
first product of a batch goes the long way, and leaves the code that was called in the end, with its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Direct", "WatchedBackend"]


class Direct(NamedTuple):
    """What a compiled function of some tensors called in the end.

    Attributes:
        code: that.
        arguments: its arguments, but for the tensors.
        places: where the tensors go among them, by position; those without a place are not used.
        layouts: the shapes and strides for which it was compiled.
    """

    code: Callable[..., Any]
    arguments: list[Any]
    places: list[tuple[int, int]]
    layouts: list[Any]

    @property
    def nbytes(self) -> int:
        """Memory that the arguments take."""
        return sum(a.nbytes for a in self.arguments if isinstance(a, Tensor))

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor | None:
        """What the function makes of other tensors; None if they lie otherwise in memory."""
        if _layouts(tensors) != self.layouts:
            return None
        arguments = list(self.arguments)
        for at, position in self.places:
            arguments[at] = tensors[position]
        result: Tensor = self.code(*arguments)[0]
        return result


class _Call(NamedTuple):
    code: Callable[..., Any]
    arguments: tuple[Any, ...]
    results: Any


class WatchedBackend:
    """A backend of ``torch.compile`` that knows what its code was last called with.

    Args:
        name: of the backend that compiles.
    """

    def __init__(self, name: str) -> None:
        self._compile = torch._dynamo.lookup_backend(name)
        self._last: _Call | None = None

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        """Compile a graph."""
        code = self._compile(graph, inputs)

        def run(*arguments: Any) -> Any:
            before = _versions(arguments)
            results = code(*arguments)
            unwritten = None not in before and _versions(arguments) == before
            self._last = _Call(code, arguments, results) if unwritten else None
            return results

        return run

    def direct(self, tensors: Sequence[Tensor], result: Tensor) -> Direct | None:
        """What came of the last call of the function, with these tensors among its arguments and this result.

        None where that was not the code's result alone, or the code has written on its arguments, as a model may do on
        its input: then these are no more what they were.
        """
        last, self._last = self._last, None
        if last is None or len(last.results) != 1 or last.results[0] is not result:
            return None
        positions = {id(t): i for i, t in enumerate(tensors)}
        places = [(at, positions[id(a)]) for at, a in enumerate(last.arguments) if id(a) in positions]
        arguments = [None if id(a) in positions else a for a in last.arguments]
        return Direct(last.code, arguments, places, _layouts(tensors))


def _layouts(tensors: Sequence[Tensor]) -> list[Any]:
    return [(t.shape, t.stride()) for t in tensors]


def _versions(arguments: Sequence[Any]) -> list[int | None]:
    """How often each tensor was written on; None where torch does not count."""
    return [None if a.is_inference() else a._version for a in arguments if isinstance(a, Tensor)]
