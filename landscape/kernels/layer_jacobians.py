"""Derivatives of single samples' outputs by the parameters of a layer, from what enters the layer and what comes back.

A linear layer's weight has the derivative ``sum_t b_t a_t'`` with a_t its inputs at position t and b_t the
derivative of an output of the model by its output there (Goodfellow 2015, "Efficient per-example gradient
computations"; a convolution is a linear layer on patches: Rochette et al. 2019). One backward pass over a whole batch
then serves all of its samples. Any other layer with one input and one output is differentiated by itself, vectorised.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, vjp, vmap

from .inner_products import add_products
from .windows import Reach, image, patches, window_of

__all__ = ["Call", "LayerJacobians", "Scratch", "Shape", "bytes_held", "shape_of", "watched_layers"]

_BY_CHANNEL = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)

_SMALL = 1 << 14
"""Entries of what comes back for an output, of which fewer are kept for one step with those of the other outputs."""


@dataclass(frozen=True)
class Shape:
    """Of the sum ``sum_t b_t a_t'`` that the derivative by a weight is, for a sample.

    Attributes:
        positions: t.
        entering: entries of a_t.
        leaving: entries of b_t.
        window: how a_t is seen of an image by a convolution, dimension after dimension; empty for other layers.
    """

    positions: int
    entering: int
    leaving: int
    window: tuple[Reach, ...] = ()

    @property
    def channels(self) -> int:
        """Of the image."""
        return self.entering // math.prod(reach.kernel for reach in self.window)

    @property
    def pixels(self) -> int:
        """Of the image."""
        return math.prod(reach.pixels for reach in self.window)


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
        window = window_of(module, x.shape[0] // samples, x.shape[2:], call.shape[2:])
        return Shape(call.shape.numel() // samples // out, module.weight.numel() // out, out, window)
    return None


class Scratch:
    """Memory that is taken again and again: the system takes longer to give new memory than it takes to write on it."""

    def __init__(self) -> None:
        self._room: Tensor | None = None
        self._wanted = self._taken = 0

    def start(self, entries: int) -> None:
        """What was taken is free; at most so many entries will be taken at a time."""
        self._wanted, self._taken = entries, 0

    def take(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor with anything in it."""
        size, room = math.prod(shape), self._room
        if room is None or len(room) < self._wanted or (room.dtype, room.device) != (like.dtype, like.device):
            if self._taken or size > self._wanted:
                return like.new_empty(shape)
            room = self._room = like.new_empty(self._wanted)
        if self._taken + size > len(room):
            return like.new_empty(shape)
        self._taken += size
        return room[self._taken - size : self._taken].view(shape)

    @contextlib.contextmanager
    def lent(self, shape: tuple[int, ...], like: Tensor) -> Iterator[Tensor]:
        """The same for a while."""
        before = self._taken
        yield self.take(shape, like)
        self._taken = before


class LayerJacobians:
    """Adds the derivatives by a layer's own parameters to what other calls have left, an output after the other.

    What comes back for an output is taken while it is in the cache, and is not kept for the others.
    Where rows do not belong to samples, nothing is added.

    Args:
        call: of the layer.
        samples: n; the first dimension holds n, or r rows for each of them, sample after sample.
        outputs: k.
        into: (n, k, numel) each, by the ids of the parameters; others are left out.
        factors: for weights whose `shape_of` is known, in place of the derivative: room for a (n, t, entering), or for
            the image (n, pixels, channels) that it is seen of; room for b (n, t, k, leaving); whether it is the image.
        scratch: to work in.
    """

    def __init__(
        self,
        call: Call,
        samples: int,
        outputs: int,
        into: Mapping[int, Tensor],
        factors: Mapping[int, tuple[Tensor, Tensor, bool]] | None = None,
        scratch: Scratch | None = None,
    ) -> None:
        module = call.module
        self._samples, self._outputs = samples, outputs
        self._rules: list[_Rule] = []
        self._rows: list[Tensor] = []
        if call.x.shape[0] % samples or call.shape[0] % samples:
            return
        named = {name: id(p) for name, p in module._parameters.items() if p is not None}
        use = _Use(call, samples, outputs, scratch or Scratch())
        if factors and (room := factors.get(named.get("weight", 0))) is not None:
            self._rules.append(_Factors(use, *room))
        if own := {name: into[key] for name, key in named.items() if key in into}:
            self._rules.append(_rule_of(module)(use, own))

    @property
    def wanted(self) -> tuple[int, int]:
        """Entries that will be taken of `scratch`: until this is finished, and while it is."""
        return sum(rule.stacked for rule in self._rules), max((rule.unfolded for rule in self._rules), default=0)

    def add(self, k: int, b: Tensor) -> None:
        """The k-th output's, from its derivatives (...) by the layer's output, for all samples; k in turn."""
        if not self._rules:
            return
        self._rows.append(b.reshape(self._samples, 1, -1, *b.shape[1:]))
        if b.numel() > _SMALL:
            self._add(k + 1)

    def finish(self) -> None:
        """After the last output: what is faster for all of them at once."""
        self._add(self._outputs)
        for rule in self._rules:
            rule.finish()

    def _add(self, stop: int) -> None:
        """What has come back since the last time, up to an output."""
        if self._rows:
            b = self._rows[0] if len(self._rows) == 1 else torch.cat(self._rows, dim=1)
            for rule in self._rules:
                rule.add(slice(stop - len(self._rows), stop), b)
            self._rows.clear()


def bytes_held(call: Call, outputs: int, factored: Collection[int] = ()) -> int:
    """What `LayerJacobians` holds on to until it is finished.

    Args:
        call: of the layer.
        outputs: how many.
        factored: ids of the weights of which factors are kept.
    """
    rule = _rule_of(call.module)
    if issubclass(rule, _Normalised):
        return call.x.nbytes
    weight = call.module._parameters.get("weight")
    return 0 if rule is _ByPosition and id(weight) in factored else outputs * call.shape.numel() * call.x.element_size()


class _Use:
    """A call of a layer with x (n, r, ...), of whose output there will be derivatives of k outputs."""

    def __init__(self, call: Call, samples: int, outputs: int, scratch: Scratch) -> None:
        self.module: Any = call.module
        self.x = call.x.reshape(samples, -1, *call.x.shape[1:])
        self.shape, self.outputs, self.scratch = call.shape, outputs, scratch


class _Rule:
    """How some layers' derivatives are added to the (n, k, numel) of their own parameters."""

    stacked = unfolded = 0
    """Entries taken of the scratch, until it is finished and while it is."""

    def __init__(self, use: _Use, into: Mapping[str, Tensor]) -> None:
        self.use, self.into = use, into

    def add(self, some: slice, b: Tensor) -> None:
        """Of some outputs, from b (n, k, r, ...)."""
        raise NotImplementedError

    def finish(self) -> None:
        """Nothing is left, if not said otherwise."""


class _ByPosition(_Rule):
    """A layer that is linear at each position: the derivatives of all outputs are stacked for one product."""

    def __init__(self, use: _Use, into: Mapping[str, Tensor]) -> None:
        super().__init__(use, into)
        self._entering, self._leaving = _BY_POSITION[type(use.module)]
        self._stacked: Tensor | None = None
        if "weight" in into:
            self.stacked, self.unfolded = use.outputs * math.prod(use.shape), math.prod(_unfolded(use))

    def add(self, some: slice, b: Tensor) -> None:
        b = self._leaving(self.use.module, b)
        if "weight" in self.into:
            if self._stacked is None:
                self._stacked = self.use.scratch.take((len(b), self.use.outputs, *b.shape[2:]), b)
            self._stacked[:, some].copy_(b)
        if "bias" in self.into:
            self.into["bias"][:, some] += b.sum(dim=3)

    def finish(self) -> None:
        if self._stacked is not None:
            with self.use.scratch.lent(_unfolded(self.use), self.use.x) as room:
                a = self._entering(self.use, room)
                _add_outer(self._stacked, a, getattr(self.use.module, "groups", 1), self.into["weight"])


class _Factors(_Rule):
    """Keeps a_t, or the image it is seen of, and b_t."""

    def __init__(self, use: _Use, a: Tensor, b: Tensor, imaged: bool) -> None:
        super().__init__(use, {})
        entering, self._leaving = _BY_POSITION[type(use.module)]
        if imaged:
            a.copy_(image(use.module, use.x).flatten(2).transpose(1, 2))
        elif type(use.module) is nn.Linear:
            a.copy_(entering(use, a))
        else:
            entering(use, a.transpose(1, 2))
        self._b = b

    def add(self, some: slice, b: Tensor) -> None:
        self._b[:, :, some].copy_(self._leaving(self.use.module, b).permute(0, 3, 1, 2))


class _Normalised(_Rule):
    """A normalisation: what it made of x before its own factors, times what came back, summed over dimensions."""

    over: tuple[int, ...]

    def __init__(self, use: _Use, into: Mapping[str, Tensor]) -> None:
        super().__init__(use, into)
        self._plain = self._shaped(_without_affine(use.module, self._whole(use.x))) if "weight" in into else None

    def add(self, some: slice, b: Tensor) -> None:
        b = self._shaped(b.flatten(0, 1)).unflatten(0, b.shape[:2])
        over = tuple(dim + 1 for dim in self.over)
        if self._plain is not None:
            self.into["weight"][:, some] += (self._plain[:, None] * b).sum(dim=over)
        if "bias" in self.into:
            self.into["bias"][:, some] += b.sum(dim=over)

    def _whole(self, x: Tensor) -> Tensor:
        """As the layer takes it."""
        return x

    def _shaped(self, x: Tensor) -> Tensor:
        """With what has a factor of its own in one dimension, and `over` those of which sums are taken."""
        raise NotImplementedError


class _ByChannel(_Normalised):
    """With one factor for each channel."""

    over = (1, 3)

    def _whole(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)

    def _shaped(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *self.use.x.shape[1:3], math.prod(self.use.x.shape[3:]))


class _ByEntry(_Normalised):
    """With one factor for each entry of the last dimensions."""

    over = (1,)

    def _shaped(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, self.use.module.weight.numel())


class _Differentiated(_Rule):
    """Any layer, by itself: vectorised over samples and outputs."""

    def __init__(self, use: _Use, into: Mapping[str, Tensor]) -> None:
        super().__init__(use, into)
        self._rows: list[Tensor] = []

    def add(self, some: slice, b: Tensor) -> None:
        self._rows.append(b)

    def finish(self) -> None:
        module = self.use.module
        values = {name: p.detach() for name, p in module._parameters.items() if p is not None}

        def of_sample(x: Tensor, b: Tensor) -> dict[str, Tensor]:
            pull = vjp(lambda own: functional_call(module, own, (x,)), values)[1]
            return vmap(lambda one: pull(one)[0])(b)

        found = vmap(of_sample)(self.use.x, torch.cat(self._rows, dim=1))
        for name, J in self.into.items():
            J.add_(found[name].flatten(2))


def _rule_of(module: nn.Module) -> type[_Rule]:
    if type(module) in _BY_POSITION:
        return _ByPosition
    if isinstance(module, _BY_CHANNEL) and not module.training:
        return _ByChannel
    if type(module) in (nn.LayerNorm, nn.RMSNorm):
        return _ByEntry
    return _Differentiated


def _add_outer(b: Tensor, x: Tensor, groups: int, into: Tensor) -> None:
    """Add ``sum_t b_t x_t'`` from b (n, k, out, t) and x (n, t, in) to (n, k, out * in / groups)."""
    (n, k), b, x = b.shape[:2], b.to(into.dtype), x.to(into.dtype)  # a model may compute in several
    if groups == 1:
        add_products(b.flatten(1, 2), x, into.view(n, b.shape[1] * b.shape[2], -1))
        return
    shares = into.view(n, k, groups, -1).unbind(dim=2)
    for share, out, part in zip(shares, b.chunk(groups, 2), x.chunk(groups, 2), strict=True):
        share.add_(torch.einsum("nkot,nti->nkoi", out, part).flatten(2))


def _unfolded(use: _Use) -> tuple[int, ...]:
    """The shape of a convolution's patches (n, in * kernel, t)."""
    if isinstance(use.module, nn.Linear):
        return (0,)
    seen = use.x.shape[2] * math.prod(use.module.kernel_size)
    return len(use.x), seen, use.x.shape[1] * math.prod(use.shape[2:])


def _entering_linear(use: _Use, room: Tensor) -> Tensor:
    return use.x.reshape(len(use.x), -1, use.x.shape[-1])


def _leaving_linear(module: nn.Linear, b: Tensor) -> Tensor:
    return b.reshape(*b.shape[:2], -1, b.shape[-1]).transpose(2, 3)


def _entering_convolution(use: _Use, room: Tensor) -> Tensor:
    window = window_of(use.module, use.x.shape[1], use.x.shape[3:], use.shape[2:])
    patches(image(use.module, use.x), window, room)
    return room.transpose(1, 2)


def _leaving_convolution(module: nn.modules.conv._ConvNd, b: Tensor) -> Tensor:
    return b.flatten(4).transpose(2, 3).flatten(3)


# what enters at the positions (n, t, in), and outputs' derivatives by what leaves there (n, k, out, t)
_BY_POSITION: dict[type, tuple[Callable[[_Use, Tensor], Tensor], Callable[[Any, Tensor], Tensor]]] = {
    nn.Linear: (_entering_linear, _leaving_linear),
    nn.Conv1d: (_entering_convolution, _leaving_convolution),
    nn.Conv2d: (_entering_convolution, _leaving_convolution),
    nn.Conv3d: (_entering_convolution, _leaving_convolution),
}


def _without_affine(module: nn.Module, x: Tensor) -> Tensor:
    neutral = {"weight": torch.ones_like, "bias": torch.zeros_like}
    own = {name: make(p) for name, make in neutral.items() if (p := module._parameters.get(name)) is not None}
    with torch.no_grad():
        return functional_call(module, own, (x,))
