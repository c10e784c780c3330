"""Learning rate against batch size: noise that moves eigenvalues out, and what it leaves of the largest rate.

The Hessian of a mini-batch is that of all samples and noise, which moves its top eigenvalue out, the farther the
smaller the batch (Granziol, Zohren and Roberts 2022, JMLR 23:173). So the largest stable rate is to grow with the batch
size, in proportion for SGD and as the square root for Adam, until curvature alone limits it. Four experiments, ReLU
networks on digits with half squared error:

- shift: lambda_max of random mini-batches' Hessians against the formula with one fitted variance of the noise;
- exact: the mean-square threshold of SGD on the model linearised at a minimum;
- rates: the largest rate that trains from the start, by bisection, for SGD and Adam;
- spectrum: a rate of c / lambda_max, measured on the way, against the best fixed one.

    python case_studies/batch_size.py --quick
    python case_studies/batch_size.py --out runs/batch_size --jobs 4
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from scipy.stats import linregress, spearmanr
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from claims import Claim, check_claims, judge, print_claims, write_claims
from losscope.landscape import BatchEffect, Objective, batch_effect
from losscope.landscape.stability import linearised_rows, mean_square_threshold
from losscope.probes import Sharpness, watch
from over_parametrised.batch_size_figures import draw_rates, draw_shift, draw_spectrum
from over_parametrised.data import digits_of, draws, relu_network, squared_error, train
from study import Options, command_line, in_parallel, save_figure

GRANZIOL, MULAYOFF = "Granziol et al. 2022, JMLR 23:173", "Mulayoff & Michaeli 2024, arXiv 2306.07850"
ROULET = "Roulet et al. 2024, arXiv 2407.06183"

SAMPLES, WIDTH = 1000, 50
SHIFT_SIZES = (4, 8, 16, 32, 64, 128, 256, 500)
EXACT_SAMPLES, EXACT_SIZES = 100, (1, 2, 4, 8, 16, 32, 64, 100)
TRIED_SIZES, SMALL, LARGE = (1, 2, 4, 8, 16, 32, 64, 256, 1000), (1, 4), (64, 1000)
"""Batch sizes of the bisections, and the ranges of those in which growth is fitted."""
RULES: dict[str, tuple[Callable[..., Optimizer], tuple[float, float]]] = {
    "SGD": (SGD, (2**-9, 2**3)), "Adam": (Adam, (2**-14, 2**-2)),
}  # fmt: skip
"""With rates that train at every batch size, and that do not."""
UPDATES, HALF, FINENESS = 200, 0.5, 2**0.125
"""A rate trains where so many updates halve the loss; the bisections end within this factor."""
FACTORS, FIXED, MEASURED_EVERY, LONG = (0.5, 1.0, 1.5, 2.0, 3.0), (0.1, 0.2, 0.4, 0.6, 0.8, 1.2), 20, 600


def network(seed: int, data: tuple[Tensor, Tensor]) -> nn.Sequential:
    """Another model goes here, other data into `digits_of`."""
    x, y = data
    return relu_network(WIDTH, int(y.max()) + 1, seed, x.shape[1])


# --------------------------------------------------------------------------- the extremal shift


def shift(seed: int, sizes: Sequence[int] = SHIFT_SIZES) -> BatchEffect:
    """After some training, eigenvalues of mini-batches of each size."""
    data = digits_of(10, seed, SAMPLES)
    model = train(network(seed, data), data, rate=0.05, steps=300, seed=seed)
    return batch_effect(Objective(model, data, criterion=squared_error), list(sizes), draws=10, seed=seed)


def shift_claims(seeds: Sequence[int], found: Sequence[BatchEffect]) -> list[Claim]:
    """Larger for smaller batches; the formula's dependence on B, but not its size."""
    effects = dict(zip(seeds, found, strict=True))
    order = {s: float(spearmanr(e.batch_sizes, [x.value for x in e.largest]).statistic) for s, e in effects.items()}
    return [
        judge(
            "shift_monotone", "Rank correlation of the batch size and the mean lambda_max of mini-batches", GRANZIOL,
            order, between=(-1, -0.95), predicted="-1",
        ),
        judge(
            "shift_size", "Mean lambda_max of batches of the smallest size over that of all samples", GRANZIOL,
            {s: e.largest[0].value / float(e.full.values[0]) for s, e in effects.items()}, between=(1.1, math.inf),
            predicted="clearly above 1", note=f"B = {found[0].batch_sizes[0]}",
        ),
        judge(
            "formula_with_one_fit", "Formula with one fitted variance: largest relative error over batch sizes",
            GRANZIOL, {s: max(errors(e)) for s, e in effects.items()}, between=(0, 0.15), predicted="0 to 0.15",
        ),
        judge(
            "noise_has_independent_entries", "The fitted variance over the measured one", GRANZIOL,
            {s: e.fitted / e.noise.value for s, e in effects.items()}, between=(0.5, 2), predicted="1",
            note="the noise of networks lies in the top directions more than in others",
        ),
    ]  # fmt: skip


def errors(effect: BatchEffect) -> list[float]:
    """Relative, of the formula with the fitted variance, for each batch size."""
    predicted = [effect.predicted(B, variance=effect.fitted)[0] for B in effect.batch_sizes]
    return [abs(x.value / y - 1) for x, y in zip(effect.largest, predicted, strict=True)]


# --------------------------------------------------------------------------- the exact threshold


def exact(seed: int, sizes: Sequence[int] = EXACT_SIZES) -> dict[int, float]:
    """The largest stable rate of SGD at a minimum, over that of gradient descent, by batch size."""
    data = digits_of(4, seed, EXACT_SAMPLES)
    model = train(network(seed, data), data, rate=0.05, steps=1000, seed=seed)
    rows = linearised_rows(Objective(model, data, criterion=squared_error))
    rates = {B: mean_square_threshold(rows, B, replacement=False, tol=1e-3, seed=seed).value for B in sizes}
    return {B: rate / rates[EXACT_SAMPLES] for B, rate in rates.items()}


def exact_claims(seeds: Sequence[int], found: Sequence[Mapping[int, float]]) -> list[Claim]:
    """In proportion at small batches, saturated at large ones."""
    by_seed = dict(zip(seeds, found, strict=True))
    return [
        judge(
            "exact_linear", "SGD at a minimum: growth exponent of the exact largest rate, "
            f"B = {SMALL[0]} to {SMALL[1]}", MULAYOFF, {s: exponent(r, SMALL) for s, r in by_seed.items()},
            between=(0.8, 1.05), predicted="1",
        ),
        judge(
            "exact_saturates", f"The exact largest rate at B = 64 of {EXACT_SAMPLES} over that of gradient descent",
            MULAYOFF, {s: r[64] for s, r in by_seed.items()}, between=(0.8, 1), predicted="about 1",
        ),
    ]  # fmt: skip


def exponent(rates: Mapping[int, float], between: tuple[int, int]) -> float:
    """p of rate ~ B^p, by least squares; NaN of fewer than two rates."""
    points = [(math.log(B), math.log(r)) for B, r in rates.items() if between[0] <= B <= between[1] and r > 0]
    return float(linregress(*zip(*points, strict=True)).slope) if len(points) > 1 else math.nan


# --------------------------------------------------------------------------- the largest rate that trains


def trains(rule: str, rate: float, size: int, seed: int) -> bool:
    """Whether the loss of all samples is halved in `UPDATES` updates."""
    data = digits_of(10, seed, SAMPLES)
    model = network(seed, data)
    with torch.no_grad():
        before = float(squared_error(model(data[0]), data[1]))
    optimizer = RULES[rule][0](model.parameters(), lr=rate)
    for _, (x, y) in zip(range(UPDATES), draws(data, size, seed), strict=False):
        optimizer.zero_grad()
        loss = squared_error(model(x), y)
        loss.backward()
        optimizer.step()
        if not loss.detach() < 1e3 * before:
            return False
    with torch.no_grad():
        return float(squared_error(model(data[0]), data[1])) < HALF * before


def largest_rate(case: tuple[str, int, int]) -> float:
    """By bisection of the logarithm; between a rate that fails and one that trains, of which there may be several."""
    rule, size, seed = case
    low, high = RULES[rule][1]
    rate = high
    while not trains(rule, rate, size, seed):  # from above: too small a rate does not train in time either
        high, rate = rate, rate / 2
        if rate < low:
            return math.nan
    low = rate
    while high / low > FINENESS:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if trains(rule, middle, size, seed) else (low, middle)
    return low


Rates = Mapping[tuple[str, int, int], float]


def rate_claims(seeds: Sequence[int], found: Rates) -> list[Claim]:
    """How the largest rate grows with the batch."""

    def of(rule: str, seed: int) -> dict[int, float]:
        return {B: rate for (r, B, s), rate in found.items() if (r, s) == (rule, seed)}

    def grown(rule: str, between: tuple[int, int]) -> dict[int, float]:
        return {s: exponent(of(rule, s), between) for s in seeds}

    words = f"B = {SMALL[0]} to {SMALL[1]}"
    return [
        judge(
            "sgd_grows", f"SGD from the start: growth exponent of the largest rate that trains, {words}", GRANZIOL,
            grown("SGD", SMALL), between=(0.8, 1.2), predicted="1",
        ),
        judge(
            "sgd_saturates", f"SGD: the same, B = {LARGE[0]} to {LARGE[1]}", GRANZIOL, grown("SGD", LARGE),
            between=(-0.1, 0.1), predicted="0",
        ),
        judge(
            "adam_grows", f"Adam: the same, {words}", GRANZIOL, grown("Adam", SMALL), between=(0.35, 0.65),
            predicted="1/2",
        ),
        judge(
            "adam_saturates", f"Adam: the same, B = {LARGE[0]} to {LARGE[1]}", GRANZIOL, grown("Adam", LARGE),
            between=(-0.1, 0.1), predicted="0",
        ),
    ]  # fmt: skip


# --------------------------------------------------------------------------- a rate from the spectrum


@dataclass(frozen=True)
class Trained:
    """The loss in the end, infinite where it diverged, and the rates that were used, by update."""

    loss: float
    rates: dict[int, float]


def from_spectrum(case: tuple[float, bool, int], steps: int = LONG, size: int = 64, out: Path | None = None) -> Trained:
    """SGD at a fixed rate, or at a factor over lambda_max, which `watch` measures every `MEASURED_EVERY` updates."""
    factor, fixed, seed = case
    data = digits_of(10, seed, SAMPLES)
    model = network(seed, data)
    optimizer = SGD(model.parameters(), lr=factor)
    rates = {0: factor} if fixed else {}
    folder = out / "runs" / f"{'fixed' if fixed else 'spectrum'}-{factor:g}-seed-{seed}" if out else None
    with watch(
        model, optimizer, data=data, criterion=squared_error, probes=[Sharpness()], every=10**9, seed=seed, out=folder
    ) as live:
        for made, (x, y) in zip(range(steps), draws(data, size, seed), strict=False):
            if not fixed and made % MEASURED_EVERY == 0:
                (record,) = live.measure_now()
                if not record.value:
                    return Trained(math.inf, rates)
                rates[made] = optimizer.param_groups[0]["lr"] = factor / record.value
            optimizer.zero_grad()
            loss = squared_error(model(x), y)
            loss.backward()
            optimizer.step()
            if not math.isfinite(float(loss.detach())):
                return Trained(math.inf, rates)
    with torch.no_grad():
        loss = float(squared_error(model(data[0]), data[1]))
    return Trained(loss if math.isfinite(loss) else math.inf, rates)


Spectra = Mapping[tuple[float, bool, int], Trained]


def spectrum_claims(seeds: Sequence[int], found: Spectra) -> list[Claim]:
    """What a factor of 2 reaches, one below it, and one above."""
    best = {s: min(run.loss for (_, fixed, seed), run in found.items() if fixed and seed == s) for s in seeds}

    def over_best(factor: float) -> dict[int, float]:
        return {s: found[factor, False, s].loss / best[s] for s in seeds}

    grown = {}
    for s in seeds:
        rates = list(found[1.0, False, s].rates.values())
        grown[s] = rates[0] / rates[-1]
    worst = ", ".join(f"{x:.1f}" if x < 1e3 else "diverged" for x in over_best(3.0).values())
    return [
        judge(
            "on_the_fly_edge", "Rate 2/lambda_max measured on the way: loss over that of the best fixed rate", ROULET,
            over_best(2.0), between=(0, 2.5), predicted="about 1, without a search",
            note=f"at 3/lambda_max {worst}",
        ),
        judge(
            "on_the_fly_below", "Rate 1/lambda_max: loss over that of the best fixed rate", GRANZIOL, over_best(1.0),
            between=(0, 2.5), predicted="about 1",
        ),
        judge(
            "on_the_fly_sharpens", "Rate 1/lambda_max: lambda_max in the end over that in the beginning", ROULET, grown,
            between=(1.2, math.inf), predicted="above 1: nothing holds sharpening back",
        ),
    ]  # fmt: skip


# --------------------------------------------------------------------------- all of it


def study(options: Options) -> list[Claim]:
    """Run the experiments and judge them; the short version has few batch sizes and rates."""
    seeds, jobs, quick = options.seeds, options.jobs, options.quick
    sizes = (8, 64, 500) if quick else SHIFT_SIZES
    effects = in_parallel(partial(shift, sizes=sizes), seeds, jobs, name="shift")
    tried = (1, 8, 64, 1000) if quick else TRIED_SIZES
    rules = ("SGD",) if quick else tuple(RULES)
    cases = [(rule, B, s) for rule in rules for B in tried for s in seeds]
    thresholds = in_parallel(exact, seeds[:0] if quick else seeds, jobs, name="exact thresholds")
    fixed = (0.4, 0.8) if quick else FIXED
    runs = [(rate, True, s) for rate in fixed for s in seeds]
    runs += [(c, False, s) for c in ((1.0, 2.0, 3.0) if quick else FACTORS) for s in seeds]
    spectra = dict(
        zip(
            runs,
            in_parallel(partial(from_spectrum, out=options.out), runs, jobs, name="from the spectrum"),
            strict=True,
        )
    )
    claims = shift_claims(seeds, effects) + spectrum_claims(seeds, spectra)
    if quick:
        return claims
    rates = dict(zip(cases, in_parallel(largest_rate, cases, jobs, name="largest rates"), strict=True))
    by_seed = dict(zip(seeds, effects, strict=True))
    save_figure(draw_shift(by_seed), options.out, "shift")
    save_figure(draw_rates(rates, thresholds, by_seed), options.out, "rates")
    save_figure(draw_spectrum(spectra), options.out, "on_the_fly")
    return [*claims, *exact_claims(seeds, thresholds), *rate_claims(seeds, rates)]


def main() -> None:
    """Everything, the table, and with ``--quick`` the assertions."""
    options = command_line(__doc__, "batch_size")
    claims = study(options)
    write_claims(options.out, "batch_size", claims, quick=options.quick)
    print_claims(claims, "Learning rate against batch size")
    if options.quick:
        check_claims(claims, *ROBUST)


ROBUST = ("shift_monotone", "shift_size", "on_the_fly_edge", "on_the_fly_sharpens")
"""What the short version asserts."""

if __name__ == "__main__":
    main()
