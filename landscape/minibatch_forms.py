"""The gradients of mini-batches and the curvature along them: one after the other, or many in one vectorised pass.

A mini-batch of a few samples leaves a machine idle, whose time then goes into launches and Python. Vectorised over
mini-batches (`torch.func.vmap`), the forward pass is that of all their samples together, and gradients and products
are batched.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from .batches import concatenated, map_tensors, take, tensors_of
from .complex_parts import as_real, like, real_dtype
from .errors import LossError
from .groups import cut, part
from .hessian import Hessian
from .kernels.finite_difference import FiniteDifference
from .kernels.functional import FunctionalLoss, traceable
from .kernels.once import second_order_errors
from .objective import Objective

__all__ = ["Forms", "OneByOne", "Together", "Wanted", "joined"]


class Forms(NamedTuple):
    """What is found of k mini-batches, float64, with the gradient g and the Hessian H of each, and u = P^-1 g.

    Attributes:
        loss: (k,).
        square: (k,) ``|g|^2``.
        along: (k,) ``g'u``.
        form: (k,) ``u'Hu``.
        size: (k,) ``|u| |Hu|``, which the form is at most.
        cross: (k,) ``v'Hv`` with v the gradient of the other mini-batch of its pair, on which H does not depend.
    """

    loss: Tensor
    square: Tensor
    along: Tensor
    form: Tensor
    size: Tensor
    cross: Tensor


class Wanted(NamedTuple):
    """What is to be found of mini-batches.

    Attributes:
        objective: on all samples.
        lengths: samples in each of its batches.
        inverse: (n,) 1 / P; None for the identity.
        products: whether forms are wanted; else they are zero.
        crossed: whether those with the gradients of others are; then mini-batches come in pairs.
    """

    objective: Objective
    lengths: list[int]
    inverse: Tensor | None = None
    products: bool = True
    crossed: bool = False


def joined(parts: Sequence[Forms]) -> Forms:
    """Of all the mini-batches."""
    return Forms._make(torch.cat(column) for column in zip(*parts, strict=True))


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

    def __call__(self, chosen: Tensor, first: int) -> Forms:
        """Of the mini-batches ``chosen`` (k, B), the first of which is draw number ``first``.

        Args:
            chosen: positions of their samples in all batches laid end to end, each row ascending.
            first: random numbers, as for dropout masks, are those of the draw's number.
        """
        rows, before = [], None
        for i, samples in enumerate(chosen):
            other = None
            if self.wanted.crossed and i % 2 == 0:  # one graph at a time, at the price of a gradient more
                other = self._vector(self._gradient(chosen[i + 1], first + i + 1, graph=False)[1])
            elif self.wanted.crossed:
                other = before
            row, before = self._one(samples, first + i, other)
            rows.append(row)
        return Forms._make(torch.stack(rows).T)

    def gradients(self, chosen: Tensor, first: int) -> Tensor:
        """The gradients alone, (k, n); arguments as of a call."""
        found = (self._gradient(samples, first + i, graph=False)[1] for i, samples in enumerate(chosen))
        return torch.stack([self._vector(tensors) for tensors in found])

    @property
    def by_differences(self) -> bool:
        """Whether products are differences of gradients."""
        if self._differences is None:
            whole = Hessian(self.wanted.objective)
            whole.plan(1, 1)
            self._differences = whole.kernel == FiniteDifference.name
        return self._differences

    def _one(self, samples: Tensor, draw: int, other: Tensor | None) -> tuple[Tensor, Tensor]:
        graph = self.wanted.products and not self.by_differences
        loss, tensors = self._gradient(samples, draw, graph=graph)
        g = self._vector(tensors)
        u = g if self.wanted.inverse is None else g * self.wanted.inverse
        Hu = Hv = torch.zeros_like(g)
        if self.wanted.products:
            Hu, *rest = self._products(samples, tensors, [u] if other is None else [u, other])
            Hv = rest[0] if rest else Hv
        v = u if other is None else other
        square, along, form, cross, length, across = (
            (x * y).sum(dtype=torch.float64) for x, y in ((g, g), (g, u), (u, Hu), (v, Hv), (u, u), (Hu, Hu))
        )
        return torch.stack([loss.double(), square, along, form, (length * across).sqrt(), cross]), g

    def _vector(self, tensors: list[Tensor]) -> Tensor:
        return self.wanted.objective.space.flatten([t.detach() for t in tensors])

    def _gradient(self, samples: Tensor, draw: int, *, graph: bool) -> tuple[Tensor, list[Tensor]]:
        """Loss and gradient, with its graph where products follow."""
        objective = self.wanted.objective
        pieces = cut(objective, samples, self.wanted.lengths)
        together = concatenated([content for _, content in pieces]) if len(pieces) > 1 else None
        if together is not None:  # one mini-batch, as training sees it (batch statistics!)
            pieces = [(pieces[0][0], together)]
        total = torch.zeros((), dtype=objective.space.dtype, device=objective.space.device)
        tensors = [torch.zeros_like(p) for p in objective.parameters.values()]
        for (index, content), share in zip(pieces, self._shares(pieces), strict=True):
            if share == 0:  # nothing counts in it, as where every token is ignored
                continue
            loss = share * objective.batch_loss(index, content, mask=draw)
            found = objective.gradients(loss, create_graph=graph)
            total, tensors = total + loss.detach(), [a + b for a, b in zip(tensors, found, strict=True)]
        return total, tensors

    def _shares(self, pieces: list[tuple[int, Any]]) -> list[float]:
        """Of pieces whose shapes do not go together, in the loss of the mini-batch."""
        loss = self.wanted.objective.loss
        if len(pieces) == 1 or loss.summed:
            return [1.0] * len(pieces)
        weights = [loss.weight_of(content) for _, content in pieces]
        return [weight / (sum(weights) or 1.0) for weight in weights]

    def _products(self, samples: Tensor, tensors: list[Tensor], vectors: list[Tensor]) -> list[Tensor]:
        objective = self.wanted.objective
        if self.by_differences:
            engine = FiniteDifference(part(objective, samples, self.wanted.lengths, self._kept))
            return list(engine(torch.stack(vectors, dim=1)).T)
        parameters, space = list(objective.parameters.values()), objective.space
        with second_order_errors(objective):
            return [space.flatten(_pulled_back(tensors, parameters, space.unflatten(v))) for v in vectors]


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

    def __call__(self, chosen: Tensor) -> Forms:
        """Of the mini-batches ``chosen`` (k, B).

        Args:
            chosen: positions of their samples in all batches laid end to end.

        Raises:
            LossError: if the samples of different batches do not go together.
            Exception: whatever torch raises about operations that cannot be vectorised, batch statistics and dropout
                among them.
        """
        with self._evaluation(chosen) as batch:
            loss, values = self._losses(batch, len(chosen))
            g = _pulled_back([loss], values, [torch.ones_like(loss)], graph=self.wanted.products)
            return self._multiplied(g, values, loss.detach().double())

    def gradients(self, chosen: Tensor) -> Tensor:
        """The gradients alone, (k, n); arguments and errors as of a call."""
        with self._evaluation(chosen) as batch:
            loss, values = self._losses(batch, len(chosen))
            g = _pulled_back([loss], values, [torch.ones_like(loss)])
            return self.wanted.objective.space.flatten_rows(g)

    @contextlib.contextmanager
    def _evaluation(self, chosen: Tensor) -> Iterator[Any]:
        content = self._gathered(chosen)
        with self.wanted.objective.evaluation(0, content) as batch, traceable(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operations that are vectorised slowly: the faster way is timed for
            yield batch

    def _gathered(self, chosen: Tensor) -> Any:
        """The samples as one content with tensors (k, B, ...)."""
        flat, batches = chosen.flatten(), self.wanted.objective.batches
        content = take(batches[0].content, flat) if len(batches) == 1 else self._of_several(flat)
        return map_tensors(content, lambda t: t.unflatten(0, chosen.shape))

    def _of_several(self, positions: Tensor) -> Any:
        """The samples at these positions, from several batches."""
        order = positions.argsort(stable=True)
        pieces = cut(self.wanted.objective, positions[order], self.wanted.lengths)
        together = concatenated([content for _, content in pieces])
        if together is None:
            raise LossError("samples of different batches have different shapes")
        return take(together, order.argsort())

    def _losses(self, batch: Any, k: int) -> tuple[Tensor, list[Tensor]]:
        """Those of all mini-batches, (k,), and the parameters that each depends on, (k, ...)."""
        tensors = tensors_of(batch)

        def loss_of(values: list[Tensor], *parts: Tensor) -> Tensor:
            left = iter(parts)
            loss: Tensor = self._loss(values, map_tensors(batch, lambda _: next(left)))
            return loss

        # Parameters of its own for each mini-batch, so that one graph serves all gradients and products. Only the
        # forward pass is a functional transform: torch 2.13 errs in the derivative of a vectorised gradient of
        # LayerNorm, by 1e-3.
        parameters = self.wanted.objective.parameters.values()
        values = [p.detach().expand(k, *p.shape).requires_grad_() for p in parameters]
        losses: Tensor = vmap(loss_of)(values, *tensors)
        return losses, values

    def _multiplied(self, heads: list[Tensor], values: list[Tensor], loss: Tensor) -> Forms:
        g = [head.detach() for head in heads]
        square = along = length = _inner(g, g)
        form = size = cross = torch.zeros_like(square)
        u = g
        if self.wanted.inverse is not None:
            space = self.wanted.objective.space
            scales = zip(self.wanted.inverse.split(space.numels), space.shapes, strict=True)
            u = [like(as_real(x) * scale.view(shape), x.dtype) for x, (scale, shape) in zip(g, scales, strict=True)]
            along, length = _inner(g, u), _inner(u, u)
        if self.wanted.products:
            Hu = _pulled_back(heads, values, u, keep=self.wanted.crossed)
            form, size = _inner(u, Hu), (length * _inner(Hu, Hu)).sqrt()
            del u, Hu  # each as large as all mini-batches' parameters: memory that is used again is at hand
        if self.wanted.crossed:
            v = [x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) for x in g]
            cross = _inner(v, _pulled_back(heads, values, v, keep=False))
        return Forms(loss, square, along, form, size, cross)


def _pulled_back(
    heads: Sequence[Tensor], values: Sequence[Tensor], vectors: Sequence[Tensor], *, graph: bool = False,
    keep: bool = True,
) -> list[Tensor]:  # fmt: skip
    """What multiplying by the transposed Jacobian of ``heads`` gives; zeros where there is none.

    Args:
        heads: see above.
        values: what they depend on.
        vectors: as many as heads.
        graph: whether what is found is to be differentiated.
        keep: whether the graph behind the heads is, again.
    """
    live = [i for i, head in enumerate(heads) if head.requires_grad]
    if not live:
        return [torch.zeros_like(v) for v in values]
    return list(
        torch.autograd.grad(
            [heads[i] for i in live], values, [vectors[i] for i in live], retain_graph=keep, create_graph=graph,
            allow_unused=True, materialize_grads=True,
        )
    )  # fmt: skip


def _inner(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Of each mini-batch's vectors, tensors (k, ...) -> (k,) float64; products are in single precision at least."""
    terms = []
    for x, y in zip(a, b, strict=True):
        single = torch.promote_types(real_dtype(x.dtype), torch.float32)
        products = as_real(x.detach()).to(single) * as_real(y.detach()).to(single)
        if products.ndim > 1:  # as they lie in memory: a backward pass leaves many of them transposed
            products = products.sum(dim=tuple(range(1, products.ndim)))
        terms.append(products.double())
    return torch.stack(terms).sum(dim=0)
