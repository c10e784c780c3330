"""What optimizers make of a quadratic."""

import torch
from torch import nn


def parameter(size: int = 1) -> nn.Parameter:
    return nn.Parameter(torch.ones(size, dtype=torch.float64))


def outcome(optimizer: torch.optim.Optimizer, hessian: torch.Tensor, steps: int = 6000) -> str:
    """What the optimizer makes of w'Hw/2 from w = 1: ``"decays"``, ``"grows"`` or ``"neither"``."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    recent = []
    for _ in range(steps):
        joined = torch.cat([p.detach() for p in weights])
        recent = [*recent[-3:], float(joined.norm())]
        if recent[-1] > 1e6:
            return "grows"
        if len(recent) == 4 and max(recent) < 1e-4:
            return "decays"
        gradient = hessian @ joined
        for p, g in zip(weights, gradient.split([len(p) for p in weights]), strict=True):
            p.grad = g.clone()
        optimizer.step()
    return "neither"
