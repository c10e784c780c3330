"""The sketch: an orthonormal basis of random products, whatever the operator and however it grows."""

import math

import pytest
import torch
from torch import Tensor

from losscope.landscape.operators import Observed, as_operator
from losscope.landscape.sketch import Sketch
from spectra import Diagonal, rotated

F64 = torch.float64
INDEFINITE = torch.cat([torch.linspace(-1, 1.5, 37), torch.tensor([5.0, -7.0, 20.0])]).double()


def sketch_of(A: object, seed: int = 0) -> Sketch:
    return Sketch(Observed(as_operator(A)), torch.Generator().manual_seed(seed))


def omega(sketch: Sketch) -> Tensor:
    return torch.cat(sketch._omega, dim=1)


def basis(sketch: Sketch) -> Tensor:
    return torch.cat(sketch._basis, dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("values", [INDEFINITE, torch.ones(40), torch.zeros(40), 1e-12 * INDEFINITE, 1e12 * INDEFINITE])
def test_a_sketch_is_what_it_says(values: Tensor, dtype: torch.dtype) -> None:
    A = rotated(values.double()).to(dtype)
    sketch = sketch_of(A)
    for count in (2, 1, 5, 3):
        sketch.grow(count)
        sketch.compress()
    eps, size = torch.finfo(dtype).eps, float(values.abs().max())
    X, Q, A = omega(sketch).double(), basis(sketch).double(), A.double()
    assert sketch.size == 11 and sketch.operator.matvecs == 22
    torch.testing.assert_close(Q.T @ Q, torch.eye(11, dtype=F64), rtol=0, atol=50 * eps)
    torch.testing.assert_close(Q @ sketch.R, A @ X, rtol=0, atol=200 * eps * size)
    torch.testing.assert_close(sketch.W, Q.T @ X, rtol=0, atol=200 * eps)
    torch.testing.assert_close(sketch.M, X.T @ X, rtol=0, atol=1000 * eps)
    torch.testing.assert_close(sketch.H, Q.T @ A @ Q, rtol=0, atol=200 * eps * size)
    assert torch.equal(sketch.R, sketch.R.triu())


def test_a_basis_of_dependent_products_is_orthonormal_still() -> None:
    values = torch.cat([torch.logspace(0, 12, 5), torch.zeros(495)]).double()
    sketch = sketch_of(Diagonal(values))
    for _ in range(4):
        sketch.grow(5)
    Q = basis(sketch)
    torch.testing.assert_close(Q.T @ Q, torch.eye(20, dtype=F64), rtol=0, atol=1e-13)
    torch.testing.assert_close(Q @ sketch.R, values[:, None] * omega(sketch), rtol=0, atol=1e-13 * 1e12)


def test_free_samples_are_those_of_vectors_of_equal_length() -> None:
    A = rotated(INDEFINITE)
    sketch = sketch_of(A)
    sketch.grow(6)
    X = omega(sketch)
    X = X * math.sqrt(40) / X.norm(dim=0)
    torch.testing.assert_close(sketch.samples, (X * (A @ X)).sum(dim=0))
    assert sketch.frobenius == pytest.approx(float((A @ omega(sketch)).norm() / math.sqrt(6)), rel=1e-12)


def test_what_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("losscope.landscape.sketch._MEMORY", 100 * 8 * 2 * 7)
    sketch = sketch_of(Diagonal(torch.ones(100, dtype=F64)))
    assert sketch.room == 7
    sketch.grow(3)
    assert sketch.room == 4
    monkeypatch.undo()
    assert sketch.room == 97  # no more than there are dimensions
