"""Extremal eigenpairs by block Lanczos, with what the iteration proves about them."""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.special import betaincinv, chdtri
from torch import Tensor

from .errors import SettingError
from .operators import Observed, as_operator
from .results import Eigenpairs
from .space import VectorSpace, generator_for

__all__ = ["top_eigenpairs"]

MIX = 0.05
"""Size of the random direction mixed into a warm start, relative to the start itself."""

USEFUL_BOUND = 0.25
"""A probabilistic bound further than this from its Ritz value (relative) is not reported as one."""

_MEMORY = 2 << 30  # default cap on the Krylov basis, bytes


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
    basis = _Basis(operator, block, generator_for(seed, operator.space.device))
    basis.begin(start, 1.0 - confidence)
    step, next_check = 0, 1
    with operator.held():
        while True:
            basis.extend()
            step += 1
            last = basis.size >= n or operator.matvecs + block > budget
            if last or basis.broke_down or step >= next_check:
                ritz = basis.ritz(k, which)
                if last or ritz.converged(tol) or ritz.stalled():
                    return ritz.result(operator, tol, confidence)
                next_check = step + max(1, step // 5)


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


class _Basis:
    """An orthonormal Krylov basis and the projection of the operator on it.

    Holds rows (size, n); T (size, size) float64 on the CPU; R, the coupling to the block that would
    come next: A Q = Q T + Q_next R E_m'.
    """

    def __init__(self, operator: Observed, block: int, generator: torch.Generator) -> None:
        self.operator, self.space, self.block, self.generator = operator, operator.space, block, generator
        self.rows = torch.empty(0, self.space.size, dtype=self.space.dtype, device=self.space.device)
        self.T = torch.zeros(0, 0, dtype=torch.float64)
        self.size = 0  # vectors already multiplied
        self.broke_down = False

    def begin(self, start: Tensor | None, risk: float) -> None:
        """Set the first block: random, or a warm start with random directions mixed in."""
        n, b = self.space.size, self.block
        fresh = self.space.random(b, self.generator)
        if start is None:
            self._append(self._orthonormal(fresh)[0])
            # The share of a fixed unit vector in a random b-dimensional subspace.
            self.share = math.sqrt(betaincinv(b / 2, (n - b) / 2, risk)) if b < n else 1.0
            return
        if not isinstance(start, Tensor):
            raise SettingError(f"start must be a tensor of shape ({n},) or ({n}, j), got {type(start).__name__}")
        if start.ndim not in (1, 2) or start.shape[0] != n or start.numel() == 0:
            raise SettingError(f"start must have shape ({n},) or ({n}, j), got {tuple(start.shape)}")
        start = start[:, None] if start.ndim == 1 else start
        warm = start[:, :b].to(fresh)
        norms = warm.norm(dim=0)
        mixed = fresh / math.sqrt(n)
        mixed[:, : warm.shape[1]] = warm / torch.where(norms > 0, norms, 1.0) + MIX * mixed[:, : warm.shape[1]]
        first, R = self._orthonormal(mixed)
        self._append(first)
        # |Q1' u| >= |S' u| / |S|, and S' u = (fixed) + (MIX / sqrt n) N(0, I), whose norm is smallest
        # in distribution when the fixed part is zero (Anderson's inequality).
        quantile = math.sqrt(chdtri(b, 1.0 - risk))
        self.share = MIX / math.sqrt(n) * quantile / float(torch.linalg.matrix_norm(R, 2))

    def extend(self) -> None:
        """Multiply the newest block and append the next one."""
        old, total = self.size, self.total
        newest = self.rows[old:total]
        W = self.operator @ newest.T
        Q = self.rows[:total].T
        C = self.space.inner(Q, W)
        W = W - Q @ C
        again = self.space.inner(Q, W)  # twice is enough (Kahan; Giraud et al. 2005)
        W = W - Q @ again
        diagonal = (C + again)[old:total].to("cpu", torch.float64)
        self.T[old:total, old:total] = (diagonal + diagonal.T) / 2
        self.size = total
        self._append_next(W, total - old)

    @property
    def total(self) -> int:
        """Vectors in the basis, the newest block included."""
        return self.T.shape[0]

    def _append_next(self, W: Tensor, width: int) -> None:
        room = min(width, self.space.size - self.size)
        new, R = self._orthonormal(W) if room == width else (None, None)
        scale = float(self.T.abs().max())
        tiny = 10 * torch.finfo(self.space.dtype).eps * scale
        self.broke_down = R is None or float(R.diagonal().abs().min()) <= tiny
        if self.broke_down:
            new, R = self._orthonormal_with_refill(W, room, tiny)
        assert new is not None and R is not None
        before = slice(self.size - width, self.size)
        self._append(new)
        after = slice(self.size, self.total)
        self.T[after, before], self.T[before, after] = R, R.T
        self.R = R

    def _orthonormal(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """W = Q R with orthonormal Q (n, b), R (b, b) in float64 on the CPU."""
        if W.shape[1] == 1:
            norm = torch.linalg.vector_norm(W)
            return W / norm, norm.reshape(1, 1).to("cpu", torch.float64)
        Q, R = torch.linalg.qr(W)
        return Q, R.to("cpu", torch.float64)

    def _orthonormal_with_refill(self, W: Tensor, room: int, tiny: float) -> tuple[Tensor, Tensor]:
        """Orthonormalise column by column; where nothing is left, go on in a random direction.

        The basis spans an invariant subspace then. A random direction orthogonal to it, with zero
        coupling, keeps the relation A Q = Q T + ... exact and finds further copies of an eigenvalue.
        """
        width = W.shape[1]
        found: list[Tensor] = []
        R = torch.zeros(room, width, dtype=torch.float64)
        for j in range(width):
            w = W[:, j]
            for _ in range(2):
                for i, q in enumerate(found):
                    c = torch.dot(q, w)
                    R[i, j] += float(c)
                    w = w - c * q
            norm = float(torch.linalg.vector_norm(w))
            if norm > tiny and len(found) < room:
                R[len(found), j] = norm
                found.append(self._cleaned(w / norm, found))
        while len(found) < room:
            w = self.space.random(1, self.generator)[:, 0]
            found.append(self._cleaned(w / torch.linalg.vector_norm(w), found))
        return (torch.stack(found, dim=1) if found else W[:, :0]), R

    def _cleaned(self, w: Tensor, found: list[Tensor]) -> Tensor:
        """A unit vector made orthogonal to the basis and to the new block so far."""
        Q = torch.cat([self.rows[: self.total].T, *(q[:, None] for q in found)], dim=1)
        for _ in range(3):
            w = w - Q @ (Q.T @ w)
            w = w / torch.linalg.vector_norm(w)
        return w

    def _append(self, new: Tensor) -> None:
        total, width = self.total, new.shape[1]
        if total + width > self.rows.shape[0]:
            grown = max(total + width, min(2 * self.rows.shape[0], self.space.size), 8)
            rows = torch.empty(grown, self.space.size, dtype=self.space.dtype, device=self.space.device)
            rows[:total] = self.rows[:total]
            self.rows = rows
        self.rows[total : total + width] = new.T
        T = torch.zeros(total + width, total + width, dtype=torch.float64)
        T[:total, :total] = self.T
        self.T = T

    def ritz(self, k: int, which: str) -> _Ritz:
        """Solve the projected problem."""
        values, Y = torch.linalg.eigh(self.T[: self.size, : self.size])
        return _Ritz(self, values, Y, k, which)


class _Ritz:
    """The Ritz pairs of a basis and the bounds that follow from it."""

    def __init__(self, basis: _Basis, values: Tensor, Y: Tensor, k: int, which: str) -> None:
        self.basis, self.all_values, self.Y, self.which = basis, values, Y, which
        order = {"LA": values.argsort(descending=True), "SA": values.argsort()}.get(which)
        self.chosen = (values.abs().argsort(descending=True) if order is None else order)[:k]
        self.values = values[self.chosen]
        norm = float(values.abs().max())
        self.rounding = basis.space.rounding * norm
        self.scale = torch.clamp(self.values.abs(), min=1e-3 * norm)
        width = basis.R.shape[1]
        self.coupling = basis.R @ Y[basis.size - width :]  # (next, size): R times the last block's rows
        self.residuals = self.coupling[:, self.chosen].norm(dim=0) + self.rounding

    def converged(self, tol: float) -> bool:
        # The residuals carry their rounding, so this is never true by underflow of a recurrence.
        return bool((self.residuals <= tol * self.scale).all())

    def stalled(self) -> bool:
        """Whether more products cannot bring the residuals down, rounding being most of them."""
        return bool((self.residuals <= 2 * self.rounding).all())

    def result(self, operator: Observed, tol: float, confidence: float) -> Eigenpairs:
        rows = self.basis.rows[: self.basis.size]
        vectors = rows.T @ self.Y[:, self.chosen].to(rows)
        vectors = vectors / vectors.norm(dim=0)
        low, high = torch.full_like(self.values, -math.inf), torch.full_like(self.values, math.inf)
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
        return Eigenpairs(
            self.values, vectors, self.residuals, low, high, bound, confidence, self.converged(tol),
            operator.matvecs, self.which, tol, operator.kernel,
        )  # fmt: skip

    def _outer_bound(self, values: Tensor) -> float:
        """The largest point at which an eigenvalue above all Ritz values is not excluded."""
        top = float(values.max())
        if self.coupling.numel() == 0:  # the basis spans the whole space
            return top + self.rounding
        first = self.Y[: self.basis.block]
        spread = max(float(values.max() - values.min()), abs(top), 1e-300)
        gaps = torch.logspace(-12, 6, 1000, dtype=torch.float64) * spread
        weights = 1.0 / (top + gaps[:, None] - values)  # (grid, size)
        terms = torch.einsum("am,gm,cm->gac", first, weights, self.coupling)
        possible = terms.flatten(1).norm(dim=1) >= self.basis.share
        above = int(possible.nonzero().max()) + 1 if possible.any() else 0
        return top + float(gaps[min(above, len(gaps) - 1)]) + self.rounding
