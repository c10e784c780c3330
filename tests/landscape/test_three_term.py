"""Lanczos by its three-term recurrence: the same quadrature, in the memory of three vectors."""

import math

import pytest
import torch
from torch import Tensor

from losscope.landscape import NonFiniteError, SettingError, quadrature, spectral_density, top_eigenpairs
from losscope.landscape.operators import Observed, as_operator
from losscope.landscape.quadrature import LanczosProcesses, Quadrature
from losscope.landscape.three_term import ThreeTerm
from losscope.landscape.wasserstein import distance
from spectra import SPECTRA, Diagonal, rotated

F64 = torch.float64


def quadratures(A: object, steps: int, *, kept: bool, starts: int = 2, seed: int = 0) -> list[Quadrature]:
    processes = LanczosProcesses(Observed(as_operator(A)), starts, torch.Generator().manual_seed(seed), kept=kept)
    for _ in range(steps):
        if not all(processes.ended):
            processes.step()
    return processes.quadratures()


def starts_of(A: Diagonal, starts: int = 2, seed: int = 0) -> list[Tensor]:
    """The start vectors that `quadratures` has."""
    processes = LanczosProcesses(Observed(A), starts, torch.Generator().manual_seed(seed), kept=False)
    return [basis.newest[:, 0].clone() for basis in processes._bases]


@pytest.mark.parametrize("name", SPECTRA)
def test_a_few_steps_are_those_of_the_full_process(name: str) -> None:
    A = rotated(SPECTRA[name])
    for steps in (1, 2, 7):
        for one, other in zip(quadratures(A, steps, kept=False), quadratures(A, steps, kept=True), strict=True):
            torch.testing.assert_close(one.nodes, other.nodes, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(one.weights, other.weights, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(one.residuals, other.residuals, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", SPECTRA)
def test_moments_stay_right_when_orthogonality_is_lost(name: str, dtype: torch.dtype) -> None:
    """Those of the start vector's own measure, of any degree, to rounding."""
    values = SPECTRA[name].to(dtype)
    A = Diagonal(values)
    eps = torch.finfo(dtype).eps
    for q, found in zip(starts_of(A), quadratures(A, 250, kept=False), strict=True):
        assert float(found.weights.sum()) == pytest.approx(1.0, abs=1e-12)
        scale = float(values.abs().max())
        for degree in (1, 2, 3, 4, 20):
            exact = float((q.double().square() * (values.double() / scale) ** degree).sum())
            mine = float((found.weights * (found.nodes / scale) ** degree).sum())
            assert mine == pytest.approx(exact, rel=200 * degree * eps, abs=200 * eps)


def test_the_copies_of_an_eigenvalue_weigh_as_much_as_it_does() -> None:
    values = SPECTRA["outliers"]
    A = Diagonal(values)
    for q, found in zip(starts_of(A), quadratures(A, 250, kept=False), strict=True):
        tridiagonal = _raw(A, q, 250)
        assert len(tridiagonal) == 250 > len(found.nodes)  # copies there were
        for i in range(1, 4):  # the outliers
            near = (found.nodes - values[-i]).abs() < 1e-6
            exact = float(q[-i] ** 2)
            assert float(found.weights[near].sum()) == pytest.approx(exact, rel=1e-9)
            assert float(found.residuals[near].min()) < 1e-9
        assert (found.nodes.diff() > 0).all()


def _raw(A: Diagonal, q: Tensor, steps: int) -> Tensor:
    """Eigenvalues of the tridiagonal matrix, copies and all."""
    process = ThreeTerm(A)
    process.begin(q[:, None])
    for _ in range(steps):
        process.absorb(A.product(process.newest))
    return torch.linalg.eigvalsh(torch.from_numpy(process.T))


def test_nodes_converge_to_the_spectrum() -> None:
    """Whatever is lost, a long run sees no eigenvalue that there is not, and finds those that can be told apart."""
    values = torch.linspace(-1, 1, 40, dtype=F64)
    for found in quadratures(rotated(values), 300, kept=False):
        weighty = found.nodes[found.weights > 1e-12]
        assert float((weighty[:, None] - values).abs().min(dim=1).values.max()) < 1e-9
        assert float((values[:, None] - weighty).abs().min(dim=1).values.max()) < 1e-9


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_small_spaces_end(n: int, kept: bool) -> None:
    values = torch.arange(1, n + 1, dtype=F64)
    for found in quadratures(rotated(values), n + 2, kept=kept):
        torch.testing.assert_close(found.nodes, values)
        assert float(found.residuals.max()) < 1e-12


@pytest.mark.parametrize("matrix", [torch.zeros(30, 30), torch.eye(30), 2 * torch.eye(30), torch.diag(torch.ones(30))])
def test_an_invariant_space_ends_it(matrix: Tensor) -> None:
    for found in quadratures(matrix, 5, kept=False):
        assert len(found.nodes) == 1 and float(found.nodes[0]) == pytest.approx(float(matrix[0, 0]), rel=1e-6)
        assert float(found.weights[0]) == pytest.approx(1.0) and float(found.residuals[0]) == 0.0


def test_a_product_may_be_its_own_input() -> None:
    class Same(Diagonal):
        def product(self, V: Tensor) -> Tensor:
            return V

    for found in quadratures(Same(torch.ones(50, dtype=F64)), 3, kept=False):
        torch.testing.assert_close(found.nodes, torch.ones(1, dtype=F64))


def test_the_rule_of_a_step_before() -> None:
    processes = LanczosProcesses(Observed(Diagonal(SPECTRA["bulk"])), 2, torch.Generator().manual_seed(0), kept=False)
    for _ in range(4):
        processes.step()
    kept = processes.quadratures()
    processes.step()
    for old, new in zip(kept, processes.quadratures(fewer=1), strict=True):
        torch.testing.assert_close(old.nodes, new.nodes)
        torch.testing.assert_close(old.residuals, new.residuals)


def test_bad_products_are_refused() -> None:
    A = torch.diag(torch.arange(1.0, 101.0, dtype=F64))
    A[0, 1] = 1000.0
    with pytest.raises(SettingError, match="not symmetric"):
        quadratures(A, 5, kept=False)
    A[0, 1] = math.nan
    with pytest.raises(NonFiniteError):
        quadratures(A, 5, kept=False)


@pytest.mark.parametrize(("memory", "widths"), [(1 << 30, {5}), (2 * 20 * 300 * 8, {1, 2}), (20 * 300 * 8 - 1, {1})])
def test_memory_decides_how_many_starts_run_at_once_and_whether_vectors_are_kept(
    memory: int, widths: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[bool] = []
    made = LanczosProcesses.__init__

    def watched(self: LanczosProcesses, *args: object, kept: bool) -> None:
        kinds.append(kept)
        made(self, *args, kept=kept)

    monkeypatch.setattr(LanczosProcesses, "__init__", watched)

    class Watched(Diagonal):
        def product(self, V: Tensor) -> Tensor:
            seen.add(V.shape[1])
            return super().product(V)

    seen: set[int] = set()
    A = Watched(SPECTRA["outliers"])
    found = quadrature.quadratures(Observed(A), 5, 20, torch.Generator().manual_seed(0), memory)
    assert len(found) == 5 and A.products == 100 and seen == widths
    assert set(kinds) == {memory >= 20 * 300 * 8}
    roomy = quadrature.quadratures(Observed(A), 5, 20, torch.Generator().manual_seed(0))
    for one, other in zip(found, roomy, strict=True):
        for degree in range(1, 5):
            moment = float(other.weights @ other.nodes**degree)
            assert float(one.weights @ one.nodes**degree) == pytest.approx(moment, rel=1e-9)


# --------------------------------------------------------------------------- densities


@pytest.mark.parametrize("name", SPECTRA)
def test_a_density_without_kept_vectors_has_the_moments_of_the_full_one(name: str) -> None:
    """With one seed they start alike, but for the block's starts being orthogonal; with another they may not agree."""
    A = Diagonal(SPECTRA[name])
    for seed in range(10):
        full = spectral_density(A, vectors=4, steps=40, deflate=0, seed=seed)
        lean = spectral_density(A, vectors=4, steps=40, memory=0, seed=seed)
        assert lean.matvecs == (8 if name == "clustered" else 160)  # two eigenvalues take two steps
        assert lean.note.startswith("Lanczos vectors were not kept") and not full.note
        assert float(lean.weights.sum()) == pytest.approx(1.0)
        for power in range(1, 5):
            one, other = lean.moment(power), full.moment(power)
            assert other.low <= one.value <= other.high
            assert abs(one.value - other.value) <= (other.high - other.low) / 4


def test_a_density_covers_without_kept_vectors() -> None:
    """As with them: the bound of the error, and the intervals of moments, over seeds."""
    values = SPECTRA["outliers"]
    A, held, covered = Diagonal(values), [], []
    for seed in range(60):
        found = spectral_density(A, vectors=4, steps=30, memory=0, seed=seed)
        exact = torch.full_like(values, 1 / len(values))
        held.append(distance(found.nodes, found.weights, values, exact) <= found.wasserstein)
        moment = found.moment(2)
        covered.append(moment.low <= float(values.square().mean()) <= moment.high)
    assert sum(held) >= 55 and sum(covered) >= 52


def test_known_eigenpairs_are_taken_out_without_kept_vectors() -> None:
    values = SPECTRA["outliers"]
    A = rotated(values)
    pairs = top_eigenpairs(A, k=3, tol=1e-6, seed=0)
    found = spectral_density(A, vectors=2, steps=50, deflate=pairs, memory=0, seed=0)
    torch.testing.assert_close(found.deflated, values[-3:], rtol=1e-6, atol=0)
    nodes = torch.cat([start.nodes[start.weights > 1e-9] for start in found.starts])
    assert float(nodes.max()) <= 1.0 + 1e-6


def test_memory_decides() -> None:
    A = Diagonal(SPECTRA["outliers"])
    one = 300 * 8 * 21  # the basis of a start of 20 steps
    for memory, kept in ((one - 1, False), (one, True)):
        found = spectral_density(A, vectors=3, steps=20, memory=memory, seed=0)
        assert (not found.note) is kept and found.matvecs == 60
    with pytest.raises(SettingError, match="memory must be a number of bytes of 0 or more, got -1"):
        spectral_density(A, memory=-1)


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("c", [1e-30, 1e-24, 1e-20, 1e18, 1e20, 1e30])
def test_scales_whose_squares_leave_the_range_of_single_precision(c: float, memory: int | None) -> None:
    values = torch.arange(300.0)
    one, other = (
        spectral_density(torch.diag(f * values), vectors=2, steps=10, memory=memory, seed=0) for f in (1.0, c)
    )
    assert other.wasserstein == pytest.approx(c * one.wasserstein, rel=1e-2) and other.matvecs == 20
    assert distance(other.nodes / c, other.weights, one.nodes, one.weights) <= 0.05
    exact = torch.full((300,), 1 / 300, dtype=F64)
    assert distance(other.nodes, other.weights, c * values.double(), exact) <= other.wasserstein
