"""Extremal eigenpairs by block Lanczos, with what the iteration proves about them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.special import chdtri
from torch import Tensor

from .errors import SettingError
from .exclusion import Rest, sure_share
from .lanczos import LanczosBasis
from .operators import Observed, SymmetricOperator, as_operator
from .results import Eigenpairs
from .ritz import ENDS, Ritz, steps_left
from .space import VectorSpace, generator_for

__all__ = ["Search", "check_tolerance", "top_eigenpairs"]

MIX = 0.05
"""Size of the random direction mixed into a warm start, relative to the start itself."""

_MEMORY = 2 << 30  # default cap on the Krylov basis, bytes
_BUDGET = 1000  # products that are spent at most where nothing is said
_LOOK = 20  # products that looking for missed eigenvalues may take at the least
_USUAL = 40  # products that a run is taken to need where nothing else is said
_WARM = 4  # and at most from a start: an eigenvector of a while ago is mostly close


def top_eigenpairs(
    A: Any,
    k: int = 1,
    *,
    which: str = "LA",
    tol: float = 1e-2,
    start: Tensor | None = None,
    block: int | None = None,
    guards: int = 0,
    max_matvecs: int | None = None,
    memory: int | None = None,
    confidence: float = 0.95,
    seed: int | torch.Generator | None = None,
) -> Eigenpairs:
    r"""The k extremal eigenpairs of a symmetric operator.

    Block Lanczos, every block orthogonalised twice against the whole basis, the projected problem solved in
    float64 on the CPU, and not at every step. Where the basis outgrows its memory, it is restarted from its best
    Ritz vectors (thick restart; Wu and Simon, SIAM J. Matrix Anal. Appl. 22, 2000). Blocks narrower than k, which
    take the fewest products, find an eigenvalue only as often as they have vectors. So once all pairs have
    converged, a random direction joins the block, to find what was missed or to exclude it.

    **What is proved.** For ``which="LA"`` the i-th Ritz value never exceeds the i-th largest
    eigenvalue (Cauchy). An upper bound of the largest can only be probabilistic. Let :math:`T` be the
    projected matrix, :math:`R` the coupling to the next block. An eigenvector :math:`u` with
    eigenvalue :math:`\lambda > \theta_1` has, in the start block :math:`Q_1`,

    .. math:: \|Q_1^T u\| \le \|E_1^T (\lambda - T)^{-1} E_m R^T\|_F,

    so an eigenvalue for which the right side is below what a random start block almost surely has
    cannot exist; see `exclusion`, also for ``rest``, what is proved of all other eigenvalues.

    Args:
        A: an operator of ours, a dense matrix (n, n), or anything with ``shape`` and ``@``.
        k: how many pairs.
        which: ``"LA"`` largest, ``"SA"`` smallest, ``"LM"`` largest in magnitude, ``"BE"`` from both ends, half of
            them each (of an odd number, one more of the largest).
        tol: stop when every residual is at most ``tol`` times its eigenvalue's scale
            ``max(|theta|, ||A|| / 1000)``.
        start: (n,) or (n, j) vectors to start from, e.g. the eigenvectors at the last step, and its guards after
            them, as many as a block holds; random directions of relative size `MIX` are mixed in, so that a crossing
            is not missed for good.
        block: vectors in a block. By default 1 on a CPU, and k where products of a block cost little more than
            one (on a GPU) or the start has as many.
        guards: further vectors in every block. Close eigenvalues (the C of a C-class problem) are told apart in
            fewer steps where the block is wider than they are many, and an eigenvector that overtakes another one
            between warm starts is found among the guards of the last.
        max_matvecs: most products to spend; by default 1000.
        memory: bytes that the basis may take; by default 2 GiB, or the little more that k pairs need.
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
    operator = as_operator(A)
    return Search(operator, k, which, tol, start, block, guards, max_matvecs, memory, confidence, seed).run()


class Search:
    """The search for extremal eigenpairs of one operator, one product after the other.

    Attributes:
        block: vectors at a time.
        planned: products that it is taken to need.
        found: the result, once it is there.
    """

    found: Eigenpairs | None = None

    def __init__(
        self,
        operator: SymmetricOperator,
        k: int,
        which: str,
        tol: float,
        start: Tensor | None,
        block: int | None,
        guards: int,
        max_matvecs: int | None,
        memory: int | None,
        confidence: float,
        seed: int | torch.Generator | None,
    ) -> None:
        _check(operator.space, k, which, tol, block, guards, max_matvecs, confidence)
        self.operator, self.k, self.which, self.tol, self.confidence = operator, k, which, tol, confidence
        self.guards = guards
        self.block = _width(k, _wanted(operator.space, k, start, block) + guards, operator.space.size, max_matvecs)
        self._room = _room(operator.space, k, self.block, memory)
        self._budget = max(_BUDGET, self.block) if max_matvecs is None else max_matvecs
        usual = _USUAL if max_matvecs is None else self._budget
        self.planned = min(self._budget, usual if start is None else k * _WARM)
        self._basis = LanczosBasis(operator, self.block, generator_for(seed, operator.space.device))
        risk = (1.0 - confidence) / (2 if which == "BE" else 1)  # two bounds may fail there
        self._share = _begin(self._basis, start, risk)
        self._excluded = (math.inf, -math.inf)
        self._step, self._next_check, self._spent = 0, 1, 0
        self._rest: Rest | None = None
        self._risk, self._spent_before = 1.0 - confidence, 0

    def run(self) -> Eigenpairs:
        """Go on until it is over."""
        with self.operator.held():
            self.operator.plan(self.planned, self.block)
            observed = Observed(self.operator)
            while self.found is None:
                self.absorb(observed.unchecked(self.newest))
            return self.found

    def leading(self, count: int) -> tuple[np.ndarray, Tensor]:
        """What the search has seen of the leading ``count`` pairs: Ritz values and vectors (n, count), unconverged."""
        ritz = Ritz(self._basis, min(count, self._basis.size), self.which, self._share)
        return ritz.values, self._basis.combined(ritz.Y[:, ritz.chosen])

    @property
    def newest(self) -> Tensor:
        """What is to be multiplied next, (n, width)."""
        return self._basis.newest

    def absorb(self, product: Tensor) -> None:
        """Take in the product with the newest block; look for convergence where it is time to."""
        basis = self._basis
        self._spent += product.shape[1]
        self._step += 1
        basis.absorb(product)
        last = basis.size >= basis.space.size or self._spent + basis.total - basis.size > self._budget
        full = basis.total + basis.block > self._room
        due = last or full or basis.broke_down
        if basis.size < self.k or not (due or self._step >= self._next_check):
            return
        if not due and (left := steps_left(basis, self.k, self.which, self.tol)):
            self._next_check = self._step + max(self._step // 5, left)
            return
        ritz = Ritz(basis, self.k, self.which, self._share, self._excluded)
        over = ritz.converged(self.tol) or ritz.stalled()
        if self._rest is not None and (over or last):
            self._rest.look()
        if last or (over and self._nothing_missed(ritz, full)):
            self.found = self._result(ritz)
            return
        if full:
            blocks = (self._room - basis.block) // (2 * basis.block)  # whole ones, which chunks hold
            self._excluded = ritz.restarted(max(blocks, math.ceil(self.k / basis.block)) * basis.block)
            self._rest = None
        self._next_check = self._step + (2 if over else max(1, self._step // 5, ritz.at_least(self.tol)))

    def _nothing_missed(self, ritz: Ritz, full: bool) -> bool:
        """Whether an eigenvalue among the wanted can hardly have been missed; if it can, the basis is widened."""
        basis = self._basis
        if basis.block >= self.k:
            return True
        if basis.total >= basis.space.size:  # the next products say all
            return False
        if self._rest is not None:
            if full or ritz.ends_before(self._rest.low, self._rest.high, self.tol):
                return True
            if ritz.ends_before(self._rest.lowest, self._rest.highest, self.tol):
                return self._spent >= max(2 * self._spent_before, self._spent_before + _LOOK)
        if full:
            return False  # it is restarted first
        self._risk /= 2  # so that all rounds together may fail as often as is allowed
        self._rest, self._spent_before = Rest(basis, ritz.Y[:, ritz.chosen], self._risk), self._spent
        return False

    def _result(self, ritz: Ritz) -> Eigenpairs:
        rest = (-math.inf, math.inf)
        if self._rest is not None:
            slack = ritz.rounding
            rest = (self._rest.low - slack, self._rest.high + slack)
        guards = max(self.guards, self.block - self.k)
        return ritz.result(self.operator, self._spent, self.tol, self.confidence, guards, rest)


def _wanted(space: VectorSpace, k: int, start: Tensor | None, block: int | None) -> int:
    """Vectors in a block, but for guards."""
    if block is not None:
        return block
    if start is None:
        return 1 if space.device.type == "cpu" else k
    return min(k, start.shape[1] if isinstance(start, Tensor) and start.ndim == 2 else 1)


def _width(k: int, wanted: int, n: int, max_matvecs: int | None) -> int:
    """The widest block up to the one wanted of which whole ones reach k vectors with the products there are."""
    wanted = min(wanted, n)
    if max_matvecs is None:
        return wanted
    return next(width for width in range(wanted, 0, -1) if math.ceil(k / width) * width <= max_matvecs)


def _room(space: VectorSpace, k: int, block: int, memory: int | None) -> int:
    """How many vectors the basis may hold: what fits the memory, and enough to restart from k and go on."""
    each = space.size * torch.finfo(space.dtype).bits // 8
    least = min(2 * k + 3 * block, space.size + block)
    if memory is not None and memory < least * each:
        raise SettingError(
            f"memory={memory} bytes holds {memory // each} vectors of {space.size} entries, and {least} are needed "
            f"for k={k}: allow {least * each}, or ask for fewer pairs"
        )
    return max((_MEMORY if memory is None else memory) // each, least)


def _check(
    space: VectorSpace,
    k: int,
    which: str,
    tol: float,
    block: int | None,
    guards: int,
    max_matvecs: int | None,
    confidence: float,
) -> None:
    n = space.size
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n:
        raise SettingError(f"k must be an integer between 1 and n = {n}, got {k!r}")
    if not isinstance(which, str) or which not in ENDS:
        raise SettingError(
            f"which must be one of {', '.join(f'{end!r} ({what})' for end, what in ENDS.items())}; got {which!r}"
        )
    if which == "BE" and k < 2:
        raise SettingError(f'which="BE" takes k of 2 or more, one for each end; got {k}')
    if isinstance(block, bool) or not (block is None or (isinstance(block, int) and 1 <= block <= n)):
        raise SettingError(f"block must be None or an integer between 1 and n = {n}, got {block!r}")
    if isinstance(guards, bool) or not isinstance(guards, int) or guards < 0:
        raise SettingError(f"guards must be an integer of 0 or more, got {guards!r}")
    check_tolerance(space, tol)
    if isinstance(max_matvecs, bool) or not (
        max_matvecs is None or (isinstance(max_matvecs, int) and max_matvecs >= k)
    ):
        raise SettingError(f"max_matvecs must be None or an integer of at least k = {k}, got {max_matvecs!r}")
    if not 0 < confidence < 1:
        raise SettingError(f"confidence must be between 0 and 1, got {confidence!r}")


def check_tolerance(space: VectorSpace, tol: float) -> None:
    """Refuse a relative residual that products in a space cannot reach.

    Raises:
        SettingError: naming the least that they can.
    """
    floor = space.rounding
    if not floor <= tol < 1:
        raise SettingError(
            f"tol must be in [{floor:.1e}, 1): {space.dtype} cannot resolve residuals below that; got {tol!r}"
        )


def _begin(basis: LanczosBasis, start: Tensor | None, risk: float) -> float:
    """Set the first block: random, or a warm start with random directions mixed in.

    Returns:
        What the projection on it of any fixed unit vector exceeds with probability ``1 - risk``.
    """
    space, n, b = basis.space, basis.space.size, basis.block
    fresh = space.random(b, basis.generator)
    if start is None:
        basis.begin(fresh)
        return sure_share(n, b, risk)
    if not isinstance(start, Tensor):
        raise SettingError(f"start must be a tensor of shape ({n},) or ({n}, j), got {type(start).__name__}")
    if start.ndim not in (1, 2) or start.shape[0] != n or start.numel() == 0:
        raise SettingError(f"start must have shape ({n},) or ({n}, j), got {tuple(start.shape)}")
    start = (start[:, None] if start.ndim == 1 else start).detach().to(fresh)
    norms = start.norm(dim=0)
    start = start / torch.where(norms > 0, norms, 1.0)
    mixed = fresh / math.sqrt(n)
    mixed[:, : start.shape[1]] = start[:, :b] + MIX * mixed[:, : start.shape[1]]
    R = basis.begin(mixed)
    # |Q1' u| >= |S' u| / |S|, and S' u = (fixed) + (MIX / sqrt n) N(0, I), whose norm is smallest
    # in distribution when the fixed part is zero (Anderson's inequality).
    quantile = math.sqrt(chdtri(b, 1.0 - risk))
    largest = abs(float(R[0, 0])) if b == 1 else float(np.linalg.norm(R, 2))
    return MIX / math.sqrt(n) * quantile / largest
