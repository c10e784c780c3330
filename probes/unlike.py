"""Whether the gradients of full-batch steps are those that are measured, and how they differ where they are not."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from losscope.landscape import DataError, Objective
from losscope.landscape.groups import lengths_of, part
from losscope.landscape.space import generator_for

from .records import Record
from .snapshot import Snapshot
from .window import SAME_GRADIENT, column, median

__all__ = ["Unlike", "covers_data", "unlike", "unlike_values"]

MATERIAL = 0.02
"""Difference of the gradients, relative to the run's largest, that is not rounding: half precision makes 0.01 of it."""

BEYOND = 4.0
"""Times that they differ by more than two draws of the objective's own do: of dropout masks, of batches' statistics."""


@dataclass(frozen=True)
class Unlike:
    """Steps of other gradients than those of ``data=``, though ``batch_size=`` covers all of it.

    Attributes:
        cosine: between both.
        scale: ratio of their lengths.
        by_layer: whether they have the same direction in each layer, so that layers were clipped one by one.
    """

    cosine: float
    scale: float
    by_layer: bool

    @property
    def figures(self) -> str:
        """Both numbers in words."""
        return f"cosine {self.cosine:.2f}, {self.scale:.2g} times as long"

    @property
    def reason(self) -> str:
        """What it is, and what to do, for a verdict that there cannot be."""
        if self.by_layer:
            return (
                f"gradients are clipped layer by layer: each keeps its direction and not its length ({self.figures} as "
                "a whole), and the thresholds are of whole ones; clip the norm of all, or measure without"
            )
        return (
            f"batch_size= covers data=, and yet steps are of other gradients ({self.figures}): of mini-batches (pass "
            "the batch_size= in use), of other or augmented data (pass those), of another loss (pass all of it, "
            "penalties too), or clipped in parts"
        )


# --------------------------------------------------------------------------- measured


def unlike_values(snapshot: Snapshot, match: tuple[float, float]) -> dict[str, float | None]:
    """What tells why a full-batch step's gradient differs from the objective's; nothing where it does not.

    ``gradient_cosine_by_layer``: the cosine with the objective's when each parameter tensor's part of it may have
    another length. ``gradient_redraw``: how far from one another two draws of the objective's own gradient are, of its
    random numbers and of the batches that its samples are in; it takes one gradient more.

    Args:
        snapshot: with a training gradient.
        match: `Snapshot.gradient_match`.
    """
    samples = None
    with contextlib.suppress(DataError):  # batches that do not show how many they hold
        samples = snapshot.objective.samples
    if not match[0] < SAME_GRADIENT or not covers_data({"batch_size": snapshot.batch_size, "samples": samples}):
        return {}
    used, own = snapshot.training_gradient, snapshot.gradient
    assert used is not None
    square = 0.0
    sizes = snapshot.objective.space.numels
    for a, b in zip(used.split(sizes), own.split(sizes), strict=True):
        inner, length = (float((x * b).sum(dtype=torch.float64)) for x in (a, b))
        square += inner**2 / length if length > 0 else 0.0
    norm = snapshot.training_gradient_norm
    values: dict[str, float | None] = {"gradient_cosine_by_layer": math.sqrt(square) / norm if norm else None}
    again = redrawn_gradient(snapshot.objective, snapshot._seed_of("redraw"))
    # A sum that shows only with several batches comes out as half of itself.
    apart = min(float(torch.linalg.vector_norm(c * again - own, dtype=torch.float64)) for c in (1.0, 2.0))
    return values | {"gradient_redraw": apart}


def redrawn_gradient(objective: Objective, seed: int) -> Tensor:
    """The gradient with other random numbers, and of the samples dealt into two batches where they can be dealt."""
    try:
        lengths = lengths_of(objective)
        order = torch.randperm(sum(lengths), generator=generator_for(seed, torch.device("cpu")))
        halves = [part(objective, hand.sort().values, lengths, {}) for hand in order.tensor_split(2) if len(hand)]
        halves = [half.snapshot(seed + i) for i, half in enumerate(halves)]
        weights = [sum(batch.weight for batch in half.batches) for half in halves]
        whole = 1.0 if objective.loss.summed else sum(weights)
        shares = [1.0 if objective.loss.summed else weight / whole for weight in weights]
        found = [share * half.gradient() for share, half in zip(shares, halves, strict=True)]
        return torch.stack(found).sum(dim=0)
    except Exception:  # batches that cannot be cut, or are too small for the loss then
        return objective.snapshot(seed).gradient()


# --------------------------------------------------------------------------- judged


def covers_data(facts: dict[str, Any]) -> bool:
    """Whether training's batch size was said to be all samples of ``data=``, or more."""
    batch, samples = facts.get("batch_size"), facts.get("samples")
    return batch is not None and samples is not None and batch >= samples


def unlike(window: Sequence[Record], everything: Sequence[Record], facts: dict[str, Any]) -> Unlike | None:
    """How full-batch steps' gradients differ from those of ``data=``; None where they do not, or it is not known.

    Dropout masks and batch statistics make them differ at random, and half precision by rounding, which late in
    training is much of a small gradient: such differences are left to noise.

    Args:
        window: the measurements that the audit rests on.
        everything: all measurements of the run, which show how large its gradients have been.
        facts: of the player, as `window.observed` completes them.
    """
    cosine, scale = facts.get("gradient_cosine"), facts.get("gradient_scale")
    if facts.get("full_batch") is not False or not covers_data(facts) or facts.get("mode_matters"):
        return None
    if cosine is None or scale is None:
        return None
    apart = median([distance for r in window if (distance := _distance(r)) is not None])
    largest = max(column(everything, "gradient_norm"), default=0.0)
    if apart is None or apart <= MATERIAL * largest:
        return None
    redraw = median(column(window, "gradient_redraw"))
    if redraw is not None and apart <= BEYOND * redraw:
        return None
    by_layer = median(column(window, "gradient_cosine_by_layer"))
    return Unlike(cosine, scale, by_layer is not None and by_layer >= SAME_GRADIENT)


def _distance(record: Record) -> float | None:
    """Of the gradient that was stepped with from the objective's."""
    values = record.values
    cosine, scale, norm = (values.get(name) for name in ("gradient_cosine", "gradient_scale", "gradient_norm"))
    if cosine is None or scale is None or norm is None:
        return None
    square = 1 - 2 * cosine * scale + scale**2
    return norm * math.sqrt(max(0.0, square)) if math.isfinite(square) and math.isfinite(norm) else None
