"""A training with something going wrong in it at a random moment, watched and unwatched."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from losscope.landscape import isolation
from losscope.probes import Run, Sharpness, Trace, Watch, watch
from losscope.probes.recorder import Recorder
from noted import NotedCounts
from probe_cases import Outcome, loader, outcome, seed_everything

STEPS = 9
Key = tuple[str, str, int]


@dataclass
class Rig:
    """What a fault may reach: the training, the options of its watch, and moments of the loop.

    Attributes:
        random: the same moments for the watched and the unwatched training.
        before: called before update t.
        after: called after update t.
        between: called before update t, when its gradient is there.
        heard: what hooks of the user's noted; compared like the losses.
        written: keys of the records that went into the folder before anything had failed.
        taken: keys of all records.
        variant: of the endings that the unwatched training may have.
        begun: whether the loop has.
        shows: whether a watched run shows that the fault was there.
    """

    random: random.Random
    watched: bool
    out: Path
    model: nn.Module
    optimizer: torch.optim.Optimizer
    options: dict[str, Any] = field(default_factory=dict)
    before: dict[int, Callable[[], object]] = field(default_factory=dict)
    between: dict[int, Callable[[], object]] = field(default_factory=dict)
    after: dict[int, Callable[[], object]] = field(default_factory=dict)
    heard: list[Any] = field(default_factory=list)
    written: list[Key] = field(default_factory=list)
    taken: list[Key] = field(default_factory=list)
    variant: int = 0
    begun: bool = False
    shows: Callable[[Run], object] = lambda run: True

    def moment(self) -> int:
        return self.random.randrange(1, STEPS - 1)


@dataclass(frozen=True)
class Ending:
    """How a training ended.

    Attributes:
        error: type and words of what came out of it; None where it finished.
        outcome: weights, buffers, optimizer, losses and random streams.
        run: the watch.
        written: keys of the records that went into the folder before anything had failed.
        taken: keys of all records.
        shown: whether the run shows that the fault was there.
    """

    error: tuple[str, str] | None
    outcome: Outcome
    run: Watch | None
    written: list[Key]
    taken: list[Key]
    shown: bool


Fault = Callable[[Rig], AbstractContextManager[None]]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)).train()


def trained(fault: Fault, repeat: int, out: Path, *, watched: bool, variant: int = 0) -> Ending:
    """Train with a fault; the repetition decides its moment."""
    seed_everything(3)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rig = Rig(random.Random(repeat), watched, out, model, optimizer, variant=variant)
    options: dict[str, Any] = {
        "data": list(loader("mlp"))[:1], "criterion": F.cross_entropy, "every": 2, "mode": "train", "out": out,
        "probes": [Sharpness(), Trace(rtol=0.5, max_matvecs=20)],
    }  # fmt: skip
    seed_everything(4)
    losses: list[Any] = []
    error, run = None, None
    with fault(rig), keys_noted(rig):
        try:
            if watched:
                run = watch(model, optimizer, **options | rig.options)
            with run if run is not None else contextlib.nullcontext():
                batches = [batch for _ in range(3) for batch in loader("mlp")]
                rig.begun = True
                for t, (x, y) in enumerate(batches):
                    rig.before.get(t, int)()
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    losses.append(loss.item())
                    rig.between.get(t, int)()
                    optimizer.step()
                    rig.after.get(t, int)()
                    if run is not None:
                        run.log(loss=loss)
        except BaseException as raised:
            error = type(raised).__name__, str(raised)
    left = outcome([model], [optimizer], [losses, rig.heard])
    return Ending(error, left, run, rig.written, rig.taken, run is None or bool(rig.shows(run.run)))


@contextlib.contextmanager
def keys_noted(rig: Rig) -> Iterator[None]:
    """Gives the rig the keys of all records that are taken, and of those that went into the folder."""
    record = Recorder.record

    def noting(self: Recorder, given: Any, arrays: Any) -> None:
        record(self, given, arrays)
        rig.taken.append(given.key)
        if self._folder is not None and not self._failed:
            rig.written.append(given.key)

    Recorder.record = noting  # type: ignore[method-assign]
    try:
        yield
    finally:
        Recorder.record = record  # type: ignore[method-assign]


def measuring(rig: Rig, function: Callable[..., Any], fail: Callable[[], object]) -> Callable[..., Any]:
    """A function of the user's that goes wrong while it is being measured, once the loop has begun."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if rig.begun and is_measuring():
            fail()
        return function(*args, **kwargs)

    return wrapped


def is_measuring() -> bool:
    """Whether a model is being evaluated apart from its training."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == isolation.__file__ or frame.f_code.co_name == "batch_loss":
            return True
        frame = frame.f_back
    return False


CALLS = NotedCounts()
"""Of each `AtCall`, which an isolation does not put back, as it does the attributes of a user's objects."""


class AtCall:
    """Does something at the n-th call, or from it on."""

    def __init__(self, n: int, act: Callable[[], object], *, on: bool = False) -> None:
        self.n, self.act, self.on, self.key = n, act, on, len(CALLS)
        CALLS[self.key] = 0

    @property
    def happened(self) -> bool:
        return CALLS[self.key] >= self.n

    def __call__(self) -> None:
        CALLS[self.key] += 1
        if CALLS[self.key] == self.n or (self.on and self.happened):
            self.act()


def raising(error: BaseException | type[BaseException]) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act
