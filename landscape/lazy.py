r"""Whether training stays in the regime of its linearisation (lazy) or leaves it (rich).

With :math:`f_{lin} = f_0 + J_0 (\theta - \theta_0)`, the model linearised where training began (Chizat et al. 2019, "On
lazy training in differentiable programming").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import SettingError
from .html_table import Shown
from .jacobian import Jacobian
from .objective import Objective
from .tangent_distance import kernel_distance, label_alignment, relative_change
from .tangent_jacobians import sample_outputs
from .tangent_kernel import EmpiricalKernel

__all__ = ["LazySummary", "lazy_summary", "linearisation_error"]


def linearisation_error(objective: Objective, start: Tensor) -> float:
    r"""How much of the change of the outputs the linear model of the start misses.

    .. math:: \frac{\|f(\theta) - f_0 - J_0 (\theta - \theta_0)\|}{\|f(\theta) - f_0\|}

    over all samples: 0 for a model that is linear in its parameters, and about 1 where the linear model tells
    nothing. One product with the Jacobian at the start, which is visited in isolation; the model stays where it is.

    Args:
        objective: at the parameters now, with a ``criterion`` (which is not evaluated).
        start: (n,) the parameters at the start, as ``objective.space.flatten`` makes them.

    Raises:
        SettingError: if ``start`` has another size, or the outputs have not changed.
        LossError: if the objective has a ``loss_fn``, or the outputs are not one tensor.
        DoubleBackwardError: if the model cannot be differentiated twice.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.tangent import linearisation_error
        >>> model = torch.nn.Linear(2, 1)
        >>> objective = Objective(model, (torch.eye(2), torch.zeros(2, 1)), criterion=torch.nn.MSELoss())
        >>> linearisation_error(objective, torch.zeros(3)) < 1e-6  # it is linear
        True
    """
    space = objective.space
    if not isinstance(start, Tensor) or start.shape != (space.size,):
        shape = tuple(start.shape) if isinstance(start, Tensor) else type(start).__name__
        raise SettingError(f"start must be the parameters as one vector ({space.size},), got {shape}")
    start = start.to(space.device, space.dtype)
    with torch.no_grad():
        now = space.flatten([p.detach() for p in objective.parameters.values()])
    f = _outputs(objective)
    at: Mapping[nn.Parameter, Tensor] = dict(
        zip(objective.parameters.values(), space.unflatten(start.clone()), strict=True)
    )
    with objective.isolated(at):
        f_0 = _outputs(objective)
        moved = (Jacobian(objective) @ (now - start)).double().cpu()
    change = float((f - f_0).norm())
    if not change > 0:
        raise SettingError("the outputs are those of the start, so that no change of theirs can be compared")
    return float((f - f_0 - moved).norm()) / change


def _outputs(objective: Objective) -> Tensor:
    """Of all samples, one vector in float64 on the host."""
    with objective.isolated():
        found = [sample_outputs(objective, batch.content, i)[0] for i, batch in enumerate(objective.batches)]
    return torch.cat([t.detach().double().cpu().reshape(-1) for t in found])


@dataclass(frozen=True)
class LazySummary(Shown):
    """How far training has gone from where it began.

    Attributes:
        parameters: ``|theta - theta_0| / |theta_0|``.
        distance: plain kernel distance from the start.
        centred: the centred one.
        change: relative change of the kernel in Frobenius norm.
        linearisation: error of the model linearised at the start, relative to the change of its outputs.
        alignment: of the kernel with the labels now; None where no targets were given.
        alignment_start: at the start.
    """

    parameters: float
    distance: float
    centred: float
    change: float
    linearisation: float
    alignment: float | None = None
    alignment_start: float | None = None


def lazy_summary(
    objective: Objective,
    start: Tensor,
    start_kernel: EmpiricalKernel,
    kernel: EmpiricalKernel,
    *,
    targets: Tensor | None = None,
) -> LazySummary:
    """The numbers by which lazy and rich training are told apart; small ones are lazy. They have no common threshold.

    Args:
        objective: at the parameters now.
        start: (n,) the parameters at the start.
        start_kernel: the tangent kernel there.
        kernel: the one now, on the same samples.
        targets: class indices (n,) or a matrix (n, C), for the alignment.

    Raises:
        SettingError: if something has another size, or nothing has moved.
        LossError: see `linearisation_error`.
    """
    linear = linearisation_error(objective, start)
    now = objective.space.flatten([p.detach() for p in objective.parameters.values()]).double().cpu()
    origin = start.detach().double().cpu()
    if not float(origin.norm()) > 0:
        raise SettingError("the parameters at the start are all zero, so that nothing is relative to them")
    return LazySummary(
        float((now - origin).norm() / origin.norm()),
        kernel_distance(start_kernel, kernel),
        kernel_distance(start_kernel, kernel, centred=True),
        relative_change(start_kernel, kernel),
        linear,
        None if targets is None else label_alignment(kernel, targets),
        None if targets is None else label_alignment(start_kernel, targets),
    )
