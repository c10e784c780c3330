"""Trajectories against a singular value decomposition, by sketches of a tenth against whole points, and coverage."""

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digits_nets import digits
from losscope.landscape.errors import NonFiniteError, SettingError
from losscope.landscape.surface import WeightSketch, WeightTrajectory, weight_trajectory

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}


def network(kind: str) -> nn.Module:
    if kind == "mlp":
        return nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 10))
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


@functools.cache
def trained(kind: str, optimizer: str, seed: int, batch: int = 64, steps: int = 240, every: int = 5) -> Tensor:
    """Weights of every few steps of a training on 500 digits, (T, n)."""
    x, y = digits(500)
    x = x.float()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, points = network(kind), []
        moved = OPTIMIZERS[optimizer](model.parameters())
        for step in range(steps):
            if step % every == 0:
                points.append(torch.cat([p.detach().flatten() for p in model.parameters()]).double())
            chosen = torch.randint(len(x), (batch,)) if batch else slice(None)
            moved.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            moved.step()
    return torch.stack(points)


def walk(count: int, n: int = 4000, seed: int = 0) -> Tensor:
    return torch.randn(count, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).cumsum(dim=0)


def measured(points: Tensor) -> dict[tuple[int, int], float]:
    """What a probe with two copies of the weights knows: distances from the start, and from one to the next."""
    found = {(0, t): float((points[t] - points[0]).norm()) for t in range(1, len(points))}
    return found | {(t, t + 1): float((points[t + 1] - points[t]).norm()) for t in range(len(points) - 1)}


def sketched(points: Tensor, dimension: int, seed: int, known: bool = True) -> WeightTrajectory:
    sketch = WeightSketch(points.shape[1], dimension, seed)
    rows = torch.stack([sketch(point) for point in points])
    return weight_trajectory(rows, sketch=sketch, known=measured(points) if known else None)


# --------------------------------------------------------------------------- whole points


def test_whole_points_against_a_singular_value_decomposition():
    points = 100 + walk(12, 300)
    found = weight_trajectory(points, components=3)
    centred = points - points.mean(dim=0)
    U, S, V = torch.linalg.svd(centred, full_matrices=False)
    assert torch.allclose(found.explained, (S.square() / S.square().sum())[:3], rtol=1e-10)
    sign = torch.sign(U[-1, :3])
    assert torch.allclose(found.coordinates, U[:, :3] * S[:3] * sign, atol=1e-8)
    axes = found.combination.T @ points
    assert torch.allclose(axes, V[:3] * sign[:, None], atol=1e-9)
    steps = points.diff(dim=0)
    assert torch.allclose(found.distances, (points - points[0]).norm(dim=1), rtol=1e-10)
    assert torch.allclose(found.lengths[1:], steps.norm(dim=1).cumsum(0), rtol=1e-10)
    assert torch.allclose(found.cosines, F.cosine_similarity(steps[:-1], steps[1:]), atol=1e-10)
    for name in ("coordinate", "explained", "distance", "length", "cosine"):
        assert not getattr(found, f"{name}_errors").any(), name
    assert found.exact and found.steps.tolist() == list(range(12))


def test_small_steps_from_large_weights_in_single_precision():
    points = torch.full((5, 1000), 1e3)
    points[:, 0] += torch.arange(5) / 1024
    found = weight_trajectory(points)
    assert torch.allclose(found.distances, torch.arange(5).double() / 1024, rtol=1e-12)
    assert torch.allclose(found.explained, torch.tensor([1.0, 0.0]).double())
    assert torch.allclose(found.cosines, torch.ones(3).double())


def test_few_points_and_points_that_stay():
    one = weight_trajectory(torch.ones(1, 4))
    assert one.explained.isnan().all() and one.distances.tolist() == [0.0] and len(one.cosines) == 0
    still = weight_trajectory(torch.ones(4, 4))
    assert still.explained.isnan().all() and still.lengths.tolist() == [0.0] * 4 and still.cosines.isnan().all()
    back = weight_trajectory([torch.zeros(2), torch.ones(2), torch.ones(2), torch.zeros(2)], steps=[0, 5, 7, 9])
    assert back.cosines.isnan().tolist() == [True, True] and back.distances[-1] == 0
    two = weight_trajectory(torch.eye(2), components=3)
    assert two.explained.tolist() == [1.0, 0.0, 0.0] and two.coordinates.shape == (2, 3)
    assert not two.combination[:, 1:].any()
    sketch = WeightSketch(100, 10)
    rows = torch.stack([sketch(torch.ones(100))] * 3)
    assert sketched(torch.ones(3, 100), 10, 0).lengths.tolist() == [0.0] * 3
    assert weight_trajectory(rows, sketch=sketch).explained.isnan().all()


# --------------------------------------------------------------------------- sketches


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("kind", "seed"), [("mlp", 0), ("mlp", 1), ("conv", 0)])
def test_explained_variance_from_a_tenth_of_the_parameters(kind, seed, optimizer):
    """Within 2 % of the whole variance, and what the plane explains within 2 % of itself; most are within 0.5 %."""
    points = trained(kind, optimizer, seed)
    exact = weight_trajectory(points).explained
    for sketch_seed in range(3):
        found = sketched(points, points.shape[1] // 10, sketch_seed).explained
        assert (found - exact).abs().max() < 0.012
        assert abs(found[0] / exact[0] - 1) < 0.02
        assert abs(found.sum() / exact.sum() - 1) < 0.01


def test_known_distances_make_it_several_times_as_accurate():
    points = trained("mlp", "adam", 0, batch=0)
    exact = weight_trajectory(points).explained
    errors = {
        known: torch.stack([sketched(points, 630, seed, known).explained - exact for seed in range(20)])
        for known in (False, True)
    }
    plain, corrected = (errors[known].square().mean(dim=0).sqrt() for known in (False, True))
    assert (corrected < plain / 3).all()
    found = sketched(points, 630, 0)
    from_start = torch.tensor([measured(points)[0, t] for t in range(1, len(points))], dtype=torch.float64)
    assert torch.equal(found.distances[1:], from_start)
    assert not found.distance_errors.any() and not found.length_errors.any()


NAMES = ("coordinate", "explained", "distance", "length", "cosine")


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("case", ["mlp", "conv", "walk", "uneven", "noise"])
def test_errors_cover(case, known):
    """Two standard errors hold the truth about as often as they say, over seeds of the sketch."""
    points = {
        "mlp": lambda: trained("mlp", "sgd", 0),
        "conv": lambda: trained("conv", "adamw", 0),
        "walk": lambda: walk(60),
        "uneven": lambda: walk(40) * torch.rand(4000, generator=torch.Generator().manual_seed(1)).double() ** -0.5,
        "noise": lambda: walk(30).diff(dim=0),  # all variances nearly the same, which no sketch resolves
    }[case]()
    exact, covered = weight_trajectory(points), {name: [] for name in NAMES}
    for seed in range(30):
        found = sketched(points, 400, seed, known)
        for name in NAMES:
            plural = name if name == "explained" else f"{name}s"
            value, truth, error = getattr(found, plural), getattr(exact, plural), getattr(found, f"{name}_errors")
            if name == "coordinate":
                value = value * torch.where((value * truth).sum(dim=0) < 0, -1.0, 1.0)
            within = (value - truth).abs() <= 2 * error + 1e-9 * truth.abs()
            covered[name].append(within.double().mean())
    for name, shares in covered.items():
        assert torch.stack(shares).mean() > 0.85, name


def test_a_sketch_as_long_as_the_points_is_exact():
    points = walk(9, 50)
    found, exact = sketched(points, 64, 0), weight_trajectory(points)
    assert torch.allclose(found.coordinates, exact.coordinates, atol=1e-9)
    assert not found.coordinate_errors.any() and found.exact


def test_more_known_distances_than_the_sketch_can_fit_are_thinned():
    points = walk(150, 2000)
    exact = weight_trajectory(points)
    found = sketched(points, 100, 0)
    assert torch.allclose(found.lengths, exact.lengths, rtol=1e-12)
    assert (found.explained - exact.explained).abs().max() < 3 * found.explained_errors.max()


# --------------------------------------------------------------------------- what makes no sense


def test_bad_input():
    points = walk(4, 10)
    sketch = WeightSketch(20, 10)
    with pytest.raises(SettingError, match="one length"):
        weight_trajectory([torch.ones(2), torch.ones(3)])
    with pytest.raises(SettingError, match="one length"):
        weight_trajectory(torch.ones(0, 3))
    with pytest.raises(SettingError, match="vectors of 5 numbers"):
        weight_trajectory(points, sketch=WeightSketch(20, 5))
    with pytest.raises(SettingError, match="4 ascending"):
        weight_trajectory(points, steps=[0, 2, 1, 3])
    with pytest.raises(SettingError, match="components"):
        weight_trajectory(points, components=0)
    with pytest.raises(SettingError, match="two of the 4 points"):
        weight_trajectory(points, sketch=sketch, known={(0, 4): 1.0})
    with pytest.raises(SettingError, match="must be >= 0"):
        weight_trajectory(points, sketch=sketch, known={(0, 1): -1.0})
    points[2, 3] = torch.nan
    with pytest.raises(NonFiniteError, match="point 2"):
        weight_trajectory(points)
