"""Passes of a model over a batch: followed operation by operation, and at other parameters and buffers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..batches import batch_length, take, without_weights
from ..elsewhere import elsewhere
from ..objective import Objective
from .points import named_tensors
from .unit_algebra import Index
from .unit_tracing import UnitTrace

__all__ = ["evaluated_at", "few_samples", "outputs_of", "traced"]

_SAMPLES = 8  # of the first batch: what is looked for does not depend on the data


def few_samples(objective: Objective) -> Any:
    """A few samples, or the whole first batch where it cannot be cut."""
    content = objective.batches[0].content
    try:
        few = take(content, torch.arange(min(_SAMPLES, batch_length(without_weights(content)))))
        with objective.evaluation(0, few) as batch:
            objective.loss(objective.model, batch)
    except Exception:
        return content
    return few


def traced(objective: Objective, batch: Any, known: Mapping[str, list[Index]] | None = None) -> UnitTrace:
    """Follow one pass over a batch; outputs keep their order. ``known`` are the indices from an earlier pass."""
    trace = UnitTrace(named_tensors(objective.model), known)
    with _decomposed(), trace:
        outputs = outputs_of(objective, batch)
    trace.finish(outputs)
    return trace


@contextlib.contextmanager
def _decomposed() -> Iterator[None]:
    """Without oneDNN, whose recurrent layers are a single operation each."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # torch.backends.mkldnn.flags touches other settings too, and warns
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@contextlib.contextmanager
def evaluated_at(objective: Objective, index: int, content: Any, state: Mapping[str, Tensor]) -> Iterator[Any]:
    """One evaluation of a batch at other parameters and buffers."""
    values = [state[name].contiguous() for name in objective.parameters]
    with elsewhere(objective, values), objective.evaluation(index, content) as batch:
        for name, _ in list(objective.model.named_buffers(remove_duplicate=False)):
            owner, _, key = name.rpartition(".")
            objective.model.get_submodule(owner)._buffers[key] = state[name].clone()  # of the evaluation's stand-ins
        yield batch


def outputs_of(objective: Objective, batch: Any) -> Any:
    """The model's outputs for a batch, or the loss where a ``loss_fn`` hides them."""
    if objective.loss.criterion is None:
        return objective.loss(objective.model, batch)
    return objective.loss.outputs(objective.model, batch)
