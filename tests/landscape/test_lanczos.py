"""The Lanczos basis itself: orthonormal to rounding, and the relation that every bound rests on."""

import numpy as np
import pytest
import torch
from torch import Tensor

from losscope.landscape import SymmetricOperator, lanczos, top_eigenpairs
from losscope.landscape.lanczos import LanczosBasis
from losscope.landscape.space import VectorSpace
from spectra import SPECTRA, Diagonal

N = 700
HARD = {
    "outliers over a bulk": torch.cat([torch.linspace(0, 1, N - 3), torch.tensor([20.0, 50.0, 100.0])]),
    "graded": torch.logspace(-14, 2, N),
    "indefinite": torch.linspace(-3, 1, N),
    "two tight clusters": torch.cat([1 + 1e-6 * torch.rand(N - 5), torch.full((5,), 1e4)]),
    "huge": 1e12 * torch.linspace(-1, 2, N),
    "tiny": 1e-12 * torch.linspace(-1, 2, N),
}


def begun(operator: SymmetricOperator, block: int) -> LanczosBasis:
    basis = LanczosBasis(operator, block, torch.Generator().manual_seed(0))
    basis.begin(operator.space.random(block, basis.generator))
    return basis


def extend(basis: LanczosBasis) -> None:
    basis.absorb(basis.operator.product(basis.newest))


def rows(basis: LanczosBasis) -> Tensor:
    """All of the basis, (total, n), through the public way for what is multiplied already."""
    multiplied = basis.combined(np.eye(basis.size))
    return torch.cat([multiplied.T, basis._newest])


def relation_error(basis: LanczosBasis, A: Tensor) -> float:
    """How far A Q is from Q T + Q_next R E_m', in float64, relative to the norm of A."""
    Q = rows(basis).double().T
    inside, after = Q[:, : basis.size], Q[:, basis.size :]
    width = basis.R.shape[1]
    rest = torch.zeros_like(inside)
    rest[:, basis.size - width :] = after @ torch.from_numpy(basis.R)
    residual = A.double()[:, None] * inside - inside @ torch.from_numpy(basis.T) - rest
    return float(torch.linalg.matrix_norm(residual, 2)) / float(A.abs().max())


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("chunked", [False, True], ids=["one chunk", "chunks"])
@pytest.mark.parametrize("block", [1, 2])
def test_a_widened_basis_spans_the_vector(
    block: int, chunked: bool, restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunked:
        monkeypatch.setattr(lanczos, "_CHUNK_BYTES", 3 * N * 8)
    basis = begun(Diagonal(HARD["outliers over a bulk"].double()), block)
    for round_ in range(3):
        for _ in range(5):
            extend(basis)
        if restarted and round_ == 1:
            values, Y = basis.eigh()
            basis.restart(values[-4:], Y[:, -4:])
            extend(basis)
        vector = basis.space.random(1, basis.generator)
        coordinates = basis.widen(vector)
        torch.testing.assert_close(torch.from_numpy(coordinates) @ rows(basis), vector[:, 0])
        extend(basis)
        Q = rows(basis)
        assert float((Q @ Q.T - torch.eye(len(Q), dtype=Q.dtype)).abs().max()) < 1e-13
        assert relation_error(basis, HARD["outliers over a bulk"]) < 1e-13
    assert basis.block == block + 3 and basis.first == block


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("chunked", [False, True], ids=["one chunk", "chunks"])
@pytest.mark.parametrize("name", HARD)
def test_two_hundred_steps_stay_orthonormal(
    name: str, chunked: bool, block: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    eps = torch.finfo(dtype).eps
    if chunked:
        monkeypatch.setattr(lanczos, "_CHUNK_BYTES", 7 * N * dtype.itemsize)
    A = HARD[name].double().to(dtype)
    basis = begun(Diagonal(A), block)
    for _ in range(200):
        extend(basis)
    assert basis.size == 200 * block and basis.total == 201 * block
    Q = rows(basis).double()
    assert float((Q @ Q.T - torch.eye(basis.total)).abs().max()) <= 20 * eps
    assert relation_error(basis, A) <= 100 * eps
    assert np.array_equal(basis.T, basis.T.T)
    if chunked:
        assert len(basis._chunks) >= 200 * block // 7
        assert all(len(chunk) % block == 0 for chunk in basis._chunks)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("rank", [4, 5, 7])
@pytest.mark.parametrize("roundings", [1.0, 20.0, 100.0, 1e4])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_low_rank_but_for_rounding(block: int, roundings: float, rank: int, dtype: torch.dtype) -> None:
    """A block that the rank does not divide has one column left of the matrix, and others of rounding alone."""
    eps = torch.finfo(dtype).eps
    bulk = 100 * roundings * eps * torch.linspace(-1, 1, 500 - rank, dtype=torch.float64)
    A = torch.cat([bulk, torch.linspace(50, 100, rank, dtype=torch.float64)]).to(dtype)
    basis = begun(Diagonal(A), block)
    for _ in range(40):
        extend(basis)
    Q = rows(basis).double()
    assert float((Q @ Q.T - torch.eye(len(Q))).abs().max()) <= 50 * eps
    assert relation_error(basis, A) <= 100 * eps
    values = basis.eigh()[0]
    np.testing.assert_allclose(values[-rank:], A[-rank:].double(), rtol=100 * eps)
    assert abs(values[:-rank]).max() <= 200 * (roundings + 1) * eps
    result = top_eigenpairs(Diagonal(A), block, tol=1e-3, seed=0)
    torch.testing.assert_close(result.values, A.flip(0)[:block].double(), rtol=100 * eps, atol=0)
    assert bool((result.low <= A.flip(0)[:block].double()).all())


@pytest.mark.parametrize("block", [1, 3])
def test_chunks_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    A = SPECTRA["outliers"]
    found = []
    for size in (lanczos._CHUNK_BYTES, 1):
        monkeypatch.setattr(lanczos, "_CHUNK_BYTES", size)
        basis = begun(Diagonal(A), block)
        for _ in range(30):
            extend(basis)
        found.append((basis.T.copy(), basis.combined(np.eye(basis.size)[:, :4])))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-11 * 100)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_ritz_values_lie_within_the_spectrum_and_settle_on_its_ends(block: int) -> None:
    A = HARD["outliers over a bulk"].double()
    basis = begun(Diagonal(A), block)
    for _ in range(60):
        extend(basis)
    values, vectors = basis.eigh()
    assert values.min() >= -1e-12 and values.max() <= 100 + 1e-11
    np.testing.assert_allclose(values[-3:], [20, 50, 100], rtol=1e-12)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(values)), atol=1e-12)
    np.testing.assert_allclose(basis.T @ vectors, vectors * values, atol=1e-10)


# --------------------------------------------------------------------------- breakdown


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("block", [1, 3])
def test_an_invariant_subspace_is_noticed_and_left(block: int, dtype: torch.dtype) -> None:
    """Three eigenvalues: a vector's Krylov space has three dimensions, and the basis goes on to all of them."""
    A = torch.tensor([1.0, 2.0, 5.0], dtype=dtype).repeat(4)
    basis = begun(Diagonal(A), block)
    broke = []
    while basis.size < 12:
        extend(basis)
        broke.append(basis.broke_down)
    assert broke.index(True) == 2
    Q = rows(basis).double()[:12]
    assert float((Q @ Q.T - torch.eye(12)).abs().max()) <= 50 * torch.finfo(dtype).eps
    values = basis.eigh()[0]
    np.testing.assert_allclose(values, np.sort(A.double().numpy()), rtol=200 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("value", [0.0, 1.0, -7.0])
def test_multiples_of_the_identity(value: float, block: int) -> None:
    A = torch.full((10,), value, dtype=torch.float64)
    basis = begun(Diagonal(A), block)
    while basis.size < 10:
        extend(basis)
        assert basis.broke_down
        Q = rows(basis)
        assert float((Q @ Q.T - torch.eye(len(Q), dtype=Q.dtype)).abs().max()) <= 1e-13
    np.testing.assert_allclose(basis.T, value * np.eye(10), atol=1e-13)
    assert basis.R.shape[0] == 0 or not basis.R.any()


def test_a_block_that_does_not_divide_the_size() -> None:
    A = torch.linspace(1, 2, 10, dtype=torch.float64)
    basis = begun(Diagonal(A), 4)
    while basis.size < 10:
        extend(basis)
    assert basis.size == 10
    np.testing.assert_allclose(basis.eigh()[0], A.numpy(), rtol=1e-13)


# --------------------------------------------------------------------------- operators with habits


class Returns(SymmetricOperator):
    """The identity, or a multiple of it, in ways that share memory."""

    def __init__(self, how: str) -> None:
        self.how, self.space = how, VectorSpace(6, torch.float64, torch.device("cpu"))
        self.buffer = torch.empty(6, 1, dtype=torch.float64)

    def product(self, V: Tensor) -> Tensor:
        if self.how == "its input":
            return V
        if self.how == "a view of its input":
            return V.view_as(V)
        if self.how == "its own buffer":  # the same one at every call
            return torch.mul(V, torch.arange(1.0, 7.0, dtype=V.dtype)[:, None], out=self.buffer)
        return (V.T.contiguous() * torch.arange(1.0, 7.0, dtype=V.dtype)).T


@pytest.mark.parametrize("how", ["its input", "a view of its input", "its own buffer", "columns"])
def test_what_an_operator_returns_may_be_its_own(how: str) -> None:
    basis = begun(Returns(how), 1)
    kept = basis._newest.clone()
    for _ in range(6):
        extend(basis)
    Q = rows(basis)[:6]
    assert torch.equal(Q[0], kept[0])
    assert float((Q @ Q.T - torch.eye(6, dtype=Q.dtype)).abs().max()) <= 1e-13
    expected = np.ones(6) if "input" in how else np.arange(1.0, 7.0)
    np.testing.assert_allclose(basis.eigh()[0], expected, rtol=1e-12)


def test_one_synchronisation_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers come to the host together: on a GPU each transfer waits for all that was launched."""
    basis = begun(Diagonal(SPECTRA["outliers"]), 1)
    extend(basis)
    moved: list[int] = []
    real = Tensor.to
    monkeypatch.setattr(Tensor, "to", lambda self, *a, **k: (moved.append("cpu" in a), real(self, *a, **k))[1])
    for _ in range(10):
        extend(basis)
    assert sum(moved) <= 10 + 2  # a third orthogonalisation, now and then


@pytest.mark.parametrize("block", [1, 3])
def test_long_vectors_are_orthonormal_and_their_projection_right(block: int) -> None:
    """Single precision adds millions of squares up to 1e-4; a Ritz value would exceed the largest eigenvalue by it."""
    n = 3_000_000
    A = Diagonal(torch.rand(n, generator=torch.Generator().manual_seed(7)))
    generator = torch.Generator().manual_seed(0)
    basis = LanczosBasis(A, block, generator)
    basis.begin(A.space.random(block, generator))
    for _ in range(3):
        basis.absorb(A.product(basis.newest))
    Q = torch.cat(basis._filled).double()
    torch.testing.assert_close(Q @ Q.T, torch.eye(len(Q), dtype=torch.float64), rtol=0, atol=2e-6)
    projected = ((Q * A.values.double()) @ Q.T)[: basis.size, : basis.size]
    torch.testing.assert_close(torch.from_numpy(basis.T.copy()), projected, rtol=0, atol=2e-6)
