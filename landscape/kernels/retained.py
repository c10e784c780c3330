"""Hessian-vector products by double backward, on a gradient graph that is built once and kept.

Pearlmutter (1994): ``H v`` is the gradient of ``<grad L, v>``. With one batch the graph of the gradient
is kept for all products; with several, each batch's graph is built once per block of vectors.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import DoubleBackwardError
from ..objective import Objective

__all__ = ["RetainedGraph"]

_NO_SECOND_ORDER = ("derivative for", "double backward", "not implemented", "not differentiable", "checkpoint")


class RetainedGraph:
    """The map ``V -> H V``, (n, k) -> (n, k), of an objective at the parameters' present values.

    The graph is rebuilt when the parameters have been changed since.

    Args:
        objective: what is differentiated.
    """

    name = "retained"

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._graph: tuple[Tensor, list[Tensor]] | None = None
        self._point: list[tuple[int, int]] = []

    def __call__(self, V: Tensor) -> Tensor:
        """H V for a block of vectors V (n, k).

        Raises:
            DoubleBackwardError: if the model or the loss has no second derivative in torch.
        """
        rows = V.T.contiguous()
        out = torch.zeros_like(rows)
        with self.objective.isolated(), _second_order_errors():
            for _, gradients in self._graphs():
                self._accumulate(gradients, rows, out)
        return out.T

    def value_and_gradient(self) -> tuple[float, Tensor]:
        """The objective's value and gradient (n,), from the kept graph where there is one."""
        if len(self.objective.batches) > 1:
            return self.objective.value_and_gradient()
        with self.objective.isolated(), _second_order_errors():
            loss, gradients = next(self._graphs())
        return float(loss.detach()), self.objective.space.flatten([g.detach() for g in gradients])

    def _graphs(self) -> Iterator[tuple[Tensor, list[Tensor]]]:
        shares = self.objective.shares
        if len(shares) > 1:
            for i, share in enumerate(shares):
                yield self._build(i, share)
            return
        point = [(p.data_ptr(), p._version) for p in self.objective.parameters.values()]
        if self._graph is None or point != self._point:
            self._graph, self._point = None, point  # free the old one before building the new one
            self._graph = self._build(0, shares[0])
        yield self._graph

    def _build(self, index: int, share: float) -> tuple[Tensor, list[Tensor]]:
        loss = self.objective.batch_loss(index)
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


class _second_order_errors:
    """Turn torch's many ways of saying "no double backward" into one error that says what to do."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError | DoubleBackwardError):
            return
        if any(phrase in str(error).lower() for phrase in _NO_SECOND_ORDER):
            raise DoubleBackwardError(
                "the model or the loss has an operation that torch cannot differentiate twice "
                f"({str(error).splitlines()[0]}). Attention through torch's own functions, compiled modules and cuDNN "
                "RNNs are handled; use non-reentrant checkpointing (use_reentrant=False), and plain operations in "
                "place of custom kernels"
            ) from error
