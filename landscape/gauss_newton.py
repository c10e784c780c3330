"""The generalised Gauss-Newton matrix of an objective."""

from __future__ import annotations

import contextlib
import warnings

from torch import Tensor

from .kernels.jacobian import OutputMetric, ThroughOutputs
from .objective import Objective
from .operators import SymmetricOperator
from .output_curvature import AutogradHessian, autograd_hessian, seen_hessian

__all__ = ["GaussNewton", "has_negative_weights"]


class GaussNewton(SymmetricOperator):
    r"""The generalised Gauss-Newton matrix at the parameters' present values.

    .. math:: G = \sum_b \frac{w_b}{W} J_b^\top \, \nabla^2_z \ell_b \, J_b

    with :math:`J_b` the Jacobian of the outputs z of batch b, and the Hessian of its loss in z exact for any
    criterion (Schraudolph 2002). It is the Hessian less the curvature of the model. Where the loss is seen to be
    softmax cross-entropy, binary cross-entropy on logits or squared error, also inside a lambda, that Hessian is
    applied in closed form and never formed: for a language model the memory is that of the logits, not of
    their square. Parameters that the criterion uses itself, as a penalty on weights does, count as outputs.

    Where model and criterion meet is where ``criterion(outputs, targets)`` cuts: a model that returns
    log-probabilities to ``nn.NLLLoss`` has a criterion that is linear, and a matrix of zero (with a warning).

    Args:
        objective: the objective, with a ``criterion``.
        weights: (N,), a factor for every sample of all batches in order; see `Objective.weighted`.
        memory: bytes that the kept graphs of several batches may take.

    Attributes:
        psd: True where the criterion is seen to be convex in the outputs, with no negative weight.

    Raises:
        LossError: if the objective has a ``loss_fn``, which hides the outputs, or they do not depend on the
            parameters.
        DoubleBackwardError: if the model cannot be differentiated twice.

    Example:
        >>> import torch
        >>> from losscope.landscape import GaussNewton, Objective
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = (torch.diag(torch.tensor([1.0, 3.0])), torch.zeros(2, 1))
        >>> objective = Objective(model, data, criterion=torch.nn.MSELoss())
        >>> GaussNewton(objective) @ torch.eye(2)  # (2 / n) X'X
        tensor([[1., 0.],
                [0., 9.]])
    """

    known_symmetric = True

    def __init__(self, objective: Objective, *, weights: Tensor | None = None, memory: int | None = None) -> None:
        self.objective = objective if weights is None else objective.weighted(weights)
        self.space = objective.space
        self._engine: ThroughOutputs[OutputMetric] = ThroughOutputs(
            self.objective, [seen_hessian, autograd_hessian], memory
        )
        self.kernel = self._engine.name
        _ = self.objective.batches  # reading them is an exchange of its own between ranks
        metric: OutputMetric | None = None

        def convex() -> bool:
            nonlocal metric
            metric = self._engine.first_metric()
            return metric.psd and not has_negative_weights(self.objective)

        self.psd = all(self.objective.ranks.gather(convex))
        if isinstance(metric, AutogradHessian) and metric.vanishes():
            warnings.warn(
                "the criterion is linear in the model's outputs, so that its Gauss-Newton matrix is zero; if the "
                "model returns log-probabilities or computes the loss itself, let forward= return the logits",
                stacklevel=2,
            )

    def product(self, V: Tensor) -> Tensor:
        """G V, (n, k) -> (n, k)."""
        return self._engine(V)

    def held(self) -> contextlib.AbstractContextManager[None]:
        """One isolation for many products."""
        return self.objective.isolated()


def has_negative_weights(objective: Objective) -> bool:
    """Whether a sample has a negative weight."""
    weights = [objective.loss.weights_of(batch.content) for batch in objective.batches]
    return any(bool((w < 0).any()) for w in weights if w is not None)
