"""Hessian-vector products by double backward, on gradient graphs that are built once and kept.

Pearlmutter (1994): ``H v`` is the gradient of ``<grad L, v>``. The graph of the gradient serves every
vector of a block, and where it fits (`graphs`) every product of a Krylov run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..complex_parts import as_real
from ..objective import Objective
from ..space import contiguous_rows
from .graphs import BatchGraphs
from .once import refuse_once_differentiable, second_order_errors
from .replay import MOST, BackwardPass

__all__ = ["Gradient", "Retained", "allowed_distance"]


def allowed_distance(objective: Objective) -> float:
    """How far from double backward's another exact kernel's products may be, relative: some rounding more."""
    return max(3 * math.sqrt(torch.finfo(objective.space.dtype).eps), 32 * objective.space.rounding)


class Gradient(NamedTuple):
    """The gradient of one batch's loss, with its graph.

    Attributes:
        loss: the batch's loss times its share.
        tensors: its gradient, one tensor per parameter.
        live: positions of those that depend on the parameters; the others have no graph, and a Hessian of zero.
        heads: these.
        backward: the map ``v -> H v`` of this batch's loss, of one vector.
    """

    loss: Tensor
    tensors: list[Tensor]
    live: list[int]
    heads: tuple[Tensor, ...]
    backward: BackwardPass


class _GradientGraphs(BatchGraphs[Gradient]):
    """The graphs of all batches' gradients."""

    def __init__(self, objective: Objective, memory: int | None = None) -> None:
        super().__init__(objective, memory)
        self.planned = 0  # products with one graph that are known to come
        self._checked = False

    def _build(self, index: int, share: float) -> Gradient:
        loss = self.objective.batch_loss(index)
        if not self._checked:
            refuse_once_differentiable(loss, self.objective)
            self._checked = True
        loss = loss if share == 1.0 else share * loss
        tensors = self.objective.gradients(loss, create_graph=True)
        live = [i for i, g in enumerate(tensors) if g.requires_grad]
        heads = tuple(tensors[i] for i in live)
        parameters = tuple(self.objective.parameters.values())
        # Recording is not repaid where a graph is thrown away after each block.
        limit = min(MOST, self._allowed()) // len(self.objective.batches) if self._keeps else 0
        backward = BackwardPass(heads, live, parameters, self.objective.space, self.planned if limit else 0, limit)
        return Gradient(loss, tensors, live, heads, backward)


class Retained:
    """The map ``V -> H V``, (n, k) -> (n, k), of an objective at the parameters' present values.

    Args:
        objective: what is differentiated.
        memory: bytes that kept graphs may take; with several batches, they are built for each block
            of vectors where together they take more.
    """

    name = "retained"

    def __init__(self, objective: Objective, memory: int | None = None) -> None:
        self.objective = objective
        self.graphs = _GradientGraphs(objective, memory)
        self._parameters = tuple(objective.parameters.values())

    def __call__(self, V: Tensor) -> Tensor:
        """H V for a block of vectors V (n, k).

        Raises:
            DoubleBackwardError: if the model or the loss has no second derivative in torch.
            SettingError: if the memory allowed is less than the graph of one batch takes.
        """
        _ = self.objective.batches  # reading them is an exchange of its own between ranks
        return self.objective.ranks.total(lambda: self.own(V))

    def own(self, V: Tensor) -> Tensor:
        """What this rank's batches contribute to H V: (n, k) -> (n, k)."""
        out: Tensor | None = None
        with self.objective.isolated(), second_order_errors(self.objective):
            rows = contiguous_rows(V)
            for gradient in self.graphs:
                if gradient.live:
                    out = self._times(gradient, rows) if out is None else self._added(out, gradient, rows)
        return torch.zeros_like(rows).T if out is None else out.T

    def value_and_gradient(self) -> tuple[float, Tensor]:
        """The objective's value and gradient (n,), from graphs that are kept, where they are: products need them."""
        return self.objective.over_ranks(self._own_value_and_gradient)

    def _own_value_and_gradient(self) -> tuple[Tensor, Tensor]:
        objective = self.objective
        with objective.isolated(), second_order_errors(objective):
            if not self.graphs.keeps:
                return objective.own_value_and_gradient()
            space = objective.space
            value = torch.zeros((), dtype=torch.float64, device=space.device)
            total = torch.zeros(space.size, dtype=space.dtype, device=space.device)
            for gradient in self.graphs:
                value += gradient.loss.detach()
                total += space.flatten([g.detach() for g in gradient.tensors])
        return value, total

    def _times(self, gradient: Gradient, rows: Tensor) -> Tensor:
        """This batch's H v for every row of (k, n), as rows."""
        if rows.shape[0] == 1:
            return gradient.backward(rows[0])[None]
        return torch.stack([gradient.backward(row) for row in rows])

    def _added(self, out: Tensor, gradient: Gradient, rows: Tensor) -> Tensor:
        """``out`` with the products of a further batch, each added as it comes: no block of them is put together."""
        for total, row in zip(out, rows, strict=True):
            total.add_(gradient.backward(row))
        return out

    def blocks(self, V: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
        """The products of disjoint diagonal blocks: (n, k) -> (n, k), zero outside them.

        Each takes the way from its own gradients to its own parameters through the graph, and no other.

        Args:
            V: (n, k).
            groups: positions in ``space.names`` of each block's parameters.
        """
        _ = self.objective.batches
        return self.objective.ranks.total(lambda: self._own_blocks(V, groups))

    def _own_blocks(self, V: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
        space = self.objective.space
        rows = contiguous_rows(V)
        out = torch.zeros_like(rows)
        with self.objective.isolated(), second_order_errors(self.objective):
            for gradient in self.graphs:
                for row, result in zip(rows, out, strict=True):
                    pieces, results = space.unflatten(row), result.split(space.numels)
                    for group in groups:
                        self._add_block(gradient, pieces, results, group)
        return out.T

    def _add_block(
        self, gradient: Gradient, pieces: list[Tensor], results: Sequence[Tensor], group: Sequence[int]
    ) -> None:
        live = [i for i in group if gradient.tensors[i].requires_grad]
        if not live:
            return
        products = torch.autograd.grad(
            [gradient.tensors[i] for i in live],
            [self._parameters[i] for i in group],
            [pieces[i] for i in live],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        for i, product in zip(group, products, strict=True):
            results[i].add_(as_real(product).reshape(-1))
