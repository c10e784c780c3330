"""What a step is: following optimizers through their hooks.

An update is one round of the optimizers that move a player's parameters: it opens when the first of
them is about to step and closes when all have stepped, or when one of them is about to step again. With
one optimizer that is one call of ``step``, whatever it does inside (closures) and however many backward
passes came before it (gradient accumulation). An update that a GradScaler skips does not count.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

__all__ = ["UpdateHooks", "deciding", "is_watched", "outside_of_inference", "steps_off", "unwrapped"]

F = TypeVar("F", bound=Callable[..., Any])

_DELEGATING = ("accelerate", "lightning", "lightning_fabric", "pytorch_lightning")
"""Packages whose optimizers hold one and step as it does."""

_OURS = "_of_a_losscope_watch"
"""What the hooks of a watch are known by."""


def outside_of_inference(function: F) -> F:
    """The function out of inference mode, in which a loop may step: no tensor made there can be differentiated at."""

    @functools.wraps(function)
    def outside(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False):
            return function(*args, **kwargs)

    return cast(F, outside)


def is_watched(optimizer: Optimizer) -> bool:
    """Whether hooks of a watch are on it."""
    return any(hasattr(hook, _OURS) for hook in optimizer._optimizer_step_pre_hooks.values())


def unwrapped(optimizer: Any) -> Any:
    """The torch optimizer inside wrappers (accelerate's, SAM's), whose step is the one that moves the weights."""
    return _layers(optimizer)[-1]


def deciding(optimizer: Any) -> Any:
    """The optimizer whose rule tells what is stable: wrappers that make something else of a step stay on."""
    layers = _layers(optimizer)
    return next((layer for layer in layers if not _passes_on(layer)), layers[-1])


def steps_off(optimizer: Any) -> bool:
    """Whether the gradient that the weights are moved with is one of elsewhere, as SAM's is."""
    return any(_held(layer, "base_optimizer") is not None for layer in _layers(optimizer))


def _layers(optimizer: Any) -> list[Any]:
    """A wrapper, what it holds, and so on inwards."""
    layers = [optimizer]
    while (inner := _held(layers[-1], "optimizer") or _held(layers[-1], "base_optimizer")) is not None:
        if any(inner is layer for layer in layers):
            break
        layers.append(inner)
    return layers


def _held(wrapper: Any, name: str) -> Optimizer | None:
    inner = getattr(wrapper, name, None)
    return inner if isinstance(inner, Optimizer) else None


def _passes_on(wrapper: Any) -> bool:
    """Whether a wrapper hands its steps on as they are; optimizers that hold another (Lookahead) mostly do not."""
    if _held(wrapper, "optimizer") is None:
        return False
    package = type(wrapper).__module__.partition(".")[0]
    return not isinstance(wrapper, Optimizer) or package in _DELEGATING


class UpdateHooks:
    """Calls back when an update opens and closes.

    Args:
        optimizers: the optimizers of one player.
        opened: called just before the first of them moves anything, with whether it was given a closure.
        closed: called when the round is over; not called for an update in which every step was skipped.
        skipped: called when an optimizer did nothing, because a GradScaler had told it of infinite gradients.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        opened: Callable[[bool], None],
        closed: Callable[[], None],
        skipped: Callable[[], None] = lambda: None,
    ) -> None:
        self.optimizers, self._opened, self._closed, self._skipped = optimizers, opened, closed, skipped
        self._begun: set[int] = set()
        self._stepped: set[int] = set()
        self._handles: list[RemovableHandle] = []
        self._places: dict[int, int] = {}

    def attach(self) -> None:
        """Register the hooks; a compiled step calls them, but does not compile them."""
        before, after = (torch.compiler.disable(outside_of_inference(h)) for h in (self._before, self._after))
        setattr(before, _OURS, True)
        for optimizer in self.optimizers:
            first = optimizer.register_step_pre_hook(before)
            self._places[id(optimizer)] = first.id
            self._handles += [first, optimizer.register_step_post_hook(after)]

    def detach(self) -> None:
        """Remove the hooks and close a round that is still open."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.close()

    @property
    def under_way(self) -> bool:
        """Whether an optimizer has stepped in a round that another one may still join."""
        return bool(self._stepped)

    def close(self) -> None:
        """End the round that is under way, if one is."""
        if self._stepped:
            self._stepped.clear()
            self._closed()

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if id(optimizer) in self._stepped:
            self.close()
        self._begun.add(id(optimizer))
        if not self._stepped:
            closure = kwargs.get("closure") is not None or any(callable(a) for a in args[1:])
            self._opened(closure)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if id(optimizer) not in self._begun:  # a step that called its superclass's, whose hooks fire too
            return
        self._begun.remove(id(optimizer))
        self._come_last(optimizer)
        if _was_skipped(optimizer):
            self._skipped()
            return
        self._stepped.add(id(optimizer))
        if len(self._stepped) == len(self.optimizers):
            self.close()

    def _come_last(self, optimizer: Optimizer) -> None:
        """Be called after hooks that were registered since, which may clip: what they leave is what is stepped with."""
        hooks, own = optimizer._optimizer_step_pre_hooks, self._places[id(optimizer)]
        if own in hooks and next(reversed(hooks)) != own:
            hooks[own] = hooks.pop(own)


def _was_skipped(optimizer: Optimizer) -> bool:
    """Whether the step just made was a no-op because a GradScaler had found infinite gradients.

    For optimizers that unscale inside their kernel (``fused=True``) the scaler calls ``step`` all the
    same and hands it ``found_inf``; for the others it does not call ``step`` and no hook fires.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(float(found_inf) != 0)
