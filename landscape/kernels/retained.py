"""Hessian-vector products by double backward, on a gradient graph that is built once and kept.

Pearlmutter (1994): ``H v`` is the gradient of ``<grad L, v>``. With one batch the graph of the gradient
is kept for all products; with several, each batch's graph is built once per block of vectors.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import DoubleBackwardError
from ..objective import Objective

__all__ = ["RetainedGraph"]

_NO_SECOND_ORDER = ("derivative for", "double backward", "not implemented", "not differentiable", "checkpoint")

_ONCE = once_differentiable(lambda ctx: None).__code__


class RetainedGraph:
    """The map ``V -> H V``, (n, k) -> (n, k), of an objective at the parameters' present values.

    The graph is rebuilt when a parameter has been changed since, chosen or not. A write through ``.data``
    leaves no mark on a tensor, so the chosen parameters are compared by value.

    Args:
        objective: what is differentiated.
    """

    name = "retained"

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._graph: tuple[Tensor, list[Tensor]] | None = None
        self._marks: list[tuple[int, int]] = []
        self._values: list[Tensor] = []
        self._checked = False
        self._isolation = 0

    def __call__(self, V: Tensor) -> Tensor:
        """H V for a block of vectors V (n, k).

        Raises:
            DoubleBackwardError: if the model or the loss has no second derivative in torch.
        """
        with self.objective.isolated(), _second_order_errors():
            rows = V.T.clone() if V.is_inference() else V.T.contiguous()
            out = torch.zeros_like(rows)
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
        if self._graph is not None and self._isolation == self.objective.isolations:
            yield self._graph
            return
        modules = (self.objective.model, *self.objective.also)
        marks = [(p.data_ptr(), p._version) for module in modules for p in module.parameters()]
        chosen = [p.detach() for p in self.objective.parameters.values()]
        if self._graph is None or marks != self._marks or not all(map(torch.equal, chosen, self._values)):
            self._graph = None  # free the old one before building the new one
            self._marks, self._values = marks, [p.clone() for p in chosen]
            self._graph = self._build(0, shares[0])
        self._isolation = self.objective.isolations
        yield self._graph

    def _build(self, index: int, share: float) -> tuple[Tensor, list[Tensor]]:
        loss = self.objective.batch_loss(index)
        if not self._checked:
            _refuse_once_differentiable(loss)
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


def _refuse_once_differentiable(loss: Tensor) -> None:
    """Refuse custom functions that say they can be differentiated once only.

    Torch's own error for them hangs on a branch of the graph that leads to no parameter, so that
    ``torch.autograd.grad`` does not visit it and returns a second derivative that lacks their part.

    Raises:
        DoubleBackwardError: if the graph of ``loss`` has one.
    """
    pending, seen = [loss.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        function = getattr(node, "_forward_cls", None)
        backward = getattr(function, "backward", None)
        if function is not None and getattr(backward, "__code__", None) is _ONCE:
            raise DoubleBackwardError(
                f"torch cannot differentiate twice through {function.__qualname__}: its backward is marked "
                "@once_differentiable; put plain operations in its place"
            )
        pending += [parent for parent, _ in node.next_functions]


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
