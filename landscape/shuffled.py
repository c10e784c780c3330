"""The same objective with its labels shuffled: the curvature of a loss that has nothing to tell."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from .batches import concatenated, tensors_of
from .errors import DataError, LossError, SettingError
from .objective import Objective
from .space import generator_for

__all__ = ["shuffled_labels"]


def shuffled_labels(objective: Objective, seed: int | torch.Generator | None = None) -> Objective:
    """The same model, inputs and criterion, with the targets of all batches in random order.

    Its extreme eigenvalues are a null for those of the objective: what is not beyond them needs no relation
    between inputs and labels (`outliers`, ``null=``). **What it can tell**: the Gauss-Newton matrix of
    cross-entropy and of squared loss does not depend on the labels at all, so that of a model and its outputs it
    stays; only the part of the Hessian that is weighted by residuals changes, and on a model that fits its labels it
    becomes large. So this null asks whether an outlier of the Hessian is more than wrong labels would make at the
    same weights. For what training on labels without meaning makes, train on them, and pass the result as null.

    Args:
        objective: with a ``criterion``; its targets must be tensors of one shape but for the number of samples.
        seed: int, generator, or None for fresh entropy; the global stream is never used.

    Raises:
        LossError: if the objective hides its targets in a ``loss_fn``.
        DataError: if targets of different batches do not go together.
        SettingError: if the objective's samples have weights.

    Example:
        >>> import torch
        >>> from losscope.landscape import Hessian, Objective, shuffled_labels, top_eigenpairs
        >>> data = (torch.eye(4), torch.arange(4) // 2)
        >>> objective = Objective(torch.nn.Linear(4, 2), data, criterion=torch.nn.CrossEntropyLoss())
        >>> null = top_eigenpairs(Hessian(shuffled_labels(objective, seed=0)), seed=0)
    """
    objective.ranks.refuse_parts("shuffling the labels of the data")
    loss = objective.loss
    if loss.criterion is None:
        raise LossError("labels are shuffled in the targets, and a loss_fn hides them: pass criterion= instead")
    contents = [batch.content for batch in objective.batches]
    if any(batch.sample_weights is not None for batch in objective.batches):
        raise SettingError("the objective's samples have weights; pass the objective that it was made from")
    targets = [loss.targets_of(content) for content in contents]
    together = concatenated(targets) if all(tensors_of(t) for t in targets) else None
    if not isinstance(together, Tensor):
        raise DataError(
            "targets cannot be shuffled: they are not tensors, or of shapes that differ between batches (padding of "
            "other lengths); pass targets= that returns one tensor per batch"
        )
    generator = generator_for(seed, torch.device("cpu"))
    order = torch.randperm(len(together), generator=generator).to(together.device)
    pieces = together[order].split([len(t) for t in targets])

    def forward(model: nn.Module, batch: Any) -> Any:
        return loss.outputs(model, batch[0])

    weight = loss.weight
    fresh = objective.snapshot(0)
    fresh.loss = dataclasses.replace(
        loss, forward=forward, targets=lambda batch: batch[1],
        weight=None if weight is None else lambda batch: weight(batch[0]),
    )  # fmt: skip
    fresh.data, fresh.kept = list(zip(contents, pieces, strict=True)), {}
    return fresh
