"""Many vectors, a few at a time, so that memory stays bounded; and all columns of an operator that way."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .operators import SymmetricOperator
from .space import VectorSpace
from .symmetry import refuse_asymmetric

__all__ = ["columns", "parts", "units"]

_MEMORY = 64 << 20  # bytes of vectors at once; their products take several times that


def parts(vectors: int, space: VectorSpace) -> Iterator[slice]:
    """Which of ``vectors`` to multiply at a time."""
    at_once = max(2, _MEMORY // (space.size * torch.finfo(space.dtype).bits // 8))
    for first in range(0, vectors, at_once):
        yield slice(first, min(first + at_once, vectors))


def units(some: slice, space: VectorSpace) -> Tensor:
    """Some of the unit vectors, (n, k)."""
    rows = torch.zeros(some.stop - some.start, space.size, dtype=space.dtype, device=space.device)
    rows.diagonal(some.start).fill_(1.0)
    return rows.T


def columns(operator: SymmetricOperator) -> Iterator[tuple[slice, Tensor]]:
    """All of A by products with unit vectors: which columns, and those, (n, k).

    Raises:
        SettingError: if the operator is not symmetric, as far as columns of one part show it.
    """
    generator = torch.Generator().manual_seed(0)
    for some in parts(operator.space.size, operator.space):
        E = units(some, operator.space)
        products = operator @ E
        # Mixed, since a column may be nothing but rounding.
        mixing = torch.randn(E.shape[1], 4, generator=generator, dtype=torch.float64).to(E)
        refuse_asymmetric(operator, E @ mixing, products @ mixing)
        yield some, products
