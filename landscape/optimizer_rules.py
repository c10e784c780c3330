r"""What decides the stability of one step of each optimizer of torch: one small function for each.

A mode of curvature s under the frozen optimizer is stable if and only if every root of its companion polynomial lies
in the unit disk; the binding root is z = -1, and where it is there is the ``threshold``.

Under gradient noise that outweighs the mean, curvature acts in each step by itself, and what counts is how far a
gradient carries the weights in the end, whatever the momentum: the ``small_batch`` threshold is 2 over the
displacement per unit of a constant gradient, the filter's gain at frequency zero. For heavy ball both ends are those
of one formula: with curvatures h of mean m and variance v, independent from step to step, the mean square of a scalar
is stable if and only if :math:`\eta\,((1+b) v + (1-b) m^2) < 2 (1-b^2)\, m`, so that the index :math:`E h^2 / E h` is
at most :math:`2(1+b)/\eta` without noise and :math:`2(1-b)/\eta` with noise alone (see `mean_square`). Batch sharpness
of training was found between the same two (Andreyev et al. 2026, arXiv 2604.14108).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from .errors import SettingError

__all__ = ["Rule", "known_optimizers", "register_rule", "rule_for"]

Settings = dict[str, Any]
State = dict[str, Any]
Limit = tuple[float | None, str]
"""A threshold and its formula, or None and why there is none."""


@dataclass(frozen=True)
class Rule:
    """What decides the stability of one optimizer's step.

    Attributes:
        threshold: of a parameter group's settings and the state of one of its parameters, the threshold and its
            formula; None and the reason where there is none.
        dynamics: settings in which groups must agree to have a common threshold.
        preconditioner: of the same, what the step divides the gradient by, of the parameter's shape; None for
            methods that divide by nothing.
        small_batch: of the same as ``threshold``, the threshold under noise that outweighs the mean, 2 over the
            displacement per unit of a constant gradient, and its formula; None where nobody has derived it.
        newest: of the same, the share of the newest gradient in the preconditioner's square, for gradients that stay
            as large; None where nobody has said, and then it is that of one among all so far. Where it is not small,
            the preconditioner is not frozen beside the step that it divides.
    """

    threshold: Callable[[Settings, State], Limit]
    dynamics: tuple[str, ...] = ()
    preconditioner: Callable[[Settings, State], Tensor] | None = None
    small_batch: Callable[[Settings, State], Limit] | None = None
    newest: Callable[[Settings, State], float] | None = None


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
    if (own := _RULES.get(type(optimizer))) is not None:
        return own
    step = inspect.unwrap(getattr(type(optimizer), "step", _nothing))
    for cls in type(optimizer).__mro__:
        if cls in _RULES:
            return _RULES[cls] if step is inspect.unwrap(cls.step) else None
    return None


def _nothing() -> None:
    """The step of what has none."""


def known_optimizers() -> list[str]:
    """Names of the optimizers that have a rule."""
    return [cls.__name__ for cls in _RULES]


# --------------------------------------------------------------------------- SGD


_ENDLESS = "momentum {:g} is above 1: what a step adds grows from then on, whatever the curvature"


def _sgd(group: Settings, state: State) -> Limit:
    rate, b, d = float(group["lr"]), float(group["momentum"]), float(group["dampening"])
    if b == 0:
        return _less_decay(group, 2 / rate, "2/lr")
    if b > 1:
        return None, _ENDLESS.format(b)
    if group["nesterov"]:
        return _less_decay(group, (2 + 2 * b) / (rate * (1 + 2 * b)), "(2+2b)/(lr(1+2b))")
    if d == 0:
        return _less_decay(group, (2 + 2 * b) / rate, "(2+2b)/lr")
    if d < 1:
        return _less_decay(group, (2 + 2 * b) / (rate * (1 - d)), "(2+2b)/(lr(1-d))")
    return None, f"dampening {d:g} leaves no gradient in the step"


def _sgd_small_batch(group: Settings, state: State) -> Limit:
    """Nesterov's too: looking ahead shifts the gradients in time and does not add to them."""
    rate, b, d = float(group["lr"]), float(group["momentum"]), float(group["dampening"])
    if b == 0:
        return _less_decay(group, 2 / rate, "2/lr")
    if not b < 1:
        return None, f"at momentum {b:g} a constant gradient carries the weights without end"
    formula = "2(1-b)/(lr(1-d))" if d else "2(1-b)/lr"
    return _less_decay(group, 2 * (1 - b) / (rate * (1 - d)), formula)


def _less_decay(group: Settings, value: float, formula: str) -> Limit:
    """Weight decay adds to every curvature, in the mean as under noise."""
    decay = float(group["weight_decay"])
    return value - decay, formula + (" - weight_decay" if decay else "")


# --------------------------------------------------------------------------- methods with a preconditioner

_FIRST = "the optimizer has not made a step yet, and its threshold depends on how many it has made"


def _adam(group: Settings, state: State) -> Limit:
    if not state:
        return None, _FIRST
    rate, b = float(group["lr"]), float(group["betas"][0])
    kept, words = _kept(group, "(1+b)")
    begun = 1 - b ** float(state["step"])  # the first moment's bias correction: a larger rate in the first steps
    value = (1 + kept) * (1 + b) * begun / ((1 - b) * rate)
    return value, f"{words}/((1-b)lr)"


def _adam_small_batch(group: Settings, state: State) -> Limit:
    if not state:
        return None, _FIRST
    kept, words = _kept(group)
    begun = 1 - float(group["betas"][0]) ** float(state["step"])
    return (1 + kept) * begun / float(group["lr"]), f"{words}/lr"


def _nadam(group: Settings, state: State) -> Limit:
    """``w' = a w - alpha g/P - beta m'/P``, ``m' = b m + (1-b) g``: so (alpha (1+b) + beta (1-b)) s = (1+a)(1+b)."""
    if not state:
        return None, _FIRST
    b, (alpha, beta) = float(group["betas"][0]), _nadam_rates(group, state)
    kept, words = _kept(group, "(1+b)")
    return (1 + kept) * (1 + b) / (alpha * (1 + b) + beta * (1 - b)), f"{words}/((1-b)(1+2b)lr)"


def _nadam_small_batch(group: Settings, state: State) -> Limit:
    if not state:
        return None, _FIRST
    kept, words = _kept(group)
    return (1 + kept) / sum(_nadam_rates(group, state)), f"{words}/lr"


def _nadam_rates(group: Settings, state: State) -> tuple[float, float]:
    """Those of the gradient and of its mean in this step; after many steps (1-b) lr and b lr."""
    rate, b, t = float(group["lr"]), float(group["betas"][0]), float(state["step"])
    mu, after = (b * (1 - 0.5 * 0.96 ** (i * float(group["momentum_decay"]))) for i in (t, t + 1))
    product = float(state["mu_product"])
    return rate * (1 - mu) / (1 - product), rate * after / (1 - product * after)


def _kept(group: Settings, momentum: str = "") -> tuple[float, str]:
    """What a decoupled weight decay leaves of the weights in a step, and the numerator in words."""
    decay = float(group["weight_decay"])
    if decay and group.get("decoupled_weight_decay"):
        return 1 - float(group["lr"]) * decay, f"(2-lr weight_decay){momentum}"
    return 1.0, "(2+2b)" if momentum else "2"


def _rmsprop(group: Settings, state: State) -> Limit:
    b = float(group["momentum"])
    if b > 1:
        return None, _ENDLESS.format(b)
    return (2 + 2 * b) / float(group["lr"]), "(2+2b)/lr" if b else "2/lr"


def _rmsprop_small_batch(group: Settings, state: State) -> Limit:
    b = float(group["momentum"])
    if not b < 1:
        return None, f"at momentum {b:g} a constant gradient carries the weights without end"
    return 2 * (1 - b) / float(group["lr"]), "2(1-b)/lr" if b else "2/lr"


def _adagrad(group: Settings, state: State) -> Limit:
    """It has no momentum, and the same threshold under noise."""
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


def _adam_newest(group: Settings, state: State) -> float:
    return _newest(float(group["betas"][1]), float(state["step"]))


def _rmsprop_newest(group: Settings, state: State) -> float:
    """As of Adam: without its bias correction all of P is smaller, and its parts are as they are."""
    return _newest(float(group["alpha"]), float(state["step"]))


def _newest(decay: float, made: float) -> float:
    """In an average of squares that forgets all but ``decay`` of itself in a step; at first it holds few of them."""
    return (1 - decay) / (1 - decay**made) if 0 <= decay < 1 else 1 / made


_ADAM = Rule(_adam, ("betas", "weight_decay", "decoupled_weight_decay"), _adam_divisor, _adam_small_batch, _adam_newest)
_RULES: dict[type[Optimizer], Rule] = {
    SGD: Rule(_sgd, ("momentum", "dampening", "nesterov"), None, _sgd_small_batch),
    Adam: _ADAM,
    AdamW: _ADAM,
    NAdam: Rule(
        _nadam,
        ("betas", "momentum_decay", "weight_decay", "decoupled_weight_decay"),
        _adam_divisor,
        _nadam_small_batch,
        _adam_newest,
    ),
    RMSprop: Rule(_rmsprop, ("momentum", "weight_decay"), _rmsprop_divisor, _rmsprop_small_batch, _rmsprop_newest),
    Adagrad: Rule(_adagrad, ("weight_decay",), _adagrad_divisor, _adagrad),
}
