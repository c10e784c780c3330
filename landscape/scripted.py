"""What a TorchScript module holds besides its parameters, which lies in C++ where its ``__dict__`` does not reach."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch

from .reach import MODULE_INTERNALS

__all__ = ["scripted_state", "write_scripted"]


def scripted_state(module: torch.jit.ScriptModule) -> dict[str, Any]:
    """Buffers, flags and attributes by name: tensors themselves, containers as copies with the tensors in them."""
    own: dict[str, Any] = {}
    for name in module._concrete_type.get_attributes():
        if name not in module._parameters and (name == "training" or name not in MODULE_INTERNALS):
            with contextlib.suppress(RuntimeError):  # objects of C++, which Python cannot hold
                own[name] = module._c.getattr(name)
    return own


def write_scripted(module: torch.jit.ScriptModule, state: Mapping[str, Any]) -> None:
    """Let the module hold these, by reference."""
    for name, value in state.items():
        module._c.setattr(name, value)
