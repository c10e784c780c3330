"""The tangent kernel and what is read off it, by one name each."""

from .lazy import LazySummary, lazy_summary, linearisation_error
from .tangent_distance import (
    effective_rank,
    kernel_distance,
    kernel_velocity,
    label_alignment,
    participation_ratio,
    relative_change,
    target_energy,
)
from .tangent_kernel import EmpiricalKernel, tangent_kernel
from .tangent_regression import KernelRegression, kernel_regression

__all__ = [
    "EmpiricalKernel",
    "KernelRegression",
    "LazySummary",
    "effective_rank",
    "kernel_distance",
    "kernel_regression",
    "kernel_velocity",
    "label_alignment",
    "lazy_summary",
    "linearisation_error",
    "participation_ratio",
    "relative_change",
    "tangent_kernel",
    "target_energy",
]
