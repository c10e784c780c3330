"""Products with composed operators: what they are tried on, and how close they must be to dense ones in float64."""

import torch
from torch import Tensor

F64 = torch.float64
TOLERANCE = {F64: 1e-12, torch.float32: 1e-5}


def close(found: Tensor, expected: Tensor, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(found.to(F64), expected, rtol=0, atol=rtol * float(expected.abs().max()))


def probes(n: int, k: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(1), dtype=torch.float32).to(dtype)
