"""What is missing of a quadrature, on sequences whose limits are known, and what it adds to intervals."""

import numpy as np
import pytest
import torch

from losscope.landscape import trace_function
from losscope.landscape.quadrature_error import LEAST_STEPS, remaining
from spectra import SPECTRA, Diagonal, with_outliers

F64 = torch.float64
NONE = [False] * 3


def sums_of(course: np.ndarray, sign: float = 1.0) -> np.ndarray:
    """Three starts, each with a limit and an amplitude of its own, (3, k)."""
    return np.array([[5.0], [6.0], [4.0]]) + sign * np.array([[1.0], [2.0], [1.5]]) * course


@pytest.mark.parametrize("m", [LEAST_STEPS, 15, 40])
@pytest.mark.parametrize("rate", [0.3, 0.6, 0.8])
def test_geometric_convergence(rate: float, m: int) -> None:
    steps = np.arange(1, m + 1)
    missing = 1.5 * rate**m
    above, below = remaining(steps, sums_of(rate**steps), NONE)
    assert below == 0 and missing - 1e-15 <= above <= max(6, m / 4) * missing + 1e-12
    assert remaining(steps, sums_of(rate**steps, -1.0), NONE) == (0, pytest.approx(above, abs=1e-12))


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_convergence_like_a_power(power: float, every: int) -> None:
    steps = np.concatenate((np.arange(1, 12), np.arange(12, 61, every)))
    missing = 1.5 * 60.0**-power
    above, below = remaining(steps, sums_of(steps**-power), NONE)
    assert below == 0 and 0.9 * missing <= above <= 3 * missing


def test_values_that_go_to_and_fro() -> None:
    """A bound by the differences' size would be m times too large."""
    steps = np.arange(1, 31)
    course = (-1.0) ** steps / steps**1.5
    above, below = remaining(steps, sums_of(course), NONE)
    missing = 1.5 * 30**-1.5
    assert above == below and missing <= above <= 4 * missing


@pytest.mark.parametrize("m", [1, 2, 3, LEAST_STEPS - 1])
def test_few_steps_have_the_bound_for_slow_convergence(m: int) -> None:
    rng = np.random.default_rng(m)
    sums = rng.standard_normal((3, m))
    before = np.concatenate((np.zeros((3, 2)), sums), axis=1)
    latest = np.abs(np.diff(before, axis=1))[:, -2:]
    assert max(remaining(range(1, m + 1), sums, NONE)) == pytest.approx(m * latest.max(axis=1).mean())


def test_starts_that_ended_are_exact() -> None:
    steps = np.arange(1, 7)
    sums = sums_of(0.9**steps)
    assert remaining(steps, sums, [True] * 3) == (0, 0)
    some, whole = (max(remaining(steps, sums, ended)) for ended in ([True, False, True], NONE))
    assert 0 < some < whole


FUNCTIONS = {
    "logarithm": (lambda x: torch.log(x + 0.02), SPECTRA["decaying"]),
    "effective dimension": (lambda x: x / (x + 0.5), with_outliers(600, [20.0, 50.0, 100.0])),
    "modulus": (torch.abs, SPECTRA["indefinite"]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("products", [30, 60])
def test_intervals_cover_and_are_not_far_wider_than_errors(name: str, products: int) -> None:
    """The bound for slow convergence alone made them 9 to 25 median errors wide."""
    f, values = FUNCTIONS[name]
    exact = float(f(values).sum())
    found = [
        trace_function(Diagonal(values), f, rtol=1e-14, min_matvecs=products, max_matvecs=products, seed=seed)
        for seed in range(60)
    ]
    assert np.mean([e.low <= exact <= e.high for e in found]) >= 0.9
    half = np.median([(e.high - e.low) / 2 for e in found])
    assert half <= 5 * np.median([abs(e.value - exact) for e in found])
