"""What solve claims where it is hard: indefinite, singular and badly scaled matrices, drift, coarse products."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from damped_systems import F64, Positive, digits, drawn, true_residual
from losscope.landscape import (
    Hessian,
    Objective,
    SettingError,
    SymmetricOperator,
    solve,
)
from spectra import Diagonal, rotated

# --------------------------------------------------------------------------- where the matrix is not positive definite


@pytest.mark.parametrize("seed", range(10))
def test_conjugate_gradients_that_meet_negative_curvature_hand_over_to_minres(seed: int) -> None:
    A, b, damping = drawn(seed, 40, 100.0, indefinite=True)
    liar = Positive(A)
    stopped = solve(liar, b, damping=damping, method="cg")
    assert not stopped.converged and stopped.method == "cg" and "does not bend upwards" in stopped.note
    assert bool(stopped.x.isfinite().all())
    explicit = true_residual(A, stopped.x, b, damping)
    torch.testing.assert_close(stopped.residual, explicit, rtol=1e-2, atol=1e-12)
    finished = solve(liar, b, damping=damping)
    assert finished.converged and finished.method == "cg, minres"
    for result in (stopped, finished):
        report = result.negative_curvature
        assert float(torch.linalg.eigvalsh(A)[0]) <= report.curvature < -damping
        assert "negative curvature" in repr(result)


def test_one_of_several_right_hand_sides_meets_negative_curvature() -> None:
    values = torch.cat([torch.tensor([-1.0]), torch.linspace(1, 2, 29)]).double()
    B = torch.ones(30, 2, dtype=F64)
    B[0, 0] = 0.0  # this one never sees it
    operator = Diagonal(values)
    operator.psd = True
    result = solve(operator, B, damping=0.1, rtol=1e-8)
    assert result.converged and result.method == "cg, minres"
    torch.testing.assert_close(result.x, B / (values + 0.1)[:, None], rtol=1e-6, atol=1e-8)
    assert result.negative_curvature.curvature < -0.1


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("method", ["cg", "minres", "auto"])
@pytest.mark.parametrize("psd", [False, True])
def test_nothing_is_nan_where_matrices_vanish(psd: bool, method: str, dtype: torch.dtype) -> None:
    b = torch.tensor([3.0, -4.0, 0.0], dtype=dtype)
    for value, damping in ((0.0, 0.0), (0.0, 2.0), (2.0, 0.0), (2.0, 2.0), (-2.0, 0.0), (-2.0, 1.0), (-2.0, 2.0)):
        A = Diagonal(torch.full((3,), value, dtype=dtype))
        A.psd = psd and value >= 0
        result = solve(A, b, damping=damping, method=method)
        total = value + damping
        solvable = total > 0 or (total < 0 and method != "cg")
        assert result.converged == solvable
        expected = b / total if solvable else torch.zeros_like(b)
        torch.testing.assert_close(result.x, expected)
        assert (result.negative_curvature is not None) == (total < 0)
        numbers = (result.residual, result.relative, result.history)
        assert all(bool(t.isfinite().all()) for t in numbers)
        nothing = solve(A, torch.zeros_like(b), damping=damping, method=method, start=b)
        assert nothing.converged and nothing.matvecs == 0 and bool((nothing.x == 0).all())


def test_an_identity_that_returns_its_input() -> None:
    class Same(SymmetricOperator):
        psd = True

        def __init__(self) -> None:
            self.space = Diagonal(torch.ones(5, dtype=F64)).space

        def product(self, V: Tensor) -> Tensor:
            return V

    b = torch.arange(1.0, 6.0, dtype=F64)
    for method in ("cg", "minres"):
        torch.testing.assert_close(solve(Same(), b, damping=1.0, method=method).x, b / 2)
    assert torch.equal(b, torch.arange(1.0, 6.0, dtype=F64))


@pytest.mark.parametrize("memory", [0, None])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_singular_matrices(dtype: torch.dtype, memory: int | None) -> None:
    values = torch.cat([torch.zeros(10), torch.linspace(-2, 3, 30)]).to(dtype)
    b = torch.ones(40, dtype=dtype)
    inside = torch.where(values == 0, 0.0, b)
    good = solve(Diagonal(values), inside, damping=0.0, memory=memory)
    assert good.converged
    torch.testing.assert_close(values * good.x, inside, rtol=0, atol=1e-4)
    bad = solve(Diagonal(values), b, damping=0.0, memory=memory)
    assert not bad.converged and "not in its range" in bad.note
    assert float(bad.residual) == pytest.approx(math.sqrt(10), rel=1e-3)  # the least there is
    assert float(bad.x.norm()) <= 10 * float(good.x.norm())


@pytest.mark.parametrize("memory", [0, None])
@pytest.mark.parametrize("method", ["cg", "minres"])
def test_eigenvalues_about_zero_are_not_taken_for_nothing(method: str, memory: int | None) -> None:
    """Curvature has most of them there, and most of b then has its solution at the damping."""
    for seed in range(10):
        torch.manual_seed(seed)
        values = torch.cat([1e-3 * torch.rand(200), 300 ** torch.rand(10)])
        b = torch.randn(210)
        result = solve(Diagonal(values), b, damping=1e-3, rtol=1e-2, method=method, memory=memory)
        assert result.converged
        assert float(true_residual(values.diag(), result.x, b, 1e-3)) <= 1.1e-2 * float(b.norm())


@pytest.mark.parametrize("memory", [0, None])
@pytest.mark.parametrize("method", ["cg", "minres", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_no_residual_is_longer_than_that_of_nothing(dtype: torch.dtype, method: str, memory: int | None) -> None:
    """Singular and inconsistent, in a basis where rounding hides it, for as long as may be: no garbage."""
    for seed in range(6):
        values = torch.cat([torch.zeros(1 + 3 * seed), torch.linspace(0 if seed % 2 else -2, 3.01, 60)]).double()
        A, b = rotated(values, seed).to(dtype), torch.randn(len(values), dtype=dtype)
        for operator in (A, Positive(A)):
            result = solve(operator, b, damping=0.0, method=method, memory=memory)
            explicit = true_residual(A, result.x, b, 0.0)
            assert not result.converged
            assert float(explicit) == pytest.approx(float(result.residual), rel=1e-2)
            if method != "cg":
                assert float(explicit) <= 1.0001 * float(b.norm())


def test_a_matrix_of_one_entry() -> None:
    for sign, method in ((1.0, "cg"), (1.0, "minres"), (-1.0, "minres")):
        A = torch.full((1, 1), sign * 3.0, dtype=F64)
        result = solve(A, torch.tensor([6.0], dtype=F64), damping=0.0, method=method)
        assert float(result.x) == pytest.approx(2 * sign) and result.matvecs <= 3


# --------------------------------------------------------------------------- what a result claims


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_products_are_within_their_limit_and_running_out_is_not_convergence(method: str) -> None:
    A, _, damping = drawn(3, 80, 1e5)
    B = torch.randn(80, 3, dtype=F64)
    for limit in (7, 8, 25, 64):
        operator = Positive(A)
        result = solve(operator, B, damping=damping, rtol=1e-8, max_matvecs=limit, method=method)
        assert result.matvecs == sum(operator.widths) <= limit
        assert result.matvecs > limit - 3 - (method == "minres")
        assert not result.converged and "products ran out" in result.note and "NOT converged" in repr(result)
        torch.testing.assert_close(result.residual, true_residual(A, result.x, B, damping), rtol=1e-6, atol=1e-12)
    started = solve(Positive(A), B, damping=damping, rtol=1e-8, max_matvecs=10, start=B, method=method)
    assert started.matvecs == 9


def test_minres_residuals_never_grow() -> None:
    A, b, damping = drawn(7, 60, 1e4, indefinite=True)
    history = solve(A, b, damping=damping, rtol=1e-8).history
    assert float(history[0]) == 1.0
    assert bool((history.diff() <= 1e-12).all())


@pytest.mark.parametrize("method", ["cg", "minres"])
@pytest.mark.parametrize("condition", [10.0, 1e2, 1e3, 1e4])
def test_single_precision(condition: float, method: str) -> None:
    """Within tolerance as seen in float64, or it says that rounding is reached."""
    A, b, damping = drawn(11, 300, condition)
    A = A.float()
    result = solve(Positive(A), b.float(), damping=damping, method=method)
    explicit = true_residual(A, result.x, b.float(), damping)
    assert result.x.dtype == torch.float32 and result.residual.dtype == F64
    floor = torch.finfo(torch.float32).eps * float(result.x.norm())
    assert abs(float(result.residual - explicit)) <= 0.01 * float(explicit) + 3 * floor
    if condition <= 1e2:
        assert result.converged and float(explicit) <= 1.2e-5 * float(b.norm())
    elif not result.converged:
        assert "rounding is reached" in result.note
        assert float(explicit) <= 100 * floor


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_recurrences_that_drift_are_replaced_by_true_residuals(method: str) -> None:
    """Products that are 3e-4 off in a way of their own: recurrences alone would say 1e-9 of what is 1e-4."""

    class Blurred(Positive):
        def product(self, V: Tensor) -> Tensor:
            AV = super().product(V)
            return AV + 3e-4 * AV.norm(dim=0) * torch.sin(1e3 * V / V.norm(dim=0))

    A, b, damping = drawn(2, 50, 20.0)
    operator = Blurred(A)
    operator.space.rounding = 1e-3
    result = solve(operator, b, damping=damping, rtol=0.02, method=method)
    assert result.converged and float(result.error) > 0
    assert float(true_residual(A, result.x, b, damping)) <= 0.02 * float(b.norm())
    tight = solve(operator, b, damping=damping, rtol=1e-3, method=method)
    assert not tight.converged and "rounding is reached" in tight.note and "1.0e-03" in tight.note
    explicit = true_residual(A, tight.x, b, damping)
    assert abs(float(tight.residual - explicit)) <= float(tight.error)


@pytest.mark.parametrize("options", [{"kernel": "finite_difference"}, {"precision": "bf16"}], ids=str)
@pytest.mark.parametrize("method", ["cg", "minres"])
def test_coarse_kernels_say_what_their_residuals_may_hide(method: str, options: dict) -> None:
    model, objective, H, g = digits()
    x, y = objective.batches[0].content
    single = Objective(copy.deepcopy(model).float(), (x.float(), y), criterion=nn.CrossEntropyLoss())
    operator = Hessian(single, **options)
    for rtol in (0.1, 0.01):
        result = solve(operator, -g.float(), damping=0.5, rtol=rtol, method=method)
        explicit = true_residual(H, result.x, -g, 0.5)
        assert result.converged and float(explicit) <= rtol * float(g.norm())
        assert abs(float(explicit - result.residual)) <= float(result.error)
        assert result.note == operator.note != ""
    with pytest.raises(SettingError, match=r"rtol must be in \[.*are known to that much"):
        solve(operator, -g.float(), damping=0.5, method=method)


@pytest.mark.parametrize("c", [2.0**-100, 1e-9, 3.0, 1e12])
def test_scaling_either_side_scales_the_solution(c: float) -> None:
    A, b, damping = drawn(5, 30, 1e3, indefinite=True)
    one = solve(A, b, damping=damping, rtol=1e-8)
    size = float(one.x.norm())
    right, left = solve(A, c * b, damping=damping, rtol=1e-8), solve(c * A, b, damping=c * damping, rtol=1e-8)
    assert max(abs(one.matvecs - other.matvecs) for other in (left, right)) <= (0 if c < 1e-20 else 3)
    torch.testing.assert_close(right.x, c * one.x, rtol=0, atol=1e-4 * c * size)
    torch.testing.assert_close(left.x, one.x / c, rtol=0, atol=1e-4 / c * size)
    assert right.negative_curvature.curvature == pytest.approx(one.negative_curvature.curvature, rel=1e-6)
    assert left.negative_curvature.curvature == pytest.approx(c * one.negative_curvature.curvature, rel=1e-6)


def test_tiny_right_hand_sides_in_single_precision() -> None:
    A, b, damping = drawn(5, 30, 10.0)
    tiny = 2.0**-100
    one, other = (solve(A.float(), c * b.float(), damping=damping) for c in (1.0, tiny))
    assert other.converged and torch.equal(other.x, tiny * one.x)
