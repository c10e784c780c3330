"""Hessian-vector products by double backward, on gradient graphs that are built once and kept.

Pearlmutter (1994): ``H v`` is the gradient of ``<grad L, v>``. The graph of the gradient serves every
vector of a block, and where it fits (`graphs`) every product of a Krylov run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..objective import Objective
from .graphs import BatchGraphs
from .once import refuse_once_differentiable, second_order_errors

__all__ = ["Retained"]


class Retained:
    """The map ``V -> H V``, (n, k) -> (n, k), of an objective at the parameters' present values.

    Args:
        objective: what is differentiated.
        memory: bytes that the kept graphs of several batches may take.
    """

    name = "retained"

    def __init__(self, objective: Objective, memory: int | None = None) -> None:
        self.objective = objective
        self.graphs = BatchGraphs(objective, self._build, memory)
        self._checked = False

    def __call__(self, V: Tensor) -> Tensor:
        """H V for a block of vectors V (n, k).

        Raises:
            DoubleBackwardError: if the model or the loss has no second derivative in torch.
        """
        with self.objective.isolated(), second_order_errors():
            rows = V.T.clone() if V.is_inference() else V.T.contiguous()
            out = torch.zeros_like(rows)
            for _, gradients in self.graphs:
                self._accumulate(gradients, rows, out)
        return out.T

    def value_and_gradient(self) -> tuple[float, Tensor]:
        """The objective's value and gradient (n,), from the kept graph where there is one."""
        if len(self.objective.batches) > 1:
            return self.objective.value_and_gradient()
        with self.objective.isolated(), second_order_errors():
            loss, gradients = next(iter(self.graphs))
        return float(loss.detach()), self.objective.space.flatten([g.detach() for g in gradients])

    def _build(self, index: int, share: float) -> tuple[Tensor, list[Tensor]]:
        loss = self.objective.batch_loss(index)
        if not self._checked:
            refuse_once_differentiable(loss)
            self._checked = True
        loss = loss if share == 1.0 else share * loss
        return loss, self.objective.gradients(loss, create_graph=True)

    def _accumulate(self, gradients: list[Tensor], rows: Tensor, out: Tensor) -> None:
        """Add this batch's H v to every row of ``out``."""
        parameters = list(self.objective.parameters.values())
        # A gradient that does not depend on the parameters has no graph, and a Hessian of zero.
        live = [i for i, g in enumerate(gradients) if g.requires_grad]
        if not live:
            return
        heads = [gradients[i] for i in live]
        for row, result in zip(rows, out, strict=True):
            pieces = self.objective.space.unflatten(row)
            products = torch.autograd.grad(
                heads,
                parameters,
                [pieces[i] for i in live],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            result += self.objective.space.flatten(products)
