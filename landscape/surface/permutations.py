"""Hidden units: which dimensions of which tensors can be reordered together without a change of the function.

A network computes the same if the units of a hidden layer are renumbered, in every tensor that has one entry per unit:
the weights into them, biases, parameters and statistics of normalisation, the weights that read them. Which those are
is seen in one pass of the model itself (`unit_tracing`), not in a table of architectures; whatever it says is tried on
the model before it is believed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from ..errors import SettingError
from ..objective import Objective
from .points import named_tensors
from .unit_algebra import Index, Product, Units, positions
from .unit_groups import HiddenUnits, UnitGroup, some
from .unit_passes import few_samples, traced
from .unit_tracing import UnitTrace
from .unit_trial import tried

__all__ = ["HiddenUnits", "UnitGroup", "hidden_units"]


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
        content = few_samples(frozen)
        if spec is None:
            with frozen.evaluation(0, content) as batch:
                trace = traced(frozen, batch)
            notes = _said(frozen, trace)
            indices: Mapping[str, Sequence[Index]] = trace.indices
            names: dict[Units, str] = {}
        else:
            indices, names = _indices_of(frozen, spec)
            notes = []
        groups, left = _groups(frozen, indices, names)
        found = HiddenUnits(groups, indices, note="; ".join([*notes, *left]))
        return tried(frozen, content, found, seed)


# --------------------------------------------------------------------------- search


def _said(objective: Objective, trace: UnitTrace) -> list[str]:
    met, unused = ", ".join(trace.obstacles()), [name for name in trace.unused if name in objective.parameters]
    notes = [f"what {met} does to units is not known, so those that it meets are left"] if met else []
    if unused:
        notes.append(f"the outputs in mode eval do not depend on {some(unused, 3)}: left as they are")
    return notes


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
    state = named_tensors(objective.model)
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
