"""What user's functions, modules and loaders lead to: further modules, and random generators of their own."""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "MODULE_INTERNALS",
    "all_modules",
    "closed_over_modules",
    "generators_within",
    "preserved_generators",
    "reseed_generators",
]

MODULE_INTERNALS = frozenset(nn.Module().__dict__) | {"_compiled_call_impl"}
"""The attributes of a module that are torch's own; the others are plain attributes."""

_GENERATORS = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
_DEEPEST = 3  # objects in objects, from a function
_DEEPEST_IN_DATA = 6  # a loader, its sampler, its data set, what that wraps, its transforms ...
_MOST = 10_000  # objects looked at


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
