"""The trace: calibration of its interval over many seeds, the exact route, honest costs."""

import functools
import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from landscape_cases import CASES, build, dense_hessian, mlp, reference, selected
from losscope.landscape import Estimate, Hessian, SettingError, trace
from losscope.landscape.estimate_trace import _without_skewness
from spectra import Diagonal, rotated, with_outliers

F64 = torch.float64
SEEDS = 400


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
def test_intervals_cover_as_often_as_they_say(name: str, options: dict) -> None:
    A = MATRICES[name]()
    exact = float(A.trace())
    estimates = [trace(A, seed=seed, **options) for seed in range(SEEDS)]
    assert 0.92 <= np.mean([covers(e, exact) for e in estimates]) <= 0.98
    if "max_matvecs" in options:
        assert {e.matvecs for e in estimates} == {20}
        assert not any(e.converged for e in estimates)
    else:
        assert all(e.converged for e in estimates)
        assert np.mean([e.matvecs for e in estimates]) < len(A)


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.99])
def test_other_confidences(confidence: float) -> None:
    A = digits_hessian("squares")
    exact = float(A.trace())
    options = {"rtol": 1e-9, "min_matvecs": 30, "max_matvecs": 30, "confidence": confidence}
    share = np.mean([covers(trace(A, seed=seed, **options), exact) for seed in range(SEEDS)])
    assert abs(share - confidence) <= 3 * math.sqrt(confidence * (1 - confidence) / SEEDS) + 0.01


def test_the_estimate_is_unbiased_and_its_standard_error_true() -> None:
    A = digits_hessian("cross entropy")
    estimates = [trace(A, rtol=1e-9, min_matvecs=30, max_matvecs=30, seed=seed) for seed in range(SEEDS)]
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
        estimate = trace(A, rtol=1e-9, min_matvecs=32, max_matvecs=32, seed=seed)
        if estimate.value == 64.0:  # as many of each sign, so no skewness
            half = estimate.stderr * student.ppf(0.975, 31)
            assert (estimate.high - 64, 64 - estimate.low) == pytest.approx((half, half), rel=1e-9)
            break
    else:
        pytest.fail("no seed gave symmetric samples")


@pytest.mark.parametrize("skewness", [-2.0, -0.3, 1e-9, 0.0, 0.7, 2.5])
@pytest.mark.parametrize("quantile", [-2.1, -0.5, 0.0, 2.1])
def test_the_transformation_is_halls(skewness: float, quantile: float) -> None:
    """T + g T^2 / (3 sqrt m) + g^2 T^3 / (27 m) + g / (6 sqrt m) is the Student quantile (Hall 1992)."""
    m = 25
    T = _without_skewness(quantile, skewness, m)
    root = math.sqrt(m)
    cubic = T + skewness * T**2 / (3 * root) + skewness**2 * T**3 / (27 * m) + skewness / (6 * root)
    assert cubic == pytest.approx(quantile, abs=1e-7)


# --------------------------------------------------------------------------- stopping, cost


@pytest.mark.parametrize("rtol", [0.3, 0.1, 0.03])
def test_it_stops_when_the_interval_is_narrow_enough(rtol: float) -> None:
    A = Diagonal(torch.rand(5000, dtype=F64))
    B = rotated(with_outliers(300, [10.0, 20.0]))
    for operator in (A, B):
        estimate = trace(operator, rtol=rtol, seed=0)
        assert estimate.converged
        assert estimate.high - estimate.low <= 2 * rtol * abs(estimate.value)
        assert estimate.low <= estimate.value <= estimate.high


@pytest.mark.parametrize("min_matvecs", [2, 30, 50])
def test_products_are_counted_and_within_their_limits(min_matvecs: int) -> None:
    A = Diagonal(torch.rand(1000, dtype=F64))
    estimate = trace(A, rtol=0.5, min_matvecs=min_matvecs, max_matvecs=60, seed=0)
    assert estimate.matvecs == A.products == min_matvecs  # a diagonal matrix has no variance at all
    assert estimate.value == pytest.approx(float(A.values.sum()), rel=1e-12)

    class Noisy(Diagonal):
        def product(self, V: Tensor) -> Tensor:
            return super().product(V) + 50 * V.roll(1, dims=0) + 50 * V.roll(-1, dims=0)

    B = Noisy(torch.rand(1000, dtype=F64))
    estimate = trace(B, rtol=1e-6, min_matvecs=min_matvecs, max_matvecs=61, seed=0)
    assert estimate.matvecs == B.products == 61
    assert not estimate.converged and "NOT converged" in repr(estimate)


def test_where_n_products_are_cheaper_the_trace_is_exact() -> None:
    A = rotated(torch.linspace(-1, 1.001, 90, dtype=F64))
    operator = Diagonal(torch.ones(90, dtype=F64))
    operator.product = lambda V: A @ V
    estimate = trace(operator, rtol=1e-3, seed=0)
    assert estimate.method == "exact" and estimate.converged and estimate.stderr == 0
    assert estimate.value == pytest.approx(float(A.trace()), rel=1e-10)
    assert estimate.low <= estimate.value <= estimate.high
    assert 90 < estimate.matvecs <= 90 + 60  # with what was spent before that was known


def test_the_exact_route_does_not_exceed_the_limit() -> None:
    A = rotated(torch.linspace(-1, 1.001, 90, dtype=F64))
    estimate = trace(A, rtol=1e-6, max_matvecs=100, seed=0)
    assert estimate.method == "hutchinson" and not estimate.converged
    assert estimate.matvecs == 100


@pytest.mark.parametrize("name", CASES)
def test_traces_of_model_hessians(name: str) -> None:
    estimate = trace(Hessian(build(name).objective()), rtol=1e-9, seed=0)
    exact = float(reference(name)[2].trace())
    assert estimate.method == "exact" and estimate.kernel == "retained"
    assert estimate.value == pytest.approx(exact, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("n", [1, 10, 300])
def test_a_matrix_of_zeros(n: int, dtype: torch.dtype) -> None:
    estimate = trace(torch.zeros(n, n, dtype=dtype), seed=0)
    assert (estimate.value, estimate.low, estimate.high, estimate.stderr) == (0, 0, 0, 0)
    assert estimate.converged


def test_single_precision() -> None:
    A = digits_hessian("squares")
    estimate = trace(A.float(), rtol=0.05, seed=0)
    assert covers(estimate, float(A.trace()))
    assert estimate.value == pytest.approx(trace(A, rtol=0.05, seed=0).value, rel=1e-5)


def test_scaling_the_matrix_scales_the_estimate() -> None:
    A = rotated(with_outliers(200, [10.0]))
    one, many = trace(A, rtol=0.1, seed=3), trace(1e-9 * A, rtol=0.1, seed=3)
    assert one.matvecs == many.matvecs
    for name in ("value", "stderr", "low", "high"):
        assert getattr(many, name) == pytest.approx(1e-9 * getattr(one, name), rel=1e-9)


def test_seeds() -> None:
    A = rotated(with_outliers(200, [10.0]))
    state = torch.get_rng_state()
    same = [trace(A, rtol=0.1, seed=seed).value for seed in (5, torch.Generator().manual_seed(5))]
    fresh = [trace(A, rtol=0.1).value for _ in range(2)]
    assert same[0] == same[1] and len({*same, *fresh}) == 3
    assert torch.equal(torch.get_rng_state(), state)


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0.0}, r"rtol must be > 0 .*got 0\.0"),
        ({"rtol": float("nan")}, r"got nan"),
        ({"confidence": 0.0}, r"confidence in \(0, 1\), got .* 0\.0"),
        ({"method": "lucky"}, r'"auto" or "hutchinson", got .lucky.'),
        ({"min_matvecs": 1}, r"at least 2, got 1 and 1000"),
        ({"max_matvecs": 1}, r"at least 2, got 30 and 1"),
        ({"seed": 1.5}, r"seed must be an int, a torch\.Generator or None, got 1\.5"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        trace(torch.eye(500, dtype=F64), **options)


def test_a_cap_below_the_usual_minimum_is_kept() -> None:
    estimate = trace(torch.diag(torch.arange(100.0)) + 1.0, rtol=1e-9, max_matvecs=20, seed=0)
    assert estimate.matvecs == 20
    assert not estimate.converged
