"""The parts of the loop that trains a `probe_cases.Line`."""

from typing import Any

import torch

from probe_cases import Line


def sgd(line: Line, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(line.model.parameters(), **{"lr": 0.1, "momentum": 0.5} | options)


def update(line: Line, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = line.loss()
    loss.backward()
    line.note(optimizer.param_groups[0]["lr"])
    optimizer.step()
    return loss.item()
