"""Hessian-vector products of a whole block in one pass over the kept gradient graph."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import KernelError, first_line
from ..objective import Objective
from .graphs import default_memory
from .once import is_second_order
from .retained import Gradient, Retained

__all__ = ["Batched"]


class Batched(Retained):
    """`Retained`, with all vectors of a block pulled back together (``is_grads_batched``, a vmap).

    Worth it where launches dominate; on a CPU it can be many times slower than one vector after the other
    (convolutions), which is why it is measured before it is chosen.

    Args:
        objective: what is differentiated.
        memory: bytes that the kept graphs, and the vectors computed together, may take.
    """

    name = "batched"

    def __init__(self, objective: Objective, memory: int | None = None) -> None:
        super().__init__(objective, memory)
        self._chunk = 0

    def _times(self, gradient: Gradient, rows: Tensor) -> Tensor:
        parts, first = [], 0
        while first < len(rows):
            chunk = rows[first : first + (self._chunk or self._fitting())]
            try:
                parts.append(self._pulled_back_together(gradient, chunk))
            except torch.OutOfMemoryError:
                if len(chunk) == 1:
                    raise
                self._chunk = len(chunk) // 2
                continue
            first += len(chunk)
        return torch.cat(parts)

    def _added(self, out: Tensor, gradient: Gradient, rows: Tensor) -> Tensor:
        return out.add_(self._times(gradient, rows))

    def _fitting(self) -> int:
        """How many vectors at once: each is taken to need as much memory as the graph it passes through."""
        allowed = self.graphs.memory or default_memory(self.objective.space.device)
        self._chunk = max(1, allowed // max(self.graphs.bytes_of_one(), 1))
        return self._chunk

    def _pulled_back_together(self, gradient: Gradient, rows: Tensor) -> Tensor:
        pieces = self.objective.space.unflatten_rows(rows)
        try:
            products = torch.autograd.grad(
                gradient.heads,
                self._parameters,
                [pieces[i] for i in gradient.live],
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=True,
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if is_second_order(error):
                raise
            raise KernelError(
                f"torch cannot pull several vectors back together here ({first_line(error)}); pass "
                'kernel="retained", or leave the choice to "auto"'
            ) from error
        return self.objective.space.flatten_rows(
            [
                p.new_zeros(len(rows), *p.shape) if g is None else g
                for p, g in zip(self._parameters, products, strict=True)
            ]
        )
