"""Ctrl-C as an evaluation is left: what it drops must not write on the model when it is freed."""

import contextlib
import gc
from typing import Any

import pytest
import torch
from torch import nn

from isolation_cases import batches, busy_with_gradients, state_of, streams
from losscope.landscape import Objective
from losscope.landscape.elsewhere import elsewhere


@pytest.mark.parametrize("skipped", [0, 1, 2])
@pytest.mark.parametrize("name", ["evaluation", "_untouched_modules", "preserved_objects"])
def test_an_interrupt_as_an_evaluation_is_left(name: str, skipped: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = busy_with_gradients()
    objective = Objective(model, batches(), criterion=nn.CrossEntropyLoss())
    objective.value()
    before, random_state = state_of(model), streams()
    original, seen = contextlib._GeneratorContextManager.__exit__, []

    def left(self: Any, *exception: Any) -> Any:
        if self.gen.__name__ == name and exception[0] is None:
            seen.append(name)
            if len(seen) == skipped + 1:
                raise KeyboardInterrupt
        return original(self, *exception)

    monkeypatch.setattr(contextlib._GeneratorContextManager, "__exit__", left)
    with contextlib.suppress(KeyboardInterrupt):
        objective.gradient()
    monkeypatch.undo()
    gc.collect()
    assert len(seen) > skipped
    assert state_of(model) == before
    assert streams() == random_state


def test_parameters_that_were_left_elsewhere_are_put_back() -> None:
    model = busy_with_gradients()
    objective = Objective(model, batches(), criterion=nn.CrossEntropyLoss())
    before = state_of(model)
    with objective.isolated():
        moved = elsewhere(objective, [torch.zeros_like(p) for p in objective.parameters.values()])
        moved.__enter__()
        moved.__exit__ = None  # type: ignore[assignment]  # as an interrupt in it would leave them
        kept = moved
    assert state_of(model) == before
    del kept
