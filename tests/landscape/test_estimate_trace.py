"""The trace: calibration of its interval over many seeds, the exact route, honest costs."""

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from landscape_cases import CASES, build, dense_hessian, mlp, reference, selected
from losscope.landscape import Estimate, Hessian, SettingError, trace
from losscope.landscape.estimate_trace import _Samples
from losscope.landscape.exchangeable import XNysTrace, XTrace
from losscope.landscape.operators import Observed
from losscope.landscape.sketch import Sketch
from spectra import Diagonal, rotated, with_outliers

F64 = torch.float64
SEEDS = 200


@functools.cache
def digits_hessian(loss: str) -> Tensor:
    """The dense Hessian of a tanh network of 610 parameters, trained on 300 digits."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.random.default_rng(0).permutation(len(images))[:300]
    x, y = torch.tensor(images[chosen] / 8 - 1), torch.tensor(labels[chosen])
    torch.manual_seed(0)
    model = mlp(64, 8, 10).double()
    losses = {
        "squares": lambda: 0.5 * (model(x) - F.one_hot(y, 10)).square().sum(dim=1).mean(),
        "cross entropy": lambda: F.cross_entropy(model(x), y),
    }
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        losses[loss]().backward()
        optimizer.step()
    return dense_hessian(losses[loss](), selected(model))


MATRICES = {
    "squares": lambda: digits_hessian("squares"),
    "cross entropy": lambda: digits_hessian("cross entropy"),
    "three outliers": lambda: rotated(with_outliers(600, [20.0, 50.0, 100.0])),
    "indefinite": lambda: rotated(torch.cat([torch.linspace(-1, 1.5, 397), torch.tensor([5.0, 20.0, 40.0])]).double()),
}

# The estimators other than Hutchinson's start from normal vectors, so that only the spectrum matters.
SPECTRA: dict[str, Callable[[], Tensor]] = {
    **{
        name: lambda make=make: torch.linalg.eigvalsh(make())
        for name, make in MATRICES.items()
        if name != "cross entropy"
    },
    "power law": lambda: torch.arange(1, 801, dtype=F64) ** -2.0,
    "flat": lambda: torch.linspace(1, 3, 400, dtype=F64),
    "step of ones": lambda: torch.cat([torch.ones(50), torch.zeros(550)]).double(),
    "low rank": lambda: torch.cat([torch.linspace(1, 10, 20), torch.zeros(380)]).double(),
    "very small": lambda: torch.linspace(-0.5, 1, 130, dtype=F64),
    "of both signs": lambda: (
        torch.arange(1, 501, dtype=F64) ** -1.0 * torch.where(torch.arange(500) % 3 == 0, -1.0, 1.0)
    ),
}
POSITIVE = ["three outliers", "power law", "low rank"]


class Rayed(Diagonal):
    """A diagonal matrix that says of itself that it is positive semi-definite."""

    psd = True


class Mixed(Diagonal):
    """A matrix with large entries off the diagonal, so that Hutchinson's samples spread."""

    def product(self, V: Tensor) -> Tensor:
        return super().product(V) + 50 * V.roll(1, dims=0) + 50 * V.roll(-1, dims=0)


def covers(estimate: Estimate, exact: float) -> bool:
    rounding = 1e-9 * abs(exact) if estimate.method == "exact" else 0.0
    return estimate.low - rounding <= exact <= estimate.high + rounding


# --------------------------------------------------------------------------- calibration


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize(
    "options",
    [{"rtol": 0.1}, {"rtol": 1e-9, "min_matvecs": 20, "max_matvecs": 20}],
    ids=["stopped at 10 %", "20 products"],
)
def test_hutchinsons_intervals_cover_as_often_as_they_say(name: str, options: dict) -> None:
    A = MATRICES[name]()
    exact = float(A.trace())
    estimates = [trace(A, method="hutchinson", seed=seed, **options) for seed in range(SEEDS)]
    assert 0.92 <= np.mean([covers(e, exact) for e in estimates]) <= 0.98
    if "max_matvecs" in options:
        assert {e.matvecs for e in estimates} == {20}
        assert not any(e.converged for e in estimates)
    else:
        assert all(e.converged for e in estimates)
        assert np.mean([e.matvecs for e in estimates]) < len(A)


def is_honest(intervals: list[tuple[float, float, float]], exact: float) -> bool:
    """Whether 92 of 100 of the (low, value, high) hold, and they are not much wider than the error."""
    low, value, high = np.array(intervals).T
    slack = 1e-13 * abs(exact)  # where the estimate is exact but for rounding
    covered = (low - slack <= exact) & (exact <= high + slack)
    narrow = np.median(high - low) / 2 <= max(5 * np.median(abs(value - exact)), slack)
    return bool(covered.mean() >= 0.92 and narrow)


@pytest.mark.parametrize(
    ("method", "name"), [*((XTrace, name) for name in SPECTRA), *((XNysTrace, name) for name in POSITIVE)]
)
def test_sketches_cover_with_any_number_of_products(method: type, name: str) -> None:
    """With the first 30, 60 and 120 products of each of 100 runs."""
    values, found = SPECTRA[name](), {30: [], 60: [], 120: []}
    for seed in range(100):
        estimator = method(Sketch(Observed(Diagonal(values)), torch.Generator().manual_seed(seed)))
        estimator.grow(120 // estimator.per_vector)
        for products, intervals in found.items():
            some = estimator.leave_out(products // estimator.per_vector)
            samples = _Samples(some.single, estimator.covariance(some))
            low, high = samples.interval(0.95)
            intervals.append((low, samples.mean, high))
    for products, intervals in found.items():
        assert is_honest(intervals, float(values.sum())), products


@pytest.mark.parametrize(("method", "rate"), [("xtrace", 0.75), ("xnystrace", 0.6), ("xnystrace", 0.75)])
def test_eigenvalues_that_fall_exponentially_are_covered(method: str, rate: float) -> None:
    """The covariance of a sketch's estimates is mostly far too large there, or negative."""
    values = rate ** torch.arange(300, dtype=F64)
    estimates = [trace(Diagonal(values), method=method, rtol=1e-15, max_matvecs=30, seed=seed) for seed in range(200)]
    assert is_honest([(e.low, e.value, e.high) for e in estimates], float(values.sum()))


@pytest.mark.parametrize("method", ["xtrace", "xnystrace"])
@pytest.mark.parametrize("more", [0, 1])
def test_as_many_vectors_as_large_eigenvalues_are_covered(method: str, more: int) -> None:
    """The last vector takes much there, as where eigenvalues fall fast, but the covariance is large."""
    count = (15 if method == "xtrace" else 30) + more
    values = torch.cat([torch.linspace(50, 100, count, dtype=F64), torch.linspace(0.01, 0.03, 300, dtype=F64)])
    estimates = [trace(Diagonal(values), method=method, rtol=1e-15, max_matvecs=30, seed=seed) for seed in range(300)]
    assert np.mean([covers(e, float(values.sum())) for e in estimates]) >= 0.92


@pytest.mark.parametrize("method", ["xtrace", "xnystrace"])
def test_eigenvalues_that_fall_exponentially_take_few_more_products(method: str) -> None:
    """Half a digit more is a few vectors away, however many there are; errors are not far below what was asked for."""
    values = 0.75 ** torch.arange(700, dtype=F64)
    exact, A = float(values.sum()), Diagonal(values)
    first = [trace(A, method=method, rtol=1e-15, max_matvecs=60, min_matvecs=60, seed=seed) for seed in range(50)]
    half = float(np.median([(e.high - e.low) / 2 for e in first]))
    further = [trace(A, method=method, rtol=0.1 * half / exact, min_matvecs=60, seed=seed) for seed in range(100)]
    assert np.mean([covers(e, exact) for e in further]) >= 0.92
    assert np.mean([e.matvecs for e in further]) <= 100  # 120, when it took a power law's word for it


@pytest.mark.parametrize(
    ("method", "name", "rtol"),
    [
        ("xtrace", "squares", 0.03), ("xtrace", "squares", 0.01), ("xtrace", "very small", 0.1),
        ("xnystrace", "three outliers", 0.01), ("xnystrace", "power law", 0.003),
        ("auto", "squares", 0.03), ("auto", "three outliers", 0.005), ("auto", "step of ones", 0.1),
        ("slq", "squares", 0.1),
    ],
)  # fmt: skip
def test_intervals_cover_when_being_narrow_stops_them(method: str, name: str, rtol: float) -> None:
    values = SPECTRA[name]()
    estimates = [trace(Diagonal(values), method=method, rtol=rtol, seed=seed) for seed in range(100)]
    assert is_honest([(e.low, e.value, e.high) for e in estimates], float(values.sum()))
    assert all(e.converged for e in estimates)
    assert np.mean([e.matvecs for e in estimates]) > 30  # it did go on after the first look


@pytest.mark.parametrize("most", [30, 60])
def test_quadrature_covers(most: int) -> None:
    values = SPECTRA["squares"]()
    estimates = [trace(Diagonal(values), method="slq", rtol=1e-9, max_matvecs=most, seed=s) for s in range(100)]
    assert is_honest([(e.low, e.value, e.high) for e in estimates], float(values.sum()))
    assert all(most - 3 < e.matvecs <= most for e in estimates)


@pytest.mark.parametrize("method", ["hutchinson", "xtrace"])
@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.99])
def test_other_confidences(confidence: float, method: str) -> None:
    A = digits_hessian("squares")
    exact = float(A.trace())
    options = {"rtol": 1e-9, "min_matvecs": 30, "max_matvecs": 30, "confidence": confidence, "method": method}
    share = np.mean([covers(trace(A, seed=seed, **options), exact) for seed in range(SEEDS)])
    assert abs(share - confidence) <= 3 * math.sqrt(confidence * (1 - confidence) / SEEDS) + 0.01


def test_hutchinsons_estimate_is_unbiased_and_its_standard_error_true() -> None:
    A = digits_hessian("cross entropy")
    options = {"method": "hutchinson", "rtol": 1e-9, "min_matvecs": 30, "max_matvecs": 30}
    estimates = [trace(A, seed=seed, **options) for seed in range(SEEDS)]
    values = torch.tensor([e.value for e in estimates], dtype=F64)
    theory = math.sqrt(2 * float(A.square().sum() - A.diagonal().square().sum()) / 30)
    assert abs(float(values.mean() - A.trace())) <= 3 * theory / math.sqrt(SEEDS)
    assert float(values.std()) == pytest.approx(theory, rel=0.1)
    assert math.sqrt(np.mean([e.stderr**2 for e in estimates])) == pytest.approx(theory, rel=0.1)


def test_the_interval_of_symmetric_samples_is_students() -> None:
    """Hall's transformation must vanish with the skewness: two off-diagonal entries give samples of +-2."""
    A = torch.zeros(64, 64, dtype=F64)
    A[0, 1] = A[1, 0] = 1.0
    A += torch.eye(64, dtype=F64)
    for seed in range(200):
        estimate = trace(A, method="hutchinson", rtol=1e-9, min_matvecs=32, max_matvecs=32, seed=seed)
        if estimate.value == 64.0:  # as many of each sign, so no skewness
            half = estimate.stderr * student.ppf(0.975, 31)
            assert (estimate.high - 64, 64 - estimate.low) == pytest.approx((half, half), rel=1e-9)
            break
    else:
        pytest.fail("no seed gave symmetric samples")


# --------------------------------------------------------------------------- what auto takes


def test_a_tenth_of_hutchinsons_products_on_a_decaying_spectrum() -> None:
    A = digits_hessian("squares")
    plain = [trace(A, method="hutchinson", rtol=0.01, max_matvecs=10_000, seed=seed) for seed in range(5)]
    assert all(e.method == "exact" for e in plain)  # 610 products are fewer
    found = [trace(A, rtol=0.01, seed=seed) for seed in range(20)]
    assert np.mean([e.matvecs for e in found]) < 130 and all(e.converged for e in found)


def test_positive_semi_definite_operators_take_nystroems_approximation() -> None:
    values = SPECTRA["power law"]()
    found = trace(Rayed(values), rtol=0.01, seed=0)
    assert found.method == "xnystrace" and covers(found, float(values.sum()))
    assert trace(Diagonal(values), rtol=0.01, seed=0).method == "xtrace"


@pytest.mark.parametrize(("most", "method"), [(1000, "xtrace"), (60, "xtrace"), (59, "hutchinson"), (30, "hutchinson")])
def test_an_operator_that_is_not_what_it_says(most: int, method: str) -> None:
    """What was spent until that shows is used: by XTrace if as many more products are left."""
    values = torch.linspace(-1, 1.5, 400, dtype=F64)
    A = Rayed(values)
    found = trace(A, rtol=0.5, max_matvecs=most, seed=0)
    assert found.method.split(",")[0] == method
    assert found.matvecs == A.products <= most
    assert abs(found.value - float(values.sum())) <= 4 * found.stderr
    with pytest.raises(SettingError, match=r'needs a positive semi-definite operator.*use method="xtrace"'):
        trace(A, method="xnystrace", seed=0)


@pytest.mark.parametrize("options", [{"max_matvecs": 19}, {"min_matvecs": 10}])
def test_few_products_are_hutchinsons(options: dict) -> None:
    assert trace(rotated(SPECTRA["power law"]()), rtol=0.5, seed=0, **options).method == "hutchinson"


def test_a_sketch_that_memory_does_not_hold_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    A = rotated(SPECTRA["three outliers"]())
    exact, bytes_each = float(A.trace()), 2 * 600 * 8
    for vectors, method in ((9, "hutchinson"), (12, "xtrace, hutchinson")):
        monkeypatch.setattr("losscope.landscape.sketch._MEMORY", vectors * bytes_each)
        estimates = [trace(A, rtol=0.01, seed=seed) for seed in range(100)]
        assert {e.method for e in estimates if e.matvecs > 30} <= {method, "exact"}
        assert np.mean([covers(e, exact) for e in estimates]) >= 0.9
    assert np.mean([e.matvecs for e in estimates]) < 100


def test_a_flat_spectrum_is_streamed() -> None:
    A = rotated(torch.linspace(1, 3, 1500, dtype=F64))
    found = [trace(A, rtol=0.003, seed=seed) for seed in range(12)]
    sketched = [trace(A, rtol=0.003, method="xtrace", seed=seed) for seed in range(8)]
    assert {e.method for e in found} == {"xtrace, hutchinson"} and {e.method for e in sketched} == {"xtrace"}
    assert np.mean([e.matvecs for e in found]) < 0.8 * np.mean([e.matvecs for e in sketched])
    assert np.mean([covers(e, 3000.0) for e in found]) >= 0.8


# --------------------------------------------------------------------------- stopping, cost


@pytest.mark.parametrize("method", ["auto", "hutchinson", "xtrace", "slq"])
@pytest.mark.parametrize("rtol", [0.3, 0.1, 0.03])
def test_it_stops_when_the_interval_is_narrow_enough(rtol: float, method: str) -> None:
    A = Diagonal(torch.rand(5000, dtype=F64))
    B = rotated(with_outliers(300, [10.0, 20.0]))
    for operator in (A, B):
        estimate = trace(operator, method=method, rtol=rtol, seed=0)
        assert estimate.converged
        assert estimate.high - estimate.low <= 2 * rtol * abs(estimate.value)
        assert estimate.low <= estimate.value <= estimate.high


@pytest.mark.parametrize("method", ["auto", "hutchinson", "xtrace", "xnystrace", "slq"])
@pytest.mark.parametrize("min_matvecs", [2, 30, 50])
def test_products_are_counted_and_within_their_limits(min_matvecs: int, method: str) -> None:
    options = {"method": method, "min_matvecs": min_matvecs, "seed": 0}
    A = Rayed(torch.rand(1000, dtype=F64))
    estimate = trace(A, rtol=0.5, max_matvecs=60, **options)
    assert estimate.matvecs == A.products and min_matvecs <= estimate.matvecs < max(min_matvecs, 3) + 15
    B = Mixed(torch.rand(1000, dtype=F64) + (200.0 if method == "xnystrace" else 0.0))
    for most in (60, 61):
        B.products = 0
        estimate = trace(B, rtol=1e-6, max_matvecs=most, **options)
        assert estimate.matvecs == B.products <= most
        assert estimate.matvecs >= (57 if method == "slq" else 60)
        assert not estimate.converged and "NOT converged" in repr(estimate)


def test_a_diagonal_matrix_has_no_variance_for_hutchinson() -> None:
    A = Diagonal(torch.rand(1000, dtype=F64))
    estimate = trace(A, method="hutchinson", seed=0)
    assert estimate.value == pytest.approx(float(A.values.sum()), rel=1e-12) and estimate.stderr < 1e-12


@pytest.mark.parametrize("method", ["auto", "hutchinson", "xtrace", "slq"])
def test_where_n_products_are_cheaper_the_trace_is_exact(method: str) -> None:
    A = rotated(torch.linspace(-1, 1.001, 90, dtype=F64))
    operator = Diagonal(torch.ones(90, dtype=F64))
    operator.product = lambda V: A @ V
    estimate = trace(operator, method=method, rtol=1e-3, seed=0)
    assert estimate.method == "exact" and estimate.converged and estimate.stderr == 0
    assert estimate.value == pytest.approx(float(A.trace()), rel=1e-10)
    assert estimate.low <= estimate.value <= estimate.high
    assert 90 < estimate.matvecs <= 90 + 60  # with what was spent before that was known


def test_exact_is_asked_for() -> None:
    A = rotated(torch.linspace(-1, 1.001, 90, dtype=F64))
    estimate = trace(A, method="exact")
    assert (estimate.method, estimate.matvecs) == ("exact", 90)
    assert estimate.value == pytest.approx(float(A.trace()), rel=1e-10)


def test_the_exact_route_does_not_exceed_the_limit() -> None:
    A = rotated(torch.linspace(-1, 1.001, 90, dtype=F64))
    for method in ("hutchinson", "xtrace"):
        estimate = trace(A, method=method, rtol=1e-6, max_matvecs=100, seed=0)
        assert estimate.method == method and not estimate.converged
        assert estimate.matvecs == 100


@pytest.mark.parametrize("name", CASES)
def test_traces_of_model_hessians(name: str) -> None:
    estimate = trace(Hessian(build(name).objective()), rtol=1e-9, seed=0)
    exact = float(reference(name)[2].trace())
    assert estimate.method == "exact" and estimate.kernel == "retained"
    assert estimate.value == pytest.approx(exact, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("method", ["auto", "hutchinson", "xtrace", "xnystrace", "slq"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("n", [1, 10, 300])
def test_a_matrix_of_zeros(n: int, dtype: torch.dtype, method: str) -> None:
    estimate = trace(torch.zeros(n, n, dtype=dtype), method=method, seed=0)
    assert (estimate.value, estimate.low, estimate.high, estimate.stderr) == (0, 0, 0, 0)
    assert estimate.converged


@pytest.mark.parametrize("method", ["hutchinson", "xtrace", "xnystrace", "slq"])
def test_single_precision(method: str) -> None:
    """Down to 1e-4 what it says holds; the small problems are in double precision on the host."""
    values = torch.arange(1, 2001, dtype=F64) ** -2.0
    exact, options = float(values.sum()), {"rtol": 1e-4, "max_matvecs": 400, "method": method}
    estimates = [trace(Diagonal(values.float()), seed=seed, **options) for seed in range(8)]
    assert sum(covers(e, exact) for e in estimates) >= 6
    if method.startswith("x"):
        assert all(e.converged for e in estimates)
        assert np.median([abs(e.value / exact - 1) for e in estimates]) < 1e-4


def test_an_interval_claims_no_more_than_the_products_are_known_to() -> None:
    for method in ("auto", "hutchinson", "xtrace", "xnystrace", "slq"):
        A = Diagonal(torch.linspace(1, 2, 500, dtype=F64))
        A.space.rounding = 1e-2
        estimate = trace(A, method=method, rtol=1e-3, seed=0)
        assert (estimate.high - estimate.low) / 2 >= 0.999e-2 * estimate.value
        assert not estimate.converged and estimate.matvecs < 300  # it sees that more products are of no use


@pytest.mark.parametrize("method", ["auto", "hutchinson", "xtrace", "xnystrace", "slq"])
@pytest.mark.parametrize("c", [1e-9, 1e12])
def test_scaling_the_matrix_scales_the_estimate(c: float, method: str) -> None:
    A = rotated(with_outliers(200, [10.0]))
    one, many = trace(A, method=method, rtol=0.1, seed=3), trace(c * A, method=method, rtol=0.1, seed=3)
    assert one.matvecs == many.matvecs
    for name in ("value", "stderr", "low", "high"):
        assert getattr(many, name) == pytest.approx(c * getattr(one, name), rel=1e-9)


@settings(max_examples=40)
@given(
    c=st.floats(1e-30, 1e30),
    method=st.sampled_from(["auto", "hutchinson", "xtrace", "xnystrace"]),
    seed=st.integers(0, 2**32),
)
def test_scaling_by_any_number(c: float, method: str, seed: int) -> None:
    values = with_outliers(80, [10.0, 20.0])
    one, many = (trace(Rayed(f * values), method=method, rtol=0.05, seed=seed) for f in (1.0, c))
    assert (one.matvecs, one.method) == (many.matvecs, many.method)
    for name in ("value", "stderr", "low", "high"):
        assert getattr(many, name) == pytest.approx(c * getattr(one, name), rel=1e-7)


def test_seeds() -> None:
    A = rotated(with_outliers(200, [10.0]))
    state = torch.get_rng_state()
    for method in ("auto", "hutchinson", "xtrace", "xnystrace", "slq"):
        options = {"rtol": 0.1, "method": method, "max_matvecs": 40}  # too few for the exact trace
        same = [trace(A, seed=seed, **options).value for seed in (5, torch.Generator().manual_seed(5))]
        fresh = [trace(A, **options).value for _ in range(2)]
        assert same[0] == same[1] and len({*same, *fresh}) == 3
    assert torch.equal(torch.get_rng_state(), state)


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0.0}, r"rtol must be > 0 .*got 0\.0"),
        ({"rtol": float("nan")}, r"got nan"),
        ({"confidence": 0.0}, r"confidence in \(0, 1\), got .* 0\.0"),
        ({"method": "lucky"}, r"one of 'auto', 'hutchinson', .*'exact'; got 'lucky'"),
        ({"method": "xtrace", "max_matvecs": 3}, "two products for each of two vectors at least, got 3"),
        ({"method": "exact", "max_matvecs": 499}, "takes n = 500 products, more than max_matvecs = 499"),
        ({"min_matvecs": 1}, r"at least 2, got 1 and 1000"),
        ({"max_matvecs": 1}, r"at least 2, got 30 and 1"),
        ({"seed": 1.5}, r"seed must be an int, a torch\.Generator or None, got 1\.5"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        trace(torch.eye(500, dtype=F64), **options)


def test_a_cap_below_the_usual_minimum_is_kept() -> None:
    for method in ("auto", "hutchinson", "xtrace", "xnystrace"):
        for most in (2, 4, 5, 20):
            if most < 4 and method == "xtrace":
                continue
            A = torch.diag(torch.arange(100.0)) + 1.0
            estimate = trace(A, method=method, rtol=1e-9, max_matvecs=most, seed=0)
            assert estimate.matvecs in (most, most // 2 * 2)
            assert not estimate.converged and estimate.low < estimate.value < estimate.high


def test_matrices_that_are_not_symmetric_are_refused() -> None:
    A = torch.diag(torch.arange(1.0, 101.0, dtype=F64))
    A[0, 1] = 1000.0
    for method in ("auto", "hutchinson", "xtrace", "xnystrace", "slq", "exact"):
        with pytest.raises(SettingError, match="not symmetric"):
            trace(A, method=method, seed=0)
