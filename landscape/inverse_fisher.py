"""The inverse of a damped empirical Fisher matrix, from the gradients of the samples."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from .errors import NonFiniteError, SettingError
from .fisher import EmpiricalFisher
from .kernels.once import second_order_errors
from .operators import SymmetricOperator
from .space import VectorSpace

__all__ = ["InverseFisher"]

_MEMORY = 4 << 30  # default cap on the gradients, bytes
_COARSEST = 0.1  # products that are off by more of the largest are of no use
_AT_ONCE = 64 << 20  # bytes of gradients in float64 while their inner products are added up


class InverseFisher(SymmetricOperator):
    r"""The inverse of a damped empirical Fisher matrix, exact for m samples.

    .. math::
        (F + \delta I)^{-1} v = \tfrac1\delta \bigl(v - G^\top W^{1/2} (\delta I + W^{1/2} G G^\top W^{1/2})^{-1}
        W^{1/2} G v\bigr), \qquad F = G^\top W G

    by Woodbury's identity, with the gradients as rows of G (m, n) and their weights on the diagonal of W: 1 / m each,
    so that F is the mean of :math:`g_i g_i^\top`. The m inner products of every gradient are added up in float64 and
    factorised once; a product then reads the gradients twice. M-FAC (Frantar, Kurtic and Alistarh 2021, "M-FAC:
    efficient matrix-free approximations of second-order information") applies the same matrix by recursion.

    Args:
        gradients: (m, n), one per row, kept as they are and not copied; or an `EmpiricalFisher`, whose samples'
            gradients are taken by one backward pass each, at the parameters' values now. A pass goes through the
            whole batch that a sample is in, so that small batches are quicker.
        damping: above 0, in the unit of F's entries.
        memory: bytes that gradients taken here may need; by default 4 GiB.

    Attributes:
        gradients: (m, n).
        weights: (m,) float64.
        damping: as given.

    Raises:
        SettingError: if an argument means nothing, a weight is negative, the gradients need too much memory, or the
            damping is too small beside them for float64.
        NonFiniteError: if a gradient is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import InverseFisher
        >>> gradients = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
        >>> InverseFisher(gradients, damping=1.0) @ torch.ones(2)  # F = diag(2, 8)
        tensor([0.3333, 0.1111])
    """

    psd = True
    known_symmetric = True
    kernel = "woodbury"

    def __init__(self, gradients: Tensor | EmpiricalFisher, *, damping: float, memory: int | None = None) -> None:
        if not 0 < float(damping) < math.inf:
            raise SettingError(f"damping must be a finite number > 0, got {damping!r}: F alone has no inverse")
        self.damping = float(damping)
        if isinstance(gradients, EmpiricalFisher):
            self.space = copy.copy(gradients.space)
            self.gradients, self.weights = _sample_gradients(gradients, _MEMORY if memory is None else memory)
        else:
            self.gradients = _checked_gradients(gradients)
            m, n = self.gradients.shape
            self.space = VectorSpace(n, self.gradients.dtype, self.gradients.device)
            self.weights = torch.full((m,), 1 / m, dtype=torch.float64, device=self.space.device)
        self._roots = self.weights.sqrt()
        gram = self._roots[:, None] * _inner_products(self.gradients) * self._roots
        if not bool(torch.isfinite(gram).all()):
            raise NonFiniteError("a gradient is NaN or infinite, or so large that its square overflows")
        self._factor = _cholesky(gram, self.damping, self.space.dtype)
        self.space.rounding = max(self.space.rounding, _error(gram, self.damping, self.space.dtype))

    def product(self, V: Tensor) -> Tensor:
        """(F + damping I)^-1 V, (n, k) -> (n, k)."""
        along = self._roots[:, None] * (self.gradients @ V).to(torch.float64)
        weights = self._roots[:, None] * torch.cholesky_solve(along, self._factor)
        return torch.addmm(V, self.gradients.T, weights.to(V.dtype), alpha=-1).div_(self.damping)


def _checked_gradients(gradients: Tensor) -> Tensor:
    if not isinstance(gradients, Tensor) or gradients.ndim != 2 or 0 in gradients.shape:
        given = f"shape {tuple(gradients.shape)}" if isinstance(gradients, Tensor) else type(gradients).__name__
        raise SettingError(f"gradients must be a tensor (m, n), one per row, or an EmpiricalFisher; got {given}")
    if gradients.dtype not in (torch.float32, torch.float64):
        raise SettingError(f"gradients must be float32 or float64, got {gradients.dtype}")
    return gradients.detach()


def _inner_products(gradients: Tensor) -> Tensor:
    """G G' in float64, (m, m), a few columns of G at a time."""
    m, n = gradients.shape
    total = torch.zeros(m, m, dtype=torch.float64, device=gradients.device)
    step = max(1, _AT_ONCE // (8 * m))
    for first in range(0, n, step):
        part = gradients[:, first : first + step].to(torch.float64)
        total.addmm_(part, part.T)
    return total


def _error(gram: Tensor, damping: float, dtype: torch.dtype) -> float:
    """What products are off by, relative to the largest: 1 / damping times the vector's length.

    With c = 1 + |F| / damping: rounding of G v in ``dtype`` is amplified by
    |G' W^1/2 (damping I + W^1/2 G G' W^1/2)^-1| <= 1 / 2 sqrt(damping), to eps sqrt(c) / 2, and that of the inner
    products and the factorisation, in float64, by the square of it. Of singular values spread over [0, |G|] a
    tenth of the first was measured and up to twice the second; where they are all well above the damping, neither.
    """
    condition = 1 + float(gram.abs().sum(dim=1).max()) / damping
    eps, fine = torch.finfo(dtype).eps, torch.finfo(torch.float64).eps
    return max(2 * eps * math.sqrt(condition), 8 * fine * condition)


def _cholesky(gram: Tensor, damping: float, dtype: torch.dtype) -> Tensor:
    """The lower factor of ``damping I + K``, (m, m) float64, computed on the host."""
    damped = gram.to("cpu", copy=True)
    damped.diagonal().add_(damping)
    factor, failed = torch.linalg.cholesky_ex(damped)
    error = _error(gram, damping, dtype)
    if int(failed) or error > _COARSEST:
        raise SettingError(
            f"damping={damping:.3g} is too small beside gradients whose weighted squares add up to "
            f"{float(gram.trace()):.3g}: in {dtype} products would be off by {error:.1g} of the largest; use more"
            f"{'' if dtype is torch.float64 else ', or float64'}"
        )
    return factor.to(gram.device)


def _sample_gradients(fisher: EmpiricalFisher, memory: int) -> tuple[Tensor, Tensor]:
    """G (m, n) and the weights (m,) with ``F = G' W G``; samples of weight 0 are left out.

    A row is ``J' s``, with s the gradient of one sample's term in the outputs, zero for the other samples.
    """
    objective, space = fisher.objective, fisher.space
    if not fisher.psd:
        raise SettingError("the Fisher matrix has a sample of negative weight, so that it may bend down; use solve()")
    m = sum(objective.loss.samples_of(batch.content) for batch in objective.batches)
    needed = m * space.size * torch.finfo(space.dtype).bits // 8
    if needed > memory:
        raise SettingError(
            f"{m} gradients of {space.size} entries take {needed:.2g} bytes, more than memory={memory}; allow more, "
            "take fewer samples or parameters, or use solve() on the EmpiricalFisher, which keeps none"
        )
    gradients = torch.empty(m, space.size, dtype=space.dtype, device=space.device)
    weights: list[float] = []
    with objective.isolated(), second_order_errors(objective, differences=False):
        metric: Any
        for graph, metric in fisher._engine.graphs:
            for i, factor in enumerate(metric._factors.tolist()):
                if factor > 0:
                    gradients[len(weights)] = graph.pull([_only(s, i) for s in metric._gradients])
                    weights.append(factor)
    if not weights:
        raise SettingError("no sample has a weight above 0, so that there are no gradients")
    return gradients[: len(weights)], torch.tensor(weights, dtype=torch.float64, device=space.device)


def _only(tensor: Tensor, i: int) -> Tensor:
    """Entry i of the first dimension, zeros elsewhere."""
    alone = torch.zeros_like(tensor)
    alone[i] = tensor[i]
    return alone
