"""A backward pass as a function of the vector that it begins with."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.graph import GradientEdge, _engine_run_backward

__all__ = ["pulled_back"]


def pulled_back(
    heads: tuple[Tensor | GradientEdge, ...],
    inputs: tuple[Tensor, ...],
    vectors: tuple[Tensor, ...],
    *,
    retain_graph: bool = True,
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """What `torch.autograd.grad` gives with ``allow_unused``, by what it calls once it has checked its arguments.

    Checking takes a tenth of a small network's product, and as long as its forward pass.
    """
    found: tuple[Tensor | None, ...] = _engine_run_backward(
        heads, vectors, retain_graph, create_graph, inputs, True, accumulate_grad=False
    )
    return found
