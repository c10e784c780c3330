"""Made-up runs with the shapes that real ones take, for tests of what people look at."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from losscope.probes import Record, Run
from losscope.probes.folder import RunFolder

FACTS: dict[str, Any] = {
    "model": "Sequential", "parameters": 6310, "optimizer": "SGD", "samples": 1000, "batch_size": 1000, "outputs": 10,
    "loss_family": "squared", "mode": "eval", "mode_matters": False, "threshold_formula": "2/lr", "optimizers": 1,
    "covers_optimizer": True, "momentum": False, "summed": False,
}  # fmt: skip


def meta(**players: dict[str, Any]) -> dict[str, Any]:
    """The description of a run with these players; each takes what it does not say from FACTS."""
    return {
        "v": 1, "status": "finished", "reason": None, "created": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:05:06+00:00",
        "versions": {"losscope": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6", "python": "3.11.7"},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
        "identity": {"players": list(players)}, "probes": ["sharpness", "trace", "stability"],
        "players": {name: FACTS | facts for name, facts in players.items()},
        "cost": {"seconds_measuring": 7.5, "seconds_total": 30.0},
    }  # fmt: skip


def measured(
    step: int, sharpness: float, lr: float, *, player: str = "model", loss: float = 0.1, bounded: bool = False,
    trace: float | None = None, s_mu: float | None = None, largest: float | None = None,
    every: tuple[int, int] = (1, 1),
) -> Iterable[Record]:  # fmt: skip
    """The records of one step: sharpness, and stability where it is due."""
    threshold = 2 / lr
    high = sharpness * 1.08 if bounded else None
    common: dict[str, float | None] = {
        "threshold": threshold, "threshold_largest": largest or threshold, "loss": loss, "gradient_norm": 0.5
    }  # fmt: skip
    if step % every[0] == 0:
        yield Record(
            step, player, "sharpness", lr=lr, value=sharpness, low=sharpness * (1 - 1e-6), high=high, matvecs=2,
            seconds=0.01, unit="curvature", kernel="retained", values=common | {"residual": 0.01},
        )  # fmt: skip
    if step % every[1] == 0:
        values = common | {
            "sharpness": sharpness, "sharpness_low": sharpness * (1 - 1e-6), "sharpness_high": high,
            "two_over_lr": threshold,
        }  # fmt: skip
        for name, value in (("trace", trace), ("s_mu", s_mu)):
            if value is not None:
                values |= {name: value, f"{name}_low": value * 0.92, f"{name}_high": value * 1.08}
        yield Record(
            step, player, "stability", lr=lr, value=sharpness / threshold, low=sharpness / threshold,
            high=None if high is None else high / threshold, matvecs=1, seconds=0.02, values=values, unit="threshold",
        )  # fmt: skip
        yield Record(step, player, "oscillation", values={"flips": 6.0, "pairs": 6.0})


def hovering(steps: int = 3000, lr: float = 0.1, player: str = "model") -> list[Record]:
    """Full-batch gradient descent that climbs to 2/lr and hovers there."""
    rng, records = np.random.default_rng(0), []
    for t in range(0, steps, 10):
        climb = 4 + 16.1 * (1 - math.exp(-t / 130))
        value = climb + (0.15 * rng.standard_normal() if t > 500 else 0)
        records += measured(
            t, value, lr, player=player, loss=0.45 * math.exp(-t / 600), bounded=t % 200 == 0, trace=value * 2.6,
            every=(10, 50),
        )  # fmt: skip
    for t in range(steps):
        wobble = 0.02 * (-1) ** t if t > 400 else 0
        records.append(Record(t, player, "log", values={"loss": 0.45 * math.exp(-t / 600) * (1 + wobble)}))
    return records


LONG_NOTE = (
    "finite differences of the gradient, since torch cannot differentiate twice through FlashAttentionVarlenFunction, "
    "in layer transformer.encoder.layers.11.attention.self_attention.core_attention.flash_attention_implementation "
    "(FlashAttention): its backward is marked @once_differentiable; products within 5.1e-05 of the largest"
)
AMBIGUOUS_NOTE = (
    "ambiguous: double backward gives v'Hv = 1.0637, differences of the gradient give 1.06977 (products 0.036 apart): "
    "the loss stops a gradient, passes one straight through, or has a custom backward that is wrong or leaves its own "
    "derivative out"
)


def noting(records: Iterable[Record], note: str | None, kernel: str = "retained") -> list[Record]:
    """The same records, whose curvature products said something of themselves."""
    curvature = ("sharpness", "trace", "stability")
    return [dataclasses.replace(r, reason=note, kernel=kernel) if r.probe in curvature else r for r in records]


def minibatch(steps: int = 3000, lr: float = 0.1, player: str = "model") -> list[Record]:
    """Mini-batch SGD that stays below the threshold, with a noisy loss."""
    rng, records = np.random.default_rng(1), []
    for t in range(0, steps, 10):
        value = 4 + 7 * (1 - math.exp(-t / 300)) + 0.2 * rng.standard_normal()
        records += measured(
            t, value, lr, player=player, loss=0.4 * math.exp(-t / 700), bounded=t % 200 == 0, trace=value * 9,
            s_mu=5 + 2 * math.exp(-t / 500), every=(10, 50),
        )  # fmt: skip
    for t in range(steps):
        noise = math.exp(0.4 * rng.standard_normal())
        records.append(Record(t, player, "log", values={"loss": 0.4 * math.exp(-t / 700) * noise}))
    return records


def dropping() -> list[Record]:
    """A schedule that divides the rate by ten, twice."""
    records: list[Record] = []
    for t in range(0, 3000, 20):
        lr = 0.1 / 10 ** (t // 1000)
        value = 20 * (1 - math.exp(-t / 200)) + (t > 1000) * 0.02 * (t - 1000) + 1
        records += measured(t, value, lr, loss=1 / (1 + t), bounded=t % 200 == 0, trace=value * 3)
    return records


def diverging() -> list[Record]:
    """Blows up after step 300: growing sharpness, then nothing finite; one probe failed on the way."""
    records: list[Record] = []
    for t in range(0, 500, 10):
        if t == 100:
            records.append(Record(t, "model", "sharpness", status="error", reason="RuntimeError: out of memory"))
            records.append(Record(t, "model", "stability", status="error", reason="RuntimeError: out of memory"))
        elif t < 330:
            growth = 18 * math.exp(max(0, t - 250) / 30)
            records += measured(t, growth, 0.1, loss=0.3 * math.exp(max(0, t - 250) / 10), bounded=t % 50 == 0)
        else:
            for probe in ("sharpness", "stability"):
                records.append(
                    Record(t, "model", probe, status="nonfinite", reason="the loss is nan", value=math.nan, lr=0.1)
                )
    for t in range(500):
        loss = 0.3 * math.exp(max(0, t - 250) / 10) if t < 330 else math.nan
        records.append(Record(t, "model", "log", values={"loss": loss}))
    return records


def run_of(records: Iterable[Record], **players: dict[str, Any]) -> Run:
    """Keep a run in memory; one player named ``model`` unless others are given."""
    return Run.from_records(meta(**(players or {"model": {}})), list(records))


def write(path: Path, records: Iterable[Record], description: dict[str, Any] | None = None) -> Run:
    """Write a run folder and read it back."""
    description = description or meta(model={})
    folder = RunFolder(path, description["identity"], resume=False)
    folder.write_meta(description)
    for record in records:
        folder.append(record)
    folder.close()
    return Run(path)
