"""kill -9 at random moments: what was recorded stays readable, and resuming appends."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from losscope.probes import Record, Run

MOMENTS = 20

# A server that has imported torch once and forks a training for every line "resume" it reads.
TRAINING = """
import os, sys
import torch
from torch import nn
from losscope.probes import Sharpness, watch

torch.set_num_threads(1)
out = sys.argv[1]


def train():
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(8, 3), torch.zeros(8, 1)
    probes = [Sharpness(), lambda snapshot: {"value": snapshot.loss, "gradient": snapshot.gradient}]
    probes[1].__name__ = "gradient"
    loss_of = nn.MSELoss()
    with watch(model, optimizer, data=(x, y), criterion=loss_of, every=2, out=out, probes=probes, resume=True) as run:
        while True:
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            for k in range(3):
                run.log(loss=loss, step=run.steps - 1, **{f"extra_{k}": k})


torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)  # imports the larger half of torch, once for all
print("ready", flush=True)
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        train()
    print(child, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_twenty_random_moments_and_resumed(tmp_path):
    out, moments = tmp_path / "run", random.Random(0)
    path = out / "records.jsonl"
    server = subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    before, last, complete = b"", -1, 0
    torn: set[int] = set()  # numbers of the lines that a kill cut short; the next run closes them
    try:
        assert server.stdout.readline() == "ready\n"
        for moment in range(MOMENTS):
            server.stdin.write("train\n")
            server.stdin.flush()
            child = int(server.stdout.readline())
            wait_until(path, len(before) + 3000)
            time.sleep(moments.uniform(0, 0.2))
            os.kill(child, signal.SIGKILL)
            assert server.stdout.readline() == "gone\n"

            now = path.read_bytes()
            assert now.startswith(before)  # nothing that was there is ever rewritten
            *lines, rest = now.split(b"\n")
            records = [Record.from_json(line) for i, line in enumerate(lines) if i not in torn]
            json.loads((out / "meta.json").read_text())
            run = Run(out)
            assert run.status == "running"
            assert run.malformed == len(torn)
            assert len(records) > complete
            # Resumed where the last one was cut off: each kill may cost the log of one step, no measurement is missing.
            steps = [r.step for r in run.select("log")]
            assert len(set(range(steps[-1])) - set(steps)) <= moment
            assert steps[-1] > last
            measured = [r.step for r in run.select("sharpness")]
            assert measured == list(range(0, measured[-1] + 1, 2))
            assert all(run.array(r, "gradient").shape == (4,) for r in run.select("gradient"))
            if rest:
                torn.add(len(lines))
            before, last, complete = now, steps[-1], len(records)
    finally:
        server.stdin.close()
        server.terminate()
        server.wait()
    assert Run(out).meta["first_step"] > 0
    assert complete > 20 * MOMENTS  # several thousand


def wait_until(path: Path, size: int, seconds: float = 60.0) -> None:
    """Return when the file has more bytes than that."""
    end = time.monotonic() + seconds
    while not path.exists() or path.stat().st_size <= size:
        assert time.monotonic() < end, "the training wrote nothing"
        time.sleep(0.002)
