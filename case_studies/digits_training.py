"""What the case studies share: training a network on digits under watch, and the ratios that its run holds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from losscope.probes import Run, Stability, Watch, watch
from losscope.viz.demo import digits, half_squared_error

__all__ = ["Criterion", "later_half", "ratios", "train"]

Criterion = Callable[[Tensor, Tensor], Tensor]


def train(
    model: nn.Module, optimizer: Optimizer, *, steps: int, seed: int = 0, samples: int = 1000,
    criterion: Criterion = half_squared_error, batch_size: int | None = None, every: int = 25,
    level: str = "sharpness", out: Path | None = None, after: Callable[[int, Watch], None] | None = None,
) -> Run:  # fmt: skip
    """Train on digits under watch by the stability probe alone.

    Args:
        model: the network, 64 inputs and 10 outputs.
        optimizer: of its parameters.
        steps: updates to make.
        seed: seeds the order of the digits, the mini-batches and all estimators.
        samples: how many digits.
        criterion: the loss, of outputs and one-hot targets.
        batch_size: samples in a mini-batch, a divisor of their number; None takes all in every update.
        every: updates between two measurements.
        level: of the stability probe.
        out: the run folder; None keeps the run in memory.
        after: called after each update with the number of updates made and the live run.
    """
    x, y = digits(seed, samples)
    batches = full_batches(x, y) if batch_size is None else minibatches(x, y, batch_size, seed)
    with watch(
        model, optimizer, data=(x, y), criterion=criterion, probes=[Stability(level=level)], every=every,
        batch_size=batch_size or samples, seed=seed, out=out,
    ) as live:  # fmt: skip
        for made in range(1, steps + 1):
            inputs, targets = next(batches)
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            live.log(loss=loss)
            if after is not None:
                after(made, live)
    return live.run


def full_batches(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """All samples, every time."""
    while True:
        yield x, y


def minibatches(x: Tensor, y: Tensor, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Mini-batches in epochs, each over a permutation of its own."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(x), generator=generator).split(size):
            yield x[chosen], y[chosen]


def ratios(run: Run) -> dict[int, float]:
    """Sharpness over threshold by step, where there is a threshold."""
    return {r.step: r.value for r in run.select("stability") if r.value is not None}


def later_half(ratio: dict[int, float]) -> float:
    """Their median over the later half of the steps."""
    middle = (min(ratio) + max(ratio)) / 2
    return statistics.median(value for step, value in ratio.items() if step >= middle)
