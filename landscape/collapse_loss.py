r"""The squared loss of a linear classifier taken apart: what is left of it when its features collapse, and the rest.

With the least-squares classifier of the features as they are,

.. math:: L(W, b) = \tfrac12 E|W h + b - e_y|^2 + \tfrac\lambda2 (|W|_F^2 + |b|^2)
   = L_{NC1} + L_{NC2/3} + L_\perp,

the first the loss that it owes to the variation within classes (and to lambda), the second that of the class means not
being mapped to their own outputs, the third how far the classifier is from it (Han, Papyan and Donoho 2022, "Neural
Collapse Under MSE Loss", arXiv 2106.02073).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import SettingError

__all__ = ["SquaredLossParts", "squared_loss_parts"]


@dataclass(frozen=True)
class SquaredLossParts:
    """Three parts that add up to the loss.

    Attributes:
        nc1: of the variation within classes, under the least-squares classifier.
        nc23: of the class means, under it.
        perpendicular: of the classifier's distance from it; 0 on the central path.
    """

    nc1: float
    nc23: float
    perpendicular: float

    @property
    def total(self) -> float:
        """The loss itself: half the mean squared distance to the one-hot target, and the ridge."""
        return self.nc1 + self.nc23 + self.perpendicular


def squared_loss_parts(
    means: Tensor, within: Tensor, counts: Tensor, weight: Tensor, bias: Tensor | None = None, *, ridge: float = 0.0
) -> SquaredLossParts:
    """Take the squared loss of a linear classifier on one-hot targets apart.

    Samples weigh the same, so that the parts add up for imbalanced classes too; for balanced ones they are those of
    the paper. Where features are linearly dependent and there is no ridge, the least-squares classifier is the
    shortest.

    Args:
        means: (C, d) class means, float64.
        within: (d, d) within-class covariance of all samples.
        counts: (C,) samples of each class.
        weight: (C, d) of the classifier.
        bias: (C,); None for a classifier without, which is compared with one without.
        ridge: lambda, the factor of ``|W|^2 / 2 + |b|^2 / 2``: torch's ``weight_decay`` for this loss.

    Raises:
        SettingError: if ``ridge`` is negative or not finite.

    Example:
        >>> import torch
        >>> from losscope.landscape.collapse_loss import squared_loss_parts
        >>> eye = torch.eye(2, dtype=torch.float64)  # two classes, each at its own corner
        >>> squared_loss_parts(eye, 0 * eye, torch.ones(2), 0.5 * eye)
        SquaredLossParts(nc1=0.0, nc23=0.0, perpendicular=0.125)
    """
    if isinstance(ridge, bool) or not isinstance(ridge, int | float) or not 0 <= ridge < math.inf:
        raise SettingError(f"ridge must be a finite number of at least 0, got {ridge!r}")
    share = (counts / counts.sum()).to(means)
    C = len(means)
    if bias is not None:  # as the weights of a feature that is always 1
        one = means.new_ones(C, 1)
        means, weight = torch.cat((means, one), dim=1), torch.cat((weight, bias[:, None]), dim=1)
        within = torch.nn.functional.pad(within, (0, 1, 0, 1))
    eye = torch.eye(len(within), dtype=within.dtype)
    second = within + (means.T * share) @ means + ridge * eye
    best = (share[:, None] * torch.eye(C, dtype=means.dtype)) @ means @ torch.linalg.pinv(second, hermitian=True)
    outputs = best @ means.T  # (C, C): one column for each class
    off = weight - best
    return SquaredLossParts(
        float(((best @ (within + ridge * eye)) * best).sum()) / 2,
        float((share * (outputs - torch.eye(C, dtype=means.dtype)).square()).sum()) / 2,
        float(((off @ second) * off).sum()) / 2,
    )
