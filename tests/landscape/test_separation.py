"""The methods that tell outliers from a bulk, one side at a time: their risks, and what they see of a side."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from losscope.landscape import SpectralDensity, spectral_density, top_eigenpairs
from losscope.landscape.separation import SideView, _chance, _heaviest, by_bulk, by_gap, by_null
from spectra import rotated

F64 = torch.float64


def view_of(values: Tensor, sign: int = 1) -> SideView:
    """Of a spectrum that is known."""
    return SideView(SpectralDensity.of_eigenvalues(values), (), sign, len(values))


TAILS = {
    "power": lambda u: u**-0.4,
    "steep power": lambda u: u**-1.5,
    "exponential": lambda u: -u.log(),
    "normal": lambda u: torch.special.ndtri(1 - u),
    "flat": lambda u: 1 - u,
}


@pytest.mark.parametrize("name", TAILS)
def test_the_gap_keeps_to_its_risk(name: str) -> None:
    """On eigenvalues drawn from laws with tails, where the first gaps are large by nature."""
    generator = torch.Generator().manual_seed(0)
    alarms = 0
    for _ in range(200):
        u = torch.rand(500, generator=generator, dtype=F64).clamp(min=1e-12)
        alarms += by_gap(view_of(TAILS[name](u)), 0.05).count != 0
    assert alarms <= 18  # 10 are expected at most


def test_the_chance_of_a_gap() -> None:
    """Of an exponential variable over the mean of others, by simulation."""
    generator = np.random.default_rng(0)
    for rank, many in ((1, 3), (1, 9), (4, 5)):
        draws = generator.exponential(size=(20_000, many + 1))
        gaps = draws / np.arange(rank, rank + many + 1)
        chances = [_chance(rank, float(g[0]), torch.tensor(g[1:])) for g in gaps[:4000]]
        assert np.mean(np.array(chances) < 0.1) == pytest.approx(0.1, abs=0.02)
    assert _chance(1, 0.0, torch.ones(3)) == 1.0
    assert _chance(1, 1.0, torch.zeros(3)) == 0.0


def test_the_gap_finds_groups() -> None:
    """The last of several exceptional gaps, as with eigenvalues of classes on two scales."""
    generator = torch.Generator().manual_seed(0)
    bulk = torch.rand(490, generator=generator, dtype=F64)
    found = by_gap(
        view_of(torch.cat([bulk, torch.linspace(1e4, 2e4, 5).double(), torch.linspace(50, 70, 5).double()])), 0.05
    )
    assert found.count == 10
    assert found.low == pytest.approx(1.0, abs=0.05) and found.high == pytest.approx(50.0)
    assert "the largest ratio is 144, after 5" in found.reason


def test_what_is_known_of_a_side() -> None:
    values = torch.tensor([9.0, 5.0, 5.0, 1.0, -4.0, 0.0, 0.5, 0.2]).double()
    upper, lower = view_of(values), view_of(values, -1)
    assert upper.values[:4].tolist() == [9.0, 5.0, 5.0, 1.0] and lower.values[0] == 4.0
    assert (upper.beyond(4.9), upper.beyond(5.0), upper.beyond(100.0)) == (3, 1, 0)
    assert (upper.cut(0), upper.cut(1), upper.cut(3)) == (math.inf, 7.0, 3.0)
    assert upper.median == pytest.approx(0.5, abs=0.3)


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_eigenpairs_are_those_of_their_ends(which: str) -> None:
    """Ritz values between the ends that were asked for are no extreme ones."""
    A = rotated(torch.cat([torch.linspace(-1, 1, 40), torch.tensor([5.0, 4.0, -3.0])]).double())
    pairs = top_eigenpairs(A, 3, which=which, tol=1e-8, seed=0)
    upper, lower = (SideView(None, [pairs], sign, 43).values.tolist() for sign in (1, -1))
    expected = {"LA": ([5, 4, 1], []), "SA": ([], [3, 1, 0.95]), "LM": ([5, 4], [3]), "BE": ([5, 4], [3])}[which]
    assert upper == pytest.approx(expected[0], abs=0.01) and lower == pytest.approx(expected[1], abs=0.01)


def test_the_null_is_as_large_as_any_that_was_given() -> None:
    view = view_of(torch.linspace(0, 10, 101).double())
    (found,) = by_null(view, [3.0, 9.55, 7.0])
    assert (found.count, found.edge, found.low, found.high) == (5, 9.55, 3.0, 9.55)
    assert by_null(view, []) == [] and by_null(view_of(torch.arange(9.0), -1), [3.0]) == []


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("vectors", [1, 4])
def test_the_zeros_of_a_matrix_of_low_rank(dtype: torch.dtype, vectors: int) -> None:
    """Rounding makes many nodes of them, which are one place all the same."""
    values = torch.zeros(600, dtype=F64)
    values[:5] = torch.tensor([5.0, 4.0, 3.0, 2.0, -1.0])
    density = spectral_density(rotated(values).to(dtype), vectors=vectors, steps=20, seed=0)
    views = [SideView(density, (), sign, 600) for sign in (1, -1)]
    assert [found.count for found in by_bulk(views, 600, 0.025)] == [4, 1]


def test_copies_of_an_eigenvalue_are_one() -> None:
    """Three-term recurrences see outliers several times, some not converged; beside them nothing is left out."""
    values = torch.cat([torch.linspace(-1, 1, 597), torch.tensor([5.0, 3.0, 2.9])]).double()
    density = spectral_density(rotated(values), vectors=2, steps=120, memory=0, seed=0)
    view = SideView(density, (), 1, 600)
    assert view.values[:3].tolist() == pytest.approx([5.0, 3.0, 2.9], abs=1e-6)
    assert view.beyond(1.5) == 3 and 0.9 < float(view.values[3]) <= 1.0


def test_the_bulk_keeps_to_its_risk() -> None:
    """Of matrices of 300 without spikes, on two sides at a risk of 0.025 each."""
    alarms = 0
    for seed in range(60):
        W = torch.randn(300, 300, generator=torch.Generator().manual_seed(seed), dtype=F64)
        values = torch.linalg.eigvalsh((W + W.T) / math.sqrt(600))
        views = [view_of(values, sign) for sign in (1, -1)]
        alarms += any(found.count != 0 for found in by_bulk(views, 300, 0.025))
    assert alarms <= 7  # 3 are expected; more have a probability of 0.01


def test_the_heaviest_place() -> None:
    values = torch.cat([torch.zeros(300), torch.linspace(1, 2, 700)]).double()
    view = view_of(values)
    place, share = _heaviest(view.measures, view.rounding)
    assert (place, share) == (pytest.approx(0.0, abs=1e-7), pytest.approx(0.3))
    rest = view.beside(place, share)
    assert rest.size == 700 and len(rest.measures[0].nodes) == 700
    assert float(rest.measures[0].weights.sum()) == pytest.approx(1.0)
    lower = view_of(values, -1)
    assert float(lower.values[0]) == 0.0 and float(lower.beside(-place, share).values.max()) == -1.0
