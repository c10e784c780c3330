"""Hidden units: which dimensions of which tensors can be reordered together without a change of the function.

A network computes the same if the units of a hidden layer are renumbered, in every tensor that has one entry per unit:
the weights into them, biases, parameters and statistics of normalisation, the weights that read them. Which those are
is seen in one pass of the model itself (`unit_tracing`), not in a table of architectures; whatever it says is tried on
the model before it is believed.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..batches import batch_length, take, without_weights
from ..elsewhere import elsewhere
from ..errors import SettingError
from ..objective import Objective
from ..space import generator_for
from .unit_algebra import Index, Product, Units, leaves, positions, rows
from .unit_tracing import UnitTrace

__all__ = ["HiddenUnits", "UnitGroup", "hidden_units"]

_SAMPLES = 8  # of the first batch: what is looked for does not depend on the data


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
class HiddenUnits:
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
                raise SettingError(f"there is no group {name!r} of hidden units; there are {_some(by_name)}")
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


def hidden_units(
    objective: Objective, *, spec: Mapping[str, Sequence[tuple[str, int]]] | None = None, seed: int = 0
) -> HiddenUnits:
    r"""The groups of hidden units that a model has: the permutations under which its function is the same.

    One pass over a few samples is followed operation by operation: a matrix product pairs the columns of a weight with
    the units it reads, an addition pairs units of both branches (so that a residual stream is one group through all its
    blocks), flattening makes blocks, concatenation pieces. Inputs, outputs, pixels and words keep their order. What an
    operation without a rule meets is left as it is, and said.

    Then every group is tried: with weights moved at random about the model's (which may have zeros and equal entries),
    a random permutation may change the outputs by rounding only, ``sqrt(eps)`` of their length; a group that changes
    them more is left out, and said. With a ``loss_fn``, which hides the outputs, the loss takes their place.

    Args:
        objective: model and data. Groups that reach parameters which it leaves out are left out too.
        spec: the groups by hand, ``{name: [(tensor, dimension), ...]}``, instead of the search. A dimension several
            times as long as the shortest has consecutive blocks of each unit, as flattening makes them.
        seed: of the permutations that are tried.

    Raises:
        SettingError: if ``spec`` names tensors or dimensions that there are not, or of sizes that do not go together.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import hidden_units
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> objective = Objective(model, (torch.eye(2), torch.ones(2, 1)), criterion=torch.nn.MSELoss())
        >>> hidden_units(objective).groups
        (UnitGroup(3 units in 0.weight:0, 0.bias:0, 2.weight:1),)
    """
    objective.batches  # noqa: B018 - read once, for the copy too
    frozen = copy.copy(objective)
    frozen.mode, frozen._depth = "eval", 0  # statistics of normalisation count, dropout does not
    with frozen.isolated():
        content = _few(frozen)
        if spec is None:
            with frozen.evaluation(0, content) as batch:
                trace = traced(frozen, batch)
            met = ", ".join(trace.obstacles())
            notes = [f"what {met} does to units is not known, so those that it meets are left"] if met else []
            indices: Mapping[str, Sequence[Index]] = trace.indices
            names: dict[Units, str] = {}
        else:
            indices, names = _indices_of(frozen, spec)
            notes = []
        groups, left = _groups(frozen, indices, names)
        found = HiddenUnits(groups, indices, note="; ".join([*notes, *left]))
        return _tried(frozen, content, found, seed)


# --------------------------------------------------------------------------- search


def _few(objective: Objective) -> Any:
    """A few samples, or the whole first batch where it cannot be cut."""
    content = objective.batches[0].content
    try:
        few = take(content, torch.arange(min(_SAMPLES, batch_length(without_weights(content)))))
        with objective.evaluation(0, few) as batch:
            objective.loss(objective.model, batch)
    except Exception:
        return content
    return few


def traced(objective: Objective, batch: Any, known: Mapping[str, list[Index]] | None = None) -> UnitTrace:
    """Follow one pass over a batch; outputs keep their order. ``known`` are the indices from an earlier pass."""
    trace = UnitTrace(_state(objective), known)
    with trace:
        outputs = _outputs(objective, batch)
    trace.fix_all(outputs)
    return trace


@contextlib.contextmanager
def evaluated_at(objective: Objective, index: int, content: Any, state: Mapping[str, Tensor]) -> Iterator[Any]:
    """One evaluation of a batch at other parameters and buffers."""
    values = [state[name].contiguous() for name in objective.parameters]
    with elsewhere(objective, values), objective.evaluation(index, content) as batch:
        for name, _ in list(objective.model.named_buffers(remove_duplicate=False)):
            owner, _, key = name.rpartition(".")
            objective.model.get_submodule(owner)._buffers[key] = state[name].clone()  # of the evaluation's stand-ins
        yield batch


def _state(objective: Objective) -> dict[str, Tensor]:
    model = objective.model
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return parameters | dict(model.named_buffers(remove_duplicate=False))


def _outputs(objective: Objective, batch: Any) -> Any:
    if objective.loss.criterion is None:
        return objective.loss(objective.model, batch)
    return objective.loss.outputs(objective.model, batch)


def _groups(
    objective: Objective, indices: Mapping[str, Sequence[Index]], names: Mapping[Units, str]
) -> tuple[tuple[UnitGroup, ...], list[str]]:
    """Units with entries in two dimensions at least, whose parameters the objective has; and what is left out."""
    model, chosen = objective.model, set(objective.parameters)
    parameters = [name for name, _ in model.named_parameters()]
    buffers = [name for name, _ in model.named_buffers()]
    places: dict[Units, list[tuple[str, int]]] = {}
    for name in [*parameters, *buffers]:
        for dim, index in enumerate(indices.get(name, ())):
            for units, _ in positions(index):
                if (name, dim) not in places.setdefault(units, []):
                    places[units].append((name, dim))
    groups, left, taken = [], [], set[str]()
    for units, found in places.items():
        outside = [name for name, _ in found if name in parameters and name not in chosen]
        if outside:
            left.append(f"units of {found[0][0]} are left: {outside[0]} is not among the objective's parameters")
        elif len(found) > 1:
            label = names.get(units, f"{found[0][0]}:{found[0][1]}")
            while label in taken:  # attention heads and their coordinates are in the same places
                label += "'"
            taken.add(label)
            groups.append(UnitGroup(label, units.size, tuple(found), units))
    return tuple(groups), left


def _indices_of(
    objective: Objective, spec: Mapping[str, Sequence[tuple[str, int]]]
) -> tuple[dict[str, list[Index]], dict[Units, str]]:
    """Indices as a person gives them."""
    state = _state(objective)
    indices: dict[str, list[Index]] = {name: [Units(size, True) for size in t.shape] for name, t in state.items()}
    names = {}
    for group, places in spec.items():
        for name, dim in places:
            if name not in state or not -state[name].ndim <= dim < state[name].ndim:
                raise SettingError(f"spec[{group!r}]: the model has no dimension {dim} of {name!r}")
        size = min((state[name].shape[dim] for name, dim in places), default=0)
        units = Units(size)
        names[units] = group
        for name, dim in places:
            blocks, rest = divmod(state[name].shape[dim], max(size, 1))
            if rest or size < 2:
                raise SettingError(
                    f"spec[{group!r}]: dimension {dim} of {name!r} has {state[name].shape[dim]} entries, which is no "
                    f"multiple of the {size} of the shortest"
                )
            indices[name][dim] = Product((units, Units(blocks, True)))
    return indices, names


# --------------------------------------------------------------------------- trial


def _tried(objective: Objective, content: Any, found: HiddenUnits, seed: int) -> HiddenUnits:
    """The groups that change nothing, with the error that they were found at."""
    if not found.groups:
        return found
    generator = generator_for(seed, torch.device("cpu"))
    state = _moved(objective, found, generator)
    before = _computed(objective, content, state)
    if not bool(before.isfinite().all()):
        state = {name: t.detach() for name, t in _state(objective).items()}
        before = _computed(objective, content, state)
    tolerance = torch.finfo(next(iter(objective.parameters.values())).dtype).eps ** 0.5

    def change(groups: Sequence[UnitGroup]) -> float:
        orders = {g.name: torch.randperm(g.size, generator=generator) for g in groups}
        after = _computed(objective, content, found.permuted(state, orders))
        scale = torch.linalg.vector_norm(before)
        return float(torch.linalg.vector_norm(after - before) / scale.clamp(min=torch.finfo(before.dtype).tiny))

    error = change(found.groups)
    if error <= tolerance:
        return replace(found, error=error)
    changes = [change([group]) for group in found.groups]
    kept = tuple(g for g, size in zip(found.groups, changes, strict=True) if size <= tolerance)
    left = [
        f"{g.name} is left: a permutation of its units changed the outputs by {size:.2g} of their length"
        for g, size in zip(found.groups, changes, strict=True)
        if not size <= tolerance
    ]
    return replace(found, groups=kept, error=change(kept), note="; ".join(filter(None, [found.note, *left])))


def _moved(objective: Objective, found: HiddenUnits, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights, and statistics of hidden units, about the model's, with no two entries equal and none zero."""
    of_units = {name for group in found.groups for name, _ in group.places}
    moved: dict[int, Tensor] = {}
    state = _state(objective)
    for name, tensor in state.items():
        if id(tensor) in moved:
            continue
        moved[id(tensor)] = tensor.detach()
        if tensor.is_floating_point() and (name in objective.parameters or name in of_units):
            z = torch.randn(2, *tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
            moved[id(tensor)] = tensor.detach() * (z[0] / 4).exp() + (tensor == 0) * z[1].abs() / 4
    return {name: moved[id(tensor)] for name, tensor in state.items()}


def _computed(objective: Objective, content: Any, state: Mapping[str, Tensor]) -> Tensor:
    """The outputs at other parameters and buffers, flat, in float64."""
    with evaluated_at(objective, 0, content, state) as batch:
        outputs = [t for t in tree_leaves(_outputs(objective, batch)) if isinstance(t, Tensor)]
        return torch.cat([t.detach().flatten().cpu().double() for t in outputs])


def _permuted(tensor: Tensor, indices: Sequence[Index], orders: Mapping[Units, Tensor]) -> Tensor:
    for dim, index in enumerate(indices):
        if any(units in orders for units in leaves(index)):
            tensor = tensor.index_select(dim, rows(index, orders).to(tensor.device))
    return tensor


def _some(names: Iterable[str], most: int = 6) -> str:
    shown = list(names)
    return ", ".join(shown[:most]) + (", ..." if len(shown) > most else "") if shown else "none"
