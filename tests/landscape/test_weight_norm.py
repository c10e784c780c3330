"""Torch's weight norm, whose fused kernel has a wrong second derivative."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.weight_norm import WeightNorm

from losscope.landscape import Hessian, Objective
from losscope.landscape.isolation import isolated


def _old(layer: nn.Module, dim: int | None) -> nn.Module:
    WeightNorm.apply(layer, "weight", -1 if dim is None else dim)
    return layer


def _new(layer: nn.Module, dim: int | None) -> nn.Module:
    return parametrizations.weight_norm(layer, dim=dim)


def _plain(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The Hessian in float64, from differences of the gradient: one derivative of the kernel is right."""
    parameters = list(model.parameters())
    start = [p.detach().clone() for p in parameters]
    size = sum(p.numel() for p in parameters)

    def gradient(shift: Tensor) -> Tensor:
        with torch.no_grad():
            for p, w, d in zip(parameters, start, shift.split([p.numel() for p in parameters]), strict=True):
                p.copy_(w + d.view_as(w))
        loss = (model(x) - y).square().mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    return torch.stack([(gradient(1e-5 * e) - gradient(-1e-5 * e)) / 2e-5 for e in torch.eye(size).double()])


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("wrap", [_old, _new])
def test_the_hessian_of_a_normed_layer_is_its_own(wrap: Callable[..., nn.Module], dim: int | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(wrap(nn.Linear(4, 3), dim), nn.Tanh(), nn.Linear(3, 2)).double()
    x, y = torch.randn(7, 4).double(), torch.randn(7, 2).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    H = Hessian(Objective(model, (x, y), criterion=nn.MSELoss()))
    H = H @ torch.eye(H.shape[0]).double()
    torch.testing.assert_close(H, _plain(model, x, y), rtol=1e-6, atol=1e-7)


def test_no_doubt_is_left_of_it() -> None:
    model = parametrizations.weight_norm(nn.Linear(4, 3))
    H = Hessian(Objective(model, (torch.randn(9, 4), torch.randn(9, 3)), criterion=nn.MSELoss()))
    _ = H @ torch.randn(H.shape[0])
    assert not H.note


def test_others_compute_with_torchs_kernel_meanwhile() -> None:
    """The two differ by rounding, and training on another thread must not."""
    model = parametrizations.weight_norm(nn.Linear(64, 64))
    x = torch.randn(3, 64)
    expected, found = model(x).detach(), []
    with isolated(model):
        thread = threading.Thread(target=lambda: found.append(model(x).detach()))
        thread.start()
        thread.join()
        with torch.no_grad():
            found.append(model(x))
    assert all(torch.equal(expected, one) for one in found)
