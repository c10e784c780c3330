r"""Sharpness-aware minimisation: wrappers that take the gradient a step up the slope, and what that does to stability.

SAM (Foret et al., ICLR 2021) hands its base optimizer the gradient at :math:`w + \rho\, g / \|g\|`. With the norm of g
held, a mode of curvature s meets :math:`s\,(1 + \rho s / \|g\|)` instead of s, so that the curvature at which the step
turns unstable is where that is the base optimizer's threshold T:

.. math:: s^* = \frac{\|g\|}{2 \rho} \left(\sqrt{1 + 4 \rho T / \|g\|} - 1\right) < T,

for gradient descent with T = 2/lr the edge of P. Long and P. Bartlett, "Sharpness-aware minimization and the edge of
stability", JMLR 2024 (arXiv 2309.12488). It falls with the gradient's norm.

There is no SAM in torch. The wrappers that people use have one shape: an `Optimizer` that holds another as
``base_optimizer`` and has ``rho``, and mostly ``adaptive``, in its parameter groups.
"""

from __future__ import annotations

import math

from torch.optim import Optimizer

__all__ = ["perturbed_threshold", "radii", "refusal", "wrapped"]

_KNOWN = {"rho", "adaptive", "eps", "perturb_eps"}
"""What implementations of plain SAM have; further numbers and flags make another method of it (LookSAM, WSAM)."""


def wrapped(optimizer: Optimizer) -> Optimizer | None:
    """What a wrapper of SAM's shape hands its gradients to; None for anything else."""
    base = getattr(optimizer, "base_optimizer", None)
    if not isinstance(optimizer, Optimizer) or not isinstance(base, Optimizer):
        return None
    return base if all("rho" in group for group in optimizer.param_groups) else None


def radii(wrapper: Optimizer) -> dict[int, float]:
    """rho by the ids of the parameters."""
    return {id(p): float(group["rho"]) for group in wrapper.param_groups for p in group["params"]}


def refusal(wrapper: Optimizer, base: Optimizer) -> str:
    """Why a wrapper of SAM's shape has no rule; empty where it has."""
    name = type(wrapper).__name__
    own = {key: value for key, value in wrapper.defaults.items() if key not in base.defaults}
    own |= {key: value for key, value in vars(wrapper).items() if not key.startswith("_")}
    in_use = (key for key, value in own.items() if isinstance(value, int | float) and value is not False)
    if further := sorted(set(in_use) - _KNOWN):
        return f"{name} has the shape of SAM and settings that plain SAM has not: {', '.join(further)}"
    if getattr(wrapper, "adaptive", False) or any(group.get("adaptive") for group in wrapper.param_groups):
        return f"{name} is adaptive: it steps off by each weight's own size, and no threshold of H alone is known"
    return ""


def perturbed_threshold(threshold: float, rho: float, gradient_norm: float) -> float:
    r"""The largest stable curvature, :math:`2T / (1 + \sqrt{1 + 4 \rho T / \|g\|})`.

    Args:
        threshold: T, that of the base optimizer.
        rho: the length of the step up the slope.
        gradient_norm: of the gradient at the weights themselves.

    Example:
        >>> from losscope.landscape.sam import perturbed_threshold
        >>> s = perturbed_threshold(20.0, rho=0.05, gradient_norm=0.5)
        >>> round(s * (1 + 0.05 * s / 0.5), 6)
        20.0
    """
    return 2 * threshold / (1 + math.sqrt(1 + 4 * rho * threshold / gradient_norm))
