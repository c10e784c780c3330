"""What user's functions, modules and loaders lead to: further modules, random generators, objects that count."""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import functools
import itertools
import operator
import random
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

__all__ = [
    "CONTAINERS",
    "MODULE_INTERNALS",
    "all_modules",
    "closed_over_modules",
    "functions_within",
    "generators_within",
    "is_installed",
    "objects_within",
    "preserved_generators",
    "preserved_objects",
    "reseed_generators",
]

MODULE_INTERNALS = frozenset(nn.Module().__dict__) | {"_compiled_call_impl"}
"""The attributes of a module that are torch's own; the others are plain attributes."""

CONTAINERS = (
    list,
    dict,
    set,
    collections.OrderedDict,
    collections.defaultdict,
    collections.deque,
    collections.Counter,
)
"""The plain containers, whose content can be put back."""

_GENERATORS = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
_DEEPEST = 3  # objects in objects, from a function
_DEEPEST_IN_DATA = 6  # a loader, its sampler, its data set, what that wraps, its transforms ...
_MOST = 10_000  # objects looked at
_MOST_KEPT = 256  # objects whose attributes are put back
_LONGEST, _LONGEST_IN_DATA = 10_000, 1_000_000  # entries of a container that is put back

_FOREIGN = frozenset(sys.stdlib_module_names) | {"builtins", "torch", "numpy", "losscope"}
_OPEN = (DataLoader, Dataset, Sampler, types.SimpleNamespace, argparse.Namespace)
_NEVER_KEPT = (nn.Module, Tensor, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, type, ModuleType)


# --------------------------------------------------------------------------- searching


def _reached(
    roots: Iterable[Any], deepest: int = _DEEPEST, stops: Callable[[Any], bool] = lambda item: False
) -> Iterator[Any]:
    """Everything within reach of ``roots``, nearest first; not what lies behind a module or a ``stops``."""
    pending = collections.deque((root, 0) for root in roots)
    seen: dict[int, Any] = {}  # the items themselves, so that no id is used again
    while pending and len(seen) < _MOST:
        item, depth = pending.popleft()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        yield item
        if not isinstance(item, nn.Module) and not stops(item):
            further = depth + (not isinstance(item, list | tuple | dict))
            pending += [(value, further) for value in _within_reach(item, depth <= deepest)]


def _within_reach(item: Any, open_objects: bool) -> list[Any]:
    """What a function, a container or an object leads to."""
    if isinstance(item, functools.partial):
        return [item.func, *item.args, *item.keywords.values()]
    if isinstance(item, MethodType):
        return [item.__self__, item.__func__]
    if isinstance(item, FunctionType):
        return _referenced(item)
    if isinstance(item, list | tuple):
        return list(item[:64])
    if isinstance(item, dict):
        return list(itertools.islice(item.values(), 64))
    if not open_objects or isinstance(item, type | ModuleType | Tensor) or not hasattr(item, "__dict__"):
        return []
    own_call = getattr(type(item), "__call__", None)  # noqa: B004 - its code is wanted, not whether there is one
    return [*vars(item).values(), *([own_call] if isinstance(own_call, FunctionType) else [])]


def _referenced(function: FunctionType) -> list[Any]:
    values: list[Any] = list(function.__defaults__ or ()) + list((function.__kwdefaults__ or {}).values())
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # a cell that is not filled yet
            values.append(cell.cell_contents)
    for value in (function.__globals__.get(name) for name in _names(function.__code__)):
        own = (value if isinstance(value, FunctionType) else type(value)).__module__ == function.__module__
        if own or isinstance(value, nn.Module | list | tuple | dict | functools.partial | _GENERATORS):
            values.append(value)
    return values


def _names(code: CodeType) -> Iterator[str]:
    """The names that a function uses, also in the comprehensions and functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


# --------------------------------------------------------------------------- modules


def closed_over_modules(function: Any) -> list[nn.Module]:
    """Modules that a user's function reaches: its closure, defaults, globals, bound object, partials.

    A loss often uses more than the model it is given (a teacher, the other player of a game). What
    it uses must be isolated too, also when nobody said so.
    """
    return [item for item in _reached([function]) if isinstance(item, nn.Module)]


def functions_within(roots: Iterable[Any]) -> list[FunctionType]:
    """The user's functions within reach: none of Python's, torch's or of installed packages, nor what lies behind."""
    found = (item for item in _reached(roots, stops=_is_closed) if isinstance(item, FunctionType))
    return [f for f in found if f.__module__.partition(".")[0] not in _FOREIGN and not is_installed(f.__module__)]


def all_modules(roots: Iterable[nn.Module]) -> list[nn.Module]:
    """The modules below ``roots``, also those kept from registration in plain attributes, lists or dicts."""
    found: dict[int, nn.Module] = {}
    pending = list(roots)
    while pending:
        for module in pending.pop().modules():
            if id(module) not in found:
                found[id(module)] = module
                pending += _modules_in(_plain_attributes(module))
    return list(found.values())


def _plain_attributes(module: nn.Module) -> list[Any]:
    return [value for name, value in vars(module).items() if name not in MODULE_INTERNALS]


def _modules_in(values: Iterable[Any], depth: int = 2) -> Iterator[nn.Module]:
    for value in values:
        if isinstance(value, nn.Module):
            yield value
        elif depth and isinstance(value, list | tuple | dict):
            items = value.values() if isinstance(value, dict) else value
            yield from _modules_in(itertools.islice(items, 64), depth - 1)


# --------------------------------------------------------------------------- random generators


def generators_within(roots: Iterable[Any], *, data: bool = False) -> list[Any]:
    """Every random generator that functions and modules own: torch's, NumPy's (both kinds) and Python's.

    Args:
        roots: functions, modules or objects.
        data: whether the roots are loaders, to be searched deeper: their samplers, their data sets.
    """
    deepest = _DEEPEST_IN_DATA if data else _DEEPEST
    items = list(_reached(roots, deepest))
    modules = all_modules(item for item in items if isinstance(item, nn.Module))
    owned = [value for module in modules for value in [*_plain_attributes(module), *_own_forward(module)]]
    found = {id(g): g for g in [*items, *_reached(owned, deepest)] if isinstance(g, _GENERATORS)}
    return [g for g in found.values() if not isinstance(g, random.SystemRandom)]  # that one has no state


def _own_forward(module: nn.Module) -> list[FunctionType]:
    """The module's ``forward`` where it is the user's, for the globals that it draws from."""
    forward = getattr(type(module), "forward", None)
    if isinstance(forward, FunctionType) and forward.__module__.partition(".")[0] != "torch":
        return [forward]
    return []


@contextlib.contextmanager
def preserved_generators(generators: Iterable[Any]) -> Iterator[None]:
    """Put back the state of these generators on exit."""
    saved = [(generator, _state_of(generator)) for generator in generators]
    try:
        yield
    finally:
        for generator, state in saved:
            if isinstance(generator, torch.Generator | np.random.RandomState):
                generator.set_state(state)
            elif isinstance(generator, np.random.Generator):
                generator.bit_generator.state = state
            else:
                generator.setstate(state)


def _state_of(generator: Any) -> Any:
    if isinstance(generator, torch.Generator | np.random.RandomState):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return copy.deepcopy(generator.bit_generator.state)
    return generator.getstate()


def reseed_generators(generators: Iterable[Any], seed: int) -> None:
    """Seed each, with numbers of its own; call it inside `preserved_generators` only."""
    for position, generator in enumerate(generators, start=1):
        own = (seed + position) % 2**63
        if isinstance(generator, torch.Generator):
            generator.manual_seed(own)
        elif isinstance(generator, np.random.RandomState):
            generator.seed(own % 2**32)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = type(generator.bit_generator)(own).state
        else:
            generator.seed(own)


# --------------------------------------------------------------------------- objects with attributes that change


def objects_within(roots: Iterable[Any], *, data: bool = False) -> list[Any]:
    """The user's objects that a call of their functions, or reading their data, may change.

    Those with attributes, and, but for data, plain containers. Not modules (see `isolation`), optimizers, or what
    belongs to Python, torch, NumPy or losscope, nor what lies behind them; of installed packages, only what a function
    is bound to, or is.

    Args:
        roots: functions or objects.
        data: whether the roots are loaders, to be searched deeper: samplers and data sets, torch's too.
    """
    roots = list(roots)
    bound = {id(getattr(root, "__self__", root)) for root in roots}
    found = (
        item
        for item in _reached(roots, _DEEPEST_IN_DATA if data else _DEEPEST, _is_closed)
        if (type(item) in CONTAINERS and not data)
        or (
            isinstance(getattr(item, "__dict__", None), dict)
            and not isinstance(item, (*CONTAINERS, tuple, FunctionType, MethodType, functools.partial))
            and not _is_closed(item)
            and (data or id(item) in bound or not is_installed(type(item).__module__))
        )
    )
    return list(itertools.islice(found, _MOST_KEPT))


def _is_closed(item: Any) -> bool:
    """Whether an object's attributes are none of our business."""
    if isinstance(item, (*CONTAINERS, tuple, FunctionType, MethodType, functools.partial, *_OPEN)):
        return False
    return isinstance(item, (*_NEVER_KEPT, _GENERATORS)) or type(item).__module__.partition(".")[0] in _FOREIGN


def is_installed(module: str) -> bool:
    """Whether the module of this name is from an installed package, and none of the user's."""
    path = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" in path or "dist-packages" in path


@contextlib.contextmanager
def preserved_objects(objects: Iterable[Any], *, data: bool = False) -> Iterator[None]:
    """Put back the attributes of these objects on exit, and the content of plain containers, theirs and among these.

    By identity: no tensor, array or other object is copied. Containers of very many entries, and objects
    that run a thread (which goes on writing on them), stay as they become.

    Args:
        objects: the objects, as `objects_within` finds them.
        data: whether they belong to a loader, where longer containers are put back too.
    """
    longest = _LONGEST_IN_DATA if data else _LONGEST
    objects = list(objects)
    attributes = [(vars(item), dict(vars(item))) for item in objects if type(item) not in CONTAINERS]
    saved = [(live, kept) for live, kept in attributes if not _runs_a_thread(kept)]
    held = [*objects, *(value for _, kept in saved for value in kept.values())]
    values = {id(v): v for v in held if type(v) in CONTAINERS and len(v) <= longest}
    contents = [(live, live.copy()) for live in values.values()]
    try:
        yield
    finally:
        for live, kept in saved:
            for name in [name for name in live if name not in kept]:
                del live[name]
            live.update((name, value) for name, value in kept.items() if live.get(name, saved) is not value)
        for live, kept in contents:
            if not _is_same(live, kept):
                _write_back(live, kept)


def _runs_a_thread(attributes: dict[str, Any]) -> bool:
    return any(isinstance(value, threading.Thread) for value in attributes.values())


def _is_same(live: Any, kept: Any) -> bool:
    if len(live) != len(kept):
        return False
    if isinstance(live, set):
        return bool(live == kept)
    if isinstance(live, dict) and not all(map(operator.is_, live.values(), kept.values())):
        return False
    return all(map(operator.is_, live, kept))


def _write_back(live: Any, kept: Any) -> None:
    live.clear()
    if isinstance(live, dict):
        for key, value in kept.items():
            live[key] = value
    elif isinstance(live, set):
        live |= kept
    else:
        live.extend(kept)
