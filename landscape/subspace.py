r"""The subspace of the top eigenvectors: how much of a gradient lies in it, and how it turns from step to step.

Gradient descent happens, after a short time, mostly in the subspace of the few top eigenvectors, and that subspace
turns slowly (Gur-Ari, Roberts and Dyer, arXiv:1812.04754). A computed basis is off by an angle of at most

.. math:: \sin\Theta \le \|R\| / \delta

with R the residuals of its vectors, :math:`\delta` the distance of their Ritz values to all other eigenvalues
(Davis and Kahan, SIAM J. Numer. Anal. 7, 1, 1970). Where eigenvalues inside and outside are as good as equal the
subspace is not defined, and the intervals here say so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import NonFiniteError, SettingError
from .html_table import Shown
from .objective import Objective
from .results import Eigenpairs
from .space import PIECE, VectorSpace, adds_up_badly

__all__ = ["GradientShare", "SubspaceOverlap", "gradient_share", "subspace_overlap"]

_SAME = 4.0  # times eps and the number of vectors: squared lengths below are rounding


@dataclass(frozen=True, eq=False)
class GradientShare(Shown):
    r"""The part of a gradient that lies in the top eigenspace, :math:`\|U_j^T g\|^2 / \|g\|^2` for j = 1, 2, ..., k.

    Attributes:
        shares: (k,) float64, of the first j eigenvectors.
        low: (k,) what the shares of the exact eigenspaces are no less than.
        high: (k,) and no more than; 0 and 1 where an eigenspace is not told from the next eigenvectors.
        size: n, the number of parameters: a random direction has a share of j / n.
        norm: of the gradient.
        values: (k,) the Ritz values.
        note: what is to be known of the pairs; mostly empty.
    """

    shares: Tensor
    low: Tensor
    high: Tensor
    size: int
    norm: float
    values: Tensor
    note: str = ""

    @property
    def value(self) -> float:
        """The share of all k."""
        return float(self.shares[-1])

    def __repr__(self) -> str:
        """One line: the share of all, its interval, what chance would give."""
        k = len(self.shares)
        note = f"; {self.note}" if self.note else ""
        return (
            f"GradientShare({self.value:.4g} in [{float(self.low[-1]):.4g}, {float(self.high[-1]):.4g}] of |g|^2 in "
            f"the top {k}, {float(self.shares[0]):.4g} in the first; by chance {k / self.size:.2g}{note})"
        )


def gradient_share(gradient: Objective | Tensor, pairs: Eigenpairs) -> GradientShare:
    """How much of a gradient lies in the space of the top eigenvectors.

    Args:
        gradient: (n,), or the objective whose gradient it is.
        pairs: the eigenpairs; the first j of them for each j.

    Raises:
        SettingError: if the gradient is not of the size of the eigenvectors, or zero.
        NonFiniteError: if it is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import gradient_share, top_eigenpairs
        >>> pairs = top_eigenpairs(torch.diag(torch.arange(4.0)), k=2, seed=0)
        >>> gradient_share(torch.ones(4), pairs)
        GradientShare(0.5 in [0.5, 0.5] of |g|^2 in the top 2, 0.25 in the first; by chance 0.5)
    """
    g = gradient.gradient() if isinstance(gradient, Objective) else gradient
    U = pairs.vectors
    if not isinstance(g, Tensor) or g.shape != (U.shape[0],):
        given = tuple(g.shape) if isinstance(g, Tensor) else type(g).__name__
        raise SettingError(f"the gradient must have shape ({U.shape[0]},), as the eigenvectors do; got {given}")
    norm = float(torch.linalg.vector_norm(g, dtype=torch.float64))
    if not math.isfinite(norm):
        raise NonFiniteError("the gradient is NaN or infinite: its share in a subspace means nothing")
    if norm == 0:
        raise SettingError("the gradient is zero: it has no share in any subspace")
    # Ritz vectors are orthonormal but for rounding, which over k of them adds up to no more than that.
    parts = _space(U).inner(U, g.to(U)[:, None])[:, 0].to("cpu", torch.float64) / norm
    shares = parts.square().cumsum(0).clamp(max=1.0)
    angles = _angles(pairs)
    root = shares.sqrt()
    low, high = (root - angles).clamp(min=0).square(), (root + angles).clamp(max=1).square()
    loose = angles >= 1
    low, high = low.where(~loose, 0.0), high.where(~loose, 1.0)
    return GradientShare(shares, low, high, U.shape[0], norm, pairs.values, pairs.note)


@dataclass(frozen=True, eq=False)
class SubspaceOverlap(Shown):
    r"""How far two subspaces are the same.

    Attributes:
        value: mean of the squared cosines of the principal angles: 1 for the same subspace (or one within the other),
            0 for orthogonal ones.
        low: what that of the exact eigenspaces is no less than.
        high: and no more than.
        angles: (k,) float64 principal angles in radians, ascending.
        dimensions: of the two.
        chance: what random subspaces of these dimensions have on average.
    """

    value: float
    low: float
    high: float
    angles: Tensor
    dimensions: tuple[int, int]
    chance: float

    def __repr__(self) -> str:
        """One line: the mean, its interval, the largest angle."""
        a, b = self.dimensions
        return (
            f"SubspaceOverlap({self.value:.4g} in [{self.low:.4g}, {self.high:.4g}] of dimensions {a} and {b}, largest "
            f"angle {float(self.angles[-1]):.3g}; by chance {self.chance:.2g})"
        )


def subspace_overlap(U: Tensor | Eigenpairs, V: Tensor | Eigenpairs) -> SubspaceOverlap:
    r"""How much of one subspace lies in another, e.g. that of the top eigenvectors at two steps.

    The mean of the squared cosines of the principal angles, :math:`\|Q_U^T Q_V\|_F^2 / \min(a, b)`; angles from sines
    where they are small (Björck and Golub, Math. Comput. 27, 579, 1973). Of eigenpairs the interval holds what their
    residuals leave open; of tensors the spaces are those of the columns as they are.

    Args:
        U: (n, a) vectors that span it, in any basis, or eigenpairs.
        V: (n, b) likewise.

    Raises:
        SettingError: if they are of different sizes, or span nothing.
        NonFiniteError: if an entry is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import subspace_overlap
        >>> E = torch.eye(4)
        >>> subspace_overlap(E[:, :2], E[:, 1:3])
        SubspaceOverlap(0.5 in [0.5, 0.5] of dimensions 2 and 2, largest angle 1.57; by chance 0.5)
    """
    bases = [_basis(X, name) for X, name in ((U, "U"), (V, "V"))]
    (P, first), (Q, second) = bases
    if P.shape[0] != Q.shape[0]:
        raise SettingError(f"the subspaces are of spaces of {P.shape[0]} and {Q.shape[0]} dimensions")
    if P.shape[1] < Q.shape[1]:
        P, Q = Q, P
    Q = Q.to(P)
    inner = _space(P).inner(P, Q)
    rest = Q - P @ inner
    cosines = torch.linalg.svdvals(inner.to("cpu", torch.float64)).clamp(max=1.0)
    sines = torch.linalg.svdvals(_triangle(rest)).flip(0).clamp(max=1.0)
    angles = torch.where(cosines.square() > 0.5, torch.asin(sines), torch.acos(cosines))
    value = float(cosines.square().mean())
    # tr(P (Q - Q')) over the smaller dimension: each principal sine of Q and Q' counts once at most.
    error = first + second
    dimensions = (bases[0][0].shape[1], bases[1][0].shape[1])
    return SubspaceOverlap(
        value, max(0.0, value - error), min(1.0, value + error), angles, dimensions, P.shape[1] / P.shape[0]
    )


def _space(V: Tensor) -> VectorSpace:
    """Where the columns live: it adds up long ones without loss."""
    return VectorSpace(V.shape[0], V.dtype, V.device)


def _basis(X: Tensor | Eigenpairs, name: str) -> tuple[Tensor, float]:
    """An orthonormal basis of the span, and the sine of the angle by which it may be off."""
    sine = float(_angles(X)[-1]) if isinstance(X, Eigenpairs) else 0.0
    V = X.vectors if isinstance(X, Eigenpairs) else X
    if not isinstance(V, Tensor) or V.ndim not in (1, 2) or not V.is_floating_point() or V.numel() == 0:
        given = f"{V.dtype} {tuple(V.shape)}" if isinstance(V, Tensor) else type(V).__name__
        raise SettingError(f"{name} must be eigenpairs or a real tensor of shape (n, k), got {given}")
    V = V[:, None] if V.ndim == 1 else V
    norms = _space(V).norms(V)
    if not bool(torch.isfinite(norms).all()):
        raise NonFiniteError(f"{name} has a NaN or infinite entry")
    V = V[:, norms > 0] / norms[norms > 0]
    gram = _space(V).inner(V, V).to("cpu", torch.float64)
    lengths, turned = torch.linalg.eigh((gram + gram.T) / 2) if V.shape[1] else (gram[0:0], gram)
    kept = lengths > _SAME * torch.finfo(V.dtype).eps * V.shape[1]
    if not bool(kept.any()):
        raise SettingError(f"{name} spans nothing: all its vectors are zero")
    Q = V @ (turned[:, kept] / lengths[kept].sqrt()).to(V)
    return Q @ torch.linalg.inv(_triangle(Q)).to(Q), sine  # what is left of rounding


def _triangle(V: Tensor) -> Tensor:
    """R of V = Q R, float64 on the CPU; of long columns from the R of their pieces, which add up without loss."""
    pieces = V.split(PIECE) if adds_up_badly(V) else [V]
    triangles = [torch.linalg.qr(piece, mode="r")[1].to("cpu", torch.float64) for piece in pieces]
    return torch.linalg.qr(torch.cat(triangles), mode="r")[1]


def _angles(pairs: Eigenpairs) -> Tensor:
    """(k,) the sine of the angle to the exact eigenspace of the first j, for each j; 1 where nothing is known."""
    values, residuals, outside = pairs.values, pairs.residuals, _distance_outside(pairs)
    apart = (values[:, None] - values[None, :]).abs() - residuals[None, :]
    sines = []
    for j in range(1, len(values) + 1):
        spread = float(residuals[:j].square().sum().sqrt())
        gap = min(float(outside[:j].min()), float(apart[:j, j:].min()) if j < len(values) else math.inf)
        sines.append(0.0 if spread == 0 else spread / gap if gap > spread else 1.0)
    return torch.tensor(sines, dtype=torch.float64)


def _distance_outside(pairs: Eigenpairs) -> Tensor:
    """(k,) how far each value is from all eigenvalues that are not among the pairs, as far as Ritz values show.

    Those lie farther in than the innermost pair of each end, whose own gap follows from the error of Kato and
    Temple, residual^2 / gap (the residual where no gap is seen).
    """
    values, residuals, k = pairs.values, pairs.residuals, len(pairs.values)
    if k == pairs.vectors.shape[0]:
        return torch.full_like(values, math.inf)
    if len(pairs.errors) != k:
        return torch.zeros_like(values)
    gaps = torch.where(pairs.errors < residuals, residuals.square() / pairs.errors.clamp(min=1e-300), 0.0)
    found = torch.zeros_like(values)
    for end in _ends(pairs):
        inner = end[-1]
        found[end] = (values[end] - values[inner]).abs() + gaps[inner]
    return found


def _ends(pairs: Eigenpairs) -> list[Tensor]:
    """Positions of the pairs of each end of the spectrum, outermost first."""
    values, every = pairs.values, torch.arange(len(pairs.values))
    if pairs.which == "BE":
        upper = (len(values) + 1) // 2
        return [every[:upper], every[upper:].flip(0)]
    if pairs.which == "LM":
        return [end for end in (every[values >= 0], every[values < 0]) if len(end)]
    return [every]
