r"""A Lanczos process that goes on as in its last step, without products: a density in place of a staircase.

Of the measures with the moments that m steps have found, Gauss quadrature is the one with the fewest atoms. Any
longer tridiagonal matrix that begins with T and its last coupling has the same moments, up to degree 2m (Favard).
Where the spectrum is a band, the coefficients of further steps settle, so that rows like the last one are a good guess:
the terminator of the recursion method (Haydock, Heine and Kelly, J. Phys. C 5, 2845, 1972; Turchi, Ducastelle and
Treglia, J. Phys. C 15, 2891, 1982). The measure is then nearly a density, and up to three times closer to the spectrum
than the quadrature. Eigenvalues that are resolved do not notice: they have no component in the last row.

For blocks the bases of successive ones are chosen such that their coupling B is symmetric, :math:`(R^T R)^{1/2}`: then
what goes on is the same whichever basis the last block has.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["longer", "symmetric_coupling"]


def longer(T: Tensor, last_rows: Tensor, A: Tensor, B: Tensor, rows: int) -> Tensor:
    """The projection T of an operator, in any basis, when the block Lanczos process goes on.

    Args:
        T: (k, k) the projection; diagonal in the basis of Ritz vectors, of which some may be left out: then it goes on
            in their complement.
        last_rows: (S, k) components of the last block on the basis.
        A: (S, S) the projection on the last block, which the blocks that are added have too.
        B: (S, S) symmetric, the coupling of the last block to the next, and of those to each other.
        rows: how many are added, about; one block at least.

    Returns:
        The longer matrix, symmetric.

    Example:
        The semicircle law on [-2, 2], whose coefficients are all alike, from its first step: the fourth moment is 2.

        >>> import torch
        >>> from losscope.landscape.continuation import longer
        >>> one = torch.ones(1, 1)
        >>> T = longer(0 * one, one, 0 * one, one, rows=9)
        >>> T.shape, float(T.matrix_power(4)[0, 0])
        (torch.Size([10, 10]), 2.0)
    """
    k, starts = len(T), len(A)
    blocks = max(1, rows // starts)
    H = T.new_zeros(k + blocks * starts, k + blocks * starts)
    H[:k, :k] = T
    H[k : k + starts, :k] = B @ last_rows
    H[:k, k : k + starts] = H[k : k + starts, :k].T
    beside = torch.ones(blocks - 1, dtype=T.dtype)
    H[k:, k:] = torch.kron(torch.eye(blocks, dtype=T.dtype), A)
    H[k:, k:] += torch.kron(beside.diag(1) + beside.diag(-1), B)
    return H


def symmetric_coupling(R: Tensor) -> Tensor:
    """The symmetric factor of the polar decomposition of the coupling R of two blocks, (S, S)."""
    squares, V = torch.linalg.eigh(R.T @ R)
    return (V * squares.clamp(min=0).sqrt()) @ V.T
