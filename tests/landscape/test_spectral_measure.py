"""The result of a spectral density: its functionals, exactly and with intervals that cover."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from losscope.landscape import SettingError, SpectralDensity, spectral_density, trace
from losscope.landscape.quadrature import Quadrature
from losscope.landscape.spectral_measure import merged
from net_spectra import ALL_KINDS, NETS, net_spectrum
from spectra import Diagonal

F64 = torch.float64
KNOWN = torch.tensor([-1.0, 0.0, 0.0, 2.0, 5.0], dtype=F64)


def rule(nodes: list[float], weights: list[float]) -> Quadrature:
    return Quadrature(
        torch.tensor(nodes, dtype=F64), torch.tensor(weights, dtype=F64), torch.zeros(len(nodes)).double()
    )


def between(values: Tensor, q: float) -> float:
    """A place between two eigenvalues, with about a share q below it."""
    at = int(q * len(values))
    return float(values[at] + values[at + 1]) / 2


# --------------------------------------------------------------------------- a spectrum that is known


def test_functionals_of_a_known_spectrum() -> None:
    density = SpectralDensity.of_eigenvalues(KNOWN.flip(0))
    assert density.nodes.tolist() == KNOWN.tolist() and density.weights.tolist() == [0.2] * 5
    assert density.bounds == (-1, 5)
    for p in range(5):
        found = density.moment(p)
        assert (found.value, found.low, found.high, found.method) == pytest.approx(
            (*[float((KNOWN**p).mean())] * 3, "exact")
        )
    assert density.trace.value == pytest.approx(6)
    assert (
        density.cdf(0.0) == pytest.approx((0.6,) * 3)
        and density.cdf(-2.0) == (0, 0, 0)
        and density.cdf(5.0) == (1, 1, 1)
    )
    assert density.mass(-0.5, 0.5).value == pytest.approx(0.4) and density.mass(-math.inf, -0.5).value == pytest.approx(
        0.2
    )
    for q, value in ((0, -1), (0.2, -1), (0.21, 0), (0.6, 0), (0.61, 2), (1, 5)):
        found = density.quantile(q)
        assert (found.value, found.low, found.high) == (value,) * 3
    assert density.wasserstein == 0 and density.converged and "5 of them one by one" in repr(density)


def test_the_mixture() -> None:
    """Two starts for three eigenvalues of four, and one that is known."""
    starts = (rule([0.0, 1.0], [0.5, 0.5]), rule([0.0, 2.0], [0.25, 0.75]))
    density = SpectralDensity(starts, torch.tensor([7.0], dtype=F64), 4, 4, 0.1, 0.95, True)
    assert density.nodes.tolist() == [0, 1, 2, 7]
    assert density.weights.tolist() == pytest.approx([0.75 * 0.375, 0.75 * 0.25, 0.75 * 0.375, 0.25])
    assert density.moment(1).value == pytest.approx((3 * (0.5 + 1.5) / 2 + 7) / 4)
    assert density.trace.value == pytest.approx(4 * density.moment(1).value)
    value, low, high = density.cdf(1.5)
    assert value == pytest.approx(0.75 * 0.625) and low < value < high < 0.75
    assert density.cdf(2.0) == pytest.approx((0.75,) * 3)


def test_shared_nodes_are_merged() -> None:
    nodes, weights, which = merged([rule([0.0, 1.0], [0.5, 0.5]), rule([0.0, 1.0], [0.1, 0.9])])
    assert nodes.tolist() == [0, 1] and weights.tolist() == pytest.approx([0.3, 0.7]) and which.tolist() == [0, 1, 0, 1]


def test_pickles() -> None:
    density = spectral_density(Diagonal(ALL_KINDS["outliers"]), vectors=3, steps=10, seed=0)
    again = pickle.loads(pickle.dumps(density))
    assert repr(again) == repr(density) and torch.equal(again.weights, density.weights)
    assert again.quantile(0.3).high == density.quantile(0.3).high


# --------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("name", NETS)
def test_intervals_cover_on_networks(name: str) -> None:
    check_coverage(net_spectrum(name), 28)


@pytest.mark.parametrize("name", ALL_KINDS)
def test_intervals_cover_on_spectra_of_all_kinds(name: str) -> None:
    check_coverage(ALL_KINDS[name].sort().values, 12, least=0.66, together=0.85)


def check_coverage(values: Tensor, seeds: int, least: float = 0.85, together: float = 0.93) -> None:
    """Each functional by itself, and all together at close to the nominal rate."""
    norm, covered = float(values.abs().max()), []
    for seed in range(seeds):
        vectors, steps = ((1, 10), (2, 12), (4, 8), (8, 8))[seed % 4]
        density = spectral_density(Diagonal(values), vectors=vectors, steps=steps, seed=seed)
        truths = [(density.moment(p), float((values**p).mean())) for p in (1, 2, 3)]
        truths += [
            (density.mass(-e * norm, e * norm), float((values.abs() <= e * norm).double().mean())) for e in (0.01, 0.1)
        ]
        truths += [
            (density.mass(-math.inf, x), float((values <= x).double().mean()))
            for x in (between(values, q) for q in (0.02, 0.3, 0.7, 0.98))
        ]
        truths += [(density.quantile(q), float(values[math.ceil(q * len(values)) - 1])) for q in (0.1, 0.5, 0.95)]
        covered.append([found.low - 1e-9 * norm <= truth <= found.high + 1e-9 * norm for found, truth in truths])
    assert np.mean(covered, axis=0).min() >= least
    assert np.mean(covered) >= together


def test_intervals_are_no_wider_than_they_have_to_be() -> None:
    """The half of a flat spectrum is known from 8 starts to 1.96 sqrt(2 / 4 / 8 n), and a few nodes' mass."""
    values = ALL_KINDS["flat"]
    density = spectral_density(Diagonal(values), vectors=8, steps=60, deflate=0, seed=0)
    _, low, high = density.cdf(0.5)
    assert high - low < 2 * 1.96 * math.sqrt(0.5 / (8 * 700)) + 3 / 60
    moment, stderr = density.moment(1), math.sqrt(2 * float(values.var()) / (8 * 700))
    assert moment.stderr == pytest.approx(stderr, rel=0.1)
    assert moment.high - moment.low == pytest.approx(2 * 1.96 * stderr, rel=0.2)


def test_shares_of_eigenvalues_invert_the_beta_law() -> None:
    density = SpectralDensity((rule([0.0, 1.0], [0.9, 0.1]),) * 2, torch.empty(0, dtype=F64), 500, 4, 0.1, 0.9, True)
    found = density.mass(0.5, 2.0)
    for end, tail in ((found.low, 0.95), (found.high, 0.05)):
        assert stats.beta(500 * end, 500 * (1 - end)).cdf(0.1) == pytest.approx(tail, abs=1e-6)


@pytest.mark.parametrize("name", ["flat", "heavy tails", "outliers"])
def test_shares_are_of_what_goes_on_and_moments_of_the_quadratures(name: str) -> None:
    """Whose moments it has, but for what was kept from leaving the range of the Ritz values."""
    values = ALL_KINDS[name]
    density = spectral_density(Diagonal(values), vectors=3, steps=8, seed=0)
    plain = dataclasses.replace(density, continued=None)
    assert len(density.nodes) > 2 * len(plain.nodes) and density.bounds == pytest.approx(plain.bounds)
    for p in range(5):
        one, other = density.moment(p), plain.moment(p)
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))
        assert float(density.weights @ density.nodes**p) == pytest.approx(one.value, rel=0.01, abs=0.01)
    for x in (between(values, q) for q in (0.05, 0.3, 0.6, 0.95)):
        value, low, high = density.cdf(x)
        assert value == pytest.approx(float(density.weights[density.nodes <= x].sum()))
        assert low <= min(value, plain.cdf(x)[0]) and max(value, plain.cdf(x)[0]) <= high


def test_the_trace_is_n_times_the_first_moment_and_agrees_with_hutchinson() -> None:
    values = net_spectrum("relu")
    density = spectral_density(Diagonal(values), vectors=4, steps=10, seed=0)
    assert density.trace.value == pytest.approx(len(values) * density.moment(1).value, rel=1e-12)
    other = trace(Diagonal(values), method="hutchinson", rtol=0.1, seed=1)
    assert max(density.trace.low, other.low) <= float(values.sum()) <= min(density.trace.high, other.high)


def test_the_cumulative_distribution_ascends_and_quantiles_undo_it() -> None:
    density = spectral_density(Diagonal(net_spectrum("untrained")), vectors=3, steps=12, seed=0)
    low, high = density.bounds
    cdf = [density.cdf(x) for x in np.linspace(low - 0.1, high + 0.1, 60)]
    assert (np.diff([value for value, _, _ in cdf]) >= 0).all()
    assert all(0 <= left <= value <= right <= 1 for value, left, right in cdf)
    for q in (0.05, 0.5, 0.99):
        assert density.cdf(density.quantile(q).value)[0] >= q - 1e-9
    assert density.mass(low, high).value == pytest.approx(1)


def test_products_that_err_widen_the_intervals() -> None:
    density = SpectralDensity((), KNOWN, 5, 5, 0.1, 0.95, True, rounding=1e-2)
    assert density.moment(1).low < 1.2 - 0.01 and density.moment(1).high > 1.2 + 0.01
    assert density.cdf(0.0) == pytest.approx((0.6, 0.2, 0.6))
    found = density.quantile(0.5)
    assert (found.low, found.value, found.high) == pytest.approx((-0.05, 0, 0.05))


# --------------------------------------------------------------------------- bad input


def test_moments_beyond_what_the_steps_give_are_refused() -> None:
    density = spectral_density(Diagonal(ALL_KINDS["flat"]), vectors=3, steps=2, seed=0)
    assert density.moment(3).value > 0
    with pytest.raises(SettingError, match="2 steps give moments up to 3, and p is 4: take more steps"):
        density.moment(4)


@pytest.mark.parametrize("p", [-1, 1.5, True, "1"])
def test_moments_that_mean_nothing_are_refused(p: object) -> None:
    with pytest.raises(SettingError, match="p must be an integer of 0 or more"):
        SpectralDensity.of_eigenvalues(KNOWN).moment(p)


def test_places_that_mean_nothing_are_refused() -> None:
    density = SpectralDensity.of_eigenvalues(KNOWN)
    for call in (lambda: density.mass(1.0, 0.0), lambda: density.mass(math.nan, 0.0), lambda: density.cdf(math.nan)):
        with pytest.raises(SettingError, match="low must be a number and high one that is not below it"):
            call()
    for q in (-0.1, 1.1, math.nan):
        with pytest.raises(SettingError, match="q must be between 0 and 1"):
            density.quantile(q)


@pytest.mark.parametrize("values", [torch.empty(0), torch.eye(2), torch.tensor([1.0, math.nan]), torch.ones(2) * 1j])
def test_spectra_that_are_none_are_refused(values: Tensor) -> None:
    with pytest.raises(SettingError, match="values must be finite real eigenvalues"):
        SpectralDensity.of_eigenvalues(values)


def test_one_node_stands_for_what_is_within_its_residual() -> None:
    """Where all others were taken out: two eigenvalues at 0 and 1, of which two starts see one node between them."""
    node = torch.tensor([0.4], dtype=F64)
    start = Quadrature(node, torch.ones(1, dtype=F64), torch.tensor([0.49], dtype=F64))
    known = torch.tensor([5.0, 6.0, 7.0], dtype=F64)
    density = SpectralDensity((start, start), known, 5, 8, 0.1, 0.95, True, steps=2)
    found = density.moment(1)
    assert found.value == pytest.approx(18.8 / 5) and found.low <= 19 / 5 <= found.high
    assert density.moment(2).value == pytest.approx((110 + 2 * (0.4**2 + 0.49**2)) / 5)


def test_moments_of_products_that_err_along_the_top_eigenvector() -> None:
    """As in a trained attention network: by rounding in one direction, and by as much again from product to product."""
    values = torch.cat([torch.linspace(1e-4, 1e-3, 299), torch.tensor([30.0])]).double()

    class Rounded(Diagonal):
        def product(self, V: Tensor) -> Tensor:
            found = super().product(V)
            found[-1] -= rounding * 30.0 * (1 + torch.rand((), generator=noise, dtype=F64) - 0.5) * V[-1]
            return found

    rounding, noise, covered = 1e-6, torch.Generator().manual_seed(0), np.zeros(2)
    for seed in range(20):
        A = Rounded(values)
        A.space.rounding = rounding
        density = spectral_density(A, vectors=3, steps=12, seed=seed)
        moments = [(density.moment(p), float((values**p).mean())) for p in (3, 4)]
        covered += [m.low <= true <= m.high for m, true in moments]
    assert (covered >= 18).all(), covered


@pytest.mark.parametrize("place", ["a", None, [1.0], torch.zeros(2)])
def test_places_that_are_no_numbers(place: object) -> None:
    density = SpectralDensity.of_eigenvalues(KNOWN)
    for ask in (density.cdf, density.quantile, lambda x: density.mass(x, 1.0), lambda x: density.mass(0.0, x)):
        with pytest.raises(SettingError, match="must be"):
            ask(place)
