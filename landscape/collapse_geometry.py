"""How far points are from a simplex equiangular tight frame, and from each other's directions.

The points are rows (C, d), centred class means or rows of a classifier. Numbers over pairs of classes are added up a
block of rows at a time, so that tens of thousands of classes need no (C, C) matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

__all__ = ["cdnv", "closest", "distances", "equiangularity", "equinorm", "etf_error", "uniformity"]

_BLOCK = 1 << 22  # pairs at a time
_CLOSE = 1e-6  # of the squared lengths


def equinorm(rows: Tensor) -> float:
    """Standard deviation (unbiased) over mean of the rows' lengths; 0 where all are as long."""
    lengths = torch.linalg.vector_norm(rows, dim=1)
    return float(lengths.std() / lengths.mean())


def equiangularity(rows: Tensor) -> tuple[float, float]:
    """Mean of ``|cos + 1/(C-1)|`` over the pairs, and the cosines' standard deviation (of the population).

    Both are 0 for a simplex equiangular tight frame, the second for any equal angles.
    """
    C, unit = len(rows), torch.nn.functional.normalize(rows, dim=1, eps=0.0)
    ideal = -1 / (C - 1)
    far, _ = _over_pairs(C, lambda some: (unit[some] @ unit.T - ideal).abs())
    _, variance = _over_pairs(C, lambda some: unit[some] @ unit.T - ideal)
    return far, math.sqrt(variance)


def etf_error(left: Tensor, right: Tensor) -> float:
    """``||A / ||A||_F - (I - 11'/C) / sqrt(C-1)||_F`` for ``A = L R'``, (C, C)."""
    C, total = len(left), 0.0
    norm = math.sqrt(sum(float((left[b.start : b.stop] @ right.T).square().sum()) for b in _blocks(C)))
    for some in _blocks(C):
        ideal = torch.full((len(some), C), -1 / C, dtype=left.dtype, device=left.device)
        ideal[torch.arange(len(some)), torch.tensor(some)] += 1
        total += float((left[some.start : some.stop] @ right.T / norm - ideal / math.sqrt(C - 1)).square().sum())
    return math.sqrt(total)


def cdnv(means: Tensor, variances: Tensor) -> float:
    """Class-distance normalised variance: mean of ``(v_c + v_c') / (2 |mu_c - mu_c'|^2)`` over the pairs."""

    def ratios(some: slice) -> Tensor:
        return (variances[some, None] + variances) / (2 * distances(means, some).square())

    return _over_pairs(len(means), ratios)[0]


def uniformity(rows: Tensor) -> tuple[float, float]:
    """Mean and variance (of the population) over the pairs of ``log(1/|m_c - m_c'|)`` for rows of length one."""
    unit = torch.nn.functional.normalize(rows, dim=1, eps=0.0)
    return _over_pairs(len(rows), lambda some: -distances(unit, some).log())


def closest(rows: Tensor) -> float:
    """Smallest distance of two rows."""
    found = math.inf
    for some in _blocks(len(rows)):
        apart = distances(rows, slice(some.start, some.stop))
        apart[torch.arange(len(some)), torch.tensor(some)] = math.inf
        found = min(found, float(apart.min()))
    return found


def distances(rows: Tensor, some: slice) -> Tensor:
    """Of some rows to all, by inner products, and by differences where those would cancel more than six digits."""
    squares = rows.square().sum(dim=1)
    both = squares[some, None] + squares
    found = both - 2 * (rows[some] @ rows.T)
    i, j = (found <= _CLOSE * both).nonzero(as_tuple=True)
    if len(i) > 4 * len(rows):
        return torch.cdist(rows[some], rows, compute_mode="donot_use_mm_for_euclid_dist")
    found[i, j] = (rows[some][i] - rows[j]).square().sum(dim=1)
    return found.sqrt()


def _over_pairs(count: int, values: Callable[[slice], Tensor]) -> tuple[float, float]:
    """Mean and population variance over ordered pairs of different classes, merged from blocks (Chan et al. 1979)."""
    n, mean, squares = 0, 0.0, 0.0
    for some in _blocks(count):
        block = values(slice(some.start, some.stop))
        apart = torch.ones_like(block, dtype=torch.bool)
        apart[torch.arange(len(some)), torch.tensor(some)] = False
        block = block[apart]
        m, own = block.numel(), float(block.mean())
        squares += float((block - own).square().sum()) + (own - mean) ** 2 * n * m / (n + m)
        mean += (own - mean) * m / (n + m)
        n += m
    return mean, squares / n


def _blocks(count: int) -> Iterator[range]:
    step = max(1, _BLOCK // count)
    for start in range(0, count, step):
        yield range(start, min(count, start + step))
