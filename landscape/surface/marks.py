"""Whether a forward pass leaves the modules' state alone, so that it need not be put back after each of thousands.

Putting it back takes half as long as a small model's pass. What is looked at is what `isolation.unchanged` puts back:
buffers, flags, plain attributes and what is in their containers.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..reach import MODULE_INTERNALS

__all__ = ["marks"]

_WRITTEN = {"_buffers", "training"}  # of what is torch's own, in a forward pass
_SKIPPED = MODULE_INTERNALS - _WRITTEN
_VALUES = (bool, int, float, str, bytes, type(None))


def marks(modules: Sequence[nn.Module]) -> list[Any]:
    """What there is in modules, by identity and version; equal before and after a pass that has changed nothing.

    Example:
        >>> import torch
        >>> from losscope.landscape.surface.marks import marks
        >>> norm = torch.nn.BatchNorm1d(2)
        >>> before = marks([norm])
        >>> _ = norm.eval()(torch.randn(3, 2))
        >>> marks([norm]) == before  # but for the flag, which eval() has set
        False
        >>> before = marks([norm])
        >>> _ = norm(torch.randn(3, 2))
        >>> marks([norm]) == before
        True
    """
    return [
        (name, _mark(value))
        for module in modules
        if not isinstance(module, torch.jit.ScriptModule)
        for name, value in vars(module).items()
        if name not in _SKIPPED
    ]


def _mark(value: Any) -> Any:
    if isinstance(value, _VALUES):
        return value
    if isinstance(value, Tensor):
        return id(value), -1 if value.is_inference() else value._version
    if isinstance(value, dict):
        return id(value), [(_mark(key), _mark(item)) for key, item in value.items()]
    if isinstance(value, list | tuple | collections.deque):
        return id(value), [_mark(item) for item in value]
    if isinstance(value, set):
        return id(value), len(value)
    return id(value)
