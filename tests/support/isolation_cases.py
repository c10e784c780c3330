"""A model that writes everything a forward pass can write, and how to see that nothing was."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.landscape import Hessian, Objective, top_eigenpairs, trace


def described(value: Any) -> Any:
    """A value by identity, and by content as far as it can be written in place."""
    if isinstance(value, Tensor):
        grad = None if value.grad_fn is not None or value.grad is None else described(value.grad)
        bits = value.detach().clone().contiguous().view(-1).tolist()
        return id(value), value.data_ptr(), value._version, value.requires_grad, str(bits), grad
    if isinstance(value, dict):
        return id(value), [(key, described(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return id(value), [described(item) for item in value]
    if isinstance(value, nn.Module):
        return id(value)
    return (id(value), str(value)) if isinstance(value, set) else (type(value).__name__, str(value))


def state_of(*roots: nn.Module) -> list[Any]:
    """Everything in every module: parameters, gradients, buffers, flags, hooks, plain attributes."""
    return [(id(m), described(dict(vars(m)))[1]) for root in roots for m in root.modules()]


def streams() -> tuple[str, str, bytes]:
    return str(random.getstate()), str(np.random.get_state()), bytes(torch.get_rng_state().tolist())  # noqa: NPY002


def measure(objective: Objective) -> None:
    """Everything that is measured at one point."""
    objective.check()
    objective.value_and_gradient()
    operator = Hessian(objective)
    operator.value_and_gradient()
    top_eigenpairs(operator, tol=0.5, max_matvecs=3, seed=0)
    trace(operator, min_matvecs=2, max_matvecs=2, seed=0)


class Busy(nn.Module):
    """A model that writes everything a forward pass can write."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.frozen_norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(6, 3)
        self.register_buffer("average", torch.zeros(6))
        self.register_buffer("replaced", torch.zeros(1))
        self.calls = 0
        self.history: list[float] = []
        self.table = {"sum": 0.0, "inner": {"log": []}}
        self.seen: set[int] = set()
        self.running = torch.zeros(6)
        self.kept = [torch.zeros(6)]
        self.frozen_norm.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.frozen_norm(self.norm(self.first(x)))).tanh()
        x = x * (1 + 0.01 * random.random() + 0.01 * float(np.random.rand()))  # noqa: NPY002
        with torch.no_grad():
            self.average.mul_(0.9).add_(x.mean(dim=0), alpha=0.1)
            self.replaced = self.replaced + 1
            self.running += 1
            self.kept[0].add_(1)
        self.calls += 1
        self.history.append(float(x.detach().sum()))
        self.table["sum"] += 1.0
        self.table["inner"]["log"].append(self.calls)
        self.seen.add(self.calls)
        self.new_attribute = x.detach()
        return self.last(x)


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator)) for n in (6, 6, 3)]


def busy_with_gradients() -> Busy:
    model = Busy()
    F.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    model.last.bias.grad = None
    model.first.bias.requires_grad_(False)
    return model
