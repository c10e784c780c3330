"""Sharpness in deep matrix factorisation: exact at a minimiser, and what gradient descent makes of it.

The loss is ||M - W_L ... W_1||_F^2, a linear network in float64 (Kamber and Parhi 2025, arXiv 2509.25783). losscope
measures the top eigenvalue of its Hessian at minimisers of every kind, depth 2 to 6 and several shapes, beside the
exact one; minimisers are made flatter until they are flattest; gradient descent starts beside minimisers, just below
and above the rate 2/lambda, and from lopsided weights at rates up to where it diverges.

    python case_studies/matrix_factorisation.py --quick
    python case_studies/matrix_factorisation.py --jobs 4 --out runs/matrix_factorisation

Another matrix: change ``target`` in deep_factorisation/minimisers.py. Other shapes, depths or rates: change FULL below.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from claims import Claim, check_claims, judge, print_claims, write_claims
from deep_factorisation.figures import draw
from deep_factorisation.measurements import Found, Plan, Point, study
from study import command_line, in_parallel

STUDY = "matrix_factorisation"
PAPER = "Kamber & Parhi 2025, arXiv 2509.25783"
EXACT = "a consequence of the exact expression"
ROUND = 1e-8
"""Relative error that counts as none in float64."""

FAIL = ("equal_norms_not_enough", "rates_not_flattest")
"""Claims that do not hold."""

FULL = Plan(
    shapes=((1, 1, 4), (5, 5, 5), (3, 8, 10), (8, 3, 20)),  # rows and columns of M, width of the hidden layers
    depths=(2, 3, 4, 5, 6),
    draws=40,
    descent=300,
    escapes=(2, 3, 4, 5, 6),
    trials=3,
    near=(0.9, 0.98, 0.995, 1.005, 1.02, 1.1),
    lopsided=(2, 3, 4),
    times=(0.5, 0.9, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0),
)
QUICK = Plan(((1, 1, 3), (3, 4, 5)), (2, 4), 3, 80, (3,), 1, (0.98, 1.02), (2,), (1.5,))


def judged(found: dict[int, Found]) -> list[Claim]:
    """The claims, from what each seed measured."""

    def claim(name: str, text: str, number: Callable[[Found], float], low: float, high: float, **more: str) -> Claim:
        measured = {seed: number(each) for seed, each in found.items()}
        return judge(name, text, more.pop("source", PAPER), measured, between=(low, high), **more)

    claims = [
        claim(
            "exact", "At minimisers of every depth and shape the measured top eigenvalue is the exact one",
            lambda f: largest(abs(p.measured / p.exact - 1) for p in f.points if not math.isnan(p.measured)),
            0, ROUND, predicted=f"relative error at most {ROUND:g}",
        ),
        claim(
            "least_attained", "Balanced minimisers have the least sharpness, 2 L sigma_1(M)^(2(L-1)/L)",
            lambda f: largest(abs(p.measured / p.least - 1) for p in f.of("balanced")),
            0, ROUND, predicted=f"relative error at most {ROUND:g}",
        ),
        claim(
            "least_is_least", "No minimiser is flatter than that",
            lambda f: min(p.exact / p.least for p in f.points), 1 - ROUND, math.inf,
            predicted="sharpness over least at least 1",
        ),
        claim(
            "descent_attains", "From any minimiser, descent on the sharpness among those of one M ends at the least",
            lambda f: largest(p.exact / p.least for p in f.of("flattened")), 1 - ROUND, 1.001,
            predicted="sharpness over least 1",
        ),
        claim(
            "two_factors", "Flattest minimisers of depth 2 have equal spectral norms",
            lambda f: largest(p.imbalance for p in f.of("flattened") if p.depth == 2), 1, 1.02,
            predicted="largest over smallest norm 1",
        ),
        claim(
            "scalars", "Flattest factorisations of scalars have layers of equal size",
            lambda f: largest(p.imbalance for p in f.of("flattened") if p.shape[0] == 1), 1, 1.02,
            predicted="largest over smallest norm 1",
        ),
        claim(
            "deep_not_necessary", "For L >= 3 balance is sufficient only: minimisers of the least sharpness without it",
            lambda f: smallest(unless_flat(p, p.imbalance) for p in f.of("flat, not balanced")), 1.05, math.inf,
            source=EXACT, predicted="largest over smallest ||A_l|| ||B_l|| above 1",
        ),
        claim(
            "equal_norms_not_enough", "Equal spectral norms alone make a minimiser of depth 2 flattest",
            lambda f: largest(p.measured / p.least for p in f.of("equal norms")), 1 - ROUND, 1.001,
            source="the paper's abstract, taken by the word", predicted="sharpness over least 1",
            note="The norms must also multiply to sigma_1(M): W_1 = diag(a, b) and W_2 = diag(b, a) have equal norms"
            " and a / b times the least sharpness",
        ),
        claim(
            "frobenius_not_enough", "Frobenius-norm balance is not enough for the least sharpness",
            lambda f: smallest(p.measured / p.least for p in f.of("Frobenius balanced")), 1.05, math.inf,
            predicted="sharpness over least above 1 at equal Frobenius norms",
        ),
        claim(
            "frobenius_not_needed", "Frobenius-norm balance is not needed: some have the least sharpness without it",
            lambda f: smallest(unless_flat(p, p.frobenius) for p in f.of("flat, not Frobenius balanced")),
            1.05, math.inf, predicted="largest over smallest Frobenius norm above 1",
        ),
        claim(
            "bound_two", "The bound 2 sum ||A_l||^2 ||B_l||^2 is the sharpness itself for L = 2 and for scalars",
            lambda f: largest(p.bound / p.exact for p in f.points if not deep(p)), 1 - ROUND, 1 + ROUND,
            source=EXACT, predicted="bound over sharpness 1",
        ),
        claim(
            "bound_deep", "For L >= 3 that bound is not tight",
            lambda f: median(p.bound / p.exact for p in f.of("drawn", "drawn, not measured") if deep(p)),
            1.001, math.inf, source=EXACT, predicted="median of bound over sharpness above 1",
        ),
        claim(
            "below_stays", "Gradient descent at 0.98 times 2/lambda stays at its minimiser",
            lambda f: share(e.farthest < 10 for e in f.escapes if e.ratio == 0.98), 1, 1, predicted="all trials",
        ),
        claim(
            "above_escapes", "Gradient descent at 1.02 times 2/lambda escapes",
            lambda f: share(e.farthest > 1000 for e in f.escapes if e.ratio == 1.02), 1, 1, predicted="all trials",
        ),
        claim(
            "growth", "It leaves as linear theory says, by a factor eta lambda - 1 = 1.04 a step",
            lambda f: median(e.growth for e in f.escapes if e.ratio == 1.02), 1.038, 1.042,
        ),
        claim(
            "lands_flatter", "Where it ends after the escape, 2/lambda is at least the rate",
            lambda f: largest(e.end for e in f.escapes if not math.isnan(e.end)), 0, 1 + 1e-6,
            predicted="eta lambda / 2 at most 1",
        ),
        claim(
            "rates_end_stable", "From lopsided weights, every descent that converges ends at eta lambda / 2 <= 1",
            lambda f: largest(d.sharpness * d.rate / 2 for d in f.descents if d.converged and d.times), 0, 1 + 1e-6,
            source="Cohen et al. 2021, arXiv 2103.00065",
        ),
        claim(
            "rates_flatter", "A rate of 1.5 times 2/lambda of the flow's solution ends flatter than the flow",
            lambda f: largest(ratio_to_flow(f, 1.5, "sharpness")), 0, 1 / 1.5,
            source="Cohen et al. 2021, arXiv 2103.00065", predicted="sharpness over the flow's at most 1/1.5",
        ),
        claim(
            "rates_balance", "It also ends nearer to spectral-norm balance, at every depth",
            lambda f: largest(ratio_to_flow(f, 1.5, "imbalance")), 0, 0.999,
            source="not claimed by the paper", predicted="imbalance over the flow's below 1",
        ),
        claim(
            "rates_not_flattest", "That rate ends at the least sharpness",
            lambda f: smallest(d.sharpness / d.least for d in f.descents if d.converged and d.times == 1.5),
            1 - ROUND, 1.05, source="not claimed by the paper", predicted="sharpness over least 1",
        ),
        claim(
            "away", "Away from minimisers the formula's error grows in proportion to the distance",
            lambda f: math.log10(f.away[1e-3] / f.away[1e-4]), 0.9, 1.1, source="perturbation theory",
            predicted="slope 1 on logarithmic axes",
        ),
    ]  # fmt: skip
    return [claim for claim in claims if not all(map(math.isnan, claim.measured))]  # but what the plan leaves out


def unless_flat(point: Point, number: float) -> float:
    """The number, or 0 where the minimiser is not of the least sharpness."""
    return number if abs(point.measured / point.least - 1) < ROUND else 0.0


def largest(numbers: Iterable[float]) -> float:
    """NaN where there are none, as in what follows: the plan leaves them out."""
    return max(numbers, default=math.nan)


def smallest(numbers: Iterable[float]) -> float:
    """As it says."""
    return min(numbers, default=math.nan)


def median(numbers: Iterable[float]) -> float:
    """As it says."""
    some = list(numbers)
    return statistics.median(some) if some else math.nan


def share(held: Iterable[bool]) -> float:
    """Of trials."""
    some = list(held)
    return statistics.fmean(some) if some else math.nan


def deep(point: Point) -> bool:
    """Neither two layers nor scalars."""
    return point.depth > 2 and point.shape[0] > 1


def ratio_to_flow(found: Found, times: float, name: str) -> list[float]:
    """A number of the descents at some rate over that of gradient flow, by depth, where both converge."""
    flow = {d.depth: d for d in found.descents if d.times == 0}
    return [getattr(d, name) / getattr(flow[d.depth], name) for d in found.descents if d.times == times and d.converged]


def main(arguments: Sequence[str] | None = None) -> list[Claim]:
    """Measure, draw, judge, write."""
    options = command_line(__doc__ or "", STUDY, seeds=10, quick_seeds=5, first=10, arguments=arguments)
    plan = QUICK if options.quick else FULL
    found = in_parallel(partial(study, plan=plan), options.seeds, options.jobs, name=STUDY)
    claims = judged(dict(zip(options.seeds, found, strict=True)))
    print_claims(claims, STUDY)
    write_claims(options.out, STUDY, claims, quick=options.quick)
    draw(found, plan, options.out, options.seeds[0])
    print(f"written: {options.out}")
    if options.quick:
        check_claims(claims, *(claim.name for claim in claims if claim.name not in FAIL))
    return claims


if __name__ == "__main__":
    main()
