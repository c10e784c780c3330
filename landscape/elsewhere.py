"""Evaluating an objective where its parameters are not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch import Tensor

from .objective import Objective

__all__ = ["elsewhere"]


@contextlib.contextmanager
def elsewhere(objective: Objective, values: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the parameters have these values, exchanged by reference; afterwards, whatever happens, their own.

    Args:
        objective: the objective, in its isolation or not.
        values: one tensor per parameter, in their order.
    """
    parameters = list(objective.parameters.values())
    before = [p.data for p in parameters]
    with objective.isolated():
        try:
            for p, value in zip(parameters, values, strict=True):
                p.data = value
            yield
        finally:
            for p, data in zip(parameters, before, strict=True):
                p.data = data
