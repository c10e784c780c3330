"""Activation matching: hidden units of two networks that answer alike to the same data go together.

Li et al., "Convergent learning", 2016 (arXiv:1511.07543); Ainsworth et al., "Git Re-Basin", 2023 (arXiv:2209.04836),
section 3.1. What is correlated is what the next layer reads of the units, after their nonlinearity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..batches import batch_length, take, without_weights
from ..objective import Objective
from .finite_points import in_double
from .unit_algebra import Units, positions, renewed, resolved
from .unit_groups import HiddenUnits
from .unit_passes import evaluated_at, few_samples, traced
from .weight_matching import best_order

__all__ = ["match_activations"]

_SAMPLES = 64  # at a time


def match_activations(
    objective: Objective, hidden: HiddenUnits, first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Orders of the groups that a pass over the data shows, by name: (size,) int64 each.

    Units are matched by the correlation of their activations over all samples and positions, averaged over the layers
    that read them. Groups that nothing sums over, and such as share a dimension with another (attention heads and
    their coordinates), are not among the result.

    Args:
        objective: model and data, in mode "eval".
        hidden: the groups.
        first: parameters and buffers by name.
        second: likewise.
    """
    sums: dict[tuple[str, int], _Sums] = {}
    with objective.isolated():
        cut = few_samples(objective) is not objective.batches[0].content
        for index, batch in enumerate(objective.batches):
            for part in _parts(batch.content, cut):
                mine, others = (_read(objective, index, part, hidden, state) for state in (first, second))
                for (group, k, x), (_, _, y) in zip(mine, others, strict=True):
                    sums.setdefault((group, k), _Sums(x)).add(x, y)
    similarity: dict[str, Tensor] = {}
    for (group, _), found in sums.items():
        similarity[group] = similarity.get(group, 0) + found.correlations()
    return {group: best_order(total) for group, total in similarity.items()}


def _parts(content: Any, cut: bool) -> Iterator[Any]:
    """A batch in parts of which all activations may be held at once, where it can be cut."""
    if not cut:
        yield content
        return
    for index in torch.arange(batch_length(without_weights(content))).split(_SAMPLES):
        yield take(content, index)


def _read(
    objective: Objective, index: int, content: Any, hidden: HiddenUnits, state: Mapping[str, Tensor]
) -> list[tuple[str, int, Tensor]]:
    """Activations (units, samples and positions) by group, with the how manieth reading of the group it is."""
    new: dict[Units, Units] = {}
    known = {name: [renewed(i, new) for i in indices] for name, indices in hidden.indices.items()}
    with evaluated_at(objective, index, content, state) as batch:
        readings = traced(objective, batch, known).readings
    names = {resolved(new[group.units]): group.name for group in hidden.groups}
    counts, read = dict.fromkeys(names.values(), -1), []
    for tensor, dim, what in readings:
        found = positions(what)
        if len({units for units, _ in found}) != 1 or found[0][0] not in names:
            continue
        for units, entries in found:
            counts[names[units]] += 1
            taken = tensor.movedim(dim, 0).index_select(0, entries.flatten().to(tensor.device))
            read.append((names[units], counts[names[units]], in_double(taken.reshape(units.size, -1))))
    return read


class _Sums:
    """Moments of the activations of both networks."""

    def __init__(self, like: Tensor) -> None:
        self.count, size = 0, len(like)
        self.cross = like.new_zeros(size, size)
        self.linear = like.new_zeros(2, size)
        self.squares = like.new_zeros(2, size)

    def add(self, x: Tensor, y: Tensor) -> None:
        self.count += x.shape[1]
        self.cross += x @ y.T
        self.linear += torch.stack([x.sum(dim=1), y.sum(dim=1)])
        self.squares += torch.stack([x.square().sum(dim=1), y.square().sum(dim=1)])

    def correlations(self) -> Tensor:
        """(size, size); 0 for units that answer to nothing."""
        means = self.linear / self.count
        variances = self.squares / self.count - means.square()
        covariance = self.cross / self.count - means[0][:, None] * means[1]
        alive = variances > 1e-12 * self.squares / self.count
        scale = torch.where(alive, variances.clamp(min=0).sqrt(), torch.inf)
        return covariance / scale[0][:, None] / scale[1]
