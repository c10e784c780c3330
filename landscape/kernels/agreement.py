"""Whether double backward is the derivative of the gradient, and the gradient that of the loss.

Double backward differentiates what autograd was told, not what is computed. Where a loss stops gradients,
a layer rounds and passes the gradient straight through, or a custom backward is wrong or leaves its own
derivative out, the two differ, and there is no one Hessian. Faster kernels follow autograd too, so that
none of them could tell: the referee here is a difference of gradients in float64, on a few samples. Double
backward multiplies a vector from the left by the Jacobian of the gradient, a difference from the right: in
a random direction they agree only if it is symmetric, too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.utils import get_total_norm
from torch.utils._python_dispatch import TorchDispatchMode

from ..batches import map_tensors, tensors_of
from ..complex_parts import as_real, real_dtype
from ..errors import first_line
from ..html_table import Shown
from ..objective import Objective
from .functional import FunctionalLoss
from .once import nodes_behind, refuse_once_differentiable
from .pullback import pulled_back

__all__ = ["Agreement", "agreement"]

_SAMPLES = 4  # of a kink or a wrong backward one is enough; float64 convolutions take ten times as long
_PIECE = 1 << 20  # entries
_CLOSE = 1e-3  # relative; two ways to compute a product that agree to this agree
_STEPS = {torch.float64: (1e-8, 1e-6, 1e-4, 1e-10), torch.float32: (1e-3, 1e-2, 1e-4)}
"""Relative steps, in the order in which they are tried: small enough in float64 to cross no kink of a ReLU."""


@dataclass(frozen=True)
class Agreement(Shown):
    """What comparing double backward with differences found.

    Attributes:
        status: ``"agrees"``; ``"ambiguous"`` where they differ; ``"unverified"`` where it could not be told.
        reason: why, with both values; empty where they agree.
        double_backward: ``v'Hv`` by double backward, for the unit direction v it was tried in.
        difference: the same from differences of the gradient.
    """

    status: str
    reason: str = ""
    double_backward: float = math.nan
    difference: float = math.nan


def agreement(objective: Objective) -> Agreement:
    """Compare, once per objective and its snapshots.

    It takes about five gradients on at most 4 samples of the first batch, in float64 where the model can.
    """
    key = ("agreement", id(objective.loss))
    if key not in objective.kept:
        objective.kept[key] = _compare(objective)
    found: Agreement = objective.kept[key]
    return found


def _compare(objective: Objective) -> Agreement:
    content = objective.batches[0].content
    parts = [content]
    lengths = [t.shape[0] for t in tensors_of(content) if t.ndim and t.shape[0] > _SAMPLES]
    if lengths:
        parts.insert(0, _first(content, min(lengths)))
    with contextlib.suppress(Exception), objective.isolated():
        quick = _Comparison(objective, parts[0], torch.float64)
        found = quick.result()
        if found.status == "agrees" and quick.eps < 1e-10:
            return found
    problem = ""
    for dtype in (torch.float64, None):
        for part in parts:
            try:
                with objective.isolated():
                    return _Comparison(objective, part, dtype, keep_precise=True).result()
            except Exception as error:
                problem = first_line(error)
    return Agreement("unverified", f"double backward could not be compared with differences ({problem})")


def _first(content: Any, length: int) -> Any:
    """A few samples of a batch of this length; targets may be as many times longer as a sample has tokens."""

    def cut(tensor: Tensor) -> Tensor:
        of_samples = tensor.ndim > 0 and tensor.shape[0] > 0 and tensor.shape[0] % length == 0
        return tensor[: _SAMPLES * (tensor.shape[0] // length)] if of_samples else tensor

    return map_tensors(content, cut)


class _Comparison:
    """Products with one direction, by double backward and by differences, in one precision."""

    def __init__(
        self, objective: Objective, content: Any, dtype: torch.dtype | None, keep_precise: bool = False
    ) -> None:
        self.objective, self.loss, self.dtype = objective, FunctionalLoss(objective), dtype
        self._keep_precise = keep_precise and dtype is not None
        self.others = self.loss.others()
        if dtype is None:
            self.content = content
        else:
            self.content = map_tensors(content, self._cast)
            self.others = {name: self._cast(t) for name, t in self.others.items()}
        space, parameters = objective.space, list(objective.parameters.values())
        # A vector that is not long is one tensor, on which each operation is one.
        self._complex = [p.is_complex() for p in parameters]
        self._small = space.size <= _PIECE and (dtype is not None or space.uniform) and not any(self._complex)
        with torch.no_grad():
            if self._small:
                self._moved = [space.flatten(parameters).to(dtype or space.dtype, copy=True)]
            else:
                self._moved = [as_real(p).to(dtype or real_dtype(p.dtype), copy=True) for p in parameters]
            self.theta = self._pieces(self._moved)
        for t in self.theta:
            t.requires_grad_()
        self.eps = max(torch.finfo(dtype).eps for dtype in {t.dtype for t in self.theta})
        self._shift = 0.0  # of theta along the direction

    def _cast(self, tensor: Tensor) -> Tensor:
        if self.dtype is None or not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        return tensor.to(self.dtype.to_complex() if tensor.is_complex() else self.dtype)

    def _evaluated(self, then: Callable[[Tensor], Any]) -> Any:
        precise = _KeptPrecise() if self._keep_precise else contextlib.nullcontext()
        with self.objective.evaluation(0, self.content) as batch, precise:
            return self.loss(self.theta, batch, {name: t.clone() for name, t in self.others.items()}, then)

    def result(self) -> Agreement:
        return self._referee(*self._evaluated(self._by_double_backward))

    def _by_double_backward(self, loss: Tensor) -> tuple[float, list[Tensor], list[Tensor], list[Tensor]]:
        """The loss, its gradient, a direction, and the product with that."""
        value, nodes = _finite(loss), list(nodes_behind([loss]))
        refuse_once_differentiable(loss, nodes=nodes)
        self.loss.refuse_captured(loss, nodes)
        seen = {m.dtype for node in nodes for m in getattr(node, "_input_metadata", ())}
        self.eps = max(
            [self.eps, *(torch.finfo(dtype).eps for dtype in map(real_dtype, seen) if dtype.is_floating_point)]
        )
        graph = pulled_back((loss,), tuple(self.theta), (torch.ones_like(loss),), create_graph=True)
        with torch.no_grad():
            g = self._filled(graph)
            v = self._direction(g)
        heads = [self._head(t) if t is not None and t.requires_grad else None for t in graph]
        if not self._small:
            g.clear()
        del graph  # the values: a large model has no room for them now, and they are soon made again
        Hv = self._times(heads, v)
        if not math.isfinite(_length(Hv)) and not all(bool(torch.isfinite(t).all()) for t in Hv):
            raise ArithmeticError("a product with the Hessian is not finite on these samples")
        if not self._small:
            v, Hv = _in_single(v), _in_single(Hv)
        return value, g or self._gradient(loss)[1], v, Hv

    def _head(self, entry: Tensor) -> Tensor | GradientEdge:
        """Where a backward pass through an entry of the gradient begins, without its value where that is long."""
        return entry if self._small else get_gradient_edge(entry)

    def _times(self, heads: list[Tensor | GradientEdge | None], v: list[Tensor]) -> list[Tensor]:
        pairs = [(head, t) for head, t in zip(heads, self._pieces(v), strict=True) if head is not None]
        if not pairs:
            return [torch.zeros_like(t) for t in v]
        live, tangents = zip(*pairs, strict=True)
        return self._filled(pulled_back(live, tuple(self.theta), tangents))

    def _gradient(self, loss: Tensor) -> tuple[float, list[Tensor]]:
        """The loss as a number, and its gradient, which uses the graph up."""
        value = _finite(loss)
        return value, self._filled(
            pulled_back((loss,), tuple(self.theta), (torch.ones_like(loss),), retain_graph=False)
        )

    def _filled(self, pulled: Sequence[Tensor | None]) -> list[Tensor]:
        """A vector of what a backward pass found, zero where that is nothing."""
        pieces = [torch.zeros_like(p) if t is None else t.detach() for t, p in zip(pulled, self.theta, strict=True)]
        return [_flatten_dense_tensors(pieces)] if self._small else [as_real(t) for t in pieces]

    def _pieces(self, vector: list[Tensor]) -> list[Tensor]:
        """One tensor per parameter."""
        parameters = list(self.objective.parameters.values())
        if self._small:
            return list(_unflatten_dense_tensors(vector[0], parameters))
        return [torch.view_as_complex(t) if pair else t for t, pair in zip(vector, self._complex, strict=True)]

    def _direction(self, g: list[Tensor]) -> list[Tensor]:
        """A random unit vector that has a share of the gradient, so that the loss changes along it."""
        generator = torch.Generator().manual_seed(0)
        v = [torch.randn(t.shape, generator=generator, dtype=torch.float32).to(t) for t in g]
        size, length = _length(g), math.sqrt(self.objective.space.size)  # or nearly so
        share = max(length, 4.0) / size if size > 0 else 0.0  # more than the random part takes away
        length = _length([t.add_(s, alpha=share) for t, s in zip(v, g, strict=True)])
        return [t.div_(length) for t in v]

    def _referee(self, loss: float, g: list[Tensor], v: list[Tensor], Hv: list[Tensor]) -> Agreement:
        size, slopes = _length(self._moved) or 1.0, _length(g)
        along, before, length = _inner(v, Hv), None, _length(Hv)
        tolerance = _CLOSE if self.eps < 1e-10 else 2e-2
        for step in _STEPS[torch.float64 if self.eps < 1e-10 else torch.float32]:
            h = step * size
            ahead_loss, ahead = self._at(v, h)
            if self.eps > 1e-10:  # the step is too long for a one-sided difference
                behind_loss, behind = self._at(v, -h)
                difference, slope = _differences(ahead, behind, 2 * h), (ahead_loss - behind_loss) / (2 * h)
                curving = 0.0
            else:
                difference, slope = _differences(ahead, g, h), (ahead_loss - loss) / h
                curving = abs(h * along)
            noise = 100 * self.eps * slopes / h
            apart = _distance(difference, Hv)
            if apart <= tolerance * (_length(difference) + length) + noise:
                return self._first_order(slope, _inner(g, v), 1e3 * self.eps * abs(loss) / h + curving, along)
            found = _inner(v, difference)
            if before is not None and _distance(difference, before) <= 10 * tolerance * _length(difference):
                return Agreement(
                    "ambiguous",
                    f"double backward gives v'Hv = {along:.6g}, differences of the gradient give "
                    f"{found:.6g} (products {apart / max(length, 1e-300):.2g} apart): "
                    "the loss stops a gradient, passes one straight through, or has a custom backward that is wrong or "
                    "leaves its own derivative out",
                    along,
                    found,
                )
            before = difference
        return Agreement(
            "unverified",
            f"differences of the gradient do not settle (v'Hv by double backward is {along:.6g}, by differences "
            f"{found:.6g})",
            along,
            found,
        )

    def _at(self, v: list[Tensor], shift: float) -> tuple[float, list[Tensor]]:
        """Loss and gradient where theta is moved to, along v; in place, since a large model has no room for two."""
        with torch.no_grad():
            for t, d in zip(self._moved, v, strict=True):
                t.add_(d, alpha=shift - self._shift)
        self._shift = shift
        found: tuple[float, list[Tensor]] = self._evaluated(self._gradient)
        return found

    def _first_order(self, slope: float, expected: float, noise: float, along: float) -> Agreement:
        """Whether the gradient is the derivative of the loss; a wrong one can have a consistent Jacobian."""
        if abs(slope - expected) <= (_CLOSE if self.eps < 1e-10 else 5e-2) * abs(expected) + noise:
            return Agreement("agrees", "", along, along)
        return Agreement(
            "ambiguous",
            f"along a unit vector v autograd gives the slope g'v = {expected:.6g}, the loss itself changes by "
            f"{slope:.6g}: the loss stops a gradient or a custom backward is wrong, and its Hessian is not the "
            "Jacobian of its gradient",
            along,
        )


def _finite(loss: Tensor) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ArithmeticError(f"the loss is {value} on these samples")
    return value


# --------------------------------------------------------------------------- vectors, as one tensor per parameter


def _in_single(a: list[Tensor]) -> list[Tensor]:
    """In float32 at most, which is exact enough to compare, and the room of which counts; ``a`` is used up."""
    return [t.float() if t.dtype == torch.float64 else t for t in _emptied(a)]


def _differences(a: list[Tensor], b: list[Tensor], by: float) -> list[Tensor]:
    """``(a - b) / by`` in float32 at most, but for what is not long; ``a`` is used up."""
    if _is_short(a):
        return [(a[0] - b[0]).div_(by)]
    found = []
    for x, y in zip(_emptied(a), b, strict=True):
        single = torch.empty_like(x, dtype=torch.float32 if x.dtype == torch.float64 else x.dtype)
        for parts in _in_rows(single, x, y):
            parts[0].copy_((parts[1] - parts[2]).div_(by))
        found.append(single)
    return found


def _emptied(a: list[Tensor]) -> Iterator[Tensor]:
    while a:
        yield a.pop(0)


def _length(a: list[Tensor]) -> float:
    return float(torch.linalg.vector_norm(a[0].detach()) if len(a) == 1 else get_total_norm(a))


def _inner(a: list[Tensor], b: list[Tensor]) -> float:
    if _is_short(a):
        return float(torch.dot(a[0].double(), b[0].double()))
    return math.fsum(float(torch.dot(x, y)) for x, y in _pieces(a, b))


def _distance(a: list[Tensor], b: list[Tensor]) -> float:
    if _is_short(a):
        return float(torch.dist(a[0].double(), b[0].double()))
    return math.hypot(*(float(torch.dist(x, y)) for x, y in _pieces(a, b)))


def _is_short(a: list[Tensor]) -> bool:
    """Whether a vector is one tensor that is not long."""
    return len(a) == 1 and a[0].ndim == 1 and a[0].numel() <= _PIECE


def _pieces(a: list[Tensor], b: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """A million entries of both at a time, as vectors in float64: what is made of large tensors takes no room."""
    held: list[tuple[Tensor, ...]] = []
    count = 0
    for x, y in zip(a, b, strict=True):
        for pair in _in_rows(x, y):
            held.append(pair)
            count += pair[0].numel()
            if count >= _PIECE:
                yield _joined(held)
                held, count = [], 0
    if held:
        yield _joined(held)


def _in_rows(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some rows at a time of tensors of one shape, about a million entries."""
    first = tensors[0]
    if first.numel() <= _PIECE:
        return iter((tensors,))
    rows = max(1, _PIECE * (first.shape[0] if first.ndim else 1) // max(1, first.numel()))
    return zip(*(t.view(1) if t.ndim == 0 else t.split(rows) for t in tensors), strict=True)


def _joined(pairs: list[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    x, y = (torch.cat([t.detach().reshape(-1) for t in side]).double() for side in zip(*pairs, strict=True))
    return x, y


class _KeptPrecise(TorchDispatchMode):
    """Computes in float64 what the model or the loss casts down: ``logits.float()``, autocast, new tensors.

    Else its rounding, and not the loss, would decide what the differences are.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        dtype = kwargs.get("dtype")
        if isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex):
            kwargs = {**kwargs, "dtype": torch.complex128 if dtype.is_complex else torch.float64}
        return func(*args, **kwargs)
