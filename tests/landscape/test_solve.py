"""Damped linear systems against dense solutions: one and several right-hand sides, warm starts, preconditioning."""

import math

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import nn

from damped_systems import F64, Positive, damped, digits, drawn, least_in_krylov_space, true_residual
from losscope.landscape import (
    GaussNewton,
    Hessian,
    NonFiniteError,
    SettingError,
    Solution,
    solve,
)
from losscope.landscape.operators import DenseOperator
from spectra import rotated

# --------------------------------------------------------------------------- exact oracles


@pytest.mark.parametrize("seed", range(60))
def test_positive_definite_systems(seed: int) -> None:
    condition = 10 ** (6 * ((seed * 0.618) % 1))
    A, b, damping = drawn(seed, 5 + seed, condition)
    rtol = 10.0 ** -(3 + seed % 6)
    for operator, method in ((Positive(A), "cg"), (A, "minres")):
        result = solve(operator, b, damping=damping, rtol=rtol)
        assert result.converged and result.method == method and result.note == ""
        assert result.negative_curvature is None
        explicit = true_residual(A, result.x, b, damping)
        assert float(explicit) <= 1.0001 * rtol * float(b.norm())
        torch.testing.assert_close(result.residual, explicit, rtol=1e-2, atol=1e-14 * condition)
        assert float(result.relative) == pytest.approx(float(result.residual / b.norm()), rel=1e-12)
        exact = torch.linalg.solve(damped(A, damping), b)
        assert float((result.x - exact).norm()) <= 2 * condition * rtol * float(b.norm())


@pytest.mark.parametrize("seed", range(60))
def test_indefinite_systems(seed: int) -> None:
    condition = 10 ** (6 * ((seed * 0.618) % 1))
    A, b, damping = drawn(seed, 5 + seed, max(3.0, condition), indefinite=True)
    rtol = 10.0 ** -(3 + seed % 6)
    result = solve(A, b, damping=damping, rtol=rtol)
    assert result.converged and result.method == "minres" and result.note == ""
    explicit = true_residual(A, result.x, b, damping)
    assert float(explicit) <= 1.0001 * rtol * float(b.norm())
    torch.testing.assert_close(result.residual, explicit, rtol=1e-2, atol=1e-14 * condition)
    assert result.negative_curvature is not None


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("method", ["cg", "minres"])
def test_negative_curvature_is_reported_if_and_only_if_the_krylov_space_has_it(method: str, seed: int) -> None:
    """Cut off after few steps, with one eigenvalue about zero: some of the spaces have it and some do not."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(40, generator=generator, dtype=F64)
    values[0] = -0.3 * float(torch.rand((), generator=generator))
    A, b = rotated(values, seed), torch.randn(40, generator=generator, dtype=F64)
    damping = 0.15
    seen = []
    for steps in (2, 4, 8, 16):
        result = solve(A, b, damping=damping, rtol=1e-12, max_matvecs=steps + 2, method=method)
        least = least_in_krylov_space(A, b, damping, int(result.iterations))
        assert abs(least) > 1e-9  # or it could not be told
        report = result.negative_curvature
        seen.append(report is not None)
        assert (report is not None) == (least < 0)
        if report is not None:
            p = report.direction
            assert float(p.norm()) == pytest.approx(1)
            assert float(p @ A @ p) == pytest.approx(report.curvature, rel=1e-6)
            assert float(values[0]) <= report.curvature + report.error < -damping
    assert seen == sorted(seen)


def test_negative_curvature_is_never_reported_where_there_is_none() -> None:
    """Down to a least eigenvalue of a rounding error, in both precisions."""
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        values = 10 ** (-12 * torch.rand(30, generator=generator, dtype=F64))
        for dtype in (torch.float32, F64):
            A = rotated(values, seed).to(dtype)
            A = A + torch.finfo(dtype).eps * torch.eye(30, dtype=dtype)
            b = torch.randn(30, generator=generator, dtype=F64).to(dtype)
            for method in ("cg", "minres", "auto"):
                for damping in (0.0, 1e-9):
                    result = solve(A, b, damping=damping, rtol=1e-5, max_matvecs=200, method=method)
                    assert result.negative_curvature is None


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_damped_steps_of_a_digits_network(kind: type) -> None:
    _, objective, H, g = digits()
    operator = kind(objective)
    matrix = H if kind is Hessian else operator @ torch.eye(len(H), dtype=F64)
    least = float(torch.linalg.eigvalsh(matrix)[0])
    for damping in (1e-3, 1e-1):
        result = solve(operator, -g, damping=damping, rtol=1e-8)
        assert result.converged and result.method == ("minres" if kind is Hessian else "cg")
        torch.testing.assert_close(result.residual, true_residual(matrix, result.x, -g, damping), rtol=1e-2, atol=1e-13)
        exact = torch.linalg.solve(damped(matrix, damping), -g)
        assert float((result.x - exact).norm()) <= 1e-5 * float(exact.norm())
        assert (result.negative_curvature is not None) == (least < -damping)
    if kind is Hessian:
        assert least < -1e-3  # so that one of the dampings was too small for it


# --------------------------------------------------------------------------- several right-hand sides


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_several_right_hand_sides_are_as_single_ones(kind: type) -> None:
    _, objective, H, g = digits()
    operator = kind(objective)
    B = torch.stack([g, torch.ones_like(g), H[:, 3], 0 * g, 1e-9 * H[:, 40]], dim=1)
    together = solve(operator, B, damping=1e-2, rtol=1e-9)
    assert together.converged and together.x.shape == B.shape
    assert together.history.shape == (int(together.iterations.max()) + 1, 5)
    for j in range(5):
        alone = solve(operator, B[:, j], damping=1e-2, rtol=1e-9)
        assert alone.x.shape == g.shape and alone.residual.shape == ()
        assert abs(int(alone.iterations) - int(together.iterations[j])) <= 1
        size = float(alone.x.norm())
        torch.testing.assert_close(together.x[:, j], alone.x, rtol=0, atol=1e-7 * size)
    assert bool((together.x[:, 3] == 0).all()) and float(together.residual[3]) == 0


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_a_step_is_one_product_with_the_block_of_those_still_running(method: str) -> None:
    A, _, damping = drawn(1, 60, 1e3)
    operator = Positive(A)
    vectors = torch.linalg.eigh(A).eigenvectors
    easy, hard = vectors[:, :2] @ torch.ones(2, dtype=F64), torch.randn(60, dtype=F64)  # 2 steps, and many
    result = solve(operator, torch.stack([hard, easy], dim=1), damping=damping, rtol=1e-6, method=method)
    steps = result.iterations.tolist()
    assert steps[1] == 2 < steps[0]
    assert operator.widths == [2, 2, *[1] * (steps[0] - 2), 2]  # the last one looks at the residuals
    assert result.matvecs == sum(operator.widths)


def test_more_right_hand_sides_than_memory_go_one_group_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    A, _, damping = drawn(1, 30, 1e2)
    operator = Positive(A)
    B = torch.randn(30, 7, dtype=F64)
    at_once = solve(operator, B, damping=damping, rtol=1e-9, memory=0)
    assert max(operator.widths) == 7
    operator.widths.clear()
    monkeypatch.setitem(solve.__globals__, "_MEMORY", 3 * 12 * 30 * 8)
    in_groups = solve(operator, B, damping=damping, rtol=1e-9, memory=0)
    assert max(operator.widths) == 3
    torch.testing.assert_close(in_groups.x, at_once.x, rtol=1e-6, atol=1e-6)
    assert in_groups.converged and abs(in_groups.matvecs - at_once.matvecs) <= 7


# --------------------------------------------------------------------------- warm starts


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_a_slowly_changing_sequence_is_cheaper_from_the_last_solution(method: str) -> None:
    A, b, damping = drawn(3, 80, 1e3)
    drift = rotated(torch.linspace(-1, 1, 80, dtype=F64), 5)
    cold = warm = 0
    x = None
    for step in range(10):
        matrix = Positive(A + 1e-6 * step * drift)
        right = b + 1e-4 * step * torch.randn(80, dtype=F64)
        first = solve(matrix, right, damping=damping, rtol=1e-4, method=method)
        again = solve(matrix, right, damping=damping, rtol=1e-4, method=method, start=x)
        assert first.converged and again.converged
        assert float(true_residual(matrix.matrix, again.x, right, damping)) <= 1.0001e-4 * float(right.norm())
        if step:
            cold, warm = cold + first.matvecs, warm + again.matvecs
        x = again.x
    assert warm <= 0.6 * cold


def test_a_start_that_is_the_solution_takes_one_product() -> None:
    A, b, damping = drawn(3, 80, 1e3)
    x = solve(A, b, damping=damping, rtol=1e-8).x
    kept = x.clone()
    again = solve(A, b, damping=damping, rtol=1e-6, start=x)
    assert again.matvecs == 1 and again.converged and int(again.iterations) == 0
    assert torch.equal(again.x, x) and torch.equal(x, kept)


def test_a_start_of_zero_is_a_cold_one() -> None:
    A, b, damping = drawn(3, 40, 1e3)
    cold, zero = (solve(A, b, damping=damping, start=start) for start in (None, torch.zeros_like(b)))
    assert zero.matvecs == cold.matvecs + 1
    torch.testing.assert_close(zero.x, cold.x)


# --------------------------------------------------------------------------- preconditioning


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_a_diagonal_takes_out_bad_scaling(method: str) -> None:
    scales = torch.logspace(-2, 2, 60, dtype=F64)
    A = scales[:, None] * rotated(torch.linspace(1, 3, 60, dtype=F64)) * scales
    b = torch.randn(60, dtype=F64)
    options = {"damping": 1e-5, "rtol": 1e-6, "method": method}
    plain = solve(Positive(A), b, **options)
    better = solve(Positive(A), b, preconditioner=A.diagonal() + 1e-5, **options)
    assert better.converged and int(better.iterations) < 0.3 * int(plain.iterations)
    explicit = true_residual(A, better.x, b, 1e-5)
    torch.testing.assert_close(better.residual, explicit, rtol=1e-2, atol=1e-10)
    assert float(explicit) <= 1.0001e-6 * float(b.norm())
    # the recurrence's residual is that of the parameters too, not one in the scaled space
    assert float(better.history[-1]) == pytest.approx(float(better.relative), rel=1e-2)


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_negative_curvature_of_a_preconditioned_system_is_that_of_the_matrix(method: str) -> None:
    A, b, damping = drawn(4, 50, 30.0, indefinite=True)
    D = 0.1 + torch.rand(50, dtype=F64)
    result = solve(A, b, damping=damping, method=method, preconditioner=D)
    report = result.negative_curvature
    assert float(report.direction @ A @ report.direction) == pytest.approx(report.curvature, rel=1e-9)
    assert float(torch.linalg.eigvalsh(A)[0]) <= report.curvature < -damping
    assert result.converged == (method == "minres")


def test_parameters_by_name_make_a_preconditioner() -> None:
    model, objective, _, g = digits()
    D = {name: torch.full_like(p, 2.0) for name, p in model.named_parameters()}
    flat = solve(GaussNewton(objective), g, damping=0.1, preconditioner=torch.full_like(g, 2.0))
    torch.testing.assert_close(solve(GaussNewton(objective), g, damping=0.1, preconditioner=D).x, flat.x)


# --------------------------------------------------------------------------- what is accepted as a matrix


KINDS = {
    "tensor": lambda A: A,
    "array": lambda A: A.numpy(),
    "scipy operator": lambda A: scipy.sparse.linalg.aslinearoperator(A.numpy()),
    "scipy sparse": lambda A: scipy.sparse.csr_array(A.numpy()),
    "sum": lambda A: 0.5 * DenseOperator(A) + 0.5 * A,
}


@pytest.mark.parametrize("kind", KINDS)
def test_operators_of_every_kind_give_the_same(kind: str) -> None:
    A, _, damping = drawn(5, 30, 1e2, indefinite=True)
    B = torch.randn(30, 2, dtype=F64)
    exact = torch.linalg.solve(damped(A, damping), B)
    result = solve(KINDS[kind](A), B, damping=damping, rtol=1e-10)
    torch.testing.assert_close(result.x, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["HessianLinearOperator", "GGNLinearOperator"])
def test_operators_of_curvlinops(kind: str) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    model, objective, _, g = digits()
    batch = objective.batches[0].content
    theirs = getattr(curvlinops, kind)(model, nn.CrossEntropyLoss(), list(model.parameters()), [batch])
    ours = Hessian(objective) if kind.startswith("Hessian") else GaussNewton(objective)
    other = solve(theirs, g, damping=0.1, rtol=1e-8)
    assert other.converged and other.kernel == "foreign"
    expected = solve(ours, g, damping=0.1, rtol=1e-8).x
    torch.testing.assert_close(other.x, expected, rtol=0, atol=1e-6 * float(expected.norm()))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("method", ["cg", "minres"])
def test_as_many_steps_as_scipy_takes_and_fewer_where_vectors_are_kept(method: str, seed: int) -> None:
    A, b, damping = drawn(seed, 150, 10.0 ** (1 + seed / 2), indefinite=method == "minres" and seed > 2)
    B = damped(A, damping)
    theirs: list[float] = []

    def look(x: np.ndarray) -> None:
        theirs.append(float((b - B @ torch.from_numpy(x)).norm() / b.norm()))

    getattr(scipy.sparse.linalg, method)(B.numpy(), b.numpy(), rtol=1e-15, maxiter=1500, callback=look)
    first = next(i for i, relative in enumerate(theirs, start=1) if relative <= 1e-6)
    same = solve(A, b, damping=damping, rtol=1e-6, method=method, memory=0)
    assert abs(int(same.iterations) - first) <= 1 + 0.04 * first
    fewer = solve(A, b, damping=damping, rtol=1e-6, method=method)
    assert int(fewer.iterations) <= min(150, int(same.iterations))
    assert fewer.matvecs == int(fewer.iterations) + 1 + (fewer.negative_curvature is not None)


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_vectors_kept_save_products_on_real_curvature(method: str) -> None:
    """Eigenvalues far from the rest are found again and again, unless they are kept out; a few vectors do most."""
    _, objective, _, g = digits()
    G = GaussNewton(objective) @ torch.eye(len(g), dtype=F64)
    results = [solve(G, g, damping=1e-4, method=method, memory=m) for m in (0, 40 * 610 * 8, None)]
    none, some, all_of_them = (r.matvecs for r in results)
    assert all(r.converged for r in results)
    assert all_of_them <= some <= 0.65 * none


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("method", ["cg", "minres"])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_matrices_that_are_not_symmetric_are_refused(preconditioned: bool, method: str) -> None:
    for seed in range(20):
        A, b, damping = drawn(seed, 40, 1e2)
        options = {"preconditioner": 0.1 + torch.rand(40, dtype=F64)} if preconditioned else {}
        skew = torch.randn(40, 40, dtype=F64)
        slightly = A + 0.05 * (skew - skew.T)
        with pytest.raises(SettingError, match=r"not symmetric.*\(A \+ A\.T\) / 2"):
            solve(slightly, b, damping=damping, method=method, **options)


@pytest.mark.parametrize("method", ["cg", "minres"])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_also_where_the_first_direction_bends_downwards(preconditioned: bool, method: str) -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        A = torch.randn(40, 40, generator=generator, dtype=F64)
        b = torch.randn(40, generator=generator, dtype=F64)  # in half of them b'Ab is negative
        options = {"preconditioner": 0.1 + torch.rand(40, generator=generator, dtype=F64)} if preconditioned else {}
        with pytest.raises(SettingError, match="not symmetric"):
            solve(A, b, damping=0.1, method=method, **options)
        solve(A + A.T, b, damping=0.1, method=method, **options)


@pytest.mark.parametrize("method", ["cg", "minres"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_symmetric_ones_are_not(condition: float, dtype: torch.dtype, method: str) -> None:
    """Also where directions are nearly those that the matrix takes to nothing, and with very uneven diagonals."""
    for seed in range(4):
        A, b, damping = drawn(seed, 60, condition)
        for D in (None, torch.logspace(-4, 0, 60, dtype=dtype)):
            for memory in (0, None):
                options = {"method": method, "max_matvecs": 180, "preconditioner": D, "memory": memory}
                solve(A.to(dtype), b.to(dtype), damping=damping, **options)


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_products_that_are_not_finite_are_refused(method: str) -> None:
    A, b, _ = drawn(1, 20, 10.0)
    for bad in (math.nan, math.inf):
        A[3, 3] = bad
        with pytest.raises(NonFiniteError, match="NaN or infinite"):
            solve(A, b, damping=1.0, method=method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": -1.0}, r"damping must be a finite number >= 0, got -1\.0; .*A\.shifted"),
        ({"damping": float("nan")}, r"got nan"),
        ({"damping": float("inf")}, r"got inf"),
        ({"damping": "much"}, r"got 'much'"),
        ({"damping": torch.ones(3)}, r"damping must be"),
        ({"b": torch.ones(4, dtype=F64)}, r"b must have shape \(5,\) or \(5, k\), got \(4,\)"),
        ({"b": torch.ones(5, 0, dtype=F64)}, r"got \(5, 0\)"),
        ({"b": torch.ones(5, 1, 1, dtype=F64)}, r"got \(5, 1, 1\)"),
        ({"b": np.ones(5)}, r"b must be a tensor of shape \(5,\) or \(5, k\), got ndarray"),
        ({"b": torch.ones(5)}, r"b must be like the operator, torch\.float64 on cpu; got torch\.float32 on cpu"),
        ({"b": torch.ones(5, dtype=F64, device="meta")}, r"got torch\.float64 on meta"),
        ({"b": torch.full((5,), math.nan, dtype=F64)}, r"b must be finite"),
        ({"start": torch.ones(5, 1, dtype=F64)}, r"start must have the shape of b, \(5,\), got \(5, 1\)"),
        ({"start": torch.ones(5)}, r"start must be like the operator"),
        ({"start": [0.0] * 5}, r"start must be a tensor .*got list"),
        ({"start": torch.full((5,), math.inf, dtype=F64)}, r"start must be finite"),
        ({"rtol": 1e-15}, r"rtol must be in \[7\.1e-15, 1\): products \(torch\.float64, kernel 'dense'\).*got 1e-15"),
        ({"rtol": 1.0}, r"got 1\.0"),
        ({"rtol": float("nan")}, r"got nan"),
        ({"max_matvecs": 1}, r"max_matvecs must be at least 3: .*got 1"),
        ({"max_matvecs": 3, "start": torch.ones(5, dtype=F64)}, r"at least 4"),
        ({"memory": -1}, r"memory must be a whole number of bytes, at least 0, got -1"),
        ({"method": "gmres"}, r'method must be "auto", "cg" or "minres", got .gmres.'),
        ({"preconditioner": torch.zeros(5)}, r"diagonal must be positive and finite, entry 0 is 0\.0"),
        ({"preconditioner": torch.ones(4)}, r"diagonal must have shape \(5,\), got \(4,\)"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict, message: str) -> None:
    options = {"b": torch.ones(5, dtype=F64), "damping": 1.0} | options
    with pytest.raises(SettingError, match=message):
        solve(torch.eye(5, dtype=F64), options.pop("b"), **options)


def test_a_result_in_one_line() -> None:
    b = torch.ones(4, 2, dtype=F64)
    result = solve(2 * torch.eye(4, dtype=F64), b, damping=0.0)
    assert isinstance(result, Solution)
    assert repr(result) == "Solution(2 right-hand sides, relative residual 0, minres, 1 steps, 4 products)"
