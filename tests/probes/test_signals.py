"""Signals at random moments: the process ends as it does unwatched, at the same weights, and the run can be read.

Three times each; ``FAULTS=20`` is what docs/faults.md tells of.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from losscope.probes import Run

REPEATS = int(os.environ.get("FAULTS", "3"))

# A server that has imported torch once, and forks a training for every line that it reads.
SERVER = """
import contextlib, hashlib, json, os, signal, sys
import torch
import torch._dynamo  # hooks of optimizers need it: once for all
from torch import nn
from losscope.probes import watch

torch.set_num_threads(1)


def digest(model):
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


def train(watched, out, log, steps, handler):
    torch.manual_seed(0)
    if handler:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(17))
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 3)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = torch.randn(32, 6), torch.randint(3, (32,))
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    note = lambda: os.write(fd, (digest(model) + "\\n").encode())
    options = dict(data=(x, y), criterion=nn.functional.cross_entropy, every=1, batch_size=8, out=out, mode="train")
    context = watch(model, optimizer, **options) if watched else contextlib.nullcontext()
    try:
        with context:
            for _ in range(steps):
                chosen = torch.randperm(32)[:8]
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
                optimizer.step()
                note()
    finally:  # as a loop that saves its weights at the end does
        note()


print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = 1
        try:
            train(**json.loads(line))
            code = 0
        except SystemExit as error:
            code = error.code
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # as the interpreter does at its end
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """Trains when it is told to, in a process of its own each time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.said() == "ready"

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, **options: Any) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(options) + "\n")
        self.process.stdin.flush()
        return int(self.said())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.process.stdin.close()  # type: ignore[union-attr]
    started.process.wait()


@pytest.fixture(scope="module")
def reference(server: Server, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Weights after each update of a training that nobody watches or stops."""
    log = tmp_path_factory.mktemp("reference") / "log"
    server.start(watched=False, out="", log=str(log), steps=2000, handler=False)
    assert server.said() == "0"
    return log.read_text().split()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("number", "handler", "code"),
    [
        (signal.SIGKILL, False, -signal.SIGKILL), (signal.SIGTERM, False, -signal.SIGTERM), (signal.SIGTERM, True, 17),
        (signal.SIGINT, False, -signal.SIGINT),
    ],
    ids=["kill -9", "SIGTERM", "SIGTERM with a handler that exits", "Ctrl-C"],
)  # fmt: skip
def test_ends_as_unwatched(
    number: int, handler: bool, code: int, server: Server, reference: list[str], tmp_path: Path
) -> None:
    moments = random.Random(number)
    for repeat in range(REPEATS):
        delay = moments.uniform(0.02, 0.25)
        for watched in (False, True):
            out, log = tmp_path / f"run-{repeat}", tmp_path / f"log-{repeat}-{watched}"
            child = server.start(watched=watched, out=str(out), log=str(log), steps=10**9, handler=handler)
            wait_for(log, 2)
            time.sleep(delay)
            os.kill(child, number)
            assert int(server.said()) == code, (repeat, watched)
            *made, last = log.read_text().split()
            assert len(made) < len(reference) or not watched
            if watched and (handler or number == signal.SIGINT):  # the weights that the loop saved at its end
                assert made == reference[: len(made)]
                assert last in reference[len(made) - 1 : len(made) + 1]
            elif watched:
                assert [*made, last] == reference[: len(made) + 1]
        run = Run(out)
        assert run.malformed == 0 and run.status == ("failed" if handler or number == signal.SIGINT else "running")
        measured = [r.step for r in run.select("sharpness")]
        assert measured == list(range(len(measured))) and abs(len(measured) - len(made)) <= 2


def wait_for(log: Path, lines: int, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not log.exists() or log.read_text().count("\n") < lines:
        assert time.monotonic() < end, "the training made no update"
        time.sleep(0.002)
