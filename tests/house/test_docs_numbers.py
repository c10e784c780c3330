"""Every number that a probe records is explained in docs/numbers.md."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from losscope.probes import (
    GradientNoise,
    LayerTraces,
    NeuralCollapse,
    Sharpness,
    Spectrum,
    Stability,
    TangentKernel,
    Trace,
    Trajectory,
    watch,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "numbers.md"
NAMED = set(re.findall(r"[A-Za-z][\w]*", " ".join(re.findall(r"`([^`\n]+)`", PAGE.read_text(encoding="utf-8")))))
RANKED = re.compile(r"(lambda|quantile|norm)_\d+")  # of which the page names one


def recorded(optimizer: type[torch.optim.Optimizer]) -> set[str]:
    """The names of a short run with every probe, without the ends of intervals and the layers."""
    torch.manual_seed(0)
    x, y = torch.randn(120, 6), torch.randint(3, (120,))
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    criterion, stepping = nn.CrossEntropyLoss(), optimizer(model.parameters(), lr=0.05)
    probes = [
        Sharpness(k=2), Trace(), Stability(), Spectrum(vectors=2, steps=8), GradientNoise(clip=1.0), NeuralCollapse(),
        TangentKernel(samples=16), Trajectory(), LayerTraces(vectors=4, rank=2),
    ]  # fmt: skip
    with watch(model, stepping, data=(x, y), criterion=criterion, every=4, batch_size=20, probes=probes) as run:
        for rows in torch.randperm(120).view(-1, 20).repeat(2, 1):
            stepping.zero_grad()
            criterion(model(x[rows]), y[rows]).backward()
            stepping.step()
    assert {record.status for record in run.run.records} == {"ok"}
    names = {name.split("/")[-1] for record in run.run.records for name in record.values}
    return {re.sub(r"_(low|high)$", "", name) for name in names}


@pytest.mark.filterwarnings("ignore:losscope")
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_numbers_of_the_records_are_explained(optimizer: type[torch.optim.Optimizer]) -> None:
    found = recorded(optimizer)
    assert len(found) > 80
    assert sorted(name for name in found - NAMED if not RANKED.fullmatch(name)) == []
