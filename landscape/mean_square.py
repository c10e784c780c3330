r"""The learning rate at which SGD on a linear model loses stability in mean square, exactly; with momentum too.

With squared loss :math:`\frac1{2n} \sum_i |J_i d|^2` about an interpolating minimum, SGD multiplies the second moment
:math:`M = E[d d^T]` in every step by

.. math:: T(M) = (I - \eta H) M (I - \eta H) + \eta^2 C(M), \quad C(M) = p \, (E[G_i M G_i] - H M H),

with :math:`G_i = J_i^T J_i`, :math:`H = E[G_i]`, where p = 1/B for batches drawn with replacement and
:math:`p = (n - B) / (B (n - 1))` without. T maps positive matrices to positive ones, so that its spectral radius is one
of its eigenvalues (Krein and Rutman), and the radius crosses 1 where :math:`\eta\, Q(M) = L(M)` with
:math:`L(M) = H M + M H` and :math:`Q(M) = H M H + C(M)`:

.. math:: 1 / \eta^* = \lambda_{\max}(L^{-1/2} Q L^{-1/2}).

Both are symmetric and L is diagonal in the eigenvectors of H. Compare R. Mulayoff and T. Michaeli, "Exact mean square
linear stability analysis for SGD", COLT 2024 (arXiv 2306.07850); L. Wu and W. J. Su, ICML 2023, whose necessary
:math:`\operatorname{tr} H \le 2/\eta` it implies for B = 1 and one output.

**Momentum.** What the noise adds in one step, the modes of H, with eigenvalues :math:`\lambda_i`, answer as filters
with impulse responses :math:`k_i(t)`, so that a stationary M has :math:`M_{ij} = \eta^2 g_{ij} C(M)_{ij}` with
:math:`g_{ij} = \sum_t k_i(t) k_j(t)`. For heavy ball with momentum b

.. math:: 1 / g_{ij} = \frac{(1-b)^2 ((1+b) \eta (\lambda_i + \lambda_j) - \eta^2 \lambda_i \lambda_j)
          + b \eta^2 (\lambda_i - \lambda_j)^2}{1 - b^2},

which leaves an eigenproblem of the same form, with :math:`Q(M) = \frac{C(M)}{1-b} + \frac{H M H}{1+b}
- \frac{b\,(H^2 M - 2 H M H + M H^2)}{(1-b)^2 (1+b)}`. Noise counts 1/(1-b), the mean 1/(1+b): hence the two ends of the
edge, 2(1-b)/lr at small and 2(1+b)/lr at large batches. With Nesterov's g the rate does not come out, and is searched.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq
from torch import Tensor

from .errors import SettingError
from .krylov import top_eigenpairs
from .operators import SymmetricOperator
from .results import Eigenpairs, Estimate
from .space import VectorSpace, generator_for

__all__ = ["mean_square_threshold"]

_LARGEST = 2000  # rank of H: a vector of the eigenproblem has its square of entries
_SEARCHED = 1e-4  # residual while a rate is searched: its square is the noise in what is searched


def mean_square_threshold(
    rows: Tensor,
    batch_size: int,
    *,
    replacement: bool = True,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    tol: float = 1e-6,
    confidence: float = 0.95,
    seed: int | torch.Generator | None = None,
) -> Estimate:
    r"""The largest rate at which SGD on a linear model with squared loss is stable in mean square.

    Without momentum it lies between :math:`2 / \max_i |a_i|^2` and :math:`2 / \operatorname{tr} H` for single samples
    of one output. As batches grow it tends to the deterministic threshold of the optimizer, for heavy ball
    :math:`(2 + 2b) / \lambda_{\max}(H)`.

    Args:
        rows: (n, d) gradients a_i of the outputs, scaled so that the loss is the mean of ``(a_i' d)^2 / 2``; or
            (n, C, d) Jacobians J_i of C outputs.
        batch_size: B.
        replacement: whether a batch may hold a sample twice.
        momentum: b, as of `torch.optim.SGD`.
        dampening: of that, too.
        nesterov: of that, too.
        tol: relative residual to which the eigenvalue is computed, for Nesterov at most 1e-4; its error is about the
            square of it.
        confidence: of the lower end of the interval, over a random start; the upper end is rigorous (for Nesterov to
            first order in its distance).
        seed: int, generator, or None for fresh entropy.

    Returns:
        :math:`\eta^*`, infinite where all rows vanish; ``matvecs`` counts applications of Q (of C for Nesterov).

    Raises:
        SettingError: if the rows are not finite numbers of that shape, are of a rank above 2000, or the batch size,
            momentum or dampening mean nothing.

    Example:
        Rows of equal length, one at a time: two over the trace.

        >>> import torch
        >>> from losscope.landscape.mean_square import mean_square_threshold
        >>> mean_square_threshold(torch.eye(4), batch_size=1, seed=0).value
        2.0
    """
    J = _checked(rows, batch_size, replacement)
    _check_momentum(momentum, dampening, nesterov)
    n = len(J)
    share = 1 / batch_size if replacement else (n - batch_size) / (batch_size * (n - 1)) if n > 1 else 0.0
    model = _LinearModel(J, share)
    if not len(model.values):
        return Estimate(torch.inf, 0.0, torch.inf, torch.inf, confidence, 0, "mean square", True)
    if nesterov:
        return _searched(model, momentum, tol, confidence, seed)
    found = top_eigenpairs(_StepGrowth(model, momentum), tol=tol, confidence=confidence, seed=seed)
    value, low, high = (float(x[0]) * (1 - dampening if momentum else 1) for x in (found.values, found.low, found.high))
    return Estimate(
        1 / value, float("nan"), 1 / high, 1 / low, confidence, found.matvecs, "mean square", found.converged
    )


class _LinearModel:
    """The rows in the eigenvectors of H, over its range, and what the noise of mini-batches makes of a matrix."""

    def __init__(self, J: Tensor, share: float) -> None:
        n, C, _ = J.shape
        U, sizes, _ = torch.linalg.svd(J.reshape(n * C, -1), full_matrices=False)
        kept = sizes > sizes.max() * max(J.shape) * torch.finfo(J.dtype).eps
        r = int(kept.sum())
        if r > _LARGEST:
            raise SettingError(f"the rows have rank {r}, and {_LARGEST} is the most: give fewer samples")
        self.J = (U[:, kept] * sizes[kept]).reshape(n, C, r)
        self.share, self.values = share, sizes[kept].square() / n
        self.space = VectorSpace(r * r, J.dtype, J.device)

    def noise(self, M: Tensor) -> Tensor:
        """C(M) = p (E[G_i M G_i] - H M H), (r, r) -> (r, r)."""
        forms = torch.einsum("ica,ab,idb->icd", self.J, M, self.J)  # J_i M J_i'
        mean = torch.einsum("ica,icd,idb->ab", self.J, forms, self.J) / len(self.J)
        return self.share * (mean - self.values[:, None] * M * self.values)


class _OnMatrices(SymmetricOperator):
    """An operator on symmetric matrices over the range of H, as vectors of r^2 entries."""

    kernel = "dense"

    def __init__(self, model: _LinearModel) -> None:
        self.model, self.space = model, model.space

    @property
    def known_symmetric(self) -> bool:
        """By what it is."""
        return True

    def product(self, V: Tensor) -> Tensor:
        """(r^2, k) -> (r^2, k)."""
        r = len(self.model.values)
        return torch.stack([self.of(v.reshape(r, r)).reshape(-1) for v in V.T], dim=1)

    def of(self, M: Tensor) -> Tensor:
        """What it makes of one matrix."""
        raise NotImplementedError

    def form(self, v: Tensor) -> float:
        """v' A v of one vector (r^2, 1)."""
        return float((v * self.product(v)).sum())


class _StepGrowth(_OnMatrices):
    """L^-1/2 Q L^-1/2 of heavy ball."""

    def __init__(self, model: _LinearModel, b: float) -> None:
        super().__init__(model)
        first, second = model.values[:, None], model.values
        self.psd = b == 0
        self.b, self.root = b, (first + second).rsqrt()
        self.mean = first * second / (1 + b) - b * (first - second).square() / ((1 - b) ** 2 * (1 + b))

    def of(self, M: Tensor) -> Tensor:
        """L^-1/2 Q L^-1/2 M."""
        M = self.root * M
        return self.root * (self.model.noise(M) / (1 - self.b) + self.mean * M)


# --------------------------------------------------------------------------- Nesterov


class _NesterovGain(_OnMatrices):
    """eta^2 g^1/2 C g^1/2 at one rate: mean squares grow where its largest eigenvalue is above 1.

    With q = 1 - eta lambda the weights follow ``x' = (1+b) y - b y_before``, ``y = q x - eta e``, where e is what the
    noise adds. So y is autoregressive of order two, with coefficients ``(1+b) q`` and ``-b q``, and the response of the
    weights is ``(r - 1) / (q_i q_j)``, where r is that of y.
    """

    def __init__(self, model: _LinearModel, b: float, rate: float) -> None:
        super().__init__(model)
        q, other = (1 - rate * model.values)[:, None], 1 - rate * model.values
        Q, total = q * other, q + other
        above = b**2 * (1 - b**2 * Q) + (1 + b) ** 2 * (1 + b**2 * Q - b * total)
        below = (1 - b**2 * Q).square() - (1 + b) ** 2 * Q * (1 + b**2 * Q - b * total)
        self.root = rate * (above / below).sqrt()  # both are positive below the deterministic threshold

    def of(self, M: Tensor) -> Tensor:
        """eta^2 g^1/2 C g^1/2 M."""
        return self.root * self.model.noise(self.root * M)


def _searched(
    model: _LinearModel, b: float, tol: float, confidence: float, seed: int | torch.Generator | None
) -> Estimate:
    """The rate at which the gain is 1, below the deterministic threshold, where it is infinite."""
    generator, tol = generator_for(seed, model.space.device), min(tol, _SEARCHED)
    spent, start = 0, None

    def gain(rate: float, cold: bool = False) -> Eigenpairs:
        nonlocal spent, start
        found = top_eigenpairs(
            _NesterovGain(model, b, rate), tol=tol, start=None if cold else start, confidence=confidence, seed=generator
        )
        spent, start = spent + found.matvecs, found.vectors
        return found

    def excess(log_rate: float) -> float:
        return math.log(max(float(gain(math.exp(log_rate)).values[0]), 1e-300))

    ceiling = (2 + 2 * b) / ((1 + 2 * b) * float(model.values.max()))
    high = math.log(ceiling * (1 - 1e-6))
    if model.share == 0 or excess(high) < 0:  # without noise along the top mode
        low = ceiling if model.share == 0 else ceiling * (1 - 1e-6)
        return Estimate(ceiling, float("nan"), low, ceiling, confidence, spent, "mean square", True)
    low = high - math.log(2)
    while excess(low) >= 0:
        low -= math.log(2)
    at = float(brentq(excess, low, high, xtol=1e-12, rtol=1e-12))
    found = gain(math.exp(at), cold=True)
    near = min(1e-4, (math.log(ceiling) - at) / 2)
    around = [_NesterovGain(model, b, math.exp(at + by)).form(found.vectors) for by in (-near, near)]
    slope = (math.log(around[1]) - math.log(around[0])) / (2 * near)  # of the gain, by that of its Rayleigh quotient
    value, below, above = (math.exp(at) * float(x[0]) ** (-1 / slope) for x in (found.values, found.high, found.low))
    return Estimate(value, float("nan"), below, above, confidence, spent, "mean square", found.converged)


# --------------------------------------------------------------------------- bad input


def _check_momentum(momentum: float, dampening: float, nesterov: bool) -> None:
    if not 0 <= momentum < 1:
        raise SettingError(f"momentum must be in [0, 1), got {momentum!r}")
    if not -math.inf < dampening < 1:
        raise SettingError(f"dampening must be below 1, which leaves no gradient in the step; got {dampening!r}")
    if nesterov and (momentum == 0 or dampening != 0):
        raise SettingError("nesterov needs a momentum and no dampening, as of torch.optim.SGD")


def _checked(rows: Tensor, batch_size: int, replacement: bool) -> Tensor:
    """The rows as (n, C, d) in float64."""
    if not isinstance(rows, Tensor) or rows.ndim not in (2, 3) or rows.is_complex() or 0 in rows.shape:
        shape = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise SettingError(f"rows must be a real tensor (n, d) or (n, C, d) that is not empty, got {shape}")
    if not rows.isfinite().all():
        raise SettingError("rows must be finite")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise SettingError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    if not replacement and batch_size > len(rows):
        raise SettingError(f"without replacement a batch has at most n = {len(rows)} samples, got {batch_size}")
    rows = rows.detach().to(torch.float64)
    return rows[:, None, :] if rows.ndim == 2 else rows
