"""Grokking on real data: large initial weights fit at once, and generalise when weight decay has made them small.

A network whose initial weights are several times torch's fits its samples by changing little (lazily), with an initial
function that is large and rough left in place, and what it says of other samples is hardly better than chance. AdamW's
weight decay shrinks the weights, with all samples fitted, until the kernel moves and the test error falls (Liu et al.
2023, arXiv 2210.01117, on MNIST; Kumar et al. 2024, arXiv 2310.06110, on why).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from claims import Claim, judge
from losscope.landscape import Objective, tangent_kernel
from losscope.landscape.tangent import kernel_regression
from losscope.probes import TangentKernel, watch
from losscope.viz.demo import digits

__all__ = ["LOW", "Grokking", "Start", "grokked", "grokking_claims"]

LIU, KUMAR = "Liu et al. 2023, arXiv 2210.01117", "Kumar et al. 2024, arXiv 2310.06110"
TRAIN, WIDTH, RATE, DECAY, KERNEL = 200, 200, 1e-3, 0.1, 128
"""Samples to train on (all others test), units of a layer, learning rate, weight decay, samples of the kernel."""
LOW = 0.2
"""Share of wrong test samples that counts as having generalised."""


@dataclass(frozen=True)
class Start:
    """One training: how many times torch's initial weights it starts from, for how many updates."""

    seed: int
    scale: float = 6.0
    steps: int = 12_000


@dataclass(frozen=True)
class Grokking:
    """What was measured of it.

    Attributes:
        steps: when.
        train: share of training samples that are wrong then.
        test: of the others.
        norm: of the parameters.
        watched: when the kernel was measured.
        distance: of the kernel from that of the start, centred, then.
        alignment: of the kernel with the labels, on samples that are not trained on.
        lazy: share of test samples that the model linearised at the start gets wrong, fitted to the training samples.
    """

    steps: tuple[int, ...]
    train: tuple[float, ...]
    test: tuple[float, ...]
    norm: tuple[float, ...]
    watched: tuple[int, ...]
    distance: tuple[float, ...]
    alignment: tuple[float, ...]
    lazy: float

    @property
    def fitted(self) -> int | None:
        """Where, in ``steps``, no training sample is wrong for the first time."""
        return next((i for i, wrong in enumerate(self.train) if wrong == 0), None)

    @property
    def delay(self) -> float:
        """Steps until the test error is low, over those until all samples are fitted; infinite where it never is."""
        low = next((step for step, wrong in zip(self.steps, self.test, strict=True) if wrong <= LOW), math.inf)
        return math.nan if self.fitted is None else low / self.steps[self.fitted]

    @property
    def plateau(self) -> float:
        """Test error when all samples are fitted."""
        return math.nan if self.fitted is None else self.test[self.fitted]

    def at_fit(self, values: Sequence[float]) -> float:
        """A number of the kernel when all samples are fitted, at its measurement next before that."""
        if self.fitted is None:
            return math.nan
        return [v for t, v in zip(self.watched, values, strict=True) if t <= self.steps[self.fitted]][-1]


def data(seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and one-hot targets, those to train on first; any other data can stand here."""
    return digits(seed, 1797)


def network(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers with ReLU; any other model can stand here."""
    return nn.Sequential(
        nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs)
    )  # fmt: skip


def grokked(start: Start, out: Path | None = None) -> Grokking:
    """AdamW on all training samples at once, squared loss, measured at steps that are spread over their logarithms."""
    torch.manual_seed(start.seed)
    x, y = data(start.seed)
    model = network(x.shape[1], y.shape[1])
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(start.scale)
    classes, unseen = y.argmax(dim=1), slice(TRAIN, TRAIN + KERNEL)
    lazy = _linearised(model, x, y)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    due = _spread(start.steps)
    folder = out / "runs" / f"grokking-{start.scale:g}-{start.seed}" if out else None
    rows: list[tuple[int, float, float, float]] = []
    with watch(
        model, optimizer, data=(x[unseen], classes[unseen]), criterion=F.cross_entropy, probes=[TangentKernel()],
        every=due[::3], out=folder,
    ) as run:  # fmt: skip
        for step in range(start.steps + 1):
            if step in due:
                with torch.no_grad():
                    wrong = (model(x).argmax(dim=1) != classes).double()
                    norm = sum(float(p.square().sum()) for p in model.parameters()) ** 0.5
                rows.append((step, float(wrong[:TRAIN].mean()), float(wrong[TRAIN:].mean()), norm))
            optimizer.zero_grad()
            F.mse_loss(model(x[:TRAIN]), y[:TRAIN]).backward()
            optimizer.step()
    records = run.run.select("tangent_kernel")
    kernel = [tuple(float(r.values[name] or 0) for r in records) for name in ("centred", "alignment")]
    return Grokking(*zip(*rows, strict=True), tuple(r.step for r in records), *kernel, lazy)  # type: ignore[arg-type]


def _spread(steps: int) -> list[int]:
    """0, 1, ... and later each step a tenth beyond the one before."""
    found = [0]
    while found[-1] < steps:
        found.append(max(found[-1] + 1, int(1.1 * found[-1])))
    return [step for step in found if step <= steps]


def _linearised(model: nn.Module, x: Tensor, y: Tensor, test: int = 300) -> float:
    """The test error of the linearised model that fits the training samples: the start's function, corrected."""
    some = slice(0, TRAIN + test)
    kernel = tangent_kernel(Objective(model, (x[some], y[some]), criterion=nn.MSELoss()))
    with torch.no_grad():
        outputs = model(x[some]).double()
    # The prediction is for what is missing, to which the start's own outputs are added.
    missing = y[some].double() - outputs
    predicted = outputs[TRAIN:] + kernel_regression(kernel, missing, TRAIN).predictions
    return float((predicted.argmax(dim=1) != y[some][TRAIN:].argmax(dim=1)).double().mean())


# --------------------------------------------------------------------------- claims


def grokking_claims(found: Mapping[Start, Grokking], seeds: Sequence[int]) -> list[Claim]:
    """Whether it is late, whether it was lazy before, and whether the kernel turns with it."""
    scales = sorted({start.scale for start in found})
    usual, large = ({s.seed: g for s, g in found.items() if s.scale == scale} for scale in (scales[0], scales[-1]))
    turned = {s: (g.distance[-1] - g.at_fit(g.distance)) / g.at_fit(g.distance) for s, g in large.items()}
    gained = ", ".join(f"{g.alignment[-1] - g.at_fit(g.alignment):.3f}" for g in large.values())
    words, plain = (f"initial weights {scale:g} times torch's" for scale in (scales[-1], scales[0]))
    return [
        judge(
            "grokking_delay", f"Grokking, {words}: steps until the test error is {LOW:.0%}, over those until all "
            "training samples are fitted", LIU, {s: large[s].delay for s in seeds}, between=(5, math.inf),
            predicted="much later",
        ),
        judge(
            "grokking_plateau", "Grokking: test error when all training samples are fitted", LIU,
            {s: large[s].plateau for s in seeds}, between=(0.5, 1), predicted="far from the end's",
            note=f"in the end {', '.join(f'{large[s].test[-1]:.3f}' for s in seeds)}",
        ),
        judge(
            "grokking_usual", f"The same ratio of steps, {plain}", LIU,
            {s: usual[s].delay for s in seeds}, between=(0, 1), predicted="at most 1: no delay",
        ),
        judge(
            "grokking_lazy", "Grokking: test error when all training samples are fitted, less that of the model "
            "linearised at the start", KUMAR, {s: large[s].plateau - large[s].lazy for s in seeds},
            between=(-0.1, 0.1), predicted="0: it is lazy until then",
        ),
        judge(
            "grokking_rich", "Grokking: distance that the kernel goes after all samples are fitted, over that before",
            KUMAR, {s: turned[s] for s in seeds}, between=(1, math.inf), predicted="above 1: rich when it generalises",
            note=f"label alignment gained after: {gained}",
        ),
    ]  # fmt: skip
