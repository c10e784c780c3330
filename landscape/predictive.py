"""Losses whose curvature in the outputs is known in closed form: cross-entropy, binary cross-entropy, squared error.

Each is the negative log-likelihood of a distribution with natural parameters x, so its Hessian in x is a
covariance of the targets under the model's own prediction (Martens 2020, "New insights and perspectives on the
natural gradient method", section 9).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["FORMS", "BinaryCrossEntropy", "CrossEntropy", "Prediction", "SquaredError", "options_of"]


def options_of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name, defaults included."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


class Prediction:
    """One call of a loss function, ``sum_i c_i loss_i(x)``, as a function of its input x.

    The factors ``c`` of its entries are given once what is made of them is known (`weigh`).

    Args:
        options: the call's arguments by name.
    """

    function: Callable[..., Tensor]

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.x: Tensor = options["input"]
        self.target: Tensor = options["target"]

    def known(self) -> bool:
        """Whether this is all the call does."""
        raise NotImplementedError

    def entries(self) -> Tensor:
        """The loss before its reduction, without a graph."""
        with torch.no_grad():
            return type(self).function(**self.options | {"input": self.x.detach(), "reduction": "none"})

    def denominator(self, entries: Tensor) -> Tensor | float:
        """What ``reduction="mean"`` divides their sum by."""
        return entries.numel()

    def weigh(self, factors: Tensor) -> None:
        """Make what the products need, and let go of x; ``factors`` has the shape of the entries."""
        raise NotImplementedError

    @property
    def mass(self) -> Tensor:
        """What multiplies the covariance of each prediction."""
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """What is kept of it."""
        raise NotImplementedError

    def multiply_(self, w: Tensor) -> Tensor:
        """The Hessian in x times ``w``, of x's shape, in the memory of ``w``."""
        raise NotImplementedError

    def draw(self, samples: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """``w -> mean_s g_s <g_s, w>``, with g_s the gradients in x for targets drawn from the prediction."""
        raise NotImplementedError


class CrossEntropy(Prediction):
    """Softmax cross-entropy: ``diag(p) - p p'`` for each prediction, applied as ``p w - p <p, w>``.

    The probabilities are kept in place of the logits, so that the memory is theirs once.
    """

    function = F.cross_entropy

    def known(self) -> bool:
        """Always; classes are the second dimension, or the only one."""
        return True

    @property
    def _by_index(self) -> bool:
        return not self.target.is_floating_point()

    def _target_weights(self) -> Tensor:
        """Class weights of the targets, zero where they are ignored."""
        kept = self.target != self.options["ignore_index"]
        weight = self.options["weight"]
        return kept.to(self.x.dtype) if weight is None else kept * weight[self.target.where(kept, 0)]

    def denominator(self, entries: Tensor) -> Tensor | float:
        """The weights of the targets that count."""
        return self._target_weights().sum() if self._by_index else entries.numel()

    def _total(self) -> Tensor:
        """The sum of each prediction's target distribution, as weights and smoothing make it."""
        smoothing, weight = self.options["label_smoothing"], self.options["weight"]
        classes = self.x.shape[self.dim]
        spread = smoothing * (1.0 if weight is None else float(weight.sum()) / classes)
        if self._by_index:
            kept = self.target != self.options["ignore_index"]
            return (1 - smoothing) * self._target_weights() + spread * kept.to(self.x.dtype)
        if weight is None:
            return (1 - smoothing) * self.target.sum(self.dim) + spread
        return (1 - smoothing) * (self.target.movedim(self.dim, -1) @ weight) + spread

    def weigh(self, factors: Tensor) -> None:
        """Keep the probabilities, and the classes of the targets where they are given by index."""
        with torch.no_grad():
            self.dim = min(1, self.x.ndim - 1)
            self._mass = (factors * self._total()).unsqueeze(self.dim)
            self.p = self.x.detach().softmax(self.dim)
            self._likeliest = self.p.argmax(self.dim, keepdim=True)
            ignored = self.options["ignore_index"]  # has no mass, but may be no class
            self.labels = self.target.where(self.target != ignored, 0) if self._by_index else None
        del self.x, self.target, self.options

    @property
    def mass(self) -> Tensor:
        """One per prediction."""
        return self._mass

    @property
    def bytes(self) -> int:
        """The probabilities and classes."""
        classes = self._likeliest.nbytes + (0 if self.labels is None else self.labels.nbytes)
        return self.p.untyped_storage().nbytes() + classes

    def by_class(self, w: Tensor) -> Tensor:
        """The sums over the predictions whose target is of each class, of x's shape -> (C, C) in float64."""
        assert self.labels is not None
        rows = w.movedim(self.dim, -1).reshape(-1, w.shape[self.dim]).to(torch.float64)
        return rows.new_zeros(rows.shape[1], rows.shape[1]).index_add_(0, self.labels.reshape(-1), rows)

    def of_class(self, values: Tensor) -> Tensor:
        """The row of values (C, C) that belongs to each prediction's target, of x's shape and type."""
        assert self.labels is not None
        return values.to(self.p.dtype)[self.labels].movedim(-1, self.dim)

    def multiply_(self, w: Tensor) -> Tensor:
        """``mass (p w - p <p, w>)``, never a matrix.

        It does not see what all entries of w have in common. Less that of the likeliest class, nothing cancels where
        the probability of that is nearly 1.
        """
        w.sub_(w.gather(self.dim, self._likeliest))
        w.mul_(self.p)
        w.addcmul_(self.p, w.sum(self.dim, keepdim=True), value=-1)
        return w.mul_(self._mass)

    def draw(self, samples: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Classes; the gradient is ``p - e_class``."""
        dim, p, mass = self.dim, self.p, self._mass / samples
        rows = p.movedim(dim, -1)
        drawn = torch.multinomial(rows.reshape(-1, rows.shape[-1]), samples, replacement=True, generator=generator)
        classes = drawn.view(*rows.shape[:-1], samples).movedim(-1, dim)

        def product(w: Tensor) -> Tensor:
            along = mass * ((p * w).sum(dim, keepdim=True) - w.gather(dim, classes))
            return (p * along.sum(dim, keepdim=True)).scatter_add_(dim, classes, -along)

        return product


class _Independent(Prediction):
    """A loss that adds over the entries of x: its Hessian is a diagonal."""

    def known(self) -> bool:
        """Whether nothing is broadcast."""
        return self.target.shape == self.x.shape

    def _curvature(self) -> Tensor:
        """Second derivative of each entry."""
        raise NotImplementedError

    def weigh(self, factors: Tensor) -> None:
        """Keep the diagonal."""
        with torch.no_grad():
            self._mass = factors * self._curvature()
            self._start()
        del self.x, self.target, self.options

    def _start(self) -> None:
        """Keep what the draws need besides."""

    @property
    def mass(self) -> Tensor:
        """The diagonal, which has the sign of the factors."""
        return self._mass

    @property
    def bytes(self) -> int:
        """The diagonal."""
        return self._mass.untyped_storage().nbytes()

    def multiply_(self, w: Tensor) -> Tensor:
        """The diagonal times w."""
        return w.mul_(self._mass)

    def _scores(self, samples: int, generator: torch.Generator) -> Tensor:
        """Gradients at drawn targets, (samples, *shape)."""
        raise NotImplementedError

    def draw(self, samples: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """One target per entry; those of one entry of the first dimension are one sample."""
        scores = self._scores(samples, generator)

        def product(w: Tensor) -> Tensor:
            along = (scores * w).flatten(2).sum(-1) if w.ndim > 1 else scores * w
            return (scores * along.reshape(*along.shape, *[1] * (scores.ndim - along.ndim))).mean(0)

        return product


class BinaryCrossEntropy(_Independent):
    """Binary cross-entropy on logits: the variance p (1 - p) of each entry."""

    function = F.binary_cross_entropy_with_logits

    def _curvature(self) -> Tensor:
        weight, positive = self.options["weight"], self.options["pos_weight"]
        p = self.x.detach().sigmoid()
        total = 1.0 if positive is None else 1 + (positive - 1) * self.target
        return p * (1 - p) * total * (1.0 if weight is None else weight)

    def _start(self) -> None:
        self._p = self.x.detach().sigmoid()

    def _scores(self, samples: int, generator: torch.Generator) -> Tensor:
        p = self._p
        targets = torch.bernoulli(p.expand(samples, *p.shape), generator=generator)
        total = (self._mass / (p * (1 - p))).nan_to_num(0.0)
        return (p - targets) * total.sqrt()


class SquaredError(_Independent):
    """Squared error: a Gaussian of variance 1/2 about each output."""

    function = F.mse_loss

    def known(self) -> bool:
        """Whether nothing is broadcast or weighted."""
        return super().known() and self.options.get("weight") is None

    def _curvature(self) -> Tensor:
        return torch.full((), 2.0, dtype=self.x.dtype, device=self.x.device)

    def _scores(self, samples: int, generator: torch.Generator) -> Tensor:
        shape = (samples, *self._mass.shape)
        noise = torch.randn(shape, dtype=self._mass.dtype, device=generator.device, generator=generator)
        return noise.to(self._mass.device) * self._mass.sqrt()


FORMS: dict[Callable[..., Any], type[Prediction]] = {
    form.function: form for form in (CrossEntropy, BinaryCrossEntropy, SquaredError)
}
"""The forms by the function of `torch.nn.functional` that computes them."""
