"""Operators: what is accepted as one, what is refused, and the bridge to SciPy."""

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor, nn

from landscape_cases import build, reference
from losscope.landscape import (
    Hessian,
    NonFiniteError,
    Objective,
    SettingError,
    SymmetricOperator,
    diagonal,
    top_eigenpairs,
    trace,
)
from spectra import Diagonal, rotated

F64 = torch.float64
MATRIX = rotated(torch.linspace(-1, 3, 40, dtype=F64))


class TorchStyle:
    """An operator of another torch library: ``shape``, ``dtype``, ``device`` and ``@``."""

    shape, dtype, device = (40, 40), F64, torch.device("cpu")

    def __matmul__(self, V: Tensor) -> Tensor:
        return MATRIX @ V


class Ours(SymmetricOperator):
    kernel = "ours"

    def __init__(self) -> None:
        self.space = Diagonal(torch.ones(40, dtype=F64)).space

    def product(self, V: Tensor) -> Tensor:
        return MATRIX @ V


ACCEPTED = {
    "tensor": lambda: MATRIX,
    "array": lambda: MATRIX.numpy(),
    "scipy operator": lambda: scipy.sparse.linalg.aslinearoperator(MATRIX.numpy()),
    "scipy sparse": lambda: scipy.sparse.csr_array(MATRIX.numpy()),
    "torch operator": TorchStyle,
    "subclass": Ours,
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_operators_of_every_kind_give_the_same(kind: str) -> None:
    A = ACCEPTED[kind]()
    result = top_eigenpairs(A, 2, tol=1e-9, seed=0)
    torch.testing.assert_close(result.values, torch.linalg.eigvalsh(MATRIX).flip(0)[:2])
    assert trace(A, rtol=1e-9, seed=0).value == pytest.approx(float(MATRIX.trace()), rel=1e-9)
    assert result.kernel == ("dense" if kind in ("tensor", "array") else "ours" if kind == "subclass" else "foreign")


def test_single_precision_arrays_stay_single() -> None:
    result = top_eigenpairs(MATRIX.float().numpy(), tol=1e-4, seed=0)
    assert result.vectors.dtype == torch.float32
    sparse = scipy.sparse.csr_array(MATRIX.float().numpy())
    assert top_eigenpairs(sparse, tol=1e-4, seed=0).vectors.dtype == torch.float32


def test_a_matrix_that_is_part_of_a_graph_is_taken_as_it_is() -> None:
    A = torch.diag(torch.arange(1.0, 4.0)).requires_grad_()
    assert diagonal(A).value.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("solver", [top_eigenpairs, trace])
@pytest.mark.parametrize(
    ("A", "message"),
    [
        (torch.ones(3, 4), r"square matrix, got shape \(3, 4\)"),
        (torch.ones(3), r"square matrix, got shape \(3,\)"),
        (torch.ones(0, 0), r"square matrix with entries, got shape \(0, 0\)"),
        (torch.ones(3, 3, dtype=torch.int64), r"real floating-point matrix, got torch\.int64"),
        (torch.ones(3, 3, dtype=torch.complex64), r"real floating-point matrix, got torch\.complex64"),
        (np.ones((2, 3)), r"square matrix, got shape \(2, 3\)"),
        (scipy.sparse.csr_array(np.ones((2, 3))), r"square operator, got shape \(2, 3\)"),
        ([[1.0]], r"symmetric operator or a dense matrix, got list"),
        (nn.Linear(2, 2), r"got Linear"),
    ],
    ids=["wide", "vector", "empty", "integer", "complex", "wide array", "wide sparse", "list", "module"],
)
def test_what_is_no_operator_is_refused(solver: object, A: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        solver(A)


@pytest.mark.parametrize(
    ("V", "message"),
    [
        (torch.ones(5, dtype=F64), r"expected shape \(40,\) or \(40, k\), got \(5,\)"),
        (torch.ones(2, 40, dtype=F64), r"got \(2, 40\)"),
        (torch.ones(40, 2, 1, dtype=F64), r"got \(40, 2, 1\)"),
        (torch.ones((), dtype=F64), r"got \(\)"),
        (torch.ones(40), r"expected torch\.float64 on cpu, got torch\.float32 on cpu"),
        (torch.ones(40, dtype=F64, device="meta"), r"got torch\.float64 on meta"),
        (np.ones(40), r"expected a tensor of shape \(40,\) or \(40, k\), got ndarray"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(V: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Ours() @ V


def test_vectors_and_blocks_keep_their_shape() -> None:
    V = torch.randn(40, 3, dtype=F64)
    torch.testing.assert_close(Ours() @ V, MATRIX @ V)
    torch.testing.assert_close(Ours() @ V[:, 0], MATRIX @ V[:, 0])
    assert (Ours() @ V[:, :0]).shape == (40, 0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_to_scipy_is_the_same_matrix(dtype: torch.dtype) -> None:
    H = reference("uneven_batches")[2].numpy()
    bridge = Hessian(build("uneven_batches", dtype).objective()).to_scipy()
    tolerance = {torch.float32: 1e-5, F64: 1e-12}[dtype]
    assert bridge.shape == H.shape and bridge.dtype == np.dtype(str(dtype).split(".")[1])
    np.testing.assert_allclose(bridge @ np.eye(len(H)), H, atol=tolerance * np.abs(H).max())
    x = np.random.default_rng(0).normal(size=len(H))
    np.testing.assert_allclose(bridge.matvec(x), H @ x, atol=10 * tolerance)
    np.testing.assert_allclose(bridge.rmatvec(x), H @ x, atol=10 * tolerance)
    largest = scipy.sparse.linalg.eigsh(bridge, k=2, which="LA", return_eigenvectors=False, v0=x.astype(bridge.dtype))
    np.testing.assert_allclose(np.sort(largest), np.linalg.eigvalsh(H)[-2:], rtol=1e-4)


def test_a_kernel_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SettingError, match=r"kernel must be one of .*auto.*retained.*got .magic."):
        Hessian(build("mlp_cross_entropy").objective(), kernel="magic")


@pytest.mark.parametrize("solver", [top_eigenpairs, trace])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_products_that_are_not_finite_are_refused(solver: object, bad: float) -> None:
    A = MATRIX.clone()
    A[3, 3] = bad
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        solver(A, seed=0)


@pytest.mark.parametrize("solver", [top_eigenpairs, trace])
def test_a_loss_that_is_nan_is_shown_as_such_and_not_measured(solver: object) -> None:
    model = nn.Linear(40, 1)
    objective = Objective(model, (torch.full((2, 40), float("nan")), torch.ones(2, 1)), criterion=nn.MSELoss())
    assert np.isnan(objective.value())
    assert np.isnan(objective.value_and_gradient()[0])
    with pytest.raises(NonFiniteError):
        solver(Hessian(objective), seed=0)
