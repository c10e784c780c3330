"""Features, labels and a classifier whose collapse is measured."""

import torch
from torch import Tensor

F64 = torch.float64


def problem(
    seed: int, n: int = 60, d: int = 7, C: int = 4, dtype: torch.dtype = F64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Imbalanced classes with a common offset, and a classifier with a bias."""
    g = torch.Generator().manual_seed(seed)
    y = torch.cat((torch.arange(C), torch.randint(C, (n - C,), generator=g).clamp(max=C - 1).div(2).ceil().long()))
    H = 5 + torch.randn(C, d, generator=g, dtype=F64)[y] + 0.7 * torch.randn(n, d, generator=g, dtype=F64)
    W, b = torch.randn(C, d, generator=g, dtype=F64), torch.randn(C, generator=g, dtype=F64)
    return H.to(dtype), y, W.to(dtype), b.to(dtype)
