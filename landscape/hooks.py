"""Which hooks of modules are part of what the modules compute, and which only watch.

One that watches must not see a measurement: what it logs or counts is the training's. One that is part must be called,
or the loss is another.
"""

from __future__ import annotations

import collections
import contextlib
import dis
import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from .reach import is_installed, objects_within

__all__ = ["GLOBAL_HOOK_TABLES", "HOOK_TABLES", "Parts"]

_FORWARD_TABLES = ("_forward_hooks", "_forward_pre_hooks")
HOOK_TABLES = (*_FORWARD_TABLES, "_backward_hooks", "_backward_pre_hooks")
"""The attributes of a module that hold hooks."""

GLOBAL_HOOK_TABLES = tuple(f"_global{name}" for name in HOOK_TABLES)
"""Those of `torch.nn.modules.module`, of all modules there are."""

_WRITERS = frozenset(
    (
        "append", "appendleft", "add", "extend", "insert", "update", "put", "put_nowait", "setdefault", "__setitem__",
        "copy_",
    )
)  # fmt: skip
_RECORDERS = _WRITERS | {
    "write", "print", "log", "debug", "info", "warning", "record", "add_scalar", "add_histogram",
}  # fmt: skip
_STORES = ("STORE_SUBSCR", "STORE_ATTR")


class Parts:
    """Tells the hooks that are part of the function from those that watch.

    Args:
        modules: what is evaluated.
        read: containers and objects that the loss reaches: what a hook writes there, the loss may read.
    """

    def __init__(self, modules: Collection[nn.Module] = (), read: Collection[Any] = ()) -> None:
        self._modules, self._read = {id(m) for m in modules}, {id(item) for item in read}

    def of(self, table: Mapping[int, Callable[..., Any]], name: str, module: nn.Module | None = None) -> dict[int, Any]:
        """What is part among the hooks of a table.

        Args:
            table: hooks by their handle.
            name: of the table, one of `HOOK_TABLES` or `GLOBAL_HOOK_TABLES`.
            module: whose; None for hooks of all modules.
        """
        if not table:  # as most are
            return collections.OrderedDict()
        forward = name.removeprefix("_global") in _FORWARD_TABLES
        return collections.OrderedDict(
            (key, hook) for key, hook in table.items()
            if _computes(hook) or (forward and (self._feeds(hook) or _is_of_the_same_package(hook, module)))
        )  # fmt: skip

    def _feeds(self, hook: Callable[..., Any]) -> bool:
        """Whether it leaves something where the loss or a module that is evaluated may read it.

        As a feature extractor does, whose hooks fill a dict of its own, and a loss of features that hooks collect.
        """
        function = _function(hook)
        if function is None or not _writes(function):
            return False
        held = [*_closure(function), *([hook.__self__] if isinstance(hook, MethodType) else [])]
        if any(isinstance(item, nn.Module) and id(item) in self._modules for item in held):
            return True
        return bool(self._read) and any(id(item) in self._read for item in objects_within([hook]))


def _computes(hook: Callable[..., Any]) -> bool:
    """Whether a module hook changes what the module computes, as far as it shows by itself.

    torch's own (weight norm, spectral norm, pruning, sharding) do. A user's hook does if it is a
    ``def`` that returns a value; one that returns nothing watches, and must not see the measurement.
    A lambda always returns something: it watches if it names a typical recorder (`_RECORDERS`), as
    ``lambda m, i, o: saved.append(o)`` does, and else it is part, as ``lambda m, i, o: 3 * o`` is.
    """
    if _owner(hook) == "torch":
        return True
    function = _function(hook)
    if function is None:
        return False
    if function.__name__ == "<lambda>":
        return not _RECORDERS & set(function.__code__.co_names)
    return _returns_a_value(function)


def _is_of_the_same_package(hook: Callable[..., Any], module: nn.Module | None) -> bool:
    """Whether an installed package has put it on a module of its own, as transformers does to collect router logits."""
    if module is None or type(module).__module__.partition(".")[0] != _owner(hook):
        return False
    return is_installed(type(module).__module__)


def _owner(hook: Callable[..., Any]) -> str:
    """The package it is from."""
    hook = hook.func if isinstance(hook, functools.partial) else hook
    function = inspect.unwrap(getattr(hook, "__func__", hook))
    return (getattr(function, "__module__", None) or type(hook).__module__).partition(".")[0]


def _function(hook: Callable[..., Any]) -> FunctionType | None:
    """Where its code is; None where that is not in Python."""
    hook = hook.func if isinstance(hook, functools.partial) else hook
    function = inspect.unwrap(getattr(hook, "__func__", hook))
    if not isinstance(function, FunctionType):
        function = getattr(type(hook), "__call__", None)  # noqa: B004 - its code is wanted
    return function if isinstance(function, FunctionType) else None


def _writes(function: FunctionType) -> bool:
    stores = any(instruction.opname in _STORES for instruction in dis.get_instructions(function))
    return stores or bool(_WRITERS & set(function.__code__.co_names))


def _closure(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # one that is not filled yet
            yield cell.cell_contents


def _returns_a_value(function: FunctionType) -> bool:
    previous = None
    for instruction in dis.get_instructions(function):
        if instruction.opname == "RETURN_CONST" and instruction.argval is not None:
            return True
        if instruction.opname == "RETURN_VALUE" and not (
            previous is not None and previous.opname == "LOAD_CONST" and previous.argval is None
        ):
            return True
        previous = instruction
    return False
