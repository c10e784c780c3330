r"""How far a tangent kernel has moved, and what it is aligned with: numbers of one or two kernel matrices.

With the centring matrix :math:`H = I - 11^\top / n`; centred numbers are those of ``H K H``, without the constant mode
that dominates a kernel where inputs have a mean (Cortes et al. 2012, "Algorithms for learning kernels based on centered
alignment"; Kornblith et al. 2019 call one minus the centred distance CKA).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import SettingError
from .tangent_kernel import EmpiricalKernel

__all__ = [
    "effective_rank",
    "kernel_distance",
    "kernel_velocity",
    "label_alignment",
    "participation_ratio",
    "per_sample_kernel",
    "relative_change",
    "target_energy",
    "target_matrix",
]

Kernel = EmpiricalKernel | Tensor

_CONSTANT = 1e-13
"""What rounding leaves of a constant matrix of norm 1."""


def kernel_distance(one: Kernel, other: Kernel, *, centred: bool = False) -> float:
    r"""One minus the cosine of two kernels, from 0 (multiples of each other) to 1 for positive semi-definite ones.

    .. math:: S(K_1, K_2) = 1 - \frac{\langle K_1, K_2 \rangle_F}{\|K_1\|_F \|K_2\|_F}

    (Fort et al. 2020, "Deep learning versus kernel learning"). Report both: a mean of the inputs makes the plain one
    small whatever happens.

    Args:
        one: a kernel or its matrix (m, m).
        other: the same.
        centred: of ``H K H`` in place of K.

    Raises:
        SettingError: if they are not square of one size, of different forms, or one is zero (after centring).

    Example:
        >>> import torch
        >>> from losscope.landscape.tangent import kernel_distance
        >>> kernel_distance(torch.eye(4), torch.ones(4, 4))  # 1 - 4 / (2 * 4)
        0.5
    """
    a, b = _pair(one, other)
    a, b = (_centred_unit(a), _centred_unit(b)) if centred else (_unit(a), _unit(b))
    # Half the squared distance of unit matrices: 1 less their product would leave rounding of 1e-16 only.
    return float((a - b).square().sum()) / 2


def kernel_velocity(one: Kernel, other: Kernel, elapsed: float, *, centred: bool = False) -> float:
    """The distance travelled per unit of time, ``S(K_t, K_{t + dt}) / dt``.

    Args:
        one: the earlier kernel.
        other: the later one.
        elapsed: time between them: steps or epochs.
        centred: see `kernel_distance`.

    Raises:
        SettingError: if no time has passed; see also `kernel_distance`.
    """
    if not elapsed > 0:
        raise SettingError(f"elapsed must be positive, got {elapsed!r}")
    return kernel_distance(one, other, centred=centred) / elapsed


def relative_change(start: Kernel, now: Kernel) -> float:
    r""":math:`\|K_t - K_0\|_F / \|K_0\|_F`, which also sees a change of scale.

    Raises:
        SettingError: as `kernel_distance`.
    """
    a, b = _pair(start, now)
    _unit(a)
    return float((b - a).norm() / a.norm())


def label_alignment(kernel: Kernel, targets: Tensor) -> float:
    r"""The cosine of the centred kernel and that of the targets, from -1 to 1.

    .. math:: A = \frac{\langle H K H, Y Y^\top \rangle_F}{\|H K H\|_F \, \|H Y Y^\top H\|_F}

    Args:
        kernel: trace or logits form, (n, n); a full kernel counts by its trace form.
        targets: class indices (n,), or Y (n, C).

    Raises:
        SettingError: if the targets are not one for each sample, or all the same.
    """
    K = per_sample_kernel(kernel)
    Y = target_matrix(targets, len(K))
    Y = Y - Y.mean(dim=0)
    if not bool((Y != 0).any()):
        raise SettingError("all targets are the same, so that no kernel can be aligned with them; take several classes")
    return float((_centred_unit(K) * (Y @ Y.T) / (Y @ Y.T).norm()).sum())


def target_energy(kernel: Kernel, targets: Tensor) -> tuple[Tensor, Tensor]:
    r"""Which share of the targets lies along each eigenvector: what training in the kernel's regime learns first.

    Args:
        kernel: trace or logits form, (n, n); a full kernel counts by its trace form.
        targets: class indices (n,), or Y (n, C).

    Returns:
        Eigenvalues, descending (n,), and :math:`\|u_k^\top Y\|^2 / \|Y\|_F^2`, which add up to 1.

    Raises:
        SettingError: if the targets are not one for each sample, or zero.
    """
    values, vectors = torch.linalg.eigh(per_sample_kernel(kernel))
    Y = target_matrix(targets, len(values))
    total = Y.square().sum()
    if not float(total) > 0:
        raise SettingError("the targets are zero, so that they have no shares")
    return values.flip(0), ((vectors.T @ Y).square().sum(dim=1) / total).flip(0)


def effective_rank(kernel: Kernel) -> float:
    r"""The exponential of the entropy of the spectrum.

    :math:`\exp(-\sum p \ln p)` with :math:`p = \lambda / \sum \lambda`, between 1 and the size (Roy and Vetterli
    2007, "The effective rank"). Eigenvalues below zero, which are rounding, count as zero.

    Raises:
        SettingError: if the kernel is zero.
    """
    p = _spectrum(kernel)
    return float(torch.exp(torch.special.entr(p).sum()))


def participation_ratio(kernel: Kernel) -> float:
    r""":math:`(\sum \lambda)^2 / \sum \lambda^2`, between 1 and the size; at most the `effective_rank`.

    Raises:
        SettingError: if the kernel is zero.
    """
    return float(1 / _spectrum(kernel).square().sum())


# --------------------------------------------------------------------------- matrices


def _matrix(kernel: Kernel) -> Tensor:
    K = kernel.matrix if isinstance(kernel, EmpiricalKernel) else kernel
    if not isinstance(K, Tensor) or K.ndim != 2 or K.shape[0] != K.shape[1] or not len(K):
        shape = tuple(K.shape) if isinstance(K, Tensor) else type(K).__name__
        raise SettingError(f"a kernel must be a square matrix, got {shape}")
    return K.detach().to("cpu", torch.float64)


def _pair(one: Kernel, other: Kernel) -> tuple[Tensor, Tensor]:
    if isinstance(one, EmpiricalKernel) and isinstance(other, EmpiricalKernel) and one.form != other.form:
        raise SettingError(f"kernels of different forms: {one.form} and {other.form}; take the same form= for both")
    a, b = _matrix(one), _matrix(other)
    if a.shape != b.shape:
        raise SettingError(f"kernels of different sizes: {tuple(a.shape)} and {tuple(b.shape)}; use the same samples")
    return a, b


def per_sample_kernel(kernel: Kernel) -> Tensor:
    """(n, n), a full kernel by its trace form."""
    K = _matrix(kernel)
    if isinstance(kernel, EmpiricalKernel) and kernel.form == "full":
        return torch.einsum("icjc->ij", K.view(kernel.samples, kernel.outputs, kernel.samples, -1)) / kernel.outputs
    return K


def target_matrix(targets: Tensor, samples: int) -> Tensor:
    """Y (n, C): one-hot of class indices."""
    Y = targets.detach().cpu()
    if Y.ndim not in (1, 2) or len(Y) != samples:
        raise SettingError(
            f"targets must be class indices ({samples},) or a matrix ({samples}, C), got {tuple(Y.shape)}"
        )
    if Y.ndim == 1 and not Y.is_floating_point():
        Y = torch.nn.functional.one_hot(Y.long().unique(return_inverse=True)[1])
    return (Y[:, None] if Y.ndim == 1 else Y).double()


def _centre(K: Tensor) -> Tensor:
    """``H K H``."""
    return K - K.mean(dim=0) - K.mean(dim=1, keepdim=True) + K.mean()


def _unit(K: Tensor) -> Tensor:
    norm = float(K.norm())
    if not norm > 0:
        raise SettingError("the kernel is zero, which has no direction")
    return K / norm


def _centred_unit(K: Tensor) -> Tensor:
    centred = _centre(_unit(K))
    if not float(centred.norm()) > _CONSTANT:
        raise SettingError("the kernel is constant, and nothing is left of it when it is centred: take other samples")
    return _unit(centred)


def _spectrum(kernel: Kernel) -> Tensor:
    values = torch.linalg.eigvalsh(_matrix(kernel)).clamp(min=0)
    if not float(values.sum()) > 0:
        raise SettingError("the kernel is zero, which has no rank to speak of")
    return values / values.sum()
