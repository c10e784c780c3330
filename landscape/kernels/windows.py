"""How a convolution sees an image: pixels under its kernel at each position, and inner products of what is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Reach", "image", "patches", "seen_products", "window_of"]


@dataclass(frozen=True)
class Reach:
    """Along one dimension: position y sees the pixels ``y * stride + d * dilation - before`` for each d.

    Attributes:
        pixels: what there is to be seen; around them are zeros.
        positions: how many y.
        kernel: how many d.
        stride: see above.
        dilation: see above.
        before: see above.
    """

    pixels: int
    positions: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    before: int = 0

    @property
    def plain(self) -> bool:
        """Whether each position sees the pixel at its place."""
        return (self.kernel, self.stride, self.before) == (1, 1, 0) and self.pixels == self.positions

    @property
    def span(self) -> int:
        """From the first to the last pixel that a position sees."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def after(self) -> int:
        """Zeros that the last position sees behind the last pixel."""
        return max(0, (self.positions - 1) * self.stride + self.span - self.before - self.pixels)

    def seen(self, d: int) -> tuple[slice, slice]:
        """The positions that see a pixel by d, and these pixels."""
        offset = d * self.dilation - self.before
        first = max(0, -(offset // self.stride))
        stop = max(first, min(self.positions, -((offset - self.pixels) // self.stride)))
        start = first * self.stride + offset
        return slice(first, stop), slice(start, start + (stop - first) * self.stride, self.stride)


def window_of(module: Any, rows: int, pixels: Sequence[int], positions: Sequence[int]) -> tuple[Reach, ...]:
    """Of a convolution, whose images have so many rows for a sample: the rows, and the dimensions of one."""
    padding = list(module._reversed_padding_repeated_twice)[
        ::-1
    ]  # after and before the first dimension, the second, ...
    zeros = module.padding_mode == "zeros"
    reach = [Reach(rows, rows)]
    for d, size in enumerate(module.kernel_size):
        after, before = padding[2 * d : 2 * d + 2]
        there = pixels[d] if zeros else pixels[d] + before + after
        reach.append(Reach(there, positions[d], size, module.stride[d], module.dilation[d], before if zeros else 0))
    return tuple(reach)


def image(module: Any, x: Tensor) -> Tensor:
    """What is seen of inputs x (n, r, channels, ...), but for zeros around it: (n, channels, r, ...)."""
    padding = list(module._reversed_padding_repeated_twice)
    if any(padding) and module.padding_mode != "zeros":
        x = F.pad(x.flatten(0, 1), padding, mode=module.padding_mode).unflatten(0, x.shape[:2])
    return x.transpose(1, 2)


def patches(images: Tensor, window: Sequence[Reach], into: Tensor) -> None:
    """Write what is seen at each position to (n, channels * kernel, t), of images (n, channels, ...).

    One copy of a view: several times as fast as ``F.unfold`` on a CPU, and of any number of dimensions.
    """
    padding = [size for reach in reversed(window) for size in (reach.before, reach.after)]
    x = F.pad(images, padding) if any(padding) else images
    for d, reach in enumerate(window):
        x = x.unfold(2 + d, reach.span, reach.stride)[..., :: reach.dilation]
    dims = len(window)
    x = x.permute(0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))  # the kernel, then positions
    into.unflatten(1, x.shape[1 : 2 + dims]).unflatten(-1, x.shape[2 + dims :]).copy_(x)


def seen_products(products: Tensor, window: Sequence[Reach], beside: int) -> Tensor:
    """Inner products of what is seen at two positions, from those of two pixels: one dimension after the other.

    Args:
        products: first of the dimensions of one image, so many ``beside`` it, those of the other image, and any.
        window: dimensions.
        beside: see above.
    """
    for d, reach in enumerate(window):
        if not reach.plain:
            products = _summed(products, reach, d, d + len(window) + beside)
    return products


def _summed(products: Tensor, reach: Reach, one: int, other: int) -> Tensor:
    """Over what both positions see by the same d."""
    found: Tensor | None = None
    seen = [reach.seen(d) for d in range(reach.kernel)]
    for positions, pixels in sorted(seen, key=lambda each: each[0].start - each[0].stop):  # the most first
        part = products[_both(one, other, pixels)]
        if found is None and positions == slice(0, reach.positions):
            found = part.clone(memory_format=torch.contiguous_format)
            continue
        if found is None:
            shape = list(products.shape)
            shape[one] = shape[other] = reach.positions
            found = products.new_zeros(shape)
        found[_both(one, other, positions)] += part
    assert found is not None
    return found


def _both(one: int, other: int, some: slice) -> tuple[slice, ...]:
    """The same part of two dimensions."""
    return tuple(some if d in (one, other) else slice(None) for d in range(other + 1))
