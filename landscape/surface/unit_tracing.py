"""One pass of a model, followed operation by operation, to see which dimensions of its tensors count the same units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .unit_algebra import Index, Units, fix, leaves, unify
from .unit_rules import rule_for

__all__ = ["Reading", "UnitTrace"]


class Reading(NamedTuple):
    """Units of the data's activations that are summed over: what the next layer reads."""

    tensor: Tensor
    dim: int
    units: Index


class UnitTrace(TorchDispatchMode):
    """Everything that torch computes under it is followed.

    Below autograd and below every wrapper, so that functions, modules, custom autograd functions and control flow are
    all the same to it.

    Args:
        state: the tensors whose dimensions are asked about, by name; all others (data) have an order that is fixed.
        known: their indices from an earlier pass.

    Attributes:
        indices: of every named tensor, one per dimension.
        readings: where units are summed over: what the next layer reads of them.
        fixed_by: per operation that has no rule, or pairs what cannot be paired, the units whose order it fixed.
    """

    def __init__(self, state: Mapping[str, Tensor], known: Mapping[str, list[Index]] | None = None) -> None:
        super().__init__()
        self.indices: dict[str, list[Index]] = {}
        self.readings: list[Reading] = []
        self.fixed_by: dict[str, list[Units]] = {}
        self._seen: dict[int, tuple[Tensor, list[Index]]] = {}  # with the tensor, so that no id comes twice
        self._from_data: set[int] = set()
        self._name = ""
        for name, tensor in state.items():
            if id(tensor) not in self._seen:
                fresh: list[Index] = [Units(size) for size in tensor.shape]
                self._seen[id(tensor)] = tensor, fresh if known is None else known[name]
            self.indices[name] = self._seen[id(tensor)][1]

    def of(self, tensor: Tensor) -> list[Index]:
        """The indices of a tensor's dimensions, in a list of its own; fixed where it was not met before."""
        if id(tensor) not in self._seen:
            self._from_data.add(id(tensor))
            self._seen[id(tensor)] = tensor, [Units(size, fixed=True) for size in tensor.shape]
        return list(self._seen[id(tensor)][1])

    def pair(self, first: Index, second: Index) -> None:
        """Unify two indices; remember the units of both where that was not possible."""
        free = [units for index in (first, second) for units in leaves(index) if not units.fixed]
        if not unify(first, second):
            self.fixed_by.setdefault(self._name, []).extend(free)

    def contract(self, first: Tensor, i: int, second: Tensor, j: int) -> None:
        """Pair two dimensions that are summed over, and note who reads them."""
        self.pair(self.of(first)[i], self.of(second)[j])
        for tensor, dim in ((first, i), (second, j)):
            if id(tensor) in self._from_data:
                self.readings.append(Reading(tensor.detach(), dim % tensor.ndim, self.of(tensor)[dim]))

    def fix_all(self, tensors: Any) -> list[Units]:
        """Fix every dimension of these tensors; the units that this was news for."""
        indices = [index for t in tree_leaves(tensors) if isinstance(t, Tensor) for index in self.of(t)]
        free = [units for index in indices for units in leaves(index) if not units.fixed and units.size > 1]
        for index in indices:
            fix(index)
        return free

    def obstacles(self) -> list[str]:
        """Operations that kept units of the named tensors from being hidden units."""
        asked = {units for indices in self.indices.values() for index in indices for units in leaves(index)}
        return [name for name, fixed in self.fixed_by.items() if any(asked & {*leaves(units)} for units in fixed)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and follow it."""
        out = func(*args, **(kwargs or {}))
        self._follow(func, args, kwargs or {}, out)
        return out

    def _follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if not results:
            return
        self._name = func.overloadpacket.__name__
        operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        for t in operands:
            self.of(t)  # data that is met for the first time is data also where an operation returns it
        rule = rule_for(self._name, torch.Tag.pointwise in func.tags)
        found = None if rule is None else rule(self, _by_name(func, args, kwargs), results)
        shapes = [[index.size for index in indices] for indices in found or ()]
        if found is None or shapes != [list(t.shape) for t in results[: len(shapes)]]:
            found = []
            free = self.fix_all(operands)
            if free:
                self.fixed_by.setdefault(self._name, []).extend(free)
        of_data = not operands or any(id(t) in self._from_data for t in operands)
        for i, t in enumerate(results):
            indices: list[Index] = [Units(size, fixed=True) for size in t.shape] if i >= len(found) else found[i]
            if any(t is operand for operand in operands):  # in place: views of it share its indices
                for index, old in zip(indices, self.of(t), strict=True):
                    self.pair(index, old)
            self._seen[id(t)] = t, indices
            if of_data:
                self._from_data.add(id(t))


def _by_name(func: Any, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by the names of the operation's schema, defaults included."""
    named = {}
    for i, argument in enumerate(func._schema.arguments):
        if i < len(args) and not argument.kwarg_only:
            named[argument.name] = args[i]
        else:
            named[argument.name] = kwargs.get(argument.name, argument.default_value)
    return named
