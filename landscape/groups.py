"""The samples of an objective in groups: what the loss is on a part of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .batches import batch_length, concatenated, take
from .errors import LossError, SettingError
from .objective import Objective

__all__ = ["Group", "cut", "deal", "lengths_of", "part"]

_ADDS_UP = 1e-3  # relative; to this the losses of the groups must make the objective's


@dataclass(frozen=True, eq=False)
class Group:
    """Some of the samples.

    Attributes:
        objective: the loss on them alone.
        size: how many.
        share: of the whole objective.
        scale: what multiplies their curvature so that it estimates the whole's.
    """

    objective: Objective
    size: int
    share: float
    scale: float


def lengths_of(objective: Objective) -> list[int]:
    """Samples in each batch.

    Raises:
        DataError: if a batch does not show how many it holds.
        SettingError: if samples have weights, of which a part of them keeps none, or lie on several ranks.
    """
    objective.ranks.refuse_parts("what takes samples out of the data")
    if any(batch.sample_weights is not None for batch in objective.batches):
        raise SettingError("the objective's samples have weights; pass the objective that it was made from")
    return [batch_length(batch.content) for batch in objective.batches]


def deal(objective: Objective, groups: int, generator: torch.Generator) -> list[Group]:
    """All samples, dealt at random into an even number of groups no larger than a batch.

    Raises:
        LossError: if their losses do not make the objective's.
    """
    lengths = lengths_of(objective)
    samples = sum(lengths)
    count = min(max(groups, math.ceil(samples / max(lengths))) + 1, samples) // 2 * 2
    order = torch.randperm(samples, generator=generator, device=generator.device).cpu()
    kept: dict[Any, Any] = {}  # what is found out about kernels, for all groups but not for the whole
    hands = order.tensor_split(count)
    alone = [part(objective, hand.sort().values, lengths, kept) for hand in hands]
    whole, values = objective.value(), [some.value() for some in alone]
    by_weight = [sum(batch.weight for batch in some.batches) for some in alone]
    by_size = [float(len(hand)) for hand in hands]
    for summed in dict.fromkeys((objective.loss.summed, True)):  # one batch does not show that its loss is a sum
        weights = by_size if summed else by_weight
        shares = [weight / sum(weights) for weight in weights]
        scales = [1 / share if summed else 1.0 for share in shares]
        terms = [p * c * value for p, c, value in zip(shares, scales, values, strict=True)]
        if abs(sum(terms) - whole) <= _ADDS_UP * sum(map(abs, terms)):
            found = zip(alone, map(len, hands), shares, scales, strict=True)
            return [Group(*each) for each in found]
    raise LossError(
        f"the losses of groups of samples do not make the objective's value {whole:.6g}: their mean is "
        f"{sum(v * w for v, w in zip(values, by_weight, strict=True)) / sum(by_weight):.6g}. The loss of a sample "
        'depends on its batch (batch statistics, dropout, a loss that compares samples); try mode="eval" or '
        '"train_frozen"'
    )


def part(objective: Objective, chosen: Tensor, lengths: list[int], kept: dict[Any, Any]) -> Objective:
    """The objective on the samples ``chosen`` of all batches laid end to end."""
    contents = [content for _, content in cut(objective, chosen, lengths)]
    joined = concatenated(contents)
    some = objective.snapshot(0)
    some._weights = None  # those of the samples are in the contents
    some.data, some.kept = contents if joined is None else [joined], kept
    return some


def cut(objective: Objective, chosen: Tensor, lengths: list[int]) -> list[tuple[int, Any]]:
    """The samples ``chosen`` of all batches laid end to end: index and content of the part of each batch."""
    if len(lengths) == 1:
        return [(0, take(objective.batches[0].content, chosen))]
    found, first = [], 0
    for index, length in enumerate(lengths):
        inside = chosen[(chosen >= first) & (chosen < first + length)] - first
        first += length
        if len(inside):
            found.append((index, take(objective.batches[index].content, inside)))
    return found
