"""Loops of accelerate are watched as they are: wrapped optimizers, prepared loaders, accumulation, skipped steps."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from digits_nets import digits
from losscope.probes import Run, Sharpness, Stability, Trace, watch
from losscope.viz import plot_sharpness, plot_stability

pytestmark = pytest.mark.filterwarnings("ignore:losscope. .* is measured in mode=")
BATCHES, UPDATES = 9, 5  # an epoch has an odd number of batches, and ends with a short one: two are accumulated


class Loop:
    """Two epochs on digits, with accumulation, clipping and a schedule; what became of it."""

    def __init__(self, *, precision: str = "no", scale: float | None = None, brightness: float = 1.0) -> None:
        AcceleratorState._reset_state(True)  # accelerate keeps one state for the process
        GradientState._reset_state()
        torch.manual_seed(0)
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision=precision)
        if scale is not None:  # which accelerate makes on a GPU
            self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        images, labels = digits(8 * BATCHES - 3)
        self.data = brightness * images.float(), labels
        model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        loader = DataLoader(TensorDataset(*self.data), batch_size=8, shuffle=True)
        held = DataLoader(TensorDataset(*(part[:20] for part in self.data)), batch_size=8)
        self.criterion = nn.CrossEntropyLoss()
        prepared = self.accelerator.prepare(
            model, optimizer, loader, held, torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.9)
        )
        self.model, self.optimizer, self.loader, self.held, self.schedule = prepared
        self.losses: list[Tensor] = []
        self.rows: list[Any] = []

    def run(self, context: Any) -> Any:
        with context as watched:
            for _ in range(2):
                for inputs, targets in self.loader:
                    with self.accelerator.accumulate(self.model):
                        loss = self.criterion(self.model(inputs), targets)
                        self.accelerator.backward(loss)
                        if self.accelerator.sync_gradients:
                            self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                        self.optimizer.step()
                        self.schedule.step()
                        self.optimizer.zero_grad()
                    gathered = self.accelerator.gather_for_metrics(targets)  # which drops what pads the last batch
                    state = self.accelerator.gradient_state
                    self.losses.append(loss.detach())
                    self.rows.append((len(gathered), state.sync_gradients, state.end_of_dataloader, state.remainder))
        return watched

    def outcome(self) -> list[Any]:
        state = [v for s in self.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
        tensors = [*self.model.state_dict().values(), *state, *self.losses, torch.get_rng_state()]
        return [self.rows, self.schedule.get_last_lr(), *(t.numpy().tobytes() for t in tensors)]


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("measured_on", ["tensors", "a prepared loader", "the training's own loader"])
def test_a_watched_loop_ends_with_the_same_bits(measured_on: str, precision: str, tmp_path: Path) -> None:
    plain = Loop(precision=precision)
    plain.run(contextlib.nullcontext())
    loop = Loop(precision=precision)
    data = {"tensors": loop.data, "a prepared loader": loop.held}.get(measured_on, loop.loader)
    run = loop.run(
        watch(
            loop.model, loop.optimizer, data=data, criterion=loop.criterion, every=2, mode="train", batch_size=16,
            probes=[Sharpness(), Trace(rtol=0.5)], out=tmp_path / "run",
        )
    )  # fmt: skip
    assert loop.outcome() == plain.outcome()
    assert run.steps == 2 * UPDATES and run.run.meta["players"]["model"]["optimizer"] == "SGD"
    for probe in ("sharpness", "trace"):
        assert [r.step for r in run.run.select(probe)] == list(range(0, 2 * UPDATES, 2))


def test_figures_are_made_from_a_run(tmp_path: Path) -> None:
    loop = Loop()
    loop.run(
        watch(
            loop.model, loop.optimizer, data=loop.data, criterion=loop.criterion, every=3, mode="train", batch_size=16,
            probes=[Sharpness(), Stability(rtol=0.5)], out=tmp_path / "run",
        )
    )  # fmt: skip
    run = Run(tmp_path / "run")
    assert len(run.select("sharpness")) == len(run.select("stability")) == 4
    drawn = [line for ax in np.ravel(plot_sharpness(run)) for line in ax.lines]
    assert any(list(line.get_xdata()) == [0, 3, 6, 9] for line in drawn)
    assert any(ax.lines for ax in np.ravel(plot_stability(run)))


def test_updates_that_the_scaler_skips_do_not_count() -> None:
    infinite: dict[str, float] = {"scale": 3e38, "brightness": 30.0}  # until the scale is low enough
    plain = Loop(**infinite)
    plain.run(contextlib.nullcontext())
    loop = Loop(**infinite)
    skipped: list[bool] = []
    step = loop.optimizer.step

    def counting() -> None:
        step()
        if loop.accelerator.sync_gradients:
            skipped.append(loop.optimizer.step_was_skipped)

    loop.optimizer.step = counting
    run = loop.run(
        watch(
            loop.model, loop.optimizer, data=loop.data, criterion=loop.criterion, every=1, probes=[Sharpness()],
            scaler=loop.accelerator.scaler,
        )
    )  # fmt: skip
    assert loop.outcome() == plain.outcome()
    assert len(skipped) == 2 * UPDATES and 0 < sum(skipped) < 2 * UPDATES
    assert [r.step for r in run.run.select("sharpness")] == list(range(skipped.count(False)))
    assert run.run.meta["players"]["model"]["skipped_updates"] == sum(skipped)
