"""Evaluate a live model and leave no trace.

Inside `isolated` the model computes its ordinary function, in the requested mode and at the
requested weights, on stand-ins for everything that a forward pass may change; on exit, also after an
exception, every object that was there before is back in place, untouched. Nothing is copied back
into live tensors, so even version counters (which a pending backward pass checks) stay as they were.

What is protected: random streams (Python, NumPy, torch on every device, and the generators that the
model or the loss own), buffers and plain attributes of modules, train/eval flags, ``.grad``, hooks of
modules and of parameters, autocast and the precision of float32 arithmetic, and the parameters' data.
What is arranged: attention that can be differentiated twice (the fused kernels cannot), RNNs without
cuDNN (likewise), eager execution of compiled modules, activation checkpoints that `torch.autograd.grad`
may pass (the reentrant ones refuse it), dense gradients of embeddings.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.utils import checkpoint as checkpointing

from .errors import SettingError
from .hooks import GLOBAL_HOOK_TABLES, HOOK_TABLES, Parts
from .interrupts import PostponedSignals
from .precision import float32_arithmetic
from .reach import CONTAINERS, MODULE_INTERNALS, all_modules, preserved_generators, reseed_generators
from .scripted import scripted_state, write_scripted

__all__ = ["MODES", "isolated", "preserved_rng", "replaced", "reseed", "unchanged"]

MODES = ("eval", "train", "train_frozen")
"""The modes an objective can be evaluated in; see `set_mode`."""

LIVE = "live"
"""Not a mode one asks for: every flag as the model has it, to compare a mode with."""

_LEFT_ALONE = MODULE_INTERNALS - {"_buffers"}
"""The attributes of a module that nothing stands in for, or hooks that are part of the function."""

_CONSTANT = (int, float, bool, str, type(None))

_NORMALISATION = (nn.modules.batchnorm._NormBase,)


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


def reseed(seed: int, generators: Iterable[Any] = ()) -> None:
    """Seed every global random stream and these generators; call it where they are preserved only.

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
    reseed_generators(generators, seed)


def _initialised_backends() -> list[Any]:
    return [backend for backend in (torch.cuda, torch.xpu) if backend.is_initialized()]


# --------------------------------------------------------------------------- modules


def set_mode(model: nn.Module, modules: Iterable[nn.Module], mode: str) -> None:
    """Set the train/eval flags of all modules, the model's among them, for ``mode``.

    ``"eval"`` turns every flag off. ``"train"`` leaves a model that is training exactly as its loop
    runs it (a frozen BatchNorm stays frozen) and turns one that is in eval mode on; the other
    modules the loss uses keep their flags. ``"train_frozen"`` is ``"train"`` with the
    normalisation layers on their running statistics.

    The flags are written directly: `nn.Module.train` is overridden by layers that merge weights or
    refuse to leave eval mode, and those side effects belong to the user.
    """
    if mode == LIVE:
        return
    if mode == "eval":
        for module in modules:
            if module.training:
                _set_flag(module, False)
        return
    if not model.training:
        for module in model.modules():
            _set_flag(module, True)
    if mode == "train_frozen":
        for module in modules:
            if isinstance(module, _NORMALISATION):
                _set_flag(module, False)


def _set_flag(module: nn.Module, training: bool) -> None:
    """Past `nn.Module.__setattr__`, which first looks whether it is a parameter, a module or a buffer."""
    if isinstance(module, torch.jit.ScriptModule):
        module.training = training
    else:
        object.__setattr__(module, "training", training)


@contextlib.contextmanager
def _untouched_modules(modules: list[nn.Module], parts: Parts | None = None) -> Iterator[None]:
    """Swap stand-ins for all state a forward pass may write, and put the originals back.

    Of the hooks those stay that ``parts`` knows to be; without, within an isolation, all that are left.

    An interrupt as the ``with`` block is left may drop the generator, which is then closed whenever its traceback is
    freed: what stands within an isolation must not write then, since that has put back everything long before.
    """
    scripts = [(m, scripted_state(m)) for m in modules if isinstance(m, torch.jit.ScriptModule)]
    saved = [(m, dict(m.__dict__)) for m in modules if not isinstance(m, torch.jit.ScriptModule)]
    tables = [(table, dict(table)) for _, state in saved for table in (state["_parameters"], state["_modules"])]
    known: dict[int, Any] = {}
    try:
        for script, state in scripts:
            write_scripted(script, {name: replaced(value, known) for name, value in state.items()})
        for module, state in saved:
            live = module.__dict__
            for name, value in state.items():
                if name not in _LEFT_ALONE and type(value) not in _CONSTANT:
                    live[name] = _stand_in(name, value, known)
            for name in HOOK_TABLES:  # those that are put on for one evaluation go with it
                live[name] = state[name].copy() if parts is None else parts.of(state[name], name, module)
            if isinstance(module, nn.parallel.DistributedDataParallel):
                # Its own would get it ready to add up gradients in the next backward pass, which is the training's.
                module.__dict__["forward"] = module.module.__call__
        yield
    except GeneratorExit:
        if parts is None:
            scripts, saved, tables = [], [], []
        raise
    finally:
        for script, state in scripts:
            write_scripted(script, state)
        for table, held in tables:
            if len(table) != len(held) or any(table.get(name) is not own for name, own in held.items()):
                table.clear()
                table.update(held)
        for module, state in saved:
            for name in [name for name in module.__dict__ if name not in state]:
                del module.__dict__[name]
            module.__dict__.update(state)


def _stand_in(name: str, value: Any, known: dict[int, Any]) -> Any:
    if name == "_buffers":
        return {key: replaced(buffer, known) for key, buffer in value.items()}
    return replaced(value, known)


def replaced(value: Any, known: dict[int, Any], by: Callable[[Tensor], Tensor] = torch.clone) -> Any:
    """A stand-in for a constant tensor, or for a container and what is in it; anything else stays as it is.

    Parameters and tensors with a graph are not replaced either. ``known`` maps what was replaced already, so that
    what two modules share is shared by their stand-ins.
    """
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, Tensor):
        if isinstance(value, nn.Parameter) or value.requires_grad or is_lazy(value):
            return value
        known[id(value)] = by(value.detach())
    elif type(value) is tuple:
        return tuple(replaced(item, known, by) for item in value)
    elif type(value) not in CONTAINERS:
        return value
    else:
        copied = known[id(value)] = value.copy()
        if isinstance(copied, dict):
            for key, item in value.items():
                copied[key] = replaced(item, known, by)
        elif not isinstance(copied, set):
            copied.clear()
            copied.extend(replaced(item, known, by) for item in value)
    return known[id(value)]


@contextlib.contextmanager
def _no_watchers_of_all_modules(parts: Parts) -> Iterator[None]:
    """Hide the hooks that are called for every module there is, as `_untouched_modules` does those of one module."""
    saved = {name: getattr(nn.modules.module, name) for name in GLOBAL_HOOK_TABLES}
    try:
        for name, table in saved.items():
            setattr(nn.modules.module, name, parts.of(table, name))
        yield
    finally:
        for name, table in saved.items():
            setattr(nn.modules.module, name, table)


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
            if p.data_ptr() != data.data_ptr() or id(p) in at_values:  # or where an interrupted `elsewhere` left it
                p.data = data
            if hooks:
                p._backward_hooks = hooks
            if p.grad is not grad:
                p.grad = grad
            if p.requires_grad != requires_grad:
                p.requires_grad_(requires_grad)


# --------------------------------------------------------------------------- numerics


class _WithoutReentry:
    """In the place of torch's reentrant activation checkpoint: the same values, and as little memory."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return checkpointing.checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve)


@contextlib.contextmanager
def _checkpoints_without_reentry() -> Iterator[None]:
    """Let `torch.autograd.grad` pass checkpoints made with ``use_reentrant=True``, which refuse it."""
    saved: Any = checkpointing.CheckpointFunction
    if saved is _WithoutReentry:  # whoever has put it there puts it back
        yield
        return
    try:
        checkpointing.CheckpointFunction = _WithoutReentry  # type: ignore[misc, assignment]
        yield
    finally:
        checkpointing.CheckpointFunction = saved  # type: ignore[misc]


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """In the place of torch's own, whose double backward takes the norm for a constant: the same by its parts."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


@contextlib.contextmanager
def _weight_norms_by_parts() -> Iterator[None]:
    """Let layers that are normalised by `torch.nn.utils` have the second derivatives of what they compute."""
    places: list[Any] = [torch, sys.modules["torch.nn.utils.weight_norm"]]  # a function of this name hides the module
    saved = [place._weight_norm for place in places]
    try:
        for place in places:
            place._weight_norm = _weight_norm
        yield
    finally:
        for place, own in zip(places, saved, strict=True):
            place._weight_norm = own


def _dense_gradients(modules: list[nn.Module]) -> None:
    """Within `_untouched_modules`, which puts the flags back: sparse gradients cannot be differentiated again."""
    for module in modules:
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False


@contextlib.contextmanager
def _twice_differentiable(modules: list[nn.Module], device: torch.device, tf32: bool) -> Iterator[None]:
    """Float32 as it is, gradients on, and only kernels that have a double backward."""
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the fused ones have none: pytorch#116350
        for kind in {device.type, "cpu"}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if device.type == "cuda" and any(isinstance(m, nn.RNNBase) for m in modules):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # pytorch#5261
        stack.enter_context(float32_arithmetic(device, tf32))
        stack.enter_context(_checkpoints_without_reentry())
        stack.enter_context(_weight_norms_by_parts())
        if "torch._dynamo" in sys.modules:  # compiled code has no double backward: pytorch#91469
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def unchanged(model: nn.Module, also: Iterable[nn.Module] = ()) -> contextlib.AbstractContextManager[None]:
    """Inside `isolated`: one evaluation after which the modules' state is as before it.

    So that the next evaluation is of the same function. A layer in train mode may move on at each
    pass (spectral norm iterates, a schedule counts).
    """
    return _untouched_modules(all_modules([model, *also]))


@contextlib.contextmanager
def isolated(
    model: nn.Module,
    *,
    also: Iterable[nn.Module] = (),
    mode: str = "eval",
    at: Mapping[nn.Parameter, Tensor] | None = None,
    generators: Iterable[Any] = (),
    tf32: bool = False,
    read: Collection[Any] = (),
) -> Iterator[None]:
    """Evaluate ``model`` inside, and leave no trace of it behind.

    Args:
        model: the model that will be evaluated.
        also: further modules that will be (the other player, a teacher, a criterion with state).
        mode: ``"eval"``, ``"train"`` or ``"train_frozen"``; see `set_mode`.
        at: values at which to evaluate instead of the parameters' own; exchanged by reference.
        generators: random generators that the evaluation may draw from, besides the global streams.
        tf32: let tensor cores round float32 products; otherwise they do not, whatever the process has set.
        read: containers and objects that the loss reads: hooks that write there are part of the function.

    Raises:
        SettingError: if ``mode`` is not one of `MODES`.
    """
    if mode not in (*MODES, LIVE):
        raise SettingError(f"mode must be one of {', '.join(map(repr, MODES))}; got {mode!r}")
    others = [m for m in also if m is not model]
    modules = all_modules([model, *others])
    parts = Parts(modules, read)
    device = next((p.device for m in modules for p in m._parameters.values() if p is not None), torch.device("cpu"))
    with (
        PostponedSignals() as signals,  # until everything is back
        preserved_rng(),
        preserved_generators(generators),
        _twice_differentiable(modules, device, tf32),  # first, so that no stand-in is an inference tensor
        _untouched_parameters(modules, at),
        _untouched_modules(modules, parts),
        _no_watchers_of_all_modules(parts),
    ):
        set_mode(model, modules, mode)
        _dense_gradients(modules)
        try:
            yield
        finally:
            signals.begin()
