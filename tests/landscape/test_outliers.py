"""Outliers: counts on matrices with known spikes and bulks, and what is said where there are none."""

import dataclasses
import functools
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digits_nets import digits, train
from landscape_cases import mlp
from losscope.landscape import (
    Eigenpairs,
    Hessian,
    Objective,
    Outliers,
    SettingError,
    SpectralDensity,
    outliers,
    shuffled_labels,
    spectral_density,
    top_eigenpairs,
)
from losscope.landscape.outliers import OutlierSide, SideMethod
from losscope.landscape.quadrature import Quadrature
from spectra import Diagonal

F64 = torch.float64
N = 1000


def symmetric(strengths: list[float], seed: int, n: int = N) -> Tensor:
    """A Wigner matrix of scale 1, whose spikes are detected above strength 1."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(n, n, generator=generator, dtype=F64)
    U = torch.linalg.qr(torch.randn(n, len(strengths), generator=generator, dtype=F64))[0]
    return (W + W.T) / math.sqrt(2 * n) + (U * torch.tensor(strengths, dtype=F64)) @ U.T


def covariance(aspect: float, strengths: list[float], seed: int) -> Tensor:
    """A sample covariance, whose spikes are in units of the detection threshold 1 + sqrt(aspect)."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(int(N / aspect), N, generator=generator, dtype=F64)
    X[:, : len(strengths)] *= ((1 + math.sqrt(aspect)) * torch.tensor(strengths, dtype=F64)).sqrt()
    return X.T @ X / len(X)


def found_in(A: object, seed: int = 0, **options: object) -> Outliers:
    """With 256 products."""
    return outliers(spectral_density(A, vectors=4, steps=64, seed=100 + seed), **options)


def counts(found: Outliers) -> tuple[int, int]:
    return found.upper.count, found.lower.count


def by_method(side: OutlierSide) -> dict[str, int | None]:
    return {m.method: m.count for m in side.methods}


# --------------------------------------------------------------------------- spikes


SPIKED = {
    "one": lambda seed: symmetric([1.5], seed),
    "three": lambda seed: symmetric([1.5, 2.0, 4.0], seed),
    "five at one place": lambda seed: symmetric([1.5] * 5, seed),
    "ten at one place": lambda seed: symmetric([3.0] * 10, seed),
    "ten": lambda seed: symmetric(torch.linspace(1.5, 6.0, 10).tolist(), seed),
    "both sides": lambda seed: symmetric([1.5, 3.0, -1.5, -2.0, -50.0], seed),
    "small and shifted": lambda seed: 1e-6 * symmetric([1.6, 2.5, -1.7], seed) + 3e-5 * torch.eye(N, dtype=F64),
    "covariance": lambda seed: covariance(0.5, [1.5, 2.0, 3.0], seed),
    "square covariance": lambda seed: covariance(1.0, [1.5, 4.0], seed),
    "singular covariance": lambda seed: covariance(3.0, [2.0, 2.0, 3.0], seed),
}
TRUTH = {
    "one": (1, 0), "three": (3, 0), "five at one place": (5, 0), "ten at one place": (10, 0), "ten": (10, 0),
    "both sides": (2, 3), "small and shifted": (2, 1), "covariance": (3, 0), "square covariance": (2, 0),
    "singular covariance": (3, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", SPIKED)
def test_spikes_above_the_threshold_are_counted(name: str) -> None:
    """1.5 times the threshold and more; of 100 seeds of each kind 99 or more were exact."""
    for seed in range(3):
        A = SPIKED[name](seed)
        found = found_in(A, seed)
        assert counts(found) == TRUTH[name]
        values = torch.linalg.eigvalsh(A) if seed == 0 else None
        if values is not None:
            above, below = TRUTH[name]
            torch.testing.assert_close(found.upper.values, values.flip(0)[:above], rtol=1e-6, atol=0)
            torch.testing.assert_close(found.lower.values, values[:below], rtol=1e-6, atol=0)
            torch.testing.assert_close(found.values, torch.cat([values.flip(0)[:above], values[:below].flip(0)]))
            assert float(values[-above - 1]) < found.upper.high < float(values[-above])


@pytest.mark.parametrize("strengths", [[], [0.7, 0.5, -0.7]])
@pytest.mark.parametrize("kind", ["symmetric", "covariance"])
def test_below_the_threshold_nothing_is_separated(strengths: list[float], kind: str) -> None:
    for seed in range(4):
        strengths = strengths if kind == "symmetric" else [abs(s) for s in strengths]
        A = symmetric(strengths, seed) if kind == "symmetric" else covariance(0.5, strengths, seed)
        found = found_in(A, seed)
        assert counts(found) == (0, 0)
        assert found.upper.status == found.lower.status == "not separated"
        assert found.upper.agreed and "not separated: random matrix 0, gap 0" in repr(found)


@pytest.mark.parametrize("aspect", [3.0, 10.0])
def test_zeros_are_set_aside(aspect: float) -> None:
    """A covariance of fewer samples than dimensions; with 100 samples, all of its eigenvalues are found exactly."""
    for seed in range(3):
        found = found_in(covariance(aspect, [], seed), seed)
        assert counts(found) == (0, 0)
        law = found.upper.methods[0]
        assert law.edge == pytest.approx((1 + math.sqrt(aspect)) ** 2, rel=0.05)
        assert f"one eigenvalue has multiplicity {1000 - int(1000 / aspect)}" in law.reason or aspect == 3.0


def test_a_semicircle_beside_one_eigenvalue_of_high_multiplicity() -> None:
    A = -3 * torch.eye(N, dtype=F64)
    A[:600, :600] = symmetric([1.6, 3.0], 0, 600)
    found = found_in(A)
    assert counts(found) == (2, 0) and "semicircle" in found.upper.methods[0].reason
    assert found.lower.edge == pytest.approx(-2, abs=0.1)


def test_copies_of_one_eigenvalue_are_not_taken_for_few() -> None:
    """Of an eigenvalue of multiplicity 60, 4 starts see 4 copies, and what these weigh tells that there are more."""
    values = torch.cat([torch.linspace(-1, 1, N - 60, dtype=F64), torch.full((60,), 2.5, dtype=F64)])
    found = found_in(Diagonal(values))
    assert found.upper.count == 0
    assert by_method(found.upper) == {"random matrix": None, "gap": None}
    assert all("far more than" in m.reason for m in found.upper.methods)


def test_scale_and_sign() -> None:
    """Of c A + s I the edges are those of A, scaled and shifted; of -A the sides change places."""
    A = symmetric([1.6, 3.0, -2.0], 5)
    one = found_in(A)
    for c, shift in ((1e9, 0.0), (1e-9, 1e-8), (-1.0, 0.0)):
        other = found_in(c * A + shift * torch.eye(N, dtype=F64))
        same, mirrored = (other.upper, other.lower) if c > 0 else (other.lower, other.upper)
        assert counts(other) == (counts(one) if c > 0 else counts(one)[::-1])
        assert (same.edge - shift) / c == pytest.approx(one.upper.edge, rel=1e-4)
        assert (mirrored.edge - shift) / c == pytest.approx(one.lower.edge, rel=1e-4)
        assert abs((same.high - same.low) / c) == pytest.approx(one.upper.high - one.upper.low, rel=1e-3)


@pytest.mark.parametrize("options", [{"memory": 0}, {"deflate": 0}, {"vectors": 1, "steps": 100}])
def test_other_ways_to_the_density(options: dict) -> None:
    """Copies of an eigenvalue, as three-term recurrences make them, are counted once."""
    A = symmetric([1.6, 3.0, 20.0], 7)
    density = spectral_density(A, **{"vectors": 4, "steps": 64, "seed": 1} | options)
    assert counts(outliers(density)) == (3, 0)


def test_eigenpairs_refine_what_the_density_saw() -> None:
    """After 32 steps of two starts, 64 products, Ritz values still have residuals; those of eigenpairs have less."""
    A = symmetric([1.6, 1.8, 2.0], 3)
    density = spectral_density(A, vectors=2, steps=32, seed=0)
    pairs = top_eigenpairs(A, 4, tol=1e-6, seed=1)
    alone, both = outliers(density), outliers(density, pairs)
    assert alone.upper.count == both.upper.count == 3
    torch.testing.assert_close(both.upper.values, pairs.values[:3])
    assert float(both.upper.residuals.max()) <= float(pairs.residuals.max()) < float(alone.upper.residuals.max())


# --------------------------------------------------------------------------- other bulks


def test_bulks_without_an_edge_are_not_counted() -> None:
    """Power laws, and eigenvalues drawn from laws with tails: no line can be drawn, and it says why."""
    i = torch.arange(1, N + 1, dtype=F64)
    generator = torch.Generator().manual_seed(0)
    drawn = {
        "normal": torch.randn(N, generator=generator, dtype=F64),
        "exponential": -torch.rand(N, generator=generator, dtype=F64).log(),
    }
    for values in (i**-0.5, i**-1, i**-2, *drawn.values()):
        found = found_in(Diagonal(values))
        assert counts(found) == (0, 0)
        law = found.upper.methods[0]
        assert law.count is None and law.method == "random matrix" and law.reason


def test_a_flat_bulk_with_outliers() -> None:
    known = torch.tensor([1.3, 1.5, 2.0, 4.0, -1.4], dtype=F64)
    found = found_in(Diagonal(torch.cat([torch.linspace(-1, 1, N - 5, dtype=F64), known])))
    assert counts(found) == (4, 1)
    assert found.upper.edge == pytest.approx(1.0, abs=0.03)
    assert counts(found_in(Diagonal(torch.linspace(-1, 1, N, dtype=F64)))) == (0, 0)


def test_two_bulks_are_no_outliers() -> None:
    values = torch.cat([torch.linspace(0, 0.1, 800), torch.linspace(1, 1.1, 200)]).double()
    assert counts(found_in(Diagonal(values))) == (0, 0)


def test_a_matrix_of_low_rank() -> None:
    values = torch.zeros(N, dtype=F64)
    values[:4] = torch.tensor([1.0, 2.0, 3.0, -1.0])
    found = found_in(Diagonal(values))
    assert counts(found) == (3, 1)
    assert found.upper.edge == pytest.approx(0.0, abs=1e-6)
    assert "one eigenvalue of high multiplicity" in found.upper.methods[0].reason


@pytest.mark.parametrize("n", [1, 2, 3, 8, 40])
def test_small_matrices(n: int) -> None:
    for values in (torch.zeros(n), torch.ones(n), torch.arange(n), torch.arange(n) ** 2 - 3.0):
        found = found_in(Diagonal(values.double()))
        assert counts(found) == (0, 0) and found.size == n
        assert "not separated" in repr(found)


def test_known_spectra() -> None:
    """All eigenvalues of a matrix, not its products."""
    values = torch.linalg.eigvalsh(symmetric([1.6, 2.5, -3.0], 2))
    assert counts(outliers(SpectralDensity.of_eigenvalues(values))) == (2, 1)
    assert counts(outliers(SpectralDensity.of_eigenvalues(torch.linalg.eigvalsh(symmetric([], 2))))) == (0, 0)


# --------------------------------------------------------------------------- methods


def test_a_clear_gap_is_seen_by_both() -> None:
    found = found_in(symmetric([8.0, 9.0, 9.5, 10.0], 1))
    assert by_method(found.upper) == {"random matrix": 4, "gap": 4}
    assert found.upper.status == "separated" and found.upper.agreed
    gap = found.upper.methods[1]
    assert (gap.low, gap.high) == (pytest.approx(2.0, abs=0.05), pytest.approx(float(found.upper.values[-1])))
    assert "the largest ratio is" in gap.reason and "after 4" in gap.reason


def test_disagreement_is_shown() -> None:
    found = found_in(symmetric([1.5, 30.0], 1), null=20.0)
    assert by_method(found.upper) == {"random matrix": 2, "null": 1, "gap": 1} or by_method(found.upper)["null"] == 1
    assert found.upper.status == "disputed" and "disputed: random matrix 2, null 1" in repr(found)
    assert found.upper.method == "random matrix" and found.upper.count == 2


def test_the_null_decides_where_the_bulk_has_no_edge() -> None:
    A = Diagonal(torch.arange(1, N + 1, dtype=F64) ** -1)
    found = found_in(A, null=[0.15, 0.19])
    assert found.upper.count == 5 and found.upper.method == "null"  # 1, 1/2, 1/3, 1/4, 1/5
    assert (found.upper.low, found.upper.high) == (0.15, 0.19)
    assert "null" not in by_method(found.lower)
    pairs = top_eigenpairs(Diagonal(torch.linspace(-0.2, 0.19, 50, dtype=F64)), 2, which="BE", seed=0)
    both = found_in(A, null=pairs)
    assert (both.upper.count, both.lower.count) == (5, 0) and by_method(both.lower)["null"] == 0
    assert "all 64 eigenvalues" in next(m.reason for m in found_in(A, null=-1.0).upper.methods if m.method == "null")


def test_pairs_alone() -> None:
    """Without a density, gap and null tell what they can; and no more than is known of each side."""
    A = symmetric([9.0, 9.5, 10.0], 1)
    pairs = top_eigenpairs(A, 12, tol=1e-3, max_matvecs=300, seed=0)
    found = outliers(None, pairs, null=5.0)
    assert by_method(found.upper) == {"random matrix": None, "null": 3, "gap": 3}
    assert found.upper.count == 3 and found.matvecs == pairs.matvecs
    assert by_method(found.lower) == {"random matrix": None, "gap": None} and found.lower.count == 0
    lowest = top_eigenpairs(-A, 12, which="SA", tol=1e-3, max_matvecs=300, seed=0)
    assert outliers(None, [lowest]).lower.count == 3


def test_a_ritz_value_with_a_large_residual_is_no_eigenvalue() -> None:
    """Some eigenvalue lies within its residual, and that reaches into the bulk."""
    density = spectral_density(symmetric([4.0], 2), vectors=4, steps=64, seed=0)
    sure = outliers(density)
    assert counts(sure) == (1, 0)
    at = int(density.deflated.argmax())
    vague = density.errors.clone()
    vague[at] = 3.0
    unsure = outliers(dataclasses.replace(density, errors=vague))
    assert unsure.upper.count == 0 and unsure.upper.undecided == (1 if math.isfinite(unsure.upper.high) else 0)


# --------------------------------------------------------------------------- networks


@functools.cache
def trained() -> tuple[Objective, Hessian]:
    x, y = digits(600)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = mlp(64, 24, 10).double()
    train(model, (x, y), F.cross_entropy, 40)
    objective = Objective(model, (x, y), criterion=nn.CrossEntropyLoss())
    return objective, Hessian(objective)


def test_the_hessian_of_a_network() -> None:
    """Its bulk has no edge, and it says so; the null is that of the labels at the same weights."""
    objective, H = trained()
    density = spectral_density(H, vectors=4, steps=48, seed=0)
    null = top_eigenpairs(Hessian(shuffled_labels(objective, 0)), 2, which="BE", seed=0)
    found = outliers(density, top_eigenpairs(H, 12, max_matvecs=120, seed=0), null=null)
    says = by_method(found.upper)
    assert says["random matrix"] is None and says["null"] is not None and says["gap"] is not None
    assert found.upper.method == "null" and "random matrix cannot tell" in repr(found)
    assert found.upper.edge == pytest.approx(float(null.values[0]))


# --------------------------------------------------------------------------- the result, and bad input


def test_results_pickle() -> None:
    found = found_in(symmetric([1.6, -3.0], 1))
    assert repr(pickle.loads(pickle.dumps(found))) == repr(found)
    assert found.matvecs == 256 and found.count == 2


def test_what_means_nothing_is_refused() -> None:
    density = SpectralDensity.of_eigenvalues(torch.arange(20.0))
    pairs = top_eigenpairs(torch.diag(torch.arange(10.0)), 2, seed=0)
    with pytest.raises(SettingError, match="got neither"):
        outliers(None)
    with pytest.raises(SettingError, match=r"of the same operator; got ones of sizes \[10, 20\]"):
        outliers(density, pairs)
    with pytest.raises(SettingError, match="density must be a SpectralDensity"):
        outliers(torch.eye(3))  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="pairs must be Eigenpairs"):
        outliers(density, [torch.eye(3)])  # type: ignore[list-item]
    with pytest.raises(SettingError, match="null must be eigenpairs or finite numbers, got nan"):
        outliers(density, null=math.nan)
    with pytest.raises(SettingError, match="confidence must be between 0 and 1"):
        outliers(density, confidence=1.5)


def test_the_quadrature_of_a_single_place() -> None:
    q = Quadrature(*(torch.tensor([x], dtype=F64) for x in (2.0, 1.0, 0.0)))
    density = SpectralDensity((q,), torch.empty(0, dtype=F64), 100, 1, 0.0, 0.95, True)
    assert counts(outliers(density)) == (0, 0)
    empty = Eigenpairs(*(torch.empty(0, dtype=F64),) * 1, torch.empty(100, 0), *(torch.empty(0, dtype=F64),) * 3,
                       "none", 0.95, True, 1, "LA", 1e-2)  # fmt: skip
    assert counts(outliers(density, empty)) == (0, 0)


def test_a_method_that_decides_against_others_is_disputed() -> None:
    """The bulk shows none, and gaps or a null count some: that is not the same as that none can be told."""
    none, some = SideMethod("random matrix", 0, 1.0, 0.9, 1.1, ""), SideMethod("gap", 29, 0.5, 0.4, 0.6, "")
    empty = torch.empty(0, dtype=F64)

    def side(*methods: SideMethod) -> OutlierSide:
        return OutlierSide("above", empty, empty, 0, 1.0, 0.9, 1.1, "random matrix", methods)

    assert side(none, some).status == "disputed" and not side(none, some).agreed
    assert "none above 1 [0.9, 1.1] (disputed: random matrix 0, gap 29)" in repr(side(none, some))
    silent = dataclasses.replace(some, count=None)
    assert side(none, silent).status == side(silent).status == side(none, none).status == "not separated"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"null": "x"}, "null must be eigenpairs or finite numbers, got 'x'"),
        ({"null": None}, "null must be eigenpairs or finite numbers, got None"),
        ({"null": [1.0, "x"]}, "got 'x'"),
        ({"confidence": "a"}, "confidence must be between 0 and 1, got 'a'"),
        ({"pairs": None}, "pairs must be Eigenpairs .* got NoneType"),
        ({"pairs": "x"}, "pairs must be Eigenpairs .* got str"),
    ],
)
def test_words_in_the_place_of_numbers(options: dict, message: str) -> None:
    density = SpectralDensity.of_eigenvalues(torch.linspace(0, 1, 50))
    with pytest.raises(SettingError, match=message):
        outliers(density, **options)
    assert counts(outliers(density, null=torch.tensor(2.0))) == (0, 0)
