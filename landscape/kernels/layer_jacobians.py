"""Derivatives of single samples' outputs by the parameters of a layer, from what enters the layer and what comes back.

A linear layer's weight has the derivative ``sum_t b_t a_t'`` with a_t its inputs at position t and b_t the
derivative of an output of the model by its output there (Goodfellow 2015, "Efficient per-example gradient
computations"; a convolution is a linear layer on patches: Rochette et al. 2019). One backward pass over a whole batch
then serves all of its samples. Any other layer with one input and one output is differentiated by itself, vectorised.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, vjp, vmap
from torch.nn import functional as F

from .inner_products import add_products

__all__ = ["Call", "Shape", "add_layer_jacobians", "shape_of", "watched_layers"]

Rule = Callable[[Any, Tensor, Sequence[Tensor], Mapping[str, Tensor]], None]
"""``rule(module, x, b, into)``, x and k of b (n, r, ...): adds to the (n, k, numel) of own parameters."""

_BY_CHANNEL = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


@dataclass(frozen=True)
class Shape:
    """Of the sum ``sum_t b_t a_t'`` that the derivative by a weight is, for a sample.

    Attributes:
        positions: t.
        entering: entries of a_t.
        leaving: entries of b_t.
    """

    positions: int
    entering: int
    leaving: int


class Call:
    """One call of a layer: what went in, and where the derivative by what came out is found.

    Attributes:
        module: the layer.
        x: its input.
        edge: its output in the graph.
        shape: of its output.
    """

    def __init__(self, module: nn.Module, x: Tensor, out: Tensor) -> None:
        self.module, self.x, self.shape = module, x.detach(), out.shape
        self.edge: GradientEdge = get_gradient_edge(out)


@contextlib.contextmanager
def watched_layers(model: nn.Module, wanted: set[int], calls: list[Call]) -> Iterator[None]:
    """Append the calls of layers that own a parameter whose id is wanted; inside an objective's evaluation.

    A layer that is called otherwise than with one tensor, or returns something else, leaves nothing.
    """

    def seen(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        plain = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(out, Tensor)
        if plain and out.requires_grad and out.ndim and args[0].ndim:
            calls.append(Call(module, args[0], out))

    handles = []
    for module in model.modules():
        own = [p for p in module._parameters.values() if p is not None]
        if any(id(p) in wanted for p in own) and not list(module.children()):
            handles.append(module.register_forward_hook(seen, with_kwargs=True, prepend=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def shape_of(call: Call, samples: int) -> Shape | None:
    """Of the derivatives by the layer's weight, where they are sums over positions; else None."""
    module, x = call.module, call.x
    if x.shape[0] % samples or call.shape[0] % samples:
        return None
    if type(module) is nn.Linear:
        return Shape(x.numel() // samples // x.shape[-1], x.shape[-1], module.out_features)
    if isinstance(module, nn.modules.conv._ConvNd) and type(module) in _BY_POSITION and module.groups == 1:
        out = module.out_channels
        return Shape(call.shape.numel() // samples // out, module.weight.numel() // out, out)
    return None


def add_layer_jacobians(
    call: Call,
    b: Sequence[Tensor],
    samples: int,
    into: Mapping[int, Tensor],
    factors: Mapping[int, tuple[Tensor, Tensor]] | None = None,
) -> None:
    """Add the derivatives by the layer's own parameters to what other calls have left.

    Where rows do not belong to samples, nothing is added.

    Args:
        call: of the layer.
        b: k of (...), the derivatives of k outputs of the model by the layer's output, for all samples.
        samples: n; the first dimension holds n, or r rows for each of them, sample after sample.
        into: (n, k, numel) each, by the ids of the parameters; others are left out.
        factors: for weights whose `shape_of` is known, room for a (n, t, entering) and for b (n, t, k, leaving) of
            this call, in place of the derivative.
    """
    x, module = call.x, call.module
    if x.shape[0] % samples or b[0].shape[0] % samples:
        return
    x = x.reshape(samples, -1, *x.shape[1:])
    b = [row.reshape(samples, -1, *row.shape[1:]) for row in b]
    named = {name: id(p) for name, p in module._parameters.items() if p is not None}
    if factors and (room := factors.get(named.get("weight", 0))) is not None:
        _keep(module, x, b, *room)
    if own := {name: into[key] for name, key in named.items() if key in into}:
        _rule_of(module)(module, x, b, own)


def _rule_of(module: nn.Module) -> Rule:
    if type(module) in _BY_POSITION:
        return _by_position
    if isinstance(module, _BY_CHANNEL) and not module.training:
        return _by_channel
    if type(module) in (nn.LayerNorm, nn.RMSNorm):
        return _by_entry
    return _differentiated


def _by_position(module: Any, x: Tensor, b: Sequence[Tensor], into: Mapping[str, Tensor]) -> None:
    """A layer that is linear at each position."""
    entering, leaving = _BY_POSITION[type(module)]
    rows = leaving(module, torch.stack(list(b), dim=1))
    if "weight" in into:
        _add_outer(rows, entering(module, x), getattr(module, "groups", 1), into["weight"])
    if "bias" in into:
        into["bias"].add_(rows.sum(dim=3))


def _keep(module: Any, x: Tensor, b: Sequence[Tensor], a: Tensor, kept: Tensor) -> None:
    """Copy a_t to (n, t, entering) and b_t to (n, t, k, leaving)."""
    entering, leaving = _BY_POSITION[type(module)]
    a.copy_(entering(module, x))
    kept.copy_(leaving(module, torch.stack(list(b), dim=1)).permute(0, 3, 1, 2))


def _add_outer(b: Tensor, x: Tensor, groups: int, into: Tensor) -> None:
    """Add ``sum_t b_t x_t'`` from b (n, k, out, t) and x (n, t, in) to (n, k, out * in / groups)."""
    (n, k), b, x = b.shape[:2], b.to(into.dtype), x.to(into.dtype)  # a model may compute in several
    if groups == 1:
        add_products(b.flatten(1, 2), x, into.view(n, b.shape[1] * b.shape[2], -1))
        return
    shares = into.view(n, k, groups, -1).unbind(dim=2)
    for share, out, part in zip(shares, b.chunk(groups, 2), x.chunk(groups, 2), strict=True):
        share.add_(torch.einsum("nkot,nti->nkoi", out, part).flatten(2))


def _entering_linear(module: nn.Linear, x: Tensor) -> Tensor:
    return x.reshape(len(x), -1, x.shape[-1])


def _leaving_linear(module: nn.Linear, b: Tensor) -> Tensor:
    return b.reshape(*b.shape[:2], -1, b.shape[-1]).transpose(2, 3)


def _entering_convolution(module: nn.modules.conv._ConvNd, x: Tensor) -> Tensor:
    patches = _patches(module, x.flatten(0, 1))  # (n r, in * kernel, t)
    return patches.reshape(*x.shape[:2], *patches.shape[1:]).transpose(1, 2).flatten(2).transpose(1, 2)


def _leaving_convolution(module: nn.modules.conv._ConvNd, b: Tensor) -> Tensor:
    return b.flatten(4).transpose(2, 3).flatten(3)


# what enters at the positions (n, t, in), and the outputs' derivatives by what leaves there (n, k, out, t)
_BY_POSITION: dict[type, tuple[Callable[[Any, Tensor], Tensor], Callable[[Any, Tensor], Tensor]]] = {
    nn.Linear: (_entering_linear, _leaving_linear),
    nn.Conv1d: (_entering_convolution, _leaving_convolution),
    nn.Conv2d: (_entering_convolution, _leaving_convolution),
    nn.Conv3d: (_entering_convolution, _leaving_convolution),
}


def _patches(module: nn.modules.conv._ConvNd, x: Tensor) -> Tensor:
    """The inputs under the kernel at each position, (n, in * kernel, t).

    One copy of a view: several times as fast as ``F.unfold`` on a CPU, and of any number of dimensions.
    """
    padding = list(module._reversed_padding_repeated_twice)
    if any(padding):
        x = F.pad(x, padding, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
    dims = len(module.kernel_size)
    for d, size in enumerate(module.kernel_size):
        dilation = module.dilation[d]
        x = x.unfold(2 + d, dilation * (size - 1) + 1, module.stride[d])[..., ::dilation]
    positions, kernel = range(2, 2 + dims), range(2 + dims, 2 + 2 * dims)
    return x.permute(0, 1, *kernel, *positions).flatten(2 + dims).flatten(1, 1 + dims)


def _by_channel(module: nn.Module, x: Tensor, b: Sequence[Tensor], into: Mapping[str, Tensor]) -> None:
    """A normalisation with one factor for each channel."""
    _add_products(module, x.flatten(0, 1), (*x.shape[:3], -1), (1, 3), b, into)


def _by_entry(module: nn.LayerNorm, x: Tensor, b: Sequence[Tensor], into: Mapping[str, Tensor]) -> None:
    """A normalisation with one factor for each entry of the last dimensions."""
    _add_products(module, x, (len(x), -1, module.weight.numel()), (1,), b, into)


def _add_products(
    module: nn.Module, x: Tensor, shape: tuple[int, ...], over: tuple[int, ...], b: Sequence[Tensor],
    into: Mapping[str, Tensor],
) -> None:  # fmt: skip
    """An output at a time, whose products stay in the cache; summed over some dimensions of a shape."""
    plain = _without_affine(module, x).reshape(shape) if "weight" in into else None
    for k, row in enumerate(b):
        row = row.reshape(shape)
        if plain is not None:
            into["weight"][:, k] += (plain * row).sum(dim=over)
        if "bias" in into:
            into["bias"][:, k] += row.sum(dim=over)


def _without_affine(module: nn.Module, x: Tensor) -> Tensor:
    neutral = {"weight": torch.ones_like, "bias": torch.zeros_like}
    own = {name: make(p) for name, make in neutral.items() if (p := module._parameters.get(name)) is not None}
    with torch.no_grad():
        return functional_call(module, own, (x,))


def _differentiated(module: nn.Module, x: Tensor, b: Sequence[Tensor], into: Mapping[str, Tensor]) -> None:
    """Any layer, by itself: vectorised over samples and outputs."""
    values = {name: p.detach() for name, p in module._parameters.items() if p is not None}

    def of_sample(x: Tensor, b: Tensor) -> dict[str, Tensor]:
        pull = vjp(lambda own: functional_call(module, own, (x,)), values)[1]
        return vmap(lambda one: pull(one)[0])(b)

    found = vmap(of_sample)(x, torch.stack(list(b), dim=1))
    for name, J in into.items():
        J.add_(found[name].flatten(2))
