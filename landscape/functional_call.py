"""Modules called with other tensors, where everything is put back, also where one module stands at several places.

`torch.func.functional_call` writes on a module with two names (a block that is applied twice, an embedding that two
parts share) once for each name, takes the second time what it has written itself for what was there before, and puts
that back: the module is left with the other tensors for good (pytorch#164759). It also looks every name up at every
call, which takes longer than a small model's forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["FunctionalModule", "TensorPlaces"]

_TABLES = ("_parameters", "_buffers")


class TensorPlaces:
    """Where modules hold their tensors, so that others can stand there for a while.

    Args:
        modules: by what their tensors' names begin with; their structure must stay as it is.

    Attributes:
        names: of every tensor, by its identity: that of its first place.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.names: dict[int, str] = {}
        self._places: dict[str, list[tuple[nn.Module, str, str]]] = {}
        seen: set[int] = set()
        for path, module in modules.items():
            self._look(module, path, seen)

    def _look(self, module: nn.Module, path: str, seen: set[int]) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        for table in _TABLES:
            for name, tensor in getattr(module, table).items():
                if tensor is not None:
                    first = self.names.setdefault(id(tensor), path + name)
                    self._places.setdefault(first, []).append((module, table, name))
        for name, inner in module._modules.items():
            if inner is not None:
                self._look(inner, f"{path}{name}.", seen)

    def now(self, table: str) -> dict[str, Tensor]:
        """The tensors whose first place is in ``"_parameters"`` or in ``"_buffers"``, as they are now, by name."""
        found = {}
        for name, ((module, kind, key), *_) in self._places.items():
            if kind == table and key in (held := getattr(module, kind)) and (tensor := held[key]) is not None:
                found[name] = tensor
        return found

    def call(self, tensors: Mapping[str, Tensor], function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function makes of its arguments while these tensors, by name, are in place."""
        held = []
        try:
            for name, tensor in tensors.items():
                for module, kind, key in self._places[name]:
                    table = getattr(module, kind)
                    held.append((table, key, table[key]))
                    table[key] = tensor
            return function(*arguments)
        finally:
            for table, key, own in held:
                table[key] = own


class FunctionalModule:
    """A module as a function of its tensors.

    Args:
        module: called with other tensors in the place of its own; its structure must stay as it is.

    Example:
        >>> import torch
        >>> from losscope.landscape.functional_call import FunctionalModule
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> twice = torch.nn.Sequential(layer, layer)
        >>> float(FunctionalModule(twice)({"0.weight": torch.full((1, 1), 3.0)}, (torch.ones(1),)))
        9.0
        >>> twice[1].weight is layer.weight and isinstance(layer.weight, torch.nn.Parameter)
        True
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._places = TensorPlaces({"": module})

    def __call__(self, tensors: Mapping[str, Tensor], arguments: tuple[Any, ...]) -> Any:
        """What the module makes of its arguments with these tensors, by their names in ``named_parameters()``."""
        return self._places.call(tensors, self.module, *arguments)
