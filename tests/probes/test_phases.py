"""The phases of a run: on drawn courses whose phases are known, and on real runs."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from drawn_runs import diverging, dropping, hovering, minibatch, run_of
from losscope.landscape import RunError
from losscope.probes import Player, Record, Run, Sharpness, watch
from losscope.probes.phases import CATAPULT, EDGE, SHARPENING, Phase, phases
from losscope.viz.demo import digits, half_squared_error, network


def course(
    ratios: Sequence[float], *, every: int = 10, rates: Sequence[float] | None = None, losses: Sequence[float] = (),
    steps: Sequence[int] | None = None, probe: str = "stability",
) -> Run:  # fmt: skip
    records = []
    for i, ratio in enumerate(ratios):
        threshold = 2 / (rates[i] if rates is not None else 0.1)
        values = {"sharpness": ratio * threshold, "threshold": threshold, "loss": losses[i] if len(losses) else 0.1}
        step = steps[i] if steps is not None else i * every
        value = ratio if probe == "stability" else ratio * threshold
        records.append(Record(step, "model", probe, value=value, values=values))
    return run_of(records)


def named(run: Run) -> list[tuple[str, int, int]]:
    return [(p.name, p.first, p.last) for p in phases(run)]


def climb(low: float, high: float, count: int) -> list[float]:
    return list(np.geomspace(low, high, count))


# --------------------------------------------------------------------------- courses


def test_sharpening_and_then_the_edge():
    run = course(climb(0.2, 1.0, 40) + [1.01, 0.99] * 30)
    (first, second) = phases(run)
    assert first == Phase(SHARPENING, first.first, second.first) and first.first <= 20
    assert second.name == EDGE and 360 <= second.first <= 390 and second.last == 990


@pytest.mark.parametrize("seed", range(10))
def test_noise_makes_no_phases_and_hides_none(seed: int):
    rng = np.random.default_rng(seed)

    def noisy(values: Sequence[float]) -> list[float]:
        return list(np.array(values) * np.exp(0.05 * rng.standard_normal(len(values))))

    assert named(course(noisy([0.5] * 300))) == []
    assert named(course(noisy(climb(0.7, 0.2, 300)))) == []
    found = phases(course(noisy(climb(0.2, 1.0, 100) + [1.0] * 100)))
    assert [p.name for p in found] == [SHARPENING, EDGE]
    assert 700 <= found[1].first <= 1000 and found[1].last >= 1900
    (rise,) = phases(course(noisy([0.2] * 100 + climb(0.2, 0.6, 100) + [0.6] * 100)))
    assert rise.name == SHARPENING
    assert 800 <= rise.first <= 1300 and 1700 <= rise.last <= 2200


def test_flat_and_falling_parts_have_no_name():
    run = course([*climb(0.8, 0.4, 30), *climb(0.4, 0.8, 30), *climb(0.8, 0.1, 30)])
    (rise,) = phases(run)
    assert rise.name == SHARPENING and 290 <= rise.first <= 340 and 560 <= rise.last <= 600


def test_passing_through_is_not_hovering():
    (rise,) = phases(course(climb(0.4, 3.0, 30)))
    assert rise.name == SHARPENING and 120 <= rise.last <= 160
    (fall,) = phases(course(climb(3.0, 0.4, 30), losses=[1, 2, *climb(3.0, 0.1, 28)]))
    assert fall.name == CATAPULT


def test_dips_do_not_end_the_edge_but_leaving_does():
    rng = np.random.default_rng(0)
    hover = list(0.97 + 0.1 * np.abs(rng.standard_normal(50)) - 0.1)
    (edge,) = phases(course([1.0, 1.0, *hover, 1.0, 1.0]))
    assert (edge.name, edge.first, edge.last) == (EDGE, 0, 530)
    found = phases(course([1.0] * 20 + [0.5] * 20))
    assert [(p.name, p.first, p.last) for p in found] == [(EDGE, 0, 200)]


def test_one_stray_measurement_is_no_phase():
    ratios = [0.5] * 40
    ratios[20] = 3.0
    assert named(course(ratios, losses=[0.1] * 20 + [5.0] * 2 + [0.1] * 18)) == []


@pytest.mark.parametrize("spike", [True, False])
def test_a_catapult_needs_a_spike_of_the_loss(spike: bool):
    ratios = [1.5, 1.5, 1.45, 1.3, 1.15, 0.8, 0.6, 0.6, 0.6, 0.6]
    losses = [1, 4, 20, 40, 10, 1, 0.1, 0.05, 0.02, 0.01] if spike else [0.1] * 10
    assert named(course(ratios, losses=losses)) == ([(CATAPULT, 0, 50)] if spike else [])


def test_a_loss_that_grows_without_end_is_no_catapult():
    """The sharpness may fall all the while, where the network saturates or the loss turns flat."""
    ratios = [4.0, 8.0, 6.0, 3.0, 2.0, 1.5, 1.4]
    assert named(course(ratios, losses=[10.0**i for i in range(7)])) == []
    assert named(course(ratios, losses=[1.0, 10.0, 100.0, 50.0, 10.0, 5.0, 2.0])) == [(CATAPULT, 0, 60)]


def test_growth_without_end_is_no_catapult():
    assert named(course(climb(1.2, 50, 20), losses=climb(1, 1e6, 20))) == []
    assert CATAPULT not in [p.name for p in phases(run_of(diverging()))]


def test_a_raised_rate_catapults_in_the_middle():
    ratios = [*climb(0.3, 0.7, 20), 1.5, 1.5, 1.4, 1.2, 0.9, *[1.0, 1.01] * 10]
    losses = [0.1] * 20 + [0.1, 0.5, 0.9, 0.4, 0.1] + [0.1] * 20
    found = named(course(ratios, losses=losses, rates=[0.1] * 20 + [0.2] * 25))
    assert [name for name, *_ in found] == [SHARPENING, CATAPULT, EDGE]


def test_schedules_of_rates_are_not_sharpening():
    """Warm-up raises the ratio at constant sharpness; a drop lowers it in one step."""
    rates = [0.001 * (i + 1) for i in range(80)]
    assert named(course([10 * rate / 2 for rate in rates], rates=rates)) == []
    found = phases(run_of(dropping()))
    assert found[0].name == SHARPENING and SHARPENING in [p.name for p in found if p.first >= 980]
    assert not [p for p in found if p.name == EDGE and p.last > 1100 and p.first < 1000]


def test_the_edge_is_followed_through_a_schedule():
    rates = list(np.geomspace(0.1, 0.02, 60))
    ((name, first, last),) = named(course([1.0, 1.02] * 30, rates=rates))
    assert (name, first, last) == (EDGE, 0, 590)


def test_gaps_are_not_bridged():
    steps = [*range(0, 200, 10), *range(5000, 5200, 10)]
    assert named(course([1.0, 1.01] * 20, steps=steps)) == [(EDGE, 0, 190), (EDGE, 5000, 5190)]
    steps = [int(2**i) for i in range(40)]  # a schedule that is sparse by itself has none
    assert named(course([1.0, 1.01] * 20, steps=steps)) == [(EDGE, 1, 2**39)]


@pytest.mark.parametrize("count", range(6))
def test_few_points(count: int):
    assert named(course([1.0] * count)) == ([(EDGE, 0, 10 * (count - 1))] if count >= 3 else [])
    assert len(phases(course([0.1, 0.3, 0.6, 0.8, 0.85][:count]))) == (count >= 3)


def test_numbers_that_are_none():
    ratios = [math.nan, math.inf, -0.5, -0.1, 0.0, 0.1, 0.3, 0.6, 0.8, 1.0, 1.0, 1.0]
    assert [name for name, *_ in named(course(ratios))] == [SHARPENING, EDGE]
    assert named(course([-0.5] * 20)) == []
    values = {"sharpness": 3.0, "threshold": None}
    assert named(run_of([Record(t, "model", "stability", values=values) for t in range(9)])) == []
    assert phases(Run.from_records({"players": {}}, [])) == ()


def test_the_sharpness_probe_is_enough():
    ratios = climb(0.2, 1.0, 40) + [1.01, 0.99] * 30
    assert named(course(ratios, probe="sharpness")) == named(course(ratios))


def test_drawn_runs():
    assert [p.name for p in phases(run_of(hovering()))] == [SHARPENING, EDGE]
    (rise,) = phases(run_of(minibatch(), model={"batch_size": 32}))
    assert rise.name == SHARPENING and rise.last < 1500
    two = run_of([*hovering(player="G"), *minibatch(player="D")], G={}, D={"batch_size": 32})
    assert phases(two) == phases(two, "G") != phases(two, "D")
    assert two.phases() == phases(two) and two.phases("D") == phases(two, "D")
    with pytest.raises(RunError, match="no player"):
        phases(two, "E")


# --------------------------------------------------------------------------- real runs


@pytest.mark.parametrize("seed", range(3))
def test_gradient_descent_on_digits(seed: int):
    """64-50-50-10, tanh, squared loss, 2/lr = 15: sharpens, then hovers."""
    x, y = digits(seed, 300)
    model = network(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=2 / 15)
    options = {"data": (x, y), "criterion": half_squared_error, "probes": [Sharpness()]}
    with watch(model, optimizer, every=10, batch_size=300, **options) as run:
        for _ in range(700):
            optimizer.zero_grad()
            half_squared_error(model(x), y).backward()
            optimizer.step()
    found = phases(run.run)
    assert found[0].name == SHARPENING and {p.name for p in found[1:]} <= {EDGE, CATAPULT}  # it may overshoot at first
    assert found[0].last == found[1].first and (found[-1].name, found[-1].last) == (EDGE, 690)
    assert sum(p.last - p.first for p in found if p.name == EDGE) >= 300


class TwoLayers(nn.Module):
    """f(x) = u'v x / sqrt(n), whose sharpness at x = 1 is (|u|^2 + |v|^2) / n."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.u = nn.Parameter(torch.randn(width, dtype=torch.float64, generator=generator))
        self.v = nn.Parameter(torch.randn(width, dtype=torch.float64, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.u @ self.v) * x / len(self.u) ** 0.5

    @property
    def kernel(self) -> float:
        return float((self.u @ self.u + self.v @ self.v).detach() / len(self.u))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rate", "catapults"), [(1.5, False), (2.5, True), (3.0, True)])
def test_the_catapult_of_two_linear_layers(rate: float, catapults: bool, seed: int):
    """Between 2 and 4 over the initial sharpness the loss rises first, and lr times the sharpness ends below 2."""
    model = TwoLayers(512, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate / model.kernel)
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).square().mean() / 2

    with watch([Player("net", model, optimizer, (x, y), 1, criterion=loss)], every=1, probes=[Sharpness()]) as run:
        for _ in range(50):
            optimizer.zero_grad()
            value = loss(model(x), y)
            value.backward()
            optimizer.step()
            run.log(loss=value)
    found = phases(run.run)
    assert [p.name for p in found] == ([CATAPULT] if catapults else [])
    if catapults:
        assert found[0].first == 0 and found[0].last < 40
        assert optimizer.param_groups[0]["lr"] * model.kernel < 2
