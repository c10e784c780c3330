"""The parts of the squared loss that neural collapse names."""

import pytest
import torch
from torch.nn import functional as F

from collapse_cases import problem
from losscope.landscape import neural_collapse
from losscope.landscape.collapse_loss import squared_loss_parts

F64 = torch.float64


def test_the_parts_of_the_squared_loss_add_up() -> None:
    for seed in range(3):
        H, y, W, b = problem(seed, 80, 6, 4)
        for bias, ridge in ((b, 0.0), (b, 0.3), (None, 0.0), (None, 0.3)):
            parts = neural_collapse(H, y, weight=W, bias=bias, ridge=ridge).squared_loss
            assert parts is not None
            outputs = H @ W.T + (0 if bias is None else bias)
            loss = 0.5 * (outputs - F.one_hot(y, 4)).square().sum(dim=1).mean()
            loss += ridge / 2 * (W.square().sum() + (0 if bias is None else b.square().sum()))
            assert parts.total == pytest.approx(float(loss), rel=1e-10)
            assert min(parts.nc1, parts.nc23, parts.perpendicular) >= 0


def test_the_squared_loss_of_balanced_classes_is_han_papyan_and_donohos() -> None:
    """Their closed form of the least-squares classifier, with the features' columns as in their notebook."""
    C, d, wd = 4, 6, 0.05
    H, _, W, b = problem(5, 80, d, C)
    y = torch.arange(80) % C
    found = neural_collapse(H, y, weight=W, bias=b, ridge=wd)
    M = found.means.T
    mu = M.mean(dim=1, keepdim=True)
    Sw = sum(torch.outer(h, h) for h in H - found.means[y]) / len(H)
    St = Sw + (M - mu) @ (M - mu).T / C
    eye = torch.eye(d, dtype=F64)
    best = (M.T - mu.T / (1 + wd)) @ torch.linalg.inv(St + wd / (wd + 1) * mu @ mu.T + wd * eye) / C
    at_zero = (1 / C - best @ mu[:, 0]) / (1 + wd)
    assert found.squared_loss is not None
    nc1 = 0.5 * ((best @ (Sw + wd * eye) @ best.T).trace() + wd * at_zero.norm() ** 2)
    nc23 = 0.5 / C * (best @ M + at_zero[:, None] - torch.eye(C, dtype=F64)).norm() ** 2
    assert found.squared_loss.nc1 == pytest.approx(float(nc1), rel=1e-9)
    assert found.squared_loss.nc23 == pytest.approx(float(nc23), rel=1e-9)


def test_features_of_many_entries_need_no_matrix_of_their_size() -> None:
    H, y, _, _ = problem(10, 30, 6, 3)
    wide = F.pad(H, (0, 40_000))  # (40006, 40006) would be 12 GiB
    found, expected = neural_collapse(wide, y).numbers, neural_collapse(H, y).numbers
    assert found == pytest.approx(expected, nan_ok=True)


def test_on_the_central_path_nothing_is_perpendicular() -> None:
    H, y, _, _ = problem(6, 50, 3, 4)
    extended = torch.cat((H, torch.ones(50, 1, dtype=F64)), dim=1)
    best = torch.linalg.lstsq(extended, F.one_hot(y, 4).to(F64)).solution.T
    parts = neural_collapse(H, y, weight=best[:, :3], bias=best[:, 3], ridge=0).squared_loss
    assert parts is not None
    assert parts.perpendicular == pytest.approx(0, abs=1e-12)
    assert parts.total > 0


# --------------------------------------------------------------------------- many samples


def test_parts_of_the_loss_by_hand() -> None:
    """Means at the corners, W = I / 2: least squares fits exactly, and W is off by I / 2 for each."""
    eye = torch.eye(2, dtype=F64)
    parts = squared_loss_parts(eye, 0 * eye, torch.ones(2), eye / 2)
    assert (parts.nc1, parts.nc23, parts.perpendicular) == pytest.approx((0, 0, 0.125), abs=1e-12)
