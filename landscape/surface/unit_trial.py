"""Hidden units are believed when random permutations of them leave the outputs as they are."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..errors import LosscopeError
from ..objective import Objective
from ..space import generator_for
from .point_statistics import statistics_for
from .points import named_tensors
from .unit_groups import HiddenUnits, UnitGroup
from .unit_passes import evaluated_at, outputs_of

__all__ = ["tried"]

_LEAST = 1e-300  # outputs that are all 0 have no length to compare with


def tried(objective: Objective, content: Any, found: HiddenUnits, seed: int) -> HiddenUnits:
    """The groups that change nothing, with the error that they were found at."""
    if not found.groups:
        return found
    generator = generator_for(seed, torch.device("cpu"))
    state = _moved(objective, content, found, generator)
    before = _computed(objective, content, state)
    if not bool(before.isfinite().all()):
        state = {name: t.detach() for name, t in named_tensors(objective.model).items()}
        before = _computed(objective, content, state)
    tolerance = torch.finfo(next(iter(objective.parameters.values())).dtype).eps ** 0.5

    def change(groups: Sequence[UnitGroup], *, halfway: bool = False) -> float:
        orders = {g.name: torch.randperm(g.size, generator=generator) for g in groups}
        permuted = found.permuted(state, orders)
        if halfway:  # in one tensor of each group and not in the others: something else
            permuted = state | {g.places[0][0]: permuted[g.places[0][0]] for g in groups}
        apart = _computed(objective, content, permuted) - before
        return float(torch.linalg.vector_norm(apart) / torch.linalg.vector_norm(before).clamp(min=_LEAST))

    error, kept, notes = change(found.groups), found.groups, [found.note]
    if not error <= tolerance:
        changes = {group.name: change([group]) for group in found.groups}
        kept = tuple(group for group in found.groups if changes[group.name] <= tolerance)
        error = change(kept)
        notes += [
            f"{name} is left: a permutation of its units changed the outputs by {size:.2g} of their length"
            for name, size in changes.items()
            if not size <= tolerance
        ]
    if kept and change(kept, halfway=True) <= tolerance:
        notes.append("the outputs hardly depend on these weights, so that trying the permutations says little")
    return replace(found, groups=kept, error=error, note="; ".join(filter(None, notes)))


def _moved(objective: Objective, content: Any, found: HiddenUnits, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights about the model's, with no two entries equal and none zero, and the statistics that belong to them.

    With others, the signal of a deep network dies out or grows without bound, and any permutation is as good.
    """
    of_units = {name for group in found.groups for name, _ in group.places}
    moved: dict[int, Tensor] = {}
    state = named_tensors(objective.model)
    for name, tensor in state.items():
        if id(tensor) in moved:
            continue
        moved[id(tensor)] = tensor.detach()
        if tensor.is_floating_point() and (name in objective.parameters or name in of_units):
            z = torch.randn(2, *tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
            moved[id(tensor)] = tensor.detach() * (z[0] / 4).exp() + (tensor == 0) * z[1].abs() / 4
    there = {name: moved[id(tensor)] for name, tensor in state.items()}
    few = copy.copy(objective)
    few._batches = (replace(objective.batches[0], content=content),)
    with contextlib.suppress(LosscopeError):  # a single sample has no variance
        there |= statistics_for(few, [there[name] for name in objective.parameters])
    return there


def _computed(objective: Objective, content: Any, state: Mapping[str, Tensor]) -> Tensor:
    """The outputs at other parameters and buffers, flat, in float64."""
    with evaluated_at(objective, 0, content, state) as batch:
        outputs = [t for t in tree_leaves(outputs_of(objective, batch)) if isinstance(t, Tensor)]
        return torch.cat([t.detach().flatten().cpu().double() for t in outputs])
