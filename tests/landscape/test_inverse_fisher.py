"""The inverse of the damped empirical Fisher matrix against dense inverses."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from landscape_cases import IGNORED, labelled, mlp
from losscope.landscape import (
    EmpiricalFisher,
    InverseFisher,
    NonFiniteError,
    Objective,
    SettingError,
    solve,
    top_eigenpairs,
    trace,
)

F64 = torch.float64


def dense_inverse(G: Tensor, damping: float) -> Tensor:
    """(damping I + G'G / m)^-1 through its eigenvalues, so that nothing cancels."""
    _, s, V = torch.linalg.svd(G.double(), full_matrices=True)
    values = torch.full((G.shape[1],), damping, dtype=F64)
    values[: len(s)] += s.square() / len(G)
    return (V.T / values) @ V


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def example(sizes: list[int], dtype: torch.dtype = F64, **options: object) -> Objective:
    torch.manual_seed(0)
    model = mlp(4, 5, 3).to(dtype)
    data = [(x.to(dtype), y) for x, y in labelled(sizes)]
    return Objective(model, data, criterion=nn.CrossEntropyLoss(**options))


# --------------------------------------------------------------------------- exact oracles


@pytest.mark.parametrize(("m", "n"), [(1, 30), (7, 30), (30, 30), (60, 30), (5, 1)])
@pytest.mark.parametrize("damping", [1e-6, 1e-3, 1.0, 100.0])
def test_woodbury_is_the_dense_inverse(m: int, n: int, damping: float) -> None:
    G = torch.randn(m, n, dtype=F64) * torch.logspace(-2, 1, n, dtype=F64)
    inverse = InverseFisher(G, damping=damping)
    found = inverse @ torch.eye(n, dtype=F64)
    exact = dense_inverse(G, damping)
    assert distance(found, exact) <= 1e-7
    assert torch.linalg.matrix_norm(found - exact, 2) <= inverse.space.rounding / damping
    assert inverse.psd and inverse.shape == (n, n) and inverse.kernel == "woodbury"
    v = torch.randn(n, dtype=F64)
    assert distance(inverse @ v, exact @ v) <= 1e-6


@pytest.mark.parametrize("least", [1.0, 1e-5])
@pytest.mark.parametrize("condition", [1e0, 1e2, 1e4, 1e6, 1e8])
def test_single_precision_is_as_close_as_it_says(condition: float, least: float) -> None:
    """Hardest where singular values are spread across the root of the damping."""
    for seed in range(5):
        torch.manual_seed(seed)
        left, right = (torch.linalg.qr(torch.randn(n, 20, dtype=F64)).Q for n in (20, 400))
        G = ((left * torch.logspace(0, math.log10(least), 20)) @ right.T).float()
        damping = 1 / 20 / condition
        inverse, exact = InverseFisher(G, damping=damping), dense_inverse(G, damping)
        found = inverse @ torch.eye(400)
        error = float(torch.linalg.matrix_norm(found.double() - exact, 2) * damping)
        assert error <= inverse.space.rounding <= 4e-6 + 1e-6 * math.sqrt(condition)
        # What it reaches, relative to the norm of the inverse.
        assert error <= (2e-7 if least == 1 else 2e-7 + 2e-8 * math.sqrt(condition))


@pytest.mark.parametrize("sizes", [[9], [5, 3, 1]], ids=["one batch", "uneven batches"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_gradients_of_an_objective(sizes: list[int], dtype: torch.dtype) -> None:
    fisher = EmpiricalFisher(example(sizes, dtype))
    inverse = InverseFisher(fisher, damping=1e-2)
    n = fisher.shape[0]
    F = EmpiricalFisher(example(sizes)) @ torch.eye(n, dtype=F64)
    rows = inverse.gradients.double()
    assert rows.shape == (9, n)
    assert distance(rows.T @ (inverse.weights[:, None] * rows), F) <= (1e-12 if dtype is F64 else 1e-5)
    exact = torch.linalg.inv(F + 1e-2 * torch.eye(n, dtype=F64))
    assert distance(inverse @ torch.eye(n, dtype=dtype), exact) <= (1e-9 if dtype is F64 else 1e-4)
    assert inverse.space.names == fisher.space.names


def test_samples_without_weight_have_no_row() -> None:
    objective = example([6, 3])
    objective.data[0][1][1] = IGNORED
    fisher = EmpiricalFisher(objective, weights=torch.tensor([1.0, 2.0, 0.0, 3.0, 1.0, 1.0, 0.5, 1.0, 1.0]))
    inverse = InverseFisher(fisher, damping=0.1)
    assert len(inverse.gradients) == 7
    identity = torch.eye(fisher.shape[0], dtype=F64)
    torch.testing.assert_close(inverse @ (fisher.shifted(0.1) @ identity), identity, rtol=0, atol=1e-10)


def test_the_gradients_are_those_of_one_moment() -> None:
    """The operator stays as it is when training goes on, and taking the gradients leaves no trace."""
    objective = example([8])
    state = copy.deepcopy(objective.model.state_dict())
    inverse = InverseFisher(EmpiricalFisher(objective), damping=0.1)
    assert all(torch.equal(state[name], value) for name, value in objective.model.state_dict().items())
    assert all(p.grad is None for p in objective.model.parameters())
    V = torch.randn(inverse.shape[0], 2, dtype=F64)
    before = inverse @ V
    with torch.no_grad():
        for p in objective.model.parameters():
            p.add_(1.0)
    assert torch.equal(inverse @ V, before)


# --------------------------------------------------------------------------- with the rest of the package


def test_solving_is_multiplying_with_the_inverse() -> None:
    fisher = EmpiricalFisher(example([9, 4]))
    B = torch.randn(fisher.shape[0], 3, dtype=F64)
    direct = InverseFisher(fisher, damping=0.05) @ B
    torch.testing.assert_close(solve(fisher, B, damping=0.05, rtol=1e-12).x, direct, rtol=1e-9, atol=1e-9)


def test_eigenvalues_and_trace_of_the_inverse() -> None:
    fisher = EmpiricalFisher(example([9, 4]))
    values = torch.linalg.eigvalsh(fisher @ torch.eye(fisher.shape[0], dtype=F64))
    inverse = InverseFisher(fisher, damping=0.5)
    least = top_eigenpairs(inverse, which="SA", tol=1e-8, seed=0).values
    assert float(least) == pytest.approx(1 / float(values[-1] + 0.5), rel=1e-6)
    estimate = trace(inverse, rtol=1e-6, seed=0, max_matvecs=10_000)
    assert estimate.value == pytest.approx(float((1 / (values + 0.5)).sum()), rel=1e-5)


def test_it_can_be_restricted_like_any_operator() -> None:
    inverse = InverseFisher(EmpiricalFisher(example([9])), damping=0.5)
    block = inverse.restricted("0.bias")
    whole = inverse @ torch.eye(inverse.shape[0], dtype=F64)
    rows = slice(20, 25)
    torch.testing.assert_close(block @ torch.eye(5, dtype=F64), whole[rows, rows])


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("gradients", "options", "message"),
    [
        (torch.ones(3), {}, r"gradients must be a tensor \(m, n\).*got shape \(3,\)"),
        (torch.ones(0, 3), {}, r"got shape \(0, 3\)"),
        ([1.0], {}, r"got list"),
        (torch.ones(2, 3, dtype=torch.int64), {}, r"float32 or float64, got torch\.int64"),
        (torch.ones(2, 3, dtype=torch.bfloat16), {}, r"got torch\.bfloat16"),
        (torch.ones(2, 3), {"damping": 0.0}, r"damping must be a finite number > 0, got 0\.0"),
        (torch.ones(2, 3), {"damping": math.nan}, r"got nan"),
        (1e6 * torch.ones(20, 3), {"damping": 1e-9}, r"damping=1e-09 is too small .* use more, or float64"),
    ],
)
def test_input_that_means_nothing_is_refused(gradients: object, options: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        InverseFisher(gradients, **({"damping": 1.0} | options))


def test_gradients_that_are_not_finite_are_refused() -> None:
    G = torch.ones(2, 3)
    G[1, 2] = math.nan
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        InverseFisher(G, damping=1.0)


def test_negative_weights_and_too_little_memory_are_refused() -> None:
    objective = example([5])
    with pytest.raises(SettingError, match="negative weight"):
        InverseFisher(EmpiricalFisher(objective, weights=-torch.ones(5)), damping=1.0)
    with pytest.raises(SettingError, match=r"5 gradients of 43 entries take 1\.7e\+03 bytes, more than memory=100"):
        InverseFisher(EmpiricalFisher(objective), damping=1.0, memory=100)
