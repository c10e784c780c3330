"""Axes from a combination of checkpoints: those of the points where it is exact, nearly so from sketches."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from losscope.landscape import Objective
from losscope.landscape.errors import ParameterError, SettingError
from losscope.landscape.surface import WeightSketch, trajectory_axes, trajectory_axes_from, weight_trajectory

T = 25


@pytest.fixture
def objective() -> Objective:
    return Objective(nn.Linear(40, 30), (torch.ones(2, 40), torch.ones(2, 30)), criterion=nn.MSELoss())


@pytest.fixture
def points(objective: Objective) -> Tensor:
    steps = torch.randn(T, objective.space.size, generator=torch.Generator().manual_seed(0))
    return 10 + steps.cumsum(dim=0)


class Files:
    """Checkpoints that are loaded one at a time."""

    def __init__(self, points: Tensor, folder: Path) -> None:
        self.paths = [folder / f"{i}.pt" for i in range(len(points))]
        for path, point in zip(self.paths, points, strict=True):
            torch.save({"state_dict": {"weight": point[:1200].view(30, 40), "bias": point[1200:]}}, path)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (torch.load(path) for path in self.paths)


def test_exact_combinations_give_the_axes_of_the_points(objective, points, tmp_path):
    expected = trajectory_axes(objective, points, k=3, about="mean")
    combination = weight_trajectory(points, components=3).combination
    for given in (points, list(points), Files(points, tmp_path)):
        found = trajectory_axes_from(objective, given, combination)
        for one, other in zip(found.axes, expected.axes, strict=True):
            assert torch.allclose(one.vector, other.vector, atol=1e-6) and one.name == other.name
        assert torch.allclose(found.coordinates, expected.coordinates, atol=1e-4)
        assert torch.allclose(found.explained, expected.explained, rtol=1e-8)


def test_from_sketches_axes_explain_nearly_as_much(objective, points):
    best = trajectory_axes(objective, points, about="mean").explained
    sketch = WeightSketch(objective.space.size, 300)
    rows = torch.stack([sketch(p) for p in points])
    axes, coordinates, explained = trajectory_axes_from(
        objective, points, weight_trajectory(rows, sketch=sketch).combination
    )
    V = torch.stack([a.vector for a in axes]).double()
    assert torch.allclose(V @ V.T, torch.eye(2).double(), atol=1e-6)
    assert torch.allclose(coordinates, (points - points[-1]).double() @ V.T, atol=1e-3)
    assert 0.95 * best.sum() < explained.sum() <= best.sum() * (1 + 1e-9)
    spread = (coordinates - coordinates.mean(dim=0)).square().sum(dim=0)
    total = (points - points.mean(dim=0)).double().square().sum()
    assert torch.allclose(explained, spread / total, rtol=1e-4)


def test_bad_input(objective, points):
    combination = weight_trajectory(points).combination
    with pytest.raises(SettingError, match="one checkpoint for each of the 25"):
        trajectory_axes_from(objective, points[1:], combination)
    with pytest.raises(SettingError, match="gone through twice"):
        trajectory_axes_from(objective, iter(points), combination)
    with pytest.raises(SettingError, match="add up to zero"):
        trajectory_axes_from(objective, points, combination + 1)
    with pytest.raises(SettingError, match="component 2 is made of no points"):
        trajectory_axes_from(objective, points[:2], weight_trajectory(points[:2]).combination)
    with pytest.raises(SettingError, match=r"\(T, k\)"):
        trajectory_axes_from(objective, points, combination[:, 0])
    with pytest.raises(ParameterError, match="point 0"):
        trajectory_axes_from(objective, points[:, 1:], combination)
