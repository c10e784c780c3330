"""`torch.func.functional_call` that puts everything back, also where one module stands at several places.

torch writes on a module with two names (a block that is applied twice, an embedding that two parts share) once for each
name, takes the second time what it has written itself for what was there before, and puts that back: the module is left
with the other tensors for good (pytorch#164759).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["FunctionalModule"]


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
        self._places = _places(module)

    def __call__(self, tensors: Mapping[str, Tensor], arguments: tuple[Any, ...]) -> Any:
        """What the module makes of its arguments with these tensors, by their names in ``named_parameters()``."""
        placed = {place: tensor for name, tensor in tensors.items() for place in self._places[name]}
        return functional_call(self.module, placed, arguments, tie_weights=False)


def _places(module: nn.Module) -> dict[str, list[str]]:
    """By the first name of each tensor, all that hold it, each module by one of its names only."""
    found: dict[int, list[str]] = {}
    for path, inner in module.named_modules():
        own = [*inner.named_parameters(path, False, False), *inner.named_buffers(path, False, False)]
        for name, tensor in own:
            found.setdefault(id(tensor), []).append(name)
    return {names[0]: names for names in found.values()}
