"""Whether a loss adds over samples without saying so, as a lambda around a summed criterion does."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from .batches import Batch, batch_length, take

if TYPE_CHECKING:
    from .objective import Objective

__all__ = ["adds_over_samples"]


def adds_over_samples(objective: Objective, batch: Batch) -> bool:
    """Seen on a batch and its two halves: a sum is what they add up to, a mean is not.

    Inside the objective's isolation; three forward passes. A batch that cannot be cut shows nothing.
    """
    try:
        n = batch_length(batch.content)
        parts = [take(batch.content, torch.arange(n)[half]) for half in (slice(n // 2), slice(n // 2, n))]
        values = []
        for content in (batch.content, *parts):
            with objective.evaluation(0, content) as copy_of_it:
                values.append(float(objective.loss(objective.model, copy_of_it).detach()))
    except Exception:
        return False  # it says what is wrong with it when it is evaluated
    whole, added = values[0], values[1] + values[2]
    return n >= 2 and math.isclose(whole, added, rel_tol=1e-4) and not math.isclose(whole, added / 2, rel_tol=0.1)
