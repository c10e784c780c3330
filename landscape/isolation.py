"""Evaluate a live model and leave no trace.

Inside `isolated` the model computes its ordinary function, in the requested mode and at the
requested weights, on stand-ins for everything that a forward pass may change; on exit, also after an
exception, every object that was there before is back in place, untouched. Nothing is copied back
into live tensors, so even version counters (which a pending backward pass checks) stay as they were.

What is protected: random streams (Python, NumPy, torch on every device), buffers and plain
attributes of modules, train/eval flags, ``.grad``, hooks of modules and of parameters, the autocast
state and the parameters' data. What is arranged: attention that can be differentiated twice (the
fused kernels cannot), RNNs without cuDNN (likewise), eager execution of compiled modules.
"""

from __future__ import annotations

import collections
import contextlib
import dis
import functools
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy

from .errors import SettingError

__all__ = ["MODES", "closed_over_modules", "isolated", "preserved_rng", "reseed"]

MODES = ("eval", "train", "train_frozen")
"""The modes an objective can be evaluated in; see `set_mode`."""

_NORMALISATION = (nn.modules.batchnorm._NormBase,)
_HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MODULE_INTERNALS = frozenset(nn.Module().__dict__) | {"_compiled_call_impl"}
_CONTAINERS = (
    list,
    dict,
    set,
    collections.OrderedDict,
    collections.defaultdict,
    collections.deque,
    collections.Counter,
)


# --------------------------------------------------------------------------- random streams


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """Put back every global random stream (Python, NumPy, torch on all devices) on exit."""
    python, numpy_state, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    devices = [(backend, backend.get_rng_state_all()) for backend in _initialised_backends()]
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(cpu)
        for backend, states in devices:
            backend.set_rng_state_all(states)
        if mps is not None:
            torch.mps.set_rng_state(mps)


def reseed(seed: int) -> None:
    """Seed every global random stream; call it inside `preserved_rng` only.

    Not `torch.manual_seed`: where CUDA is not initialised yet, that queues a seeding for later,
    which would outlive the measurement and change the training.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    for backend in _initialised_backends():
        backend.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def _initialised_backends() -> list[Any]:
    return [backend for backend in (torch.cuda, torch.xpu) if backend.is_initialized()]


# --------------------------------------------------------------------------- modules


def set_mode(model: nn.Module, others: Iterable[nn.Module], mode: str) -> None:
    """Set the train/eval flags of all modules for ``mode``.

    ``"eval"`` turns every flag off. ``"train"`` leaves a model that is training exactly as its loop
    runs it (a frozen BatchNorm stays frozen) and turns one that is in eval mode on; the other
    modules the loss uses keep their flags. ``"train_frozen"`` is ``"train"`` with the
    normalisation layers on their running statistics.

    The flags are written directly: `nn.Module.train` is overridden by layers that merge weights or
    refuse to leave eval mode, and those side effects belong to the user.
    """
    if mode == "eval":
        for module in _all_modules([model, *others]):
            module.training = False
        return
    if not model.training:
        for module in model.modules():
            module.training = True
    if mode == "train_frozen":
        for module in _all_modules([model, *others]):
            if isinstance(module, _NORMALISATION):
                module.training = False


def closed_over_modules(function: Any) -> list[nn.Module]:
    """Modules that a user's function reaches: its closure, defaults, globals, bound object, partials.

    A loss often uses more than the model it is given (a teacher, the other player of a game). What
    it uses must be isolated too, also when nobody said so.
    """
    found: list[nn.Module] = []
    pending: list[Any] = [function]
    seen: set[int] = set()
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, nn.Module):
            found.append(item)
        elif isinstance(item, functools.partial):
            pending += [item.func, *item.args, *item.keywords.values()]
        elif hasattr(item, "__self__") and hasattr(item, "__func__"):
            pending += [item.__self__, item.__func__]
        elif isinstance(item, FunctionType):
            pending += _referenced(item)
        elif isinstance(item, list | tuple):
            pending += item[:32]
        elif isinstance(item, dict):
            pending += list(item.values())[:32]
    return found


def _referenced(function: FunctionType) -> list[Any]:
    values: list[Any] = list(function.__defaults__ or ()) + list((function.__kwdefaults__ or {}).values())
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # a cell that is not filled yet
            values.append(cell.cell_contents)
    for value in (function.__globals__.get(name) for name in function.__code__.co_names):
        own_helper = isinstance(value, FunctionType) and value.__module__ == function.__module__
        if own_helper or isinstance(value, nn.Module | list | tuple | dict | functools.partial):
            values.append(value)
    return values


def _all_modules(roots: Iterable[nn.Module]) -> list[nn.Module]:
    unique = {id(m): m for root in roots for m in root.modules()}
    return list(unique.values())


@contextlib.contextmanager
def _untouched_modules(modules: list[nn.Module]) -> Iterator[None]:
    """Swap stand-ins for all state a forward pass may write, and put the originals back."""
    modules = [m for m in modules if not isinstance(m, torch.jit.ScriptModule)]
    saved = [(module, dict(module.__dict__)) for module in modules]
    clones: dict[int, Tensor] = {}  # one stand-in per tensor, so that sharing survives
    try:
        for module, state in saved:
            for name, value in state.items():
                module.__dict__[name] = _stand_in(name, value, clones)
        yield
    finally:
        for module, state in saved:
            for name in [name for name in module.__dict__ if name not in state]:
                del module.__dict__[name]
            module.__dict__.update(state)


def _stand_in(name: str, value: Any, clones: dict[int, Tensor]) -> Any:
    if name == "_buffers":
        return {key: _clone(buffer, clones) for key, buffer in value.items()}
    if name in _HOOK_TABLES:
        return collections.OrderedDict((k, hook) for k, hook in value.items() if _is_part_of_the_function(hook))
    if name in _MODULE_INTERNALS:
        return value
    if type(value) in _CONTAINERS:
        copied = value.copy()
        if isinstance(copied, dict):
            for key, item in value.items():
                copied[key] = _clone(item, clones)
        elif isinstance(copied, list):
            copied[:] = [_clone(item, clones) for item in value]
        return copied
    return _clone(value, clones)


def _clone(value: Any, clones: dict[int, Tensor]) -> Any:
    """A stand-in for a constant tensor; parameters and tensors with a graph stay as they are."""
    if not isinstance(value, Tensor) or isinstance(value, nn.Parameter) or value.requires_grad or is_lazy(value):
        return value
    if id(value) not in clones:
        clones[id(value)] = value.detach().clone()
    return clones[id(value)]


def _is_part_of_the_function(hook: Callable[..., Any]) -> bool:
    """Whether a module hook changes what the module computes, rather than watching it.

    torch's own (weight norm, spectral norm, pruning, sharding) do. A user's hook does if it is a
    ``def`` that returns a value; one that returns nothing, or a lambda (typically
    ``lambda m, i, o: saved.append(o)``), watches, and must not see the measurement.
    """
    if isinstance(hook, functools.partial):
        hook = hook.func
    function = getattr(hook, "__func__", hook)
    owner = getattr(function, "__module__", None) or type(hook).__module__
    if owner == "torch" or owner.startswith("torch."):
        return True
    if not isinstance(function, FunctionType):
        function = getattr(type(hook), "__call__", None)
    if not isinstance(function, FunctionType) or function.__name__ == "<lambda>":
        return False
    return _returns_a_value(function)


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


# --------------------------------------------------------------------------- parameters


@contextlib.contextmanager
def _untouched_parameters(modules: list[nn.Module], at: Mapping[nn.Parameter, Tensor] | None) -> Iterator[None]:
    """Hide ``.grad`` and tensor hooks; let the parameters stand at other values where asked.

    The live parameters are differentiated (a loss may have captured them in a list of its own), but
    their data is exchanged by reference, never written.
    """
    unique = {id(p): p for module in modules for p in module._parameters.values() if p is not None}
    unique |= {id(p): p for p in at or ()}
    saved = [(p, p.grad, p._backward_hooks, p.requires_grad, p.data) for p in unique.values()]
    at_values = {id(p): value for p, value in (at or {}).items()}
    try:
        for p, grad, hooks, _, _ in saved:
            if grad is not None:
                p.grad = None
            if hooks:
                p._backward_hooks = None
            if id(p) in at_values:
                p.data = at_values[id(p)]
        yield
    finally:
        for p, grad, hooks, requires_grad, data in saved:
            if id(p) in at_values:
                p.data = data
            if hooks:
                p._backward_hooks = hooks
            if p.grad is not grad:
                p.grad = grad
            if p.requires_grad != requires_grad:
                p.requires_grad_(requires_grad)


# --------------------------------------------------------------------------- numerics


@contextlib.contextmanager
def _twice_differentiable(modules: list[nn.Module], device: torch.device) -> Iterator[None]:
    """Full precision, gradients on, and only kernels that have a double backward."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the fused ones have none: pytorch#116350
        for kind in {device.type, "cpu"}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if device.type == "cuda" and any(isinstance(m, nn.RNNBase) for m in modules):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # pytorch#5261
        if "torch._dynamo" in sys.modules:  # compiled code has no double backward: pytorch#91469
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextlib.contextmanager
def isolated(
    model: nn.Module,
    *,
    also: Iterable[nn.Module] = (),
    mode: str = "eval",
    at: Mapping[nn.Parameter, Tensor] | None = None,
) -> Iterator[None]:
    """Evaluate ``model`` inside, and leave no trace of it behind.

    Args:
        model: the model that will be evaluated.
        also: further modules that will be (the other player, a teacher, a criterion with state).
        mode: ``"eval"``, ``"train"`` or ``"train_frozen"``; see `set_mode`.
        at: values at which to evaluate instead of the parameters' own; exchanged by reference.

    Raises:
        SettingError: if ``mode`` is not one of `MODES`.
    """
    if mode not in MODES:
        raise SettingError(f"mode must be one of {', '.join(map(repr, MODES))}; got {mode!r}")
    others = [m for m in also if m is not model]
    modules = _all_modules([model, *others])
    device = next((p.device for m in modules for p in m._parameters.values() if p is not None), torch.device("cpu"))
    with (
        preserved_rng(),
        _untouched_parameters(modules, at),
        _untouched_modules(modules),
        _twice_differentiable(modules, device),
    ):
        set_mode(model, others, mode)
        yield
