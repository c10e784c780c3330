"""Extremal eigenpairs by block Lanczos, with what the iteration proves about them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.special import betaincinv, chdtri
from torch import Tensor

from .errors import SettingError
from .lanczos import LanczosBasis
from .operators import Observed, as_operator
from .results import Eigenpairs
from .space import VectorSpace, generator_for

__all__ = ["top_eigenpairs"]

MIX = 0.05
"""Size of the random direction mixed into a warm start, relative to the start itself."""

USEFUL_BOUND = 0.25
"""A probabilistic bound further than this from its Ritz value (relative) is not reported as one."""

_MEMORY = 2 << 30  # default cap on the Krylov basis, bytes
_USUAL = 40  # products that a run is taken to need where nothing else is said


def top_eigenpairs(
    A: Any,
    k: int = 1,
    *,
    which: str = "LA",
    tol: float = 1e-2,
    start: Tensor | None = None,
    max_matvecs: int | None = None,
    confidence: float = 0.95,
    seed: int | torch.Generator | None = None,
) -> Eigenpairs:
    r"""The k extremal eigenpairs of a symmetric operator.

    Block Lanczos with blocks of k vectors (so that an eigenvalue of multiplicity up to k is found as
    often as it occurs), every block orthogonalised twice against the whole basis, the projected
    problem solved in float64 on the CPU, and not at every step.

    **What is proved.** For ``which="LA"`` the i-th Ritz value never exceeds the i-th largest
    eigenvalue (Cauchy). An upper bound of the largest can only be probabilistic. Let :math:`T` be the
    projected matrix, :math:`R` the coupling to the next block. An eigenvector :math:`u` with
    eigenvalue :math:`\lambda > \theta_1` has, in the start block :math:`Q_1`,

    .. math:: \|Q_1^T u\| \le \|E_1^T (\lambda - T)^{-1} E_m R^T\|_F,

    so an eigenvalue for which the right side is below what a random start block almost surely has
    cannot exist. For a single vector this is the bound of van Dorsselaer, Hochstenbach and van der
    Vorst (SIAM J. Matrix Anal. Appl. 22, 2000). It concerns the start only, hence holds at whatever
    step the iteration stops.

    Args:
        A: an operator of ours, a dense matrix (n, n), or anything with ``shape`` and ``@``.
        k: how many pairs.
        which: ``"LA"`` largest, ``"SA"`` smallest, ``"LM"`` largest in magnitude.
        tol: stop when every residual is at most ``tol`` times its eigenvalue's scale
            ``max(|theta|, ||A|| / 1000)``.
        start: (n,) or (n, j) vectors to start from, e.g. the eigenvectors at the last step; random
            directions of relative size `MIX` are mixed in, so that a crossing is not missed for good.
        max_matvecs: most products to spend. Default: as many as it takes, within 1000 and 2 GiB of
            basis vectors.
        confidence: probability with which the probabilistic bound holds, over the random start.
        seed: int, generator, or None for fresh entropy; the global stream is never used.

    Returns:
        The pairs; ``converged`` says whether ``tol`` was reached. It stops without where rounding, in the
        dtype of the operator and at the size of its norm, leaves nothing to gain.

    Raises:
        SettingError: if an argument means nothing, or ``tol`` is below what the dtype can reach.
        NonFiniteError: if a product is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import top_eigenpairs
        >>> top_eigenpairs(torch.diag(torch.arange(5.0)), k=2, seed=0).values
        tensor([4., 3.], dtype=torch.float64)
    """
    operator = Observed(as_operator(A))
    n = operator.space.size
    _check(operator.space, k, which, tol, max_matvecs, confidence)
    block = min(k, n)
    budget = max(_default_budget(operator.space) if max_matvecs is None else max_matvecs, block)
    basis = LanczosBasis(operator, block, generator_for(seed, operator.space.device))
    share = _begin(basis, start, 1.0 - confidence)
    step, next_check = 0, 1
    with operator.held():
        operator.plan(budget if max_matvecs is not None else min(budget, _USUAL), block)
        while True:
            basis.extend()
            step += 1
            last = basis.size >= n or operator.matvecs + block > budget
            if last or basis.broke_down or step >= next_check:
                ritz = _Ritz(basis, k, which, share)
                if last or ritz.converged(tol) or ritz.stalled():
                    return ritz.result(operator, tol, confidence)
                next_check = step + max(1, step // 5, ritz.at_least(tol))


def _check(space: VectorSpace, k: int, which: str, tol: float, max_matvecs: int | None, confidence: float) -> None:
    n = space.size
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n:
        raise SettingError(f"k must be an integer between 1 and n = {n}, got {k!r}")
    if which not in ("LA", "SA", "LM"):
        raise SettingError(f'which must be "LA", "SA" or "LM", got {which!r}')
    floor = space.rounding
    if not floor <= tol < 1:
        raise SettingError(
            f"tol must be in [{floor:.1e}, 1): {space.dtype} cannot resolve residuals below that; got {tol!r}"
        )
    if max_matvecs is not None and max_matvecs < k:
        raise SettingError(f"max_matvecs must be at least k = {k}, got {max_matvecs!r}")
    if not 0 < confidence < 1:
        raise SettingError(f"confidence must be between 0 and 1, got {confidence!r}")


def _default_budget(space: VectorSpace) -> int:
    per_vector = space.size * torch.finfo(space.dtype).bits // 8
    return min(1000, max(32, _MEMORY // per_vector))


def _begin(basis: LanczosBasis, start: Tensor | None, risk: float) -> float:
    """Set the first block: random, or a warm start with random directions mixed in.

    Returns:
        What the projection on it of any fixed unit vector exceeds with probability ``1 - risk``.
    """
    space, n, b = basis.space, basis.space.size, basis.block
    fresh = space.random(b, basis.generator)
    if start is None:
        basis.begin(fresh)
        # The share of a fixed unit vector in a random b-dimensional subspace.
        return math.sqrt(betaincinv(b / 2, (n - b) / 2, risk)) if b < n else 1.0
    if not isinstance(start, Tensor):
        raise SettingError(f"start must be a tensor of shape ({n},) or ({n}, j), got {type(start).__name__}")
    if start.ndim not in (1, 2) or start.shape[0] != n or start.numel() == 0:
        raise SettingError(f"start must have shape ({n},) or ({n}, j), got {tuple(start.shape)}")
    start = start[:, None] if start.ndim == 1 else start
    warm = start[:, :b].to(fresh)
    norms = warm.norm(dim=0)
    mixed = fresh / math.sqrt(n)
    mixed[:, : warm.shape[1]] = warm / torch.where(norms > 0, norms, 1.0) + MIX * mixed[:, : warm.shape[1]]
    R = basis.begin(mixed)
    # |Q1' u| >= |S' u| / |S|, and S' u = (fixed) + (MIX / sqrt n) N(0, I), whose norm is smallest
    # in distribution when the fixed part is zero (Anderson's inequality).
    quantile = math.sqrt(chdtri(b, 1.0 - risk))
    return MIX / math.sqrt(n) * quantile / float(np.linalg.norm(R, 2))


class _Ritz:
    """The Ritz pairs of a basis and the bounds that follow from it.

    Args:
        basis: the basis.
        k: how many pairs.
        which: which end of the spectrum.
        share: what the start block is almost sure to have of any fixed direction.
    """

    def __init__(self, basis: LanczosBasis, k: int, which: str, share: float) -> None:
        self.basis, self.which, self.share = basis, which, share
        self.all_values, self.Y = basis.eigh()
        order = np.arange(len(self.all_values))  # they ascend
        if which == "LM":
            order = np.argsort(-np.abs(self.all_values), kind="stable")
        self.chosen = order[::-1][:k] if which == "LA" else order[:k]
        self.values = self.all_values[self.chosen]
        norm = float(max(-self.all_values[0], self.all_values[-1]))
        self.rounding = basis.space.rounding * norm
        self.scale = np.maximum(np.abs(self.values), 1e-3 * norm)
        width = basis.R.shape[1]
        self.coupling = basis.R @ self.Y[basis.size - width :]  # (next, size): R times the last block's rows
        self.residuals = np.sqrt(np.square(self.coupling[:, self.chosen]).sum(axis=0)) + self.rounding

    def converged(self, tol: float) -> bool:
        # The residuals carry their rounding, so this is never true by underflow of a recurrence.
        return bool((self.residuals <= tol * self.scale).all())

    def at_least(self, tol: float) -> int:
        """Steps that convergence takes at the least, were each to make residuals ten times smaller."""
        excess = float((self.residuals / np.maximum(tol * self.scale, 1e-300)).max())
        return int(math.log10(excess)) if 1 < excess < math.inf else 0

    def stalled(self) -> bool:
        """Whether more products cannot bring the residuals down, rounding being most of them."""
        return bool((self.residuals <= 2 * self.rounding).all())

    def result(self, operator: Observed, tol: float, confidence: float) -> Eigenpairs:
        vectors = self.basis.combined(self.Y[:, self.chosen])
        vectors = vectors / vectors.norm(dim=0)
        low, high = np.full_like(self.values, -math.inf), np.full_like(self.values, math.inf)
        bound, near = "none", USEFUL_BOUND * self.scale[0]
        if self.which == "LA":
            low, bound = self.values - self.rounding, "lower"
            outer = self._outer_bound(self.all_values)
            if outer - self.values[0] <= near:
                high[0], bound = outer, "two-sided"
        elif self.which == "SA":
            high, bound = self.values + self.rounding, "upper"
            outer = -self._outer_bound(-self.all_values)
            if self.values[0] - outer <= near:
                low[0], bound = outer, "two-sided"
        on_host = torch.from_numpy
        return Eigenpairs(
            on_host(self.values), vectors, on_host(self.residuals), on_host(low), on_host(high), bound, confidence,
            self.converged(tol), operator.matvecs, self.which, tol, operator.kernel, operator.note,
        )  # fmt: skip

    def _outer_bound(self, values: np.ndarray) -> float:
        """The largest point at which an eigenvalue above all Ritz values is not excluded."""
        top = float(values.max())
        if self.coupling.size == 0:  # the basis spans the whole space
            return top + self.rounding
        first = self.Y[: self.basis.block]
        spread = max(float(values.max() - values.min()), abs(top), 1e-280)
        gaps = np.logspace(-12, 6, 600) * spread
        weights = 1.0 / (top + gaps[:, None] - values)  # (grid, size)
        pairs = (first[:, None, :] * self.coupling[None, :, :]).reshape(-1, len(values))
        possible = np.linalg.norm(weights @ pairs.T, axis=1) >= self.share
        above = int(possible.nonzero()[0].max()) + 1 if possible.any() else 0
        return top + float(gaps[min(above, len(gaps) - 1)]) + self.rounding
