"""What a watch holds: memory does not grow with measurements, and nothing is kept alive after it closes."""

import contextlib
import gc
import os
import statistics
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from losscope.probes import (
    GradientNoise,
    NeuralCollapse,
    Sharpness,
    Spectrum,
    Stability,
    TangentKernel,
    Trace,
    Trajectory,
    Watch,
    watch,
)

BATCH = 50


def training(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer, tuple[Tensor, Tensor], Watch]:
    """A small network on digits."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images[:200] / 8 - 1, dtype=torch.float32), torch.tensor(labels[:200])
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run = watch(model, optimizer, data=(x, y), criterion=F.cross_entropy, batch_size=BATCH, **options)
    return model, optimizer, (x, y), run


def update(model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor], t: int) -> Tensor:
    chosen = (torch.arange(BATCH) + t * BATCH) % len(data[0])
    optimizer.zero_grad()
    loss = F.cross_entropy(model(data[0][chosen]), data[1][chosen])
    loss.backward()
    optimizer.step()
    return loss


def resident() -> int:
    """Bytes in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's account of memory")
def test_four_hundred_measurements_take_no_more_memory_than_fifty(tmp_path: Path) -> None:
    """What piles up at 12 kB a measurement would show in the median, a per cent of some 400 MB."""
    model, optimizer, data, run = training(every=1, out=tmp_path / "run")
    sizes = []
    with run:
        for t in range(400):
            run.log(loss=update(model, optimizer, data, t))
            sizes.append(resident())
    assert len(run.run.select("sharpness")) == len(run.run.select("stability")) == 400
    assert statistics.median(sizes[-50:]) < 1.01 * sizes[49]
    assert max(sizes[50:]) < 1.03 * sizes[49]  # the allocator hands temporaries back when it likes


def test_tensors_and_objects_do_not_pile_up(tmp_path: Path) -> None:
    """What a process as small as this one would not show: after a hundred measurements as many as after fifty."""
    model, optimizer, data, run = training(every=1, out=tmp_path / "run", probes=[Sharpness(), Trace(), Stability()])
    counts = {}
    with run:
        for t in range(100):
            run.log(loss=update(model, optimizer, data, t))
            if t in (49, 99):
                gc.collect()
                everything = gc.get_objects()
                counts[t] = sum(issubclass(type(o), Tensor) for o in everything), len(everything)
                del everything
    assert counts[99][0] <= counts[49][0] + 4
    assert counts[99][1] < 1.002 * counts[49][1]


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("failing", [False, True])
def test_nothing_is_kept_alive_after_it_closes(folder: bool, failing: bool, tmp_path: Path) -> None:
    """Model, optimizer, batches, loss and objective go as soon as the loop has let go of them; the run may be kept."""

    def fails(snapshot: Any) -> dict[str, float]:
        snapshot.eigenpairs()
        raise RuntimeError("on purpose")

    probes: list[Any] = [
        Sharpness(2), Trace(), Stability(), Spectrum(2, 4), TangentKernel(samples=8), Trajectory(dimension=16),
        NeuralCollapse(), GradientNoise(),
    ]  # fmt: skip
    criterion = nn.CrossEntropyLoss()
    objective: list[Any] = []

    def seen(snapshot: Any) -> dict[str, float]:
        objective[:] = [weakref.ref(snapshot.objective), weakref.ref(snapshot)]
        return {"value": snapshot.loss}

    options: dict[str, Any] = {"probes": [*probes, seen, *([fails] if failing else [])], "every": 2}
    model, optimizer, data, run = training(out=tmp_path / "run" if folder else None, **options)
    losses = []
    with pytest.warns(RuntimeWarning) if failing else contextlib.nullcontext(), run:
        for t in range(5):
            losses.append(weakref.ref(update(model, optimizer, data, t)))
        state = run.state_dict()
    kept = {"model": model, "weight": model[0].weight, "optimizer": optimizer, "images": data[0], "labels": data[1]}
    held = {name: weakref.ref(thing) for name, thing in kept.items()}
    held |= {"objective": objective[0], "snapshot": objective[1], "run": weakref.ref(run)} | {
        f"loss {t}": ref for t, ref in enumerate(losses)
    }
    records = run.run.records
    del model, optimizer, data, run, kept, criterion, probes, options
    gc.collect()
    assert [name for name, ref in held.items() if ref() is not None] == []
    assert len(records) >= 3 * 9 and state
