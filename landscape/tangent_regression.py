"""Kernel regression with the current tangent kernel, beside the network itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import SettingError
from .html_table import Shown
from .tangent_distance import Kernel, per_sample_kernel, target_matrix

__all__ = ["KernelRegression", "kernel_regression"]


@dataclass(frozen=True, eq=False)
class KernelRegression(Shown):
    """What regression with a kernel predicts where it has not been fitted.

    Attributes:
        predictions: (n - m, C) float64, for the samples after the first m.
        error: mean squared error per entry there.
        accuracy: share of those samples whose largest prediction is the target's largest entry.
        network: the network's accuracy on the same samples; None where its outputs were not given.
        ridge: what was added to the diagonal.
    """

    predictions: Tensor
    error: float
    accuracy: float
    network: float | None
    ridge: float


def kernel_regression(
    kernel: Kernel, targets: Tensor, train: int, *, ridge: float = 1e-6, outputs: Tensor | None = None
) -> KernelRegression:
    r"""Fit targets on the first samples with the kernel and predict the others.

    .. math:: \hat Y = \bar Y + K_{*m} (K_{mm} + \rho I)^{-1} (Y_m - \bar Y), \qquad \rho = \mathrm{ridge} \cdot
        \mathrm{tr}(K_{mm}) / m

    with the mean of the fitted targets :math:`\bar Y`. Where the kernel has learned what the network knows, the two
    predict equally well (Fort et al. 2020): a kernel of a later time does what that of the start could not.

    Args:
        kernel: of all n samples, (n, n), trace or logits form; a full kernel counts by its trace form.
        targets: class indices (n,), or Y (n, C).
        train: m, how many samples to fit; the others are predicted.
        ridge: of the mean diagonal entry.
        outputs: (n, C) or (n - m, C), the network's, to compare with.

    Raises:
        SettingError: if there is nothing to fit or to predict, ridge is not positive, or sizes differ.

    Example:
        >>> import torch
        >>> from losscope.landscape.tangent import kernel_regression
        >>> K = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3))[[0, 3, 1, 4, 2, 5]][:, [0, 3, 1, 4, 2, 5]]
        >>> kernel_regression(K, torch.tensor([0, 1, 0, 1, 0, 1]), train=2).accuracy
        1.0
    """
    K = per_sample_kernel(kernel)
    Y = target_matrix(targets, len(K))
    if isinstance(train, bool) or not isinstance(train, int) or not 0 < train < len(K):
        raise SettingError(
            f"train is how many samples to fit, the first ones, from 1 to {len(K) - 1} of {len(K)}; got {train!r}"
        )
    if not ridge > 0:
        raise SettingError(f"ridge must be positive, got {ridge!r}")
    fitted = K[:train, :train]
    rho = ridge * float(fitted.trace()) / train
    if not rho > 0:
        raise SettingError("the kernel is zero on the samples to fit, and predicts nothing")
    mean = Y[:train].mean(dim=0)
    solved = torch.linalg.solve(fitted + rho * torch.eye(train, dtype=K.dtype), Y[:train] - mean)
    found = mean + K[train:, :train] @ solved
    rest = Y[train:]
    return KernelRegression(
        found, float((found - rest).square().mean()), _accuracy(found, rest), _of_network(outputs, rest, train), rho
    )


def _accuracy(found: Tensor, targets: Tensor) -> float:
    """By the largest entry; by the sign of a single one."""
    if targets.shape[1] == 1:
        return float((found.sign() == targets.sign()).double().mean())
    return float((found.argmax(dim=1) == targets.argmax(dim=1)).double().mean())


def _of_network(outputs: Tensor | None, targets: Tensor, train: int) -> float | None:
    if outputs is None:
        return None
    outputs = outputs.detach().double().cpu()
    if len(outputs) == len(targets) + train:
        outputs = outputs[train:]
    if outputs.shape != targets.shape:
        raise SettingError(
            f"outputs must be {tuple(targets.shape)} for the predicted samples, got {tuple(outputs.shape)}"
        )
    return _accuracy(outputs, targets)
