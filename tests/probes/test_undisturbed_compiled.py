"""Compiled models, losses and updates train to the same bit when watched: measured eagerly, and not compiled anew."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from loop_cases import Loop, Parts, net, sgd, undisturbed


def compiled(loop: Loop, backend: str, how: str) -> Parts:
    torch._dynamo.reset()
    model = net()
    optimizer = sgd(model)
    called: Any = model
    if how == "wrapped":
        called = torch.compile(model, backend=backend)
    else:
        model.compile(backend=backend)
    with loop.watch(called, optimizer):
        for x, y in loop.batches():
            loop.backward(F.cross_entropy(called(x), y))
            loop.update(model, optimizer)
    return [model], [optimizer]


def compiled_loss(loop: Loop) -> Parts:
    torch._dynamo.reset()
    model = net()
    optimizer = sgd(model)
    loss_fn = torch.compile(lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), backend="aot_eager")
    with loop.watch(model, optimizer, loss_fn=loss_fn):
        for batch in loop.batches():
            loop.backward(loss_fn(model, batch))
            loop.update(model, optimizer)
    return [model], [optimizer]


def compiled_update(loop: Loop) -> Parts:
    """Forward, backward and step in one function; dynamo leaves it where the hooks are called."""
    torch._dynamo.reset()
    model = net()
    optimizer = sgd(model)

    @functools.partial(torch.compile, backend="eager")
    def update(x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    with loop.watch(model, optimizer):
        for x, y in loop.batches():
            loop.note(model, 0.05)
            loop.losses.append(update(x, y).item())
    return [model], [optimizer]


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_compiled_model(how: str) -> None:
    undisturbed(functools.partial(compiled, backend="aot_eager", how=how))


def test_a_compiled_loss() -> None:
    undisturbed(compiled_loss)


def test_a_compiled_update() -> None:
    undisturbed(compiled_update)
