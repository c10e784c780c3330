"""One point after the other, by the plain forward pass, in buffers that are reused and exchanged by reference."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..elsewhere import elsewhere
from ..isolation import unchanged
from ..kernels.functional import traceable
from ..objective import Objective
from ..reach import all_modules
from .batch_statistics import resolved_statistics, statistics_at
from .marks import marks
from .metrics import Measured
from .span import Span

__all__ = ["OneByOne"]


class OneByOne:
    """Evaluates points one by one. Besides the model and the axes it holds a single point.

    Args:
        measured: what is measured.
        span: where the points are.
        statistics: how normalisation layers take their statistics.
        source: the objective whose data they are recomputed from; default: that which is measured.
    """

    name = "one by one"

    def __init__(
        self, measured: Measured, span: Span, statistics: str = "kept", source: Objective | None = None
    ) -> None:
        self.measured, self.span, self._source = measured, span, source
        self.statistics, self.note = resolved_statistics(measured.objective, statistics)
        self.gradients = True  # on, as in `Objective.value`, until it is seen that the loss needs none
        self._alters = True  # whether a pass alters the modules' state, until it is seen that none does
        self._modules = all_modules([measured.objective.model, *measured.objective.also])
        self._buffers: list[Tensor] = []
        self._shares: list[Tensor] = []
        self._watched = self._seen = False  # whether passes are watched, and one was seen to alter something

    def center(self) -> Tensor:
        """At the origin, (m,) float64 on the host; its loss is `Objective.value` to the bit."""
        with contextlib.ExitStack() as stack:
            if self.span.live:
                stack.enter_context(self.measured.objective.isolated())
            else:
                stack.enter_context(self._moved())
                self.span.write([0.0] * len(self.span.axes), self._buffers)
            return self._here().cpu()

    def __call__(self, coordinates: Tensor) -> Tensor:
        """At points with coordinates (G, k): (G, m) float64 on the host."""
        if not len(coordinates):
            return torch.empty(0, len(self.measured.names), dtype=torch.float64)
        if not self._alters:
            objective = self.measured.objective
            with self._moved(), unchanged(objective.model, objective.also):
                before = marks(self._modules)
                found = self._at(coordinates)
                if marks(self._modules) == before:
                    return found
            self._alters = True  # it does so away from the origin
        with self._moved():
            return self._at(coordinates)

    def _at(self, coordinates: Tensor) -> Tensor:
        rows = []
        for point in coordinates.tolist():
            self.span.write(point, self._buffers)
            rows.append(self._here())
        return torch.stack(rows).cpu()

    def at(self, vector: Tensor) -> Tensor:
        """At a point given as a vector (n,): (m,) float64 on the host."""
        with self._moved():
            for target, piece in zip(self._buffers, self.span.space.unflatten(vector), strict=True):
                target.copy_(piece)
            return self._here().cpu()

    def spare_gradients(self, center: Tensor) -> None:
        """From now on without graphs, if the values at the origin, (m,), are the same without.

        Nor are the modules put back after each pass, if one leaves them as they are.
        """
        self.gradients, self._watched = False, True
        try:
            again = self.center()
        except RuntimeError:  # a penalty on the gradient needs them
            self.gradients = True
        else:
            self.gradients = not torch.allclose(again, center, rtol=1e-6, atol=0, equal_nan=True)
            self._alters = self._seen
        finally:
            self._watched = False

    def bytes_of_one(self) -> float:
        """What the first batch's tensors take, as far as a backward pass keeps them; infinite where none can say."""
        objective, seen, total = self.measured.objective, {p.untyped_storage().data_ptr() for p in self.span.origin}, 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            storage = tensor.untyped_storage()
            total += storage.nbytes() if storage.data_ptr() not in seen else 0
            seen.add(storage.data_ptr())
            return tensor.detach()  # itself it would keep its graph alive for good: a cycle through C++

        try:
            with (
                objective.isolated(),
                objective.evaluation(0) as batch,
                torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
            ):
                self.measured.of_batch(objective.model, batch)
        except RuntimeError:  # torch.func inside the loss allows no hooks
            return math.inf
        return total

    @contextlib.contextmanager
    def _moved(self) -> Iterator[None]:
        objective = self.measured.objective
        with objective.isolated():  # first, so that the buffers are no tensors of inference mode
            self._buffers = self._buffers or [torch.empty_like(p) for p in self.span.origin]
            with elsewhere(objective, self._buffers):
                yield

    def _here(self) -> Tensor:
        """Where the parameters are now, (m,) on the device."""
        objective = self.measured.objective
        self._shares = self._shares or list(self.measured.shares())
        total = torch.zeros_like(self._shares[0])
        with contextlib.ExitStack() as stack:
            if self.statistics != "kept":
                self.note = stack.enter_context(statistics_at(objective, self.statistics, source=self._source))
            if not self.gradients:
                stack.enter_context(traceable())
                stack.enter_context(torch.no_grad())
            evaluation = objective.evaluation if self._alters else objective.single_pass
            for index, share in enumerate(self._shares):
                with evaluation(index) as batch:
                    total += share * self._of_batch(batch)
        return total

    def _of_batch(self, batch: Any) -> Tensor:
        objective = self.measured.objective
        if not self._watched:
            return self.measured.of_batch(objective.model, batch).detach()
        before = marks(self._modules)
        found = self.measured.of_batch(objective.model, batch).detach()
        self._seen = self._seen or marks(self._modules) != before
        return found
