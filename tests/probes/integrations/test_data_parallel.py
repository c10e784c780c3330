"""Callbacks of a data-parallel training: ranks measure together, each on its part, and rank 0 writes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from losscope.probes import Run
from losscope.probes.integrations.few_batches import few_batches

HERE = Path(__file__).resolve().parent

TRANSFORMERS = """
from test_transformers import Text, gpt2, outcome, trainer
from losscope.probes.integrations.transformers import WatchCallback

def train(name, *callbacks):
    done = trainer(Path(name), *callbacks, max_steps=5, save_strategy="steps", save_steps=3)
    done.train()
    return outcome(done)

callback = WatchCallback(**options)
"""

LIGHTNING = """
import torch
from test_lightning import Digits, fit, outcome, seeded
from losscope.probes.integrations.lightning import WatchCallback

def train(name, *callbacks):
    devices = {"strategy": "ddp", "devices": 2} if "RANK" in os.environ else {"devices": 1}
    return outcome(fit(Path(name), seeded(Digits), *callbacks, max_steps=5, **devices))

callback = WatchCallback(criterion=torch.nn.CrossEntropyLoss(), **options)
"""

SCRIPT = """
import os, sys
from pathlib import Path
from losscope.probes import Sharpness
sinks = [lambda record: print("sink of rank", os.environ.get("RANK"))]
options = {"every": 2, "out": "run", "probes": [Sharpness(tol=1e-4)], "sinks": sinks}
FRAMEWORK
alone = "RANK" not in os.environ
same = alone or train("a") == train("b", callback)
if alone:
    train("b", callback)
print(f"same bits: {same}\\n", end="", flush=True)  # in one piece: two ranks write to one pipe
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "framework", "batch"), [("transformers", TRANSFORMERS, 4), ("lightning", LIGHTNING, 32)]
)
def test_two_ranks_measure_what_one_does(package: str, framework: str, batch: int, tmp_path: Path) -> None:
    pytest.importorskip(package)
    pytest.importorskip("accelerate")
    paths = [str(HERE), str(HERE.parents[1] / "support"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    started: dict[int, Any] = {}
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        script = folder / "script.py"
        script.write_text(SCRIPT.replace("FRAMEWORK", framework))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if ranks == 2 else []
        started[ranks] = subprocess.Popen(
            [sys.executable, *launcher, str(script)], cwd=folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    told = {}
    for ranks, process in started.items():
        told[ranks], errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert told[ranks].count("same bits: True") == ranks
    runs = {ranks: Run(tmp_path / str(ranks) / "run") for ranks in (1, 2)}
    assert "sink of rank 0" in told[2] and "sink of rank 1" not in told[2]
    for ranks, run in runs.items():
        assert run.status == "finished" and run.meta["players"]["model"]["batch_size"] == batch * ranks
        assert [r.step for r in run.select("sharpness")] == [0, 2, 4]
    one, two = (runs[ranks].select("sharpness")[0] for ranks in (1, 2))  # of the same weights and samples
    assert two.value == pytest.approx(one.value, rel=1e-5)


def test_ranks_share_the_samples_out() -> None:
    def samples(**which: int) -> list[int]:
        loader = DataLoader(TensorDataset(torch.arange(100)), batch_size=3, shuffle=True)
        return [int(i) for (batch,) in few_batches(loader, **which) for i in batch]

    whole = samples()
    assert whole == [i * 100 // 12 for i in range(12)]
    parts = [samples(rank=rank, ranks=5) for rank in range(5)]
    assert sorted(i for part in parts for i in part) == whole and all(parts)
    assert all(samples(rank=rank, ranks=16) for rank in range(16))
