"""XTrace and XNysTrace against their definitions: an explicit sketch for every vector, or pair, that is left out."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from losscope.landscape import SettingError
from losscope.landscape.exchangeable import IndefiniteError, LeaveOut, XNysTrace, XTrace
from losscope.landscape.operators import Observed, as_operator
from losscope.landscape.sketch import Sketch
from spectra import SPECTRA, Diagonal, rotated, with_outliers

F64 = torch.float64
INDEFINITE = torch.cat([torch.linspace(-1, 1.5, 37), torch.tensor([5.0, -7.0, 20.0])]).double()
POSITIVE = torch.cat([torch.linspace(0, 1, 37), torch.tensor([5.0, 7.0, 20.0])]).double()


def sketch_of(A: object, seed: int = 0) -> Sketch:
    return Sketch(Observed(as_operator(A)), torch.Generator().manual_seed(seed))


def omega(sketch: Sketch) -> Tensor:
    return torch.cat(sketch._omega, dim=1)


def basis(sketch: Sketch) -> Tensor:
    return torch.cat(sketch._basis, dim=1)


def range_of(M: Tensor) -> Tensor:
    """The projection on the columns' span."""
    Q = torch.linalg.qr(M).Q
    return Q @ Q.T


def naive_xtrace(A: Tensor, X: Tensor, i: int, others: list[int]) -> float:
    """tr(QQ'A) + the residual's form of vector i, made a vector of fixed length in the complement of Q."""
    P = range_of(A @ X[:, others]) if others else torch.zeros_like(A)
    outside = torch.eye(len(A), dtype=F64) - P
    v = outside @ X[:, i]
    return float((P @ A).trace() + (len(A) - len(others)) * (v @ A @ v) / (v @ v))


def naive_xnystrace(A: Tensor, X: Tensor, i: int, others: list[int]) -> float:
    """The same with Nystroem's approximation, whose residual vanishes on the vectors in the sketch."""
    S = X[:, others]
    near = A @ S @ torch.linalg.pinv(S.T @ A @ S) @ S.T @ A
    v = X[:, i] - range_of(S) @ X[:, i]
    return float(near.trace() + (len(A) - len(others)) * (X[:, i] @ (A - near) @ X[:, i]) / (v @ v))


ESTIMATORS = [
    (XTrace, naive_xtrace, INDEFINITE),
    (XTrace, naive_xtrace, POSITIVE),
    (XNysTrace, naive_xnystrace, POSITIVE),
]


# --------------------------------------------------------------------------- the definitions


@pytest.mark.parametrize(("method", "naive", "spectrum"), ESTIMATORS)
def test_every_estimate_is_that_of_a_sketch_made_without_the_vector(
    method: type, naive: object, spectrum: Tensor
) -> None:
    A = rotated(spectrum)
    sketch = sketch_of(A)
    estimator = method(sketch)
    for count in (3, 1, 4):
        estimator.grow(count)
    found, X, k = estimator.leave_out(), omega(sketch), 8
    for i in range(k):
        others = [j for j in range(k) if j != i]
        assert float(found.single[i]) == pytest.approx(naive(A, X, i, others), rel=1e-9)
        assert math.isnan(found.double[i, i])
        for j in others:
            pair = naive(A, X, i, [m for m in others if m != j])
            assert float(found.double[i, j]) == pytest.approx(pair, rel=1e-8)


@pytest.mark.parametrize(("method", "naive", "spectrum"), ESTIMATORS)
def test_the_estimates_of_the_first_vectors(method: type, naive: object, spectrum: Tensor) -> None:
    A = rotated(spectrum)
    estimator = method(sketch_of(A))
    estimator.grow(9)
    first, X = estimator.leave_out(4), omega(estimator.sketch)
    expected = [naive(A, X, i, [j for j in range(4) if j != i]) for i in range(4)]
    assert first.single.tolist() == pytest.approx(expected, rel=1e-9)


def test_it_is_the_published_program() -> None:
    """xtrace_helper.m and xnystrace_helper.m of eepperly/XTrace, for vectors of length sqrt(n)."""
    n, k = 40, 9
    A = rotated(POSITIVE)
    sketch = sketch_of(A)
    XTrace(sketch).grow(k)
    X = omega(sketch)
    X = X * math.sqrt(n) / X.norm(dim=0)
    Y = A @ X
    Q, R = torch.linalg.qr(Y)
    Z = A @ Q
    W, H, T = Q.T @ X, Q.T @ Z, Z.T @ X
    S = torch.linalg.inv(R).T
    S = S / S.norm(dim=0)

    def dots(B: Tensor, C: Tensor) -> Tensor:
        return (B * C).sum(dim=0)

    scale = (n - k + 1) / (n - W.norm(dim=0) ** 2 + (dots(S, W) * S.norm(dim=0)) ** 2)
    published = H.trace() - dots(S, H @ S) + scale * (
        -dots(T, W) + dots(W, H @ W) + dots(S, W) * dots(S, R - H @ W) + dots(S, W) ** 2 * dots(S, H @ S)
        + dots(T - H.T @ W, S) * dots(S, W)
    )  # fmt: skip
    torch.testing.assert_close(XTrace(sketch).leave_out().single, published, rtol=1e-9, atol=0)

    C = torch.linalg.cholesky(X.T @ Y, upper=True)
    B = torch.linalg.solve_triangular(C, R, upper=True, left=False)
    S = torch.linalg.solve_triangular(C.T, B, upper=False, left=False) / torch.linalg.inv(X.T @ Y).diagonal().sqrt()
    QQ, RR = torch.linalg.qr(X)
    SS = torch.linalg.inv(RR).T
    SS = SS / SS.norm(dim=0)
    WW = QQ.T @ X
    scale = (n - k + 1) / (n - WW.norm(dim=0) ** 2 + (dots(SS, WW) * SS.norm(dim=0)) ** 2)
    published = B.norm() ** 2 - S.norm(dim=0) ** 2 + dots(S, W) ** 2 * scale
    torch.testing.assert_close(XNysTrace(sketch).leave_out().single, published, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("method", "projected"), [(XTrace, True), (XNysTrace, False)])
def test_samples_beyond_the_sketch(method: type, projected: bool) -> None:
    A = rotated(POSITIVE)
    estimator = method(sketch_of(A))
    estimator.grow(5)
    X, Q = omega(estimator.sketch), basis(estimator.sketch)
    near = Q @ Q.T @ A @ Q @ Q.T if projected else A @ X @ torch.linalg.inv(X.T @ A @ X) @ X.T @ A
    rest = torch.eye(40, dtype=F64) - Q @ Q.T if projected else None
    B = rest @ A @ rest if rest is not None else A - near
    Z = torch.randint(0, 2, (40, 7)).double() * 2 - 1
    expected = near.trace() + (Z * (B @ Z)).sum(dim=0)
    torch.testing.assert_close(estimator.deflated(Z, A @ Z), expected, rtol=1e-9, atol=0)


# --------------------------------------------------------------------------- what the estimates are worth


@pytest.mark.parametrize("method", [XTrace, XNysTrace])
@pytest.mark.parametrize("name", ["decaying", "outliers", "bulk"])
def test_unbiased_with_a_variance_that_is_unbiased_too(method: type, name: str) -> None:
    values, k, seeds = SPECTRA[name], 10, 400
    means, variances, naive = [], [], []
    for seed in range(seeds):
        estimator = method(sketch_of(Diagonal(values), seed))
        estimator.grow(k)
        found = estimator.leave_out()
        means.append(float(found.single.mean()))
        naive.append(float(found.single.var()) / k)
        variances.append(naive[-1] + found.covariance)
    means, variances = torch.tensor(means, dtype=F64), torch.tensor(variances, dtype=F64)
    assert abs(float(means.mean() - values.sum())) <= 3.5 * float(means.std()) / math.sqrt(seeds)
    squares = (means - values.sum()).square()
    apart = squares - variances
    assert abs(float(apart.mean())) <= 3.5 * float(apart.std()) / math.sqrt(seeds)


@pytest.mark.parametrize("method", [XTrace, XNysTrace])
@pytest.mark.parametrize(("rate", "least", "most"), [(0.6, 0.25, 0.5), (0.8, 0.5, 0.8), (1.0, 0.99, 1.0)])
def test_how_much_a_vector_narrows_shows_how_eigenvalues_fall(
    method: type, rate: float, least: float, most: float
) -> None:
    """By its square, in the middle of many sketches; XNysTrace believes so much of its products."""
    values, seen = (
        rate ** torch.arange(400, dtype=F64) + (0.1 * torch.linspace(0, 1, 400, dtype=F64) if rate == 1 else 0),
        [],
    )
    for seed in range(60):
        estimator = method(sketch_of(Diagonal(values), seed))
        estimator.grow(15)
        found = estimator.leave_out()
        believed, products = estimator.covariance(found), found.covariance_in_size
        if method is XTrace:
            assert believed == max(0.0, found.covariance)
        else:
            assert found.narrowing * products <= believed <= products * (0.8 if rate < 0.7 else 1)
        seen.append(found.narrowing)
    assert max(seen) <= 1 and least <= float(np.median(seen)) <= most


def test_two_estimates_say_nothing_of_how_they_narrow() -> None:
    estimator = XTrace(sketch_of(Diagonal(SPECTRA["bulk"])))
    estimator.grow(2)
    assert estimator.leave_out().narrowing == 1.0


def test_a_rank_that_the_sketch_exceeds_is_found_exactly() -> None:
    values = torch.cat([torch.linspace(1, 2, 6), torch.zeros(60)]).double()
    for method in (XTrace, XNysTrace):
        for k in (7, 8, 20):
            estimator = method(sketch_of(Diagonal(values)))
            estimator.grow(k)
            found = estimator.leave_out()
            torch.testing.assert_close(found.single, torch.full((k,), 9.0, dtype=F64), rtol=1e-9, atol=0)
            assert math.isfinite(found.covariance)


@pytest.mark.parametrize("method", [XTrace, XNysTrace])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("c", [0.0, 1e-12, 3.0, 1e12])
def test_multiples_of_the_identity_have_no_variance(c: float, dtype: torch.dtype, method: type) -> None:
    estimator = method(sketch_of(Diagonal(torch.full((200,), c, dtype=dtype))))
    estimator.grow(6)
    estimator.grow(5)
    found = estimator.leave_out()
    expected = torch.full((11,), 200 * c, dtype=F64)
    torch.testing.assert_close(found.single, expected, rtol=200 * torch.finfo(dtype).eps, atol=0)


def test_single_precision() -> None:
    """The small problems are in double precision, so what is left is the rounding of products and inner products."""
    values = torch.arange(1, 3001, dtype=F64) ** -2.0
    for method in (XTrace, XNysTrace):
        double, single = (method(sketch_of(Diagonal(values.to(dtype)))) for dtype in (F64, torch.float32))
        double.grow(40)
        same = omega(double.sketch).float()
        single.sketch.space.random = lambda k, generator, same=same: same[:, :k]
        single.grow(40)
        one, two = double.leave_out().single, single.leave_out().single
        assert float(two.mean()) == pytest.approx(float(one.mean()), rel=2e-5)


# --------------------------------------------------------------------------- bad input


def test_nystroems_approximation_refuses_an_indefinite_operator() -> None:
    estimator = XNysTrace(sketch_of(rotated(torch.linspace(-1, 1, 100, dtype=F64))))
    with pytest.raises(
        IndefiniteError, match=r"semi-definite operator, and here v'Av = -\S* v'v .* use method=.xtrace"
    ):
        estimator.grow(10)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("rank", [1, 3, 30])
def test_rounding_is_no_indefiniteness(rank: int, dtype: torch.dtype) -> None:
    B = torch.randn(300, rank, dtype=F64) * torch.logspace(0, -6, rank, dtype=F64)
    A = (B @ B.T).to(dtype)
    estimator = XNysTrace(sketch_of(A))
    for _ in range(4):
        estimator.grow(10)
    assert float(estimator.leave_out().single.mean()) == pytest.approx(float(A.trace()), rel=1e-4)


@pytest.mark.parametrize("method", [XTrace, XNysTrace])
def test_matrices_that_are_not_symmetric_are_refused(method: type) -> None:
    A = torch.diag(torch.arange(1.0, 101.0, dtype=F64))
    A[0, 1] = 1000.0
    with pytest.raises(SettingError, match="not symmetric"):
        method(sketch_of(A)).grow(10)


def test_leaving_out_two_that_are_one_but_for_rounding() -> None:
    single, double = torch.tensor([1.0, 3.0], dtype=F64), torch.full((2, 2), math.nan, dtype=F64)
    assert LeaveOut(single, double).covariance == 0.0


def test_with_outliers_both_find_the_trace() -> None:
    values = with_outliers(600, [20.0, 50.0, 100.0])
    for method in (XTrace, XNysTrace):
        estimator = method(sketch_of(rotated(values)))
        estimator.grow(30)
        assert float(estimator.leave_out().single.mean()) == pytest.approx(float(values.sum()), rel=0.02)
