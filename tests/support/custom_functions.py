"""Functions with a backward of their own that double backward cannot go through, or goes wrong with."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["DropsItsDerivative", "Once", "Squares"]


class Once(torch.autograd.Function):
    """A square that says it can be differentiated once only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


class Squares(nn.Module):
    """A layer of it."""

    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(x)


class DropsItsDerivative(torch.autograd.Function):
    """A square whose backward hides from autograd that it depends on x, and says nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x.detach()
        return x.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.x * grad
