"""The curvature that an optimizer with a preconditioner sees, which its threshold is one of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer

from losscope.landscape import Objective, ParameterError, Preconditioned, SymmetricOperator
from losscope.landscape.stability import Threshold, stability_threshold, step_preconditioner

__all__ = ["SeenCurvature", "seen_by"]


@dataclass(frozen=True, eq=False)
class SeenCurvature:
    """``P^-1/2 (H + decay I) P^-1/2``, with the P that the optimizer's step divided by.

    Attributes:
        threshold: above which its largest eigenvalue makes the linearised step unstable.
        preconditioner: P by the parameters' names.
        epsilon: what P has in it so that it does not vanish.
    """

    threshold: Threshold
    preconditioner: Mapping[str, Tensor]
    epsilon: float

    def of(self, hessian: SymmetricOperator) -> Preconditioned:
        """The operator, from the Hessian."""
        decay = self.threshold.decay
        return Preconditioned(hessian.shifted(decay) if decay else hessian, self.preconditioner)

    def with_epsilon(self, factor: float) -> SeenCurvature:
        """The same with epsilon that many times as large: what P has grown from is kept."""
        more = {name: P + (factor - 1) * self.epsilon for name, P in self.preconditioner.items()}
        return dataclasses.replace(self, preconditioner=more, epsilon=factor * self.epsilon)

    def dead_share(self, operator: Preconditioned, vector: Tensor) -> float:
        """Share of an eigenvector of the operator on coordinates whose P is nearly all epsilon.

        Where gradients have vanished, P is epsilon and tells more of that than of the loss.
        """
        squares = vector.square()
        return float((squares * (2 * self.epsilon > operator.diagonal)).sum() / squares.sum())


def seen_by(optimizer: Optimizer, objective: Objective) -> SeenCurvature | None:
    """What the optimizer's last step saw; None where its threshold is one of the Hessian, or there is none yet."""
    threshold = stability_threshold(optimizer)
    if not threshold.preconditioned or threshold.value is None:
        return None
    try:
        preconditioner = step_preconditioner(optimizer, objective)
    except ParameterError:  # a parameter that it has not moved yet
        return None
    epsilon = max(float(group.get("eps", 0.0)) for group in optimizer.param_groups)
    return SeenCurvature(threshold, preconditioner, epsilon)
