r"""The learning rate at which SGD on a linear model loses stability in mean square, exactly.

With squared loss :math:`\frac1{2n} \sum_i |J_i d|^2` about an interpolating minimum, SGD multiplies the second moment
:math:`M = E[d d^T]` in every step by

.. math:: T(M) = (I - \eta H) M (I - \eta H) + \eta^2 p \, (E[G_i M G_i] - H M H), \quad G_i = J_i^T J_i, \; H = E[G_i],

where p = 1/B for batches drawn with replacement and :math:`p = (n - B) / (B (n - 1))` without. T maps positive
matrices to positive ones, so that its spectral radius is one of its eigenvalues (Krein and Rutman), and the radius
crosses 1 where :math:`\eta\, Q(M) = L(M)` with :math:`L(M) = H M + M H` and
:math:`Q(M) = (1 - p) H M H + p E[G_i M G_i]`:

.. math:: 1 / \eta^* = \lambda_{\max}(L^{-1/2} Q L^{-1/2}).

Both are symmetric and L is diagonal in the eigenvectors of H. Compare R. Mulayoff and T. Michaeli, "Exact mean square
linear stability analysis for SGD", COLT 2024 (arXiv 2306.07850); L. Wu and W. J. Su, ICML 2023, whose necessary
:math:`\operatorname{tr} H \le 2/\eta` it implies for B = 1 and one output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import SettingError
from .krylov import top_eigenpairs
from .operators import SymmetricOperator
from .results import Estimate
from .space import VectorSpace

__all__ = ["mean_square_threshold"]

_LARGEST = 2000  # rank of H: a vector of the eigenproblem has its square of entries


def mean_square_threshold(
    rows: Tensor,
    batch_size: int,
    *,
    replacement: bool = True,
    tol: float = 1e-6,
    confidence: float = 0.95,
    seed: int | torch.Generator | None = None,
) -> Estimate:
    r"""The largest rate at which SGD on a linear model with squared loss is stable in mean square.

    It lies between :math:`2 / \max_i |a_i|^2` and :math:`2 / \operatorname{tr} H` for single samples of one output, and
    tends to :math:`2 / \lambda_{\max}(H)` as batches grow.

    Args:
        rows: (n, d) gradients a_i of the outputs, scaled so that the loss is the mean of ``(a_i' d)^2 / 2``; or
            (n, C, d) Jacobians J_i of C outputs.
        batch_size: B.
        replacement: whether a batch may hold a sample twice.
        tol: relative residual to which the eigenvalue is computed; its error is about the square of it.
        confidence: of the lower end of the interval, over a random start; the upper end is rigorous.
        seed: int, generator, or None for fresh entropy.

    Returns:
        :math:`\eta^*`, infinite where all rows vanish; ``matvecs`` counts applications of Q.

    Raises:
        SettingError: if the rows are not finite numbers of that shape, are of a rank above 2000, or the batch size
            means nothing.

    Example:
        Rows of equal length, one at a time: two over the trace.

        >>> import torch
        >>> from losscope.landscape.mean_square import mean_square_threshold
        >>> mean_square_threshold(torch.eye(4), batch_size=1, seed=0).value
        2.0
    """
    J = _checked(rows, batch_size, replacement)
    n = len(J)
    share = 1 / batch_size if replacement else (n - batch_size) / (batch_size * (n - 1)) if n > 1 else 0.0
    operator = _StepGrowth(J, share)
    if operator.shape[0] == 0:
        return Estimate(torch.inf, 0.0, torch.inf, torch.inf, confidence, 0, "mean square", True)
    found = top_eigenpairs(operator, tol=tol, confidence=confidence, seed=seed)
    value, low, high = (float(x[0]) for x in (found.values, found.low, found.high))
    return Estimate(
        1 / value, float("nan"), 1 / high, 1 / low, confidence, found.matvecs, "mean square", found.converged
    )


class _StepGrowth(SymmetricOperator):
    """L^-1/2 Q L^-1/2 on symmetric matrices over the range of H, as vectors of r^2 entries."""

    kernel = "dense"
    psd = True

    def __init__(self, J: Tensor, share: float) -> None:
        n, C, _ = J.shape
        U, sizes, _ = torch.linalg.svd(J.reshape(n * C, -1), full_matrices=False)
        kept = sizes > sizes.max() * max(J.shape) * torch.finfo(J.dtype).eps
        r = int(kept.sum())
        if r > _LARGEST:
            raise SettingError(f"the rows have rank {r}, and {_LARGEST} is the most: give fewer samples")
        self.J = (U[:, kept] * sizes[kept]).reshape(n, C, r)  # in the eigenvectors of H
        self.share, self.values = share, sizes[kept].square() / n
        self.root = (self.values[:, None] + self.values).rsqrt()
        self.space = VectorSpace(r * r, J.dtype, J.device)

    @property
    def known_symmetric(self) -> bool:
        """By what it is."""
        return True

    def product(self, V: Tensor) -> Tensor:
        """L^-1/2 Q L^-1/2 V, (r^2, k) -> (r^2, k)."""
        return torch.stack([self._one(v) for v in V.T], dim=1)

    def _one(self, v: Tensor) -> Tensor:
        r = len(self.values)
        M = self.root * v.reshape(r, r)
        forms = torch.einsum("ica,ab,idb->icd", self.J, M, self.J)  # J_i M J_i'
        mean = torch.einsum("ica,icd,idb->ab", self.J, forms, self.J) / len(self.J)
        Q = (1 - self.share) * self.values[:, None] * M * self.values + self.share * mean
        return (self.root * Q).reshape(-1)


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
