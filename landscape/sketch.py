"""A random sketch of an operator that grows without a product being made twice."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .columns import parts
from .operators import Observed
from .symmetry import refuse_asymmetric

__all__ = ["Sketch"]

_MEMORY = 2 << 30  # cap on the vectors kept, bytes


class Sketch:
    r"""Random vectors, an orthonormal basis of their products, and all that estimates need of them.

    It grows without a product being made twice: the basis of more products begins with the basis of fewer. All
    numbers below are in float64 on the host.

    Args:
        operator: A.
        generator: for the random vectors.

    Attributes:
        size: k, how many vectors.
        R: (k, k) upper triangular, :math:`A \Omega = Q R`.
        W: (k, k) :math:`Q^T \Omega`.
        M: (k, k) :math:`\Omega^T \Omega`.
        H: (j, j) :math:`Q^T A Q` of the basis vectors multiplied so far; see `compress`.
    """

    def __init__(self, operator: Observed, generator: torch.Generator) -> None:
        self.operator, self.space, self.generator = operator, operator.space, generator
        self.eps = float(torch.finfo(self.space.dtype).eps)
        self.R = self.W = self.M = self.H = torch.zeros(0, 0, dtype=torch.float64)
        self._omega: list[Tensor] = []  # blocks (n, c)
        self._basis: list[Tensor] = []

    @property
    def size(self) -> int:
        """How many random vectors."""
        return len(self.R)

    @property
    def room(self) -> int:
        """How many more vectors memory allows, with their basis."""
        per_vector = 2 * self.space.size * torch.finfo(self.space.dtype).bits // 8
        return max(0, min(_MEMORY // per_vector, self.space.size) - self.size)

    @property
    def frobenius(self) -> float:
        """The Frobenius norm of A, from the lengths of the products."""
        return math.sqrt(float(self.R.square().sum()) / max(self.size, 1))

    @property
    def samples(self) -> Tensor:
        """Hutchinson's samples from the same products, (k,): ``n w'Aw / w'w``."""
        return self.space.size * (self.W * self.R).sum(dim=0) / self.M.diagonal()

    def grow(self, count: int) -> None:
        """Multiply ``count`` more random vectors.

        Raises:
            SettingError: if the operator is not symmetric.
            NonFiniteError: if a product is NaN or infinite.
        """
        for some in parts(count, self.space):
            omega = self.space.random(some.stop - some.start, self.generator)
            Y = self.operator @ omega
            refuse_asymmetric(self.operator, omega, Y)
            Q, R = self._orthonormal(Y)
            across = self._inner(self._omega, Q).T
            self._omega.append(omega)
            self._basis.append(Q)
            self.R = _bordered(self.R, R, torch.zeros_like(across))
            self.W = _bordered(self.W, self._inner(self._basis, omega), across)
            self.M = _bordered(self.M, self._inner(self._omega, omega))

    def compress(self) -> None:
        """Multiply the basis vectors that were not yet, for all of H.

        Raises:
            SettingError: if the operator is not symmetric.
            NonFiniteError: if a product is NaN or infinite.
        """
        done = 0
        for i, Q in enumerate(self._basis):
            if done >= len(self.H):
                Z = self.operator @ Q
                refuse_asymmetric(self.operator, Q, Z)
                self.H = _bordered(self.H, self._inner(self._basis[: i + 1], Z))
            done += Q.shape[1]

    def coordinates(self, V: Tensor) -> tuple[Tensor, Tensor]:
        """``Q' V`` and ``Omega' V``, (n, j) -> (k, j) and (k, j)."""
        return self._inner(self._basis, V), self._inner(self._omega, V)

    def _orthonormal(self, Y: Tensor) -> tuple[Tensor, Tensor]:
        """The next basis vectors (n, c), and what Y is in all of them, (k + c, c).

        Twice is enough (Giraud et al. 2005), but where products depend on those before: what is left of one is
        rounding, and may lie among them again. A random vector takes its place then.
        """
        inside = torch.zeros(self.size, Y.shape[1], dtype=torch.float64)
        R = torch.eye(Y.shape[1], dtype=torch.float64)
        for again in range(5):
            for first, Q in self._located():
                part = self.space.inner(Q, Y)
                Y = Y - Q @ part
                inside[first : first + Q.shape[1]] += part.to(inside) @ R
            lost = ((torch.linalg.vector_norm(Y, dim=0) < 0.01) & (again > 0)).nonzero()[:, 0]
            if len(lost):
                Y[:, lost] = self.space.random(len(lost), self.generator) / math.sqrt(self.space.size)
            Y, step = torch.linalg.qr(Y)
            step = step.to(R)
            step[:, lost] = 0.0
            R = step @ R
            if again and float(step.diagonal().abs().min()) > 0.5:
                break
        return Y, torch.cat((inside, R))

    def _located(self) -> Iterator[tuple[int, Tensor]]:
        """The blocks of the basis, with the place of their first vector."""
        first = 0
        for Q in self._basis:
            yield first, Q
            first += Q.shape[1]

    def _inner(self, blocks: list[Tensor], V: Tensor) -> Tensor:
        """The blocks' inner products with V, in float64 on the host: (k, c)."""
        if not blocks:
            return torch.zeros(0, V.shape[1], dtype=torch.float64)
        return torch.cat([self.space.inner(B, V) for B in blocks]).to("cpu", torch.float64)


def _bordered(inner: Tensor, columns: Tensor, rows: Tensor | None = None) -> Tensor:
    """A small matrix with more columns (k + c, c), and rows (c, k): those of a symmetric one where none are given."""
    k = len(inner)
    rows = columns[:k].T if rows is None else rows
    return torch.cat((torch.cat((inner, rows)), columns), dim=1)
