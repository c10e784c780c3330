"""Edges of bulks from three-term coefficients: discrete measures, laws with known edges, simulated matrices."""

import math

import pytest
import torch
from torch import Tensor

from losscope.landscape import MarchenkoPastur, Semicircle, spectral_density
from losscope.landscape.bulk_edge import bulk_of, three_term_coefficients
from losscope.landscape.quadrature import Quadrature
from losscope.landscape.random_matrix import tracy_widom_quantile
from spectra import Diagonal

F64 = torch.float64


def quantiles(law: Semicircle | MarchenkoPastur, n: int) -> Tensor:
    """n eigenvalues spread as the law has them."""
    low, high = law.edges
    grid = torch.linspace(min(low, 0.0) if isinstance(law, MarchenkoPastur) else low, high, 200_001, dtype=F64)
    wanted = (torch.arange(n, dtype=F64) + 0.5) / n
    return grid[torch.searchsorted(law.cdf(grid), wanted)]


def seen(values: Tensor, starts: int = 4, steps: int = 60, seed: int = 0) -> list[Quadrature]:
    """What random vectors see of these eigenvalues."""
    found = spectral_density(Diagonal(values), vectors=starts, steps=steps, deflate=0, seed=seed)
    return list(found.starts)


# --------------------------------------------------------------------------- coefficients


def test_coefficients_are_those_of_the_lanczos_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    T = torch.zeros(12, 12, dtype=F64)
    alpha, beta = torch.randn(12, generator=generator, dtype=F64), 0.5 + torch.rand(11, generator=generator, dtype=F64)
    T.diagonal().copy_(alpha)
    T.diagonal(1).copy_(beta)
    T.diagonal(-1).copy_(beta)
    nodes, vectors = torch.linalg.eigh(T)
    found = three_term_coefficients(nodes, 7 * vectors[0].square(), 30)
    torch.testing.assert_close(found[0], alpha[:11], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1], beta, rtol=1e-9, atol=1e-9)
    assert [len(x) for x in three_term_coefficients(nodes, vectors[0].square(), 5)] == [5, 5]


def test_a_measure_of_few_places_has_few_coefficients() -> None:
    nodes = torch.tensor([0.0, 0.0, 1.0, 3.0], dtype=F64)
    assert len(three_term_coefficients(nodes, torch.full((4,), 0.25, dtype=F64), 10)[0]) == 2
    assert [len(x) for x in three_term_coefficients(nodes[:1], nodes.new_ones(1), 10)] == [0, 0]


def test_of_a_uniform_density_they_are_legendres() -> None:
    n = 4000
    alpha, beta = three_term_coefficients(torch.linspace(-1, 1, n, dtype=F64), torch.full((n,), 1 / n, dtype=F64), 8)
    k = torch.arange(1, 9, dtype=F64)
    torch.testing.assert_close(beta, k / (4 * k**2 - 1).sqrt(), rtol=2e-3, atol=0)
    assert float(alpha.abs().max()) < 1e-9


# --------------------------------------------------------------------------- edges


@pytest.mark.parametrize(
    ("law", "named"),
    [
        (Semicircle(1.0), "semicircle of scale"),
        (Semicircle(1e-5, center=0.3), "semicircle of scale"),
        (MarchenkoPastur(0.3), "Marchenko and Pastur's of aspect"),
        (MarchenkoPastur(1.0, 50.0), "Marchenko and Pastur's of aspect"),
        (MarchenkoPastur(2.0), "Marchenko and Pastur's of aspect"),
    ],
    ids=str,
)
def test_edges_and_units_are_those_of_the_law(law: Semicircle | MarchenkoPastur, named: str) -> None:
    n = 3000
    errors = []
    for seed in range(4):
        bulk = bulk_of(seen(quantiles(law, n), seed=seed), 60, n)
        assert bulk is not None and bulk.upper.settled and bulk.rigid and named in bulk.law
        assert bulk.upper.unit == pytest.approx(law.edge_scale(n), rel=0.15)
        assert bulk.upper.width == pytest.approx(law.edges[1] - law.edges[0], rel=0.03)
        errors.append((bulk.upper.value - law.edges[1]) / bulk.upper.width)
        errors.append((bulk.lower.value - law.edges[0]) / bulk.upper.width)
    assert max(map(abs, errors)) < 0.01


def test_a_flat_density_has_edges_but_is_no_random_matrix() -> None:
    bulk = bulk_of(seen(torch.linspace(2, 6, 3000, dtype=F64)), 60, 3000)
    assert bulk is not None and (bulk.lower.settled, bulk.upper.settled, bulk.rigid) == (True, True, False)
    assert (bulk.lower.value, bulk.upper.value) == (pytest.approx(2, abs=0.04), pytest.approx(6, abs=0.04))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_power_laws_have_no_edge(power: float) -> None:
    bulk = bulk_of(seen(torch.arange(1, 2001, dtype=F64) ** -power), 60, 2000)
    assert bulk is not None and not bulk.upper.settled


def test_intervals_hold_the_extreme_eigenvalue_of_random_matrices() -> None:
    """At the risk that is asked for, about; a matrix's own edge moves with its own extreme eigenvalue."""
    n, beyond = 300, 0
    for seed in range(30):
        W = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=F64)
        A = (W + W.T) / math.sqrt(2 * n)
        density = spectral_density(A, vectors=4, steps=40, deflate=0, seed=100 + seed)
        bulk = bulk_of(density.starts, 40, n)
        assert bulk is not None
        beyond += float(torch.linalg.eigvalsh(A)[-1]) > bulk.upper.value + bulk.upper.reach(0.05)
    assert beyond <= 3


def test_reach() -> None:
    bulk = bulk_of(seen(quantiles(Semicircle(1.0), 3000)), 60, 3000)
    assert bulk is not None
    edge = bulk.upper
    assert edge.reach(0.01) > edge.reach(0.1) >= tracy_widom_quantile(0.9) * edge.unit
    assert edge.reach(0.05, whole=False) <= edge.reach(0.05)


def test_scale_and_shift() -> None:
    values = quantiles(MarchenkoPastur(0.3), 1000)
    one, other = (bulk_of(seen(c * values + shift), 60, 1000) for c, shift in ((1.0, 0.0), (-1e-6, 2e-6)))
    assert one is not None and other is not None
    assert other.lower.value == pytest.approx(-1e-6 * one.upper.value + 2e-6, rel=1e-6)
    assert other.lower.unit == pytest.approx(1e-6 * one.upper.unit, rel=1e-5)


def test_too_few_steps() -> None:
    assert bulk_of(seen(quantiles(Semicircle(1.0), 500), steps=8), 8, 500) is None
    assert bulk_of([Quadrature(*(torch.ones(1, dtype=F64) for _ in range(3)))], 1, 1) is None
