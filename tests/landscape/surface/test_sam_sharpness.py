"""SAM sharpness: exact on quadratics, to second order on networks, as SAM itself steps, nothing left behind."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isolation_cases import batches, busy_with_gradients, state_of, streams
from losscope.landscape import DataError, Hessian, NonFiniteError, Objective, SettingError, sam_sharpness
from losscope.landscape.groups import lengths_of, part
from losscope.landscape.surface.weight_scales import SCALES, scale_of
from noted import Noted
from sam import SAM

F64 = torch.float64


class Bowl(nn.Module):
    """w'Hw / 2 - b'w, of which the data are no part."""

    def __init__(self, H: Tensor, b: Tensor, w: Tensor) -> None:
        super().__init__()
        self.H, self.b, self.w = H, b, nn.Parameter(w)

    def forward(self, _: Tensor) -> Tensor:
        return 0.5 * self.w @ self.H @ self.w - self.b @ self.w


def bowl(H: Tensor, b: Tensor, w: Tensor) -> Objective:
    return Objective(Bowl(H, b, w), [torch.zeros(1)], loss_fn=lambda model, batch: model(batch))


def symmetric(seed: int, *eigenvalues: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=generator, dtype=F64)).Q
    return Q @ torch.diag(torch.tensor(eigenvalues, dtype=F64)) @ Q.T


def largest_rise(H: Tensor, g: Tensor, rho: float) -> float:
    """The maximum of g'e + e'He / 2 within |e| <= rho: (mu - H) e = g with |e| = rho, mu beyond the eigenvalues."""
    values, vectors = torch.linalg.eigh(H)
    along = vectors.T @ g
    low, high = float(values[-1]), float(values[-1] + g.norm() / rho + 1)
    for _ in range(200):
        middle = (low + high) / 2
        longer = float((along / (middle - values)).norm()) > rho
        low, high = (middle, high) if longer else (low, middle)
    e = along / (high - values)
    return float(along @ e + (values * e * e).sum() / 2)


def networks() -> dict[str, Objective]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mlp = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).double()
        conv = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(64, 2), nn.Softplus()
        ).double()
        x, y = torch.randn(40, 5, dtype=F64), torch.randint(3, (40,))
        images, targets = torch.randn(30, 1, 6, 6, dtype=F64), torch.randn(30, 2, dtype=F64)
    return {
        "mlp": Objective(mlp, [(x[:25], y[:25]), (x[25:], y[25:])], criterion=nn.CrossEntropyLoss()),
        "conv": Objective(conv, [(images, targets)], criterion=nn.MSELoss(), mode="train"),
    }


# --------------------------------------------------------------------------- what it is


@pytest.mark.parametrize("rho", [0.01, 0.3, 5.0])
@pytest.mark.parametrize("eigenvalues", [(5.0, 2.0, 1.0, 0.1), (3.0, 2.9, -1.0, -8.0), (-1.0, -2.0, -3.0, -4.0)])
def test_on_a_quadratic_ascent_reaches_the_maximum_and_never_more(eigenvalues: tuple[float, ...], rho: float) -> None:
    generator = torch.Generator().manual_seed(3)
    H, b = symmetric(1, *eigenvalues), torch.randn(4, generator=generator, dtype=F64)
    w = torch.randn(4, generator=generator, dtype=F64)
    g = H @ w - b
    exact = largest_rise(H, g, rho) if eigenvalues[0] > 0 else None
    one, many = (sam_sharpness(bowl(H, b, w), rho, steps=k) for k in (1, 200))
    assert math.isclose(one.one_step, one.second_order, rel_tol=1e-10)
    assert math.isclose(one.second_order, float(rho * g.norm() + rho**2 / 2 * (g @ H @ g) / (g @ g)), rel_tol=1e-10)
    assert many.value >= one.value
    if exact is not None:
        assert many.value <= exact * (1 + 1e-9)
        assert many.value >= exact * (1 - 1e-3)
    assert many.perturbation is not None and float(many.perturbation.norm()) <= rho * (1 + 1e-12)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_what_taylor_leaves_is_of_third_order(name: str, scale: str, norm: str) -> None:
    objective = networks()[name]
    T = scale_of(objective, scale)
    size = 0.02 / float(T.norm() if norm == "linf" else T.max())  # about the same step of the weights
    found = [sam_sharpness(objective, size / 2**k, norm=norm, scale=scale) for k in range(4)]
    left = [f.one_step - f.second_order for f in found]
    ratios = [left[k] / left[k + 1] for k in range(3)]
    assert all(abs(f.one_step) > 100 * abs(x) for f, x in zip(found, left, strict=True))
    assert abs(ratios[-1] - 8) < 0.3 and abs(ratios[-1] - 8) <= abs(ratios[0] - 8) + 0.05


def test_second_order_by_a_dense_hessian() -> None:
    objective = networks()["mlp"]
    g, H = objective.gradient(), Hessian(objective) @ torch.eye(objective.space.size, dtype=F64)
    t = scale_of(objective, "adaptive")
    for scale, norm, e in (
        ("absolute", "l2", g / g.norm()),
        ("absolute", "linf", g.sign()),
        ("adaptive", "l2", t * t * g / (t * g).norm()),
        ("adaptive", "linf", t * (t * g).sign()),
    ):
        found = sam_sharpness(objective, 0.1, scale=scale, norm=norm)
        assert math.isclose(found.second_order, float(0.1 * g @ e + 0.005 * e @ H @ e), rel_tol=1e-10)
        assert found.perturbation is not None
        torch.testing.assert_close(found.perturbation, 0.1 * e, rtol=1e-12, atol=1e-15)
        assert math.isclose(found.slope, float(g @ e), rel_tol=1e-10)


@pytest.mark.parametrize("adaptive", [False, True])
def test_one_step_is_where_a_sam_optimizer_goes(adaptive: bool) -> None:
    objective = networks()["mlp"]
    found = sam_sharpness(objective, 0.1, scale="adaptive" if adaptive else "absolute")
    model = objective.model
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.1, adaptive=adaptive, lr=0.1)
    x, y = (torch.cat([batch.content[i] for batch in objective.batches]) for i in (0, 1))
    before = nn.functional.cross_entropy(model(x), y)
    before.backward()
    optimizer.first_step()
    after = nn.functional.cross_entropy(model(x), y)
    assert math.isclose(found.one_step, float((after - before).detach()), rel_tol=1e-9)


@pytest.mark.parametrize("name", ["mlp", "conv"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_more_steps_and_starts_never_find_less_and_stay_inside(name: str, norm: str) -> None:
    objective, rho = networks()[name], 0.5 if norm == "l2" else 0.05
    found = [sam_sharpness(objective, rho, steps=k, norm=norm, scale="adaptive") for k in (1, 2, 4, 8)]
    started = sam_sharpness(objective, rho, steps=8, starts=2, norm=norm, scale="adaptive")
    values = [f.value for f in (*found, started)]
    assert values == sorted(values) and values[3] > values[0]
    assert started.evaluations > found[3].evaluations
    T = scale_of(objective, "adaptive")
    for f in (*found, started):
        assert f.perturbation is not None
        v = (f.perturbation / T)[T > 0]
        assert float(v.norm() if norm == "l2" else v.abs().max()) <= rho * (1 + 1e-9)
        with torch.no_grad():  # the rise is there
            at = objective.space.unflatten(
                objective.space.flatten(list(objective.parameters.values())) + f.perturbation
            )
        moved = torch.func.functional_call  # an evaluation of torch's own
        if name == "mlp":
            x, y = (torch.cat([batch.content[i] for batch in objective.batches]) for i in (0, 1))
            loss = nn.functional.cross_entropy(
                moved(objective.model, dict(zip(objective.parameters, at, strict=True)), x), y
            )
            assert math.isclose(float(loss) - f.loss, f.value, rel_tol=1e-9)


def test_a_step_that_overshoots_is_told_and_halved() -> None:
    found = [sam_sharpness(bowl(-torch.eye(2, dtype=F64), torch.tensor([0.0, 0.0], dtype=F64), w), 10.0, steps=k)
             for w in [torch.tensor([1.0, 0.0], dtype=F64)] for k in (1, 12)]  # fmt: skip
    assert found[0].one_step == -40.0 and found[0].value == 0.0  # -(|w + e|^2 - |w|^2) / 2, from 1 to 9
    assert found[0].perturbation is not None and not found[0].perturbation.any()
    assert 0.49 < found[1].value <= 0.5  # to the top, inside the ball


# --------------------------------------------------------------------------- zero gradients


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_at_a_minimum_it_is_the_largest_eigenvalue(norm: str) -> None:
    H = torch.diag(torch.tensor([1.0, 6.0, 2.0], dtype=F64))
    found = sam_sharpness(bowl(H, torch.zeros(3, dtype=F64), torch.zeros(3, dtype=F64)), 0.1, norm=norm)
    expected = 0.01 * 6 / 2 if norm == "l2" else 0.01 * 9 / 2
    assert "the gradient is zero: the first step is along the eigenvalue 6" in found.note
    assert found.slope == 0
    if norm == "l2":
        assert math.isclose(found.value, expected, rel_tol=1e-4) and math.isclose(
            found.second_order, expected, rel_tol=1e-4
        )
    else:
        assert 0.03 - 1e-6 <= found.value <= expected + 1e-12


def test_at_a_saddle_it_takes_the_side_that_rises_and_at_a_maximum_it_is_zero() -> None:
    class Tilted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2, dtype=F64))

        def forward(self, _: Tensor) -> Tensor:
            x, y = self.w
            return x**2 - 3 * y**2 - x**3

    objective = Objective(Tilted(), [torch.zeros(1)], loss_fn=lambda model, batch: model(batch))
    found = sam_sharpness(objective, 0.5)
    assert math.isclose(found.value, 0.25 + 0.125, rel_tol=1e-3)  # x = -1/2
    top = sam_sharpness(bowl(-torch.eye(2, dtype=F64), *(torch.zeros(2, dtype=F64) for _ in range(2))), 0.5, steps=3)
    assert top.value == 0 and math.isclose(top.one_step, -0.125)


def test_a_tiny_gradient_is_still_a_direction() -> None:
    w = torch.tensor([1e-25, 0.0], dtype=torch.float32)
    found = sam_sharpness(bowl(torch.eye(2), torch.zeros(2), w), 1.0)
    assert math.isclose(found.value, 0.5, rel_tol=1e-5) and found.note == ""


# --------------------------------------------------------------------------- mini-batches


def samples(n: int = 8, summed: bool = False) -> Objective:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        x, y = torch.randn(n, 3, dtype=F64), torch.randn(n, 2, dtype=F64)
    kind = "sum" if summed else "mean"
    return Objective(model, [(x[:3], y[:3]), (x[3:], y[3:])], criterion=nn.MSELoss(reduction=kind))


def test_m_sharpness_covers_the_mean_over_all_mini_batches() -> None:
    import itertools

    objective = samples(6)
    lengths = lengths_of(objective)
    exact = [
        sam_sharpness(part(objective, torch.tensor(chosen), lengths, {}), 0.2).value
        for chosen in itertools.combinations(range(6), 2)
    ]
    mean = sum(exact) / len(exact)
    covered = 0
    for seed in range(40):
        found = sam_sharpness(objective, 0.2, minibatch=2, draws=12, seed=seed)
        assert found.low < found.value < found.high and found.perturbation is None and found.draws == 12
        covered += found.low <= mean <= found.high
    assert covered >= 34  # of 40 at 95 %: below that with probability 5e-3 if 90 % were covered


def test_mini_batches_of_all_samples_are_all_samples_and_smaller_ones_are_sharper() -> None:
    objective = samples(8)
    whole = sam_sharpness(objective, 0.2)
    found = sam_sharpness(objective, 0.2, minibatch=8, draws=2)
    assert math.isclose(found.value, whole.value, rel_tol=1e-12) and found.stderr < 1e-12
    assert math.isclose(found.second_order, whole.second_order, rel_tol=1e-9)
    assert sam_sharpness(objective, 0.2, minibatch=1, draws=64).low > whole.value


def test_a_sum_over_samples_is_scaled_up() -> None:
    whole = sam_sharpness(samples(8, summed=True), 0.05)
    found = sam_sharpness(samples(8, summed=True), 0.05, minibatch=4, draws=64)
    mean = sam_sharpness(samples(8), 0.05, minibatch=4, draws=64)
    assert math.isclose(found.value, 16 * mean.value, rel_tol=1e-9)  # 8 samples of 2 outputs
    assert found.value > whole.value
    assert math.isclose(found.loss, 16 * mean.loss, rel_tol=1e-9)


# --------------------------------------------------------------------------- bad input and bad losses


class Cliff(nn.Module):
    """w^2 up to 1, beyond it no number or infinity."""

    def __init__(self, beyond: float, w: float) -> None:
        super().__init__()
        self.beyond, self.w = beyond, nn.Parameter(torch.tensor([w], dtype=F64))

    def forward(self, _: Tensor) -> Tensor:
        return (self.w**2 if float(self.w.detach()) <= 1 else self.w * self.beyond).sum()


def cliff(beyond: float, w: float = 0.5) -> Objective:
    return Objective(Cliff(beyond, w), [torch.zeros(1)], loss_fn=lambda model, batch: model(batch))


def test_losses_that_are_no_number() -> None:
    inside = sam_sharpness(cliff(math.nan), 0.4, steps=4)
    assert math.isclose(inside.value, 0.81 - 0.25) and inside.note == ""
    beyond = sam_sharpness(cliff(math.nan), 0.8, steps=6)
    assert math.isnan(beyond.one_step) and 0.7 < beyond.value <= 0.75
    assert "the loss is NaN at" in beyond.note
    assert sam_sharpness(cliff(math.inf), 0.8, steps=3).value == math.inf
    for w, loss in ((2.0, "nan"), (2.0, "inf")):
        with pytest.raises(NonFiniteError, match=f"the loss is {loss} at the weights"):
            sam_sharpness(cliff(float(loss), w), 0.1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rho": 0.0}, "rho must be a positive, finite number, got 0.0"),
        ({"rho": -1}, "rho must be a positive, finite number, got -1"),
        ({"rho": math.nan}, "rho must be a positive, finite number, got nan"),
        ({"rho": "large"}, "rho must be a positive, finite number, got 'large'"),
        ({"rho": True}, "rho must be a positive"),
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"starts": -1}, "starts must be an integer of at least 0"),
        ({"norm": "l1"}, "norm must be one of 'l2', 'linf'; got 'l1'"),
        ({"scale": "asam"}, "scale must be one of"),
        ({"minibatch": 0}, "minibatch must be an integer of at least 1"),
        ({"minibatch": 9}, "minibatch must be at most the 8 samples there are, got 9"),
        ({"minibatch": 2, "draws": 1}, "draws must be an integer of at least 2"),
        ({"confidence": 1.0}, "confidence must be between 0 and 1"),
    ],
)
def test_settings_that_mean_nothing(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        sam_sharpness(samples(), **({"rho": 0.1} | changes))


def test_nothing_that_can_move_and_data_that_cannot_be_cut() -> None:
    objective = bowl(torch.eye(2), torch.ones(2), torch.zeros(2))
    with pytest.raises(SettingError, match=r'every weight is zero.*scale="absolute"'):
        sam_sharpness(objective, 0.1, scale="adaptive")
    one = Objective(nn.Linear(1, 1), [torch.tensor(1.0)], loss_fn=lambda m, x: m(x.view(1)).sum(), weight=lambda _: 1)
    with pytest.raises(DataError):
        sam_sharpness(one, 0.1, minibatch=1)


def test_a_radius_below_rounding_is_said() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
    objective = Objective(model, [(torch.ones(4, 3), torch.ones(4, 1))], criterion=nn.MSELoss())
    assert "within the rounding of the loss" in sam_sharpness(objective, 1e-12).note
    assert sam_sharpness(objective, 1e-2).note == ""


# --------------------------------------------------------------------------- nothing is left behind


@pytest.mark.parametrize("minibatch", [None, 2])
def test_nothing_is_left_behind(minibatch: int | None) -> None:
    model = busy_with_gradients()
    objective = Objective(model, batches(), criterion=nn.CrossEntropyLoss(), mode="train")
    before = state_of(model), streams()
    sam_sharpness(objective, 0.1, steps=3, starts=1, minibatch=minibatch, draws=2)
    assert (state_of(model), streams()) == before


@pytest.mark.parametrize(("error", "call"), [(RuntimeError, 2), (KeyboardInterrupt, 2), (KeyboardInterrupt, 9)])
def test_nor_after_an_interruption(error: type[BaseException], call: int) -> None:
    calls = Noted()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        calls.append(1)
        if len(calls) == call:
            raise error("stop")
        return model(batch).square().mean()

    model = nn.Linear(3, 2)
    objective = Objective(model, [torch.ones(5, 3)], loss_fn=loss)
    before = state_of(model), streams()
    with pytest.raises(error, match="stop"):
        sam_sharpness(objective, 0.1, steps=5, starts=2)
    assert (state_of(model), streams()) == before


def test_the_same_seed_finds_the_same() -> None:
    objective = samples()
    a, b, c = (sam_sharpness(objective, 0.3, steps=3, starts=2, seed=seed) for seed in (1, 1, 2))
    assert a.value == b.value and a.perturbation is not None and b.perturbation is not None
    assert torch.equal(a.perturbation, b.perturbation)
    first, second = (sam_sharpness(objective, 0.3, minibatch=2, seed=seed).value for seed in (1, 2))
    assert first != second and c.value > 0
