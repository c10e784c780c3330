"""Sums, shifts and preconditioning of operators, against dense float64 matrices."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from composed import F64, TOLERANCE, close, probes
from landscape_cases import build, flat, labelled, reference
from losscope.landscape import (
    BlockDiagonal,
    Hessian,
    Objective,
    Preconditioned,
    SettingError,
    SymmetricOperator,
    top_eigenpairs,
    trace,
)
from losscope.landscape.operators import Combination, DenseOperator
from spectra import rotated

# --------------------------------------------------------------------------- sums, multiples, shifts


N = 7


MATRICES = [rotated(torch.linspace(low, 3, N, dtype=F64)) for low in (-1.0, 0.5, -2.0)]


LEAVES = [DenseOperator(matrix) for matrix in MATRICES]


LEAVES[1].psd = True


DIAGONAL = torch.linspace(0.5, 4, N, dtype=F64)


Pair = tuple[SymmetricOperator, Tensor]


def _preconditioned(pair: Pair) -> Pair:
    root = DIAGONAL.rsqrt()
    return Preconditioned(pair[0], DIAGONAL), root[:, None] * pair[1] * root


NUMBERS = st.sampled_from([-2.5, -1.0, 0.0, 0.5, 1.0, 3.0])


EXPRESSIONS = st.recursive(
    st.sampled_from([*zip(LEAVES, MATRICES, strict=True)]),
    lambda inner: st.one_of(
        st.builds(lambda a, b: (a[0] + b[0], a[1] + b[1]), inner, inner),
        st.builds(lambda a, b: (a[0] - b[0], a[1] - b[1]), inner, inner),
        st.builds(lambda c, a: (c * a[0], c * a[1]), NUMBERS, inner),
        st.builds(lambda c, a: (a[0] * c, c * a[1]), NUMBERS, inner),
        st.builds(lambda a: (-a[0] / 2, -a[1] / 2), inner),
        st.builds(lambda c, a: (a[0].shifted(c), a[1] + c * torch.eye(N, dtype=F64)), NUMBERS, inner),
        st.builds(_preconditioned, inner),
    ),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_expressions_of_operators_are_those_of_their_matrices(pair: Pair) -> None:
    A, matrix = pair
    scale = 100 * max(1.0, float(matrix.abs().max()))  # terms may cancel
    V = probes(N, 3)
    torch.testing.assert_close(A @ V, matrix @ V, rtol=0, atol=1e-12 * scale)
    torch.testing.assert_close(A @ V[:, 0], matrix @ V[:, 0], rtol=0, atol=1e-12 * scale)
    if A.psd:
        assert float(torch.linalg.eigvalsh(matrix)[0]) >= -1e-12 * scale
    assert not any(isinstance(part, Combination) for part in A.parts) or not isinstance(A, Combination)


@pytest.mark.parametrize(
    ("A", "psd"),
    [
        (LEAVES[1] + LEAVES[1], True),
        (2 * LEAVES[1], True),
        (LEAVES[1].shifted(1), True),
        (Preconditioned(LEAVES[1], DIAGONAL), True),
        (LEAVES[0] * 0, True),
        (LEAVES[0] + LEAVES[1], False),
        (LEAVES[1] - LEAVES[0], False),
        (-LEAVES[1], False),
        (LEAVES[1].shifted(-0.1), False),
        (Preconditioned(LEAVES[0], DIAGONAL), False),
    ],
)
def test_what_is_known_to_be_semi_definite(A: SymmetricOperator, psd: bool) -> None:
    assert A.psd is psd


def test_an_operator_that_occurs_twice_is_multiplied_once() -> None:
    class Counted(DenseOperator):
        calls = 0

        def product(self, V: Tensor) -> Tensor:
            self.calls += 1
            return super().product(V)

    A = Counted(MATRICES[0])
    V = probes(N, 2)
    close((2 * A + (A - LEAVES[1]).shifted(3)) @ V, (3 * MATRICES[0] - MATRICES[1]) @ V + 3 * V)
    assert A.calls == 1
    assert torch.equal((A - A) @ V, torch.zeros_like(V)) and A.calls == 1


def test_sums_take_what_else_is_a_matrix() -> None:
    A, M = LEAVES[0], MATRICES[2]
    V = probes(N, 2)
    for total in (A + M, M + A, A + M.numpy(), M.numpy() + A, A + scipy.sparse.linalg.aslinearoperator(M.numpy())):
        close(total @ V, (MATRICES[0] + M) @ V)
    close((M.numpy() - A) @ V, (M - MATRICES[0]) @ V)
    close(sum(LEAVES) @ V, sum(MATRICES) @ V)
    close((np.float64(2) * A * torch.tensor(0.5)) @ V, MATRICES[0] @ V)


def test_compositions_name_their_engines_and_keep_the_coarsest_rounding() -> None:
    H = Hessian(build("mlp_cross_entropy").objective())
    M = DenseOperator(torch.eye(H.space.size, dtype=F64))
    M.space.rounding = 1e-3
    total = (H - 2 * M + H).shifted(1)
    assert total.kernel == f"{H.kernel} + dense" and H.kernel
    assert total.space.rounding == 1e-3 and H.space.rounding < 1e-3
    part = total.restricted("2.*")
    M.space.rounding = 1e-2  # measured later, as that of finite differences is
    assert total.space.rounding == part.space.rounding == 1e-2
    assert total.space.names == H.space.names
    assert Preconditioned(total, torch.ones(H.space.size)).kernel == total.kernel
    assert (H - H).kernel == "identity"


def test_holding_a_composition_holds_all_its_parts() -> None:
    first, second = (build("uneven_batches").objective() for _ in range(2))
    A = BlockDiagonal(Preconditioned(Hessian(first) + 2 * Hessian(second), torch.ones(first.space.size)))
    V = probes(A.shape[0], 1)
    A @ V
    with A.held():
        begun = first.isolations, second.isolations
        for _ in range(3):
            A @ V
        assert (first.isolations, second.isolations) == begun


def test_solvers_and_scipy_take_compositions() -> None:
    H = reference("uneven_batches")[2]
    hessian = Hessian(build("uneven_batches").objective())
    D = torch.linspace(1, 2, len(H), dtype=F64)
    M = D.rsqrt()[:, None] * (3 * H + torch.eye(len(H), dtype=F64)) * D.rsqrt()
    A = Preconditioned((3 * hessian).shifted(1.0), D)
    found = top_eigenpairs(A, 2, tol=1e-8, seed=0)
    close(found.values, torch.linalg.eigvalsh(M).flip(0)[:2], 1e-8)
    assert trace(A, rtol=1e-9, seed=0).value == pytest.approx(float(M.trace()), rel=1e-9)
    for operator, matrix in ((A, M), (hessian.restricted("2.*"), H[-21:, -21:]), (hessian - hessian, 0 * H)):
        np.testing.assert_allclose(operator.to_scipy() @ np.eye(len(matrix)), matrix.numpy(), atol=1e-12)


@pytest.mark.parametrize(
    ("compose", "message"),
    [
        (lambda A: A + 3.0, r"cannot add the number 3\.0 .* A\.shifted\(3\.0\)"),
        (lambda A: A - 1, r"A\.shifted\(1\)"),
        (lambda A: A + "B", r"symmetric operator or a dense matrix, got str"),
        (lambda A: A * float("nan"), r"factor must be a finite number, got nan"),
        (lambda A: A * A, r"factor must be a real number, got shape \(7, 7\) \(for products write A @ V\)"),
        (lambda A: A * torch.ones(7), r"factor must be a real number, got shape \(7,\)"),
        (lambda A: 1j * A, r"factor must be a real number, got complex"),
        (lambda A: A / 0, r"divisor must be a finite number other than 0, got 0\.0"),
        (lambda A: A.shifted(float("inf")), r"sigma must be a finite number, got inf"),
        (lambda A: A + torch.eye(6, dtype=F64), r"7 entries of torch\.float64 on cpu, and 6 of torch\.float64"),
        (lambda A: A + torch.eye(7), r"7 entries of torch\.float64 on cpu, and 7 of torch\.float32 on cpu"),
        (lambda A: A - torch.eye(7, dtype=F64, device="meta"), r"on cpu, and 7 of torch\.float64 on meta"),
        (lambda A: A.restricted("*"), r"needs an operator over a model's parameters.*build it on an Objective"),
        (lambda A: BlockDiagonal(A), r"needs an operator over a model's parameters"),
    ],
)
def test_what_cannot_be_composed_is_refused(compose: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        compose(LEAVES[0])


def test_sums_over_different_parameters_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    data = labelled([4], features=3)
    one, other = (Hessian(Objective(model, data, criterion=nn.CrossEntropyLoss(), params=p)) for p in ("0.*", "2.*"))
    with pytest.raises(SettingError, match=r"one has 0\.weight \(3, 3\) where the other has 2\.weight \(3, 3\)"):
        one + other


# --------------------------------------------------------------------------- preconditioning


@pytest.mark.parametrize("form", ["vector", "mapping", "list", "single numbers"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["double", "single"])
def test_preconditioned_matches_the_dense_matrix(form: str, dtype: torch.dtype) -> None:
    H = reference("batchnorm_train")[2]
    hessian = Hessian(build("batchnorm_train", dtype).objective())
    sizes, shapes, names = hessian.space.numels, hessian.space.shapes, hessian.space.names
    D = torch.rand(len(H), generator=torch.Generator().manual_seed(3), dtype=torch.float32).to(F64) + 0.1
    if form == "single numbers":
        D = torch.cat([torch.full((size,), i + 0.5, dtype=F64) for i, size in enumerate(sizes)])
    pieces = [piece.view(shape) for piece, shape in zip(D.split(sizes), shapes, strict=True)]
    diagonal = {
        "vector": D,
        "mapping": dict(reversed(list(zip(names, pieces, strict=True)))),
        "list": pieces,
        "single numbers": {name: i + 0.5 for i, name in enumerate(names)},
    }[form]
    A = Preconditioned(hessian, diagonal)
    V = probes(len(H), 3, dtype)
    kept = V.clone()
    close(A @ V, D.rsqrt()[:, None] * (H @ (D.rsqrt()[:, None] * V.double())), TOLERANCE[dtype])
    assert torch.equal(V, kept)
    assert (A @ V).dtype == dtype


def test_eigenvectors_map_back_to_the_parameters() -> None:
    H = reference("uneven_batches")[2]
    D = torch.rand(len(H), generator=torch.Generator().manual_seed(3), dtype=F64) + 0.1
    A = Preconditioned(Hessian(build("uneven_batches").objective()), D)
    pairs = top_eigenpairs(A, 3, tol=1e-9, seed=0)
    expected = scipy.linalg.eigh(H.numpy(), torch.diag(D).numpy(), eigvals_only=True)[::-1][:3]
    np.testing.assert_allclose(pairs.values.numpy(), expected, rtol=1e-9)
    U = A.to_parameters(pairs.vectors)
    close(H @ U, D[:, None] * U * pairs.values, 1e-6)
    torch.testing.assert_close(U.T @ (D[:, None] * U), torch.eye(3, dtype=F64), rtol=0, atol=1e-9)
    close(A.from_parameters(U), pairs.vectors)
    close(A.from_parameters(A.to_parameters(D)), D)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {**d, "0.bias": torch.tensor([1.0, 0, 1, 1, 1, 1])}, r"entry 1 of 0\.bias is 0\.0 \(1 such of 51\)"),
        (lambda d: {**d, "2.weight": -torch.ones(3, 6)}, r"entry 0 of 2\.weight is -1\.0 \(18 such"),
        (lambda d: {**d, "2.bias": float("nan")}, r"entry 0 of 2\.bias is nan"),
        (lambda d: flat(d.values()) * math.inf, r"entry 0 of 0\.weight is inf"),
        (lambda d: flat(d.values())[:50], r"diagonal must have shape \(51,\), got \(50,\)"),
        (
            lambda d: {**d, "0.weight": torch.ones(4, 6)},
            r"diagonal of 0\.weight must have shape \(6, 4\), got \(4, 6\)",
        ),
        (lambda d: {n: t for n, t in d.items() if n != "2.bias"}, r"diagonal lacks 2\.bias"),
        (lambda d: {**d, "head": torch.ones(1)}, r"diagonal has head, which is not among the parameters"),
        (lambda d: list(d.values())[1:], r"diagonal has 3 tensors for 4 parameters"),
        (lambda d: 2.0, r"a tensor \(51,\), a mapping from names, or a list; got float"),
    ],
)
def test_diagonals_that_cannot_be_are_refused(change: Callable[[dict], Any], message: str) -> None:
    objective = build("mlp_cross_entropy").objective()
    ones = {name: torch.ones(shape) for name, shape in zip(objective.space.names, objective.space.shapes, strict=True)}
    with pytest.raises(SettingError, match=message):
        Preconditioned(Hessian(objective), change(ones))


def test_a_plain_matrix_takes_a_plain_diagonal_only() -> None:
    with pytest.raises(SettingError, match=r"7 entries without names"):
        Preconditioned(LEAVES[0], {"a": torch.ones(7)})
    with pytest.raises(SettingError, match=r"positive and finite, entry 6 is 0\.0"):
        Preconditioned(LEAVES[0], torch.arange(7).flip(0))
