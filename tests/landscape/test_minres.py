"""MINRES step by step: against least squares in the Krylov space, and the identities its reports rest on."""

import numpy as np
import pytest
import torch
from torch import Tensor

from losscope.landscape.damped_system import DampedSystem
from losscope.landscape.minres import Minres
from losscope.landscape.operators import DenseOperator, Observed
from spectra import rotated

F64 = torch.float64


def setting(seed: int, n: int = 20) -> tuple[Tensor, Tensor, Minres]:
    """An indefinite B (n, n), two right-hand sides as rows, and the iteration on them."""
    generator = torch.Generator().manual_seed(seed)
    A = rotated(torch.linspace(-1, 2, n, dtype=F64), seed)
    R = torch.randn(2, n, generator=generator, dtype=F64)
    system = DampedSystem(Observed(DenseOperator(A)), 0.2, None, 1000)
    return A + 0.2 * torch.eye(n, dtype=F64), R, Minres(system, R)


@pytest.mark.parametrize("seed", range(5))
def test_every_iterate_has_the_least_residual_of_the_krylov_space(seed: int) -> None:
    B, R, iteration = setting(seed)
    krylov = [R]
    for _ in range(12):
        norms, stuck = iteration.step()
        for j in range(2):
            K = torch.linalg.qr(torch.stack([v[j] for v in krylov], dim=1))[0]
            best = K @ torch.linalg.lstsq(B @ K, R[j][:, None]).solution[:, 0]
            torch.testing.assert_close(iteration.Z[j], best, rtol=1e-6, atol=1e-6)
            residual = R[j] - B @ best
            torch.testing.assert_close(iteration.R[j], residual, rtol=1e-6, atol=1e-7)
            assert norms[j] == pytest.approx(float(residual.norm()), rel=1e-6)
        torch.testing.assert_close(iteration.phi, iteration.R.norm(dim=1), rtol=1e-8, atol=0)
        assert not stuck.any()
        krylov.append(krylov[-1] @ B / (krylov[-1] @ B).norm(dim=1, keepdim=True))


@pytest.mark.parametrize("seed", range(5))
def test_curvature_along_residuals_is_known_without_a_product(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """r'Br / r'r = -c gamma (Liu and Roosta 2022)."""
    B, _, iteration = setting(seed)
    quotients: list[Tensor] = []
    extend = Minres._extend

    def kept(self: Minres, Q: Tensor) -> tuple[Tensor, Tensor]:
        found = extend(self, Q)
        quotients.append(found[0])
        return found

    monkeypatch.setattr(Minres, "_extend", kept)
    for _ in range(12):
        R = iteration.R.clone()
        iteration.step()
        expected = ((R @ B) * R).sum(1) / R.square().sum(1)
        torch.testing.assert_close(quotients[-1], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_a_residual_bends_down_as_soon_as_the_krylov_space_does(seed: int) -> None:
    """Theorem 3.3 of Liu and Roosta: no earlier and no later."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.cat([torch.tensor([-0.1]), torch.linspace(0.01, 1, 29)]).double()
    A, r = rotated(values, seed), torch.randn(1, 30, generator=generator, dtype=F64)
    system = DampedSystem(Observed(DenseOperator(A)), 0.0, None, 1000)
    iteration = Minres(system, r)
    columns: list[Tensor] = []
    w = r[0]
    for _ in range(25):
        for _ in range(2):
            for q in columns:
                w = w - (q @ w) * q
        columns.append(w / w.norm())
        w = A @ columns[-1]
        Q = torch.stack(columns, dim=1)
        least = float(torch.linalg.eigvalsh(Q.T @ A @ Q)[0])
        iteration.step()
        assert (system.found is not None) == (least < 0)
    assert system.found is not None


def test_a_restart_of_some_goes_on_as_before() -> None:
    _, R, both = setting(3)
    _, _, one = setting(3)
    for _ in range(3):
        both.step()
        one.step()
    one.keep(torch.tensor([False, True]).numpy())
    for _ in range(3):
        both.step()
        one.step()
    torch.testing.assert_close(one.Z[0], both.Z[1], rtol=1e-12, atol=1e-12)
    assert one.R.shape == (1, R.shape[1])


def test_rounding_that_looks_like_negative_curvature_costs_one_product() -> None:
    system = DampedSystem(Observed(DenseOperator(torch.eye(8, dtype=F64))), 0.0, None, 1000)
    iteration = Minres(system, torch.randn(2, 8, dtype=F64))
    iteration._look(iteration.R, np.array([1.0, -1e-3]), np.zeros(2))
    assert system.operator.matvecs == 1 and system.found is None
    iteration._look(iteration.R, np.array([1.0, -1e-3]), iteration._wanted.numpy())
    assert system.operator.matvecs == 1  # not again, unless it is twice as much
    iteration._look(iteration.R, np.array([1.0, -3e-3]), iteration._wanted.numpy())
    assert system.operator.matvecs == 2
