"""Conjugate gradients step by step, against the method written out for one right-hand side."""

import pytest
import torch
from torch import Tensor

from losscope.landscape.conjugate_gradients import ConjugateGradients
from losscope.landscape.damped_system import DampedSystem
from losscope.landscape.operators import DenseOperator, Observed
from spectra import rotated

F64 = torch.float64


def written_out(B: Tensor, b: Tensor, steps: int) -> list[Tensor]:
    x, r = torch.zeros_like(b), b.clone()
    p, iterates = b.clone(), []
    for _ in range(steps):
        alpha = (r @ r) / (p @ B @ p)
        x, old = x + alpha * p, r
        r = r - alpha * (B @ p)
        p = r + (r @ r) / (old @ old) * p
        iterates.append(x)
    return iterates


@pytest.mark.parametrize("seed", range(5))
def test_iterates_are_those_of_the_textbook(seed: int) -> None:
    A = rotated(torch.linspace(0, 2, 25, dtype=F64), seed)
    R = torch.randn(3, 25, dtype=F64)
    B = A + 0.1 * torch.eye(25, dtype=F64)
    iteration = ConjugateGradients(DampedSystem(Observed(DenseOperator(A)), 0.1, None, 1000), R)
    expected = [written_out(B, r, 15) for r in R]
    for step in range(15):
        norms, stuck = iteration.step()
        assert not stuck.any()
        for j in range(3):
            torch.testing.assert_close(iteration.Z[j], expected[j][step], rtol=1e-8, atol=1e-9)
            residual = float((R[j] - B @ iteration.Z[j]).norm())
            assert norms[j] == pytest.approx(residual, rel=1e-6)


def test_with_a_diagonal_they_are_those_of_preconditioned_conjugate_gradients() -> None:
    A = rotated(torch.linspace(0, 2, 25, dtype=F64))
    D, b = 0.1 + torch.rand(25, dtype=F64), torch.randn(25, dtype=F64)
    B = A + 0.1 * torch.eye(25, dtype=F64)
    system = DampedSystem(Observed(DenseOperator(A)), 0.1, D, 1000)
    iteration = ConjugateGradients(system, system.inward(b[None]))
    x, r = torch.zeros_like(b), b.clone()
    z = r / D
    p = z.clone()
    for _ in range(10):
        alpha = (r @ z) / (p @ B @ p)
        x, old = x + alpha * p, r @ z
        r = r - alpha * (B @ p)
        z = r / D
        p = z + (r @ z) / old * p
        norms, _ = iteration.step()
        torch.testing.assert_close(system.inward(iteration.Z)[0], x, rtol=1e-8, atol=1e-10)
        assert norms[0] == pytest.approx(float(r.norm()), rel=1e-8)


def test_a_direction_that_bends_down_stops_one_system_and_not_the_other() -> None:
    A = torch.diag(torch.cat([torch.tensor([-1.0]), torch.linspace(1, 2, 9)])).to(F64)
    R = torch.ones(2, 10, dtype=F64)
    R[0, 0] = 0.0
    system = DampedSystem(Observed(DenseOperator(A)), 0.0, None, 1000)
    iteration = ConjugateGradients(system, R)
    stopped = []
    for _ in range(6):
        before = iteration.Z.clone()
        _, stuck = iteration.step()
        stopped.append(stuck.tolist())
        if stuck[1]:
            assert torch.equal(iteration.Z[1], before[1])  # it stays where it was
            break
    assert stopped[-1] == [False, True]
    p = system.found.direction
    assert float(p @ A @ p) == pytest.approx(system.found.curvature)
    assert system.found.curvature < 0
