"""Smoothing for display: no mass is lost, no peak falls between grid points, all of it scales with the spectrum."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from drawn_spectra import atom, scaled, spiked
from losscope.landscape import SpectralDensity, spectral_density
from losscope.landscape.quadrature import Quadrature
from losscope.viz.smoothing import BINS, NARROWEST, Axis, reach, smooth


def block(width: int, count: int) -> SpectralDensity:
    """Starts that share their nodes."""
    nodes = torch.linspace(-1, 2, count, dtype=torch.float64)
    weights = torch.rand(width, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    starts = [Quadrature(nodes, w / w.sum(), torch.ones_like(nodes)) for w in weights]
    return SpectralDensity(tuple(starts), torch.empty(0, dtype=torch.float64), 100, 0, 0.0, 0.95, True)


SPECTRA = {
    "uniform": lambda: spectral_density(torch.diag(torch.linspace(0, 1, 300)), vectors=3, steps=20, seed=0),
    "indefinite, deflated": lambda: spiked([3.0, 3.0, 40.0]),
    "atom far away": atom,
    **{f"a block of 4, {nodes} nodes": lambda nodes=nodes: block(4, nodes) for nodes in range(1, 13)},
    "one start": lambda: atom(starts=1),
    "negative": lambda: spectral_density(-torch.diag(torch.arange(1.0, 201.0) ** -2), seed=0),
    "identity": lambda: spectral_density(2 * torch.eye(50), seed=0),
    "zero": lambda: spectral_density(torch.zeros(5, 5), seed=0),
    "a number": lambda: SpectralDensity.of_eigenvalues(torch.tensor([-7.0])),
    "all eigenvalues": lambda: SpectralDensity.of_eigenvalues(torch.randn(3000, generator=torch.Generator())),
    "low rank": lambda: SpectralDensity.of_eigenvalues(torch.cat([torch.zeros(99), torch.tensor([5.0])])),
}


@pytest.fixture(scope="module", params=SPECTRA)
def density(request: pytest.FixtureRequest) -> SpectralDensity:
    return SPECTRA[request.param]()


@pytest.mark.parametrize("logarithmic", [None, True, False])
def test_mass_is_conserved(density: SpectralDensity, logarithmic: bool | None) -> None:
    curve = smooth(density, Axis.of(density, logarithmic=logarithmic))
    assert curve.shares.sum() == pytest.approx(1, abs=1e-12)
    assert curve.shares.min() >= 0
    assert np.all(np.diff(curve.values) > 0)
    per_bin = np.diff(curve.edges) / curve.axis.unit
    assert float(curve.density @ per_bin) == pytest.approx(1, abs=1e-12)
    assert max(curve.shares[0], curve.shares[-1]) < 3e-4  # the tails are on the axis too


@pytest.mark.parametrize("logarithmic", [None, True, False])
def test_the_first_moment_is_that_of_the_nodes(density: SpectralDensity, logarithmic: bool | None) -> None:
    curve = smooth(density, Axis.of(density, logarithmic=logarithmic))
    width = float(np.diff(curve.axis.value(curve.edges)).max())
    assert float(curve.shares @ curve.values) == pytest.approx(density.moment(1).value, abs=width)


@pytest.mark.parametrize("logarithmic", [None, True, False])
@pytest.mark.parametrize("factor", [1e-9, 0.3, 1e12, -1.0])
@pytest.mark.parametrize("name", ["uniform", "indefinite, deflated", "atom far away", "all eigenvalues", "zero"])
def test_the_curve_of_c_times_the_spectrum_is_the_scaled_curve(
    name: str, factor: float, logarithmic: bool | None
) -> None:
    density = SPECTRA[name]()
    multiple = scaled(density, factor)
    one = smooth(density, Axis.of(density, logarithmic=logarithmic))
    other = smooth(multiple, Axis.of(multiple, logarithmic=logarithmic))
    mirrored = slice(None, None, 1 if factor > 0 else -1)
    np.testing.assert_allclose(other.shares[mirrored], one.shares, rtol=1e-6, atol=1e-12)
    if name != "zero":  # which has no scale
        largest = np.abs(other.values).max()
        np.testing.assert_allclose(other.values[mirrored], factor * one.values, rtol=1e-6, atol=1e-9 * largest)


@pytest.mark.parametrize("logarithmic", [True, False])
@pytest.mark.parametrize("at", [10.0, 1e3, 1e5, 1e7, 123456.789, -1e5])
def test_one_per_cent_of_the_eigenvalues_keeps_its_mass_wherever_it_is(at: float, logarithmic: bool) -> None:
    density = atom(at=at)
    curve = smooth(density, Axis.of(density, logarithmic=logarithmic))
    weight = density.mass(*sorted((0.9 * at, 1.1 * at))).value
    assert weight == pytest.approx(0.01, rel=0.5)  # of random starts; the atom has 0.01
    near = np.abs(curve.values - at) < 0.5 * abs(at)
    assert curve.shares[near].sum() == pytest.approx(weight, rel=1e-6)
    peak = curve.axis.place(curve.values[near][curve.density[near].argmax()])
    assert abs(peak - curve.axis.place(np.array(at))) <= curve.edges[1] - curve.edges[0]


def test_a_peak_has_its_height_wherever_it_is_on_the_grid() -> None:
    """Three bins to a standard deviation: a shift by a fraction of a bin changes the height by little."""
    heights = []
    for shift in np.linspace(0, 1 / BINS, 7):
        density = SpectralDensity.of_eigenvalues(torch.tensor([0.0, 0.5 + shift, 1.0], dtype=torch.float64))
        curve = smooth(density)
        middle = slice(BINS // 3, 2 * BINS // 3)
        heights.append(curve.density[middle].max())
        length = curve.edges[-1] - curve.edges[0]
        assert heights[-1] == pytest.approx(1 / 3 / (NARROWEST * length * np.sqrt(2 * np.pi)), rel=0.03)
    assert max(heights) / min(heights) < 1.03


def test_an_unresolved_node_is_as_wide_as_it_is_uncertain() -> None:
    """Eight nodes of a thousand eigenvalues: no comb of eight peaks, but nearly the flat density that it is."""
    density = spectral_density(torch.diag(torch.linspace(0, 1, 1000, dtype=torch.float64)), vectors=1, steps=8, seed=0)
    curve = smooth(density)
    inside = curve.density[(curve.values > 0.1) & (curve.values < 0.9)]
    assert inside.max() / inside.min() < 2.5
    resolved = spectral_density(torch.diag(torch.linspace(0, 1, 8, dtype=torch.float64)), vectors=1, steps=8, seed=0)
    peaks = smooth(resolved)
    inside = peaks.density[(peaks.values > 0.1) & (peaks.values < 0.9)]
    assert inside.min() < 1e-6 * inside.max()  # eight eigenvalues, each known to rounding, are eight peaks


def test_the_smoothed_truth_is_close() -> None:
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(600, 600, generator=generator, dtype=torch.float64) / 600**0.5
    A = (X + X.T) / 2**0.5
    density = spectral_density(A, vectors=20, steps=40, seed=0)
    exact = SpectralDensity.of_eigenvalues(torch.linalg.eigvalsh(A))
    axis = Axis.of(density)
    span = reach(density, exact, axis=axis)
    found, true = (smooth(d, axis, span=span, bins=60) for d in (density, exact))
    assert np.abs(found.shares - true.shares).sum() < 0.1


def test_an_axis_is_logarithmic_where_the_outermost_are_far_from_the_rest() -> None:
    assert not Axis.of(SPECTRA["uniform"]()).logarithmic
    assert Axis.of(atom()).logarithmic
    assert Axis.of(SPECTRA["low rank"]()).logarithmic
    assert Axis.of(SPECTRA["uniform"](), atom()).logarithmic
    assert Axis.of(atom(), logarithmic=False) == Axis()
    assert Axis.of(SPECTRA["zero"](), logarithmic=True) == Axis()


def test_a_logarithmic_axis_is_odd_and_invertible() -> None:
    axis = Axis(0.01)
    values = np.array([-1e3, -1.0, -1e-3, 0.0, 1e-3, 1.0, 1e3])
    np.testing.assert_allclose(axis.value(axis.place(values)), values, rtol=1e-12)
    np.testing.assert_allclose(axis.place(-values), -axis.place(values))
    decade = axis.place(np.array(1e3)) - axis.place(np.array(1e2))
    assert decade == pytest.approx(axis.unit, rel=1e-6)
    h = 1e-7
    slope = (axis.value(axis.place(values) + h) - axis.value(axis.place(values) - h)) / (2 * h)
    np.testing.assert_allclose(axis.stretch(values), slope, rtol=1e-6)


@pytest.mark.parametrize("starts", [1, 4])
def test_the_band_covers_what_infinitely_many_starts_say(starts: int) -> None:
    A = torch.diag(torch.linspace(-1, 2, 800, dtype=torch.float64))
    found = [spectral_density(A, vectors=starts, steps=16, seed=seed) for seed in range(40)]
    span = reach(*found, axis=Axis())
    curves = [smooth(density, Axis(), span=span, bins=200) for density in found]
    mean = np.mean([curve.density for curve in curves], axis=0)
    seen = np.mean([curve.shares for curve in curves], axis=0) * 800 > 0.1
    bands = [curve.band for curve in curves]
    covered = np.mean([((low <= mean) & (mean <= high))[seen] for low, high in bands])
    assert 0.92 < covered < 0.99  # nominal .95
    assert np.median([(high / low)[seen] for low, high in bands]) < (2.5 if starts == 1 else 1.6)


def test_the_band_of_one_eigenvalue_is_that_of_its_random_weight() -> None:
    """S starts give it a weight chi2_S / (S n): the interval for its share is S w / chi2_S's quantiles."""
    for starts in (1, 3, 20):
        rest = [Quadrature(torch.tensor([0.0, 9.0]), torch.tensor([0.99, 0.01]), torch.zeros(2))] * starts
        density = SpectralDensity(tuple(rest), torch.empty(0), 50, 0, 0.0, 0.9, True)
        curve = smooth(density)
        at = np.abs(curve.values - 9).argmin()
        low, high, middle = curve.band[0][at], curve.band[1][at], curve.density[at]
        assert middle / low == pytest.approx(chi2.ppf(0.95, starts) / starts, rel=1e-6)
        assert middle / high == pytest.approx(chi2.ppf(0.05, starts) / starts, rel=1e-6)


def test_deflated_eigenvalues_have_no_band() -> None:
    assert smooth(SpectralDensity.of_eigenvalues(torch.randn(9))).band is None
    curve = smooth(spiked([30.0, 40.0]))
    low, high = curve.band
    outer = curve.values > 20
    np.testing.assert_allclose(low[outer], curve.density[outer], atol=1e-12)
    np.testing.assert_allclose(high[outer], curve.density[outer], atol=1e-12)
    assert curve.shares[outer].sum() == pytest.approx(2 / 400)


def test_confidence_of_the_band() -> None:
    density = atom()
    narrow, wide = (smooth(density, confidence=c).band for c in (0.5, 0.99))
    assert np.all(wide[1] >= narrow[1]) and np.all(wide[0] <= narrow[0])
