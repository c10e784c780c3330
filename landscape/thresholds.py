r"""The curvature above which an optimizer's linearised step is unstable, for the optimizers of torch.

A mode of curvature s under the frozen optimizer is stable if and only if every root of its companion polynomial lies
in the unit disk; the binding root is z = -1. For SGD s is an eigenvalue of the Hessian, for adaptive methods one of
:math:`P^{-1} H` with the preconditioner P that the step divides by (Cohen et al., "Adaptive gradient methods at the
edge of stability", arXiv 2207.14484). Every rule is checked against the optimizer itself at 0.99 and 1.01 of it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from .errors import ParameterError, SettingError
from .objective import Objective

__all__ = ["Rule", "Threshold", "register_rule", "rule_for", "stability_threshold", "step_preconditioner"]

Settings = dict[str, Any]
State = dict[str, Any]


@dataclass(frozen=True)
class Threshold:
    """The largest curvature at which an optimizer's linearised dynamics is stable.

    Attributes:
        per_group: one threshold per parameter group, in units of curvature; empty when none is known.
        formula: the rule, in words of the optimizer's settings; what it is after many steps.
        reason: why there is none, where there is none.
        preconditioned: whether it is one for the eigenvalues of ``P^-1 (H + decay I)``, with P from
            `step_preconditioner`, rather than for those of H.
        decay: weight decay that is part of the gradient that P divides; 0 where the threshold has it in it.
    """

    per_group: tuple[float, ...]
    formula: str
    reason: str = ""
    preconditioned: bool = False
    decay: float = 0.0

    @property
    def value(self) -> float | None:
        """The strictest group's threshold; None where no rule applies."""
        return min(self.per_group, default=None)

    @property
    def largest(self) -> float | None:
        """The most permissive group's. Where groups differ, the truth for the whole lies between."""
        return max(self.per_group, default=None)


@dataclass(frozen=True)
class Rule:
    """What decides the stability of one optimizer's step.

    Attributes:
        threshold: of a parameter group's settings and the state of one of its parameters, the threshold and its
            formula; None and the reason where there is none.
        dynamics: settings in which groups must agree to have a common threshold.
        preconditioner: of the same, what the step divides the gradient by, of the parameter's shape; None for
            methods that divide by nothing.
    """

    threshold: Callable[[Settings, State], tuple[float | None, str]]
    dynamics: tuple[str, ...] = ()
    preconditioner: Callable[[Settings, State], Tensor] | None = None


def stability_threshold(optimizer: Optimizer) -> Threshold:
    r"""The curvature above which the optimizer's linearised step is unstable.

    With rate :math:`\eta`, momentum :math:`b` (Adam's :math:`\beta_1`), dampening :math:`d`, weight decay :math:`w` and
    step count :math:`t`:

    =====================  ================================================  =====================
    SGD                    :math:`2/\eta - w`                                of :math:`H`
    heavy ball             :math:`(2+2b)/(\eta(1-d)) - w`                    of :math:`H`
    Nesterov               :math:`(2+2b)/(\eta(1+2b)) - w`                   of :math:`H`
    RMSprop, Adagrad       :math:`(2+2b)/\eta`                               of :math:`P^{-1}(H+w)`
    Adam, AMSGrad          :math:`(2+2b)(1-b^t)/((1-b)\eta)`                 of :math:`P^{-1}(H+w)`
    AdamW                  :math:`(2-\eta w)(1+b)(1-b^t)/((1-b)\eta)`        of :math:`P^{-1}H`
    NAdam                  tends to :math:`(2+2b)/((1-b)(1+2b)\eta)`         of :math:`P^{-1}(H+w)`
    =====================  ================================================  =====================

    Args:
        optimizer: a torch optimizer, in whatever state.

    Returns:
        The threshold; without a value, and with a reason, where no rule is known or it has not made a step that its
        rule needs. `register_rule` adds rules.

    Example:
        >>> import torch
        >>> from losscope.landscape.stability import stability_threshold
        >>> weights = [torch.nn.Parameter(torch.zeros(2))]
        >>> stability_threshold(torch.optim.SGD(weights, lr=0.1)).value
        20.0
        >>> stability_threshold(torch.optim.SGD(weights, lr=0.1, momentum=0.9)).value
        38.0
    """
    rule = rule_for(optimizer)
    if rule is None:
        known = ", ".join(cls.__name__ for cls in _RULES)
        return Threshold(
            (), "", f"no stability rule for {type(optimizer).__name__}: there is one for {known}, and register_rule of "
            "losscope.landscape.stability adds others",
        )  # fmt: skip
    values, formulas, preconditioned = [], [], rule.preconditioner is not None
    # A group at rate zero does not move (as all do at the start of a warm-up: then there is no threshold).
    groups = [g for g in optimizer.param_groups if g["params"]]
    groups = [g for g in groups if float(g["lr"]) != 0] or groups
    for group in groups:
        refusal = _refusal(group)
        value, formula = (None, refusal) if refusal else rule.threshold(group, _state(optimizer, group))
        if value is None:
            return Threshold((), "", formula, preconditioned=preconditioned)
        values.append(value)
        formulas.append(formula)
    if not values:
        return Threshold((), "", "the optimizer has no parameters", preconditioned)
    if len({repr([group.get(name) for name in rule.dynamics]) for group in groups}) > 1:
        settings = ", ".join(rule.dynamics).replace("_", " ")
        why = f"parameter groups differ in their dynamics ({settings}): no common threshold"
        return Threshold((), "", why, preconditioned)
    coupled = preconditioned and not groups[0].get("decoupled_weight_decay")
    decay = float(groups[0].get("weight_decay", 0.0)) if coupled else 0.0
    return Threshold(tuple(values), formulas[0], "", preconditioned, decay)


def step_preconditioner(optimizer: Optimizer, objective: Objective) -> dict[str, Tensor]:
    """What the optimizer's last step divided the gradient by, for `Preconditioned`.

    Args:
        optimizer: an optimizer with a rule whose threshold is ``preconditioned``, after a step.
        objective: whose parameters it moves.

    Returns:
        The diagonal P by the objective's parameter names, of their shapes.

    Raises:
        SettingError: if the optimizer has no rule, or divides by nothing.
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
    if rule is None or rule.preconditioner is None:
        why = "there is no rule for it" if rule is None else "its threshold is one for the Hessian itself"
        raise SettingError(f"{type(optimizer).__name__} has no preconditioner: {why}")
    found = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if state := optimizer.state.get(p):
                found[id(p)] = rule.preconditioner(group, state)
    missing = [name for name, p in objective.parameters.items() if id(p) not in found]
    if missing:
        raise ParameterError(
            f"the optimizer has not moved {', '.join(missing[:3])} yet ({len(missing)} of "
            f"{len(objective.parameters)} parameters): measure after its first step, on the parameters that it moves"
        )
    return {name: found[id(p)] for name, p in objective.parameters.items()}


# --------------------------------------------------------------------------- rules


def register_rule(cls: type[Optimizer], rule: Rule) -> None:
    """Add the rule of an optimizer, for its subclasses too unless they step otherwise.

    Args:
        cls: the optimizer's class.
        rule: what decides its stability.

    Raises:
        SettingError: if they are of other types.

    Example:
        A sign-momentum method of one's own that has the threshold of plain gradient descent.

        >>> import torch
        >>> from losscope.landscape.stability import Rule, register_rule
        >>> class Plain(torch.optim.SGD):
        ...     def step(self, closure=None): ...
        >>> register_rule(Plain, Rule(lambda group, state: (2 / group["lr"], "2/lr")))
    """
    if not (isinstance(cls, type) and issubclass(cls, Optimizer) and isinstance(rule, Rule)):
        raise SettingError(f"expected a class of optimizers and a Rule, got {cls!r} and {type(rule).__name__}")
    _RULES[cls] = rule


def rule_for(optimizer: Optimizer) -> Rule | None:
    """The rule of the class whose ``step`` the optimizer runs: a subclass that overrides it has none."""
    step = inspect.unwrap(type(optimizer).step)
    for cls in type(optimizer).__mro__:
        if cls in _RULES:
            return _RULES[cls] if step is inspect.unwrap(cls.step) else None
    return None


def _refusal(group: Settings) -> str:
    """Why no rule applies to a group, whatever the optimizer."""
    rate = float(group["lr"])
    if group.get("maximize"):
        return "the optimizer maximises: its stability concerns -H"
    if not rate > 0 or not math.isfinite(rate):
        return f"the learning rate is {rate:g}: nothing moves"
    return ""


def _state(optimizer: Optimizer, group: Settings) -> State:
    """The state of the parameter of a group that has made most steps; empty before the first."""
    states = [state for p in group["params"] if (state := optimizer.state.get(p))]
    return max(states, key=lambda state: float(state.get("step", 0)), default={})


def _sgd(group: Settings, state: State) -> tuple[float | None, str]:
    rate, b, d = float(group["lr"]), float(group["momentum"]), float(group["dampening"])
    decay = float(group["weight_decay"])
    if b == 0:
        value, formula = 2 / rate, "2/lr"
    elif group["nesterov"]:
        value, formula = (2 + 2 * b) / (rate * (1 + 2 * b)), "(2+2b)/(lr(1+2b))"
    elif d == 0:
        value, formula = (2 + 2 * b) / rate, "(2+2b)/lr"
    elif d < 1:
        value, formula = (2 + 2 * b) / (rate * (1 - d)), "(2+2b)/(lr(1-d))"
    else:
        return None, f"dampening {d:g} leaves no gradient in the step"
    return value - decay, formula + (" - weight_decay" if decay else "")


_FIRST = "the optimizer has not made a step yet, and its threshold depends on how many it has made"


def _adam(group: Settings, state: State) -> tuple[float | None, str]:
    if not state:
        return None, _FIRST
    rate, b = float(group["lr"]), float(group["betas"][0])
    kept, words = _kept(group)
    begun = 1 - b ** float(state["step"])  # the first moment's bias correction: a larger rate in the first steps
    value = (1 + kept) * (1 + b) * begun / ((1 - b) * rate)
    return value, f"{words}/((1-b)lr)"


def _nadam(group: Settings, state: State) -> tuple[float | None, str]:
    """``w' = a w - alpha g/P - beta m'/P``, ``m' = b m + (1-b) g``: so (alpha (1+b) + beta (1-b)) s = (1+a)(1+b)."""
    if not state:
        return None, _FIRST
    rate, b, t = float(group["lr"]), float(group["betas"][0]), float(state["step"])
    mu, after = (b * (1 - 0.5 * 0.96 ** (i * float(group["momentum_decay"]))) for i in (t, t + 1))
    product = float(state["mu_product"])
    alpha, beta = rate * (1 - mu) / (1 - product), rate * after / (1 - product * after)
    kept, words = _kept(group)
    return (1 + kept) * (1 + b) / (alpha * (1 + b) + beta * (1 - b)), f"{words}/((1-b)(1+2b)lr)"


def _kept(group: Settings) -> tuple[float, str]:
    """What a decoupled weight decay leaves of the weights in a step, and the numerator in words."""
    decay = float(group["weight_decay"])
    if decay and group.get("decoupled_weight_decay"):
        return 1 - float(group["lr"]) * decay, "(2-lr weight_decay)(1+b)"
    return 1.0, "(2+2b)"


def _rmsprop(group: Settings, state: State) -> tuple[float | None, str]:
    b = float(group["momentum"])
    return (2 + 2 * b) / float(group["lr"]), "(2+2b)/lr" if b else "2/lr"


def _adagrad(group: Settings, state: State) -> tuple[float | None, str]:
    made, decay = float(state.get("step", 0)), float(group["lr_decay"])
    if made == 0:
        return None, _FIRST
    return 2 * (1 + (made - 1) * decay) / float(group["lr"]), "2(1+(t-1)lr_decay)/lr" if decay else "2/lr"


def _adam_divisor(group: Settings, state: State) -> Tensor:
    second = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
    return (second / (1 - group["betas"][1] ** float(state["step"]))).sqrt() + group["eps"]


def _rmsprop_divisor(group: Settings, state: State) -> Tensor:
    second = state["square_avg"]
    if group["centered"]:
        second = second - state["grad_avg"].square()
    return second.clamp(min=0).sqrt() + group["eps"]


def _adagrad_divisor(group: Settings, state: State) -> Tensor:
    return state["sum"].sqrt() + group["eps"]


_ADAM = Rule(_adam, ("betas", "weight_decay", "decoupled_weight_decay"), _adam_divisor)
_RULES: dict[type[Optimizer], Rule] = {
    SGD: Rule(_sgd, ("momentum", "dampening", "nesterov")),
    Adam: _ADAM,
    AdamW: _ADAM,
    NAdam: Rule(_nadam, ("betas", "momentum_decay", "weight_decay", "decoupled_weight_decay"), _adam_divisor),
    RMSprop: Rule(_rmsprop, ("momentum", "weight_decay"), _rmsprop_divisor),
    Adagrad: Rule(_adagrad, ("weight_decay",), _adagrad_divisor),
}
