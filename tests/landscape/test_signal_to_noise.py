"""Both signal-to-noise ratios: against loops, and the interval's coverage."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losscope.landscape import DataError, LossError, Objective
from losscope.landscape.signal_to_noise import parameter_signal, tensor_signal

F64 = torch.float64


def linear(x: torch.Tensor, y: torch.Tensor) -> Objective:
    model = nn.Linear(x.shape[1], 1, bias=False).to(x.dtype)
    nn.init.zeros_(model.weight)
    return Objective(model, (x, y), criterion=lambda o, t: (o - t).square().mean() / 2)


def test_it_is_the_squared_mean_over_the_variance() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2).double(), torch.randn(12, 3, dtype=F64), torch.randint(2, (12,))
    rows = []
    for i in range(12):
        found = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]))
    g = torch.stack(rows)
    found = parameter_signal(Objective(model, (x, y), criterion=nn.CrossEntropyLoss()), memory=2000)
    assert torch.allclose(found.values, g.mean(0).square() / g.var(0), rtol=1e-9)
    assert found.means["bias"] == pytest.approx(float(found.values[6:].mean()))


def test_coverage() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted = torch.tensor([0.0, 0.01, 0.25], dtype=F64)  # of gradients -x y with y = 1, x normal
    covered = torch.zeros(3)
    for _ in range(300):
        x = torch.randn(200, 3, generator=generator, dtype=F64) + wanted.sqrt()
        found = parameter_signal(linear(x, torch.ones(200, 1, dtype=F64)))
        covered += (found.low <= wanted + 1e-12) & (wanted <= found.high)
    assert float(covered.min()) / 300 >= 0.92


def test_a_parameter_without_gradient_has_none() -> None:
    x = torch.stack([torch.zeros(9, dtype=F64), torch.arange(9, dtype=F64)], dim=1)
    found = parameter_signal(linear(x, torch.ones(9, 1, dtype=F64)))
    assert math.isnan(float(found.values[0]))
    assert math.isfinite(found.means["weight"])


def test_one_sample_shows_no_variance() -> None:
    with pytest.raises(DataError, match="spread over samples"):
        parameter_signal(linear(torch.ones(1, 2, dtype=F64), torch.ones(1, 1, dtype=F64)))


def test_samples_that_do_not_make_the_loss_are_refused() -> None:
    """A class's weight cancels in the mean over one sample, so that these gradients are those of another loss."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2), torch.randn(12, 3), torch.arange(12) % 2
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0]))
    with pytest.raises(LossError, match="do not average to the loss's gradient"):
        parameter_signal(Objective(model, (x, y), criterion=criterion))


def test_of_a_tensor_it_is_about_the_root_of_its_size() -> None:
    g = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    found = tensor_signal({"weight": g, "scale": torch.tensor([3.0])})
    assert found["weight"] == pytest.approx(float(g.norm() / (g.std() + 1e-8)), rel=1e-6)
    assert found["weight"] == pytest.approx(math.sqrt(2000), rel=0.02)
    assert found["scale"] == pytest.approx(3e8)
