"""The loop of nanoGPT's train.py (github.com/karpathy/nanoGPT), written anew: watched and unwatched to the same bit.

Its shape: accumulation over micro-batches with the loss divided by their number, autocast, a GradScaler that the dtype
enables, clipping of the unscaled gradient, a compiled model, perhaps wrapped in DDP with its gradients exchanged in the
last micro-step only, the next ``X, Y`` fetched before the backward pass of the present ones, a rate written into the
parameter groups, an evaluation and a checkpoint now and then.
"""

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from losscope.probes import Sharpness, Spectrum, Stability, Trace, Watch, watch
from probe_cases import checksum, checksum_of, outcome, records, seed_everything
from small_gpt import SmallGPT

BLOCK, BATCH, VOCABULARY = 12, 4, 32
ITERATIONS, WARM_UP, ACCUMULATION, RATE, SMALLEST_RATE, CLIP = 7, 3, 2, 5e-3, 5e-4, 1.0
EVALUATION_INTERVAL, EVALUATION_BATCHES, EVERY = 3, 2, 2


@dataclass(frozen=True)
class Settings:
    """What a user of nanoGPT sets on its command line."""

    dtype: str = "float32"
    compiled: bool = False
    ddp: bool = False
    fused: bool = False

    def __str__(self) -> str:
        return " ".join([self.dtype] + [name for name in ("compiled", "ddp", "fused") if getattr(self, name)])


def rate_at(iteration: int) -> float:
    """Linear warm-up, then half a cosine."""
    if iteration < WARM_UP:
        return RATE * (iteration + 1) / (WARM_UP + 1)
    share = (iteration - WARM_UP) / (ITERATIONS - WARM_UP)
    return SMALLEST_RATE + 0.5 * (1.0 + math.cos(math.pi * share)) * (RATE - SMALLEST_RATE)


class Training:
    """Everything that the script holds in global variables."""

    def __init__(self, settings: Settings) -> None:
        seed_everything(1337)
        self.settings = settings
        self.text = np.random.default_rng(0).integers(VOCABULARY, size=600).astype(np.uint16)
        self.raw_model = SmallGPT(VOCABULARY, BLOCK)
        self.scaler = torch.amp.GradScaler("cpu", enabled=settings.dtype == "float16", init_scale=2.0**21)
        self.optimizer = self.raw_model.configure_optimizer(RATE, fused=settings.fused)
        model: Any = self.raw_model
        if settings.compiled:
            torch._dynamo.reset()
            model = torch.compile(model, backend="aot_eager")
        self.compiled_model = model
        self.model = DistributedDataParallel(model) if settings.ddp else model
        self.losses: list[Any] = []
        self.noted: list[tuple[int, float | None, float]] = []
        self.checkpoint: dict[str, Any] = {}

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.settings.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast("cpu", dtype=getattr(torch, self.settings.dtype))

    def get_batch(self) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(self.text) - BLOCK, (BATCH,)).tolist()
        x = torch.stack([torch.from_numpy(self.text[i : i + BLOCK].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(self.text[i + 1 : i + 1 + BLOCK].astype(np.int64)) for i in starts])
        return x, y

    @torch.no_grad()
    def estimate_loss(self) -> float:
        self.model.eval()
        losses = torch.zeros(EVALUATION_BATCHES)
        for k in range(EVALUATION_BATCHES):
            with self.autocast():
                losses[k] = self.model(*self.get_batch())[1].item()
        self.model.train()
        return losses.mean().item()

    def run(self, run: Any) -> None:
        X, Y = self.get_batch()
        for iteration in range(ITERATIONS):
            for group in self.optimizer.param_groups:
                group["lr"] = rate_at(iteration)
            if iteration % EVALUATION_INTERVAL == 0:
                self.losses.append(self.estimate_loss())
                self.checkpoint = copy.deepcopy(
                    {"model": self.raw_model.state_dict(), "optimizer": self.optimizer.state_dict()}
                )
            for micro_step in range(ACCUMULATION):
                if self.settings.ddp:
                    self.model.require_backward_grad_sync = micro_step == ACCUMULATION - 1
                with self.autocast():
                    _, loss = self.model(X, Y)
                    loss = loss / ACCUMULATION
                X, Y = self.get_batch()
                self.scaler.scale(loss).backward()
            if CLIP:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            before, scale = checksum_of(self.raw_model), self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.scaler.get_scale() >= scale:  # else the update was skipped
                self.noted.append((len(self.noted), rate_at(iteration), before))
            self.optimizer.zero_grad(set_to_none=True)
            self.losses.append(loss.item() * ACCUMULATION)
            run(self.losses[-1])

    def outcome(self) -> Any:
        kept = [self.checkpoint, self.scaler.state_dict(), *self.losses]
        return outcome([self.raw_model], [self.optimizer], kept)


def watched(training: Training) -> Watch:
    """On two fixed batches, through whatever the loop calls."""
    with torch.random.fork_rng():
        data = [training.get_batch() for _ in range(2)]
    probes = [Sharpness(), Spectrum(2, 4), Trace(rtol=0.5), Stability(rtol=0.5), checksum]
    return watch(
        training.compiled_model, training.optimizer, data=data, loss_fn=lambda model, batch: model(*batch)[1],
        weight=lambda batch: batch[1].numel(), mode="train", every=EVERY, probes=probes, scaler=training.scaler,
        batch_size=ACCUMULATION * BATCH, on_error="raise",
    )  # fmt: skip


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings("bfloat16", compiled=True, ddp=True),
        Settings("float16"),
        Settings("float16", fused=True),
        Settings("float16", compiled=True),
    ],
    ids=str,
)
def test_the_same_to_the_bit_with_every_record(settings: Settings) -> None:
    plain = Training(settings)
    plain.run(lambda loss: None)

    training = Training(settings)
    with watched(training) as run:
        training.run(lambda loss: run.log(loss=loss))

    assert training.outcome().differences(plain.outcome()) == []
    assert training.noted == plain.noted
    skipped = ITERATIONS - len(training.noted)
    assert (skipped > 0) == (settings.dtype == "float16") and len(training.noted) >= 3
    assert run.steps == len(training.noted)
    assert run.run.meta["players"]["model"].get("skipped_updates") == (skipped or None)

    due = [noted for noted in training.noted if noted[0] % EVERY == 0]
    assert records(run) == due
    for probe in ("sharpness", "spectrum", "trace", "stability"):
        assert [(r.step, r.lr) for r in run.run.select(probe)] == [(t, rate) for t, rate, _ in due], probe
    assert {r.status for r in run.run.records} == {"ok"}
    assert [r.step for r in run.run.select("log")] == list(range(len(training.noted)))  # after a skip, the last again
