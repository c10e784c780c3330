"""Training at several rates by each optimizer, under watch, and what one run says of its edge."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, RMSprop

from digits_training import later_half, ratios
from losscope.probes import Run
from stability_audit import Case

__all__ = ["ABSENT", "FAMILIES", "Trained", "trained"]


def gradient_descent(edge: float, steps: int) -> Case:
    """At the rate whose threshold is ``edge``."""
    return Case(f"GD 2/{edge:g}", steps, lambda p: SGD(p, lr=2 / edge))


def heavy_ball(edge: float, steps: int, momentum: float) -> Case:
    """Momentum at the rate whose threshold (2 + 2 b) / lr is ``edge``."""
    lr = (2 + 2 * momentum) / edge
    return Case(f"heavy ball {momentum:g}, threshold {edge:g}", steps, lambda p: SGD(p, lr=lr, momentum=momentum))


def nesterov(edge: float, steps: int) -> Case:
    """Momentum 0.9 at the rate whose threshold (2 + 2 b) / ((1 + 2 b) lr) is ``edge``."""
    lr = 3.8 / 2.8 / edge
    return Case(f"Nesterov, threshold {edge:g}", steps, lambda p: SGD(p, lr=lr, momentum=0.9, nesterov=True))


def adam(lr: float, steps: int) -> Case:
    """Full-batch Adam with betas (0.9, 0.99), so that its preconditioner keeps up within these steps."""
    return Case(f"Adam {lr:g}", steps, lambda p: Adam(p, lr=lr, betas=(0.9, 0.99)))


def rmsprop(lr: float, steps: int) -> Case:
    """Full-batch RMSprop."""
    return Case(f"RMSprop {lr:g}", steps, lambda p: RMSprop(p, lr=lr, alpha=0.99))


# From the largest rate to the smallest, whose run reaches the edge last.
FAMILIES: dict[str, tuple[Case, ...]] = {
    "gradient descent": tuple(gradient_descent(edge, 2500) for edge in (12, 16, 20, 24)),
    "heavy ball 0.5": tuple(heavy_ball(edge, 1500, 0.5) for edge in (16, 20, 28)),
    "heavy ball 0.9": tuple(heavy_ball(edge, 1200, 0.9) for edge in (16, 20, 28)),
    "Nesterov": tuple(nesterov(edge, 1200) for edge in (16, 20, 28)),
    "Adam": tuple(adam(lr, 1500) for lr in (2e-3, 1e-3, 7e-4)),
    "RMSprop": tuple(rmsprop(lr, 1500) for lr in (2e-4, 1e-4, 7e-5)),
}
ABSENT: dict[str, Case] = {
    "ReLU": Case("GD 2/20, ReLU", 3000, lambda p: SGD(p, lr=2 / 20), activation=nn.ReLU),
    "cross-entropy": Case("GD 2/20, cross-entropy", 3000, lambda p: SGD(p, lr=2 / 20), criterion=cross_entropy),
    "cross-entropy, 2/4": Case("GD 2/4, cross-entropy", 3000, lambda p: SGD(p, lr=2 / 4), criterion=cross_entropy),
}
"""Settings in which the edge need not appear."""


@dataclass(frozen=True, eq=False)
class Trained:
    """One run, as figures and claims need it.

    Attributes:
        name: of the case.
        seed: of data order and initialisation.
        ratio: sharpness over threshold, by step.
        losses: by step.
        verdict: the audit's, at the end.
    """

    name: str
    seed: int
    ratio: dict[int, float]
    losses: list[float]
    verdict: str

    @property
    def crossing(self) -> float:
        """The first step at which the ratio has risen to 1; infinite where it never does.

        An adaptive optimizer's ratio may begin above 1, since its preconditioner begins at nothing.
        """
        steps, values = list(self.ratio), list(self.ratio.values())
        risen = (steps[i] for i in range(1, len(steps)) if values[i] >= 1 > values[i - 1])
        return float(next(risen, math.inf))

    @property
    def late(self) -> float:
        """Median ratio over the later half of the steps."""
        return later_half(self.ratio)

    @property
    def hover(self) -> float:
        """Median ratio over the steps after the crossing, NaN where there is none."""
        after = [value for step, value in self.ratio.items() if step > self.crossing]
        return statistics.median(after) if after else math.nan

    @property
    def rises(self) -> float:
        """Share of the steps of the later half in which the loss rose."""
        late = self.losses[len(self.losses) // 2 :]
        return statistics.fmean(after > before for before, after in pairwise(late))


def trained(job: tuple[Case, int, int, Path | None]) -> Trained:
    """Train a case under a seed, for so many steps, into a run folder."""
    case, seed, steps, out = job
    run: Run = case.run(seed, steps, out)
    losses = [record.values["loss"] for record in run.select("log")]
    audit = run.audit()["sharpness"]
    return Trained(case.name, seed, ratios(run), [math.nan if v is None else v for v in losses], audit.verdict)
