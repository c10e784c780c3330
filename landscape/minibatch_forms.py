"""The gradients of mini-batches and the curvature along them: one after the other, or many in one vectorised pass.

A mini-batch of a few samples leaves a machine idle, whose time then goes into launches and Python. Vectorised over
mini-batches (`torch.func.vmap`), the forward pass is that of all their samples together, and gradients and products
are batched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value, vjp, vmap

from .batches import concatenated, map_tensors, take, tensors_of
from .errors import LossError
from .groups import cut, part
from .hessian import Hessian
from .kernels.finite_difference import FiniteDifference
from .kernels.functional import FunctionalLoss
from .kernels.once import second_order_errors
from .objective import Objective
from .space import VectorSpace

__all__ = ["Forms", "OneByOne", "Together", "Wanted", "joined"]


class Forms(NamedTuple):
    """What is found of k mini-batches, in float64, with the gradient g and the Hessian H of each and u = P^-1 g.

    Attributes:
        loss: (k,).
        square: (k,) ``|g|^2``.
        along: (k,) ``g'u``.
        form: (k,) ``u'Hu``.
        size: (k,) ``|u| |Hu|``, which the form is at most.
        gradients: (j, n), of the first j of them.
    """

    loss: Tensor
    square: Tensor
    along: Tensor
    form: Tensor
    size: Tensor
    gradients: Tensor


class Wanted(NamedTuple):
    """What is to be found of mini-batches.

    Attributes:
        objective: on all samples.
        lengths: samples in each of its batches.
        inverse: (n,) 1 / P; None for the identity.
        products: whether forms are wanted; else they and their sizes are zero.
    """

    objective: Objective
    lengths: list[int]
    inverse: Tensor | None = None
    products: bool = True


def joined(parts: Sequence[Forms]) -> Forms:
    """Of all the mini-batches."""
    return Forms._make(torch.cat(column) for column in zip(*parts, strict=True))


def _forms(rows: Tensor, gradients: list[Tensor], space: VectorSpace) -> Forms:
    kept = torch.stack(gradients) if gradients else torch.empty(0, space.size, dtype=space.dtype, device=space.device)
    return Forms._make([*rows.detach().T, kept.detach()])


# --------------------------------------------------------------------------- one by one


class OneByOne:
    """Each mini-batch on its own, by double backward, or differences of its gradient where torch has none.

    Args:
        wanted: what is to be found.
    """

    name = "one by one"

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self._kept: dict[Any, Any] = {}  # what finite differences find out, for all mini-batches
        self._differences: bool | None = None

    def __call__(self, chosen: Tensor, first: int, keep: int = 0) -> Forms:
        """Of the mini-batches ``chosen`` (k, B), the first of which is draw number ``first``.

        Args:
            chosen: positions of their samples in all batches laid end to end, each row ascending.
            first: random numbers, as for dropout masks, are those of the draw's number.
            keep: how many gradients are to be returned.
        """
        rows, gradients = [], []
        for i, samples in enumerate(chosen):
            row, g = self._one(samples, first + i)
            rows.append(row)
            if i < keep:
                gradients.append(g)
        return _forms(torch.stack(rows), gradients, self.wanted.objective.space)

    def _one(self, samples: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        objective, wanted = self.wanted.objective, self.wanted
        pieces = cut(objective, samples, wanted.lengths)
        together = concatenated([content for _, content in pieces]) if len(pieces) > 1 else None
        if together is not None:  # one mini-batch, as training sees it (batch statistics!)
            pieces = [(pieces[0][0], together)]
        loss, tensors = self._gradient(pieces, draw)
        g = objective.space.flatten([t.detach() for t in tensors])
        u = g if wanted.inverse is None else g * wanted.inverse
        Hu = self._product(samples, tensors, u) if wanted.products else torch.zeros_like(g)
        sums = [(x * y).sum(dtype=torch.float64) for x, y in ((g, g), (g, u), (u, Hu), (u, u), (Hu, Hu))]
        return torch.stack([loss.detach().double(), *sums[:3], (sums[3] * sums[4]).sqrt()]), g

    def _gradient(self, pieces: list[tuple[int, Any]], draw: int) -> tuple[Tensor, list[Tensor]]:
        """Loss and gradient, with its graph where products follow."""
        objective, graph = self.wanted.objective, self.wanted.products and not self.by_differences()
        weights = [1.0]
        if len(pieces) > 1 and not objective.loss.summed:  # shapes that do not go together
            found = [objective.loss.weight_of(content) for _, content in pieces]
            weights = [weight / (sum(found) or 1.0) for weight in found]
        elif len(pieces) > 1:
            weights = [1.0] * len(pieces)
        total: Tensor | None = None
        tensors: list[Tensor] = []
        for (index, content), weight in zip(pieces, weights, strict=True):
            if weight == 0:
                continue
            loss = objective.batch_loss(index, content, mask=draw)
            loss = loss if weight == 1.0 else weight * loss
            new = objective.gradients(loss, create_graph=graph)
            tensors = [a + b for a, b in zip(tensors, new, strict=True)] if tensors else new
            total = loss if total is None else total + loss
        if total is None:  # nothing counts in it, as in language-model mini-batches in which every token is ignored
            values = [torch.zeros_like(p) for p in objective.parameters.values()]
            return values[0].new_zeros(()), values
        return total, tensors

    def _product(self, samples: Tensor, tensors: list[Tensor], u: Tensor) -> Tensor:
        objective = self.wanted.objective
        if self.by_differences():
            return FiniteDifference(part(objective, samples, self.wanted.lengths, self._kept))(u[:, None])[:, 0]
        live = [i for i, t in enumerate(tensors) if t.requires_grad]
        if not live:
            return torch.zeros_like(u)
        parameters, pieces = list(objective.parameters.values()), objective.space.unflatten(u)
        with second_order_errors(objective):
            found = torch.autograd.grad(
                [tensors[i] for i in live], parameters, [pieces[i] for i in live],
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
        return objective.space.flatten(found)

    def by_differences(self) -> bool:
        """Whether products are differences of gradients."""
        if self._differences is None:
            whole = Hessian(self.wanted.objective)
            whole.plan(1, 1)
            self._differences = whole.kernel == FiniteDifference.name
        return self._differences


# --------------------------------------------------------------------------- together


class Together:
    """Many mini-batches in one pass.

    What it finds must be compared with `OneByOne`'s: a loss may draw random numbers that torch does not know of,
    or hold on to parameters.

    Args:
        wanted: what is to be found.
    """

    name = "together"

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self._loss = FunctionalLoss(wanted.objective)

    def __call__(self, chosen: Tensor, keep: int = 0) -> Forms:
        """Of the mini-batches ``chosen`` (k, B).

        Args:
            chosen: positions of their samples in all batches laid end to end.
            keep: how many gradients are to be returned.

        Raises:
            LossError: if the samples of different batches do not go together.
            Exception: whatever torch raises about operations that cannot be vectorised, batch statistics and dropout
                among them.
        """
        objective = self.wanted.objective
        content = self._gathered(chosen)
        with objective.evaluation(0, content) as batch, _traceable():
            rows, gradients = self._vectorised(batch)
        kept = [objective.space.flatten([g[i] for g in gradients]) for i in range(min(keep, len(rows)))]
        return _forms(rows, kept, objective.space)

    def _gathered(self, chosen: Tensor) -> Any:
        """The samples as one content with tensors (k, B, ...)."""
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        pieces = cut(self.wanted.objective, flat[order], self.wanted.lengths)
        together = concatenated([content for _, content in pieces])
        if together is None:
            raise LossError("samples of different batches have different shapes")
        content = take(together, order.argsort())
        return map_tensors(content, lambda t: t.unflatten(0, chosen.shape))

    def _vectorised(self, batch: Any) -> tuple[Tensor, list[Tensor]]:
        """Rows of the forms (k, 5), and the gradients, one tensor (k, ...) per parameter."""
        parameters = [p.detach() for p in self.wanted.objective.parameters.values()]
        inverse, products = self.wanted.inverse, self.wanted.products
        scales = None if inverse is None else self.wanted.objective.space.unflatten(inverse)

        def one(*tensors: Tensor) -> tuple[Tensor, list[Tensor]]:
            parts = iter(tensors)
            content = map_tensors(batch, lambda _: next(parts))

            def gradient(values: list[Tensor]) -> tuple[list[Tensor], Tensor]:
                found: tuple[list[Tensor], Tensor] = grad_and_value(lambda v: self._loss(v, content))(values)
                return found

            if products:
                g, pullback, loss = vjp(gradient, parameters, has_aux=True)  # type: ignore[misc]
            else:
                g, loss = gradient(parameters)
            u = g if scales is None else [x * scale for x, scale in zip(g, scales, strict=True)]
            Hu = pullback(u)[0] if products else None
            square, length = _inner(g, g), _inner(u, u)
            form, across = (_inner(u, Hu), _inner(Hu, Hu)) if Hu is not None else (0 * square, 0 * square)
            row = [loss.double(), square, _inner(g, u), form, (length * across).sqrt()]
            return torch.stack(row), g

        rows, gradients = vmap(one)(*tensors_of(batch))
        return rows, gradients


def _inner(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """In float64, of products in single precision at least."""
    terms = []
    for x, y in zip(a, b, strict=True):
        single = torch.promote_types(x.dtype, torch.float32)
        terms.append((x.to(single) * y.to(single)).sum().double())
    return torch.stack(terms).sum()


@contextlib.contextmanager
def _traceable() -> Iterator[None]:
    """Keep transformer layers off the fused path that they take where no parameter requires gradients."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
