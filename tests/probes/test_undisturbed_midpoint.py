"""Training does not notice that its midpoint is measured."""

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from losscope.probes import Watch, watch
from midpoint_cases import Asking
from probe_cases import CLASSES, MODELS, OPTIMIZERS, Outcome, outcome, seed_everything, train


@pytest.mark.parametrize(
    ("name", "mode", "optimizer"),
    [
        *(("mlp", "eval", optimizer) for optimizer in OPTIMIZERS),
        ("cnn", "train", "momentum"), ("lstm", "eval", "adam"), ("fused", "train", "rmsprop"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:losscope. .* is measured in mode=")
def test_training_is_the_same_to_the_bit(name: str, mode: str, optimizer: str) -> None:
    runs: list[Watch] = []

    def watching(model: nn.Module, moved: torch.optim.Optimizer, _: DataLoader) -> Any:
        with torch.random.fork_rng():
            data = (torch.randn(6, *MODELS[name][1]), torch.randint(CLASSES, (6,)))
        options: dict[str, Any] = {"every": 2, "mode": mode, "on_error": "raise", "probes": [Asking()]}
        runs.append(watch(model, moved, data=data, criterion=F.cross_entropy, **options))
        return runs[0]

    assert train(name, optimizer, watching).differences(train(name, optimizer)) == []
    assert [r.step for r in runs[0].run.select("midpoint")] == [1, 3, 5, 7]


def lbfgs(model: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.LBFGS(model.parameters(), lr=0.3, max_iter=3)]


def two(model: nn.Module) -> list[torch.optim.Optimizer]:
    half = len(list(model.parameters())) // 2
    parameters = list(model.parameters())
    return [torch.optim.SGD(parameters[:half], lr=0.1, momentum=0.9), torch.optim.Adam(parameters[half:], lr=0.01)]


def fused(model: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)]


def play(make: Any, *, watched: bool, accumulate: int, drop: bool, compiled: bool = False) -> tuple[Outcome, int]:
    """A loop with a scheduler, accumulation, a layer that freezes and thaws, and errors that are caught."""
    seed_everything(2)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, CLASSES))
    optimizers = make(model)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.95) for o in optimizers]
    data = (torch.randn(10, 6), torch.randint(CLASSES, (10,)))
    options: dict[str, Any] = {"criterion": F.cross_entropy, "every": 2, "mode": "train", "on_error": "raise"}
    run = watch(model, optimizers, data=data, probes=[Asking()], **options)
    steps = [torch.compile(o.step, backend="eager") if compiled else o.step for o in optimizers]
    losses = []
    with run if watched else contextlib.nullcontext():
        for t in range(12):
            batches = [(torch.randn(4, 6), torch.randint(CLASSES, (4,))) for _ in range(accumulate)]
            for p in model[0].parameters():
                p.requires_grad_(not 5 <= t < 8)

            def closure(batches: Any = batches) -> Tensor:
                for o in optimizers:
                    o.zero_grad()
                total = torch.zeros(())
                for x, y in batches:
                    loss = F.cross_entropy(model(x), y) / accumulate
                    loss.backward()
                    total += loss.detach()
                losses.append(total.item())
                return total

            with contextlib.suppress(ZeroDivisionError):
                if drop and t in (1, 2, 6):
                    raise ZeroDivisionError
                if isinstance(optimizers[0], torch.optim.LBFGS):
                    optimizers[0].step(closure)  # type: ignore[arg-type]
                else:
                    closure()
                    for step in steps:
                        step()
                for scheduler in schedulers:
                    scheduler.step()
    return outcome([model], optimizers, losses), len(run.run.select("midpoint")) if watched else 0


@pytest.mark.parametrize(("make", "compiled"), [(lbfgs, False), (two, False), (fused, False), (two, True)])
@pytest.mark.parametrize(("accumulate", "drop"), [(1, False), (3, True)])
def test_unusual_loops_are_the_same_to_the_bit(make: Any, compiled: bool, accumulate: int, drop: bool) -> None:
    options: dict[str, Any] = {"accumulate": accumulate, "drop": drop, "compiled": compiled}
    plain, _ = play(make, watched=False, **options)
    seen, midpoints = play(make, watched=True, **options)
    assert seen.differences(plain) == []
    assert midpoints >= 2
