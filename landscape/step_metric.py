r"""What an optimizer's step measures curvature with: what it divides the gradient by, and its groups' rates.

Let group g have the threshold :math:`\tau_g`, with all else but rates and weight decays in common, and let T be the
diagonal of :math:`P \tau_g`. An eigenvector u of the companion polynomial of the whole, multiplied from the left by
u*, makes it the polynomial of one mode, with curvature :math:`u^*Hu` and threshold :math:`u^*Tu`. So all modes decay
if :math:`H < T`, and where :math:`H - T` has a positive eigenvalue the polynomial at z = -1 is not definite, so that a
root lies beyond: the largest eigenvalue of :math:`T^{-1/2} H T^{-1/2}` decides, at 1.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.optim import Optimizer

from .complex_parts import as_real
from .errors import ParameterError, SettingError
from .objective import Objective
from .optimizer_rules import Rule, rule_for
from .thresholds import Threshold, moving, stability_threshold, stepping

__all__ = ["rates_differ", "step_decay", "step_preconditioner", "step_times"]

_AT_REST = 1e12  # times the strictest threshold: a group at rate zero does not move, whatever its curvature
_APART = 1.01  # thresholds of H that differ by less leave an interval that nobody minds, as by SGD's weight decay


def rates_differ(optimizer: Optimizer, threshold: Threshold | None = None) -> bool:
    """Whether groups' thresholds are apart, so that only their rates in the metric tell what is stable.

    Where nothing else is in the metric, only from a hundredth on.

    Args:
        optimizer: a torch optimizer.
        threshold: its, where it is known.
    """
    groups = stepping(optimizer)
    if len(groups) < 2:
        return False
    threshold = threshold or stability_threshold(optimizer)
    if threshold.value is None or threshold.largest is None or threshold.perturbed:
        return False
    if len(moving(optimizer)) < len(groups):
        return True
    return threshold.largest > threshold.value * (1.0 if threshold.preconditioned else _APART)


def step_preconditioner(
    optimizer: Optimizer, objective: Objective, *, unused: Collection[str] = ()
) -> dict[str, Tensor]:
    """What the optimizer's last step divided the gradient by, for `Preconditioned`, with the groups' rates in it.

    P of the group with the strictest threshold is what its step divides by (1 for SGD), that of another group as many
    times more as its threshold is larger: then ``value`` of `stability_threshold` is that of the whole.

    Args:
        optimizer: an optimizer with a rule whose threshold is ``preconditioned``, after a step; or one whose groups
            differ in their thresholds.
        objective: whose parameters it moves.
        unused: names of parameters that the loss does not use. The optimizer need not have moved them: without
            gradient and curvature there, anything positive does, and it is the largest entry elsewhere.

    Returns:
        The diagonal P by the objective's parameter names, of their shapes.

    Raises:
        SettingError: if the optimizer has no rule, or divides by nothing at one rate.
        ParameterError: if it has not moved one of the objective's parameters yet; it names which.

    Example:
        >>> import torch
        >>> from losscope.landscape import Hessian, Objective, Preconditioned, top_eigenpairs
        >>> from losscope.landscape.stability import stability_threshold, step_preconditioner
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> data = (torch.eye(2), torch.ones(2, 1))
        >>> torch.nn.functional.mse_loss(model(data[0]), data[1]).backward()
        >>> optimizer.step()
        >>> objective = Objective(model, data, criterion=torch.nn.functional.mse_loss)
        >>> seen = Preconditioned(Hessian(objective), step_preconditioner(optimizer, objective))
        >>> ratio = top_eigenpairs(seen, seed=0).values[0] / stability_threshold(optimizer).value
    """
    rule = rule_for(optimizer)
    if rule is None:
        raise SettingError(f"{type(optimizer).__name__} has no preconditioner: there is no rule for it")
    threshold = stability_threshold(optimizer)
    apart = rates_differ(optimizer, threshold)
    if rule.preconditioner is None and not apart:
        raise SettingError(
            f"{type(optimizer).__name__} has no preconditioner: its threshold is one for the Hessian itself"
        )
    found = _divisors(optimizer, rule)
    if unused and found:
        most = max((P.max() for P in found.values()), key=float)
        found = {id(objective.parameters[n]): most.expand_as(as_real(objective.parameters[n])) for n in unused} | found
    missing = [name for name, p in objective.parameters.items() if id(p) not in found]
    if missing:
        raise ParameterError(
            f"the optimizer has not moved {', '.join(missing[:3])} yet ({len(missing)} of "
            f"{len(objective.parameters)} parameters): measure after its first step, and freeze what it never moves "
            "with requires_grad_(False)"
        )
    by_name = {name: found[id(p)] for name, p in objective.parameters.items()}
    if not apart:
        return by_name
    times = step_times(optimizer, threshold)
    return {name: P * times[id(p)] for (name, p), P in zip(objective.parameters.items(), by_name.values(), strict=True)}


def step_decay(optimizer: Optimizer, objective: Objective) -> dict[str, float]:
    """The weight decay that is part of the gradient that P divides, by the objective's parameter names.

    All 0 where it is not part of it: where P is nothing, or the decay decoupled, thresholds have it in them.

    Args:
        optimizer: an optimizer with a rule.
        objective: whose parameters it moves.
    """
    rule = rule_for(optimizer)
    coupled = {
        id(p): float(group.get("weight_decay", 0.0))
        for group in optimizer.param_groups
        if rule is not None and rule.preconditioner is not None and not group.get("decoupled_weight_decay")
        for p in group["params"]
    }
    return {name: coupled.get(id(p), 0.0) for name, p in objective.parameters.items()}


def step_times(optimizer: Optimizer, threshold: Threshold) -> dict[int, float]:
    """How many times the strictest group's threshold that of each parameter's is, by the parameters' ids."""
    times = {id(p): _AT_REST for group in optimizer.param_groups for p in group["params"]}
    for group, own in zip(moving(optimizer), threshold.per_group, strict=True):
        times |= {id(p): own / min(threshold.per_group) for p in group["params"]}
    return times


def _divisors(optimizer: Optimizer, rule: Rule) -> dict[int, Tensor]:
    """What the step divides the gradient of each parameter by, as far as it has moved."""
    found = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if rule.preconditioner is None:
                found[id(p)] = torch.ones((), dtype=torch.float64, device=p.device).expand(as_real(p.detach()).shape)
            elif state := optimizer.state.get(p):
                # Torch's optimizers treat a complex parameter as its real and imaginary parts.
                parts = {name: as_real(t) if isinstance(t, Tensor) else t for name, t in state.items()}
                found[id(p)] = rule.preconditioner(group, parts)
    return found
