"""Sparse regression by a diagonal linear network: what the rate selects among all that interpolate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from claims import Claim, judge
from losscope.landscape import Hessian, Objective, top_eigenpairs
from sgd.descent import sgd
from sgd.networks import WU_SU, DiagonalNetwork, sparse_regression, squared_error
from sgd.over_rates import most, rank

__all__ = ["DESCENT_RATES", "SGD_RATES", "STEPS", "Sparse", "diagonal_claims", "diagonal_run"]

EVEN = "Even et al. 2023, arXiv 2302.08982"
SGD_RATES, DESCENT_RATES = (0.01, 0.02, 0.04, 0.06, 0.07, 0.08, 0.09), (0.01, 0.04, 0.08, 0.2, 0.4, 0.6)
"""Of single samples, and of all at once."""
STEPS = 6000
"""Updates of every run."""


@dataclass(frozen=True)
class Sparse:
    """Where the diagonal network arrived.

    Attributes:
        loss: of training.
        trace: |u|^2 + |v|^2, which is tr(H).
        l1: of the linear function's weights.
        error: squared distance from the true weights, the test error on white inputs.
        sharpness: lambda_max(H).
    """

    loss: float
    trace: float
    l1: float
    error: float
    sharpness: float


def diagonal_run(case: tuple[int, float, bool], steps: int = STEPS) -> Sparse | None:
    """Sparse regression by SGD with single samples, or by gradient descent; None where it diverged."""
    seed, rate, descent = case
    (x, y), truth = sparse_regression(seed)
    model = DiagonalNetwork(x.shape[1])
    if not sgd(model, (x, y), rate, len(x) if descent else 1, steps, seed):
        return None
    objective = Objective(model, (x, y), criterion=squared_error)
    weights = model.weights.detach()
    sharpness = float(top_eigenpairs(Hessian(objective), tol=1e-3, seed=seed).values[0])
    error = float((weights - truth).square().sum())
    return Sparse(objective.value(), model.trace, float(weights.abs().sum()), error, sharpness)


SparseRuns = Mapping[tuple[int, float, bool], Sparse | None]


def diagonal_claims(seeds: Sequence[int], found: SparseRuns) -> list[Claim]:
    """Larger rate, flatter minimum, sparser and better solution; gradient descent does the opposite."""

    def runs(seed: int, descent: bool) -> list[tuple[float, Sparse]]:
        return [(rate, run) for (s, rate, d), run in found.items() if s == seed and d == descent and run is not None]

    traces = {s: most(rate * run.trace / 2 for rate, run in runs(s, False)) for s in seeds}
    l1 = {s: most(rate * run.l1 for rate, run in runs(s, False)) for s in seeds}
    descents = {s: most(rate * run.trace / 2 for rate, run in runs(s, True)) for s in seeds}
    sharpest = {s: most(rate * run.sharpness / 2 for rate, run in runs(s, True)) for s in seeds}
    gain = {s: _last_over_first([run.error for _, run in runs(s, False)]) for s in seeds}
    lost = sum(run is None for run in found.values())
    return [
        judge(
            "diagonal_trace", "Diagonal network, single samples: tr(H) lr/2 is at most 1 at every rate", WU_SU, traces,
            between=(0, 1), note=f"{lost} of {len(found)} runs diverged" if lost else "",
        ),
        judge("diagonal_l1", "So the function's l1 norm is at most 1/lr: lr |u v|_1", WU_SU, l1, between=(0, 1)),
        judge(
            "diagonal_flatter", "Rank correlation of rate and trace over the rates", WU_SU,
            {s: rank((rate, run.trace) for rate, run in runs(s, False)) for s in seeds}, between=(-1, -0.9),
            predicted="-1",
        ),
        judge(
            "diagonal_flatter_is_better", "Rank correlation of trace and test error over the rates", WU_SU,
            {s: rank((run.trace, run.error) for _, run in runs(s, False)) for s in seeds}, between=(0.9, 1),
            predicted="1",
        ),
        judge(
            "diagonal_error", "Test error at the largest stable rate over that at the smallest", EVEN, gain,
            between=(0, 0.5), predicted="far below 1",
        ),
        judge(
            "descent_is_bound_by_the_sharpness", "Gradient descent: lambda_max(H) lr/2 is at most 1", WU_SU, sharpest,
            between=(0, 1.01),
        ),
        judge(
            "descent_has_more_trace", "and only that: its largest tr(H) lr/2", WU_SU, descents, between=(2, math.inf),
            predicted="may be far above 1",
        ),
        judge(
            "descent_gets_worse", "Gradient descent: rank correlation of rate and test error", EVEN,
            {s: rank((rate, run.error) for rate, run in runs(s, True)) for s in seeds}, between=(0.9, 1), predicted="1",
        ),
    ]  # fmt: skip


def _last_over_first(numbers: Sequence[float]) -> float:
    return numbers[-1] / numbers[0] if numbers else math.nan
