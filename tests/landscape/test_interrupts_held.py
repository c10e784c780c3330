"""Ctrl-C at any moment of an evaluation: the model is put back to the bit, and what was computed is kept."""

import itertools
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.landscape import Objective
from losscope.landscape.interrupts import interrupts_held
from losscope.landscape.surface import Evaluator


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def interrupted(times: int, reached: list[str], *, within: bool = False) -> None:
    with interrupts_held():
        for _ in range(times):
            if within:
                with interrupts_held():
                    interrupt()
            else:
                interrupt()
        reached.append("end")


@pytest.mark.parametrize("within", [False, True])
def test_waits_for_the_end(within: bool) -> None:
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(1, reached, within=within)
    assert reached == ["end"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("within", [False, True])
def test_a_second_one_does_not_wait(within: bool) -> None:
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(2, reached, within=within)
    assert not reached and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_handler_of_the_loop_is_called_once() -> None:
    called: list[Any] = []
    signal.signal(signal.SIGINT, lambda *arguments: called.append(arguments))
    with interrupts_held():
        interrupt()
        assert not called
    assert len(called) == 1 and called[0][0] == signal.SIGINT


def test_errors_pass_and_the_handler_is_back() -> None:
    with pytest.raises(ValueError), interrupts_held():
        raise ValueError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ignored_signals_stay_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts_held():
        interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_in_another_thread_nothing_is_done() -> None:
    seen: list[Any] = []

    def work() -> None:
        with interrupts_held():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def setup(criterion: Any = F.mse_loss) -> tuple[Objective, list[Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.1))
    objective = Objective(model, (torch.randn(5, 2), torch.randn(5, 2)), criterion=criterion)
    return objective, [torch.randn(objective.space.size)]


def state(model: nn.Module) -> list[Any]:
    tensors = [*model.parameters(), *model.buffers()]
    return [
        *((id(t), t._version, t.tolist(), t.requires_grad) for t in tensors),
        *((m.training, id(m._buffers), id(m._forward_hooks)) for m in model.modules()),
        torch.is_grad_enabled(),
        torch.get_rng_state().tolist(),
    ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one within a __del__
@pytest.mark.parametrize("statistics", ["kept", "recomputed"])
def test_at_any_moment_of_an_evaluation_the_model_is_put_back(statistics: str) -> None:
    """A signal after the n-th call or return of a Python function, for n from the first to the last."""
    objective, axes = setup()
    evaluator = Evaluator(objective, None, axes, statistics=statistics, engine="one by one")
    points = torch.tensor([[0.5], [1.0]])
    evaluator(points)
    before, events, moment = state(objective.model), 0, -1

    def count(*_: Any) -> None:
        nonlocal events
        events += 1
        if events == moment:
            interrupt()

    def watched() -> None:
        sys.setprofile(count)
        try:
            evaluator(points)
        finally:
            sys.setprofile(None)

    watched()
    every = events // 150
    interrupted = 0
    for chosen in range(1, events, every):
        events, moment = 0, chosen
        try:
            watched()
        except KeyboardInterrupt:
            interrupted += 1
        assert state(objective.model) == before, f"after event {chosen}"
    assert interrupted > 140


def test_what_was_computed_is_kept(tmp_path: Path) -> None:
    calls = itertools.count()

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        if next(calls) == 20:
            interrupt()
        return F.mse_loss(outputs, targets)

    objective, axes = setup(criterion)
    evaluator = Evaluator(objective, None, axes, engine="one by one", store=tmp_path / "points")
    with pytest.raises(KeyboardInterrupt):
        evaluator(torch.linspace(1, 2, 5000)[:, None])
    kept = len((tmp_path / "points").read_text().splitlines()) - 1
    assert 0 < kept == evaluator.evaluations < 5000
