"""The curvature that an optimizer with a preconditioner sees, which its threshold is one of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from losscope.landscape import Objective, ParameterError, Preconditioned, SymmetricOperator
from losscope.landscape.compositions import Diagonal
from losscope.landscape.optimizer_rules import rule_for
from losscope.landscape.stability import Threshold, stability_threshold, step_decay, step_preconditioner
from losscope.landscape.step_metric import rates_differ, step_times

__all__ = ["SeenCurvature", "seen_by", "why_unseen"]


@dataclass(frozen=True, eq=False)
class SeenCurvature:
    """``P^-1/2 (H + decay) P^-1/2``, with the P that the optimizer's step divided by and its groups' rates in it.

    Attributes:
        threshold: above which its largest eigenvalue makes the linearised step unstable: one for all groups.
        preconditioner: P by the parameters' names; of a group with a lower rate it is larger than what divides
            (`losscope.landscape.step_metric`).
        epsilon: what P has in it so that it does not vanish, by the parameters' names.
        unused: names of the parameters that the loss does not use, and that the optimizer therefore never moves. The
            Hessian has zeros in their rows, so that they are left out whatever stands in P.
        decay: the weight decay that is part of what P divides, by the parameters' names.
        newest: the share of the newest gradient in P^2, for gradients that stay as large, by the parameters' names;
            empty where that is not known.
    """

    threshold: Threshold
    preconditioner: Mapping[str, Tensor]
    epsilon: Mapping[str, float]
    decay: Mapping[str, float]
    newest: Mapping[str, float] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    def of(self, hessian: SymmetricOperator) -> Preconditioned:
        """The operator, from the Hessian."""
        decays = set(self.decay.values())
        if len(decays) > 1:
            return Preconditioned(hessian + Diagonal(self.decay, hessian.space), self.preconditioner)
        decay = decays.pop()
        return Preconditioned(hessian.shifted(decay) if decay else hessian, self.preconditioner)

    @property
    def has_epsilon(self) -> bool:
        """Whether P has an epsilon anywhere."""
        return any(self.epsilon.values())

    def with_epsilon(self, factor: float) -> SeenCurvature:
        """The same with epsilon that many times as large: what P has grown from is kept."""
        more = {name: P + (factor - 1) * self.epsilon[name] for name, P in self.preconditioner.items()}
        epsilon = {name: factor * of_one for name, of_one in self.epsilon.items()}
        return dataclasses.replace(self, preconditioner=more, epsilon=epsilon)

    def dead_share(self, operator: Preconditioned, vector: Tensor) -> float:
        """Share of an eigenvector of the operator on coordinates whose P is nearly all epsilon.

        Where gradients have vanished, P is epsilon and tells more of that than of the loss.
        """
        squares, least = vector.square(), self._of_entries(self.epsilon, vector)
        return float((squares * (2 * least > operator.diagonal)).sum() / squares.sum())

    def newest_share(self, vector: Tensor) -> float | None:
        """The share of the newest gradient in P^2 along an eigenvector of the operator; None where it is not known.

        The step divides by a P that it is itself part of: to first order it answers to a change of the gradient with
        ``1 - share`` times what it would answer with P frozen.
        """
        if not self.newest:
            return None
        shares = self._of_entries(self.newest, vector)
        if isinstance(shares, float):
            return shares
        squares = vector.square()
        return float((squares * shares).sum() / squares.sum())

    def _of_entries(self, of_each: Mapping[str, float], vector: Tensor) -> float | Tensor:
        """A number for each parameter as one for each entry of a vector; as that number, where all are the same."""
        first = next(iter(of_each.values()))
        if all(other == first for other in of_each.values()):
            return first
        sizes = torch.tensor([P.numel() for P in self.preconditioner.values()])
        return torch.tensor(list(of_each.values()), dtype=torch.float64).repeat_interleave(sizes).to(vector)


def seen_by(optimizer: Optimizer, objective: Objective) -> SeenCurvature | None:
    """What the optimizer's last step saw; None where its threshold is one of the Hessian, or there is none yet."""
    if _divides_by_nothing(optimizer) and len(optimizer.param_groups) == 1:
        return None
    threshold = stability_threshold(optimizer)
    apart = rates_differ(optimizer, threshold)
    if threshold.value is None or not (threshold.preconditioned or apart):
        return None
    unused = _unused(optimizer, objective)
    try:
        preconditioner = step_preconditioner(optimizer, objective, unused=unused)
    except ParameterError:  # a parameter that it has not moved yet
        return None
    of_groups = {id(p): float(group.get("eps", 0.0)) for group in optimizer.param_groups for p in group["params"]}
    epsilon = {name: of_groups[id(p)] for name, p in objective.parameters.items()}
    if apart:
        times = step_times(optimizer, threshold)
        epsilon = {name: epsilon[name] * times[id(p)] for name, p in objective.parameters.items()}
    decay = step_decay(optimizer, objective)
    newest = _newest(optimizer, objective, unused)
    return SeenCurvature(_strictest(threshold), preconditioner, epsilon, decay, newest, unused)


def _strictest(threshold: Threshold) -> Threshold:
    """That of the group with the lowest, which is that of all where the others' rates are in P."""
    lowest = threshold.per_group.index(min(threshold.per_group))
    small = threshold.per_group_small_batch
    return dataclasses.replace(
        threshold, per_group=threshold.per_group[lowest : lowest + 1],
        per_group_small_batch=small[lowest : lowest + 1],
    )  # fmt: skip


def _newest(optimizer: Optimizer, objective: Objective, unused: Sequence[str]) -> dict[str, float]:
    """The share of the newest gradient in each parameter's P^2; empty where one is not known.

    P cannot be made of more gradients than there were: without more to go by, of one among all.
    """
    rule = rule_for(optimizer)
    if rule is None or rule.preconditioner is None:
        return {}
    found: dict[int, float] = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p)
            if state and "step" in state and (made := float(state["step"])) > 0:
                found[id(p)] = 1 / made if rule.newest is None else rule.newest(group, state)
    found |= {id(objective.parameters[name]): 0.0 for name in unused}
    shares = {name: found[id(p)] for name, p in objective.parameters.items() if id(p) in found}
    return shares if len(shares) == len(objective.parameters) else {}


def why_unseen(optimizer: Optimizer, objective: Objective) -> str:
    """Why `seen_by` shows nothing of an optimizer that divides by something; empty where it does, and of others."""
    if _divides_by_nothing(optimizer):
        return ""
    threshold = stability_threshold(optimizer)
    if not threshold.preconditioned or threshold.value is None:
        return threshold.reason if threshold.preconditioned else ""
    try:
        step_preconditioner(optimizer, objective, unused=_unused(optimizer, objective))
    except ParameterError as error:
        return str(error)
    return ""


def _unused(optimizer: Optimizer, objective: Objective) -> tuple[str, ...]:
    """Names of the parameters that the optimizer has not moved and the loss of no batch, on any rank, depends on.

    It takes a pass over the data, once for all snapshots.
    """
    if _divides_by_nothing(optimizer):
        return ()
    names = tuple(name for name, p in objective.parameters.items() if not optimizer.state.get(p))
    if not names or len(names) == len(objective.parameters):  # before the first step
        return ()
    key = ("unused", names)
    if key not in objective.kept:
        on_ranks = objective.ranks.gather(lambda: _not_reached(objective, names))
        objective.kept[key] = tuple(name for name in names if all(name in found for found in on_ranks))
    unused: tuple[str, ...] = objective.kept[key]
    return unused


def _not_reached(objective: Objective, names: Sequence[str]) -> list[str]:
    """Those of the names whose parameters the loss of none of the batches is a function of."""
    left = list(names)
    try:
        with objective.isolated():
            for index in range(len(objective.batches)):
                loss = objective.batch_loss(index)
                found = torch.autograd.grad(loss, [objective.parameters[name] for name in left], allow_unused=True)
                left = [name for name, gradient in zip(left, found, strict=True) if gradient is None]
                if not left:
                    break
    except Exception:
        return []  # what fails here fails in the measurement too, which says so
    return left


def _divides_by_nothing(optimizer: Optimizer) -> bool:
    """Whether that shows by the optimizer's class, whatever its settings and state."""
    rule = rule_for(optimizer)
    return rule is not None and rule.preconditioner is None
