"""Extremal eigenpairs: exact oracles first, then every claim a result makes about itself."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from landscape_cases import CASES, build, factorisation, reference
from losscope.landscape import Hessian, SettingError, top_eigenpairs
from losscope.landscape.krylov import _begin
from losscope.landscape.lanczos import LanczosBasis
from losscope.landscape.operators import Observed
from spectra import SPECTRA, Diagonal, rotated, with_outliers

F64 = torch.float64


def extremes(A: Tensor, k: int, which: str) -> Tensor:
    """The k extremal eigenvalues of a dense matrix, best first."""
    values = torch.linalg.eigvalsh(A.double())
    order = {"LA": values.flip(0), "SA": values, "LM": values[values.abs().argsort(descending=True)]}[which]
    return order[:k]


# --------------------------------------------------------------------------- exact oracles


@pytest.mark.parametrize("which", ["LA", "SA"])
@pytest.mark.parametrize("name", CASES)
def test_three_extremal_eigenvalues_of_model_hessians(name: str, which: str) -> None:
    H = reference(name)[2]
    result = top_eigenpairs(Hessian(build(name).objective()), 3, which=which, tol=1e-8, seed=0)
    assert result.converged and result.kernel == "retained"
    norm = float(extremes(H, 1, "LM").abs())
    assert float((result.values - extremes(H, 3, which)).abs().max()) <= 1e-5 * norm
    assert float((H @ result.vectors - result.vectors * result.values).norm(dim=0).max()) <= 1e-7 * norm


@pytest.mark.parametrize("widths", [[3, 4, 2], [4, 4, 4], [5, 2, 5], [3, 4, 3, 2], [4, 3, 3, 4]], ids=str)
def test_sharpness_of_deep_matrix_factorisation(widths: list[int]) -> None:
    model, objective, exact = factorisation(widths, seed=len(widths))
    assert objective.value() == 0.0
    assert objective.gradient().abs().max() == 0.0
    if len(widths) == 3:  # the closed form for two factors
        first, second = (torch.linalg.matrix_norm(f.detach(), 2) for f in model.factors)
        assert exact == pytest.approx(2 * float(first**2 + second**2), rel=1e-12)
    found = top_eigenpairs(Hessian(objective), tol=1e-8, seed=0)
    assert found.converged
    assert float(found.values[0]) == pytest.approx(exact, rel=1e-8)
    assert float(found.low[0]) <= exact * (1 + 1e-13)
    assert float(found.high[0]) >= exact * (1 - 1e-13)


@given(
    n=st.integers(1, 24),
    data=st.data(),
    which=st.sampled_from(["LA", "SA", "LM"]),
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    distinct=st.integers(1, 24),
)
def test_any_symmetric_matrix(n: int, data: st.DataObject, which: str, seed: int, scale: float, distinct: int) -> None:
    """With repeated eigenvalues, up to all n pairs, against a dense solver."""
    k = data.draw(st.integers(1, n))
    generator = torch.Generator().manual_seed(seed)
    pool = scale * torch.randn(min(distinct, n), generator=generator, dtype=F64)
    values = pool[torch.randint(len(pool), (n,), generator=generator)]
    A = rotated(values, seed)
    result = top_eigenpairs(A, k, which=which, tol=1e-10, seed=seed)
    norm = float(values.abs().max())
    assert result.values.shape == (k,) and result.vectors.shape == (n, k)
    if which == "LM":  # of a pair at +x and -x either may come first
        torch.testing.assert_close(result.values.abs(), extremes(A, k, which).abs(), rtol=0, atol=1e-8 * norm)
    else:
        multiplicity = int((values[:, None] - values).abs().le(1e-9 * norm).sum(dim=0).max())
        if multiplicity <= k or result.matvecs >= n:
            torch.testing.assert_close(result.values, extremes(A, k, which), rtol=0, atol=1e-8 * norm)
        torch.testing.assert_close(result.values[0], extremes(A, 1, which)[0], rtol=0, atol=1e-8 * norm)
    identity = torch.eye(k, dtype=F64)
    torch.testing.assert_close(result.vectors.T @ result.vectors, identity, rtol=0, atol=1e-9)
    explicit = (A @ result.vectors - result.vectors * result.values).norm(dim=0)
    assert bool((explicit <= 1.01 * result.residuals + 1e-13 * norm).all())


def test_a_matrix_of_one_entry() -> None:
    result = top_eigenpairs(torch.tensor([[-2.5]], dtype=F64), seed=0)
    assert result.values.tolist() == [-2.5] and result.vectors.abs().tolist() == [[1.0]]
    assert result.converged and result.matvecs == 1


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("value", [2.0, 0.0])
@pytest.mark.parametrize("k", [1, 3])
def test_multiples_of_the_identity_are_not_nan(value: float, k: int, dtype: torch.dtype) -> None:
    result = top_eigenpairs(value * torch.eye(50, dtype=dtype), k, seed=0)
    torch.testing.assert_close(result.values, torch.full((k,), value, dtype=F64), rtol=1e-6, atol=0)
    assert result.vectors.isfinite().all() and result.residuals.isfinite().all()
    assert result.converged


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_long_runs_hold_one_copy_of_each_outlier(dtype: torch.dtype) -> None:
    """Without reorthogonalisation the top six would be six copies of 100."""
    values = with_outliers(500, [20.0, 50.0, 100.0]).to(dtype)
    result = top_eigenpairs(Diagonal(values), 6, tol=1e-3, seed=0)
    assert result.matvecs >= 60 and result.converged
    torch.testing.assert_close(result.values[:3], torch.tensor([100.0, 50.0, 20.0], dtype=F64), rtol=1e-5, atol=0)
    assert bool((result.values[3:] <= 1 + 1e-4).all())


def test_largest_and_largest_in_magnitude_differ() -> None:
    A = Diagonal(SPECTRA["indefinite"])  # [-3, 1]
    found = {which: top_eigenpairs(A, tol=1e-6, which=which, seed=0).values.item() for which in ("LA", "SA", "LM")}
    assert found["LA"] == pytest.approx(1.0, rel=1e-5)
    assert found["SA"] == pytest.approx(-3.0, rel=1e-5)
    assert found["LM"] == pytest.approx(-3.0, rel=1e-5)


@pytest.mark.parametrize(
    ("which", "sorted_by"), [("LA", lambda v: -v), ("SA", lambda v: v), ("LM", lambda v: -v.abs())]
)
def test_order_of_the_values(which: str, sorted_by: object) -> None:
    A = rotated(torch.linspace(-2, 3, 40, dtype=F64) ** 3)
    values = top_eigenpairs(A, 5, which=which, tol=1e-9, seed=0).values
    assert torch.equal(values, values[sorted_by(values).argsort()])
    torch.testing.assert_close(values, extremes(A, 5, which))


@pytest.mark.parametrize("c", [1e-12, 1e-3, 1e9])
def test_scaling_the_matrix_scales_everything(c: float) -> None:
    values = SPECTRA["outliers"]
    one = top_eigenpairs(Diagonal(values), 2, tol=1e-4, seed=5)
    many = top_eigenpairs(Diagonal(c * values), 2, tol=1e-4, seed=5)
    assert many.matvecs == one.matvecs
    for name in ("values", "residuals", "low", "high"):
        torch.testing.assert_close(getattr(many, name), c * getattr(one, name), rtol=1e-8, atol=0)


def test_single_precision() -> None:
    values = with_outliers(400, [5.0, 10.0, 30.0])
    A = rotated(values)
    result = top_eigenpairs(A.float(), 3, tol=1e-4, seed=0)
    assert result.converged and result.vectors.dtype == torch.float32
    torch.testing.assert_close(result.values, extremes(A, 3, "LA"), rtol=2e-6, atol=0)
    explicit = (A @ result.vectors.double() - result.vectors * result.values).norm(dim=0)
    assert bool((explicit <= result.residuals).all())
    assert bool((result.low <= extremes(A, 3, "LA")).all())


def test_a_tolerance_below_rounding_stops_and_says_so() -> None:
    """In single precision an eigenvalue of 1e-3 of the norm cannot be had to 1e-5 of itself."""
    values = with_outliers(1000, [1e-3, 1.0], bulk=1e-4).float()
    result = top_eigenpairs(Diagonal(values), 2, tol=1e-5, seed=0)
    assert not result.converged
    assert result.matvecs < 50
    torch.testing.assert_close(result.values, values.double().topk(2).values, rtol=0, atol=1e-6)


# --------------------------------------------------------------------------- what a result claims


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("tol", [0.3, 1e-2, 1e-4])
@pytest.mark.parametrize("k", [1, 4])
def test_residuals_and_convergence_are_true(name: str, tol: float, k: int) -> None:
    """Residuals to one per cent of the explicit ones, and ``converged`` exactly as they say."""
    A = rotated(SPECTRA[name])
    norm = float(extremes(A, 1, "LM").abs())
    for which in ("LA", "SA", "LM"):
        for budget in (None, 6 * k):
            result = top_eigenpairs(A, k, which=which, tol=tol, max_matvecs=budget, seed=1)
            explicit = (A @ result.vectors - result.vectors * result.values).norm(dim=0)
            torch.testing.assert_close(result.residuals, explicit, rtol=1e-2, atol=1e-13 * norm)
            within = bool((explicit <= tol * result.values.abs().clamp(min=1e-3 * norm)).all())
            assert result.converged == within
            assert budget is None or result.matvecs <= budget
            torch.testing.assert_close(result.vectors.norm(dim=0), torch.ones(k, dtype=F64))


def test_running_out_of_products_is_not_convergence() -> None:
    result = top_eigenpairs(Diagonal(SPECTRA["bulk"]), tol=1e-6, max_matvecs=10, seed=0)
    assert not result.converged and result.matvecs == 10
    assert "NOT converged" in repr(result)


@pytest.mark.parametrize("start", ["cold", "warm"])
@pytest.mark.parametrize(("confidence", "k"), [(0.95, 1), (0.5, 1), (0.5, 3), (0.2, 1)])
@pytest.mark.parametrize(("name", "which"), [("outliers", "LA"), ("crowded", "SA"), ("hidden", "LA"), ("bulk", "SA")])
def test_bounds_hold_as_often_as_they_say(name: str, which: str, confidence: float, k: int, start: str) -> None:
    """Stopped by budget and by tolerance; warm starts begin at the eigenvector next to the wanted one."""
    values = SPECTRA[name] if which == "LA" else -SPECTRA[name]
    order = values.argsort(descending=which == "LA")
    exact = values[order[:k]]
    wrong = torch.nn.functional.one_hot(order[1:2], len(values)).T.to(F64)
    runs = 300 if k == 1 else 100
    for options in ({"max_matvecs": 6 * k, "tol": 1e-12}, {"tol": 3e-2}):
        claimed = held = 0
        for seed in range(runs):
            result = top_eigenpairs(
                Diagonal(values),
                k,
                which=which,
                confidence=confidence,
                seed=seed,
                start=wrong if start == "warm" else None,
                **options,
            )
            sure, other = (result.low, result.high) if which == "LA" else (-result.high, -result.low)
            truth = exact if which == "LA" else -exact
            assert bool((sure <= truth).all()), "the rigorous side failed"
            if result.bound == "two-sided":
                claimed += 1
                held += bool(other[0] >= truth[0])
            else:
                assert result.bound == ("lower" if which == "LA" else "upper")
                assert math.isinf(other[0])
        failures = claimed - held
        allowed = 1 - confidence
        assert failures <= runs * allowed + 2 * math.sqrt(runs * allowed * confidence)


@pytest.mark.parametrize("risk", [0.05, 0.5])
@pytest.mark.parametrize(("k", "columns"), [(1, 0), (3, 0), (1, 1), (3, 3)])
def test_the_share_that_a_start_has_of_any_vector(k: int, columns: int, risk: float) -> None:
    """What the bounds rest on: the start block holds less of a fixed unit vector with probability ``risk``.

    For single vectors it is sharp, both for random starts and for warm ones orthogonal to the vector.
    """
    n, runs = 100, 1500
    operator, short = Observed(Diagonal(torch.ones(n, dtype=F64))), 0
    start = torch.eye(n, dtype=F64)[:, 1 : 1 + columns] if columns else None
    for seed in range(runs):
        basis = LanczosBasis(operator, k, torch.Generator().manual_seed(seed))
        share = _begin(basis, start, risk)
        rows = basis._filled[0]
        short += float(rows[:, 0].norm()) < share
    margin = 3 * math.sqrt(risk * (1 - risk) / runs)
    assert short / runs <= risk + margin
    if k == 1:
        assert short / runs >= risk - margin - 0.01


def test_low_confidence_bounds_do_fail() -> None:
    """Were they far too wide, the test above could not notice a mistake in them."""
    values = SPECTRA["hidden"]
    results = [top_eigenpairs(Diagonal(values), tol=1e-9, max_matvecs=6, confidence=0.2, seed=s) for s in range(200)]
    missed = sum(float(r.high[0]) < 1.3 for r in results)
    assert 20 <= missed <= 160


def test_bounds_tighten_with_the_products() -> None:
    widths = []
    for budget in (8, 16, 32, 64):
        result = top_eigenpairs(Diagonal(SPECTRA["crowded"]), tol=1e-12, max_matvecs=budget, seed=0)
        widths.append(float(result.high[0] - result.low[0]))
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.02


def test_a_basis_of_the_whole_space_bounds_exactly() -> None:
    result = top_eigenpairs(rotated(torch.linspace(0, 1, 12, dtype=F64)), tol=1e-12, seed=0)
    assert result.bound == "two-sided"
    assert float(result.high[0] - result.low[0]) < 1e-12
    assert float(result.low[0]) <= 1 <= float(result.high[0])


def test_no_bound_is_claimed_for_the_largest_in_magnitude() -> None:
    result = top_eigenpairs(Diagonal(SPECTRA["indefinite"]), which="LM", seed=0)
    assert result.bound == "none"
    assert bool(result.low.isneginf().all()) and bool(result.high.isposinf().all())


# --------------------------------------------------------------------------- warm starts


def test_a_warm_start_from_the_answer_needs_few_products() -> None:
    values = SPECTRA["crowded"]
    cold = top_eigenpairs(Diagonal(values), tol=1e-2, seed=0)
    warm = top_eigenpairs(Diagonal(values), tol=1e-2, seed=1, start=cold.vectors)
    assert warm.converged
    assert warm.matvecs <= 3 < cold.matvecs


@pytest.mark.parametrize(("k", "columns"), [(1, 1), (3, 3), (3, 1), (2, 4)])
def test_products_are_reported_exactly(k: int, columns: int) -> None:
    A = Diagonal(SPECTRA["decaying"])
    start = torch.eye(300, dtype=F64)[:, :columns]
    for options in ({}, {"start": start}, {"max_matvecs": 17}, {"which": "SA", "tol": 0.5}):
        A.products = 0
        result = top_eigenpairs(A, k, seed=0, **options)
        assert result.matvecs == A.products > 0


@pytest.mark.parametrize("seed", range(20))
def test_a_start_orthogonal_to_the_top_is_not_trusted(seed: int) -> None:
    """Started exactly at the second eigenvector: found in the end, and no false certainty before."""
    values = with_outliers(400, [9.0, 10.0])
    second = torch.eye(400, dtype=F64)[:, int(values.argsort()[-2])]
    loose = top_eigenpairs(Diagonal(values), tol=0.2, start=second, seed=seed)
    assert loose.bound == "lower" or float(loose.high[0]) >= 10
    tight = top_eigenpairs(Diagonal(values), tol=1e-6, start=second, seed=seed)
    assert float(tight.values[0]) == pytest.approx(10, rel=1e-6)


def test_a_start_without_direction_is_a_cold_start() -> None:
    result = top_eigenpairs(Diagonal(SPECTRA["outliers"]), 2, tol=1e-6, start=torch.zeros(300, 2, dtype=F64), seed=0)
    torch.testing.assert_close(result.values, torch.tensor([100.0, 50.0], dtype=F64))


def test_a_start_that_repeats_a_direction_is_no_harm() -> None:
    start = torch.ones(300, 3, dtype=F64)
    result = top_eigenpairs(Diagonal(SPECTRA["outliers"]), 3, tol=1e-6, start=start, seed=0)
    torch.testing.assert_close(result.values, torch.tensor([100.0, 50.0, 20.0], dtype=F64))


def test_the_start_is_left_as_it_is() -> None:
    start = torch.ones(300, 1, dtype=F64)
    top_eigenpairs(Diagonal(SPECTRA["outliers"]), start=start, seed=0)
    assert torch.equal(start, torch.ones(300, 1, dtype=F64))


# --------------------------------------------------------------------------- cost and randomness


def test_the_small_problem_is_not_solved_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    solved = []
    eigh = LanczosBasis.eigh

    def counting(basis: LanczosBasis) -> object:
        solved.append(basis.size)
        return eigh(basis)

    monkeypatch.setattr(LanczosBasis, "eigh", counting)
    result = top_eigenpairs(Diagonal(SPECTRA["bulk"]), tol=1e-12, max_matvecs=150, seed=0)
    assert len(solved) <= result.matvecs / 4


def test_the_same_seed_gives_the_same_pairs() -> None:
    A = rotated(SPECTRA["bulk"])
    runs = [top_eigenpairs(A, 2, tol=1e-2, seed=seed) for seed in (7, torch.Generator().manual_seed(7), 8)]
    assert torch.equal(runs[0].values, runs[1].values) and torch.equal(runs[0].vectors, runs[1].vectors)
    assert not torch.equal(runs[0].vectors, runs[2].vectors)


def test_no_seed_means_fresh_entropy_and_the_global_stream_is_left_alone() -> None:
    A = rotated(SPECTRA["bulk"])
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = top_eigenpairs(A, tol=0.1)
    torch.manual_seed(0)
    second = top_eigenpairs(A, tol=0.1)
    assert not torch.equal(first.vectors, second.vectors)
    assert torch.equal(torch.get_rng_state(), state)


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, r"k must be an integer between 1 and n = 5, got 0"),
        ({"k": 6}, r"between 1 and n = 5, got 6"),
        ({"k": True}, r"got True"),
        ({"k": 1.0}, r"got 1\.0"),
        ({"which": "top"}, r'"LA", "SA" or "LM", got .top.'),
        ({"tol": 0.0}, r"tol must be in \[7\.1e-15, 1\).*float64 cannot resolve.*got 0\.0"),
        ({"tol": 1.0}, r"got 1\.0"),
        ({"tol": float("nan")}, r"got nan"),
        ({"k": 3, "max_matvecs": 2}, r"max_matvecs must be at least k = 3, got 2"),
        ({"confidence": 1.0}, r"confidence must be between 0 and 1, got 1\.0"),
        ({"seed": "zero"}, r"seed must be an int, a torch\.Generator or None, got 'zero'"),
        ({"seed": True}, r"got True"),
        ({"start": torch.ones(4)}, r"start must have shape \(5,\) or \(5, j\), got \(4,\)"),
        ({"start": torch.ones(5, 0)}, r"got \(5, 0\)"),
        ({"start": torch.ones(5, 1, 1)}, r"got \(5, 1, 1\)"),
        ({"start": [1.0] * 5}, r"start must be a tensor.*got list"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        top_eigenpairs(torch.eye(5, dtype=F64), **options)
