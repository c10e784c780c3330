"""The smoke job: what a user of the installed wheel does, with the run-time dependencies and nothing else.

Run by an interpreter that has the wheel, from a folder that is not the checkout:

    python -I smoke.py
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from losscope.probes import Run, watch


def train(out: Path) -> None:
    """Train a small classifier on synthetic data under ``watch``."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 8)
    targets = (inputs @ torch.randn(8, 3)).argmax(dim=1)
    train_loader = DataLoader(TensorDataset(inputs, targets), batch_size=32, shuffle=True)
    probe_loader = DataLoader(TensorDataset(inputs[:128], targets[:128]), batch_size=64)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    with watch(
        model, optimizer, data=probe_loader, criterion=nn.CrossEntropyLoss(), every=10, out=out, batch_size=32
    ) as run:
        for _ in range(8):
            for x, y in train_loader:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                run.log(loss=loss)


def losscope(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command and show what it printed."""
    command = [str(Path(sys.executable).parent / "losscope"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    print(f"$ losscope {' '.join(arguments)}  -> {done.returncode}\n{done.stdout}{done.stderr}", flush=True)
    return done


def main() -> None:
    """Train, report, audit; check what was imported and from where."""
    for absent in ("sklearn", "pandas", "pytest"):
        assert importlib.util.find_spec(absent) is None, f"{absent} is here, so this is not the run-time environment"
    for name in ("landscape", "probes", "viz"):
        module = importlib.import_module(f"losscope.{name}")
        assert "site-packages" in str(module.__file__), f"losscope.{name} comes from {module.__file__}"

    out = Path("runs") / "smoke"
    train(out)
    run = Run(out)
    print(run)
    assert (out / "meta.json").is_file()
    assert len((out / "records.jsonl").read_text().splitlines()) > 5

    assert losscope("--help").returncode == 0
    assert losscope("report", str(out)).returncode == 0
    pages = list(out.rglob("*.html"))
    assert len(pages) == 1, pages
    assert "<html" in pages[0].read_text(encoding="utf-8").lower()
    assert losscope("audit", str(out)).returncode in (0, 1)
    assert losscope("audit", "no-such-run").returncode == 2

    bare = {"landscape", "probes", "viz"} & set(sys.modules)
    assert not bare, f"imported under a bare name: {bare}"
    print("smoke: ok")


if __name__ == "__main__":
    main()
