"""Every claim a result makes about itself: residuals, bounds and estimated errors, over many seeds."""

import math

import numpy as np
import pytest
import torch

from losscope.landscape import top_eigenpairs
from losscope.landscape.krylov import _begin
from losscope.landscape.lanczos import LanczosBasis
from losscope.landscape.ritz import Ritz, steps_left
from spectra import SPECTRA, Diagonal, extremes, rotated

F64 = torch.float64


# --------------------------------------------------------------------------- residuals and bounds


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("tol", [0.3, 1e-2, 1e-4])
@pytest.mark.parametrize("k", [1, 4])
def test_residuals_and_convergence_are_true(name: str, tol: float, k: int) -> None:
    """Residuals to one per cent of the explicit ones, and ``converged`` exactly as they say."""
    A = rotated(SPECTRA[name])
    norm = float(extremes(A, 1, "LM").abs())
    for which in ("LA", "SA", "LM"):
        for budget in (None, 6 * k):
            result = top_eigenpairs(A, k, which=which, tol=tol, max_matvecs=budget, seed=1)
            explicit = (A @ result.vectors - result.vectors * result.values).norm(dim=0)
            torch.testing.assert_close(result.residuals, explicit, rtol=1e-2, atol=1e-13 * norm)
            within = bool((explicit <= tol * result.values.abs().clamp(min=1e-3 * norm)).all())
            assert result.converged == within
            assert budget is None or result.matvecs <= budget
            torch.testing.assert_close(result.vectors.norm(dim=0), torch.ones(k, dtype=F64))


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("which", "k"), [("LA", 1), ("SA", 1), ("LA", 3), ("SA", 3), ("LM", 1), ("BE", 2)])
def test_a_quick_look_says_what_a_close_one_does(name: str, which: str, k: int) -> None:
    operator = Diagonal(SPECTRA[name])
    basis = LanczosBasis(operator, 1, torch.Generator().manual_seed(0))
    share = _begin(basis, None, 0.05)
    looked = set()
    for _ in range(40):
        basis.absorb(operator.product(basis.newest))
        if basis.size < k:
            continue
        for tol in (1e-1, 1e-4, 1e-8, 1e-14):
            ritz = Ritz(basis, k, which, share)
            settled = ritz.converged(tol) or ritz.stalled()
            quick = steps_left(basis, k, which, tol)
            if which in ("LA", "SA"):
                assert quick == (0 if settled else max(1, ritz.at_least(tol)))
                looked.add(settled)
            else:
                assert quick == 0
    assert which != "LA" or looked == {False, True}


def test_running_out_of_products_is_not_convergence() -> None:
    result = top_eigenpairs(Diagonal(SPECTRA["bulk"]), tol=1e-6, max_matvecs=10, seed=0)
    assert not result.converged and result.matvecs == 10
    assert "NOT converged" in repr(result)


@pytest.mark.parametrize("start", ["cold", "warm"])
@pytest.mark.parametrize(("confidence", "k"), [(0.95, 1), (0.5, 1), (0.5, 3), (0.2, 1)])
@pytest.mark.parametrize(("name", "which"), [("outliers", "LA"), ("crowded", "SA"), ("hidden", "LA"), ("bulk", "SA")])
def test_bounds_hold_as_often_as_they_say(name: str, which: str, confidence: float, k: int, start: str) -> None:
    """Stopped by budget and by tolerance; warm starts begin at the eigenvector next to the wanted one."""
    values = SPECTRA[name] if which == "LA" else -SPECTRA[name]
    order = values.argsort(descending=which == "LA")
    exact = values[order[:k]]
    wrong = torch.nn.functional.one_hot(order[1:2], len(values)).T.to(F64)
    runs = 300 if k == 1 else 100
    for options in ({"max_matvecs": 6 * k, "tol": 1e-12}, {"tol": 3e-2}):
        claimed = held = 0
        for seed in range(runs):
            result = top_eigenpairs(
                Diagonal(values),
                k,
                which=which,
                confidence=confidence,
                seed=seed,
                start=wrong if start == "warm" else None,
                **options,
            )
            sure, other = (result.low, result.high) if which == "LA" else (-result.high, -result.low)
            truth = exact if which == "LA" else -exact
            assert bool((sure <= truth).all()), "the rigorous side failed"
            if result.bound == "two-sided":
                claimed += 1
                held += bool(other[0] >= truth[0])
            else:
                assert result.bound == ("lower" if which == "LA" else "upper")
                assert math.isinf(other[0])
        failures = claimed - held
        allowed = 1 - confidence
        assert failures <= runs * allowed + 2 * math.sqrt(runs * allowed * confidence)


@pytest.mark.parametrize("risk", [0.05, 0.5])
@pytest.mark.parametrize(("k", "columns"), [(1, 0), (3, 0), (1, 1), (3, 3)])
def test_the_share_that_a_start_has_of_any_vector(k: int, columns: int, risk: float) -> None:
    """What the bounds rest on: the start block holds less of a fixed unit vector with probability ``risk``.

    For single vectors it is sharp, both for random starts and for warm ones orthogonal to the vector.
    """
    n, runs = 100, 1500
    operator, short = Diagonal(torch.ones(n, dtype=F64)), 0
    start = torch.eye(n, dtype=F64)[:, 1 : 1 + columns] if columns else None
    for seed in range(runs):
        basis = LanczosBasis(operator, k, torch.Generator().manual_seed(seed))
        share = _begin(basis, start, risk)
        rows = basis._filled[0]
        short += float(rows[:, 0].norm()) < share
    margin = 3 * math.sqrt(risk * (1 - risk) / runs)
    assert short / runs <= risk + margin
    if k == 1:
        assert short / runs >= risk - margin - 0.01


def test_low_confidence_bounds_do_fail() -> None:
    """Were they far too wide, the test above could not notice a mistake in them."""
    values = SPECTRA["hidden"]
    results = [top_eigenpairs(Diagonal(values), tol=1e-9, max_matvecs=6, confidence=0.2, seed=s) for s in range(200)]
    missed = sum(float(r.high[0]) < 1.3 for r in results)
    assert 20 <= missed <= 160


def test_bounds_tighten_with_the_products() -> None:
    widths = []
    for budget in (8, 16, 32, 64):
        result = top_eigenpairs(Diagonal(SPECTRA["crowded"]), tol=1e-12, max_matvecs=budget, seed=0)
        widths.append(float(result.high[0] - result.low[0]))
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.02


def test_a_basis_of_the_whole_space_bounds_exactly() -> None:
    result = top_eigenpairs(rotated(torch.linspace(0, 1, 12, dtype=F64)), tol=1e-12, seed=0)
    assert result.bound == "two-sided"
    assert float(result.high[0] - result.low[0]) < 1e-12
    assert float(result.low[0]) <= 1 <= float(result.high[0])


@pytest.mark.parametrize("which", ["LA", "SA", "BE"])
def test_nothing_bounds_zero_exactly(which: str) -> None:
    """One product with a random vector says that it is zero, though no share of zero is more than that."""
    found = top_eigenpairs(Diagonal(torch.zeros(50, dtype=F64)), 2, which=which, seed=0)
    assert found.bound == "two-sided"
    upper, lower = found.high[0] if which != "SA" else None, found.low[-1] if which == "BE" else found.low[0]
    assert upper is None or 0 <= float(upper) < 1e-200
    assert which == "LA" or -1e-200 < float(lower) <= 0


def test_no_bound_is_claimed_for_the_largest_in_magnitude() -> None:
    result = top_eigenpairs(Diagonal(SPECTRA["indefinite"]), which="LM", seed=0)
    assert result.bound == "none"
    assert bool(result.low.isneginf().all()) and bool(result.high.isposinf().all())


def test_bounds_at_both_ends_hold_together() -> None:
    values = torch.cat([SPECTRA["crowded"], -SPECTRA["hidden"]])
    held = []
    for seed in range(300):
        result = top_eigenpairs(Diagonal(values), 2, which="BE", tol=3e-2, confidence=0.5, seed=seed)
        held.append(float(result.high[0]) >= float(values.max()) and float(result.low[-1]) <= float(values.min()))
    assert sum(held) >= 300 * 0.5 - 2 * math.sqrt(300 * 0.25)


def test_bounds_outlive_a_restart() -> None:
    values, held, claimed = SPECTRA["crowded"], 0, 0
    for seed in range(300):
        options = {"tol": 1e-3, "confidence": 0.5, "memory": 14 * len(values) * 8, "seed": seed}
        result = top_eigenpairs(Diagonal(values), **options)
        claimed += result.bound == "two-sided"
        held += float(result.high[0]) >= 1.13
        assert float(result.low[0]) <= 1.13
    assert claimed >= 290
    assert held >= 300 * 0.5 - 2 * math.sqrt(300 * 0.25)


# --------------------------------------------------------------------------- estimated errors


@pytest.mark.parametrize("name", ["outliers", "crowded", "decaying"])
def test_the_estimated_errors_are_near_the_errors(name: str) -> None:
    """Of converged values, Kato-Temple's estimate is above most errors and far below the residual."""
    values = SPECTRA[name].sort(descending=True).values
    ratios, gains = [], []
    for seed in range(100):
        result = top_eigenpairs(Diagonal(values), 3, tol=1e-2, seed=seed)
        errors = (values[:3] - result.values).abs()
        assert bool((result.errors <= result.residuals).all())
        ratios += (errors <= 1.2 * result.errors + 1e-14 * values[0]).tolist()
        gains += (result.errors / result.residuals).tolist()
    assert sum(ratios) >= 0.9 * len(ratios)
    assert np.median(gains) <= (1.0 if name == "crowded" else 0.5)  # there no gap is seen at this tolerance
