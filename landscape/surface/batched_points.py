"""Several points in one pass: `torch.func.vmap` over stacked parameters.

A small model on little data leaves a machine idle, whose time goes into launches and Python; the products of several
points are batched. What it finds must be compared with `OneByOne`'s: a loss may hold on to parameters, or draw random
numbers of its own.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from ..functional_call import FunctionalModule
from ..kernels.functional import traceable
from ..kernels.graphs import default_memory
from .batch_statistics import statistics_at
from .metrics import Measured
from .span import Span

__all__ = ["Batched"]


class Batched:
    """Evaluates several points at once.

    Args:
        measured: what is measured.
        span: where the points are.
        statistics: ``"kept"`` or ``"frozen"``; recomputing them is done point by point.
    """

    name = "batched"

    def __init__(self, measured: Measured, span: Span, statistics: str = "kept") -> None:
        self.measured, self.span, self.statistics = measured, span, statistics
        self._module = _OfBatch(measured)
        self._call = FunctionalModule(self._module)
        chosen = {id(p) for p in measured.objective.parameters.values()}
        self._names = [name for name, p in self._module.named_parameters() if id(p) in chosen]
        self._shares: Tensor | None = None

    def __call__(self, coordinates: Tensor) -> Tensor:
        """At points with coordinates (G, k), all at once: (G, m) float64 on the host.

        Raises:
            Exception: whatever torch raises about operations that cannot be vectorised.
        """
        objective = self.measured.objective
        with contextlib.ExitStack() as stack:
            stack.enter_context(objective.isolated())
            if self.statistics != "kept":
                stack.enter_context(statistics_at(objective, self.statistics))
            stack.enter_context(traceable())
            stack.enter_context(torch.no_grad())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # of operations that are vectorised slowly: the faster way is timed for
            return self._evaluated(self.span.stacked(coordinates)).cpu()

    def fitting(self, bytes_of_one: float) -> int:
        """Points that fit in a quarter of a GPU's free memory, or 256 MiB on a CPU.

        Args:
            bytes_of_one: what the tensors of one pass take.
        """
        weights = sum(t.nbytes for t in self.span.origin)
        buffers = sum(b.nbytes for b in self._written().values())
        return max(1, int(default_memory(self.span.space.device) / (2 * weights + buffers + bytes_of_one)))

    def _evaluated(self, values: list[Tensor]) -> Tensor:
        objective, count = self.measured.objective, len(values[0])
        if self._shares is None:
            self._shares = self.measured.shares()
        total = torch.zeros(count, self._shares.shape[1], dtype=torch.float64, device=self._shares.device)
        for index, share in enumerate(self._shares):
            with objective.evaluation(index) as batch:
                total += share * self._of_batch(values, self._own_buffers(count), batch)
        return total

    def _of_batch(self, values: list[Tensor], buffers: dict[str, Tensor], batch: Any) -> Tensor:
        def of_point(own: list[Tensor], written: dict[str, Tensor]) -> Tensor:
            tensors = {**written, **dict(zip(self._names, own, strict=True))}
            found: Tensor = self._call(tensors, (batch,))
            return found

        stacked: Tensor = vmap(of_point, randomness="same")(values, buffers)  # one dropout mask, as one by one
        return stacked

    def _own_buffers(self, count: int) -> dict[str, Tensor]:
        """One copy per point of what a pass may write on."""
        return {name: b.repeat(count, *[1] * b.ndim) for name, b in self._written().items()}

    def _written(self) -> dict[str, Tensor]:
        """Buffers that a forward pass in train mode may write on."""
        return {} if self.measured.objective.mode == "eval" else dict(self._module.named_buffers())


class _OfBatch(nn.Module):
    """What is measured of a batch, as a module whose tensors can be replaced."""

    def __init__(self, measured: Measured) -> None:
        super().__init__()
        self.model = measured.objective.model
        self.also = nn.ModuleList(measured.objective.also)
        self.measured = measured

    def forward(self, batch: Any) -> Tensor:
        return self.measured.of_batch(self.model, batch)
