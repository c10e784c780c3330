r"""XTrace and XNysTrace: every random vector is used twice, to find the large eigenvalues and to sample the rest.

Both average k estimates that differ in which vector is left out of the sketch (Epperly, Tropp and Webber, "XTrace:
making the most of every sample in stochastic trace estimation", SIAM J. Matrix Anal. Appl. 45, 1, 2024):

.. math:: t_i = \operatorname{tr} \hat A_{(i)} + \omega_i^T (A - \hat A_{(i)}) \omega_i,

where the approximation :math:`\hat A_{(i)}` comes from all vectors but :math:`\omega_i`. The samples are no more
independent, so the spread of the :math:`t_i` does not give the error of their mean. What it lacks is their covariance,
of which there is an unbiased estimate. Let :math:`t_{ij}` leave :math:`\omega_j` out as well. Each estimate is
right on average over the vector that it samples with, so in

.. math:: E[(t_i - t_{ij})(t_j - t_{ji})] = \operatorname{Cov}(t_i, t_j)

the three products with a :math:`t_{ij}` or :math:`t_{ji}` contribute tr(A) squared only. As the variance of one
estimate is that within a sample plus the covariance, the variance of the mean is

.. math:: \operatorname{Var}(\bar t) = E[s^2] / k + \operatorname{Cov}(t_i, t_j).

**What is believed of the covariance.** Where eigenvalues fall fast, one vector fewer in the sketch makes the error
larger by the factor by which they fall. The products above are as large as squared errors of the :math:`t_{ij}`,
and what they have in excess of those of the :math:`t_i` cancels on average over many sketches only. How much less the
:math:`t_i` spread than the :math:`t_{ij}` with one j, :math:`\rho^2`, says how far that is so; it is one on flat
spectra, and where all outliers are found. XNysTrace, which counts the products as positive, scales them by it, as far
as the decay since half of the vectors bears it out: with as many vectors as large eigenvalues the last one takes as
much, though the covariance is large. XTrace, whose covariance is many times :math:`s^2 / k` there, believes the
unbiased estimate as it is, though that makes intervals five to six median errors wide where eigenvalues fall by four
tenths each or faster. Limits by :math:`s^2 / (k - k \rho^2)` that made these four to five wide let intervals cover 0.79
to 0.90 with as many vectors as large eigenvalues, 0.94 without; one sketch does not tell the two apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .errors import SettingError
from .sketch import Sketch

__all__ = ["Exchangeable", "IndefiniteError", "LeaveOut", "XNysTrace", "XTrace"]


class IndefiniteError(SettingError):
    """The operator is not positive semi-definite, as the method needs it to be."""


@dataclass(frozen=True, eq=False)
class LeaveOut:
    """The estimates of a sketch.

    Attributes:
        single: (k,) the estimate that samples with vector i and has all others in the sketch.
        double: (k, k) the same without vector j; NaN on the diagonal, and where leaving out two is leaving
            out one but for rounding.
    """

    single: Tensor
    double: Tensor

    @property
    def covariance(self) -> float:
        """Unbiased estimate of the covariance of two estimates."""
        return float(self._products.nanmean().nan_to_num(0.0))

    @property
    def covariance_in_size(self) -> float:
        """The same with all products counted as positive."""
        return float(self._products.abs().nanmean().nan_to_num(0.0))

    @property
    def narrowing(self) -> float:
        """How much less the estimates spread for one more vector in the sketch, squared; at most one."""
        apart = self.double - self.double.nanmean(dim=0)  # each column is of one sketch, which the others sample
        degrees = (~apart.isnan()).sum(dim=0) - 1
        before = float((apart.square().nansum(dim=0) / degrees)[degrees > 0].mean())
        return min(1.0, float(self.single.var()) / before) if before > 0 else 1.0

    @property
    def _products(self) -> Tensor:
        apart = self.single[:, None] - self.double
        return apart * apart.T


class Exchangeable(Protocol):
    """An estimator whose random vectors may be exchanged with each other."""

    name: str
    sketch: Sketch
    per_vector: int

    def grow(self, vectors: int) -> None:
        """Take in more random vectors."""

    def leave_out(self, vectors: int | None = None) -> LeaveOut:
        """The estimates from the first vectors."""

    def covariance(self, found: LeaveOut) -> float:
        """What is believed of the covariance of two of the estimates."""

    def deflated(self, Z: Tensor, AZ: Tensor) -> Tensor:
        """Samples of the trace, more even than ``z' A z``, (j,)."""


class XTrace:
    """For any symmetric matrix: the approximation is Q Q' A Q Q'; two products per random vector.

    Args:
        sketch: the sketch, which may have grown already.
    """

    name = "xtrace"
    per_vector = 2

    def __init__(self, sketch: Sketch) -> None:
        self.sketch = sketch

    def grow(self, vectors: int) -> None:
        """Take in more random vectors; two products each."""
        self.sketch.grow(vectors)
        self.sketch.compress()

    def leave_out(self, vectors: int | None = None) -> LeaveOut:
        """The estimates from the first ``vectors`` random vectors."""
        s, k = self.sketch, vectors or self.sketch.size
        return xtrace(s.space.size, s.R[:k, :k], s.W[:k, :k], s.H[:k, :k], s.M.diagonal()[:k], s.eps)

    def covariance(self, found: LeaveOut) -> float:
        """The unbiased estimate; that it may come out negative is not believed."""
        return max(0.0, found.covariance)

    def deflated(self, Z: Tensor, AZ: Tensor) -> Tensor:
        """``tr(H) + z'(I - QQ') A (I - QQ')z`` for each column of Z, from its product: (j,)."""
        s = self.sketch
        inside, across = s.coordinates(Z)[0], s.coordinates(AZ)[0]
        plain = (Z * AZ).to(torch.float64).sum(dim=0).cpu()
        return s.H.trace() + plain - 2 * (inside * across).sum(dim=0) + (inside * (s.H @ inside)).sum(dim=0)


def xtrace(n: int, R: Tensor, W: Tensor, H: Tensor, squares: Tensor, eps: float) -> LeaveOut:
    r"""XTrace's estimates of a symmetric matrix, from small matrices only.

    Leaving :math:`\omega_i` out takes the direction :math:`s_i`, normal to the other columns of R, out of the basis;
    leaving two out takes the span of two. For a vector whose coordinates outside the basis and in that span are
    left, the form is :math:`\omega^T A \omega - 2 x^T r + x^T H x` with x its other coordinates, since
    :math:`Q^T A \omega_i = r_i`. It is divided by the squared length of what is left, which the direction does not
    depend on, times the dimension (section 2.3 of the paper).

    Args:
        n: size of the matrix.
        R: (k, k) with A Omega = Q R.
        W: (k, k) Q' Omega.
        H: (k, k) Q' A Q.
        squares: (k,) squared lengths of the random vectors.
        eps: rounding of the vectors' dtype.
    """
    k = len(R)
    S = _normals(R)
    SW, SHW, SHS = S.T @ W, S.T @ H @ W, S.T @ H @ S
    own, reach = SW.diagonal(), (S * R).sum(dim=0)
    length = squares - W.square().sum(dim=0)
    form = (W * (H @ W)).sum(dim=0) - (W * R).sum(dim=0)
    h, p = SHS.diagonal(), SHW.diagonal()

    x = own  # what is left of w_i in the one direction
    quadratic = form + 2 * x * reach - 2 * x * p + x**2 * h
    single = H.trace() - h + (n - k + 1) * quadratic / (length + x**2)

    # Rows are i, the vector that samples, columns j, the other one that is left out.
    g = S.T @ S
    apart = _resolved(1 - g**2, torch.ones_like(g), eps)
    x, y = (own[:, None] - g * SW.T) / apart, (SW.T - g * own[:, None]) / apart  # w_i = x s_i + y s_j + rest
    taken = (h[:, None] + h - 2 * g * SHS) / apart
    quadratic = form[:, None] + 2 * x * reach[:, None] - 2 * (x * p[:, None] + y * SHW.T)
    quadratic = quadratic + x**2 * h[:, None] + 2 * x * y * SHS + y**2 * h
    left = length[:, None] + x * own[:, None] + y * SW.T
    return LeaveOut(single, H.trace() - taken + (n - k + 2) * quadratic / left)


def _normals(R: Tensor) -> Tensor:
    """Unit vectors (k, k), each normal to all columns of R but one."""
    size = float(R.abs().max())
    least = 1e-3 * torch.finfo(torch.float64).eps * size if size > 0 else 1.0
    R = R + torch.diag((R.diagonal().abs() < least).to(R) * least)  # else a zero column has no normal
    S = torch.linalg.solve_triangular(R.T, torch.eye(len(R), dtype=R.dtype), upper=False)
    return S / torch.linalg.vector_norm(S, dim=0)


class XNysTrace:
    """For positive semi-definite matrices: Nystroem's approximation; one product per random vector.

    Args:
        sketch: the sketch, which may have grown already.
    """

    name = "xnystrace"
    per_vector = 1

    def __init__(self, sketch: Sketch) -> None:
        self.sketch = sketch

    def grow(self, vectors: int) -> None:
        """Take in more random vectors; one product each.

        Raises:
            IndefiniteError: if v'Av is negative, by more than rounding, for a combination v of them.
        """
        self.sketch.grow(vectors)
        least, known = self._least()
        if least < -10 * known:
            raise IndefiniteError(
                f"method=\"xnystrace\" needs a positive semi-definite operator, and here v'Av = {least:.3g} v'v for "
                f'some v, where rounding explains {known:.1g}; use method="xtrace"'
            )

    def _least(self) -> tuple[float, float]:
        """The least v'Av / v'v, and how well it is known: worse where the random vectors are nearly dependent."""
        s = self.sketch
        L = torch.linalg.cholesky(s.M)
        half = torch.linalg.solve_triangular(L, _symmetric(s.W.T @ s.R), upper=False)
        values = torch.linalg.eigvalsh(torch.linalg.solve_triangular(L, half.T, upper=False))
        shortest = float(torch.linalg.eigvalsh(s.M)[0]) / s.space.size
        return float(values[0]), self._rounding / shortest

    @property
    def _rounding(self) -> float:
        """What products leave open of v'Av / v'v, for combinations v of the random vectors."""
        s = self.sketch
        return s.space.rounding * s.frobenius * math.sqrt(s.size / s.space.size)

    @property
    def _shift(self) -> float:
        """The multiple of the identity to add before Nystroem's approximation and to take off again.

        Without it the core of a matrix of low rank is singular, or indefinite by rounding. The estimates of a
        multiple of the identity have no variance, so it may well be as large as the rounding of products.
        """
        return max(self._rounding, -2 * self._least()[0])

    def leave_out(self, vectors: int | None = None) -> LeaveOut:
        """The estimates from the first ``vectors`` random vectors."""
        s, k = self.sketch, vectors or self.sketch.size
        if not s.R.any():  # zero, whose core is too
            return LeaveOut(torch.zeros(k, dtype=torch.float64), torch.zeros(k, k, dtype=torch.float64))
        return xnystrace(s.space.size, s.R[:k, :k], s.W[:k, :k], s.M[:k, :k], self._shift, s.eps)

    def covariance(self, found: LeaveOut) -> float:
        """The estimate with all products counted as positive, scaled to what the sketch leaves.

        Most of them are positive, since every vector makes the approximation larger, and the two agree: to a percent
        on most spectra. Not where eigenvalues fall by a third each or faster: the mean is that of a few products
        then, and intervals by the unbiased estimate were seen to cover 0.79 to 0.87 there.
        """
        return found.covariance_in_size * max(found.narrowing, self._lasting(found))

    def _lasting(self, found: LeaveOut) -> float:
        """How much less estimates spread for each more vector, squared, since half of the vectors; at most one."""
        k = len(found.single)
        before = float(self.leave_out(k // 2).single.var()) if k >= 4 else 0.0
        return min(1.0, (float(found.single.var()) / before) ** (1 / (k - k // 2))) if before > 0 else 1.0

    def deflated(self, Z: Tensor, AZ: Tensor) -> Tensor:
        """The trace of Nystroem's approximation, and z'Az of the rest, for each column of Z: (j,)."""
        s = self.sketch
        inverse, shift = _core(s.R, s.W, s.M, self._shift)
        inside, across = s.coordinates(Z)
        plain = (Z * (AZ + shift * Z)).to(torch.float64).sum(dim=0).cpu()
        covered = inverse.T @ (s.R.T @ inside + shift * across)
        return _nystroem(s.R, s.M, inverse, shift) - shift * s.space.size + plain - covered.square().sum(dim=0)


def xnystrace(n: int, R: Tensor, W: Tensor, M: Tensor, shift: float, eps: float) -> LeaveOut:
    r"""XNysTrace's estimates of a positive semi-definite matrix, from small matrices only.

    With Y the products and K the inverse of the core :math:`\Omega^T Y`, Nystroem's approximation is
    :math:`Y K Y^T`. Leaving out the vectors J takes :math:`K_{:J} K_{JJ}^{-1} K_{J:}` from K, and
    :math:`\operatorname{tr}(K_{JJ}^{-1} N_{JJ})` with :math:`N = K Y^T Y K` from the trace; what A is then beyond
    the approximation has for :math:`\omega_i` the form :math:`(K_{JJ}^{-1})_{ii}`. It vanishes on the vectors that
    were not left out, so it is divided by the squared length of what :math:`\omega_i` is beyond those, which is the
    same of the inverse of M, times the dimension (section 2.3 of the paper).

    Args:
        n: size of the matrix.
        R: (k, k) with A Omega = Q R.
        W: (k, k) Q' Omega.
        M: (k, k) Omega' Omega.
        shift: multiple of the identity to work with.
        eps: rounding of the vectors' dtype.
    """
    inverse, shift = _core(R, W, M, shift)
    k, K, L = len(R), inverse @ inverse.T, torch.linalg.inv(M)
    RK = R @ K
    N = RK.T @ RK + 2 * shift * K - shift**2 * K @ M @ K
    total = _nystroem(R, M, inverse, shift) - shift * n
    a, b, c = K.diagonal(), L.diagonal(), N.diagonal()
    single = total - c / a + (n - k + 1) * b / a

    # Rows are i, the vector that samples, columns j, the other one that is left out.
    apart = _resolved(a[:, None] * a - K**2, a[:, None] * a, eps)
    taken = (a * c[:, None] + a[:, None] * c - 2 * K * N) / apart
    length = b / (b[:, None] * b - L**2)
    return LeaveOut(single, total - taken + (n - k + 2) * (a / apart) / length)


def _core(R: Tensor, W: Tensor, M: Tensor, shift: float) -> tuple[Tensor, float]:
    """The inverse of the upper Cholesky factor of ``Omega'(A + shift I)Omega``, and the shift that it took."""
    H = _symmetric(W.T @ R)
    while True:
        C, failed = torch.linalg.cholesky_ex(H + shift * M, upper=True)
        if not failed:
            return torch.linalg.solve_triangular(C, torch.eye(len(C), dtype=C.dtype), upper=True), shift
        shift *= 4


def _nystroem(R: Tensor, M: Tensor, inverse: Tensor, shift: float) -> Tensor:
    """The trace of Nystroem's approximation of A + shift I."""
    k = len(R)
    return (R @ inverse).square().sum() + 2 * shift * k - shift**2 * (M * (inverse @ inverse.T)).sum()


def _symmetric(H: Tensor) -> Tensor:
    return (H + H.T) / 2


def _resolved(difference: Tensor, of: Tensor, eps: float) -> Tensor:
    """The differences that are more than rounding, and off the diagonal; NaN in the others' place."""
    known = difference > math.sqrt(eps) * of
    return difference.where(known.fill_diagonal_(False), math.nan)
