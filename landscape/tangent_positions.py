r"""A weight's share of the tangent kernel from the factors that its Jacobians are products of.

The derivative of an output by a linear layer's weight is a sum over positions, :math:`J = \sum_t b_t a_t^\top`, so that

.. math:: \langle J(x), J(x') \rangle = \sum_{tt'} (a_t \cdot a'_{t'}) (b_t \cdot b'_{t'})

(the structured derivatives of Novak et al. 2022, "Fast finite width neural tangent kernel"). Where a layer has few
positions this is far less work than the product of the Jacobians: in an MLP there is one. The factors a and b take
less memory as well; where only that is so, the Jacobians are made of them a few outputs at a time.

Of a convolution the image is kept, which is less than what is seen of it at all positions; inner products of what is
seen are then sums of those of pixels, and where there are few pixels, these are far fewer multiplications.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from .kernels.inner_products import inner_products, products
from .kernels.layer_jacobians import Shape
from .kernels.windows import patches, seen_products

__all__ = ["Factors", "by_pixels", "entries", "fewer", "imaged", "joined", "pays", "remade"]

_BYTES = 16 << 20  # of the inner products at once: more are no faster
_REMADE = 12 << 20  # entries of Jacobians that are made of factors at once: more are no faster
_FEW = 16  # samples whose patches are made at once: they stay in the cache
_STRIPES = 16  # of samples: of a symmetric product only the upper half is computed
_NARROWEST = 64  # positions in a stripe: products of fewer are slow
_SUMMING = 16  # multiplications that take as long as to multiply and add two inner products, which is slow for memory


def pays(shape: Shape, rows: int) -> bool:
    """Whether inner products at positions are less work than those of Jacobians, of so many outputs."""
    t = shape.positions
    at_positions = t**2 * (rows * shape.leaving + _SUMMING) + min(_of_patches(shape), _of_pixels(shape))
    return at_positions < rows * shape.entering * shape.leaving


def by_pixels(shape: Shape, rows: int) -> bool:
    """Whether inner products of patches are best summed from those of pixels."""
    return pays(shape, rows) and _of_pixels(shape) < _of_patches(shape)


def _of_patches(shape: Shape) -> int:
    """Multiplications for the inner products of what enters at all positions of two samples."""
    return shape.positions**2 * shape.entering


def _of_pixels(shape: Shape) -> float:
    """The same as sums over what is seen in common, one dimension after the other."""
    if not shape.window:
        return math.inf
    work, side = shape.pixels**2 * (shape.channels + _SUMMING), shape.pixels
    for reach in shape.window:
        side = side // reach.pixels * reach.positions
        work += 0 if reach.plain else _SUMMING * reach.kernel * side**2
    return work


def imaged(shape: Shape, rows: int) -> bool:
    """Whether an image is kept in place of what is seen of it at all positions."""
    if not shape.window or pays(shape, rows):
        return by_pixels(shape, rows)
    return shape.pixels * shape.channels < shape.positions * shape.entering


def entries(shape: Shape, rows: int) -> int:
    """What is kept for each sample and output."""
    return shape.positions * shape.leaving - (-math.prod(_of_a(shape, rows)) // rows)


def fewer(shape: Shape, rows: int) -> bool:
    """Whether factors are to be kept of which Jacobians are made again.

    Patches are counted in any case: it takes time to make Jacobians again, and memory that is new.
    """
    return shape.positions * (shape.leaving - (-shape.entering // rows)) <= shape.entering * shape.leaving


def _of_a(shape: Shape, rows: int) -> tuple[int, int]:
    """Of the a of a sample."""
    return (shape.pixels, shape.channels) if imaged(shape, rows) else (shape.positions, shape.entering)


def joined(calls: Sequence[Shape | None]) -> Shape | None:
    """Of several calls of one weight, or None where one of them is not of this form."""
    shapes = [shape for shape in calls if shape is not None]
    if not shapes or len(shapes) < len(calls) or len({(s.entering, s.leaving) for s in shapes}) > 1:
        return None
    if len(shapes) == 1:
        return shapes[0]
    return Shape(sum(s.positions for s in shapes), shapes[0].entering, shapes[0].leaving)


def remade(shape: Shape, samples: int, rows: int) -> int:
    """Entries for each sample of the Jacobians of a few outputs that are made of factors at once, and of patches."""
    seen = shape.positions * shape.entering if imaged(shape, rows) else 0
    return _at_once(shape, samples, rows) * shape.leaving * shape.entering + seen


def _at_once(shape: Shape, samples: int, rows: int) -> int:
    """Outputs."""
    return max(1, min(rows, _REMADE // (samples * shape.leaving * shape.entering)))


class Factors:
    """The a and b of all samples.

    Args:
        a: (n, t, entering) inputs at all positions; if `imaged` the image (n, pixels, channels) they are seen of.
        b: (n, t, k, leaving) derivatives of k outputs by what leaves there.
        shape: of the products.
    """

    def __init__(self, a: Tensor, b: Tensor, shape: Shape) -> None:
        self.a, self.b, self.shape = a, b, shape
        self.by_position, self.imaged = pays(shape, b.shape[2]), imaged(shape, b.shape[2])

    @classmethod
    def within(cls, room: Tensor, shape: Shape, samples: int, rows: int) -> Factors:
        """In memory that is there, of ``samples * rows * entries(shape, rows)`` entries."""
        t, leaving, (places, width) = shape.positions, shape.leaving, _of_a(shape, rows)
        a, b = samples * places * width, samples * t * rows * leaving
        if pays(shape, rows):
            return cls(room[:a].view(samples, places, width), room[a : a + b].view(samples, t, rows, leaving), shape)
        # sums over positions, which then lie side by side
        at = room[:a].view(samples, width, places), room[a : a + b].view(samples, rows, leaving, t)
        return cls(at[0].transpose(1, 2), at[1].permute(0, 3, 1, 2), shape)

    def of(self, samples: slice) -> Factors:
        """Those of some samples."""
        return Factors(self.a[samples], self.b[samples], self.shape)

    def jacobians(self, room: Tensor) -> Iterator[Tensor]:
        """Those of a few outputs after the others, (n, rows * leaving * entering) in the same memory.

        Args:
            room: of n * `remade` entries.
        """
        n, _, rows, _ = self.b.shape
        at_once, a = _at_once(self.shape, n, rows), self.a
        if self.imaged:
            seen = n * self.shape.positions * self.shape.entering
            a, room = self._patches(room[:seen]), room[seen:]
        for first in range(0, rows, at_once):
            some = self.b[:, :, first : first + at_once].flatten(2).transpose(1, 2)
            J = room[: n * some.shape[1] * self.shape.entering].view(n, some.shape[1], -1)
            products(some, a, J)
            yield J.flatten(1)

    def _patches(self, room: Tensor) -> Tensor:
        """What is seen of the images at all positions, (n, t, entering)."""
        images = self.a.transpose(1, 2).unflatten(2, [reach.pixels for reach in self.shape.window])
        found = room.view(len(images), self.shape.entering, -1)
        for some, those in zip(found.split(_FEW), images.split(_FEW), strict=True):
            patches(those, self.shape.window, some)
        return found.transpose(1, 2)

    def add_gram(self, kernel: Tensor, room: Tensor | None = None) -> None:
        """Add the inner products of Jacobians, summed over outputs, to the upper half of ``kernel`` (n, n).

        Args:
            kernel: to add to.
            room: memory to work in, if there is enough.
        """
        n, t, places = len(self.b), self.shape.positions, self.a.shape[1]
        most = max(1, _BYTES // (max(t, places) ** 2 * self.b.element_size()))  # pairs of samples
        block = min(n, math.isqrt(most), max(-(-_NARROWEST // t), -(-n // _STRIPES)))
        group = block * max(1, min(most // block**2, -(-n // block)))
        for start in range(0, n, group):
            a, b = self.of(slice(start, start + group))._by_blocks(block, room)
            for first in range(0, min(n, start + group), block):
                if (skip := first - start) >= 0:
                    one_a, one_b = a[skip * places :][: block * places], b[skip * t :][: block * t]
                else:
                    one_a, one_b = self.of(slice(first, first + block))._by_blocks(block)
                    skip = 0
                products = self._seen(inner_products(one_a, a[skip * places :]), block)
                products *= inner_products(one_b, b[skip * t :])
                if t > 1:
                    products = products.view(t, block, -1, t, block).sum(dim=(0, 3)).flatten(1)
                into = kernel[first : first + block, start + skip : start + group]
                into += products[: into.shape[0], : into.shape[1]].to(kernel)

    def _by_blocks(self, block: int, room: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """a and b as rows: so many samples at a time, position by position.

        Sums over positions are then sums of long rows. Of the last samples there may be fewer, with zeros after them.
        """
        if self.shape.positions == 1:
            return self.a[:, 0], self.b[:, 0].flatten(1)
        found = []
        for x in (self.a, self.b.flatten(2)):
            n, t, width = x.shape
            blocks, whole = -(-n // block), n // block
            size = blocks * t * block * width
            if room is None or len(room) < size:
                rows = x.new_empty(size)
            else:
                rows, room = room[:size], room[size:]
            rows = rows.view(blocks, t, block, width)
            rows[:whole] = x[: whole * block].unflatten(0, (whole, block)).transpose(1, 2)
            if whole < blocks:
                rows[whole] = 0
                rows[whole, :, : n - whole * block] = x[whole * block :].transpose(0, 1)
            found.append(rows.flatten(0, 2))
        return found[0], found[1]

    def _seen(self, products: Tensor, block: int) -> Tensor:
        """The inner products of what enters at all positions, from those of pixels, both by blocks."""
        if not self.imaged:
            return products
        grid = [reach.pixels for reach in self.shape.window]
        found = seen_products(products.view(*grid, block, -1, *grid, block), self.shape.window, beside=2)
        return found.view(block * self.shape.positions, -1)
