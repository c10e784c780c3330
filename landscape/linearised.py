"""The rows of a linear model: what a network with squared loss is around its weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .batches import batch_length
from .errors import SettingError
from .gauss_newton import GaussNewton
from .jacobian import Jacobian
from .objective import Objective
from .space import generator_for

__all__ = ["linearised_rows"]

_LARGEST = 2000  # outputs of all samples together


def linearised_rows(objective: Objective) -> Tensor:
    r"""The Jacobians :math:`J_i` of the samples' outputs, scaled so that the curvature is that of the loss.

    The loss of the linearised model about a minimum that interpolates is :math:`\frac1{2n} \sum_i |J_i d|^2`, with the
    Gauss-Newton matrix :math:`\frac1n \sum_i J_i^T J_i` as its Hessian. They are what `mean_square_threshold` takes.

    Args:
        objective: with a ``criterion`` that is a squared error, in whatever scaling, of at most 2000 outputs of all
            samples together.

    Returns:
        (n, C, d) for n samples of C outputs and d parameters.

    Raises:
        SettingError: if there are more outputs, they are not equally many per sample, or the loss is no squared error.
        LossError: if the objective has a ``loss_fn``, which hides the outputs.

    Example:
        Half the mean of squares has the rows of the data themselves.

        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.stability import linearised_rows
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> objective = Objective(model, (x, torch.ones(2, 1)), criterion=lambda o, t: (o - t).square().mean() / 2)
        >>> linearised_rows(objective)[:, 0]
        tensor([[1., 2.],
                [3., 4.]])
    """
    jacobian = Jacobian(objective)
    outputs, d = jacobian.shape
    samples = sum(batch_length(batch.content) for batch in objective.batches)
    if outputs > _LARGEST or outputs % samples:
        raise SettingError(
            f"the {samples} samples have {outputs} outputs, and at most {_LARGEST} can be taken, equally many per "
            "sample: give fewer samples"
        )
    scale = math.sqrt(samples * _curvature(objective, jacobian))
    rows = jacobian.T @ torch.eye(outputs, dtype=objective.space.dtype, device=objective.space.device)
    return scale * rows.T.reshape(samples, outputs // samples, d)


def _curvature(objective: Objective, jacobian: Jacobian) -> float:
    """The second derivative of the loss by each output, where it is the same for all of them."""
    V = objective.space.random(3, generator_for(0, objective.space.device))
    forms = (V * (GaussNewton(objective) @ V)).sum(dim=0, dtype=torch.float64)
    found = (forms / (jacobian @ V).square().sum(dim=0, dtype=torch.float64)).tolist()
    if not all(math.isfinite(h) and h > 0 and math.isclose(h, found[0], rel_tol=1e-3) for h in found):
        raise SettingError(
            "the loss is no squared error with equal weights of all outputs: its curvature along three directions of "
            f"output space is {', '.join(f'{h:.4g}' for h in found)}"
        )
    return sum(found) / len(found)
