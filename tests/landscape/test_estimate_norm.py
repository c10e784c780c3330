"""The Frobenius norm: exact oracles, a naive version of deflation, calibration of the interval."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from digits_nets import hessian_on_digits
from landscape_cases import CASES, build, reference
from losscope.landscape import Estimate, Hessian, SettingError, estimate_norm, frobenius_norm
from losscope.landscape.operators import DenseOperator
from spectra import Diagonal, rotated, with_outliers

F64 = torch.float64
SEEDS = 200

MATRICES = {
    "mlp squares": lambda: hessian_on_digits("mlp squares"),
    "mlp": lambda: hessian_on_digits("mlp"),
    "three outliers": lambda: rotated(with_outliers(300, [20.0, 50.0, 100.0])),
    "indefinite": lambda: rotated(torch.cat([torch.linspace(-1, 1.5, 297), torch.tensor([5.0, -20.0, 40.0])]).double()),
    "power law": lambda: rotated(torch.arange(1, 301, dtype=F64) ** -1),
    "one outlier": lambda: rotated(with_outliers(300, [300.0])),
}


def covers(estimate: Estimate, exact: float) -> bool:
    return estimate.low <= exact <= estimate.high


# --------------------------------------------------------------------------- exact oracles


@pytest.mark.parametrize("name", CASES)
def test_norms_of_model_hessians(name: str) -> None:
    exact = float(reference(name)[2].norm())
    estimate = frobenius_norm(Hessian(build(name).objective()), method="exact")
    assert (estimate.method, estimate.kernel, estimate.stderr) == ("exact", "retained", 0)
    assert estimate.value == pytest.approx(exact, rel=1e-10, abs=1e-12)
    assert estimate.converged and estimate.low <= estimate.value <= estimate.high


def test_hutchinson_is_the_root_of_the_mean_squared_length() -> None:
    A = rotated(with_outliers(80, [10.0]))
    estimate = frobenius_norm(A, method="hutchinson", min_matvecs=25, max_matvecs=25, seed=3)
    Z = DenseOperator(A).space.random(25, torch.Generator().manual_seed(3), "rademacher")
    samples = (A @ Z).square().sum(dim=0)
    assert estimate.value == pytest.approx(float(samples.mean().sqrt()), rel=1e-12)
    assert estimate.stderr == pytest.approx(float(samples.std() / 5 / (2 * samples.mean().sqrt())), rel=1e-9)


def test_deflated_is_the_norm_on_a_basis_and_samples_beside_it() -> None:
    A = MATRICES["three outliers"]()
    estimate = frobenius_norm(A, method="deflated", min_matvecs=30, max_matvecs=30, seed=3)
    space, generator = DenseOperator(A).space, torch.Generator().manual_seed(3)
    Q = torch.linalg.qr(A @ space.random(5, generator, "rademacher")).Q
    G = space.random(20, generator)
    P = torch.eye(300, dtype=F64) - Q @ Q.T
    samples = 295 * (A @ P @ G).square().sum(dim=0) / (P @ G).square().sum(dim=0)
    assert estimate.value**2 == pytest.approx(float((A @ Q).square().sum() + samples.mean()), rel=1e-10)
    assert estimate.matvecs == 30


def test_the_square_is_unbiased_with_the_standard_error_of_the_theory() -> None:
    A = hessian_on_digits("mlp")
    B = A @ A
    options = {"method": "hutchinson", "min_matvecs": 30, "max_matvecs": 30}
    estimates = [frobenius_norm(A, seed=seed, **options) for seed in range(SEEDS)]
    squares = torch.tensor([e.value**2 for e in estimates], dtype=F64)
    theory = math.sqrt(2 * float(B.square().sum() - B.diagonal().square().sum()) / 30)
    assert abs(float(squares.mean() - B.trace())) <= 4 * theory / math.sqrt(SEEDS)
    found = math.sqrt(np.mean([(2 * e.value * e.stderr) ** 2 for e in estimates]))
    assert found == pytest.approx(theory, rel=0.15)


def test_the_deflated_square_is_unbiased() -> None:
    A = MATRICES["power law"]()
    options = {"method": "deflated", "min_matvecs": 12, "max_matvecs": 12}
    squares = torch.tensor([frobenius_norm(A, seed=s, **options).value ** 2 for s in range(300)], dtype=F64)
    assert abs(float(squares.mean() - A.square().sum())) <= 4 * float(squares.std()) / math.sqrt(300)


def test_a_diagonal_matrix_has_no_variance() -> None:
    A = Diagonal(torch.logspace(0, -3, 500, dtype=F64))
    estimate = frobenius_norm(A, method="hutchinson", rtol=1e-9, seed=0)
    assert estimate.value == pytest.approx(float(A.values.norm()), rel=1e-12)
    assert estimate.matvecs == A.products == 30 and covers(estimate, float(A.values.norm()))


@pytest.mark.parametrize("method", ["auto", "hutchinson", "deflated"])
def test_a_multiple_of_the_identity_has_no_variance(method: str) -> None:
    estimate = frobenius_norm(3 * torch.eye(400, dtype=F64), method=method, rtol=1e-9, seed=0)
    assert estimate.value == pytest.approx(60, rel=1e-12) and covers(estimate, 60)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_matrix_of_low_rank_is_found_exactly(dtype: torch.dtype) -> None:
    A = rotated(torch.cat([torch.linspace(1, 5, 4), torch.zeros(296)]).double()).to(dtype)
    estimate = frobenius_norm(A, seed=0)
    assert (estimate.method, estimate.matvecs) == ("deflated", 30)
    assert estimate.value == pytest.approx(float(A.norm()), rel=100 * torch.finfo(dtype).eps)
    assert covers(estimate, float(A.double().norm()))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("method", ["auto", "hutchinson", "deflated", "exact"])
@pytest.mark.parametrize("n", [1, 10, 300])
def test_a_matrix_of_zeros(n: int, method: str, dtype: torch.dtype) -> None:
    estimate = frobenius_norm(torch.zeros(n, n, dtype=dtype), method=method, seed=0)
    assert (estimate.value, estimate.low, estimate.high, estimate.stderr) == (0, 0, 0, 0)
    assert estimate.converged


# --------------------------------------------------------------------------- calibration


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("method", ["hutchinson", "deflated"])
@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "30 products"])
def test_intervals_cover_as_often_as_they_say(name: str, method: str, stopped: bool) -> None:
    A = MATRICES[name]()
    exact = float(A.norm())
    narrow = {"hutchinson": 0.1, "deflated": 0.03}[method]
    options = {"rtol": narrow} if stopped else {"rtol": 1e-9, "max_matvecs": 30}
    estimates = [frobenius_norm(A, method=method, seed=seed, **options) for seed in range(SEEDS)]
    assert 0.905 <= np.mean([covers(e, exact) for e in estimates]) <= 0.985
    half = np.median([(e.high - e.low) / 2 for e in estimates])
    assert half <= 5 * np.median([abs(e.value - exact) for e in estimates])
    assert all(e.low >= 0 for e in estimates)


def test_deflation_finds_outliers_where_hutchinson_needs_many_times_the_products() -> None:
    A = MATRICES["three outliers"]()
    deflated, plain = (frobenius_norm(A, method=m, rtol=0.01, seed=0) for m in ("deflated", "hutchinson"))
    assert deflated.converged and deflated.matvecs <= 60
    assert not plain.converged and plain.matvecs == 1000
    assert frobenius_norm(A, rtol=0.01, seed=0).method == "deflated"


# --------------------------------------------------------------------------- stopping, cost


@pytest.mark.parametrize("method", ["auto", "hutchinson", "deflated"])
@pytest.mark.parametrize("rtol", [0.3, 0.02])
def test_it_stops_when_the_interval_is_narrow_enough(method: str, rtol: float) -> None:
    estimate = frobenius_norm(rotated(torch.linspace(-1, 2, 300, dtype=F64)), method=method, rtol=rtol, seed=0)
    assert estimate.converged and estimate.high - estimate.low <= 2 * rtol * estimate.value
    assert estimate.low <= estimate.value <= estimate.high


@pytest.mark.parametrize("method", ["auto", "hutchinson", "deflated"])
@pytest.mark.parametrize("most", [4, 11, 20, 61])
def test_products_are_counted_and_within_their_limits(method: str, most: int) -> None:
    A = rotated(torch.linspace(0, 1, 300, dtype=F64).square())
    operator = Diagonal(torch.ones(300, dtype=F64))
    made = []
    operator.product = lambda V: (made.append(V.shape[1]), A @ V)[1]
    estimate = frobenius_norm(operator, method=method, rtol=1e-9, max_matvecs=most, seed=0)
    assert estimate.matvecs == sum(made) == most
    assert not estimate.converged and "NOT converged" in repr(estimate)


@pytest.mark.parametrize("least", [2, 3])
@pytest.mark.parametrize("method", ["auto", "hutchinson", "deflated"])
def test_few_products_before_the_first_look(method: str, least: int) -> None:
    estimate = frobenius_norm(rotated(with_outliers(60, [5.0])), method=method, min_matvecs=least, rtol=0.2, seed=0)
    assert estimate.converged and math.isfinite(estimate.stderr)


def test_where_n_products_are_cheaper_the_norm_is_exact() -> None:
    A = rotated(torch.linspace(-1, 1.5, 90, dtype=F64))
    estimate = frobenius_norm(A, rtol=1e-3, seed=0)
    assert estimate.method == "exact" and estimate.value == pytest.approx(float(A.norm()), rel=1e-12)
    assert 90 < estimate.matvecs <= 90 + 60
    capped = frobenius_norm(A, rtol=1e-6, max_matvecs=100, seed=0)
    assert capped.method == "deflated" and not capped.converged and capped.matvecs == 100


def test_memory_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    A = rotated(torch.cat([torch.full((4,), 100.0), torch.ones(296)]).double())
    options = {"rtol": 1e-9, "min_matvecs": 60, "max_matvecs": 60, "seed": 0}
    whole = frobenius_norm(A, **options)
    monkeypatch.setattr(estimate_norm, "_BASIS", 8 * 300 * 2)  # two vectors
    capped = frobenius_norm(A, **options)
    assert capped.matvecs == 60 and capped.stderr > 10 * whole.stderr


# --------------------------------------------------------------------------- precision, scale, seeds


def test_errors_of_products_are_part_of_the_interval() -> None:
    A = DenseOperator(torch.eye(200, dtype=F64))
    A.space.rounding = 1e-3
    for method in ("hutchinson", "deflated", "exact"):
        estimate = frobenius_norm(A, method=method, seed=0)
        assert estimate.high >= 1.00099 * estimate.value and estimate.low <= 0.99901 * estimate.value
    coarse = frobenius_norm(A, method="hutchinson", rtol=1e-4, seed=0)
    assert not coarse.converged and coarse.matvecs == 30  # there is nothing to gain


@pytest.mark.parametrize("method", ["hutchinson", "deflated"])
def test_single_precision(method: str) -> None:
    A = hessian_on_digits("mlp squares")
    estimate = frobenius_norm(A.float(), method=method, rtol=0.03, seed=0)
    assert estimate.converged and covers(estimate, float(A.norm()))


@pytest.mark.parametrize("method", ["hutchinson", "deflated", "exact", "auto"])
@pytest.mark.parametrize("factor", [1e-9, -3.0])
def test_scaling_the_matrix_scales_the_norm(method: str, factor: float) -> None:
    A = rotated(with_outliers(200, [10.0]))
    one, many = (frobenius_norm(B, method=method, rtol=0.1, seed=3) for B in (A, factor * A))
    assert one.matvecs == many.matvecs
    for name in ("value", "stderr", "low", "high"):
        assert getattr(many, name) == pytest.approx(abs(factor) * getattr(one, name), rel=1e-8)


def test_seeds() -> None:
    A = rotated(with_outliers(200, [10.0]))
    state = torch.get_rng_state()
    same = [frobenius_norm(A, rtol=0.1, seed=seed).value for seed in (5, torch.Generator().manual_seed(5))]
    fresh = [frobenius_norm(A, rtol=0.1).value for _ in range(2)]
    assert same[0] == same[1] and len({*same, *fresh}) == 3
    assert torch.equal(torch.get_rng_state(), state)


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0.0}, r"rtol must be > 0 .*got 0\.0"),
        ({"confidence": 0.0}, r"confidence in \(0, 1\), got .* 0\.0"),
        ({"method": "lucky"}, r"'auto', 'hutchinson', 'deflated', 'exact'; got 'lucky'"),
        ({"max_matvecs": 1}, r"at least 2, got 30 and 1"),
        ({"method": "deflated", "max_matvecs": 3}, r"takes 4 products at least, got max_matvecs = 3"),
        ({"method": "exact", "max_matvecs": 499}, r"takes n = 500 products, more than max_matvecs = 499; raise that"),
        ({"seed": 1.5}, r"seed must be an int, a torch\.Generator or None, got 1\.5"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        frobenius_norm(torch.eye(500, dtype=F64), **options)


@pytest.mark.parametrize("method", ["auto", "hutchinson", "deflated", "exact"])
def test_operators_that_are_not_symmetric_are_refused(method: str) -> None:
    A = torch.randn(50, 50, dtype=F64)
    with pytest.raises(SettingError, match="the operator is not symmetric"):
        frobenius_norm(A, method=method, seed=0)


def test_the_norm_is_that_of_the_eigenvalues() -> None:
    values: Tensor = torch.linspace(-3, 7, 60, dtype=F64)
    assert frobenius_norm(rotated(values), method="exact").value == pytest.approx(float(values.norm()), rel=1e-12)


@pytest.mark.parametrize("rate", [0.3, 0.6])
def test_intervals_are_not_far_wider_than_errors_where_one_eigenvalue_is_left(rate: float) -> None:
    """Samples that are multiples of one chi-square: Hall's upper end alone made them six median errors wide."""
    values = rate ** torch.arange(400, dtype=F64)
    A, exact = Diagonal(values), float(values.norm())
    found = [frobenius_norm(A, method="deflated", rtol=1e-14, max_matvecs=30, seed=seed) for seed in range(200)]
    assert np.mean([e.low <= exact <= e.high for e in found]) >= 0.92
    half = np.median([(e.high - e.low) / 2 for e in found])
    assert half <= 4.75 * np.median([abs(e.value - exact) for e in found])
