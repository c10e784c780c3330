"""The quadratic model of a slice: dense Hessians, functions of known radius, kinks, rounding."""

import math

import pytest
import torch
from torch import Tensor, nn

from losscope.landscape import Hessian, Objective
from losscope.landscape.errors import NonFiniteError, ParameterError, SettingError
from losscope.landscape.surface import (
    Axis,
    eigenvector_directions,
    gradient_direction,
    line,
    orthogonalised,
    plane,
    quadratic_model,
    random_direction,
)
from losscope.landscape.surface.radius_search import RTOL


def function(f, theta, dtype=torch.float64) -> Objective:
    """The objective f(theta) of a vector."""
    model = nn.Linear(len(theta), 1, bias=False).to(dtype)
    model.weight.data[0] = torch.tensor(theta, dtype=dtype)
    return Objective(model, [torch.ones(1, 1)], loss_fn=lambda m, batch: f(m.weight[0]))


def assert_radius(found: float, exact: float, rel: float = 1e-6) -> None:
    assert exact / (1 + RTOL) * (1 - rel) <= found <= exact * (1 + rel)


E1, E2 = (Axis(e, name) for e, name in zip(torch.eye(2, dtype=torch.float64), ("first", "second"), strict=True))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0][:, -1])


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, activation="gelu", batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.block(self.embedding(tokens)).mean(dim=1))


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 16), nn.Tanh(), nn.Linear(16, 5))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(64, 5)
    )


MODELS = {"dense": dense, "convolutional": convolutional, "recurrent": Recurrent, "attending": Attending}


def objective_of(name: str, dtype=torch.float64, steps: int = 30, seed: int = 0) -> Objective:
    torch.manual_seed(seed)
    model = MODELS[name]().to(dtype)
    images = name in ("dense", "convolutional")
    x = torch.randn(48, 3, 8, 8).to(dtype) if images else torch.randint(0, 11, (48, 7))
    y = torch.randint(0, 5, (48,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    batches = [(x[:32], y[:32]), (x[32:], y[32:])]
    return Objective(model, batches, criterion=nn.CrossEntropyLoss())


@pytest.mark.parametrize("steps", [0, 30])
@pytest.mark.parametrize("name", MODELS)
def test_second_differences_are_the_curvature_in_double_precision(name, steps):
    objective = objective_of(name, steps=steps)
    generator = torch.Generator().manual_seed(1)
    axes = [
        random_direction(objective, seed=generator), random_direction(objective, "layer", seed=generator),
        gradient_direction(objective), eigenvector_directions(objective, 1, seed=0)[0],
    ]  # fmt: skip
    before = {k: v.clone() for k, v in objective.model.state_dict().items()}
    stream = torch.get_rng_state()
    found = quadratic_model(objective, axes)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(v, before[k]) for k, v in objective.model.state_dict().items())
    exact = found.curvatures.diagonal()
    torch.testing.assert_close(found.second_differences, exact, rtol=1e-3, atol=0)
    assert ((found.second_differences - exact).abs() <= 5 * found.difference_errors + 1e-9 * exact.abs()).all()
    assert found.note == ""
    assert found.value == objective.value()
    assert 0 < found.radius < math.inf
    H = Hessian(objective)
    D = torch.stack([a.vector for a in axes])
    torch.testing.assert_close(found.curvatures, D @ (H @ D.T.contiguous()), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.slopes, D @ objective.gradient())


def test_curvatures_against_the_dense_hessian():
    objective = objective_of("dense")
    model, batches = objective.model, objective.batches
    names = objective.space.names

    def loss(theta):
        values = dict(zip(names, objective.space.unflatten(theta), strict=True))
        parts = [
            nn.functional.cross_entropy(torch.func.functional_call(model, values, b.content[0]), b.content[1])
            for b in batches
        ]
        return (32 * parts[0] + 16 * parts[1]) / 48

    theta = objective.space.flatten([p.detach() for p in objective.parameters.values()])
    axes = [random_direction(objective, seed=s) for s in (0, 1)]
    d, e = (a.vector for a in axes)
    bend = torch.func.hessian(lambda c: loss(theta + c[0] * d + c[1] * e))(torch.zeros(2, dtype=torch.float64))
    found = quadratic_model(objective, axes)
    torch.testing.assert_close(found.curvatures, bend, rtol=1e-8, atol=1e-10)
    x, y = 1e-3, -2e-3
    assert float(found.at(torch.tensor(x), torch.tensor(y))) == pytest.approx(
        float(loss(theta + x * d + y * e)), rel=1e-6
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MODELS)
def test_single_precision_errors_are_as_large_as_said(name, seed):
    objective = objective_of(name, torch.float32, seed=seed)
    axes = [random_direction(objective, seed=seed), eigenvector_directions(objective, 1, seed=0)[0]]
    found = quadratic_model(objective, axes)
    exact = found.curvatures.diagonal()
    assert ((found.second_differences - exact).abs() <= 5 * found.difference_errors).all()
    assert (found.difference_errors < 0.1 * exact.abs()).all()
    assert "bends by" not in found.note
    poor = found.difference_errors > 1e-3 * exact.abs()
    assert ("rounding leaves second differences" in found.note) == bool(poor.any())


@pytest.mark.parametrize("error", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("slope", [0.0, -2.0, 50.0])
@pytest.mark.parametrize("length", [1.0, 1e3])
def test_radius_of_a_cubic(slope, error, length):
    a, b, c = slope, 3.0, 5.0
    f = function(lambda w: 1 + a * w[0] + b * w[0] ** 2 / 2 + c * w[0] ** 3 / 6, [0.0, 0.0])
    found = quadratic_model(f, [Axis(length * E1.vector, "first")], error=error)
    # c r^3 / 6 = error (|a| r + b r^2 / 2)
    assert_radius(found.radius, (error * b / 2 + math.sqrt((error * b / 2) ** 2 + 2 * c * error * abs(a) / 3)) * 3 / c)
    assert float(found.slopes) == pytest.approx(a * length)
    assert float(found.curvatures) == pytest.approx(b * length**2)
    assert found.smoothness == pytest.approx(math.sqrt(2 * error * abs(a) / c), rel=RTOL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_radius_of_a_quartic_minimum(dtype):
    f = function(lambda w: w[0] ** 2 + 7 * w[0] ** 4 / 24 + w[1] ** 2, [0.0, 0.0], dtype)
    found = quadratic_model(f, [E1])
    assert_radius(found.radius, math.sqrt(0.1 * 24 / 7), rel=1e-3)
    assert found.smoothness == 0
    assert "the gradient is zero within rounding" in found.note


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_quadratic_holds_everywhere(dtype):
    f = function(lambda w: 2 + w[0] - 3 * w[1] + 5 * w[0] ** 2 - w[0] * w[1] - w[1] ** 2, [0.5, 2.0], dtype)
    found = quadratic_model(f, [E1, E2])
    assert found.radius == math.inf
    assert found.smoothness == math.inf
    torch.testing.assert_close(found.curvatures, torch.tensor([[10.0, -1.0], [-1.0, -2.0]], dtype=torch.float64))


def test_radius_is_euclidean_and_belongs_to_the_plane_not_to_its_axes():
    """The same plane through skewed axes of other lengths; a cubic that is the same in all directions of it."""
    f = function(lambda w: w.square().sum() + w.square().sum() ** 1.5, [1e-9, 0.0])
    straight = quadratic_model(f, [E1, E2])
    skewed = quadratic_model(f, [Axis(100 * E1.vector), Axis(0.01 * (E1.vector + 0.1 * E2.vector))], seed=3)
    assert_radius(straight.radius, 0.1, rel=1e-3)
    assert_radius(skewed.radius, 0.1, rel=1e-3)


def test_a_saddle_whose_terms_cancel_has_a_radius():
    f = function(lambda w: w[0] ** 2 - w[1] ** 2 + (w[0] ** 4 + w[1] ** 4), [0.0, 0.0])
    for seed in range(5):
        angle = torch.tensor(math.pi / 4)
        turned = torch.stack([angle.cos(), angle.sin()]).double()  # along it, h'Hh = 0
        found = quadratic_model(f, orthogonalised([Axis(turned, "diagonal"), E1]), seed=seed)
        assert 0.3 < found.radius < 0.448  # r^2 <= 0.1 along the eigenvectors, r^2 / 2 <= 0.1 along the diagonals


@pytest.mark.parametrize("seed", range(2))
def test_kinks_are_said(seed):
    """Many ReLUs and samples: within any step that single precision can take there are kinks."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    x, y = torch.randn(500, 20), torch.randn(500, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    objective = Objective(model, (x, y), criterion=nn.MSELoss())
    found = quadratic_model(objective, [random_direction(objective, seed=seed)])
    apart = float((found.second_differences - found.curvatures.diagonal()).abs() / found.curvatures.abs())
    assert apart > 0.05
    assert "the gradient has kinks" in found.note
    # In double precision steps can be smaller than the distance to the next kink, and both agree.
    double = Objective(model.double(), (x.double(), y.double()), criterion=nn.MSELoss())
    found = quadratic_model(double, [random_direction(double, seed=seed)])
    torch.testing.assert_close(found.second_differences, found.curvatures.diagonal(), rtol=1e-3, atol=0)
    assert found.note == ""
    assert found.radius < 0.02  # which is where kinks begin to count; at about 2 the parabola is met once more


def test_few_kinks_leave_second_differences_right():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    objective = Objective(
        model, (torch.randn(10, 4).double(), torch.randint(0, 3, (10,))), criterion=nn.CrossEntropyLoss()
    )
    found = quadratic_model(objective, [random_direction(objective), gradient_direction(objective)])
    torch.testing.assert_close(found.second_differences, found.curvatures.diagonal(), rtol=1e-3, atol=0)
    assert found.note == ""


def test_the_parabola_is_as_close_as_the_radius_says():
    """On fresh directions within the plane, and beyond the radius not for long."""
    objective = objective_of("dense")
    axes = [random_direction(objective, seed=s) for s in (0, 1)]
    found = quadratic_model(objective, axes, error=0.1)
    theta = [p.detach().clone() for p in objective.model.parameters()]
    D = torch.stack([a.vector for a in axes])

    def worst(r: float) -> float:
        largest = 0.0
        for angle in torch.linspace(0, 2 * math.pi, 60, dtype=torch.float64):
            z = torch.stack([angle.cos(), angle.sin()])
            c = torch.linalg.solve(torch.linalg.cholesky(D @ D.T).T, z) * r
            for p, t, d in zip(objective.model.parameters(), theta, objective.space.unflatten(c @ D), strict=True):
                p.data = t + d
            off = abs(objective.value() - float(found.at(*c)))
            largest = max(largest, off / float((found.slopes @ c).abs() + (c @ found.curvatures @ c).abs() / 2))
        for p, t in zip(objective.model.parameters(), theta, strict=True):
            p.data = t
        return largest

    assert worst(0.5 * found.radius) < 0.1
    assert worst(1.5 * found.radius) > 0.1


def test_batch_normalisation_in_training_mode_and_part_of_the_parameters():
    objective = objective_of("convolutional")
    trained = Objective(objective.model, objective.data, criterion=nn.CrossEntropyLoss(), mode="train", params="0.*")
    found = quadratic_model(trained, [random_direction(trained), gradient_direction(trained)])
    torch.testing.assert_close(found.second_differences, found.curvatures.diagonal(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("statistics", ["kept", "frozen", "recomputed"])
def test_it_is_the_model_of_the_loss_that_is_drawn(statistics):
    """Also where normalisation layers take their statistics anew at each point."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), nn.Flatten(), nn.Linear(216, 5)).double()
    x, y = 3 + 2 * torch.randn(48, 3, 8, 8).double(), torch.randint(0, 5, (48,))
    model[1].running_mean.copy_(torch.randn(6))
    objective = Objective(model, [(x[:32], y[:32]), (x[32:], y[32:])], criterion=nn.CrossEntropyLoss())
    axes = [random_direction(objective, seed=s) for s in (0, 1)]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = quadratic_model(objective, axes, statistics=statistics)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    drawn = line(objective, axes[0], points=[-1e-3, 0.0, 1e-3], statistics=statistics, model=False).loss
    assert found.value == drawn[1]
    assert float(found.slopes[0]) == pytest.approx(float(drawn[2] - drawn[0]) / 2e-3, rel=1e-3)
    bend = float(drawn[2] - 2 * drawn[1] + drawn[0]) / 1e-6
    assert float(found.curvatures[0, 0]) == pytest.approx(bend, rel=1e-3)
    r = 0.5 * found.radius / axes[0].norm
    x, y = torch.linspace(-r, r, 3), torch.linspace(-r, r, 3)
    cells = plane(objective, axes, points=(x, y), statistics=statistics)
    torch.testing.assert_close(cells.model.curvatures, found.curvatures)
    at = found.at(*torch.meshgrid(cells.x, cells.y, indexing="xy"))
    assert float((cells.loss - at).abs().max()) < 0.1 * float((at - found.value).abs().max())
    assert (found.note != "") == (statistics == "recomputed")
    assert math.isnan(found.smoothness) == (statistics == "recomputed")


def test_half_precision_says_what_can_be_expected():
    objective = objective_of("dense", torch.float32)
    objective.model.to(torch.bfloat16)
    half = Objective(objective.model, [(x.bfloat16(), y) for x, y in objective.data], criterion=nn.CrossEntropyLoss())
    found = quadratic_model(half, [random_direction(half)])
    assert "rounding leaves second differences" in found.note


@pytest.mark.parametrize("unit", [1e-20, 1e20])
@pytest.mark.parametrize("scale", [1e-15, 1e12])
def test_units_of_the_loss_and_of_the_axes_do_not_matter(scale, unit):
    objective = objective_of("dense", torch.float32)
    axes = [random_direction(objective), gradient_direction(objective)]
    expected = quadratic_model(objective, axes)
    scaled = Objective(
        objective.model, objective.data, criterion=lambda out, y: scale * nn.functional.cross_entropy(out, y)
    )
    found = quadratic_model(scaled, [Axis(unit * axes[0].vector, "scaled"), axes[1]])
    assert found.radius == pytest.approx(expected.radius, rel=0.05)
    assert found.smoothness == pytest.approx(expected.smoothness, rel=1e-3)
    units = scale * torch.tensor([[unit**2, unit], [unit, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(found.curvatures / units, expected.curvatures, rtol=1e-3, atol=1e-6)
    off = (found.second_differences - found.curvatures.diagonal()).abs()
    assert (off <= 5 * found.difference_errors).all()


def test_axes_that_nothing_depends_on():
    objective = function(lambda w: torch.cosh(w[1]), [0.3, 0.5])
    alone = quadratic_model(objective, [E1])
    assert alone.radius == math.inf
    assert alone.second_differences.tolist() == [0.0]
    both, live = quadratic_model(objective, [E1, E2]), quadratic_model(objective, [E2])
    # A ray between the two changes the loss as much at a larger length.
    assert both.radius == pytest.approx(live.radius, rel=RTOL)
    assert both.curvatures.tolist()[0] == [0.0, 0.0]


class Once(torch.autograd.Function):
    """A tanh without a second derivative, as custom kernels are."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * (1 - ctx.saved_tensors[0].tanh() ** 2)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(Once.apply(self.first(x)))


def test_without_double_backward():
    model = Custom().double()
    data = (torch.randn(48, 6).double(), torch.randint(0, 5, (48,)))
    objective = Objective(model, data, criterion=nn.CrossEntropyLoss())
    found = quadratic_model(objective, [random_direction(objective), gradient_direction(objective)])
    torch.testing.assert_close(found.second_differences, found.curvatures.diagonal(), rtol=1e-5, atol=0)
    assert "finite differences of the gradient" in found.note
    assert "bends by" not in found.note


def test_bad_input():
    objective = objective_of("dense")
    axis = random_direction(objective)
    with pytest.raises(SettingError, match=r"error must be a positive, finite share, got -0\.1"):
        quadratic_model(objective, [axis], error=-0.1)
    with pytest.raises(SettingError, match="are parallel"):
        quadratic_model(objective, [axis, Axis(2 * axis.vector, "twice")])
    with pytest.raises(SettingError, match="nothing is zero"):
        quadratic_model(objective, [axis, Axis(0 * axis.vector, "nothing")])
    with pytest.raises(ParameterError, match="has shape"):
        quadratic_model(objective, [E1])
    with pytest.raises(NonFiniteError, match="gradient is NaN"):
        quadratic_model(function(lambda w: w[0].abs().sqrt(), [0.0, 1.0]), [E1])
    with pytest.raises(NonFiniteError, match=r"loss is nan|gradient is NaN"):
        quadratic_model(function(lambda w: w[0].log(), [-1.0, 1.0]), [E1])


def test_its_line_says_what_is_known():
    objective = function(lambda w: 3 + w[0] + w.square().sum(), [0.0, 0.0])
    found = quadratic_model(objective, [Axis(torch.tensor([1.0, 0.0]), "first")])
    assert repr(found) == "QuadraticModel(loss 3, slopes 1, curvatures 2 (by differences 2), to 10 % within inf)"
