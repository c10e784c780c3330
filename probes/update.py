"""What the update at a measurement was, and how far along it the loss falls."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from losscope.landscape import Estimate, Objective
from losscope.landscape.stability import critical_sharpness

__all__ = ["Update", "sharpness_along"]

EVALUATIONS = 10
"""Most forward passes for the critical sharpness; mostly it takes three."""

ACCURACY = 0.1
"""Relative half-width to which it is bracketed: it is evidence, and no verdict."""


class Update:
    """The update that has just been made, while the optimizer has not moved on.

    Args:
        objective: whose parameters it is looked at in.
        before: values before the update, of these parameters at least. Those after it are the live ones, which are
            referred to and not copied.
    """

    def __init__(self, objective: Objective, before: Mapping[nn.Parameter, Tensor]) -> None:
        self._space = objective.space
        parameters = list(objective.parameters.values())
        self._pairs: list[tuple[Tensor, Tensor]] | None = None
        if all(p in before for p in parameters):  # not where the objective is of what the optimizer does not move
            self._pairs = [(before[p], p.detach()) for p in parameters]

    def vector(self) -> Tensor | None:
        """``w_{t+1} - w_t``, (n,); None once the measurement is over, when the live weights may move on."""
        if self._pairs is None:
            return None
        with torch.no_grad():
            return self._space.flatten([after - before for before, after in self._pairs])

    def forget(self) -> None:
        """The measurement is over."""
        self._pairs = None


def sharpness_along(
    objective: Objective,
    update: Tensor | None,
    lr: float | None,
    begin: float | None = None,
    start: float | None = None,
    gradient: Tensor | None = None,
) -> Estimate | None:
    """The critical sharpness along an update made at one rate, by forward passes alone.

    Args:
        objective: at the weights before the update.
        update: (n,) the update; None where it is not known.
        lr: its rate; None where parameter groups differ.
        begin: the rate to begin the search at; None for that of the update.
        start: the loss before the update, as `Objective.value` has it; None where that is not known.
        gradient: (n,) the objective's, before the update; None where that is not known.

    Returns:
        See `losscope.landscape.stability.critical_sharpness`; its lower end is 0 where every step that was tried lowers
        the loss. None where there was no one rate, or no update, or none that begins downhill, as far as so many
        evaluations show.
    """
    if update is None or lr is None or not 0 < lr < math.inf:
        return None
    if not bool(torch.isfinite(update).all()) or not bool(update.any()):
        return None
    direction = update / lr
    slope = None if gradient is None else float(torch.dot(gradient, direction.to(gradient)))
    found = critical_sharpness(
        objective, direction, rate=begin or lr, rtol=ACCURACY, max_evaluations=EVALUATIONS, start=start, slope=slope
    )
    return found if found.high < math.inf else None
