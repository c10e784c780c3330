"""Groups of hidden units, and tensors with their units in another order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SettingError
from ..html_table import Shown
from ..space import generator_for
from .unit_algebra import Index, Units, leaves, rows

__all__ = ["HiddenUnits", "UnitGroup", "some"]


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """Units that are renumbered together.

    Attributes:
        name: of the first tensor that has them, and which of its dimensions: ``"0.weight:0"``.
        size: how many units.
        places: the (tensor, dimension) pairs that have entries of them.
        units: what the indices of those dimensions are made of.
    """

    name: str
    size: int
    places: tuple[tuple[str, int], ...]
    units: Units

    def __repr__(self) -> str:
        """Size and places."""
        shown = ", ".join(f"{tensor}:{dim}" for tensor, dim in self.places[:4])
        return f"UnitGroup({self.size} units in {shown}{', ...' if len(self.places) > 4 else ''})"


@dataclass(frozen=True, eq=False)
class HiddenUnits(Shown):
    """The groups of hidden units of a model.

    Attributes:
        groups: all that can be permuted, each independently of the others.
        indices: what the dimensions of each tensor count, by name; tied tensors under each of theirs.
        error: the largest relative change of the outputs that random permutations of all groups made, of the order of
            rounding.
        note: what was left as it is, and why; mostly empty.
    """

    groups: tuple[UnitGroup, ...]
    indices: Mapping[str, Sequence[Index]]
    error: float = 0.0
    note: str = ""

    def permuted(self, state: Mapping[str, Tensor], orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors with their units in another order; the function is the same.

        Args:
            state: tensors by name; those without hidden units are passed on.
            orders: per group name (size,) int64: unit i of the result is unit ``order[i]`` of ``state``.

        Raises:
            SettingError: if there is no such group, or an order is not a permutation of its units.
        """
        by_name = {group.name: group for group in self.groups}
        of_units = {}
        for name, order in orders.items():
            if name not in by_name:
                raise SettingError(f"there is no group {name!r} of hidden units; there are {some(by_name)}")
            size = by_name[name].size
            if order.shape != (size,) or not torch.equal(order.cpu().sort().values, torch.arange(size)):
                raise SettingError(f"the order of {name} must be a permutation of 0 ... {size - 1}")
            of_units[by_name[name].units] = order.cpu()
        return {name: _permuted(tensor, self.indices.get(name, ()), of_units) for name, tensor in state.items()}

    def random_orders(self, seed: int | torch.Generator | None = 0) -> dict[str, Tensor]:
        """A random permutation of every group."""
        generator = generator_for(seed, torch.device("cpu"))
        return {group.name: torch.randperm(group.size, generator=generator) for group in self.groups}

    def __repr__(self) -> str:
        """How many groups, and how many units in them."""
        sizes = [group.size for group in self.groups]
        return f"HiddenUnits({len(sizes)} groups of {sum(sizes)} units{'; ' + self.note if self.note else ''})"


def _permuted(tensor: Tensor, indices: Sequence[Index], orders: Mapping[Units, Tensor]) -> Tensor:
    for dim, index in enumerate(indices):
        if any(units in orders for units in leaves(index)):
            tensor = tensor.index_select(dim, rows(index, orders).to(tensor.device))
    return tensor


def some(names: Iterable[str], most: int = 6) -> str:
    """The first of several names, for messages."""
    shown = list(names)
    return ", ".join(shown[:most]) + (", ..." if len(shown) > most else "") if shown else "none"
