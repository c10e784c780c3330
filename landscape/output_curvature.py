"""The Hessian of the loss in the model's outputs: in closed form where the loss is seen to have one, else by autograd.

A loss is seen by evaluating it with the functions of `FORMS` watched, wherever they are called: by a criterion
module, or inside a lambda behind views, slices and scalings. What counts is what autograd says of the result:
that the inputs of these calls are affine in the outputs, and that the loss is affine in their values and depends
on nothing else. Then its Hessian is ``sum_j A_j' H_j A_j`` exactly. Anything else goes the general way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from .kernels.jacobian import Evaluated, OutputMetric, stand_in
from .kernels.once import refuse_once_differentiable
from .predictive import FORMS, Prediction, options_of

__all__ = ["AutogradHessian", "SeenHessian", "autograd_hessian", "seen_hessian"]

_Product = Callable[[Tensor], Tensor]


# --------------------------------------------------------------------------- any loss


class AutogradHessian(OutputMetric):
    """The Hessian of any loss in its outputs, by double backward from copies of them.

    Parameters that the loss uses besides (a penalty on weights) count as outputs of their own.
    """

    def __init__(self, heads: list[Tensor], inputs: list[Tensor], used: list[int], direct: list[int]) -> None:
        self.used = used
        self._heads, self._inputs, self._direct = heads, inputs, direct

    def __call__(self, tangents: list[Tensor], pieces: list[Tensor]) -> tuple[list[Tensor], list[Tensor] | None]:
        """H w."""
        if not self._heads:
            return [], None
        found = self._product([*tangents, *(pieces[i] for i in self._direct)])
        if not self._direct:
            return list(found), None
        of_parameters = [torch.zeros_like(p) for p in pieces]
        for i, product in zip(self._direct, found[len(self.used) :], strict=True):
            of_parameters[i] = product
        return list(found[: len(self.used)]), of_parameters

    def vanishes(self) -> bool:
        """Whether its product with a random vector is exactly zero, as where the loss is linear."""
        own = torch.Generator().manual_seed(0)
        along = [torch.randn(t.shape, generator=own).to(t) for t in self._inputs]
        return not self._heads or not any(bool(t.any()) for t in self._product(along))

    def _product(self, along: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            self._heads, self._inputs, along, retain_graph=True, allow_unused=True, materialize_grads=True
        )


def autograd_hessian(seen: Evaluated) -> AutogradHessian:
    """The Hessian of whatever the loss is.

    Raises:
        DoubleBackwardError: if it has an operation that says it can be differentiated once only.
    """
    leaves = [t.detach().requires_grad_() for t in seen.tensors]
    parameters = list(seen.objective.parameters.values())
    loss = seen.value(seen.outputs_with([leaf.clone() for leaf in leaves]))  # a criterion may write on its input
    inputs = [*leaves, *parameters]
    gradients: list[Tensor | None] = [None] * len(inputs)
    if loss.requires_grad:
        refuse_once_differentiable(loss, differences=False)
        gradients = list(torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True))
    # A gradient without a graph is constant: the loss is linear there, and its Hessian zero.
    live = [i for i, g in enumerate(gradients) if g is not None and g.requires_grad]
    heads = [g for i in live if (g := gradients[i]) is not None]
    used = [i for i in live if i < len(leaves)]
    direct = [i - len(leaves) for i in live if i >= len(leaves)]
    return AutogradHessian(heads, [inputs[i] for i in live], used, direct)


# --------------------------------------------------------------------------- losses with a closed form


class SeenHessian(OutputMetric):
    """``sum_j A_j' M_j A_j`` with A_j from the outputs to the input of a seen call, and M_j its curvature.

    Args:
        parts: A_j, the seen call, and the product with M_j, which may write on its argument.
    """

    def __init__(self, parts: list[tuple[_Affine, Prediction]]) -> None:
        self._parts: list[tuple[_Affine, Prediction, _Product]] = [(a, p, p.multiply_) for a, p in parts]
        self.used = sorted({i for affine, _ in parts for i in affine.used})
        self.psd = all(bool((prediction.mass >= 0).all()) for _, prediction in parts)
        self.bytes = sum(prediction.bytes for _, prediction in parts)

    def replaced(self, product: Callable[[Prediction], _Product]) -> SeenHessian:
        """This, with another product in place of that with the Hessian."""
        self._parts = [(affine, prediction, product(prediction)) for affine, prediction, _ in self._parts]
        return self

    def __call__(self, tangents: list[Tensor], pieces: list[Tensor]) -> tuple[list[Tensor], list[Tensor] | None]:
        """H w, in the memory of ``w`` where there is one call."""
        alone = len(self._parts) == 1 and len(tangents) == 1
        products = (
            product(w if alone and not _overlaps(w) else w.clone())
            for w, (_, _, product) in zip(self.push(tangents), self._parts, strict=True)
        )
        return self.pull(products), None

    @property
    def calls(self) -> list[Prediction]:
        """The seen calls."""
        return [prediction for _, prediction, _ in self._parts]

    def push(self, tangents: list[Tensor]) -> Iterator[Tensor]:
        """A_j w for each of the calls, from one tensor for each output that is used."""
        for affine, _, _ in self._parts:
            yield affine.push([tangents[self.used.index(i)] for i in affine.used])

    def pull(self, cotangents: Iterable[Tensor]) -> list[Tensor]:
        """``sum_j A_j' w_j``, one tensor for each output that is used, from one for each of the calls."""
        found: list[Tensor | None] = [None] * len(self.used)
        for (affine, _, _), w in zip(self._parts, cotangents, strict=True):
            for i, piece in zip(affine.used, affine.pull(w), strict=True):
                before = found[self.used.index(i)]
                found[self.used.index(i)] = piece if before is None else before + piece
        return [t for t in found if t is not None]


class _Affine:
    """The linear part of an affine map from outputs to the input ``x`` of a call, kept as a graph only."""

    def __init__(self, x: Tensor, edges: list[GradientEdge]) -> None:
        self.exact = False
        node = get_gradient_edge(x).node  # one that was written on has another
        self._same = next((i for i, edge in enumerate(edges) if edge.node is node), None)
        if self._same is not None:
            self.used, self.exact = [self._same], True
            return
        if _sources(x.grad_fn, {edge.node for edge in edges}):  # it depends on more than the outputs
            return
        self._x, self._u = get_gradient_edge(x), stand_in(x)
        pulled = torch.autograd.grad(x, edges, self._u, create_graph=True, allow_unused=True)
        self.used = [i for i, g in enumerate(pulled) if g is not None]
        self._inputs = [edges[i] for i in self.used]
        self._pulled = [get_gradient_edge(g) for g in pulled if g is not None]
        leaf = get_gradient_edge(self._u).node
        self.exact = all(_sources(edge.node, set()) <= {leaf} for edge in self._pulled)

    def push(self, tangents: list[Tensor]) -> Tensor:
        """A w."""
        if self._same is not None:
            return tangents[0]
        return torch.autograd.grad(self._pulled, self._u, tangents, retain_graph=True)[0]

    def pull(self, w: Tensor) -> list[Tensor]:
        """A' w, one tensor per output used."""
        if self._same is not None:
            return [w]
        return list(torch.autograd.grad([self._x], self._inputs, [w], retain_graph=True))


class _Watch(TorchFunctionMode):
    """Puts a leaf with the same value in the place of every call of `FORMS` that depends on the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Prediction, Tensor]] = []
        self.sure = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        form = FORMS.get(func)
        if form is None:
            return func(*args, **kwargs)
        options = options_of(func, args, kwargs)
        if form.function is torch.nn.functional.mse_loss and not options["input"].requires_grad:
            options |= {"input": options["target"], "target": options["input"]}  # it is symmetric
        call = form(options)
        if not call.x.requires_grad:
            self.sure &= not any(isinstance(v, Tensor) and v.requires_grad for v in options.values())
            return func(*args, **kwargs)
        if not self._plain(call):
            self.sure = False
            return func(*args, **kwargs)
        token = call.entries().requires_grad_()
        self.calls.append((call, token))
        if options["reduction"] == "none":
            return token
        return token.sum() if options["reduction"] == "sum" else token.sum() / call.denominator(token)

    def _plain(self, call: Prediction) -> bool:
        """Whether the call is a function of its input as `Prediction` describes it, outside any transform."""
        options = call.options
        others = [v for name, v in options.items() if name != "input" and isinstance(v, Tensor)]
        call.x.data_ptr()  # raises for a tensor of vmap, which is no tensor outside it
        return (
            call.known()
            and options["size_average"] is None
            and options["reduce"] is None
            and options["reduction"] in ("none", "sum", "mean")
            and not any(t.requires_grad for t in others)
        )


def seen_hessian(seen: Evaluated) -> SeenHessian | None:
    """The Hessian in closed form, or None where the loss is not certainly made of calls of `FORMS`."""
    watch = _Watch()
    edges = [get_gradient_edge(t) for t in seen.tensors]
    try:
        with watch:
            loss = seen.value(seen.outputs)
    except Exception:  # whatever a foreign function makes of it: the general way will show what is wrong
        return None
    tokens = [token for _, token in watch.calls]
    if not watch.sure or not tokens or not loss.requires_grad:
        return None
    if not _sources(loss.grad_fn, set()) <= {get_gradient_edge(token).node for token in tokens}:
        return None
    factors = torch.autograd.grad(loss, tokens, create_graph=True, allow_unused=True, materialize_grads=True)
    if any(f.requires_grad for f in factors):
        return None
    parts = [(_Affine(call.x, edges), call) for call, _ in watch.calls]
    if not all(affine.exact for affine, _ in parts):
        return None
    for (_, call), factor in zip(parts, factors, strict=True):
        call.weigh(factor.detach())
    return SeenHessian(parts)


def _sources(start: Node | None, stop: set[Node]) -> set[Node]:
    """The ends of the graph behind ``start``, not looking behind those in ``stop``."""
    pending, seen, ends = [start], set(stop), set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        if not parents:
            ends.add(node)
        pending += parents
    return ends


def _overlaps(tensor: Tensor) -> bool:
    """Whether several entries of a tensor may be in one place, as in one that was expanded."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += stride * (size - 1)
    return False
