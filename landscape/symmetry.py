"""Operators that are not symmetric are found by products that were made anyway."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import SettingError
from .operators import SymmetricOperator

__all__ = ["refuse_asymmetric", "refuse_asymmetry"]

_TOLERATED = 10.0  # times the rounding of a product
_LEAST = 1e-3  # relative; what a model rounds inside (a half precision layer) its space does not know


def refuse_asymmetric(operator: SymmetricOperator, Z: Tensor, AZ: Tensor) -> None:
    """Compare ``z_i' A z_j`` with ``z_j' A z_i`` for all pairs of vectors.

    What A makes of a vector that it all but annihilates is rounding, of the size of A's norm and not of the product:
    the norm is at least what this operator has made of any vector that was looked at.

    Args:
        operator: A, which keeps that.
        Z: (n, k) vectors, two at least for a comparison.
        AZ: (n, k) their products.

    Raises:
        SettingError: if they differ by more than products are known to; see `refuse_asymmetry`.
    """
    if operator.known_symmetric:
        return
    G = operator.space.inner(Z, AZ).to("cpu", torch.float64)
    lengths = torch.stack([torch.linalg.vector_norm(V, dim=0, dtype=torch.float64) for V in (Z, AZ)])
    of_vectors, of_products = lengths.cpu()
    operator.stretched = max(operator.stretched, float((of_products / of_vectors).nan_to_num().max()))
    least = _TOLERATED * operator.space.rounding / _share(operator) * operator.stretched
    apart = (G - G.T).abs()
    allowed = of_vectors[:, None] * torch.maximum(of_products, least * of_vectors)
    worst = int((apart - _share(operator) * torch.maximum(allowed, allowed.T)).argmax())
    i, j = divmod(worst, len(G))
    refuse_asymmetry(operator, float(G[i, j]), float(G[j, i]), float(max(allowed[i, j], allowed[j, i])))


def refuse_asymmetry(operator: SymmetricOperator, there: float, back: float, scale: float) -> None:
    """Compare ``u' A v`` with ``v' A u``, for vectors and products of size ``scale`` together.

    What autograd differentiates is not refused: it is symmetric, or said to be ambiguous, and where it is zero
    but for rounding, products are no more symmetric than rounding is.

    Raises:
        SettingError: if they differ by more than the operator's rounding explains.
    """
    if abs(there - back) <= _share(operator) * scale or operator.known_symmetric:
        return
    raise SettingError(
        f"the operator is not symmetric: u'Av = {there:.6g} and v'Au = {back:.6g} for the same u and v; pass a "
        "symmetric one, e.g. (A + A.T) / 2"
    )


def _share(operator: SymmetricOperator) -> float:
    return max(_LEAST, _TOLERATED * operator.space.rounding)
