"""XDiag: the diagonal from a sketch of the operator, every vector of it serving as a test of the others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .intervals import Moments
from .operators import Observed
from .symmetry import refuse_asymmetric

__all__ = ["XDiag", "as_it_is"]

Average = Callable[[Tensor], Tensor]
"""What is made of samples of the diagonal, (n, k) -> (n, k), before their mean and spread are taken."""

_MEMORY = 2 << 30  # bytes of all vectors kept
_KEPT = 8  # vectors per sample: Omega, Q, A Q, what is made of them, and room to work
_AT_ONCE = 64 << 20  # bytes of samples made at once
_NEAR = 128 << 10  # bytes of those of a few rows that stay near a processor
_OFFSETS = 16  # pairs per sample that the covariance is estimated from


def as_it_is(samples: Tensor) -> Tensor:
    """No average."""
    return samples


class XDiag:
    r"""Leave-one-out estimates of the diagonal of a symmetric matrix (Epperly, Tropp and Webber 2024, section 2.4).

    With random signs :math:`\Omega = (\omega_1 \dots \omega_k)`, their products :math:`A\Omega = QR` and
    :math:`Z = AQ`, the projector :math:`P_i` on the products of all vectors but the i-th gives the estimate

    .. math:: d_i = \mathrm{diag}(P_i A) + \omega_i \odot (I - P_i) A \omega_i

    which is unbiased, since :math:`P_i` knows nothing of :math:`\omega_i`. No more products are needed:
    :math:`P_i = Q (I - s_i s_i^T) Q^T` with :math:`s_i` the normalised i-th column of :math:`R^{-T}`. The estimate
    is the mean of all :math:`d_i`.

    The estimates are not independent: the variance of their mean is that within the sample, over k, plus their
    covariance, of which there is an unbiased estimate. With :math:`d_{ij}` as :math:`d_i` but from a projector that
    lacks the j-th product too,

    .. math:: E[(d_i - d_{ij}) (d_j - d_{ji})] = \mathrm{Cov}(d_i, d_j)

    entry by entry, as each is right on average over the vector that it tests with, so that the products with
    :math:`d_{ij}` or :math:`d_{ji}` contribute the same. An entry's share of covariance is not believed below that of
    all entries together.

    Args:
        operator: A.
        generator: for the random signs.
        average: see `Average`.

    Attributes:
        vectors: Omega, (n, k).
    """

    name = "xdiag"
    step = 2
    rate = 1.0

    def __init__(self, operator: Observed, generator: torch.Generator, average: Average) -> None:
        self.operator, self.generator, self.average = operator, generator, average
        space = operator.space
        self.vectors = self._Q = self._Z = torch.empty(space.size, 0, dtype=space.dtype, device=space.device)
        self._R = torch.zeros(0, 0, dtype=torch.float64)

    @property
    def limit(self) -> int:
        """Most products, by memory and by the size of the matrix."""
        size = self.operator.space.size
        return 2 * min(size, _MEMORY // (_KEPT * size * self.vectors.element_size()))

    @property
    def products(self) -> Tensor:
        """A Omega, (n, k)."""
        return self._Q @ self._R.to(self._Q)

    @property
    def scale(self) -> float:
        """Root mean square of the products' entries."""
        return float(torch.linalg.matrix_norm(self._R)) / math.sqrt(self.vectors.numel())

    def extend(self, products: int) -> None:
        """Take in half as many more vectors."""
        fresh = self.operator.space.random(products // 2, self.generator, "rademacher")
        Y = self.operator @ fresh
        refuse_asymmetric(self.operator, fresh, Y)
        Q, coupling, R = self._orthonormal(Y)
        zeros = torch.zeros(R.shape[0], self._R.shape[1], dtype=torch.float64)
        self._R = torch.cat([torch.cat([self._R, coupling], dim=1), torch.cat([zeros, R], dim=1)])
        self.vectors = torch.cat([self.vectors, fresh], dim=1)
        self._Z = torch.cat([self._Z, self.operator @ Q], dim=1)
        self._Q = torch.cat([self._Q, Q], dim=1)

    def _orthonormal(self, Y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``Y = Q_before C + Q R``: Q (n, b) orthonormal and orthogonal to the basis; C and R in float64 on the host.

        Twice, since where Y lies in the basis the first Q is made of rounding, and not orthogonal to it.
        """
        inner = self.operator.space.inner
        first = inner(self._Q, Y)
        Q, R1 = torch.linalg.qr(Y - self._Q @ first)
        second = inner(self._Q, Q)
        Q, R2 = torch.linalg.qr(Q - self._Q @ second)
        C1, R1, C2, R2 = (t.to("cpu", torch.float64) for t in (first, R1, second, R2))
        return Q, C1 + C2 @ R1, R2 @ R1

    def moments(self) -> tuple[Moments, Tensor]:
        """Mean and spread of the estimates; how many times larger the error is than if they were independent, (n,)."""
        k = self.vectors.shape[1]
        S, outside = self._left_out()
        U, V = self._Q @ S.to(self._Q), self._Z @ S.to(self._Q)  # P_i lacks u_i u_i'; v_i = A u_i
        W = V - self.vectors * outside
        diagonal = (self._Q * self._Z).sum(dim=1, keepdim=True)  # of Q Q' A
        moments = Moments()
        for i in torch.arange(k).split(max(1, _AT_ONCE // (len(U) * U.element_size()))):
            moments.add(self.average(diagonal - U[:, i] * W[:, i]))
        U = _cyclic(U)  # one after the other, since each is large
        V = _cyclic(V)
        W = _cyclic(W)
        covariance, pairs = self._covariance(_cyclic(S), U, V, W)
        variance = moments.spread.square() / k
        share = covariance / (max(pairs, 1) * variance.where(variance > 0, math.inf))
        pooled = (share * variance).sum() / variance.sum().clamp(min=torch.finfo(U.dtype).tiny)
        return moments, (1 + share.clamp(min=pooled.clamp(min=0))).sqrt()

    def _covariance(self, S: Tensor, U: Tensor, V: Tensor, W: Tensor) -> tuple[Tensor, int]:
        """The sum of covariances of pairs of estimates, (n,), and of how many pairs; of matrices as `_cyclic` has them.

        A few rows at a time where averages need no others, and on a CPU so few that what is made of them stays near
        the processor: arithmetic on vectors that come from memory takes several times as long.
        """
        n, k = len(U), self.vectors.shape[1]
        entrywise = self.average is as_it_is
        near = (_NEAR if entrywise and U.device.type == "cpu" else _AT_ONCE) // U.element_size()
        height = min(n, max(1, near // k)) if entrywise else n
        width = max(1, near // height)
        pairs, steps = 0, []
        for offset, first in itertools.product(range(1, _offsets(k) + 1), range(0, k, width)):
            i = slice(first, min(first + width, k))
            j = slice(i.start + offset, i.stop + offset)
            g = (S[:, i] * S[:, j]).sum(dim=0)
            resolved = 1 - g**2 > math.sqrt(torch.finfo(U.dtype).eps)
            pairs += int(resolved.sum())
            steps.append((i, j, g.to(U), (1 - g**2).where(resolved, math.inf).to(U)))
        covariance = torch.zeros_like(U[:, 0])
        for total, u, v, w in zip(*(t.split(height) for t in (covariance, U, V, W)), strict=True):
            for i, j, g, apart in steps:
                there = (u[:, j] - g * u[:, i]) * (v[:, j] - g * w[:, i]) / apart  # d_i - d_ij
                back = (u[:, i] - g * u[:, j]) * (v[:, i] - g * w[:, j]) / apart  # d_j - d_ji
                total += (self.average(there) * self.average(back)).sum(dim=1)
        return covariance, pairs

    def _left_out(self) -> tuple[Tensor, Tensor]:
        """All s_i as columns (k, k) in float64, and ``s_i' r_i`` (k,): what ``A omega_i`` has beside the others."""
        R = self._R.clone()
        # A column that adds nothing (low rank) has nothing to leave out; any direction will do, as A has none of it.
        least = torch.finfo(self._Q.dtype).eps * float(R.abs().max()) or 1.0
        R.diagonal()[R.diagonal().abs() < least] = least
        S = torch.linalg.solve_triangular(R.T, torch.eye(len(R), dtype=torch.float64), upper=False)
        S /= torch.linalg.vector_norm(S, dim=0)
        return S, (S * self._R).sum(dim=0).to(self._Q)


def _offsets(k: int) -> int:
    """How far apart the pairs are at most that the covariance of k samples is estimated from."""
    return min(k // 2, _OFFSETS)


def _cyclic(columns: Tensor) -> Tensor:
    """With the first columns once more after the last, so that pairs of them are slices; each column in one piece."""
    rows = columns.T
    return torch.cat([rows, rows[: _offsets(len(rows))]]).T
