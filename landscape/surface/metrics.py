"""What is measured at a point besides the loss: accuracy, any function of outputs and targets, another objective."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import LossError, SettingError
from ..objective import Objective

__all__ = ["Measured", "Metric", "Metrics", "accuracy", "measured"]

Metric: TypeAlias = "str | Callable[[Any, Any], Any] | Objective"
Metrics: TypeAlias = "Metric | Iterable[Metric] | Mapping[str, Metric] | None"

_IGNORED = -100  # what torch's losses leave out by default


def accuracy(outputs: Any, targets: Tensor) -> Tensor:
    """Share of samples (tokens, pixels) whose largest output is at the target, a scalar.

    Args:
        outputs: (n, classes, ...) scores; or (n,) or (n, 1), where a positive one stands for class 1. An object with
            ``logits`` is taken for those.
        targets: (n, ...) classes, those of -100 left out; or scores or probabilities of the shape of the outputs.

    Example:
        >>> import torch
        >>> from losscope.landscape.surface import accuracy
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        tensor(0.5000)
    """
    scores = getattr(outputs, "logits", outputs)
    if scores.ndim == 1 or (scores.shape[1] == 1 and targets.numel() == scores.numel()):
        hits = (scores.flatten() > 0) == (targets.flatten() > 0.5)
        return hits.double().mean().to(torch.get_default_dtype())
    if targets.shape == scores.shape and targets.is_floating_point():
        targets = targets.argmax(dim=1)
    counted = targets != _IGNORED
    hits = (scores.argmax(dim=1) == targets) & counted
    return (hits.double().sum() / counted.double().sum()).to(torch.get_default_dtype())


@dataclass(frozen=True, eq=False)
class Measured:
    """What one pass over an objective's data measures: its loss, or functions of its outputs and targets too.

    Attributes:
        objective: whose data and loss.
        functions: metrics by name, each ``(outputs, targets) -> scalar``.
        loss_name: what the loss is called.
    """

    objective: Objective
    functions: Mapping[str, Callable[[Any, Any], Any]] = field(default_factory=dict)
    loss_name: str = "loss"

    @property
    def names(self) -> tuple[str, ...]:
        """Of the m columns."""
        return (self.loss_name, *self.functions)

    def shares(self) -> Tensor:
        """The factor of each batch in each column, (batches, m) float64.

        As the loss weights them; where it sums over samples, metrics are still means, by samples.
        """
        objective = self.objective
        of_loss = torch.tensor(objective.shares, dtype=torch.float64)
        of_metrics = of_loss
        if self.functions and objective.loss.summed:
            samples = [objective.loss.samples_of(batch.content) for batch in objective.batches]
            of_metrics = torch.tensor(samples, dtype=torch.float64) / sum(samples)
        columns = [of_loss, *([of_metrics] * len(self.functions))]
        return torch.stack(columns, dim=1).to(objective.space.device)

    def of_batch(self, model: nn.Module, batch: Any) -> Tensor:
        """All columns of one batch, (m,) float64.

        Raises:
            LossError: if the loss or a metric is not a scalar, or the outputs are hidden by a ``loss_fn``.
        """
        loss = self.objective.loss
        if not self.functions:
            return loss(model, batch).double().reshape(1)
        if loss.criterion is None:
            raise LossError(
                f"the metric {next(iter(self.functions))!r} needs the model's outputs, and a loss_fn hides them: pass "
                "criterion= (and forward=, targets=), or as the metric an Objective of the same model"
            )
        outputs, targets = loss.outputs(model, batch), loss.targets_of(batch)
        found = [loss.value(outputs, targets, loss.weights_of(batch))]
        for name, function in self.functions.items():
            found.append(_scalar(name, function(outputs, targets), found[0]))
        return torch.stack([value.double() for value in found])


def measured(objective: Objective, metrics: Metrics) -> list[Measured]:
    """The passes that the loss and these metrics take: one over the objective's data, one over that of each other.

    Args:
        objective: the loss.
        metrics: ``"accuracy"``, a function ``(outputs, targets) -> scalar``, another `Objective` of the same model
            (the test data's loss), or several: a list of them, or a mapping from names.

    Raises:
        SettingError: if one is none of these, or two have one name.
    """
    functions: dict[str, Callable[[Any, Any], Any]] = {}
    others: dict[str, Objective] = {}
    for name, metric in _named(metrics):
        if name == "loss" or name in functions or name in others:
            raise SettingError(f"two metrics are called {name!r} (the loss is called 'loss'); pass a mapping of names")
        if isinstance(metric, Objective):
            others[name] = _over_the_same(objective, metric, name)
        elif metric == "accuracy":
            functions[name] = accuracy
        elif callable(metric):
            functions[name] = metric
        else:
            raise SettingError(
                f"a metric must be 'accuracy', a function (outputs, targets) -> scalar, or an Objective of the same "
                f"model; got {metric!r}"
            )
    return [Measured(objective, functions), *(Measured(other, {}, name) for name, other in others.items())]


def _named(metrics: Metrics) -> Iterable[tuple[str, Any]]:
    if metrics is None:
        return []
    if isinstance(metrics, Mapping):
        return [(str(name), metric) for name, metric in metrics.items()]
    if isinstance(metrics, str | Objective) or callable(metrics) or not isinstance(metrics, Iterable):
        metrics = [metrics]
    return [(_name_of(metric), metric) for metric in metrics]


def _name_of(metric: Any) -> str:
    if isinstance(metric, str):
        return metric
    if isinstance(metric, Objective):
        return "other loss"
    function = getattr(metric, "func", metric)
    return str(getattr(function, "__name__", type(function).__name__))


def _over_the_same(objective: Objective, other: Objective, name: str) -> Objective:
    """The other objective as a function of the parameters that this one moves."""
    if other.model is not objective.model:
        raise SettingError(
            f"the metric {name!r} is an Objective of another model; build it on the model that the landscape is of"
        )
    _ = other.batches  # read here, so that a later slice need not read them again
    like = copy.copy(other)
    like.parameters, like.space, like.kept, like._depth = objective.parameters, objective.space, {}, 0
    return like


def _scalar(name: str, value: Any, like: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        try:
            value = torch.tensor(float(value), dtype=torch.float64, device=like.device)
        except (TypeError, ValueError):
            raise LossError(f"the metric {name!r} must return a scalar, got {type(value).__name__}") from None
    if value.numel() != 1 or value.is_complex():
        what = f"a tensor of shape {tuple(value.shape)}" if value.numel() != 1 else f"a {value.dtype} number"
        raise LossError(
            f"the metric {name!r} must return a real scalar, got {what}; reduce it to its mean over samples"
        )
    return value.detach().reshape(()).to(like.device)
