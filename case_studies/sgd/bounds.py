"""The bounds along real runs: a small network on real data, under watch by the stability probe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.optim import SGD

from claims import Claim, judge
from losscope.probes import Stability, watch
from sgd.descent import minibatches
from sgd.networks import WU_SU, WU_WANG_SU, parity, squared_error, tanh_network
from sgd.over_rates import median, most, rank

__all__ = ["RATES", "TRAINED", "Real", "real_claims", "real_run"]

MULAYOFF = "Mulayoff & Michaeli 2024, arXiv 2306.07850"
TRAINED = 100
"""Samples to train on; all others test."""
RATES = {1: (0.005, 0.01, 0.02, 0.04, 0.08), 8: (0.01, 0.02, 0.04, 0.08, 0.16), TRAINED: (0.02, 0.04, 0.08, 0.16)}
UPDATES = {1: 20_000, 8: 10_000, TRAINED: 5000}
"""By batch size."""


@dataclass(frozen=True)
class Real:
    """The network after training: medians over the last third of its measurements, ratios to their bounds.

    Attributes:
        loss: of training.
        trace: tr(H).
        sharpness: lambda_max(H) lr/2.
        frobenius: sqrt(mu/B) ||H||_F lr with its measured mu; NaN without mini-batches.
        aligned: mu tr(H)/B lr/2 with its measured mu; NaN without mini-batches.
        mu: tr(Sigma) / (2 L tr H).
        error: mean squared error on samples not seen.
        wrong: share of them on the wrong side.
    """

    loss: float
    trace: float
    sharpness: float
    frobenius: float
    aligned: float
    exact: float
    mu: float
    error: float
    wrong: float


def real_run(case: tuple[int, int, float], out: Path | None = None, shorter: int = 1) -> Real | None:
    """SGD under watch by the stability probe; None where it diverged."""
    seed, size, rate = case
    (x, y), (unseen, answers) = parity(seed, TRAINED)
    model, steps = tanh_network(seed), UPDATES[size] // shorter
    optimizer = SGD(model.parameters(), lr=rate)
    folder = out / "runs" / f"batch-{size}-rate-{rate:g}-seed-{seed}" if out else None
    probe = Stability(level="full", mean_square=True)
    with watch(
        model, optimizer, data=(x, y), criterion=squared_error, probes=[probe], every=steps // 9, batch_size=size,
        seed=seed, out=folder,
    ) as live:  # fmt: skip
        for _, (inputs, targets) in zip(range(steps), minibatches(x, y, size, seed), strict=False):
            optimizer.zero_grad()
            loss = squared_error(model(inputs), targets)
            loss.backward()
            optimizer.step()
    if not math.isfinite(float(loss.detach())):
        return None
    last = [r.values for r in live.run.select("stability")][-3:]

    def value(name: str) -> float:
        return median(math.nan if (v := values.get(name)) is None else v for values in last)

    with torch.no_grad():
        outputs = model(unseen)
        error, wrong = float((outputs - answers).square().mean()), float((outputs * answers <= 0).float().mean())
    return Real(
        value("loss"), value("trace"), value("sharpness") * rate / 2, value("frobenius") * rate,
        value("aligned_trace") * rate / 2, value("mean_square") * rate / 2, value("mu"), error, wrong,
    )  # fmt: skip


RealRuns = Mapping[tuple[int, int, float], Real | None]


def real_claims(seeds: Sequence[int], found: RealRuns) -> list[Claim]:
    """The bounds hold along real runs; the rate flattens; whether that generalises here."""

    def runs(seed: int, *sizes: int) -> list[tuple[float, Real]]:
        return [(c[2], run) for c, run in found.items() if c[0] == seed and c[1] in sizes and run is not None]

    sizes = {c[1] for c in found}
    noisy = sizes - {TRAINED}
    lost = sum(run is None for run in found.values())
    worst = most(run.loss for c, run in found.items() if c[1] == 1 and run is not None)
    alignments = [r.mu for s in seeds for _, r in runs(s, *noisy)]
    fastest = most(c[2] for c, run in found.items() if c[1] == 1 and run is not None)
    common = {s: _same_rate(found, s) for s in seeds}
    flat = {s: rank((r.trace, r.error) for _, r in runs(s, *sizes)) for s in seeds}
    claims = [
        judge(
            "sgd_trace", "Real data, single samples: tr(H) lr/2, largest over the rates", WU_SU,
            {s: most(rate * r.trace / 2 for rate, r in runs(s, 1)) for s in seeds}, between=(0, 1),
            note=f"training losses up to {worst:.2g}" + (f"; {lost} of {len(found)} runs diverged" if lost else ""),
        ),
        judge(
            "aligned_trace", "mu tr(H)/B lr/2 with measured mu, largest over rates and batch sizes", WU_SU,
            {s: most(r.aligned for _, r in runs(s, *noisy)) for s in seeds}, between=(0, 1),
        ),
        judge(
            "frobenius", "sqrt(mu/B) ||H||_F lr with measured mu, largest over rates and batch sizes", WU_WANG_SU,
            {s: most(r.frobenius for _, r in runs(s, *noisy)) for s in seeds}, between=(0, 1),
        ),
        judge(
            "alignment", "The alignment mu = tr(Sigma)/(2L tr H), median over rates and batch sizes", WU_SU,
            {s: median(r.mu for _, r in runs(s, *noisy)) for s in seeds}, between=(0.1, 10), predicted="of order 1",
            note=f"smallest and largest of all runs {-most(-mu for mu in alignments):.2g} and {most(alignments):.2g}",
        ),
        judge(
            "gd_sharpness", "Real data, gradient descent: lambda_max(H) lr/2, largest over the rates", WU_SU,
            {s: most(r.sharpness for _, r in runs(s, TRAINED)) for s in seeds}, between=(0, 1.05),
        ),
        judge(
            "gd_weaker", "At the same rate gradient descent ends with more trace than single samples (ratio)", WU_SU,
            common, between=(1.2, math.inf), predicted="above 1",
        ),
    ]  # fmt: skip
    if len({c[2] for c in found}) < 4:
        return claims
    best = sum(_flattest_is_best([run for _, run in runs(s, *sizes)]) for s in seeds)
    return [
        *claims,
        judge(
            "gd_trace", "Real data, gradient descent: tr(H) lr/2, largest over the rates", WU_SU,
            {s: most(rate * r.trace / 2 for rate, r in runs(s, TRAINED)) for s in seeds}, between=(1, math.inf),
            predicted="may be above 1",
        ),
        judge(
            "sgd_exact", "Real data, single samples: lr over the exact threshold of the linearised model, at the "
            "largest rate",
            MULAYOFF, {s: most(r.exact for rate, r in runs(s, 1) if rate == fastest) for s in seeds},
            between=(0.8, 1.6), predicted="about 1, where the trace is still below its bound",
        ),
        judge(
            "larger_rate_flatter", "Real data, single samples: rank correlation of rate and trace", WU_SU,
            {s: rank((rate, r.trace) for rate, r in runs(s, 1)) for s in seeds}, between=(-1, -0.7), predicted="-1",
        ),
        judge(
            "flatter_is_better_on_real_data", "Real data: rank correlation of trace and test error, all rates and "
            "batches",
            WU_SU, flat, between=(0.5, 1), predicted="clearly positive",
            note=f"in {best} of {len(seeds)} seeds the flattest of all is the best of all",
        ),
    ]  # fmt: skip


def _flattest_is_best(runs: Sequence[Real]) -> bool:
    return bool(runs) and min(runs, key=lambda run: run.trace) is min(runs, key=lambda run: run.error)


def _same_rate(found: RealRuns, seed: int) -> float:
    """The trace of gradient descent over SGD's, at the largest rate at which neither diverged."""
    both = {c[2]: (found.get((seed, TRAINED, c[2])), run) for c, run in found.items() if c[:2] == (seed, 1)}
    ratios = {rate: descent.trace / sgd.trace for rate, (descent, sgd) in both.items() if descent and sgd}
    return ratios[max(ratios)] if ratios else math.nan
