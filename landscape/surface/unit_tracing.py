"""One pass of a model, followed operation by operation, to see which dimensions of its tensors count the same units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .unit_algebra import Index, Units, fix, leaves, unify
from .unit_rules import Rule, free, keeps_equal, rule_for

__all__ = ["Reading", "UnitTrace"]


class Reading(NamedTuple):
    """Units of the data's activations that are summed over: what the next layer reads."""

    tensor: Tensor
    dim: int
    units: Index


class UnitTrace(TorchDispatchMode):
    """Everything that torch computes under it is followed.

    Below autograd and below every wrapper, so that functions, modules, custom autograd functions and control flow are
    all the same to it. What nothing of the outputs depends on is not followed: a state that is returned and not used
    would tie the units of layers to each other.

    Args:
        state: the tensors whose dimensions are asked about, by name; all others (data) have an order that is fixed.
        known: their indices from an earlier pass.

    Attributes:
        indices: of every named tensor, one per dimension.
        readings: where units are summed over: what the next layer reads of them.
        unused: named tensors that nothing of the outputs depends on.
        fixed_by: per operation that has no rule, or pairs what cannot be paired, the units whose order it fixed.
    """

    def __init__(self, state: Mapping[str, Tensor], known: Mapping[str, list[Index]] | None = None) -> None:
        super().__init__()
        self.indices: dict[str, list[Index]] = {}
        self.readings: list[Reading] = []
        self.unused: list[str] = []
        self.fixed_by: dict[str, list[Units]] = {}
        self._seen: dict[int, tuple[Tensor, list[Index]]] = {}  # with the tensor, so that no id comes twice
        self._from_data: set[int] = set()
        self._named = {name: id(tensor) for name, tensor in state.items()}
        self._equal: set[int] = set()  # tensors with equal entries: a state of zeros that recurrent layers start from
        self._operations: list[_Operation] = []
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
        """Run an operation, and remember it."""
        before = torch.ops.aten.alias(args[0]) if torch.Tag.inplace_view in func.tags else None
        out = func(*args, **(kwargs or {}))
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if before is not None:  # the tensor has another shape from here on: what was done to it was done to ``before``
            self._operations = [operation.of(before, args[0]) for operation in self._operations]
            args = (before, *args[1:])
        if results:
            operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            self._operations.append(_Operation(func, args, kwargs or {}, operands, results))
        return out

    def finish(self, outputs: Any) -> None:
        """Follow what the outputs depend on; they keep their order. Call it after the pass."""
        wanted = {id(t) for t in tree_leaves(outputs) if isinstance(t, Tensor)}
        needed = []
        for operation in reversed(self._operations):
            if operation.in_place or any(id(t) in wanted for t in operation.results):
                wanted |= {id(t) for t in operation.operands}
                needed.append(operation)
        self.unused = [name for name, of in self._named.items() if of not in wanted]
        written = {_storage(t) for operation in needed if operation.in_place for t in operation.operands}
        for operation in reversed(needed):
            self._follow(operation, written)
        self._operations.clear()
        self.fix_all(outputs)

    def _follow(self, operation: _Operation, written: set[int]) -> None:
        func, args, kwargs, operands, results = operation
        self._name = func.overloadpacket.__name__
        for t in operands:
            self.of(t)  # data that is met for the first time is data also where an operation returns it
        rule = rule_for(self._name, torch.Tag.pointwise in func.tags)
        equal = keeps_equal(rule) and all(id(t) in self._equal for t in operands)
        if equal and not any(_storage(t) in written for t in results):
            self._equal |= {id(t) for t in results}
            rule = free
        found = self._apply(rule, _by_name(func, args, kwargs), results)
        if found is None:
            news = self.fix_all(operands)
            if news:
                self.fixed_by.setdefault(self._name, []).extend(news)
        of_data = not (operands or equal) or any(id(t) in self._from_data for t in operands)
        for i, t in enumerate(results):
            indices: list[Index] = [Units(size, fixed=True) for size in t.shape]
            if found is not None and i < len(found):
                indices = found[i]
            if operation.in_place and len(self.of(t)) == len(indices):  # views of it share its indices
                for index, old in zip(indices, self.of(t), strict=True):
                    self.pair(index, old)
            self._seen[id(t)] = t, indices
            if of_data:
                self._from_data.add(id(t))

    def _apply(self, rule: Rule | None, arguments: dict[str, Any], results: list[Tensor]) -> list[list[Index]] | None:
        """What a rule says of the results; None where there is none, or this is a case that it was not made for."""
        try:
            found = None if rule is None else rule(self, arguments, results)
        except (IndexError, KeyError, TypeError, ValueError):
            return None
        shapes = [[index.size for index in indices] for indices in found or ()]
        return found if shapes == [list(t.shape) for t in results[: len(shapes)]] else None


class _Operation(NamedTuple):
    func: Any
    args: Any
    kwargs: Any
    operands: list[Tensor]
    results: list[Tensor]

    def of(self, tensor: Tensor, instead: Tensor) -> _Operation:
        """The same operation, of one tensor instead of another."""
        return _Operation(*tree_map(lambda item: tensor if item is instead else item, tuple(self)))

    @property
    def in_place(self) -> bool:
        """Whether a result is one of the operands."""
        return any(t is operand for t in self.results for operand in self.operands)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _by_name(func: Any, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by the names of the operation's schema, defaults included."""
    named = {}
    for i, argument in enumerate(func._schema.arguments):
        if i < len(args) and not argument.kwarg_only:
            named[argument.name] = args[i]
        else:
            named[argument.name] = kwargs.get(argument.name, argument.default_value)
    return named
