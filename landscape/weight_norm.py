"""Weight norm with a right second derivative.

Torch's fused kernel, which both of torch's weight norms call, takes the norm for a constant where its gradient is
differentiated (torch 2.11 to 2.13: `gradgradcheck` fails). The operations that it is made of have no such fault.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

__all__ = ["weight_norm_in_parts"]


def weight_norm_in_parts(modules: Iterable[nn.Module]) -> contextlib.AbstractContextManager[Any]:
    """Inside, torch's weight norm is made of several operations wherever gradients are taken.

    Args:
        modules: those that will be evaluated; where none has a weight norm, nothing is arranged.
    """
    return _InParts() if any(map(_has_weight_norm, modules)) else contextlib.nullcontext()


def _has_weight_norm(module: nn.Module) -> bool:
    hooks = module._forward_pre_hooks
    return isinstance(module, _WeightNorm) or (bool(hooks) and any(isinstance(h, WeightNorm) for h in hooks.values()))


class _InParts(TorchFunctionMode):
    """Of this thread alone: others may train, and the two differ by rounding."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._weight_norm and torch.is_grad_enabled():
            func = _in_parts
        return func(*args, **(kwargs or {}))


def _in_parts(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))
