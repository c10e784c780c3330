"""What SGD's stability selects: the trace bound, where it is exact, where it is not enough, and what follows from it.

SGD with single samples and rate lr can stay at an interpolating minimum only if tr(H) <= 2/lr, gradient descent if
lambda_max(H) <= 2/lr (Wu and Su 2023, arXiv 2305.17490; Wu, Wang and Su 2022, arXiv 2207.02628). Five experiments:

- linear models: the exact mean-square threshold against 2/tr(H), for three kinds of rows;
- identities: the networks of `sgd_models.py`, whose trace or sharpness is a norm of the parameters;
- diagonal: sparse regression by a diagonal linear network, where a larger rate finds the sparse solution;
- bounds: a tanh network on digits (even or odd), at several rates and batch sizes, under watch;
- outputs: `multi_output_trace.py`, where tr(H) exceeds 2/lr and S_mu does not.

    python case_studies/sgd_stability.py --quick
    python case_studies/sgd_stability.py --out runs/sgd --jobs 4
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.optim import SGD

import multi_output_trace
from claims import Claim, check_claims, judge, print_claims, write_claims
from losscope.landscape import Hessian, Objective, top_eigenpairs
from losscope.probes import Stability, watch
from sgd_figures import draw_bounds, draw_diagonal, draw_rows
from sgd_linear import BATCHES, ROWS, linear_claims, rows_of
from sgd_models import (
    DiagonalNetwork,
    parity,
    path_norm,
    sparse_regression,
    squared_error,
    symmetric_teacher,
    tanh_network,
    two_layer_relu,
    two_layer_trace,
    white,
)  # fmt: skip
from study import Options, command_line, in_parallel, save_figure

WU_SU, WU_WANG_SU = "Wu & Su 2023, arXiv 2305.17490", "Wu, Wang & Su 2022, arXiv 2207.02628"
EVEN = "Even et al. 2023, arXiv 2302.08982"

SPARSE_RATES, DESCENT_RATES, SPARSE_STEPS = (
    (0.01, 0.02, 0.04, 0.06, 0.07, 0.08, 0.09),
    (0.01, 0.04, 0.08, 0.2, 0.4, 0.6),
    6000,
)
"""Of the diagonal network: SGD's, gradient descent's, and updates of both."""
DIGITS = 100
"""To train on; the other 1697 test."""
RATES = {1: (0.005, 0.01, 0.02, 0.04, 0.08), 8: (0.01, 0.02, 0.04, 0.08, 0.16), DIGITS: (0.02, 0.04, 0.08, 0.16)}
UPDATES = {1: 20_000, 8: 10_000, DIGITS: 5000}
"""By batch size."""


# --------------------------------------------------------------------------- identities


def identities(seed: int) -> dict[str, float]:
    """Relative errors of the three identities at random weights, in float64, by losscope's Hessian."""
    d, generator = 10, torch.Generator().manual_seed(seed)
    diagonal = DiagonalNetwork(d).double()
    with torch.no_grad():
        for p in diagonal.parameters():
            p.copy_(torch.randn(d, generator=generator, dtype=torch.float64))
    x = white(30, d, seed)
    elsewhere = torch.randn(30, generator=generator, dtype=torch.float64)
    at_minimum = Hessian(Objective(diagonal, (x, diagonal(x).detach()), criterion=squared_error))
    relu, both = two_layer_relu(d, 7, seed).double(), torch.cat([x, -x])
    targets = torch.randn(60, 1, generator=generator, dtype=torch.float64)
    return {
        "diagonal trace": abs(_trace(diagonal, x, elsewhere) / diagonal.trace - 1),
        "sharpness": abs(float(top_eigenpairs(at_minimum, tol=1e-8, seed=0).values[0]) / diagonal.sharpness - 1),
        "two-layer trace": abs(_trace(relu, both, targets) / two_layer_trace(relu) - 1),
    }


def _trace(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Of the whole Hessian, one product for each parameter."""
    H = Hessian(Objective(model, (x, y), criterion=squared_error))
    return float((H @ torch.eye(H.shape[0], dtype=x.dtype)).trace())


def path_norms(seed: int, rate: float = 0.05, steps: int = 6000) -> float:
    """The path norm in units of 2/lr that a two-layer ReLU network has after SGD with single samples."""
    x, y = symmetric_teacher(seed)
    model = two_layer_relu(x.shape[1], 50, seed)
    sgd(model, (x, y), rate, 1, steps, seed)
    return path_norm(model) * rate / 2


# --------------------------------------------------------------------------- training


def sgd(model: nn.Module, data: tuple[Tensor, Tensor], rate: float, size: int, steps: int, seed: int) -> bool:
    """Train; whether the loss stayed finite."""
    optimizer = SGD(model.parameters(), lr=rate)
    for _, (x, y) in zip(range(steps), minibatches(*data, size, seed), strict=False):
        optimizer.zero_grad()
        squared_error(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        return math.isfinite(float(squared_error(model(data[0]), data[1])))


def minibatches(x: Tensor, y: Tensor, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """In epochs, each over a permutation of its own."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(x), generator=generator).split(size):
            yield (x, y) if size == len(x) else (x[chosen], y[chosen])


@dataclass(frozen=True)
class Sparse:
    """Where the diagonal network arrived.

    Attributes:
        loss: of training.
        trace: |u|^2 + |v|^2, which is tr(H).
        l1: of the linear function's weights.
        error: squared distance from the true weights, the test error of whitened inputs.
        sharpness: lambda_max(H).
    """

    loss: float
    trace: float
    l1: float
    error: float
    sharpness: float


def diagonal_run(case: tuple[int, float, bool], steps: int = SPARSE_STEPS) -> Sparse | None:
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

    def rank(seed: int, descent: bool, of: str, against: str = "rate") -> float:
        pairs = [(rate if against == "rate" else getattr(run, against), getattr(run, of)) for rate, run in
                 runs(seed, descent)]  # fmt: skip
        return float(spearmanr(*zip(*pairs, strict=True)).statistic)

    most = {s: max(rate * run.trace / 2 for rate, run in runs(s, False)) for s in seeds}
    l1 = {s: max(rate * run.l1 for rate, run in runs(s, False)) for s in seeds}
    descents = {s: max(rate * run.trace / 2 for rate, run in runs(s, True)) for s in seeds}
    sharpest = {s: max(rate * run.sharpness / 2 for rate, run in runs(s, True)) for s in seeds}
    gain = {s: runs(s, False)[-1][1].error / runs(s, False)[0][1].error for s in seeds}
    lost = sum(run is None for run in found.values())
    return [
        judge(
            "diagonal_trace", "Diagonal network, single samples: tr(H) lr/2 is at most 1 at every rate", WU_SU, most,
            between=(0, 1), note=f"{lost} of {len(found)} runs diverged" if lost else "",
        ),
        judge("diagonal_l1", "So the function's l1 norm is at most 1/lr: lr |u v|_1", WU_SU, l1, between=(0, 1)),
        judge(
            "diagonal_flatter", "Rank correlation of rate and trace over the rates", WU_SU,
            {s: rank(s, False, "trace") for s in seeds}, between=(-1, -0.9), predicted="-1",
        ),
        judge(
            "diagonal_flatter_is_better", "Rank correlation of trace and test error over the rates", WU_SU,
            {s: rank(s, False, "error", "trace") for s in seeds}, between=(0.9, 1), predicted="1",
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
            {s: rank(s, True, "error") for s in seeds}, between=(0.9, 1), predicted="1",
        ),
    ]  # fmt: skip


# --------------------------------------------------------------------------- bounds along real runs


@dataclass(frozen=True)
class Digits:
    """A tanh network after training: medians over the last third of its measurements, ratios to their bounds.

    Attributes:
        loss: of training.
        trace: tr(H).
        sharpness: lambda_max(H) lr/2.
        frobenius: sqrt(mu/B) ||H||_F lr with its measured mu; NaN without mini-batches.
        aligned: mu tr(H)/B lr/2 with its measured mu; NaN without mini-batches.
        mu: tr(Sigma) / (2 L tr H).
        error: mean squared error on digits not seen.
        wrong: share of them on the wrong side.
    """

    loss: float
    trace: float
    sharpness: float
    frobenius: float
    aligned: float
    mu: float
    error: float
    wrong: float


def digits_run(case: tuple[int, int, float], out: Path | None = None, shorter: int = 1) -> Digits | None:
    """SGD under watch by the stability probe; None where it diverged."""
    seed, size, rate = case
    (x, y), (unseen, answers) = parity(seed, DIGITS)
    model, steps = tanh_network(seed), UPDATES[size] // shorter
    optimizer = SGD(model.parameters(), lr=rate)
    folder = out / "runs" / f"batch-{size}-rate-{rate:g}-seed-{seed}" if out else None
    with watch(
        model, optimizer, data=(x, y), criterion=squared_error, probes=[Stability(level="full")], every=steps // 9,
        batch_size=size, seed=seed, out=folder,
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
    return Digits(
        value("loss"), value("trace"), value("sharpness") * rate / 2, value("frobenius") * rate,
        value("aligned_trace") * rate / 2, value("mu"), error, wrong,
    )  # fmt: skip


DigitsRuns = Mapping[tuple[int, int, float], Digits | None]


def digits_claims(seeds: Sequence[int], found: DigitsRuns) -> list[Claim]:
    """The bounds hold along real runs; the rate flattens; whether that generalises here."""

    def runs(seed: int, *sizes: int) -> list[tuple[float, Digits]]:
        return [(c[2], run) for c, run in found.items() if c[0] == seed and c[1] in sizes and run is not None]

    def rank(seed: int, size: int, of: str) -> float:
        return float(spearmanr([rate for rate, _ in runs(seed, size)], [getattr(r, of) for _, r in runs(seed, size)])
                     .statistic)  # fmt: skip

    sizes = {c[1] for c in found}
    noisy = sizes - {DIGITS}
    lost = sum(run is None for run in found.values())
    worst = max(run.loss for c, run in found.items() if c[1] == 1 and run is not None)
    common = {s: _same_rate(found, s) for s in seeds}
    flat = {s: spearmanr(*zip(*[(r.trace, r.error) for _, r in runs(s, *sizes)], strict=True)).statistic for s in seeds}
    claims = [
        judge(
            "sgd_trace", "Tanh network on digits, single samples: tr(H) lr/2, largest over the rates", WU_SU,
            {s: max(rate * r.trace / 2 for rate, r in runs(s, 1)) for s in seeds}, between=(0, 1),
            note=f"training losses up to {worst:.2g}" + (f"; {lost} of {len(found)} runs diverged" if lost else ""),
        ),
        judge(
            "aligned_trace", "mu tr(H)/B lr/2 with measured mu, largest over rates and batch sizes", WU_SU,
            {s: max(r.aligned for _, r in runs(s, *noisy)) for s in seeds}, between=(0, 1),
        ),
        judge(
            "frobenius", "sqrt(mu/B) ||H||_F lr with measured mu, largest over rates and batch sizes", WU_WANG_SU,
            {s: max(r.frobenius for _, r in runs(s, *noisy)) for s in seeds}, between=(0, 1),
        ),
        judge(
            "alignment", "The alignment mu = tr(Sigma)/(2L tr H), median over rates and batch sizes", WU_SU,
            {s: median(r.mu for _, r in runs(s, *noisy)) for s in seeds}, between=(0.1, 10), predicted="of order 1",
            note="smallest and largest of all runs "
            + " and ".join(f"{f(r.mu for s in seeds for _, r in runs(s, *noisy)):.2g}" for f in (min, max)),
        ),
        judge(
            "gd_sharpness", "Gradient descent on digits: lambda_max(H) lr/2, largest over the rates", WU_SU,
            {s: max(r.sharpness for _, r in runs(s, DIGITS)) for s in seeds}, between=(0, 1.05),
        ),
        judge(
            "gd_weaker", "At the same rate gradient descent ends with more trace than single samples (ratio)", WU_SU,
            common, between=(1.2, math.inf), predicted="above 1",
        ),
    ]  # fmt: skip
    if len({c[2] for c in found}) < 4:
        return claims
    best = sum(min(r, key=lambda x: x.trace) is min(r, key=lambda x: x.error) for r in
               ([run for _, run in runs(s, *sizes)] for s in seeds))  # fmt: skip
    return [
        *claims,
        judge(
            "gd_trace", "Gradient descent on digits: tr(H) lr/2, largest over the rates", WU_SU,
            {s: max(rate * r.trace / 2 for rate, r in runs(s, DIGITS)) for s in seeds}, between=(1, math.inf),
            predicted="may be above 1",
        ),
        judge(
            "larger_rate_flatter", "Single samples on digits: rank correlation of rate and trace", WU_SU,
            {s: rank(s, 1, "trace") for s in seeds}, between=(-1, -0.7), predicted="-1",
        ),
        judge(
            "flatter_is_better_on_digits", "Digits: rank correlation of trace and test error, all rates and batches",
            WU_SU, flat, between=(0.5, 1), predicted="clearly positive",
            note=f"in {best} of {len(seeds)} seeds the flattest of all is the best of all",
        ),
    ]  # fmt: skip


def _same_rate(found: DigitsRuns, seed: int) -> float:
    """The trace of gradient descent over SGD's, at the largest rate at which neither diverged."""
    rates = sorted(c[2] for c, run in found.items() if c[:2] == (seed, 1) and run and found.get((seed, DIGITS, c[2])))
    at = rates[-1]
    return found[seed, DIGITS, at].trace / found[seed, 1, at].trace  # type: ignore[union-attr]


# --------------------------------------------------------------------------- several outputs


def outputs_run(seed: int) -> tuple[float, float]:
    """tr(H) lr/2 and S_mu lr/2 of the network with ten outputs."""
    audit = multi_output_trace.trained(seed).audit()
    return audit["trace"].ratio or math.nan, audit["s_mu"].ratio or math.nan


def outputs_claims(seeds: Sequence[int], found: Sequence[tuple[float, float]]) -> list[Claim]:
    """The trace is not bound by 2/lr, what replaces it is."""
    trace, index = ({s: pair[i] for s, pair in zip(seeds, found, strict=True)} for i in (0, 1))
    source = "derived in landscape/stability.py"
    return [
        judge("outputs_trace", "Ten outputs, single samples: stable SGD with tr(H) lr/2 above 1", source, trace,
              between=(1.3, math.inf), predicted="up to 10: the trace adds up outputs"),
        judge("outputs_s_mu", "Ten outputs: S_mu lr/2, S_mu = E|g_B|^2/2L", source, index, between=(0, 1)),
    ]  # fmt: skip


# --------------------------------------------------------------------------- all of it


def study(options: Options) -> list[Claim]:
    """Run the experiments and judge them; the short version leaves out the many rates and several outputs."""
    seeds, jobs, quick = options.seeds, options.jobs, options.quick
    rows = [(kind, seed) for kind in ROWS for seed in seeds]
    linear = dict(zip(rows, in_parallel(rows_of, rows, jobs, name="linear models"), strict=True))
    claims = linear_claims(seeds, linear)
    errors = in_parallel(identities, seeds, jobs, name="identities")
    for name, what in (
        ("diagonal trace", "tr(H) = |u|^2 + |v|^2"), ("sharpness", "lambda_max(H) = max (u^2 + v^2), white inputs"),
        ("two-layer trace", "tr(H) = (|W|^2 + d |a|^2)/2, ReLU"),
    ):  # fmt: skip
        measured = {s: e[name] for s, e in zip(seeds, errors, strict=True)}
        claims.append(judge(
            f"identity_{name.replace(' ', '_').replace('-', '_')}", f"{what}: relative error",
            "derived in sgd_models.py", measured, between=(0, 1e-10), predicted="0",
        ))  # fmt: skip
    sparse_rates = ((0.01, 0.06), (0.08, 0.6)) if quick else (SPARSE_RATES, DESCENT_RATES)
    cases = [(s, rate, descent) for descent in (False, True) for s in seeds for rate in sparse_rates[descent]]
    task = partial(diagonal_run, steps=SPARSE_STEPS // 3 if quick else SPARSE_STEPS)
    sparse = dict(zip(cases, in_parallel(task, cases, jobs, name="diagonal"), strict=True))
    claims += diagonal_claims(seeds, sparse)
    paths = in_parallel(partial(path_norms, steps=1500 if quick else 6000), seeds, jobs, name="two-layer")
    claims.append(judge(
        "two_layer_path", "Two-layer ReLU network, single samples: path norm sqrt(d) sum |a||w| lr/2", WU_SU,
        dict(zip(seeds, paths, strict=True)), between=(0, 1),
    ))  # fmt: skip
    rates = {1: (0.04,), DIGITS: (0.04,)} if quick else RATES
    runs = [(s, size, rate) for size in rates for s in seeds for rate in rates[size]]
    watched = partial(digits_run, out=options.out, shorter=5 if quick else 1)
    digits = dict(zip(runs, in_parallel(watched, runs, jobs, name="digits"), strict=True))
    claims += digits_claims(seeds, digits)
    if not quick:
        claims += outputs_claims(seeds, in_parallel(outputs_run, seeds, jobs, name="ten outputs"))
        save_figure(draw_rows(linear, BATCHES), options.out, "linear_models")
        save_figure(draw_diagonal(sparse), options.out, "diagonal_network")
        save_figure(draw_bounds(digits, DIGITS), options.out, "digits")
    return claims


def main() -> None:
    """Everything, the table, and with ``--quick`` the assertions."""
    options = command_line(__doc__, "sgd_stability")
    claims = study(options)
    write_claims(options.out, "sgd_stability", claims, quick=options.quick)
    print_claims(claims, "SGD's stability")
    if options.quick:
        check_claims(claims)


if __name__ == "__main__":
    main()
