"""Whether the loss of a batch is the mean of its samples' losses, or a loss of the batch, whose size then matters.

Contrastive losses compare the samples of a batch, and batch statistics mix them. The Hessian of such a loss on all of
``data=`` at once is another one than that of training, which takes the mean over mini-batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from losscope.landscape import Objective
from losscope.landscape.groups import lengths_of, part
from losscope.landscape.space import generator_for

__all__ = ["batch_facts", "batchwise_figures", "why_batchwise"]

MATERIAL = 1.2
"""Factor between the losses of mini-batches and of the same samples together that is no matter of statistics alone."""

SUMS = 1e-3
"""Relative; to this the losses of mini-batches make that of all of them where it is a sum, though nobody said so."""

MOST = 8
"""Mini-batches that are compared."""

DRAWS = 4
"""Of the random numbers in the loss, where both are apart."""

BEYOND = 2.0
"""Times that they must be further apart than these put each."""


def batch_facts(objective: Objective, batch_size: int | None) -> dict[str, Any]:
    """The loss in mini-batches, in units of that of the same samples at once, where it is materially another.

    Or that it is a sum. Nothing where batches of ``data=`` are no larger than those of training: the mean over them is
    what is measured.

    Args:
        objective: the objective.
        batch_size: of training.

    Raises:
        Exception: where batches cannot be cut.
    """
    if batch_size is None or objective.loss.summed:
        return {}
    lengths = lengths_of(objective)
    count = min(lengths[0] // batch_size, MOST)
    if count < 2:
        return {}
    order = torch.randperm(count * batch_size, generator=generator_for(0, torch.device("cpu")))
    whole, apart = (_Loss(objective, order, size, lengths) for size in (len(order), batch_size))
    one, other = whole(0), apart(0)
    if not (0 < one < math.inf and 0 < other < math.inf) or 1 / MATERIAL <= other / one <= MATERIAL:
        return {}
    if abs(count * other / one - 1) <= SUMS:
        return {"summed": True}
    ones, others = ([loss(draw) for draw in range(DRAWS)] for loss in (whole, apart))
    ratio = sum(others) / sum(ones)
    if abs(sum(others) - sum(ones)) / DRAWS <= BEYOND * max(max(ones) - min(ones), max(others) - min(others)):
        return {}
    return {"batchwise": ratio, "batchwise_of": len(order)}


class _Loss:
    """The loss of some samples, in batches of a size; of draws of its random numbers."""

    def __init__(self, objective: Objective, order: Tensor, size: int, lengths: list[int]) -> None:
        self._pieces = [part(objective, some.sort().values, lengths, {}) for some in order.split(size)]
        self._weights = [sum(batch.weight for batch in piece.batches) for piece in self._pieces]

    def __call__(self, draw: int) -> float:
        first = draw * len(self._pieces)
        values = [piece.snapshot(first + i).value() for i, piece in enumerate(self._pieces)]
        return sum(w * value for w, value in zip(self._weights, values, strict=True)) / sum(self._weights)


def batchwise_figures(facts: Mapping[str, Any]) -> str | None:
    """How the loss of training's mini-batches compares with what is measured, or None where it is no other."""
    ratio = facts.get("batchwise")
    if ratio is None or facts.get("full_batch"):
        return None
    return (
        f"in mini-batches of {facts.get('batch_size')} it is {ratio:.2g} times that of {facts.get('batchwise_of')} "
        "samples at once"
    )


def why_batchwise(facts: Mapping[str, Any]) -> str | None:
    """Why what is measured on all samples at once is not what mini-batches train, or None."""
    figures = batchwise_figures(facts)
    if figures is None:
        return None
    return (
        f"the loss of a batch is not the mean of its samples' losses: {figures} (it compares them, or takes their "
        "statistics); pass data= in batches as large as those of training"
    )
