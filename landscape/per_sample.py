"""The loss per sample, from a criterion that returns one number for the whole batch."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .batches import Batch, Weighted, describe, map_tensors, tensors_of, without_weights
from .errors import LossError, NonFiniteError, SettingError
from .space import VectorSpace

__all__ = ["checked_weights", "class_weight_sum", "entry_weights", "find_terms", "with_weights"]

Terms = Callable[[Any, Any], Tensor]
"""``terms(outputs, targets) -> (n,)``: one term per entry of the outputs' first dimension, adding up to the loss."""

_AGREEMENT = {torch.float64: 1e-10, torch.float32: 1e-4}


def find_terms(criterion: Callable[..., Tensor], outputs: Any, targets: Any, samples: int) -> Terms:
    """How ``criterion`` is taken apart into one term per sample, tried on one batch.

    A criterion with a ``reduction`` (torch's own, their functional forms and partials of them) is evaluated
    without it and divided by its denominator. Any other is evaluated on every sample alone: at once by
    `torch.vmap`, or one by one.

    Args:
        criterion: ``criterion(outputs, targets) -> scalar``.
        outputs: the model's outputs for a batch, a tensor or several in a structure; the more samples, the surer.
        targets: the targets of that batch.
        samples: how many samples the targets hold.

    Raises:
        LossError: if no such terms add up to the criterion, as with one that compares samples.
        NonFiniteError: if the criterion is NaN or infinite on the batch.
    """
    if samples_in(outputs) != samples:
        raise LossError(
            f"samples are weighted along the first dimension of the outputs, which have {samples_in(outputs)} entries "
            f"for {samples} in the targets; let forward= and targets= return one entry per sample (or token) each"
        )
    value = float(criterion(outputs, targets).detach())
    if not math.isfinite(value):
        raise NonFiniteError(
            f"the criterion is {value} here, so that its terms cannot be checked to add up to it; weight the objective "
            "where the loss is finite"
        )
    failures = []
    for terms in _candidates(criterion):
        try:
            found = terms(outputs, targets).detach()
        except Exception as error:  # a foreign function may fail in any way, and the next form may do
            failures.append(f"{type(error).__name__}: {error}".splitlines()[0])
            continue
        if found.shape != (samples,):
            failures.append(f"terms of shape {tuple(found.shape)} for {samples} samples")
        elif not _agree(found, value):
            failures.append(f"terms that add up to {float(found.sum()):.6g}, not to {value:.6g}")
        else:
            return terms
    raise LossError(
        "the criterion does not add over samples, so they cannot be weighted: its value on the batch is neither the "
        f"mean nor the sum of its values on each sample ({'; '.join(dict.fromkeys(failures))}). Pass a criterion that "
        "is a mean or a sum over the first dimension of the outputs; for ignored targets or class weights, torch's "
        "own, with its reduction="
    )


def _candidates(criterion: Callable[..., Tensor]) -> list[Terms]:
    reduction = _reduction(criterion)  # now, since not every version of the compiler can trace a signature
    unreduced = [functools.partial(_unreduced, criterion, reduction)] if reduction is not None else []
    sliced = [functools.partial(form, criterion, mean) for form in (_sliced_at_once, _sliced) for mean in (True, False)]
    return [*unreduced, *sliced]


def _agree(terms: Tensor, value: float) -> bool:
    """Whether terms add up to the value, as far as rounding goes."""
    total = float(terms.double().sum())
    scale = max(float(terms.double().abs().sum()), abs(value))
    return abs(total - value) <= _AGREEMENT.get(terms.dtype, 5e-2) * scale


def samples_in(outputs: Any) -> int:
    """Entries in the first dimension of the (first of the) outputs.

    Raises:
        LossError: if there is no such dimension.
    """
    tensors = tensors_of(outputs)
    if not tensors or tensors[0].ndim == 0:
        raise LossError(f"samples are weighted along the first dimension of the outputs; these are {describe(outputs)}")
    return int(tensors[0].shape[0])


# --------------------------------------------------------------------------- criteria with a reduction


def _parts(criterion: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    if isinstance(criterion, functools.partial):
        return criterion.func, criterion.args, criterion.keywords
    return criterion, (), {}


def _reduction(criterion: Any) -> str | None:
    """The ``reduction`` that a criterion module or function has, by setting or by default."""
    function, _, options = _parts(criterion)
    if isinstance(function, nn.Module):
        found = getattr(function, "reduction", None)
    else:
        try:
            parameter = inspect.signature(function).parameters.get("reduction")
        except (TypeError, ValueError):  # built-ins show none
            return None
        found = options.get("reduction", parameter.default if parameter is not None else None)
    return found if found in ("mean", "sum", "batchmean") else None


class _Unreduced:
    """Stands in for ``self`` in a criterion's ``forward``: the module as it is now, but for its reduction.

    Not a copy of the module, which the compiler cannot trace, nor a change in it.
    """

    reduction = "none"

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def _unreduced(criterion: Any, reduction: str, outputs: Any, targets: Any) -> Tensor:
    """The terms of a criterion that can leave out its reduction, divided by its own denominator."""
    function, args, options = _parts(criterion)
    if isinstance(function, nn.Module):
        function = functools.partial(type(function).forward, _Unreduced(function))
    else:
        options = options | {"reduction": "none"}
    entries = function(*args, outputs, targets, **options)
    terms = entries.flatten(1).sum(dim=1) if entries.ndim > 1 else entries
    if reduction == "sum":
        return terms
    if reduction == "batchmean":
        return terms / len(terms)
    known = class_weight_sum(criterion, targets)
    return terms / (entries.numel() if known is None else known)


def class_weight_sum(criterion: Any, targets: Any) -> Tensor | None:
    """torch's own denominator for class-index targets, else None.

    ``nn.CrossEntropyLoss`` and ``nn.NLLLoss`` divide by the sum of the class weights of the targets
    that are not ``ignore_index``.
    """
    weights = entry_weights(criterion, targets)
    return None if weights is None else weights.sum()


def entry_weights(criterion: Any, targets: Any) -> Tensor | None:
    """The class weight of each class-index target, 0 where it is ignored; None for any other criterion."""
    function, _, options = _parts(criterion)
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.dtype == torch.bool:
        return None
    if isinstance(function, nn.CrossEntropyLoss | nn.NLLLoss):
        ignored, class_weights = function.ignore_index, function.weight
    elif function in (F.cross_entropy, F.nll_loss):
        ignored, class_weights = options.get("ignore_index", -100), options.get("weight")
    else:
        return None
    counted = targets != ignored
    if class_weights is None:
        return counted
    return class_weights.to(targets.device)[targets.where(counted, 0)] * counted


# --------------------------------------------------------------------------- any other criterion


def _sliced_at_once(criterion: Callable[..., Tensor], mean: bool, outputs: Any, targets: Any) -> Tensor:
    """The criterion on every sample alone, in one vectorised call."""
    n = samples_in(outputs)
    stacked = [t for t in tensors_of([outputs, targets]) if _runs_over(t, n)]

    def alone(*samples: Tensor) -> Tensor:
        slices = iter(samples)
        one, its_target = map_tensors(
            [outputs, targets], lambda t: next(slices).unsqueeze(0) if _runs_over(t, n) else t
        )
        return criterion(one, its_target).reshape(())

    terms: Tensor = torch.vmap(alone)(*stacked)
    return terms / n if mean else terms


def _sliced(criterion: Callable[..., Tensor], mean: bool, outputs: Any, targets: Any) -> Tensor:
    """The criterion on every sample alone, one after the other."""
    n = samples_in(outputs)

    def alone(i: int) -> Tensor:
        one, its_target = map_tensors([outputs, targets], lambda t: t[i : i + 1] if _runs_over(t, n) else t)
        return criterion(one, its_target).reshape(())

    terms = torch.stack([alone(i) for i in range(n)])
    return terms / n if mean else terms


def _runs_over(tensor: Tensor, n: int) -> bool:
    return tensor.ndim > 0 and tensor.shape[0] == n


# --------------------------------------------------------------------------- weights


def checked_weights(weights: Any, like: VectorSpace) -> Tensor:
    """Weights of samples (N,) in the precision and on the device of ``like``; negative ones make contrasts.

    Raises:
        SettingError: if they are no vector of finite real numbers.
    """
    if not isinstance(weights, Tensor) or weights.ndim != 1 or weights.is_complex():
        given = describe(weights) if isinstance(weights, Tensor) else type(weights).__name__
        raise SettingError(f"weights must be a real tensor of shape (N,), one per sample of the data; got {given}")
    bad = (~torch.isfinite(weights)).nonzero().flatten()
    if len(bad):
        raise SettingError(f"weights must be finite, that of sample {int(bad[0])} is {float(weights[bad[0]])}")
    return weights.detach().to(like.device, like.dtype)


def with_weights(
    batches: Sequence[Batch], weights: Tensor, samples_of: Callable[[Any], int], *, some: bool = False
) -> tuple[Batch, ...]:
    """The batches with their part of ``weights`` (N,), which run over the samples of all batches in order.

    Args:
        batches: as they were read, those without a share in the objective included.
        weights: one per sample.
        samples_of: the number of samples in a batch's content.
        some: whether these are only the first of the data's batches.

    Raises:
        SettingError: if there are more or fewer weights than samples.
    """
    lengths = [samples_of(batch.content) for batch in batches]
    if sum(lengths) > len(weights) or (sum(lengths) < len(weights) and not some):
        raise SettingError(
            f"weights must have one entry per sample, all batches in order: the data has {sum(lengths)} samples in "
            f"{len(batches)} batches, got {len(weights)} weights"
        )
    contents = [without_weights(batch.content) for batch in batches]
    pieces = weights[: sum(lengths)].split(lengths)
    return tuple(
        Batch(Weighted(content, piece), batch.weight)
        for batch, content, piece in zip(batches, contents, pieces, strict=True)
    )
