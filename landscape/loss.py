"""What is minimised: from a batch to outputs, targets, a scalar, and the denominator of its mean."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .batches import Weighted, batch_length, describe, tensors_of, without_weights
from .errors import DataError, LossError, SettingError
from .per_sample import Terms, class_weight_sum

__all__ = ["Loss"]


@dataclass(frozen=True)
class Loss:
    """How a batch becomes a scalar; exactly one of ``criterion`` and ``loss_fn`` is given.

    Attributes:
        criterion: ``criterion(outputs, targets) -> scalar``.
        loss_fn: ``loss_fn(model, batch) -> scalar``, for losses that need more than outputs.
        forward: ``forward(model, batch) -> outputs``; default: call the model on the inputs.
        targets: ``targets(batch) -> targets``; default: the second item of the batch.
        weight: ``weight(batch)``, the denominator of that batch's mean; inferred by default.
        seen_to_sum: whether it was seen to add over samples, though it does not say so.
        terms: ``terms(outputs, targets) -> (n,)``, the criterion's value sample by sample; found by
            `Objective.weighted`.
    """

    criterion: Callable[..., Tensor] | None = None
    loss_fn: Callable[..., Tensor] | None = None
    forward: Callable[..., Any] | None = None
    targets: Callable[..., Any] | None = None
    weight: Callable[..., Any] | None = None
    seen_to_sum: bool = False
    terms: Terms | None = None

    def __post_init__(self) -> None:
        """Refuse combinations that mean nothing."""
        if (self.criterion is None) == (self.loss_fn is None):
            raise SettingError(
                "pass exactly one of criterion=, a function (outputs, targets) -> scalar, and loss_fn=, a function "
                f"(model, batch) -> scalar; got {'neither' if self.criterion is None else 'both'}"
            )
        if self.loss_fn is not None and (self.forward is not None or self.targets is not None):
            raise SettingError("forward= and targets= go with criterion=; with loss_fn= they are not used")
        for name in ("criterion", "loss_fn", "forward", "targets", "weight"):
            value = getattr(self, name)
            if isinstance(value, type):
                raise SettingError(
                    f"{name} must be a function, got the class {value.__name__}: write {value.__name__}()"
                )
            if value is not None and not callable(value):
                raise SettingError(f"{name} must be callable, got {type(value).__name__}")

    @property
    def functions(self) -> list[Any]:
        """The user's callables, to be searched for modules they close over."""
        return [f for f in (self.criterion, self.loss_fn, self.forward, self.targets) if f is not None]

    @property
    def summed(self) -> bool:
        """Whether it sums over samples instead of averaging."""
        if self.seen_to_sum:
            return True
        keywords = self.criterion.keywords if isinstance(self.criterion, functools.partial) else {}
        return (getattr(self.criterion, "reduction", None) or keywords.get("reduction")) == "sum"

    def outputs(self, model: nn.Module, batch: Any) -> Any:
        """The model's outputs for a batch.

        Raises:
            LossError: if only a ``loss_fn`` was given, which hides them.
            DataError: if the batch is not an (inputs, targets) pair and no ``forward`` was given.
        """
        if self.criterion is None:
            raise LossError("this needs the model's outputs: pass criterion= (and forward=, targets=), not loss_fn=")
        batch = without_weights(batch)
        if self.forward is not None:
            return self.forward(model, batch)
        return model(_pair(batch)[0])

    def targets_of(self, batch: Any) -> Any:
        """The targets of a batch.

        Raises:
            DataError: if the batch is not a pair and no ``targets`` function was given.
        """
        batch = without_weights(batch)
        return self.targets(batch) if self.targets is not None else _pair(batch)[1]

    def weights_of(self, batch: Any) -> Tensor | None:
        """The factors of a batch's samples, (n,), in an objective that has them; see `value`."""
        return batch.weights if isinstance(batch, Weighted) else None

    def value(self, outputs: Any, targets: Any, weights: Tensor | None = None) -> Tensor:
        """The criterion as a function of the outputs, a scalar tensor.

        Args:
            outputs: the model's outputs for a batch.
            targets: the targets of that batch.
            weights: (n,), the factor of each sample's term; None for the criterion as it is.

        Raises:
            LossError: if it is not a real scalar tensor, or has another number of terms than weights.
        """
        assert self.criterion is not None
        if weights is None:
            return _checked_scalar(self.criterion(outputs, targets), "criterion")
        assert self.terms is not None
        terms = self.terms(outputs, targets)
        if terms.shape != weights.shape:
            raise LossError(f"{len(weights)} weights for a batch with {len(terms)} samples in its outputs")
        return (weights * terms).sum()

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of one batch, a scalar tensor.

        Raises:
            LossError: if it is not a real scalar tensor.
        """
        if self.loss_fn is not None:
            return _checked_scalar(self.loss_fn(model, batch), "loss_fn")
        return self.value(self.outputs(model, batch), self.targets_of(batch), self.weights_of(batch))

    def weight_of(self, batch: Any) -> float:
        """The denominator of this batch's mean: what makes a mean over uneven batches exact.

        Inferred for torch's classification losses as they define it (targets that are not ignored,
        weighted by class weights), else the number of samples; 1 for a summed loss.

        Raises:
            DataError: if it cannot be inferred.
        """
        batch = without_weights(batch)
        if self.weight is not None:
            return float(self.weight(batch))
        if self.summed:
            return 1.0
        if self.criterion is None:
            return float(batch_length(batch))
        known = class_weight_sum(self.criterion, self.targets_of(batch))
        return float(self.samples_of(batch) if known is None else known)

    def samples_of(self, batch: Any) -> int:
        """Number of samples in a batch as the criterion sees them: the first dimension of the targets.

        Raises:
            DataError: if it cannot be seen.
        """
        targets = self.targets_of(batch)
        return batch_length(targets if tensors_of(targets) else without_weights(batch))


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, Mapping) or not isinstance(batch, list | tuple) or len(batch) != 2:
        raise DataError(
            f"a batch must be an (inputs, targets) pair, got {describe(batch)}; for other batches pass "
            "forward=(model, batch) -> outputs and targets=batch -> targets, or loss_fn=(model, batch) -> scalar "
            "(data that is one batch must be a tuple: a list is read as a list of batches)"
        )
    return batch[0], batch[1]


def _checked_scalar(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise LossError(f"{name} must return a scalar tensor, got {type(value).__name__}")
    if value.numel() != 1:
        raise LossError(
            f"{name} must return a scalar, got a tensor of shape {tuple(value.shape)}; reduce it to its mean over "
            "samples"
        )
    if not value.is_floating_point():
        raise LossError(f"{name} must return a real floating-point scalar, got {value.dtype}")
    return value.reshape(())
