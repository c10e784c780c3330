"""An interrupt at any moment of a measurement leaves a model as it was."""

import os
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import checkpoint as checkpointing

from losscope.landscape import Objective, isolation
from losscope.landscape.interrupts import PostponedSignals
from probe_cases import everything


class InterruptedAt:
    """Presses Ctrl-C at the n-th line that these files execute."""

    def __init__(self, line: int, files: tuple[str, ...]) -> None:
        self.left, self.files = line, files

    def __enter__(self) -> None:
        sys.settrace(self.called)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def called(self, frame: FrameType, event: str, _: Any) -> Any:
        return self.stepped if frame.f_code.co_filename in self.files else None

    def stepped(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
        return self.stepped


def model() -> nn.Module:
    torch.manual_seed(1)
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 2))
    made.register_forward_hook(lambda m, i, o: o)
    F.cross_entropy(made(torch.randn(5, 3)), torch.zeros(5, dtype=torch.long)).backward()
    return made


def test_at_any_line_of_the_isolation() -> None:
    measured, data = model(), (torch.randn(5, 3), torch.zeros(5, dtype=torch.long))
    objective = Objective(measured, data, criterion=F.cross_entropy, mode="train")
    at = {p: torch.zeros_like(p) for p in measured.parameters()}
    before, files = everything(measured), (isolation.__file__,)
    interrupted, line, finished = 0, 0, False
    while not finished:
        line += 1
        counted = InterruptedAt(line, files)
        try:
            with counted, objective.isolated(at):
                objective.batch_loss(0)
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            sys.settrace(None)
        finished = counted.left > 0
        assert everything(measured) == before, line
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert checkpointing.CheckpointFunction.__module__ == checkpointing.__name__
    assert interrupted == line - 1 > 300


def test_without_it_some_lines_leave_a_model_in_pieces() -> None:
    """The test above can fail; in a process of its own, which it leaves in pieces too."""
    code = (
        "import runpy; from losscope.landscape.interrupts import PostponedSignals\n"
        "PostponedSignals.begin = lambda self: None\n"
        f"runpy.run_path({__file__!r})['test_at_any_line_of_the_isolation']()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "AssertionError" in done.stderr


def test_handlers_run_in_order_after_it_and_are_given_back() -> None:
    heard: list[Any] = []

    def handler(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    earlier = signal.signal(signal.SIGTERM, handler)
    try:
        with PostponedSignals() as signals:
            signal.raise_signal(signal.SIGTERM)
            signals.begin()
            signal.raise_signal(signal.SIGTERM)
            heard.append("inside")
        assert heard == [signal.SIGTERM, "inside", signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, earlier)


def test_other_threads_leave_signals_alone() -> None:
    def run() -> None:
        with PostponedSignals() as signals:
            signals.begin()
            seen.append(signal.getsignal(signal.SIGINT))

    seen: list[Any] = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
