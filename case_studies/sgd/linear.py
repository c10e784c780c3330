"""Linear models under SGD: the exact mean-square threshold beside the bounds by trace and Frobenius norm.

Part of `sgd_stability.py`. The loss is the mean of (a_i'd)^2 / 2 over rows a_i, of which SGD draws single ones or B
with replacement. Three kinds of rows: of equal norm, Gaussian, and with lognormal lengths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from claims import Claim, judge
from losscope.landscape.stability import mean_square_threshold
from sgd.networks import WU_SU, WU_WANG_SU

__all__ = ["BATCHES", "ROWS", "Rows", "linear_claims", "rows_of"]

MULAYOFF, DERIVED = "Mulayoff & Michaeli 2024, arXiv 2306.07850", "derived in landscape/mean_square.py"
ROWS = ("equal norms", "gaussian", "lognormal")
SAMPLES, INPUTS, BATCHES = 12, 3, (1, 2, 4, 8, 12)


@dataclass(frozen=True)
class Rows:
    """One linear model: its exact thresholds in units of 2/tr(H), by batch size.

    Attributes:
        exact: eta* tr(H) / 2.
        frobenius: eta* ||H||_F / sqrt(B), which the bound with mu = 1 has at most 1.
        descent: tr(H) / lambda_max(H), the threshold of gradient descent in the same unit.
        radius: of the operator on second moments, as a dense matrix, at 0.99 and 1.01 of eta* of single samples.
    """

    exact: dict[int, float]
    frobenius: dict[int, float]
    descent: float
    radius: tuple[float, float]


def rows_of(case: tuple[str, int]) -> Rows:
    """The thresholds of one kind of rows a_i, of the loss mean_i (a_i'd)^2 / 2."""
    kind, seed = case
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(SAMPLES, INPUTS, generator=generator, dtype=torch.float64)
    if kind == "equal norms":
        A = 2 * A / A.norm(dim=1, keepdim=True)
    elif kind == "lognormal":
        A = A * torch.exp(1.5 * torch.randn(SAMPLES, 1, generator=generator, dtype=torch.float64))
    H = A.T @ A / SAMPLES
    rates = {B: mean_square_threshold(A, B, seed=seed).value for B in BATCHES}
    trace, norm, largest = float(H.trace()), float(H.norm()), float(torch.linalg.eigvalsh(H)[-1])
    radius = (_radius(A, H, 0.99 * rates[1]), _radius(A, H, 1.01 * rates[1]))
    return Rows(
        {B: rate * trace / 2 for B, rate in rates.items()},
        {B: rate * norm / math.sqrt(B) for B, rate in rates.items()},
        trace / largest,
        radius,
    )


def _radius(A: Tensor, H: Tensor, rate: float) -> float:
    """Spectral radius of E[(1 - rate a a') x (1 - rate a a')], the step of E[d d'] with single samples."""
    one = torch.eye(INPUTS, dtype=A.dtype)
    steps = [one - rate * torch.outer(a, a) for a in A]
    moments = sum(torch.kron(step, step) for step in steps) / len(A)
    return float(torch.linalg.eigvals(moments).abs().max())


def linear_claims(seeds: Sequence[int], found: Mapping[tuple[str, int], Rows]) -> list[Claim]:
    """Necessary, sharp for rows of equal norm, far from sufficient for heavy tails."""

    def of(kind: str) -> dict[int, Rows]:
        return {seed: found[kind, seed] for seed in seeds}

    largest = {seed: max(found[kind, seed].exact[1] for kind in ROWS) for seed in seeds}
    radii = {s: min(1 - r.radius[0], r.radius[1] - 1) for s, r in ((s, _weakest(found, s)) for s in seeds)}
    equal = {seed: rows.exact[1] for seed, rows in of("equal norms").items()}
    heavy = {seed: rows.exact[1] for seed, rows in of("lognormal").items()}
    broken = {seed: rows.frobenius[1] for seed, rows in of("equal norms").items()}
    gaussian = median(rows.exact[1] for rows in of("gaussian").values())
    return [
        judge(
            "threshold_exact", "The dense operator on second moments contracts at 0.99 of the computed eta* and grows "
            "at 1.01 (smaller of both margins)", MULAYOFF, radii, between=(1e-6, math.inf), predicted="above 0",
        ),
        judge(
            "trace_necessary", "Linear models, single samples: eta* is at most 2/tr(H) (eta* tr(H)/2, largest of "
            "three kinds of rows)", WU_SU, largest, between=(0, 1 + 1e-6),
        ),
        judge(
            "trace_sharp", "Rows of equal norm: eta* = 2/tr(H)", DERIVED, equal,
            between=(1 - 1e-6, 1 + 1e-6), predicted="1",
        ),
        judge(
            "trace_not_sufficient", "Rows with lognormal lengths: SGD is unstable far below 2/tr(H)",
            DERIVED, heavy, between=(0, 0.7), predicted="well below 1",
            note=f"Gaussian rows: median {gaussian:.2f}",
        ),
        judge(
            "frobenius_needs_mu", "||H||_F <= sqrt(B/mu)/lr with mu set to 1 is broken by stable SGD: eta* ||H||_F, "
            "rows of equal norm in three dimensions", WU_WANG_SU, broken, between=(1, math.inf),
            predicted="above 1: mu is to be measured",
            note="it is 2 ||H||_F / tr(H), above 1 up to an effective rank of 4",
        ),
    ]  # fmt: skip


def _weakest(found: Mapping[tuple[str, int], Rows], seed: int) -> Rows:
    return min((found[kind, seed] for kind in ROWS), key=lambda r: min(1 - r.radius[0], r.radius[1] - 1))
