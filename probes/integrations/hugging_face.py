"""The loss that a Hugging Face model brings along: its value, what its mean is taken over, and what it is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from losscope.landscape import LossError
from losscope.landscape.batches import batch_length

__all__ = ["labels", "logits", "model_loss", "tokens"]


def model_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The loss that a Hugging Face model gives with its outputs: ``model(**batch).loss``.

    Raises:
        LossError: if it gives none.
    """
    output = model(**batch)
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        raise LossError(
            f"{type(model).__name__} gives no loss for a batch of {', '.join(batch)}: add labels to it, or pass "
            "loss_fn=lambda model, batch: ... or criterion="
        )
    return loss


def tokens(model: nn.Module) -> Callable[[Mapping[str, Any]], float]:
    """The denominator of a model's mean loss: of a batch, the labels that are not ignored (-100).

    A causal language model shifts its labels, so that the first of each sequence does not count. Without labels of
    whole numbers: samples.

    Args:
        model: a Hugging Face model.
    """
    shifted = _is_causal(model)

    def weight(batch: Mapping[str, Any]) -> float:
        given = batch.get("labels")
        if not isinstance(given, Tensor) or given.is_floating_point():
            return float(batch_length(batch))
        return float((given[..., 1:] if shifted and given.ndim > 1 else given).ne(-100).sum())

    return weight


def _is_causal(model: nn.Module) -> bool:
    """Whether its loss is that of the next token."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    return getattr(getattr(model, "loss_function", None), "__name__", "") == "ForCausalLMLoss"


def logits(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    """The outputs that a criterion takes."""
    return model(**batch).logits


def labels(batch: Mapping[str, Any]) -> Any:
    """The targets that it takes."""
    return batch["labels"]
