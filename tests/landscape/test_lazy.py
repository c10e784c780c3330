"""Linearisation error against a dense Jacobian; the lazy regime by the scale of the outputs."""

import pytest
import torch
from torch import Tensor, nn

from losscope.landscape import Objective, SettingError, tangent_kernel
from losscope.landscape.tangent import kernel_distance, lazy_summary, linearisation_error, relative_change


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2)).double()
        return model, torch.randn(20, 4, dtype=torch.float64), torch.randint(2, (20,))


def bound(model: nn.Module, x: Tensor) -> Objective:
    batches = [(x[:12], torch.zeros(12)), (x[12:], torch.zeros(8))]
    return Objective(model, batches, criterion=lambda z, _: z.square().mean())


def move(model: nn.Module, length: float) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += length * torch.randn(p.shape, generator=generator, dtype=p.dtype)


def test_against_a_dense_jacobian() -> None:
    model, x, _ = problem()
    objective = bound(model, x)
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    f_0 = model(x).detach().reshape(-1)
    parameters = list(model.parameters())
    rows = [torch.autograd.grad(f, parameters, retain_graph=True) for f in model(x).reshape(-1)]
    J = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    move(model, 0.3)
    now = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    f = model(x).detach().reshape(-1)
    expected = float((f - f_0 - J @ (now - start)).norm() / (f - f_0).norm())
    assert linearisation_error(objective, start) == pytest.approx(expected, rel=1e-10)
    assert 0.05 < expected < 2
    torch.testing.assert_close(torch.nn.utils.parameters_to_vector(model.parameters()).detach(), now, rtol=0, atol=0)


def test_the_error_is_of_first_order_in_the_step() -> None:
    errors = []
    for length in (1e-2, 1e-3):
        model, x, _ = problem()
        start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        move(model, length)
        errors.append(linearisation_error(bound(model, x), start))
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)


def test_the_summary_is_made_of_its_parts() -> None:
    model, x, y = problem()
    objective = bound(model, x)
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    before = tangent_kernel(objective)
    move(model, 0.2)
    after = tangent_kernel(objective)
    found = lazy_summary(objective, start, before, after, targets=y)
    now = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    assert found.parameters == pytest.approx(float((now - start).norm() / start.norm()))
    assert (found.distance, found.change) == (kernel_distance(before, after), relative_change(before, after))
    assert found.centred == kernel_distance(before, after, centred=True)
    assert found.linearisation == linearisation_error(objective, start)
    assert found.alignment is not None and found.alignment_start is not None
    assert lazy_summary(objective, start, before, after).alignment is None


def test_bad_input() -> None:
    model, x, _ = problem()
    objective = bound(model, x)
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    with pytest.raises(SettingError, match="those of the start"):
        linearisation_error(objective, start)
    with pytest.raises(SettingError, match=r"one vector \(114,\), got \(3,\)"):
        linearisation_error(objective, torch.zeros(3))
