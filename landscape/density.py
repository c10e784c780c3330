r"""The spectral density by stochastic Lanczos quadrature.

A random unit vector sees each eigenvalue with a random weight, 1/n on average, and the Gauss quadrature of its
Lanczos process has the same moments up to degree 2m - 1 as what it sees (Lin, Saad and Yang, SIAM Review 58, 34,
2016; Ghorbani, Krishnan and Xiao, ICML 2019).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .errors import SettingError
from .operators import Observed, as_operator
from .quadrature import LanczosProcesses
from .space import generator_for
from .spectral_measure import SpectralDensity

__all__ = ["spectral_density"]


def spectral_density(
    A: Any,
    *,
    vectors: int = 8,
    steps: int = 64,
    confidence: float = 0.95,
    seed: int | torch.Generator | None = None,
) -> SpectralDensity:
    """The density of the eigenvalues of a symmetric operator, as nodes and weights, with a bound of its error.

    Args:
        A: an operator of ours, a dense matrix (n, n), or anything with ``shape`` and ``@``.
        vectors: random starts, whose products are made together.
        steps: Lanczos steps of each.
        confidence: nominal coverage of the bound and of intervals.
        seed: int, generator, or None for fresh entropy; the global stream is never used.

    Raises:
        SettingError: if an argument means nothing, or the operator is not symmetric.
        NonFiniteError: if a product is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import spectral_density
        >>> density = spectral_density(torch.diag(torch.linspace(0, 1, 1000)), seed=0)
        >>> density.moment(1).value
        0.50...
    """
    for name, value, least in (("vectors", vectors, 1), ("steps", steps, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SettingError(f"{name} must be an integer of at least {least}, got {value!r}")
    if not 0 < confidence < 1:
        raise SettingError(f"confidence must be between 0 and 1, got {confidence!r}")
    operator = Observed(as_operator(A))
    with operator.held():
        operator.plan(vectors * steps, vectors)
        processes = LanczosProcesses(operator, vectors, generator_for(seed, operator.space.device))
        while processes.steps < steps and not all(processes.ended):
            processes.step()
    return SpectralDensity(
        tuple(processes.quadratures()), torch.empty(0, dtype=torch.float64), operator.space.size, operator.matvecs,
        math.inf, confidence, True, operator.kernel, operator.note, rounding=operator.space.rounding,
    )  # fmt: skip
