"""Axes that can span a slice, and those that cannot."""

import pytest
import torch
from torch import nn

from losscope.landscape import Objective
from losscope.landscape.errors import NonFiniteError, ParameterError, SettingError
from losscope.landscape.surface import Axis, checked_axes, orthogonalised

N = 12


@pytest.fixture
def objective() -> Objective:
    return Objective(nn.Linear(3, 4, bias=False), (torch.eye(3), torch.ones(3, 4)), criterion=nn.MSELoss())


def test_axes_take_the_dtype_of_the_parameters(objective):
    given = [Axis(torch.randn(N, dtype=torch.float64), "a", "noted"), Axis(torch.randn(N), "b")]
    checked = checked_axes(objective, given)
    assert [(a.name, a.note, a.vector.dtype) for a in checked] == [
        ("a", "noted", torch.float32), ("b", "", torch.float32)
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("angle", [1e-7, 1e-4])
def test_parallel_within_rounding_only(objective, angle, size):
    d, e = torch.linalg.qr(torch.randn(N, 2, dtype=torch.float64)).Q.T
    axes = [Axis(d, "one"), Axis(-size * (d + angle * e), "other")]
    if angle > 1e-5:
        checked_axes(objective, axes)
    else:
        with pytest.raises(SettingError, match="one and other are parallel"):
            checked_axes(objective, axes)
        with pytest.raises(SettingError, match="one and other are parallel"):
            orthogonalised(axes)


def test_dependent_on_two_others(objective):
    a, b = torch.randn(2, N)
    with pytest.raises(SettingError, match="a and b and c are parallel: they span no slice"):
        checked_axes(objective, [Axis(a, "a"), Axis(b, "b"), Axis(2 * a - b, "c")])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthogonalised(dtype):
    V = torch.randn(50, 4, dtype=dtype)
    V[:, 1] = V[:, 0] + 1e-3 * V[:, 1]  # nearly parallel: once is not enough
    axes = [Axis(v, f"d{i}") for i, v in enumerate(V.T)]
    turned = orthogonalised(axes)
    D = torch.stack([a.vector.double() for a in turned])
    gram = D @ D.T
    lengths = gram.diagonal().sqrt()
    assert (gram / lengths / lengths[:, None] - torch.eye(4)).abs().max() < 10 * torch.finfo(dtype).eps
    torch.testing.assert_close(lengths.to(dtype), V.norm(dim=0))
    assert turned[0] is axes[0]
    # Each in the span of itself and those before it, on its own side.
    Q, R = torch.linalg.qr(V.double())
    expected = Q * R.diagonal().sign() * lengths
    torch.testing.assert_close(D.T, expected, rtol=0, atol=1e-11 if dtype == torch.float64 else 1e-4)


def test_bad_input(objective):
    good = Axis(torch.randn(N), "good")
    for axes, error, match in [
        ([], SettingError, "at least one axis"),
        ([good.vector], SettingError, "got Tensor: wrap a vector"),
        ([good, Axis(torch.zeros(N), "nothing")], SettingError, "nothing is zero"),
        ([Axis(torch.ones(3), "short")], ParameterError, r"short has shape \(3,\).*\(12,\)"),
        ([Axis(torch.full((N,), torch.inf), "far")], NonFiniteError, "far is NaN or infinite"),
    ]:
        with pytest.raises(error, match=match):
            checked_axes(objective, axes)
    with pytest.raises(SettingError, match="a direction is zero"):
        orthogonalised([good, Axis(torch.zeros(N))])
