"""Derivatives of single samples' outputs by the parameters of a layer, from what enters the layer and what comes back.

A linear layer's weight has the derivative ``sum_t b_t a_t'`` with a_t its inputs at position t and b_t the
derivative of an output of the model by its output there (Goodfellow 2015, "Efficient per-example gradient
computations"; a convolution is a linear layer on patches: Rochette et al. 2019). One backward pass over a whole batch
then serves all of its samples. Any other layer with one input and one output is differentiated by itself, vectorised.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, vjp, vmap
from torch.nn import functional as F

__all__ = ["Call", "layer_jacobians", "watched_layers"]

Rule = Callable[[Any, Tensor, Tensor], dict[str, Tensor]]
"""``rule(module, x, b)``, x (n, r, ...) and b (k, n, r, ...): one (n, k, numel) per own parameter."""

_BY_CHANNEL = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


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


def layer_jacobians(call: Call, b: Tensor, samples: int) -> dict[int, Tensor]:
    """The derivatives by the layer's own parameters, by their ids.

    Args:
        call: of the layer.
        b: (k, ...), the derivatives of k outputs of the model by the layer's output, for all samples.
        samples: n; the first dimension holds n, or r rows for each of them, sample after sample.

    Returns:
        (n, k, numel) each; none where rows do not belong to samples so.
    """
    x, module = call.x, call.module
    if x.shape[0] % samples or b.shape[1] % samples:
        return {}
    x = x.reshape(samples, -1, *x.shape[1:])
    b = b.reshape(len(b), samples, -1, *b.shape[2:])
    found = _rule_of(module)(module, x, b)
    return {id(p): found[name] for name, p in module._parameters.items() if p is not None and name in found}


def _rule_of(module: nn.Module) -> Rule:
    if type(module) is nn.Linear:
        return _linear
    if type(module) in (nn.Conv1d, nn.Conv2d):
        return _convolution
    if isinstance(module, _BY_CHANNEL) and not module.training:
        return _by_channel
    if type(module) in (nn.LayerNorm, nn.RMSNorm):
        return _by_entry
    return _differentiated


def _linear(module: nn.Linear, x: Tensor, b: Tensor) -> dict[str, Tensor]:
    k, n = b.shape[:2]
    x, b = x.reshape(n, -1, x.shape[-1]), b.reshape(k, n, -1, b.shape[-1])
    return {"weight": _outer(b.transpose(2, 3), x, n), "bias": b.sum(dim=2).transpose(0, 1)}


def _outer(b: Tensor, x: Tensor, n: int) -> Tensor:
    """``sum_t b_t x_t'`` from b (k, n, out, t) and x (n, t, in): -> (n, k, out * in)."""
    k = len(b)
    rows = b.transpose(0, 1).reshape(n, -1, b.shape[-1])
    return torch.bmm(rows, x).reshape(n, k, -1)


def _convolution(module: nn.Conv1d | nn.Conv2d, x: Tensor, b: Tensor) -> dict[str, Tensor]:
    n, r = b.shape[1:3]
    patches, positions = _patches(module, x.flatten(0, 1)), b.flatten(4)  # (n r, in * kernel, t), (k, n, r, out, t)
    groups = module.groups
    per_group = [
        _outer(
            out.transpose(2, 3).flatten(3),
            part.reshape(n, r, part.shape[1], -1).permute(0, 1, 3, 2).flatten(1, 2).contiguous(),
            n,
        )
        for out, part in zip(positions.chunk(groups, dim=3), patches.chunk(groups, dim=1), strict=True)
    ]
    weight = per_group[0] if groups == 1 else torch.cat(per_group, dim=2)  # of one, cat makes a copy
    return {"weight": weight, "bias": positions.sum(dim=(2, 4)).transpose(0, 1)}


def _patches(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """The inputs under the kernel at each position, (n, in * kernel, t)."""
    padding = list(module._reversed_padding_repeated_twice)
    x = F.pad(x, padding, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
    kernel, dilation, stride = module.kernel_size, module.dilation, module.stride
    if x.ndim == 3:
        x, kernel, dilation, stride = x[:, :, None], (1, *kernel), (1, *dilation), (1, *stride)
    return F.unfold(x, kernel, dilation=dilation, stride=stride)


def _by_channel(module: nn.Module, x: Tensor, b: Tensor) -> dict[str, Tensor]:
    """A normalisation with one factor for each channel."""
    k, n, r = b.shape[:3]
    plain = _without_affine(module, x.flatten(0, 1)).reshape(n, r, x.shape[2], -1)
    b = b.reshape(k, n, r, x.shape[2], -1)
    return {"weight": torch.einsum("nrct,knrct->nkc", plain, b), "bias": b.sum(dim=(2, 4)).transpose(0, 1)}


def _by_entry(module: nn.LayerNorm, x: Tensor, b: Tensor) -> dict[str, Tensor]:
    """A normalisation with one factor for each entry of the last dimensions."""
    k, n = b.shape[:2]
    size = module.weight.numel()
    plain = _without_affine(module, x).reshape(n, -1, size)
    b = b.reshape(k, n, -1, size)
    return {"weight": torch.einsum("nti,knti->nki", plain, b), "bias": b.sum(dim=2).transpose(0, 1)}


def _without_affine(module: nn.Module, x: Tensor) -> Tensor:
    neutral = {"weight": torch.ones_like, "bias": torch.zeros_like}
    own = {name: make(p) for name, make in neutral.items() if (p := module._parameters.get(name)) is not None}
    with torch.no_grad():
        return functional_call(module, own, (x,))


def _differentiated(module: nn.Module, x: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Any layer, by itself: vectorised over samples and outputs."""
    values = {name: p.detach() for name, p in module._parameters.items() if p is not None}

    def of_sample(x: Tensor, b: Tensor) -> dict[str, Tensor]:
        pull = vjp(lambda own: functional_call(module, own, (x,)), values)[1]
        return vmap(lambda one: pull(one)[0])(b)

    found = vmap(of_sample, in_dims=(0, 1))(x, b)
    return {name: J.flatten(2) for name, J in found.items()}
