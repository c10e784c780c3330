"""The diagonal: exact oracles, naive versions of the estimators, calibration of every entry's interval."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digits_nets import hessian_on_digits
from landscape_cases import CASES, build, reference
from losscope.landscape import DiagonalEstimate, Hessian, Objective, SettingError, diagonal, xdiag
from losscope.landscape.operators import DenseOperator
from losscope.landscape.space import ParameterSpace
from spectra import Diagonal, rotated, with_outliers

F64 = torch.float64
SEEDS = 25


def localised() -> Tensor:
    """Gauss-Newton-like: few sparse rows of very different size, and a dense indefinite rest."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(40, 500, generator=generator, dtype=F64) * (torch.rand(40, 500, generator=generator) < 0.1)
    rows *= torch.logspace(1, -2, 40, dtype=F64)[:, None] * torch.logspace(0, -1.5, 500, dtype=F64)
    rest = 0.01 * torch.randn(500, 500, generator=generator, dtype=F64)
    return rows.T @ rows + rest + rest.T


MATRICES = {
    "mlp squares": lambda: hessian_on_digits("mlp squares"),
    "mlp": lambda: hessian_on_digits("mlp"),
    "resnet": lambda: hessian_on_digits("resnet"),
    "three outliers": lambda: rotated(with_outliers(300, [20.0, 50.0, 100.0])),
    "indefinite": lambda: rotated(torch.cat([torch.linspace(-1, 1.5, 297), torch.tensor([5.0, -20.0, 40.0])]).double()),
    "power law": lambda: rotated(torch.arange(1, 301, dtype=F64) ** -1),
    "localised": localised,
}


def covered(estimate: DiagonalEstimate, exact: Tensor) -> Tensor:
    return ((estimate.low <= exact) & (exact <= estimate.high)).double()


# --------------------------------------------------------------------------- exact oracles


@pytest.mark.parametrize("name", CASES)
def test_diagonals_of_model_hessians(name: str) -> None:
    exact = reference(name)[2].diagonal()
    objective = build(name).objective()
    estimate = diagonal(Hessian(objective), method="exact")
    assert (estimate.method, estimate.kernel, estimate.matvecs >= len(exact)) == ("exact", "retained", True)
    torch.testing.assert_close(estimate.value, exact, rtol=1e-9, atol=1e-12)
    assert estimate.converged and not estimate.stderr.any()
    pieces = estimate.by_name()
    assert {name: piece.shape for name, piece in pieces.items()} == {
        n: p.shape for n, p in objective.parameters.items()
    }
    assert torch.equal(torch.cat([piece.flatten() for piece in pieces.values()]), estimate.value)


def naive_estimate(A: Tensor, omega: Tensor, i: int, *without: int) -> Tensor:
    """The diagonal from a projector of its own: on the products of all vectors but i, which tests it, and others."""
    others = [j for j in range(omega.shape[1]) if j != i and j not in without]
    Q = torch.linalg.qr(A @ omega[:, others]).Q
    left = A @ omega[:, i] - Q @ (Q.T @ (A @ omega[:, i]))
    return (Q @ (Q.T @ A)).diagonal() + omega[:, i] * left


def test_hutchinson_is_the_mean_of_z_times_az() -> None:
    A = rotated(with_outliers(80, [10.0]))
    estimate = diagonal(A, method="hutchinson", min_matvecs=25, max_matvecs=25, seed=3)
    Z = DenseOperator(A).space.random(25, torch.Generator().manual_seed(3), "rademacher")
    samples = Z * (A @ Z)
    torch.testing.assert_close(estimate.value, samples.sum(dim=1) / (Z * Z).sum(dim=1))
    torch.testing.assert_close(estimate.stderr, samples.std(dim=1) / 5)


@pytest.mark.parametrize("near", [1, 1000, 128 << 10], ids=["entry by entry", "some rows", "at once"])
@pytest.mark.parametrize("name", ["power law", "three outliers", "localised"])
def test_xdiag_is_the_mean_of_leave_one_out_estimates(name: str, near: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its error that within them and their covariance, from leaving two out."""
    monkeypatch.setattr(xdiag, "_NEAR", near)  # bytes
    A, k = MATRICES[name](), 9
    estimate = diagonal(A, method="xdiag", min_matvecs=2 * k, max_matvecs=2 * k, seed=3)
    omega = DenseOperator(A).space.random(k, torch.Generator().manual_seed(3), "rademacher")
    single = [naive_estimate(A, omega, i) for i in range(k)]
    estimates = torch.stack(single, dim=1)
    torch.testing.assert_close(estimate.value, estimates.mean(dim=1), rtol=1e-9, atol=1e-12)
    pairs = [
        (single[i] - naive_estimate(A, omega, i, j)) * (single[j] - naive_estimate(A, omega, j, i))
        for i, j in itertools.combinations(range(k), 2)
    ]
    covariance, within = torch.stack(pairs).mean(dim=0), estimates.var(dim=1) / k
    pooled = (covariance.sum() / within.sum()).clamp(min=0)
    expected = (within + torch.maximum(covariance, pooled * within)).sqrt()
    torch.testing.assert_close(estimate.stderr, expected, rtol=1e-6, atol=1e-12)


def test_xdiag_grown_step_by_step_is_xdiag_at_once() -> None:
    A = MATRICES["power law"]()
    grown = diagonal(A, method="xdiag", rtol=1e-12, min_matvecs=10, max_matvecs=60, seed=3)
    at_once = diagonal(A, method="xdiag", rtol=1e-12, min_matvecs=60, max_matvecs=60, seed=3)
    assert grown.matvecs == at_once.matvecs == 60
    torch.testing.assert_close(grown.value, at_once.value, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("method", ["auto", "xdiag"])
def test_a_matrix_of_low_rank_is_found_exactly(method: str, dtype: torch.dtype) -> None:
    A = rotated(torch.cat([torch.linspace(1, 5, 8), torch.zeros(292)]).double()).to(dtype)
    estimate = diagonal(A, method=method, seed=0)
    assert (estimate.method, estimate.matvecs, estimate.converged) == ("xdiag", 30, True)
    size = float(A.diagonal().square().mean().sqrt())
    torch.testing.assert_close(estimate.value, A.diagonal(), rtol=0, atol=100 * torch.finfo(dtype).eps * size)
    assert bool(covered(estimate, A.diagonal()).all())


@pytest.mark.parametrize("method", ["auto", "hutchinson"])
def test_a_diagonal_matrix_has_no_variance(method: str) -> None:
    A = Diagonal(torch.logspace(0, -3, 500, dtype=F64))
    estimate = diagonal(A, method=method, rtol=1e-6, seed=0)
    assert estimate.matvecs == A.products == 30 and estimate.converged
    torch.testing.assert_close(estimate.value, A.values, rtol=1e-12, atol=1e-14)
    assert bool(covered(estimate, A.values).all())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("method", ["auto", "hutchinson", "xdiag", "exact"])
@pytest.mark.parametrize("n", [1, 10, 300])
def test_a_matrix_of_zeros(n: int, method: str, dtype: torch.dtype) -> None:
    estimate = diagonal(torch.zeros(n, n, dtype=dtype), method=method, seed=0)
    for found in (estimate.value, estimate.stderr, estimate.low, estimate.high):
        assert found.tolist() == [0] * n
    assert estimate.converged


# --------------------------------------------------------------------------- calibration


@pytest.mark.parametrize(
    ("method", "name"),
    [*itertools.product(["hutchinson", "xdiag"], MATRICES), ("auto", "mlp"), ("auto", "indefinite")],
)
def test_intervals_cover_as_often_as_they_say(method: str, name: str) -> None:
    A = MATRICES[name]()
    exact = A.diagonal()
    large = exact.abs() >= exact.abs().quantile(0.95)
    for options in ({"min_matvecs": 30, "max_matvecs": 30}, {"max_matvecs": 90, "rtol": 0.2}):
        estimates = [diagonal(A, method=method, seed=seed, **{"rtol": 1e-9} | options) for seed in range(SEEDS)]
        shares = torch.stack([covered(e, exact) for e in estimates]).mean(dim=0)
        assert float(shares.mean()) >= 0.92
        assert float(shares[large].mean()) >= 0.90
        half = np.median([float(((e.high - e.low) / 2).median()) for e in estimates])
        error = np.median([float((e.value - exact).abs().median()) for e in estimates])
        assert half <= 5 * error


def test_hutchinson_is_unbiased_with_the_standard_error_of_the_theory() -> None:
    A = hessian_on_digits("mlp")
    estimates = [diagonal(A, method="hutchinson", min_matvecs=30, max_matvecs=30, seed=s) for s in range(400)]
    values = torch.stack([e.value for e in estimates])
    theory = ((A.square().sum(dim=1) - A.diagonal().square()) / 30).sqrt()
    apart = (values.mean(dim=0) - A.diagonal()).abs() / (theory / 20)
    assert float(apart.max()) <= 5
    found = torch.stack([e.stderr.square() for e in estimates]).mean(dim=0).sqrt()
    torch.testing.assert_close(found, theory, rtol=0.1, atol=0)


def test_xdiag_is_unbiased() -> None:
    A = MATRICES["three outliers"]()
    values = torch.stack(
        [diagonal(A, method="xdiag", min_matvecs=20, max_matvecs=20, seed=s).value for s in range(300)]
    )
    apart = (values.mean(dim=0) - A.diagonal()) / (values.std(dim=0) / 300**0.5)
    assert float(apart.abs().max()) <= 5 and float(apart.square().mean()) <= 1.5


@pytest.mark.parametrize("confidence", [0.5, 0.99])
def test_other_confidences(confidence: float) -> None:
    A = hessian_on_digits("mlp squares")
    options = {"method": "hutchinson", "min_matvecs": 30, "max_matvecs": 30, "confidence": confidence}
    shares = [float(covered(diagonal(A, seed=s, **options), A.diagonal()).mean()) for s in range(SEEDS)]
    assert abs(np.mean(shares) - confidence) <= 0.02


# --------------------------------------------------------------------------- spatial averages


class Convolutions(nn.Module):
    """A convolution in two dimensions, one in one, a matrix and their biases."""

    def __init__(self) -> None:
        super().__init__()
        self.plane, self.line = nn.Conv2d(1, 3, 3), nn.Conv1d(3, 4, 2)
        self.head = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.line(self.plane(x).tanh().mean(dim=3)).tanh().mean(dim=2))


def convolutional() -> tuple[Objective, Tensor]:
    model = Convolutions().double()
    data = (torch.randn(20, 1, 5, 5, dtype=F64), torch.randint(6, (20,)))
    objective = Objective(model, data, criterion=nn.CrossEntropyLoss())
    return objective, diagonal(Hessian(objective), method="exact").value


def averages(vector: Tensor, space: ParameterSpace, length: int) -> dict[str, Tensor]:
    """By hand, for the shapes of `Convolutions`."""
    pieces = dict(zip(space.names, space.unflatten(vector), strict=True))
    pieces["plane.weight"] = pieces["plane.weight"].mean(dim=(2, 3), keepdim=True).expand(3, 1, 3, 3)
    pieces["line.weight"] = pieces["line.weight"].mean(dim=2, keepdim=True).expand(4, 3, 2)
    runs = pieces["head.weight"].reshape(-1, length)
    pieces["head.weight"] = runs.mean(dim=1, keepdim=True).expand_as(runs).reshape(6, 4)
    return pieces


@pytest.mark.parametrize("length", [1, 2, 4, 12])
def test_spatial_averages_are_those_of_kernels_and_of_runs_of_matrices(length: int) -> None:
    objective, exact = convolutional()
    expected = averages(exact, objective.space, length)
    estimate = diagonal(Hessian(objective), method="exact", spatial=length)
    for name, found in estimate.by_name().items():
        torch.testing.assert_close(found, expected[name])
    assert torch.equal(estimate.low <= estimate.value, torch.ones_like(exact, dtype=torch.bool))


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_the_interval_of_an_average_knows_how_its_entries_vary_together(method: str) -> None:
    objective, exact = convolutional()
    matrix = Hessian(objective) @ torch.eye(len(exact), dtype=F64)
    operator = DenseOperator(matrix)
    operator.space = objective.space
    expected = torch.cat([piece.flatten() for piece in averages(exact, objective.space, 4).values()])
    options = {"method": method, "spatial": 4, "rtol": 1e-9, "min_matvecs": 40, "max_matvecs": 40}
    estimates = [diagonal(operator, seed=seed, **options) for seed in range(200)]
    shares = torch.stack([covered(e, expected) for e in estimates]).mean(dim=0)
    assert float(shares.mean()) >= 0.92 and float(shares.min()) >= 0.85
    if method == "hutchinson":
        values = torch.stack([e.value for e in estimates])
        found = torch.stack([e.stderr.square() for e in estimates]).mean(dim=0).sqrt()
        torch.testing.assert_close(found, values.std(dim=0), rtol=0.25, atol=0)


# --------------------------------------------------------------------------- stopping, cost


@pytest.mark.parametrize("method", ["auto", "hutchinson", "xdiag"])
def test_it_stops_when_the_intervals_are_narrow_enough(method: str) -> None:
    A = rotated(torch.linspace(1, 2, 400, dtype=F64))
    estimate = diagonal(A, method=method, rtol=0.1, seed=0)
    assert estimate.converged and estimate.relative_half_width <= 0.1
    half = ((estimate.high - estimate.low) / 2).square().mean().sqrt() / A.diagonal().square().mean().sqrt()
    assert float(half) == pytest.approx(estimate.relative_half_width, rel=0.02)


@pytest.mark.parametrize("method", ["auto", "hutchinson", "xdiag"])
@pytest.mark.parametrize("most", [4, 5, 20, 61])
def test_products_are_counted_and_within_their_limits(method: str, most: int) -> None:
    A = rotated(with_outliers(300, [50.0]))
    operator = Diagonal(torch.ones(300, dtype=F64))
    made = []
    operator.product = lambda V: (made.append(V.shape[1]), A @ V)[1]
    estimate = diagonal(operator, method=method, rtol=1e-9, max_matvecs=most, seed=0)
    assert estimate.matvecs == sum(made) and most - 1 <= sum(made) <= most
    assert not estimate.converged and "NOT converged" in repr(estimate)


@pytest.mark.parametrize("least", [2, 3])
@pytest.mark.parametrize("method", ["auto", "hutchinson", "xdiag"])
def test_few_products_before_the_first_look(method: str, least: int) -> None:
    estimate = diagonal(rotated(with_outliers(60, [5.0])), method=method, min_matvecs=least, rtol=0.5, seed=0)
    assert estimate.converged and bool(estimate.stderr.isfinite().all())


def test_where_n_products_are_cheaper_the_diagonal_is_exact() -> None:
    A = rotated(torch.linspace(-1, 1.001, 90, dtype=F64))
    estimate = diagonal(A, rtol=1e-3, seed=0)
    assert estimate.method == "exact" and estimate.converged
    torch.testing.assert_close(estimate.value, A.diagonal())
    assert 90 < estimate.matvecs <= 90 + 60
    capped = diagonal(A, rtol=1e-6, max_matvecs=100, seed=0)
    assert capped.method != "exact" and not capped.converged and capped.matvecs <= 100


def test_auto_takes_the_estimator_with_the_narrower_intervals() -> None:
    decaying, level = rotated(0.8 ** torch.arange(400, dtype=F64)), rotated(torch.linspace(1, 2, 400, dtype=F64))
    assert diagonal(decaying, seed=0).method == "xdiag"
    assert diagonal(level, rtol=0.05, seed=0).method == "hutchinson"


def test_memory_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xdiag, "_MEMORY", 8 * 8 * 400 * 20)  # twenty samples
    A = rotated(torch.arange(1, 401, dtype=F64) ** -0.5)
    estimate = diagonal(A, method="xdiag", rtol=1e-9, seed=0)
    assert estimate.matvecs == 40 and not estimate.converged
    monkeypatch.setattr(xdiag, "_MEMORY", 8 * 8 * 400 * 3)
    assert diagonal(A, rtol=1e-9, max_matvecs=50, seed=0).method == "hutchinson"


# --------------------------------------------------------------------------- precision, scale, seeds


def test_errors_of_products_are_part_of_the_interval() -> None:
    A = DenseOperator(torch.diag(torch.ones(200, dtype=F64)))
    A.space.rounding = 1e-3
    for method in ("hutchinson", "xdiag", "exact"):
        estimate = diagonal(A, method=method, min_matvecs=30, seed=0)
        assert float((estimate.high - estimate.value).min()) >= 0.99e-3


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_it_stops_where_errors_of_products_leave_nothing_to_gain(method: str) -> None:
    A = DenseOperator(rotated(with_outliers(200, [10.0])))
    A.space.rounding = 0.3
    estimate = diagonal(A, method=method, rtol=0.1, seed=0)
    assert not estimate.converged and estimate.matvecs == 30


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_single_precision(method: str) -> None:
    A = hessian_on_digits("mlp squares")
    single = diagonal(A.float(), method=method, min_matvecs=40, max_matvecs=40, seed=0)
    double = diagonal(A, method=method, min_matvecs=40, max_matvecs=40, seed=0)
    assert single.value.dtype == torch.float32
    size = float(A.diagonal().square().mean().sqrt())
    for name in ("value", "stderr", "low", "high"):
        torch.testing.assert_close(getattr(single, name).double(), getattr(double, name), rtol=1e-3, atol=1e-3 * size)


@pytest.mark.parametrize("method", ["hutchinson", "xdiag", "exact", "auto"])
@pytest.mark.parametrize("factor", [1e-9, -3.0])
def test_scaling_the_matrix_scales_the_estimate(method: str, factor: float) -> None:
    A = rotated(with_outliers(200, [10.0]))
    one, many = (diagonal(B, method=method, max_matvecs=200, rtol=0.3, seed=3) for B in (A, factor * A))
    assert (one.matvecs, one.converged) == (many.matvecs, many.converged)
    ends = ("low", "high") if factor > 0 else ("high", "low")
    torch.testing.assert_close(many.value, factor * one.value, rtol=1e-8, atol=0)
    torch.testing.assert_close(many.stderr, abs(factor) * one.stderr, rtol=1e-6, atol=1e-9 * abs(factor))
    torch.testing.assert_close(many.low, factor * getattr(one, ends[0]), rtol=1e-6, atol=1e-9 * abs(factor))


def test_seeds() -> None:
    A = rotated(with_outliers(200, [10.0]))
    state = torch.get_rng_state()
    options = {"rtol": 1e-9, "max_matvecs": 40}
    same = [diagonal(A, seed=seed, **options).value for seed in (5, torch.Generator().manual_seed(5))]
    fresh = [diagonal(A, **options).value for _ in range(2)]
    assert torch.equal(*same) and not torch.equal(*fresh) and not torch.equal(same[0], fresh[0])
    assert torch.equal(torch.get_rng_state(), state)


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0.0}, r"rtol must be > 0 .*got 0\.0"),
        ({"rtol": float("nan")}, r"got nan"),
        ({"confidence": 1.0}, r"confidence in \(0, 1\), got .* 1\.0"),
        ({"method": "lucky"}, r"'auto', 'hutchinson', 'xdiag', 'exact'; got 'lucky'"),
        ({"min_matvecs": 1}, r"integers of at least 2, got 1 and 1000"),
        ({"max_matvecs": 1}, r"at least 2, got 30 and 1"),
        ({"max_matvecs": 50.0}, r"integers of at least 2, got 30 and 50\.0"),
        ({"method": "xdiag", "max_matvecs": 3}, r"takes 4 products at least, got max_matvecs = 3"),
        ({"method": "exact", "max_matvecs": 499}, r"takes n = 500 products, more than max_matvecs = 499; raise that"),
        ({"seed": 1.5}, r"seed must be an int, a torch\.Generator or None, got 1\.5"),
        ({"spatial": 0}, r"spatial must be None or a positive integer, got 0"),
        ({"spatial": 1}, r"needs an operator over a model's parameters, and this one has 500 entries"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        diagonal(torch.eye(500, dtype=F64), **options)


def test_runs_that_do_not_fit_a_matrix_are_refused() -> None:
    objective, _ = convolutional()
    with pytest.raises(SettingError, match=r"head.weight of shape \(6, 4\) cannot be cut into runs of spatial=5"):
        diagonal(Hessian(objective), spatial=5)


@pytest.mark.parametrize("method", ["auto", "hutchinson", "xdiag", "exact"])
def test_operators_that_are_not_symmetric_are_refused(method: str) -> None:
    A = torch.randn(50, 50, dtype=F64)
    with pytest.raises(SettingError, match="the operator is not symmetric"):
        diagonal(A, method=method, seed=0)


def test_an_operator_without_names_cannot_be_split() -> None:
    with pytest.raises(SettingError, match="needs an operator over a model's parameters"):
        diagonal(torch.eye(3), seed=0).by_name()
    with pytest.raises(SettingError, match=r"field must be 'value', .* got 'error'"):
        diagonal(torch.eye(3), seed=0).by_name("error")


def test_agrees_with_a_diagonal_computed_from_cross_entropy_in_closed_form() -> None:
    """Softmax regression: the Hessian's diagonal is the mean of x_i^2 p_c (1 - p_c)."""
    model = nn.Linear(5, 3, bias=False).double()
    x, y = torch.randn(30, 5, dtype=F64), torch.randint(3, (30,))
    p = model(x).softmax(dim=1).detach()
    expected = torch.einsum("ni,nc->ci", x.square(), p * (1 - p)) / 30
    found = diagonal(Hessian(Objective(model, (x, y), criterion=F.cross_entropy)), seed=0).by_name()["weight"]
    torch.testing.assert_close(found, expected)
