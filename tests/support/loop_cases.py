"""Run a training loop twice, watched and not, and compare every bit, and every record with the loop's own notes.

A case is a function of a `Loop`: it builds a model, trains it in a loop written as users write theirs, and returns what
is to be compared. The loop draws its order and its dropout from the global streams, so that a draw that is not put back
shows in everything that follows.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from losscope.probes import Sharpness, Spectrum, Stability, Trace, Watch, watch
from probe_cases import CLASSES, checksum, checksum_of, outcome, records, seed_everything

STEPS, EVERY = 6, 2

Parts = tuple[list[nn.Module], list[Any]]
Case = Callable[["Loop"], Parts]


class Unwatched:
    """What a loop calls on its run, where there is none."""

    steps = 0

    def log(self, **values: Any) -> None:
        pass

    def step(self) -> None:
        pass


class Loop:
    """One run of a loop, with what the loop knew of each update.

    Attributes:
        run: the watch, or None in the run without.
        noted: (step, learning rate, checksum of the weights) just before each update.
        losses: of every backward pass.
    """

    def __init__(self, watched: bool) -> None:
        seed_everything(3)
        self.watched, self.run = watched, None
        self.noted: list[tuple[int, float | None, float]] = []
        self.losses: list[Any] = []
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(24, 6, generator=generator)
        self.y = torch.randint(CLASSES, (24,), generator=generator)

    def watch(self, model: Any, optimizer: Any, **changes: Any) -> Any:
        """A context manager whose value has ``log`` and ``step``, whether anything is watched or not."""
        if not self.watched:
            return contextlib.nullcontext(Unwatched())
        probes = [Sharpness(), Spectrum(2, 4), Trace(rtol=0.5), Stability(rtol=0.5), checksum]
        options: dict[str, Any] = {
            "data": (self.x[:8], self.y[:8]), "criterion": F.cross_entropy, "probes": probes, "every": EVERY,
            "mode": "train", "batch_size": 8, "on_error": "raise",
        }  # fmt: skip
        if "loss_fn" in changes:
            del options["criterion"]
        self.run = watch(model, optimizer, **options | changes)
        return self.run

    def batches(self, steps: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled by the global stream, over and over."""
        loader = DataLoader(TensorDataset(self.x, self.y), batch_size=8, shuffle=True)
        while True:
            for batch in loader:
                if not steps:
                    return
                steps -= 1
                yield batch[0], batch[1]

    def backward(self, loss: Tensor) -> None:
        self.losses.append(loss.item())
        loss.backward()

    def note(self, model: nn.Module, rate: float | None) -> None:
        """An update is about to be made at these weights."""
        self.noted.append((len(self.noted), rate, checksum_of(model)))

    def update(self, model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
        """Note, step and clear, as the last lines of most loops."""
        rates = {float(group["lr"]) for optimizer in optimizers for group in optimizer.param_groups}
        self.note(model, rates.pop() if len(rates) == 1 else None)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def undisturbed(case: Case) -> Watch:
    """Run the case unwatched and watched, and compare; returns the watch."""
    outcomes = []
    for watched in (False, True):
        loop = Loop(watched)
        models, optimizers = case(loop)
        outcomes.append(outcome(models, optimizers, loop.losses))
    assert outcomes[1].differences(outcomes[0]) == []
    run = loop.run
    assert run is not None and len(loop.noted) >= 4 and run.run.status == "finished"
    assert records(run) == [noted for noted in loop.noted if noted[0] % EVERY == 0]
    assert {(r.probe, r.status, r.reason) for r in run.run.records if r.status != "ok"} == set()
    for probe in ("sharpness", "spectrum", "trace", "stability"):
        assert len(run.run.select(probe)) == len(records(run)), probe
    return run


def net() -> nn.Module:
    """With batch statistics, and dropout from the global stream."""
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, CLASSES)]
    return nn.Sequential(*layers).train()


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, "momentum": 0.9} | options)
