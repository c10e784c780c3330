"""Lanczos without a basis: the three-term recurrence, in the memory of three vectors."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .operators import SymmetricOperator, refuse_nonfinite
from .space import scaled_norms, squares_in_range
from .symmetry import refuse_asymmetry

__all__ = ["ThreeTerm"]


class ThreeTerm:
    r"""The Lanczos process of one start vector, of which only the last two vectors are kept.

    .. math:: \beta_{j+1} q_{j+1} = A q_j - \alpha_j q_j - \beta_j q_{j-1}

    Each vector is made orthogonal, twice, to these two only. The others are lost hold of as soon as a Ritz value
    converges, along its vector (Paige, J. Inst. Maths Applics 10, 373, 1972), and the eigenvalue comes again as a
    copy. The quadrature stays right all the same: T is what exact Lanczos makes of a matrix that has tight clusters
    in place of eigenvalues, with the same weight (Greenbaum, Linear Algebra Appl. 113, 7, 1989; Knizhnerman, Comput.
    Math. Math. Phys. 36, 1481, 1996). So weights may be added up, and nodes must not be counted.

    It has the attributes of a `lanczos.LanczosBasis` with blocks of one vector.

    Args:
        operator: A; for its space, and for what is known of its products.

    Attributes:
        size: vectors already multiplied.
        broke_down: whether nothing was left of the last product, so that the space is invariant.
    """

    def __init__(self, operator: SymmetricOperator) -> None:
        self.operator, self.space = operator, operator.space
        self.size, self.broke_down = 0, False
        self._alphas: list[float] = []
        self._betas: list[float] = []  # couplings, the last one to the newest vector
        self._near = torch.empty(0)  # (2, n): the newest vector and the one before, in rows that take turns
        self._scale = 0.0

    @property
    def newest(self) -> Tensor:
        """The newest vector (n, 1), which is to be multiplied next."""
        return self._near[self.size % 2, :, None]

    @property
    def T(self) -> np.ndarray:
        """The projection on the vectors already multiplied, (size, size) float64."""
        beside = self._betas[: self.size - 1]
        return np.diag(self._alphas) + np.diag(beside, 1) + np.diag(beside, -1)

    @property
    def R(self) -> np.ndarray:
        """(1, 1) coupling of the last vector to the newest."""
        return np.array([self._betas[-1:]])

    def begin(self, first: Tensor) -> None:
        """Start from the vector ``first``, (n, 1)."""
        self._near = torch.zeros(2, len(first), dtype=first.dtype, device=first.device)
        torch.div(first[:, 0], self.space.norms(first), out=self._near[0])

    def absorb(self, product: Tensor) -> None:
        """Take in the operator's product with the newest vector, (n, 1), which may be overwritten.

        Raises:
            NonFiniteError: if the product has a NaN or infinite entry.
            SettingError: if it shows that the operator is not symmetric.
        """
        w, near = product.T.contiguous(), self._near  # rows, since torch is slow on a column
        if w.data_ptr() == self.newest.data_ptr():  # an identity may return its input
            w = w.clone()
        first = self.space.inner(near.T, w.T)
        w.addmm_(first.T, near, alpha=-1)
        second = self.space.inner(near.T, w.T)
        w.addmm_(second.T, near, alpha=-1)
        length = self.space.norms(w.T)
        found = torch.cat((first, second, length[None])).flatten().tolist()  # the one synchronisation of a step
        if not squares_in_range(found[-1:], self.space.dtype):
            found[-1:] = scaled_norms(w.T)
        here, there, norm = self.size % 2, 1 - self.size % 2, found[-1]
        refuse_nonfinite(size := math.hypot(*found))
        self._scale = max(self._scale, size)
        if self.size:  # what A brings back to the vector before is what it had from there
            refuse_asymmetry(self.operator, found[there], self._betas[-1], self._scale)
        self._alphas.append(found[here] + found[2 + here])
        self.broke_down = norm <= 10 * torch.finfo(self.space.dtype).eps * self._scale
        self._betas.append(0.0 if self.broke_down else norm)
        self.size += 1
        if not self.broke_down:
            torch.div(w[0], norm, out=self._near[there])
