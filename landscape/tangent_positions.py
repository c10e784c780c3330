r"""A weight's share of the tangent kernel from the factors that its Jacobians are products of.

The derivative of an output by a linear layer's weight is a sum over positions, :math:`J = \sum_t b_t a_t^\top`, so that

.. math:: \langle J(x), J(x') \rangle = \sum_{tt'} (a_t \cdot a'_{t'}) (b_t \cdot b'_{t'})

(the structured derivatives of Novak et al. 2022, "Fast finite width neural tangent kernel"). Where a layer has few
positions this is far less work than the product of the Jacobians: in an MLP there is one. The factors a and b take
less memory as well; where only that is so, the Jacobians are made of them one output at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from .kernels.inner_products import inner_products, products
from .kernels.layer_jacobians import Shape

__all__ = ["Factors", "entries", "joined", "pays", "remade"]

_BYTES = 16 << 20  # of the inner products at once: more are no faster
_REMADE = 24 << 20  # entries of Jacobians that are made of factors at once: more are no faster
_STRIPES = 16  # of samples: of a symmetric product only the upper half is computed
_NARROWEST = 64  # positions in a stripe: products of fewer are slow
_SUMMING = 16  # multiplications that take as long as to multiply and add two inner products, which is slow for memory


def pays(shape: Shape, rows: int) -> bool:
    """Whether inner products at positions are less work than those of Jacobians, of so many outputs."""
    at_positions = shape.positions**2 * (shape.entering + rows * shape.leaving + _SUMMING)
    return at_positions < rows * shape.entering * shape.leaving


def entries(shape: Shape, rows: int) -> int:
    """What is kept for each sample and output."""
    return shape.positions * (shape.leaving - (-shape.entering // rows))


def joined(calls: Sequence[Shape | None]) -> Shape | None:
    """Of several calls of one weight, or None where one of them is not of this form."""
    shapes = [shape for shape in calls if shape is not None]
    if not shapes or len(shapes) < len(calls) or len({(s.entering, s.leaving) for s in shapes}) > 1:
        return None
    return Shape(sum(s.positions for s in shapes), shapes[0].entering, shapes[0].leaving)


def remade(shape: Shape, samples: int, rows: int) -> int:
    """Entries for each sample of the Jacobians of a few outputs that are made of factors at once."""
    one = shape.leaving * shape.entering
    return one * max(1, min(rows, _REMADE // (samples * one)))


class Factors:
    """The a and b of all samples.

    Args:
        a: (n, t, entering) inputs at all positions.
        b: (n, t, k, leaving) derivatives of k outputs by what leaves there.
    """

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = a, b

    @classmethod
    def within(cls, room: Tensor, shape: Shape, samples: int, rows: int) -> Factors:
        """In memory that is there, of ``samples * rows * entries(shape, rows)`` entries."""
        t, entering, leaving = shape.positions, shape.entering, shape.leaving
        a, b = samples * t * entering, samples * t * rows * leaving
        if pays(shape, rows):
            return cls(room[:a].view(samples, t, entering), room[a : a + b].view(samples, t, rows, leaving))
        # sums over positions, which then lie side by side
        at = room[:a].view(samples, entering, t), room[a : a + b].view(samples, rows, leaving, t)
        return cls(at[0].transpose(1, 2), at[1].permute(0, 3, 1, 2))

    def of(self, samples: slice) -> Factors:
        """Those of some samples."""
        return Factors(self.a[samples], self.b[samples])

    @property
    def shape(self) -> Shape:
        """Of the products."""
        return Shape(self.a.shape[1], self.a.shape[2], self.b.shape[3])

    def jacobians(self, room: Tensor) -> Iterator[Tensor]:
        """Those of a few outputs after the others, (n, rows * leaving * entering) in the same memory.

        Args:
            room: of n * `remade` entries.
        """
        n, _, rows, leaving = self.b.shape
        at_once = remade(self.shape, n, rows) // (leaving * self.a.shape[2])
        for first in range(0, rows, at_once):
            some = self.b[:, :, first : first + at_once].flatten(2).transpose(1, 2)
            J = room[: n * some.shape[1] * self.a.shape[2]].view(n, some.shape[1], -1)
            products(some, self.a, J)
            yield J.flatten(1)

    def add_gram(self, kernel: Tensor) -> None:
        """Add the inner products of Jacobians, summed over outputs, to the upper half of ``kernel`` (n, n)."""
        n, t = self.a.shape[:2]
        a, b = self.a.flatten(0, 1), self.b.flatten(0, 1).flatten(1)
        most = max(1, _BYTES // (n * t * t * a.element_size()))
        stripe = min(most, max(-(-_NARROWEST // t), -(-n // _STRIPES)))
        for first in range(0, n, stripe):
            some, rest = slice(first * t, (first + stripe) * t), slice(first * t, None)
            products = inner_products(a[some], a[rest])
            products *= inner_products(b[some], b[rest])
            if t > 1:
                products = products.view(-1, t, n - first, t).sum(dim=(1, 3))
            kernel[first : first + stripe, first:] += products.to(kernel)
