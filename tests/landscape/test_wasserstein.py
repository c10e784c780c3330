"""The Wasserstein-1 distance against SciPy's, and what random starts miss against random weights themselves."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from losscope.landscape.wasserstein import Sampling, distance
from net_spectra import ALL_KINDS

F64 = torch.float64
KINDS = {name: values.sort().values[::3] for name, values in ALL_KINDS.items()}


def measure(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    weights = torch.rand(size, generator=generator, dtype=F64)
    return torch.randn(size, generator=generator, dtype=F64), weights / weights.sum()


def seen(values: Tensor, starts: int, generator: torch.Generator) -> Tensor:
    """The weights that random unit vectors give eigenvalues, on average over some of them."""
    q = torch.randn(starts, len(values), generator=generator, dtype=F64)
    return (q / q.norm(dim=1, keepdim=True)).square().mean(dim=0)


# --------------------------------------------------------------------------- the distance


@settings(max_examples=50, deadline=None)
@given(a=st.integers(1, 30), b=st.integers(1, 30), seed=st.integers(0, 2**32))
def test_the_distance_is_that_of_scipy(a: int, b: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = measure(a, generator), measure(b, generator)
    exact = stats.wasserstein_distance(one[0], other[0], one[1], other[1])
    assert distance(*one, *other) == pytest.approx(exact, rel=1e-9, abs=1e-12)


def test_moving_all_mass_costs_how_far() -> None:
    nodes, weights = measure(20, torch.Generator().manual_seed(0))
    assert distance(nodes, weights, nodes + 3, weights) == pytest.approx(3, rel=1e-12)
    assert distance(-2 * nodes, weights, torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)) == pytest.approx(
        float(2 * nodes.abs() @ weights), rel=1e-12
    )
    assert distance(nodes, weights, nodes.flip(0), weights.flip(0)) == pytest.approx(0, abs=1e-14)


# --------------------------------------------------------------------------- what starts miss


@pytest.mark.parametrize("starts", [1, 4])
@pytest.mark.parametrize("name", KINDS)
def test_draws_follow_the_law_of_random_starts(name: str, starts: int) -> None:
    """Drawn from the spectrum itself, the distances are those of random unit vectors."""
    values, generator = KINDS[name], torch.Generator().manual_seed(1)
    share = torch.full_like(values, 1 / len(values))
    sampling = Sampling(values, share, len(values), starts)
    drawn = np.abs(np.cumsum(sampling.draws - sampling.reference, axis=1)[:, :-1]) @ np.diff(sampling.nodes)
    found = [distance(values, seen(values, starts, generator), values, share) for _ in range(400)]
    assert stats.ks_2samp(drawn, found).pvalue > 1e-3


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("starts", [1, 8])
def test_bounds_and_intervals_from_what_was_seen_cover(name: str, starts: int) -> None:
    values, generator = KINDS[name], torch.Generator().manual_seed(starts)
    n = len(values)
    share, covered, ratios = torch.full_like(values, 1 / n), [], []
    for _ in range(50):
        weights = seen(values, starts, generator)
        sampling = Sampling(values, weights, n, starts)
        actual, bound = distance(values, weights, values, share), sampling.distance(0.975)
        _, low, high = sampling.interval(values**2, 0.95)
        covered.append((actual <= bound, low <= float((values**2).mean()) <= high))
        ratios.append(bound / actual)
    assert (np.mean(covered, axis=0) >= 0.85).all()
    assert np.median(ratios) <= (5 if starts == 1 else 4)


def test_reference_counts_whole_eigenvalues_outwards() -> None:
    weights = torch.tensor([0.001, 0.004, 0.245, 0.5, 0.2, 0.049, 0.001], dtype=F64)
    sampling = Sampling(torch.arange(7, dtype=F64), weights, 100, 1)
    counts = 100 * sampling.reference
    assert counts.tolist() == pytest.approx([1, 24, 50, 20, 4, 1])  # one at least at either end
    assert sampling.nodes.tolist() == [0, 2, 3, 4, 5, 6]


def test_one_place_leaves_nothing_to_miss() -> None:
    sampling = Sampling(torch.tensor([2.0], dtype=F64), torch.ones(1, dtype=F64), 10, 1)
    assert sampling.distance(0.95) == 0
    assert sampling.interval(torch.tensor([4.0], dtype=F64), 0.95) == (0, 4, 4)


def test_one_eigenvalue_among_many_leaves_a_single_start_in_doubt() -> None:
    """Its weight is that of a squared normal number: the interval is wide, and finite."""
    nodes, weights = torch.tensor([0.0, 1.0], dtype=F64), torch.tensor([0.999, 0.001], dtype=F64)
    _, low, high = Sampling(nodes, weights, 1000, 1).interval(nodes, 0.95)
    assert low < 0.0005 and 0.005 < high < math.inf
