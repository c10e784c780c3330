"""Measure on the host and on the device of `second_device`; says, as JSON, what differs and what was copied.

python on_second_device.py BUILD
"""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import second_device
from losscope.landscape import Hessian, Objective, line, top_eigenpairs
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
)  # fmt: skip
from measurements import MEASURED, block, numbers

CE = nn.CrossEntropyLoss()


class Net(nn.Module):
    """Convolution, normalisation, dropout and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv1d(1, 3, 3, padding=1), nn.BatchNorm1d(3), nn.Dropout(0.2)
        self.hidden, self.head = nn.Linear(24, 5), nn.Linear(5, 3)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.norm(self.conv(x[:, None])).tanh()).flatten(1)
        return self.head(self.hidden(h).tanh() * self.scale)


def made(device: str) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model, y = Net(), torch.arange(45) % 3
    x = torch.randn(45, 8) + 2 * nn.functional.one_hot(y, 8)
    return model.to(device), [(x[a:b].to(device), y[a:b].to(device)) for a, b in ((0, 25), (25, 45))]


def objective(device: str, **options: Any) -> Objective:
    model, data = made(device)
    return Objective(model.eval(), data, criterion=CE, **options)


HERE: dict[str, Callable[[Objective], Any]] = {
    "a line along the filters": lambda o: line(o, points=5).values["loss"],
    "a line, by batch statistics": lambda o: line(o, points=3, statistics="recomputed").values["loss"],
}
"""Beside those of all tests."""


def trained(device: str) -> dict[str, float]:
    """What every probe records of a training, at its first measurement, before rounding has driven trainings apart."""
    model, batches = made(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    probes = [
        Stability(level="full"), Sharpness(2), Trace(), Spectrum(2, 8), LayerTraces(), TangentKernel(samples=8),
        NeuralCollapse(), GradientNoise(), Trajectory(dimension=16),
    ]  # fmt: skip
    with watch(
        model, optimizer, data=batches, criterion=CE, probes=probes, every=3, batch_size=20, on_error="raise", seed=0
    ) as live:
        for step in range(7):
            x, y = batches[step % 2]
            optimizer.zero_grad()
            CE(model(x), y).backward()
            optimizer.step()
    assert {r.status for r in live.run.records} == {"ok"}
    return {r.probe: r.value for r in live.run.records if r.step == 0 and r.value is not None}


def apart(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative difference of two results' numbers."""
    assert [t.shape for t in found] == [t.shape for t in expected]
    gaps = [0.0]
    for one, other in zip(found, expected, strict=True):
        finite = one.isfinite() & other.isfinite()
        assert torch.equal(one.isnan(), other.isnan())
        size = float(other[finite].norm()) if bool(finite.any()) else 0.0
        gaps.append(float((one - other)[finite].norm()) / max(size, 1e-5))
    return max(gaps)


def main(build: Path) -> None:
    counting = second_device.begin(build)
    warnings.simplefilter("ignore")
    report: dict[str, Any] = {"apart": {}}
    for name, measure in (MEASURED | HERE).items():
        expected = numbers(measure(objective("cpu")))
        report["apart"][name] = apart(numbers(measure(objective("second"))), expected)
        assert expected, name
    one, other = trained("second"), trained("cpu")
    assert one.keys() == other.keys()
    report["apart"] |= {f"watched: {name}": apart(numbers(one[name]), numbers(other[name])) for name in one}
    for steps in (10, 40):
        o = objective("second")
        H = Hessian(o, kernel="retained")
        with o.isolated():
            H @ block(o)
            counting.reset()
            top_eigenpairs(H, 1, tol=4e-6, max_matvecs=steps, seed=0)
            report[f"copies of {steps} steps"] = sum(counting.counts().values())
    report["refused"] = refused()
    print(json.dumps(report))


def refused() -> list[str]:
    """That the device is as strict as it is meant to be."""
    found, x = [], torch.ones(2, device="second")
    for wrong in (lambda: x + torch.ones(2), lambda: torch.randn(2, generator=torch.Generator(), device="second")):
        try:
            wrong()
        except RuntimeError as error:
            found.append(str(error))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
