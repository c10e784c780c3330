"""Principal components of trajectories against dense decompositions and scikit-learn."""

import copy

import pytest
import torch
from torch import Tensor, nn

from losscope.landscape import Objective
from losscope.landscape.errors import NonFiniteError, ParameterError, SettingError
from losscope.landscape.surface import between, random_direction, trajectory_axes


def trained(dtype=torch.float32, steps: int = 20) -> tuple[Objective, list[dict[str, Tensor]]]:
    """A small convolutional net, and its state dicts along training."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).to(dtype)
    x, y = torch.randn(40, 1, 6, 6, dtype=dtype), torch.randint(0, 3, (40,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    states = []
    for _ in range(steps):
        states.append(copy.deepcopy(model.state_dict()))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    states.append(copy.deepcopy(model.state_dict()))
    return Objective(model, (x, y), criterion=nn.CrossEntropyLoss()), states


def rows(objective: Objective, states: list[dict[str, Tensor]]) -> Tensor:
    """(T, n) float64."""
    return torch.stack([torch.cat([s[name].reshape(-1) for name in objective.space.names]) for s in states]).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_closest_plane_through_the_last_point(dtype):
    objective, states = trained(dtype)
    X = rows(objective, states)
    X = X - X[-1]
    _, s, Vh = torch.linalg.svd(X, full_matrices=False)
    axes, coordinates, explained = trajectory_axes(objective, states, 3)
    D = torch.stack([a.vector.double() for a in axes])
    rounding = 1e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(explained, s[:3] ** 2 / (s**2).sum(), rtol=1e-10, atol=0)
    torch.testing.assert_close((D @ Vh[:3].T).abs(), torch.eye(3, dtype=torch.float64), rtol=0, atol=rounding)
    torch.testing.assert_close(D @ D.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=rounding)
    torch.testing.assert_close(coordinates, X @ D.T, rtol=0, atol=3 * rounding * float(X.norm()))
    assert not coordinates[-1].any()
    assert not coordinates[-1].signbit().any()
    assert (coordinates[0] >= 0).all()
    assert [a.name for a in axes] == [f"trajectory, component {i}" for i in (1, 2, 3)]
    # No other plane through the last point is closer.
    left = float((X - coordinates @ D).square().sum())
    for seed in range(5):
        other = random_direction(objective, None, seed=seed).vector.double()
        Q = torch.linalg.qr(torch.stack([*D[:2], D[2] + 0.05 * other]).T).Q
        assert float((X - X @ Q @ Q.T).square().sum()) > left


def test_about_the_mean_as_published():
    sklearn = pytest.importorskip("sklearn.decomposition")
    objective, states = trained(torch.float64)
    X = rows(objective, states)
    reference = sklearn.PCA(n_components=2).fit(X.numpy())
    axes, coordinates, explained = trajectory_axes(objective, states, about="mean")
    torch.testing.assert_close(explained, torch.tensor(reference.explained_variance_ratio_), rtol=1e-9, atol=0)
    for axis, v in zip(axes, torch.tensor(reference.components_), strict=True):
        assert abs(float(axis.vector @ v)) == pytest.approx(1, abs=1e-10)
    D = torch.stack([a.vector for a in axes])
    torch.testing.assert_close(coordinates, (X - X[-1]) @ D.T, rtol=0, atol=1e-10)


class Files:
    """Checkpoints that are loaded when they are gone through."""

    def __init__(self, folder, states):
        self.paths, self.loaded = [], 0
        for i, state in enumerate(states):
            self.paths.append(folder / f"{i}.pt")
            torch.save({"model_state_dict": state, "step": i}, self.paths[-1])

    def __iter__(self):
        for path in self.paths:
            self.loaded += 1
            yield torch.load(path)


def test_points_in_every_form_and_in_pieces(tmp_path):
    objective, states = trained(torch.float64)
    X = rows(objective, states)
    expected = trajectory_axes(objective, states)
    files = Files(tmp_path, states)
    modules = [copy.deepcopy(objective.model) for _ in states]
    for module, state in zip(modules, states, strict=True):
        module.load_state_dict(state)
    for points, memory in [
        (files, 1 << 30), (files, 8 * len(states) * 50), (list(X), 1000), (X, 1), (iter(states), 1 << 30),
        ((state for state in states), 3000), ([*modules[:-1], None], 1 << 30),
    ]:  # fmt: skip
        found = trajectory_axes(objective, points, memory=memory)
        torch.testing.assert_close(found.coordinates, expected.coordinates, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.explained, expected.explained, rtol=1e-12, atol=0)
        for axis, other in zip(found.axes, expected.axes, strict=True):
            torch.testing.assert_close(axis.vector, other.vector, rtol=0, atol=1e-10)
    n, T = X.shape[1], len(states)
    assert files.loaded == T * (3 + 2 + -(-n // 50))


def test_a_generator_of_the_live_model_gives_copies():
    objective, states = trained(torch.float64, steps=6)
    expected = trajectory_axes(objective, states)

    def live():
        for state in states:
            objective.model.load_state_dict(state)
            yield objective.model

    found = trajectory_axes(objective, live())
    torch.testing.assert_close(found.coordinates, expected.coordinates)


def test_small_late_differences_are_not_lost():
    """Points a millionth apart, far from where they began, in single precision."""
    objective, states = trained(torch.float32, steps=1)
    theta = rows(objective, states)[-1]
    a, b = (random_direction(objective, None, seed=s).vector.double() for s in (0, 1))
    points = [theta + x * a + y * b for x, y in ((3e-4, 0), (2e-4, 1e-4), (1e-4, -1e-4), (0, 0))]
    X = torch.stack([p.float().double() for p in points])
    s = torch.linalg.svdvals(X - X[-1])
    found = trajectory_axes(objective, points)
    torch.testing.assert_close(found.explained, (s**2 / (s**2).sum())[:2], rtol=1e-9, atol=0)


def test_two_components_that_differ_by_five_orders():
    objective, states = trained(torch.float64, steps=1)
    theta = rows(objective, states)[-1]
    a, b = torch.linalg.qr(torch.randn(len(theta), 2, dtype=torch.float64)).Q.T
    points = [theta + x * a + 1e-5 * y * b for x, y in ((3.0, 1.0), (2.0, -1.0), (1.0, 1.0), (0.0, 0.0))]
    axes = trajectory_axes(objective, points).axes
    gram = torch.stack([x.vector for x in axes]) @ torch.stack([x.vector for x in axes]).T
    torch.testing.assert_close(gram, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-6)
    assert abs(float(axes[1].vector @ b)) == pytest.approx(1, abs=1e-4)


def test_bad_input():
    objective, states = trained(torch.float64, steps=3)
    with pytest.raises(SettingError, match="2 points span fewer than 2 directions: give at least 3"):
        trajectory_axes(objective, states[:2])
    with pytest.raises(SettingError, match="0 points span fewer"):
        trajectory_axes(objective, [])
    step = between(objective, states[0], states[1]).vector
    with pytest.raises(SettingError, match="points span 1 directions, and k is 2: they are the same, or on one line"):
        trajectory_axes(objective, [c * step for c in (0.0, 1.0, 2.0)])
    with pytest.raises(SettingError, match="span 0 directions"):
        trajectory_axes(objective, [states[0]] * 4)
    with pytest.raises(SettingError, match='about must be "last" or "mean", got \'first\''):
        trajectory_axes(objective, states, about="first")
    with pytest.raises(SettingError, match="k must be an integer of at least 1, got 0"):
        trajectory_axes(objective, states, 0)
    other = {**states[1], "4.weight": torch.ones(3, 65)}
    with pytest.raises(ParameterError, match=r"point 1 is of another architecture: 4\.weight has shape \(3, 65\)"):
        trajectory_axes(objective, [states[0], other, states[2]])
    broken = {**states[1], "4.weight": torch.full((3, 64), torch.nan)}
    with pytest.raises(NonFiniteError, match="point 1 of the trajectory is NaN or infinite"):
        trajectory_axes(objective, [states[0], broken, states[2]])

    with pytest.raises(SettingError, match="points must be several, in a list or another iterable, got Sequential"):
        trajectory_axes(objective, objective.model)

    class Growing(list):
        def __iter__(self):
            self.append(states[2])
            return super().__iter__()

    with pytest.raises(SettingError, match=r"points gave \d points at first and \d later"):
        trajectory_axes(objective, Growing(states[:2]), 1)
