"""Critical sharpness: exact on quadratics, right on networks by a fine scan, few evaluations, nothing left behind."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from losscope.landscape import Hessian, Objective, SettingError
from losscope.landscape.stability import critical_sharpness

F64 = torch.float64


class Bowl(nn.Module):
    """w'Hw / 2 - b'w, of which the data are no part."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        half = torch.randn(6, 6, generator=generator, dtype=F64)
        self.H, self.b = half @ half.T, torch.randn(6, generator=generator, dtype=F64)
        self.w = nn.Parameter(torch.randn(6, generator=generator, dtype=F64))

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return 0.5 * self.w @ self.H @ self.w - self.b @ self.w


def bowl(seed: int) -> Objective:
    return Objective(Bowl(seed), [torch.zeros(1)], loss_fn=lambda model, batch: model(batch))


def network(dtype: torch.dtype = F64) -> Objective:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
        x, y = torch.randn(40, 5, dtype=dtype), torch.randint(3, (40,))
    return Objective(model, [(x[:25], y[:25]), (x[25:], y[25:])], criterion=nn.CrossEntropyLoss())


@pytest.mark.parametrize("rate", [1e-6, 0.1, 1e4])
@pytest.mark.parametrize("seed", range(5))
def test_on_a_quadratic_it_is_the_curvature_along_the_gradient(seed: int, rate: float) -> None:
    objective = bowl(seed)
    g = objective.gradient()
    exact = float(g @ (Hessian(objective) @ g) / (g @ g))
    found = critical_sharpness(objective, -g, rate=rate, rtol=0.01)
    assert found.low <= exact <= found.high and found.converged
    assert (found.high - found.low) / 2 <= 0.0101 * found.value
    # Any direction: L falls by -g'u eta and rises by u'Hu eta^2 / 2.
    u = -g + 0.5 * torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=F64)
    if float(g @ u) < 0:
        exact = float(u @ (Hessian(objective) @ u) / -(g @ u))
        found = critical_sharpness(objective, u, rate=rate)
        assert found.low <= exact <= found.high


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_on_a_network_it_is_where_a_scan_has_it(dtype: torch.dtype) -> None:
    objective = network(dtype)
    g, start = objective.gradient(), objective.value()
    found = critical_sharpness(objective, -g, rate=0.5)
    (x, y), model = (torch.cat([b.content[i] for b in objective.batches]) for i in (0, 1)), objective.model
    pieces = objective.space.unflatten(g)

    def loss(rate: float) -> float:
        values = {n: p - rate * d for (n, p), d in zip(model.named_parameters(), pieces, strict=True)}
        return float(F.cross_entropy(torch.func.functional_call(model, values, (x,)), y).detach())

    scan = torch.linspace(0.01, 60, 3000).tolist()
    crossing = next(rate for rate in scan if loss(rate) >= start)
    assert found.low <= 2 / crossing * 1.002 and 2 / (crossing - 0.03) * 1.002 >= found.low
    assert found.value == pytest.approx(2 / crossing, rel=0.06)


def test_from_the_present_rate_it_takes_few_evaluations() -> None:
    spent = []
    for seed in range(10):
        objective = bowl(seed)
        g = objective.gradient()
        exact = float(g @ (Hessian(objective) @ g) / (g @ g))
        spent.append(critical_sharpness(objective, -g, rate=1.3 / exact).matvecs)
    assert max(spent) <= 10


def test_a_start_that_is_known_is_not_evaluated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, evaluated = bowl(0), []
    g, start, value = objective.gradient(), objective.value(), Objective.value
    monkeypatch.setattr(Objective, "value", lambda self: evaluated.append(1) or value(self))
    found = critical_sharpness(objective, -g, rate=0.1)
    of_all = len(evaluated)
    again = critical_sharpness(objective, -g, rate=0.1, start=start)
    assert (again.low, again.high, again.matvecs) == (found.low, found.high, found.matvecs)
    assert len(evaluated) - of_all == of_all - 1


@pytest.mark.parametrize("farther", [0.02, 0.3, 1.0, 1.9, 50.0])
def test_with_the_slope_a_parabola_is_known_from_the_first_rate_on(farther: float) -> None:
    for seed in range(10):
        objective = bowl(seed)
        g = objective.gradient()
        exact, slope = float(g @ (Hessian(objective) @ g) / (g @ g)), float(-g @ g)
        found = critical_sharpness(objective, -g, rate=farther * 2 / exact, slope=slope, start=objective.value())
        assert found.low <= exact <= found.high and found.converged
        assert found.matvecs <= (4 if 1 / 16 < farther < 16 else 6)  # the start, which is known, among them


@pytest.mark.parametrize("rtol", [0.1, 0.05, 1e-3])
@pytest.mark.parametrize("rate", [1e-4, 0.5, 30.0, 1e4])
def test_on_a_network_the_slope_saves_evaluations_and_changes_nothing_else(rate: float, rtol: float) -> None:
    objective = network()
    g = objective.gradient()
    plain = critical_sharpness(objective, -g, rate=rate, rtol=rtol)
    found = critical_sharpness(objective, -g, rate=rate, rtol=rtol, slope=float(-g @ g))
    assert plain.converged and found.converged and found.matvecs <= plain.matvecs + (2 if rate > 1 else -1)
    assert found.low <= plain.high and plain.low <= found.high
    assert (found.high - found.low) / 2 <= rtol * found.value * 1.01


def test_a_slope_uphill_needs_no_evaluation() -> None:
    objective = bowl(0)
    g = objective.gradient()
    found = critical_sharpness(objective, g, rate=0.1, slope=float(g @ g), start=objective.value())
    assert found.value == found.high == math.inf and found.matvecs == 1


def test_nothing_is_left_behind() -> None:
    objective = network()
    before = [(p.data_ptr(), p.detach().clone()) for p in objective.model.parameters()]
    critical_sharpness(objective, -objective.gradient(), rate=1.0)
    for p, (place, value) in zip(objective.model.parameters(), before, strict=True):
        assert p.data_ptr() == place and torch.equal(p, value) and p.grad is None


def test_inside_an_isolation_it_is_the_same() -> None:
    objective = network()
    g = objective.gradient()
    outside = critical_sharpness(objective, -g, rate=1.0)
    with objective.isolated():
        assert critical_sharpness(objective, -g, rate=1.0).value == outside.value


def test_where_no_step_lowers_the_loss_it_is_infinite_and_where_all_do_zero() -> None:
    objective = bowl(0)
    g = objective.gradient()
    assert critical_sharpness(objective, g, rate=0.1, max_evaluations=100).value == math.inf

    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=F64))

    down = Objective(Slope(), [torch.zeros(1)], loss_fn=lambda model, _: -model.w.sum())
    found = critical_sharpness(down, torch.ones(1, dtype=F64), rate=1.0, max_evaluations=100)
    assert found.value == pytest.approx(0.0, abs=1e-15) and found.low == 0.0


def test_a_loss_that_overflows_counts_as_higher() -> None:
    class Wall(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=F64))

    wall = Objective(Wall(), [torch.zeros(1)], loss_fn=lambda model, _: (3 - model.w).log().neg().neg().sum())
    found = critical_sharpness(wall, torch.ones(1, dtype=F64), rate=0.5)  # NaN from w = 3 on
    assert found.low <= 2 / 3 <= found.high and found.converged


def test_running_out_of_evaluations_is_not_convergence() -> None:
    objective = bowl(0)
    found = critical_sharpness(objective, -objective.gradient(), rate=1e-9, max_evaluations=5)
    assert not found.converged and found.matvecs == 5 and found.low <= found.value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": torch.ones(3)}, r"shape \(6,\), got \(3,\)"),
        ({"direction": [1.0]}, "got list"),
        ({"direction": torch.zeros(6, dtype=F64)}, "not zero"),
        ({"direction": torch.full((6,), math.nan)}, "finite"),
        ({"rate": 0.0}, "rate must be positive"),
        ({"rate": math.inf}, "rate must be positive"),
        ({"rtol": 1.0}, "rtol in"),
        ({"max_evaluations": 2}, "at least 3, got 2"),
    ],
)
def test_what_means_nothing_is_refused(options: dict, message: str) -> None:
    options = {"direction": torch.ones(6, dtype=F64), "rate": 0.1} | options
    with pytest.raises(SettingError, match=message):
        critical_sharpness(bowl(0), options.pop("direction"), **options)


def test_a_loss_that_is_no_number_is_refused() -> None:
    objective = Objective(Bowl(0), [torch.zeros(1)], loss_fn=lambda model, _: model.w.sum() * math.nan)
    with pytest.raises(SettingError, match="the loss is nan where the parameters are"):
        critical_sharpness(objective, torch.ones(6, dtype=F64), rate=0.1)
