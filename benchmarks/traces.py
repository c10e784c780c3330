"""Sixth table: the trace to one percent."""

import functools
import math
import statistics
from dataclasses import dataclass

import contest
import numpy as np
import torch
from contenders import CURVLINOPS, OURS, PLAIN, PYHESSIAN, Contender, plain_retained
from contest import Comparison, Contest, Rules, Way
from problems import Problem
from solvers import MANY, Meter, Number, curvlinops_trace, losscope_trace, pyhessian_trace
from torch import Tensor

ERROR = 1e-2
"""Relative error to reach, by the median over seeds."""

PROBLEMS = ("mlp-128", "mlp-1797", "mlp-1797-by-128")
"""Others where ``--only`` names them: a thousand products of each library take minutes."""

SLACK = 1.5  # the median of seven errors is known to 44 %
EXACT = 10_000  # parameters up to which the trace is known exactly
SKETCH = 100  # vectors

DOUBLED = (16, 32, 64, 128, 256, 512, 1024)  # products that XTrace is tried with
MEDIAN = 0.6745  # of the absolute value of a standard normal number


@dataclass(frozen=True)
class Reference:
    """The trace, its standard error, and plain Hutchinson samples ``z' H z`` that share no numbers with any run."""

    value: float
    stderr: float
    samples: np.ndarray


def reference(problem: Problem, exact: int = EXACT) -> Reference:
    """The trace from products of plain PyTorch: exactly for up to ``exact`` parameters, else by Hutch++.

    Hutch++ (Meyer et al. 2021) is exact on the range of ``H S``, which holds the large eigenvalues, and takes
    Hutchinson's samples on the complement of it, with as many vectors each.
    """
    whole = Problem(problem.key, problem.title, problem.family, problem.model, [_joined(problem)])
    bare = Contender(PLAIN, "retained", plain_retained, math=problem.family.attention)
    generator = torch.Generator().manual_seed(20)

    def signs() -> Tensor:
        drawn = torch.randint(0, 2, (problem.size, SKETCH), generator=generator) * 2.0 - 1.0
        return drawn.to(problem.device)

    with bare.engine(whole) as engine, bare.around():

        def product(V: Tensor) -> Tensor:
            return torch.cat([engine.flat(engine.product(engine.native(v))) for v in V.split(1, dim=1)], dim=1)

        S = signs()
        HS = product(S)
        samples = (S * HS).sum(dim=0, dtype=torch.float64).cpu().numpy()
        if problem.size <= exact:
            units = torch.eye(problem.size, device=problem.device).split(64)
            value = math.fsum(float((E * product(E.T).T).sum(dtype=torch.float64)) for E in units)
            return Reference(value, 0.0, samples)
        Q = torch.linalg.qr(HS).Q
        inside = float((Q * product(Q)).sum(dtype=torch.float64))
        Z = signs()
        Z = Z - Q @ (Q.T @ Z)
        outside = (Z * product(Z)).sum(dim=0, dtype=torch.float64)
    return Reference(inside + float(outside.mean()), float(outside.std()) / math.sqrt(SKETCH), samples)


def _joined(problem: Problem) -> tuple[Tensor, Tensor]:
    """All batches as one: the mean over samples is the same function."""
    x, y = zip(*problem.batches, strict=True)
    return torch.cat(x), torch.cat(y)


def hutchinson_products(right: Reference) -> int:
    """Samples whose mean has a median error of one percent."""
    return math.ceil((MEDIAN * float(right.samples.std(ddof=1)) / (ERROR * abs(right.value))) ** 2)


def pyhessian_tolerance(right: Reference) -> float:
    """The largest tolerance at which PyHessian's rule stops with a median error of one percent.

    The rule looks at how much the running mean moves, so where it stops is luck: it is played 300 times on
    samples drawn from those that there are.
    """
    mean = right.samples.mean()
    drawn = np.random.default_rng(0).choice(right.samples, (300, MANY))
    means = drawn.cumsum(axis=1) / np.arange(1, MANY + 1)
    moved = np.abs(np.diff(means, axis=1)) / (np.abs(means[:, :-1]) + 1e-6)
    for tol in (1e-3, 5e-4, 2e-4, 1e-4, 5e-5, 2e-5, 1e-5, 5e-6, 2e-6):
        stops = np.where((moved < tol).any(axis=1), (moved < tol).argmax(axis=1) + 1, MANY - 1)
        if np.median(np.abs(means[np.arange(300), stops] / mean - 1)) <= ERROR:
            return tol
    return tol


def ways(problem: Problem, right: Reference) -> list[Way]:
    """Ours to an interval of one percent, and to three, whose median error is one; then the peers."""
    model = problem.fresh()

    def ours(rtol: float, seed: int, meter: Meter) -> Number:
        return losscope_trace(problem, model, meter, rtol=rtol, max_matvecs=MANY, seed=seed)

    def power(tol: float, seed: int, meter: Meter) -> Number:
        torch.manual_seed(seed)
        return pyhessian_trace(problem, model, meter, maxIter=MANY, tol=tol)

    def estimator(name: str, products: float, seed: int, meter: Meter) -> Number:
        torch.manual_seed(seed)
        return curvlinops_trace(problem, model, meter, name, int(products))

    return [
        Way(OURS, "losscope: trace(rtol={:g})", (0.03,), ours),
        Way(OURS, "losscope: trace(rtol={:g}), interval of 1 %", (0.01,), ours),
        Way(PYHESSIAN, "PyHessian: trace(tol={:g})", (pyhessian_tolerance(right),), power),
        Way(
            CURVLINOPS, "curvlinops: hutchinson_trace({:g})", (hutchinson_products(right),),
            functools.partial(estimator, "hutchinson_trace"),
        ),
        Way(CURVLINOPS, "curvlinops: xtrace({:g})", DOUBLED, functools.partial(estimator, "xtrace")),
    ]  # fmt: skip


def measure(problem: Problem, right: Reference, rules: Rules) -> Comparison:
    """Everyone's way to the trace."""

    def judge(number: Number) -> float:
        return abs(number.value / right.value - 1)

    held = Contest(problem, judge, ERROR, rules, demand=statistics.median, slack=SLACK)
    entries = held.hold(ways(problem, right))
    for entry in entries:
        intervals = [number.interval for number in entry.answers if number.interval is not None]
        if intervals:
            half = sorted((high - low) / 2 for low, high in intervals)[len(intervals) // 2] / abs(right.value)
            covering = sum(low <= right.value <= high for low, high in intervals)
            entry.row.note = f"within {half:.1%}: {covering} of {len(intervals)} cover"
    known = f"known to {right.stderr / abs(right.value):.2%}" if right.stderr else "exactly"
    stated = f"trace {right.value:.5g}, {known}"
    return held.result("trace", entries, stated)


def table(comparison: Comparison) -> str:
    """In Markdown."""
    return contest.table(comparison, "relative error", "interval")
