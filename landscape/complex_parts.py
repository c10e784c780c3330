"""Complex tensors as pairs of real numbers.

A complex parameter is two real ones per entry, its real and its imaginary part, and curvature is that in these. Torch's
gradient of a real loss is ``dL/d(re) + i dL/d(im)``, and its backward passes multiply by Jacobians of these parts
(https://docs.pytorch.org/docs/stable/notes/autograd.html#autograd-for-complex-numbers), so that only what is flattened
and cut again has to know.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["as_real", "like", "real_dtype"]


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """That of the parts."""
    return dtype.to_real() if dtype.is_complex else dtype


def as_real(tensor: Tensor) -> Tensor:
    """The tensor; of a complex one its parts (..., 2), a view where torch has one."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def like(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Real numbers as this dtype, pairs (..., 2) of them where it is complex; a view in the same precision."""
    if dtype.is_complex:
        return torch.view_as_complex(parts.to(real_dtype(dtype)).contiguous())
    return parts.to(dtype)
