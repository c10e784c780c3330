"""Eigenvalues that a narrow block has missed: found, or excluded as often as is said."""

import math

import pytest
import torch

from losscope.landscape import top_eigenpairs
from spectra import SPECTRA, Diagonal, with_outliers

F64 = torch.float64
COPIES = with_outliers(800, [9.0, 9.0, 8.0, 8.0, 8.0, 7.0])
ENDS = torch.cat([COPIES, torch.tensor([-9.0, -9.0, -5.0, -5.0])])


@pytest.mark.parametrize("block", [None, 1, 2, 3])
@pytest.mark.parametrize(
    ("which", "right"),
    [
        ("LA", [9.0, 9, 8, 8, 8, 7]),
        ("SA", [-9.0, -9, -5, -5]),
        ("LM", [9.0, 9, 9, 9, 8, 8, 8, 7]),
        ("BE", [9.0, 9, 8, -5, -9, -9]),
    ],
)
def test_copies_of_an_eigenvalue_are_found_by_blocks_of_any_width(
    which: str, right: list[float], block: int | None
) -> None:
    for seed in range(5):
        result = top_eigenpairs(Diagonal(ENDS), len(right), which=which, tol=1e-3, block=block, seed=seed)
        values = result.values.abs() if which == "LM" else result.values
        torch.testing.assert_close(values, torch.tensor(right, dtype=F64), rtol=1e-3, atol=0)
        assert result.converged


@pytest.mark.parametrize("gap", [0.0, 1e-6, 1e-3])
def test_neighbours_closer_than_the_tolerance_are_not_taken_for_one(gap: float) -> None:
    values = with_outliers(800, [5.0, 5.0 * (1 - gap), 3.0])
    result = top_eigenpairs(Diagonal(values), 3, tol=1e-2, seed=0)
    torch.testing.assert_close(result.values, torch.tensor([5.0, 5.0, 3.0], dtype=F64), rtol=2e-3, atol=0)


@pytest.mark.parametrize("n", [2, 3, 5, 9])
@pytest.mark.parametrize("value", [2.0, 0.0])
def test_small_multiples_of_the_identity(n: int, value: float) -> None:
    for k in range(1, n + 1):
        result = top_eigenpairs(Diagonal(torch.full((n,), value, dtype=F64)), k, seed=k)
        torch.testing.assert_close(result.values, torch.full((k,), value, dtype=F64))
        assert result.converged and not any(map(math.isnan, result.rest))


@pytest.mark.parametrize("name", ["outliers", "crowded", "indefinite", "decaying", "clustered"])
@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_the_rest_is_where_it_is_said_to_be(name: str, confidence: float) -> None:
    """Also where the products end before what is left is excluded."""
    values = SPECTRA[name].flip(0).contiguous()
    k, seeds, held = 3, 50, {"LA": 0, "BE": 0}
    ordered = values.sort(descending=True).values
    for which in held:
        others = ordered[k:] if which == "LA" else ordered[2:-1]
        for seed in range(seeds):
            result = top_eigenpairs(Diagonal(values), k, which=which, tol=1e-2, confidence=confidence, seed=seed)
            low, high = result.rest
            held[which] += low <= float(others.min()) and float(others.max()) <= high
    # A probability of the confidence is missed by three standard errors once in 700.
    least = seeds * confidence - 3 * math.sqrt(seeds * confidence * (1 - confidence))
    assert min(held.values()) >= least


def test_the_rest_is_told_closely_where_there_is_a_gap() -> None:
    result = top_eigenpairs(Diagonal(with_outliers(2000, [4.0, 3.0, 2.0])), 3, seed=0)
    assert 1.0 <= result.rest[1] <= 2.0 + 1e-2 * 2.0 and result.rest[0] <= 0.0


def test_nothing_is_said_of_the_rest_where_nobody_looked() -> None:
    for options in ({"k": 1}, {"k": 3, "block": 3}, {"k": 3, "max_matvecs": 3}):
        assert top_eigenpairs(Diagonal(SPECTRA["outliers"]), seed=0, **options).rest == (-math.inf, math.inf)


def test_looking_for_what_was_missed_at_most_doubles_the_products() -> None:
    """A bulk without a gap, where excluding a neighbour would take very many."""
    A = Diagonal(SPECTRA["bulk"])
    spent = top_eigenpairs(A, 2, tol=1e-4, seed=0).matvecs
    wide = top_eigenpairs(A, 2, tol=1e-4, block=2, seed=0).matvecs
    assert spent <= 2.5 * wide


def test_scaling_the_matrix_scales_the_rest() -> None:
    plain = top_eigenpairs(Diagonal(COPIES), 3, seed=0)
    scaled = top_eigenpairs(Diagonal(1e-5 * COPIES), 3, seed=0)
    assert scaled.matvecs == plain.matvecs
    assert scaled.rest == pytest.approx([1e-5 * end for end in plain.rest], rel=1e-6)
