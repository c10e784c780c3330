r"""The curvature above which an optimizer's linearised step is unstable, for the optimizers of torch.

A mode of curvature s under the frozen optimizer is stable if and only if every root of its companion polynomial lies
in the unit disk; the binding root is z = -1. For SGD s is an eigenvalue of the Hessian, for adaptive methods one of
:math:`P^{-1} H` with the preconditioner P that the step divides by (Cohen et al., "Adaptive gradient methods at the
edge of stability", arXiv 2207.14484). Every rule is checked against the optimizer itself at 0.99 and 1.01 of it. What
is known of each optimizer is in `optimizer_rules`, and of wrappers that step off along the gradient first in `sam`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch.optim import Optimizer

from .errors import SettingError
from .html_table import Shown
from .optimizer_rules import Rule, known_optimizers, rule_for
from .sam import perturbed_threshold, radii, refusal, wrapped

__all__ = ["Threshold", "moving", "stability_threshold"]

Settings = dict[str, Any]
State = dict[str, Any]


@dataclass(frozen=True)
class Threshold(Shown):
    """The largest curvature at which an optimizer's linearised dynamics is stable.

    Attributes:
        per_group: one threshold per parameter group, in units of curvature; empty when none is known.
        formula: the rule, in words of the optimizer's settings; what it is after many steps.
        reason: why there is none, where there is none.
        preconditioned: whether it is one for the eigenvalues of ``P^-1 (H + decay I)``, with P from
            `step_preconditioner`, rather than for those of H.
        decay: weight decay that is part of the gradient that P divides; 0 where the threshold has it in it. Where
            groups differ it is the largest, and `step_decay` knows which are whose.
        per_group_small_batch: the same under gradient noise that outweighs the mean, as at small batches: for what
            mini-batches see along their own gradients (batch sharpness). Empty where it is not known.
        small_batch_formula: its rule, in words.
        perturbed: of each group the threshold of the optimizer that SAM wraps, and rho; empty for others. Then there
            is a threshold `at` a gradient's norm only.
    """

    per_group: tuple[float, ...]
    formula: str
    reason: str = ""
    preconditioned: bool = False
    decay: float = 0.0
    per_group_small_batch: tuple[float, ...] = ()
    small_batch_formula: str = ""
    perturbed: tuple[tuple[float, float], ...] = ()

    @property
    def value(self) -> float | None:
        """The strictest group's threshold; None where no rule applies."""
        return min(self.per_group, default=None)

    @property
    def largest(self) -> float | None:
        """The most permissive group's. Where groups differ, the truth for the whole lies between.

        With their rates in the metric (`step_preconditioner`) it is `value`.
        """
        return max(self.per_group, default=None)

    @property
    def small_batch(self) -> float | None:
        """The strictest group's under noise that outweighs the mean; `value` is what it tends to in large batches.

        Without momentum both are the same.
        """
        return min(self.per_group_small_batch, default=None)

    def at(self, gradient_norm: float) -> Threshold:
        """The threshold where the gradient has this norm; itself, except for SAM.

        Raises:
            SettingError: if the norm is negative.
        """
        if gradient_norm < 0:
            raise SettingError(f"gradient_norm must be at least 0, got {gradient_norm!r}")
        if not self.perturbed:
            return self
        if not 0 < gradient_norm < math.inf:
            return replace(self, reason=f"SAM has no linearised step where the gradient's norm is {gradient_norm:g}")
        values = tuple(perturbed_threshold(base, rho, gradient_norm) for base, rho in self.perturbed)
        return replace(self, per_group=values, reason="")


def stability_threshold(optimizer: Optimizer, *, gradient_norm: float | None = None) -> Threshold:
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
    SAM about SGD          less than SGD's, by the gradient's norm: `sam`    of :math:`H`
    =====================  ================================================  =====================

    Under noise that outweighs the mean, as at small batches, momentum helps no more: ``small_batch`` is
    :math:`2(1-b)/(\eta(1-d)) - w` for SGD of all kinds, :math:`2(1-b)/\eta` for RMSprop,
    :math:`2(1-b^t)/\eta` for Adam and :math:`2/\eta` for NAdam; see `optimizer_rules`.

    Args:
        optimizer: a torch optimizer, in whatever state; or a SAM wrapper, with the base optimizer as
            ``base_optimizer`` and ``rho`` in its parameter groups.
        gradient_norm: of the full gradient at the weights themselves, over all that the optimizer moves; for SAM.

    Returns:
        The threshold; without a value, and with a reason, where no rule is known or it has not made a step that its
        rule needs. `register_rule` adds rules.

    Raises:
        SettingError: if the gradient's norm is negative.

    Example:
        >>> import torch
        >>> from losscope.landscape.stability import stability_threshold
        >>> weights = [torch.nn.Parameter(torch.zeros(2))]
        >>> stability_threshold(torch.optim.SGD(weights, lr=0.1)).value
        20.0
        >>> found = stability_threshold(torch.optim.SGD(weights, lr=0.1, momentum=0.5))
        >>> found.value, found.small_batch
        (30.0, 10.0)
    """
    base = wrapped(optimizer) if rule_for(optimizer) is None else None
    found = _of_steps(optimizer) if base is None else _of_sam(optimizer, base)
    return found if gradient_norm is None else found.at(gradient_norm)


def _of_steps(optimizer: Optimizer) -> Threshold:
    """Of an optimizer that steps with the gradient at the weights."""
    rule = rule_for(optimizer)
    if rule is None:
        return Threshold(
            (), "", f"no stability rule for {type(optimizer).__name__}: there is one for "
            f"{', '.join(known_optimizers())} and SAM, and register_rule of losscope.landscape.stability adds others",
        )  # fmt: skip
    preconditioned = rule.preconditioner is not None
    groups = moving(optimizer)
    if not groups:
        return Threshold((), "", "the optimizer has no parameters", preconditioned)
    found = []
    for group in groups:
        refused = _refusal(group)
        value, words = (None, refused) if refused else rule.threshold(group, _state(optimizer, group))
        if value is not None and value <= 0:
            value, words = None, f"weight decay alone makes the step unstable: {words} is {value:g}"
        found.append((value, words))
    if refusals := [words for value, words in found if value is None]:
        return Threshold((), "", refusals[0], preconditioned)
    if len({repr(_dynamics(rule, group)) for group in groups}) > 1:
        settings = ", ".join(_in_common(rule)).replace("_", " ")
        why = f"parameter groups differ in their dynamics ({settings}): no common threshold"
        return Threshold((), "", why, preconditioned)
    coupled = preconditioned and not groups[0].get("decoupled_weight_decay")
    decay = max(float(group.get("weight_decay", 0.0)) for group in groups) if coupled else 0.0
    values = tuple(value for value, _ in found if value is not None)
    return Threshold(values, found[0][1], "", preconditioned, decay, *_small_batch(optimizer, rule, groups))


def _in_common(rule: Rule) -> list[str]:
    """What groups must agree in. Their weight decays go into the metric, as `step_preconditioner` says."""
    return [name for name in rule.dynamics if name != "weight_decay" or rule.preconditioner is None]


def _dynamics(rule: Rule, group: Settings) -> list[Any]:
    return [group.get(name) for name in _in_common(rule)]


def _small_batch(optimizer: Optimizer, rule: Rule, groups: list[Settings]) -> tuple[tuple[float, ...], str]:
    """The thresholds of all groups under noise, and their formula; empty where one has none."""
    if rule.small_batch is None:
        return (), ""
    found = [rule.small_batch(group, _state(optimizer, group)) for group in groups]
    values = tuple(value for value, _ in found if value is not None)
    return (values, found[0][1]) if len(values) == len(found) else ((), "")


def _of_sam(wrapper: Optimizer, base: Optimizer) -> Threshold:
    """Of a wrapper that takes the gradient elsewhere; its value waits for the gradient's norm."""
    inner, name = _of_steps(base), type(wrapper).__name__
    by_parameter = radii(wrapper)
    radius = [{by_parameter[id(p)] for p in group["params"] if id(p) in by_parameter} for group in moving(base)]
    if all(r == {0.0} for r in radius):
        return inner
    if refused := refusal(wrapper, base):
        return Threshold((), "", refused)
    if inner.preconditioned:
        return Threshold(
            (), "", f"{name} wraps {type(base).__name__}, whose preconditioner divides H + rho H^2/|g|: no threshold "
            "of P^-1 H is known",
        )  # fmt: skip
    if inner.value is None:
        return inner
    if not all(len(r) == 1 and 0 <= min(r) < math.inf for r in radius):
        return Threshold((), "", f"{name} has no rule for rho {sorted(set().union(*radius))}")
    formula = f"s where s(1+rho s/|g|) = {inner.formula}"
    perturbed = tuple(zip(inner.per_group, (min(r) for r in radius), strict=True))
    why = f"the threshold of {name} depends on the gradient: pass gradient_norm=, its norm at the weights themselves"
    return Threshold((), formula, why, perturbed=perturbed)


def stepping(optimizer: Optimizer) -> list[Settings]:
    """The groups that have parameters, less those that it has never moved, as nothing of them is used."""
    groups = [group for group in optimizer.param_groups if group["params"]]
    if (rule := rule_for(optimizer)) is None or rule.preconditioner is None:
        return groups
    return [group for group in groups if _state(optimizer, group)] or groups


def moving(optimizer: Optimizer) -> list[Settings]:
    """Those of them that have a rate; all at rate zero, as at the start of a warm-up, stay."""
    groups = stepping(optimizer)
    return [group for group in groups if _rate(group) != 0] or groups


def _rate(group: Settings) -> float:
    """The learning rate, NaN where what stands there is none."""
    try:
        return float(group["lr"])
    except (TypeError, ValueError, KeyError):
        return math.nan


def _refusal(group: Settings) -> str:
    """Why no rule applies to a group, whatever the optimizer."""
    rate = _rate(group)
    if group.get("maximize"):
        return "the optimizer maximises: its stability concerns -H"
    if rate == 0:
        return "the learning rate is 0: nothing moves"
    if not 0 < rate < math.inf:
        shown = repr(group.get("lr")) if math.isnan(rate) else f"{rate:g}"
        return f"the learning rate is {shown}, which is not a positive number: there is no stable step"
    return ""


def _state(optimizer: Optimizer, group: Settings) -> State:
    """The state of the parameter of a group that has made most steps; empty before the first."""
    states = [state for p in group["params"] if (state := optimizer.state.get(p))]
    return max(states, key=lambda state: float(state.get("step", 0)), default={})
