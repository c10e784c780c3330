"""The spectral density: against dense spectra, its bound over many seeds, and what is asked of it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from losscope.landscape import NonFiniteError, SettingError, SpectralDensity, spectral_density, top_eigenpairs
from losscope.landscape.operators import as_operator
from losscope.landscape.wasserstein import distance
from net_spectra import ALL_KINDS, NETS, net_hessian, net_spectrum
from spectra import SPECTRA, Diagonal, rotated, with_outliers

F64 = torch.float64


def error(density: SpectralDensity, values: Tensor) -> float:
    """The Wasserstein-1 distance to the eigenvalues."""
    values = values.double()
    return distance(density.nodes, density.weights, values, torch.full_like(values, 1 / len(values)))


# --------------------------------------------------------------------------- the bound


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("vectors", "steps"), [(1, 30), (3, 12), (8, 10), (8, 30)])
def test_the_bound_covers_on_networks_and_is_not_loose(name: str, vectors: int, steps: int) -> None:
    values, errors, bounds = net_spectrum(name), [], []
    for seed in range(25):
        density = spectral_density(Diagonal(values), vectors=vectors, steps=steps, seed=seed)
        assert density.matvecs == vectors * steps
        errors.append(error(density, values))
        bounds.append(density.wasserstein)
    assert np.mean(np.array(errors) <= bounds) >= 0.92
    assert np.median(bounds) <= 4 * np.median(errors)


@pytest.mark.parametrize("name", ALL_KINDS)
def test_the_bound_covers_on_spectra_of_all_kinds(name: str) -> None:
    values, covered = ALL_KINDS[name], []
    for seed in range(12):
        for vectors, steps in ((1, 10), (2, 30), (4, 4), (8, 12)):
            density = spectral_density(Diagonal(values), vectors=vectors, steps=steps, seed=seed)
            covered.append(error(density, values) <= density.wasserstein)
    assert np.mean(covered) >= 0.85  # the same twelve seeds in all


@pytest.mark.parametrize("name", NETS)
def test_the_hessian_itself_in_single_precision(name: str) -> None:
    values, A = net_spectrum(name), net_hessian(name).float()
    found = [spectral_density(A, vectors=4, steps=16, seed=seed) for seed in range(3)]
    assert all(error(density, values) <= density.wasserstein for density in found)
    exact = spectral_density(Diagonal(values), vectors=4, steps=16, seed=0)
    assert error(found[0], values) <= 3 * error(exact, values)


@pytest.mark.parametrize(("vectors", "steps"), [(1, 2), (1, 3), (2, 2), (1, 1000)])
def test_few_steps_have_a_bound_that_holds(vectors: int, steps: int) -> None:
    for values in (SPECTRA["outliers"], SPECTRA["indefinite"], SPECTRA["decaying"]):
        for seed in range(5):
            density = spectral_density(Diagonal(values), vectors=vectors, steps=steps, seed=seed)
            assert error(density, values) <= density.wasserstein < math.inf


@pytest.mark.parametrize(("vectors", "steps"), [(4, 12), (8, 100)])
def test_products_that_err_widen_the_bound(vectors: int, steps: int) -> None:
    """By a hundredth of the largest, as finite differences do; the same error for the same vector, and symmetric."""
    values = net_spectrum("resnet")
    n, norm = len(values), float(values.abs().max())
    E = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=F64)
    E = (E + E.T) / (8 * n) ** 0.5
    A = as_operator(net_hessian("resnet") + 0.01 * norm * E)
    A.space.rounding = 0.01
    density = spectral_density(A, vectors=vectors, steps=steps, seed=0)
    assert 0.02 * density.wasserstein < error(density, values) <= density.wasserstein
    assert density.wasserstein >= 0.009 * norm


# --------------------------------------------------------------------------- resolved eigenvalues buy accuracy


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("vectors", "steps"), [(3, 10), (8, 20)])
def test_at_equal_products_it_is_more_accurate_than_plain_quadrature(name: str, vectors: int, steps: int) -> None:
    """Than the nodes and weights of separate starts, and than the same on a grid, smoothed."""
    values = net_spectrum(name)
    options = [
        {"vectors": vectors, "steps": steps},
        {"vectors": vectors, "steps": steps, "memory": 8 * len(values) * (steps + 2), "deflate": 0},
    ]
    errors = {i: [] for i in range(3)}
    for seed in range(10):
        for i, chosen in enumerate(options):
            density = spectral_density(Diagonal(values), seed=seed, **chosen)
            assert density.matvecs == vectors * steps
            errors[i].append(error(density, values))
        errors[2].append(error_on_grid(density, values))
    ours, plain, smoothed = (np.median(found) for found in errors.values())
    assert ours < 0.8 * plain and ours < 0.8 * smoothed


def error_on_grid(density: SpectralDensity, values: Tensor, points: int = 1024) -> float:
    """Of a density with Gaussian bumps of the width that Papyan (2020) gives them (kappa = 3)."""
    low, high = density.bounds
    grid = torch.linspace(low - 0.05 * (high - low), high + 0.05 * (high - low), points, dtype=F64)
    width = (high - low) / (len(density.starts[0].nodes) - 1) / math.sqrt(8 * math.log(3))
    heights = torch.exp(-0.5 * ((grid[:, None] - density.nodes) / width).square()) @ density.weights
    return distance(grid, heights / heights.sum(), values, torch.full_like(values, 1 / len(values)))


def test_known_eigenpairs_are_taken_out_and_cost_nothing_more() -> None:
    values = net_spectrum("resnet")
    A = net_hessian("resnet")
    pairs = top_eigenpairs(A, 6, which="LM", tol=1e-3, seed=0)
    one, plain = (spectral_density(A, vectors=1, steps=30, deflate=given, seed=0) for given in (pairs, 0))
    assert one.matvecs == plain.matvecs == 30 and len(one.deflated) == 6
    torch.testing.assert_close(one.deflated, pairs.values.sort().values)
    assert error(one, values) < 0.3 * error(plain, values)
    assert error(one, values) <= one.wasserstein < plain.wasserstein


def test_eigenpairs_that_are_searched_for_are_counted() -> None:
    A = Diagonal(net_spectrum("relu"))
    density = spectral_density(A, vectors=1, steps=20, deflate=5, seed=0)
    assert density.matvecs == A.products > 20 and len(density.deflated) == 5
    assert error(density, A.values) <= density.wasserstein


def test_eigenpairs_that_are_none_are_not_taken_out() -> None:
    A = rotated(with_outliers(300, [20.0, 50.0, 100.0]))
    rough = top_eigenpairs(A, 6, block=1, tol=1e-9, max_matvecs=8, seed=0)
    good = int((rough.residuals <= 0.05 * rough.values.abs()).sum())
    density = spectral_density(A, vectors=1, steps=20, deflate=rough, seed=0)
    assert good < 6 and len(density.deflated) == good
    assert f"{6 - good} of 6 eigenpairs have large residuals" in density.note


def test_nothing_is_taken_out_on_demand() -> None:
    values = SPECTRA["outliers"]
    plain, auto = (spectral_density(Diagonal(values), vectors=3, steps=12, deflate=d, seed=0) for d in (0, None))
    assert len(plain.deflated) == 0 and len(auto.deflated) == 3
    assert all(float(q.nodes[-1]) == pytest.approx(100) for q in plain.starts)


def test_an_atom_far_from_a_narrow_bulk_keeps_its_mass() -> None:
    """One percent at 1e5 times the bulk's width."""
    values = torch.cat([torch.linspace(0, 1, 990), torch.full((10,), 1e5)]).double()
    density = spectral_density(Diagonal(values), vectors=8, steps=20, seed=0)
    found = density.mass(5e4, 2e5)
    assert found.low <= 0.01 <= found.high and found.value == pytest.approx(0.01, rel=0.5)
    more = spectral_density(Diagonal(values), vectors=12, steps=20, seed=0)  # more starts than copies
    assert more.mass(5e4, 2e5).value == pytest.approx(0.01, abs=1e-12)


# --------------------------------------------------------------------------- identities


@settings(max_examples=20, deadline=None)
@given(c=st.floats(1e-15, 1e15), sign=st.sampled_from([1, -1]), seed=st.integers(0, 2**32))
def test_the_density_of_c_times_the_loss_is_scaled_by_c(c: float, sign: int, seed: int) -> None:
    values = SPECTRA["decaying"] - 0.1
    one, many = (spectral_density(Diagonal(f * values), vectors=3, steps=10, seed=seed) for f in (1.0, sign * c))
    nodes, weights = many.nodes / (sign * c), many.weights
    if sign < 0:
        nodes, weights = nodes.flip(0), weights.flip(0)
    assert distance(nodes, weights, one.nodes, one.weights) <= 1e-10
    assert len(one.deflated) == len(many.deflated) and many.wasserstein == pytest.approx(c * one.wasserstein, rel=0.1)
    for p in (1, 2):
        assert many.moment(p).value == pytest.approx((sign * c) ** p * one.moment(p).value, rel=1e-8)


def test_the_density_of_a_shifted_matrix_is_shifted() -> None:
    values = SPECTRA["indefinite"]
    one, other = (spectral_density(Diagonal(values + s), vectors=3, steps=10, seed=0) for s in (0.0, 5.0))
    assert distance(one.nodes + 5, one.weights, other.nodes, other.weights) <= 1e-10


# --------------------------------------------------------------------------- exact results, early ends


@pytest.mark.parametrize("n", [1, 2, 3, 10, 40])
@pytest.mark.parametrize(("vectors", "steps"), [(8, 64), (1, 40), (4, 10)])
def test_small_matrices_are_exact(n: int, vectors: int, steps: int) -> None:
    values = torch.linspace(-1, 2, n, dtype=F64)
    A = rotated(values)
    density = spectral_density(A, vectors=vectors, steps=steps, seed=0)
    torch.testing.assert_close(density.deflated, values, rtol=0, atol=1e-12)
    assert density.starts == () and density.matvecs == n and density.converged
    assert error(density, values) <= density.wasserstein + 1e-14 <= 1e-12
    assert density.moment(2).method == "exact"


@pytest.mark.parametrize("n", [1, 2, 3, 30])
@pytest.mark.parametrize(("vectors", "steps"), [(1, 2), (2, 2), (8, 3)])
@pytest.mark.parametrize("value", [0.0, 2.0, -3.0])
def test_multiples_of_the_identity(n: int, vectors: int, steps: int, value: float) -> None:
    density = spectral_density(value * torch.eye(n), vectors=vectors, steps=steps, seed=0)
    assert density.matvecs <= vectors * steps and density.wasserstein <= 1e-4
    assert density.moment(3).value == pytest.approx(value**3, rel=1e-5)
    assert density.bounds == pytest.approx((value, value), abs=1e-5)
    assert density.weights.isfinite().all() and float(density.weights.sum()) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_matrix_of_low_rank_is_exact_once_its_space_is_spanned(dtype: torch.dtype) -> None:
    values = torch.cat([torch.zeros(580), torch.linspace(1, 20, 20)]).to(dtype)
    A = rotated(values)
    density = spectral_density(A, vectors=8, steps=30, seed=0)
    assert density.matvecs < 100 and len(density.deflated) == 20
    assert error(density, values) <= density.wasserstein <= 200 * density.rounding + 1e-11
    assert density.mass(-1e-3, 1e-3).value == pytest.approx(580 / 600)
    assert density.moment(4).value == pytest.approx(float((values.double() ** 4).mean()), rel=1e-4)


def test_an_invariant_space_leaves_the_weights_to_chance() -> None:
    """Two eigenvalues, each of them 150 times: where they are is exact, how many there are is not."""
    values = torch.tensor([0.0, 1.0], dtype=F64).repeat_interleave(150)
    density = spectral_density(Diagonal(values), vectors=4, steps=20, seed=0)
    assert density.matvecs == 8 and len(density.deflated) == 0
    assert error(density, values) <= density.wasserstein < 0.1
    assert density.bounds == pytest.approx((0, 1), abs=1e-9)


@pytest.mark.parametrize("seed", [5, 19, 28, 37])
def test_a_few_eigenvalues_are_left_when_all_ritz_pairs_are_resolved(seed: int) -> None:
    """Sixteen of twenty, the smallest so close to each other that one pair stands for several."""
    values = 0.55 ** torch.arange(20.0)
    density = spectral_density(torch.diag(values), vectors=4, steps=4, seed=seed)
    assert density.starts and len(density.deflated) < 16
    assert float(density.weights.sum()) == pytest.approx(1)
    assert error(density, values) <= density.wasserstein
    assert density.mass(-0.1, 0.1).value == pytest.approx(16 / 20, abs=0.01)


_CLOSE = {
    "geometric": (0.55 ** torch.arange(20.0, dtype=F64), 4, 4),
    "of both signs": (-((-0.55) ** torch.arange(13.0, dtype=F64)), 2, 6),
    "power": ((1 + torch.arange(13.0, dtype=F64)) ** -2, 4, 3),
    "two groups": (torch.cat([torch.linspace(0.9, 1, 10), torch.linspace(0, 1e-3, 10)]).double(), 3, 5),
    "zeros": (torch.cat([torch.zeros(9), torch.linspace(0.1, 5, 58)]).double(), 8, 8),
}


@pytest.mark.parametrize("name", _CLOSE)
def test_nearly_as_many_products_as_eigenvalues(name: str) -> None:
    """What little weight is left tells how many are behind the pairs that seemed to be single eigenvalues."""
    values, vectors, steps = _CLOSE[name]
    covered = np.zeros(5)
    for seed in range(40):
        density = spectral_density(Diagonal(values), vectors=vectors, steps=steps, seed=seed)
        moments = [(density.moment(p), float((values**p).mean())) for p in range(1, 5)]
        inside = [m.low - 1e-14 <= true <= m.high + 1e-14 for m, true in moments]
        covered += [error(density, values) <= density.wasserstein, *inside]
    assert (covered >= 0.85 * 40).all(), covered


def test_no_more_eigenvalues_are_taken_out_than_there_are() -> None:
    """Five starts of two steps, where known pairs leave seven dimensions."""
    values = 0.3 ** torch.arange(13.0)
    for deflate in (4, 6, 10):
        density = spectral_density(torch.diag(values), vectors=5, steps=2, deflate=deflate, seed=0)
        assert len(density.deflated) <= 13 and float(density.weights.sum()) == pytest.approx(1)
        assert error(density, values) <= density.wasserstein


# --------------------------------------------------------------------------- an accuracy


@pytest.mark.parametrize("name", [*NETS[:2], "flat", "two values", "low rank"])
@pytest.mark.parametrize("rtol", [3e-2, 1e-3])
def test_it_stops_at_the_accuracy_that_was_asked_for(name: str, rtol: float) -> None:
    values = net_spectrum(name) if name in NETS else ALL_KINDS[name]
    norm = float(values.abs().max())
    A = Diagonal(values)
    density = spectral_density(A, vectors=4, rtol=rtol, seed=0, steps=40)
    assert density.matvecs == A.products <= 8 * 4 * 40
    assert density.converged == (density.wasserstein <= rtol * norm)
    assert error(density, values) <= density.wasserstein
    assert density.converged or name in ("flat", "two values")
    if rtol == 3e-2:
        assert density.converged and (density.wasserstein > rtol * norm / 50 or density.matvecs < 100)


def test_products_end_it() -> None:
    A = Diagonal(ALL_KINDS["flat"])
    density = spectral_density(A, vectors=4, rtol=1e-6, max_matvecs=100, seed=0)
    assert not density.converged and "NOT converged" in repr(density)
    assert 90 < density.matvecs == A.products <= 100


@pytest.mark.parametrize("most", [2, 3, 7, 20])
def test_few_products_have_a_bound_that_holds(most: int) -> None:
    values = ALL_KINDS["indefinite"]
    density = spectral_density(Diagonal(values), rtol=1e-3, max_matvecs=most, seed=0)
    assert density.matvecs <= most and not density.converged
    assert error(density, values) <= density.wasserstein < math.inf


def test_a_search_for_eigenpairs_leaves_products_for_starts() -> None:
    A = Diagonal(ALL_KINDS["slow decay"])
    density = spectral_density(A, vectors=4, steps=20, deflate=30, rtol=1e-4, max_matvecs=120, seed=0)
    assert 100 < density.matvecs == A.products <= 120 and density.starts
    assert error(density, A.values) <= density.wasserstein


# --------------------------------------------------------------------------- memory, randomness


def test_starts_run_one_after_the_other_where_memory_does_not_hold_all() -> None:
    values = net_spectrum("tanh squares")
    widths = []

    class Watched(Diagonal):
        def product(self, V: Tensor) -> Tensor:
            widths.append(V.shape[1])
            return super().product(V)

    density = spectral_density(Watched(values), vectors=6, steps=20, memory=8 * len(values) * 64, seed=0)
    assert max(widths) == 2 and density.matvecs == 120 and len(density.starts) == 6
    assert len(density.deflated) > 5  # resolved by the first, taken out of all
    assert error(density, values) <= density.wasserstein
    assert float(density.weights.sum()) == pytest.approx(1)


def test_seeds() -> None:
    A = rotated(SPECTRA["outliers"])
    state = torch.get_rng_state()
    same = [spectral_density(A, vectors=2, steps=5, seed=s) for s in (5, torch.Generator().manual_seed(5))]
    fresh = [spectral_density(A, vectors=2, steps=5).moment(1).value for _ in range(2)]
    assert torch.equal(same[0].weights, same[1].weights) and same[0].wasserstein == same[1].wasserstein
    assert len({same[0].moment(1).value, *fresh}) == 3
    assert torch.equal(torch.get_rng_state(), state)


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1}, "steps must be an integer of at least 2, got 1"),
        ({"steps": 2.5}, "steps must be an integer of at least 2, got 2.5"),
        ({"vectors": 0}, "vectors must be an integer of at least 1, got 0"),
        ({"vectors": True}, "vectors must be an integer"),
        ({"confidence": 1.0}, "confidence must be between 0 and 1, got 1.0"),
        ({"confidence": "a"}, "confidence must be between 0 and 1, got 'a'"),
        ({"confidence": None}, "confidence must be between 0 and 1, got None"),
        ({"rtol": "a"}, "rtol must be a positive number, got 'a'"),
        ({"rtol": 0.0}, "rtol must be a positive number, got 0.0"),
        ({"rtol": math.nan}, "rtol must be a positive number"),
        ({"max_matvecs": 100}, "give rtol as well"),
        ({"rtol": 0.1, "max_matvecs": 1}, "max_matvecs must be an integer of at least 2, got 1"),
        ({"memory": -1}, "memory must be a number of bytes"),
        ({"deflate": -1}, "deflate must be Eigenpairs, None or an integer from 0 to n - 1, got -1"),
        ({"deflate": 300}, "got 300"),
        ({"deflate": "all"}, "got 'all'"),
        ({"seed": "x"}, "seed must be"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        spectral_density(Diagonal(SPECTRA["bulk"]), **{"vectors": 2, "steps": 5, **options})


def test_eigenpairs_of_another_operator_are_refused() -> None:
    A, other = rotated(SPECTRA["outliers"]), torch.diag(torch.arange(10.0, dtype=F64))
    with pytest.raises(SettingError, match=r"vectors of shape \(10, 2\), and the operator 300 rows"):
        spectral_density(A, vectors=2, steps=5, deflate=top_eigenpairs(other, 2, seed=0))
    pairs = top_eigenpairs(A, 2, seed=0)
    pairs.vectors.mul_(2)
    with pytest.raises(SettingError, match="not orthonormal"):
        spectral_density(A, vectors=2, steps=5, deflate=pairs)


def test_matrices_that_are_none_are_refused() -> None:
    with pytest.raises(SettingError, match="expected a symmetric operator"):
        spectral_density("A")
    A = torch.diag(torch.arange(1.0, 301.0, dtype=F64))
    A[0, 1] = 3000.0
    for matrix in (A, A[:20, :20]):
        with pytest.raises(SettingError, match="not symmetric"):
            spectral_density(matrix, vectors=2, steps=20, seed=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("n", [5, 300])
def test_products_that_are_not_finite_are_refused(bad: float, n: int) -> None:
    values = torch.ones(n, dtype=F64)
    values[2] = bad
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        spectral_density(Diagonal(values), vectors=2, steps=5, seed=0)
