"""Extremal eigenpairs: exact oracles first, then every claim a result makes about itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator
from torch import Tensor

from factorisation import factorisation
from landscape_cases import CASES, build, reference
from losscope.landscape import Hessian, SettingError, lanczos, top_eigenpairs
from losscope.landscape.lanczos import LanczosBasis
from losscope.landscape.operators import DenseOperator
from spectra import SPECTRA, Diagonal, extremes, rotated, with_outliers

F64 = torch.float64


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


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("c", [1e-22, 1e-26, 1e-30])
def test_squares_that_single_precision_does_not_have(c: float, k: int) -> None:
    """As the curvature of a classifier is that has left every doubt behind; bounds and all."""
    A = rotated(with_outliers(200, [20.0, 50.0, 100.0]))
    for block in (1, k):
        found = top_eigenpairs((c * A).float(), k, block=block, seed=0)
        torch.testing.assert_close(found.values / c, extremes(A, k, "LA"), rtol=1e-3, atol=0.0)
        assert float(found.low[0]) <= 100.001 * c and 99.999 * c <= float(found.high[0]) <= 110 * c


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


@pytest.mark.parametrize(("which", "k"), [("SA", 5), ("BE", 8), ("LA", 12)])
def test_copies_are_found_where_rounding_stops_it(which: str, k: int) -> None:
    """Zeros that a float32 matrix has many of are never had to 1e-6 of its norm, and are no less there."""
    values = torch.cat([torch.linspace(1, 2, 10), torch.zeros(30)]).double()
    for seed in range(5):
        found = top_eigenpairs(rotated(values).float(), k, which=which, tol=1e-3, seed=seed)
        torch.testing.assert_close(found.values, extremes(torch.diag(values), k, which), rtol=0, atol=1e-5)


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
        ({"which": "top"}, r"one of 'LA' \(largest\), .*; got 'top'"),
        ({"which": None}, r"got None"),
        ({"which": "BE"}, r"k of 2 or more, one for each end; got 1"),
        ({"block": 0}, r"block must be None or an integer between 1 and n = 5, got 0"),
        ({"block": 6}, r"got 6"),
        ({"block": True}, r"got True"),
        ({"guards": -1}, r"guards must be an integer of 0 or more, got -1"),
        ({"guards": 1.0}, r"got 1\.0"),
        ({"memory": 39}, r"memory=39 bytes holds 0 vectors of 5 entries, and 5 are needed for k=1: allow 200, or"),
        ({"tol": 0.0}, r"tol must be in \[7\.1e-15, 1\).*float64 cannot resolve.*got 0\.0"),
        ({"tol": 1.0}, r"got 1\.0"),
        ({"tol": float("nan")}, r"got nan"),
        ({"k": 3, "max_matvecs": 2}, r"max_matvecs must be None or an integer of at least k = 3, got 2"),
        ({"max_matvecs": 2.5}, r"integer of at least k = 1, got 2.5"),
        ({"max_matvecs": float("nan")}, r"integer of at least k = 1, got nan"),
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


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("kind", ["dense", "SciPy", "ours"])
def test_matrices_that_are_not_symmetric_are_refused(kind: str, k: int) -> None:
    """Without a product more than the search makes anyway."""
    skew = rotated(SPECTRA["outliers"])
    skew[0, 1:] += 10.0
    A = {"dense": skew, "SciPy": aslinearoperator(skew.numpy()), "ours": DenseOperator(skew)}[kind]
    with pytest.raises(SettingError, match=r"not symmetric: u'Av = .* and v'Au = .*; pass a symmetric one"):
        top_eigenpairs(A, k, tol=1e-6, seed=0)


def test_what_autograd_differentiates_is_not_looked_at() -> None:
    """A Hessian that is zero but for rounding has products that are no more symmetric than rounding is."""

    class Known(DenseOperator):
        known_symmetric = True

    skew = rotated(SPECTRA["outliers"])
    skew[0, 1:] += 10.0
    for A in (Known(skew), 2 * Known(skew).shifted(1.0)):
        assert A.known_symmetric and top_eigenpairs(A, max_matvecs=20, seed=0).matvecs <= 20
    assert not (Known(skew) + DenseOperator(skew)).known_symmetric


# --------------------------------------------------------------------------- both ends


@pytest.mark.parametrize("k", [2, 3, 5])
def test_both_ends(k: int) -> None:
    A = rotated(torch.linspace(-2, 3, 60, dtype=F64) ** 3)
    values = torch.linalg.eigvalsh(A).flip(0)
    result = top_eigenpairs(A, k, which="BE", tol=1e-9, seed=0)
    upper, lower = (k + 1) // 2, k // 2
    torch.testing.assert_close(result.values, torch.cat([values[:upper], values[-lower:]]))
    explicit = (A @ result.vectors - result.vectors * result.values).norm(dim=0)
    assert float(explicit.max()) <= 1e-8 * 27
    assert bool((result.low[:upper] <= values[:upper]).all()) and bool((result.high[upper:] >= values[-lower:]).all())
    assert float(result.high[0]) >= 27 >= float(result.low[0])
    assert float(result.low[-1]) <= -8 <= float(result.high[-1])
    assert result.bound == "two-sided"


# --------------------------------------------------------------------------- restarts


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize(("k", "guards"), [(2, 0), (3, 2)])
def test_restarted_within_its_memory(
    k: int, guards: int, which: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals, restarts = [], []
    absorb, restart = LanczosBasis.absorb, LanczosBasis.restart

    def absorbing(basis: LanczosBasis, product: Tensor) -> None:
        absorb(basis, product)
        totals.append(sum(map(len, basis._chunks)))

    def restarting(basis: LanczosBasis, *kept: object) -> None:
        restart(basis, *kept)
        restarts.append(basis.total)

    monkeypatch.setattr(lanczos, "_CHUNK_BYTES", 1)  # as for vectors so long that a chunk holds a block
    monkeypatch.setattr(LanczosBasis, "absorb", absorbing)
    monkeypatch.setattr(LanczosBasis, "restart", restarting)
    values = torch.cat([SPECTRA["crowded"], -SPECTRA["hidden"]]).to(dtype)
    room = 40 if guards else 13
    memory = room * len(values) * values.element_size()
    tol = 1e-3 if dtype == torch.float32 else 1e-6
    options = {"tol": tol, "guards": guards, "memory": memory, "max_matvecs": 5000}
    result = top_eigenpairs(Diagonal(values), k, which=which, seed=0, **options)
    assert restarts and max(totals) <= room
    assert result.converged
    torch.testing.assert_close(result.values, extremes(torch.diag(values), k, which), rtol=0, atol=1e-4)
    explicit = (values[:, None] * result.vectors - result.vectors * result.values).double().norm(dim=0)
    torch.testing.assert_close(result.residuals, explicit, rtol=1e-2, atol=1e-5 if dtype == torch.float32 else 1e-12)
    overlaps = (result.vectors.T @ result.vectors).double()
    torch.testing.assert_close(
        overlaps, torch.eye(k, dtype=F64), rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12
    )


def test_more_memory_takes_fewer_products() -> None:
    spent = []
    for vectors in (8, 16, 200):
        memory = vectors * 300 * 8
        result = top_eigenpairs(Diagonal(SPECTRA["crowded"]), tol=1e-4, memory=memory, seed=0)
        assert result.converged
        spent.append(result.matvecs)
    assert spent == sorted(spent, reverse=True) and spent[0] < 10 * spent[-1]


# --------------------------------------------------------------------------- guards


def test_guards_save_steps_on_a_cluster() -> None:
    """Ten eigenvalues close together, as many classes make; steps are passes over the data."""
    values = torch.cat([torch.linspace(0, 1, 500, dtype=F64), 10 + 0.01 * torch.arange(10, dtype=F64)])
    steps = {}
    for guards in (0, 7):
        result = top_eigenpairs(Diagonal(values), 3, tol=1e-4, guards=guards, seed=0)
        torch.testing.assert_close(result.values, values.sort(descending=True).values[:3], rtol=1e-7, atol=0)
        assert result.guards.shape == (510, guards)
        steps[guards] = result.matvecs // (3 + guards)
        everyone = torch.cat([result.vectors, result.guards], dim=1)
        torch.testing.assert_close(everyone.T @ everyone, torch.eye(3 + guards, dtype=F64), rtol=0, atol=1e-9)
    assert steps[7] <= steps[0] / 2


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("block", [1, 2, 4, 7])
def test_narrow_and_wide_blocks_find_the_same_pairs(block: int, which: str) -> None:
    values = torch.cat(
        [torch.linspace(-1, 1, 300, dtype=F64), torch.logspace(0.5, 2, 9, dtype=F64), -torch.arange(2.0, 5)]
    )
    A = rotated(values)
    result = top_eigenpairs(A, 6, which=which, tol=1e-6, block=block, seed=0)
    assert result.converged and result.vectors.shape == (312, 6)
    torch.testing.assert_close(result.values, extremes(A, 6, which), rtol=1e-9, atol=1e-9)
    explicit = (A @ result.vectors - result.vectors * result.values).norm(dim=0)
    torch.testing.assert_close(result.residuals, explicit, rtol=1e-2, atol=1e-11)


def test_one_by_one_takes_half_the_products() -> None:
    values = torch.cat([torch.linspace(0, 1, 2000, dtype=F64), torch.linspace(2, 40, 10, dtype=F64)])
    spent = {b: top_eigenpairs(Diagonal(values), 10, tol=1e-3, block=b, seed=0).matvecs for b in (1, 10)}
    assert spent[1] <= 0.7 * spent[10]


@pytest.mark.parametrize("max_matvecs", [10, 11, 12, 13, 25])
@pytest.mark.parametrize("block", [1, 3, 4, 10])
def test_whole_blocks_fit_the_products_allowed(block: int, max_matvecs: int) -> None:
    A = Diagonal(SPECTRA["bulk"])
    result = top_eigenpairs(A, 10, tol=1e-9, block=block, max_matvecs=max_matvecs, seed=0)
    assert result.values.shape == (10,) and 10 <= result.matvecs == A.products <= max_matvecs


def test_guards_are_no_reason_to_overspend() -> None:
    A = Diagonal(SPECTRA["outliers"])
    result = top_eigenpairs(A, 2, guards=10, max_matvecs=5, seed=0)
    assert result.matvecs == A.products == 5 and result.guards.shape == (300, 3)


def crossing(t: float) -> tuple[Tensor, Tensor]:
    """Two eigenvalues that change places at t = 0.5, above a bulk: the values by coordinate, and the largest."""
    values = torch.cat([torch.linspace(0, 4, 300, dtype=F64), torch.tensor([8.0 + 4 * t, 12.0 - 4 * t]).double()])
    return values, values.max()


@pytest.mark.parametrize("guards", [0, 1, 2])
def test_crossings_are_seen_through_guards(guards: int) -> None:
    """Followed over fifty warm starts at a loose tolerance; without guards the value may be low for some of them."""
    low = spent = 0
    for seed in range(10):
        start = None
        for step in range(51):
            values, exact = crossing(step / 50)
            result = top_eigenpairs(Diagonal(values), tol=1e-2, start=start, guards=guards, seed=1000 * seed + step)
            low += float(exact - result.values[0]) > 1e-2 * float(exact)
            spent += result.matvecs
            start = torch.cat([result.vectors, result.guards], dim=1)
    if guards:
        assert low == 0
        assert spent <= 10 * 51 * 2.6 * (1 + guards)
