"""Weights that move while nobody says so are told of; parameters that cannot be measured for a while are recorded."""

import contextlib
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from losscope.probes import Sharpness, Stability, Watch, watch

X, Y = torch.randn(8, 3), torch.randint(2, (8,))
CRITERION = nn.CrossEntropyLoss()


def watched(model: nn.Module, optimizer: torch.optim.Optimizer, **options) -> Watch:
    return watch(model, optimizer, data=(X, Y), criterion=CRITERION, every=2, probes=[Sharpness()], **options)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, updates: int) -> None:
    for _ in range(updates):
        optimizer.zero_grad()
        CRITERION(model(X), Y).backward()
        optimizer.step()


def told(loop: Callable[[], object]) -> list[str]:
    """What is warned about, but for the mode."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop()
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("drive", "likely"), [("hooks", "another optimizer than"), ("manual", "run.step() was not called")]
)
def test_a_training_of_which_no_update_is_seen_says_so(drive: str, likely: str):
    model = nn.Linear(3, 2)

    def loop() -> None:
        with watched(model, sgd(model), drive=drive):
            train(model, sgd(model), 3)

    [message] = told(loop)
    assert f"written on 3 times after the run began, and no update was seen: {likely}" in message


def test_an_optimizer_that_is_made_anew_is_told_of():
    model = nn.Linear(3, 2)
    first = sgd(model)

    def loop() -> None:
        with watched(model, first):
            train(model, first, 4)
            train(model, sgd(model), 12)

    [message] = told(loop)
    assert "written on 12 times after the last of 4 updates was seen" in message


def clipping(model: nn.Module, best: dict[str, torch.Tensor]) -> None:
    """It clips its weights, and loads the best at its end."""
    optimizer = sgd(model)
    with watched(model, optimizer):
        for _ in range(15):
            train(model, optimizer, 1)
            with torch.no_grad():
                model.weight.clamp_(-1, 1)
        model.load_state_dict(best)


def checkpoints(model: nn.Module, best: dict[str, torch.Tensor]) -> None:
    with watched(model, sgd(model), drive="manual") as run:
        for _ in range(12):
            model.load_state_dict(best)
            run.measure_now()


def by_hand(model: nn.Module, best: dict[str, torch.Tensor]) -> None:
    optimizer = sgd(model)
    with watched(model, optimizer, drive="manual") as run:
        for _ in range(12):
            train(model, optimizer, 1)
            run.step()


def failing(model: nn.Module, best: dict[str, torch.Tensor]) -> None:
    """It has said what was wrong by its exception."""
    with contextlib.suppress(KeyError), watched(model, sgd(model)):
        train(model, sgd(model), 3)
        raise KeyError


@pytest.mark.parametrize("loop", [clipping, checkpoints, by_hand, failing])
def test_what_a_loop_does_with_its_weights_in_passing_is_not_told_of(loop: Callable[..., None]):
    assert told(lambda: loop(nn.Linear(3, 2), nn.Linear(3, 2).state_dict())) == []


def test_steps_at_which_nothing_trains_are_recorded_with_the_reason():
    model = nn.Linear(3, 2)
    optimizer = sgd(model)
    run = watched(model, optimizer)

    def loop() -> None:
        with run:
            train(model, optimizer, 1)
            model.requires_grad_(False)
            for _ in range(3):
                optimizer.step()
            model.requires_grad_(True)
            train(model, optimizer, 2)

    [message] = told(loop)
    assert "no parameter that requires gradients; the model has 2: weight, bias" in message
    assert [(r.step, r.status) for r in run.run.select("sharpness", ok=False)] == [(0, "ok"), (2, "error"), (4, "ok")]


@pytest.mark.parametrize("seen", [0, 8])
def test_the_audit_says_nothing_of_updates_that_were_not_seen(seen: int):
    model = nn.Linear(3, 2)
    first = sgd(model)
    options = {"every": 2, "probes": [Stability(level="sharpness")], "batch_size": 8}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with watch(model, first, data=(X, Y), criterion=CRITERION, **options) as run:
            train(model, first, seen)
            before = run.run.audit()["sharpness"]
            train(model, torch.optim.SGD(model.parameters(), lr=100.0), 12)
    line = run.run.audit()["sharpness"]
    words = f"written on 12 times after {f'the last of {seen} updates was seen' if seen else 'the run began'}"
    assert words in line.reason
    assert (before.verdict, line.verdict) == (
        ("BELOW_EDGE", "INCONCLUSIVE") if seen else ("NOT_APPLICABLE", "NOT_APPLICABLE")
    )
