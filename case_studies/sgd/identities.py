"""Whether the trace, or the sharpness, is the norm of the parameters that it is said to be; what that bounds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losscope.landscape import Hessian, Objective, top_eigenpairs
from sgd.descent import sgd
from sgd.networks import (
    DiagonalNetwork,
    path_norm,
    squared_error,
    symmetric_teacher,
    two_layer_relu,
    two_layer_trace,
    white,
)  # fmt: skip

__all__ = ["identities", "path_norms"]


def identities(seed: int) -> dict[str, float]:
    """Relative errors of the three identities at random weights, in float64, by losscope's Hessian."""
    d, generator = 10, torch.Generator().manual_seed(seed)
    diagonal = DiagonalNetwork(d).double()
    with torch.no_grad():
        for p in diagonal.parameters():
            p.copy_(torch.randn(d, generator=generator, dtype=torch.float64))
    x = white(30, d, seed)
    elsewhere = torch.randn(30, generator=generator, dtype=torch.float64)
    at_minimum = Hessian(Objective(diagonal, (x, diagonal(x).detach()), criterion=squared_error))
    relu, both = two_layer_relu(d, 7, seed).double(), torch.cat([x, -x])
    targets = torch.randn(60, 1, generator=generator, dtype=torch.float64)
    return {
        "diagonal trace": abs(_trace(diagonal, x, elsewhere) / diagonal.trace - 1),
        "sharpness": abs(float(top_eigenpairs(at_minimum, tol=1e-8, seed=0).values[0]) / diagonal.sharpness - 1),
        "two-layer trace": abs(_trace(relu, both, targets) / two_layer_trace(relu) - 1),
    }


def _trace(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Of the whole Hessian, one product for each parameter."""
    H = Hessian(Objective(model, (x, y), criterion=squared_error))
    return float((H @ torch.eye(H.shape[0], dtype=x.dtype)).trace())


def path_norms(seed: int, rate: float = 0.05, steps: int = 6000) -> float:
    """The path norm in units of 2/lr that a two-layer ReLU network has after SGD with single samples."""
    x, y = symmetric_teacher(seed)
    model = two_layer_relu(x.shape[1], 50, seed)
    sgd(model, (x, y), rate, 1, steps, seed)
    return path_norm(model) * rate / 2
