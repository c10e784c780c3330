"""Average sharpness: closed forms, dense traces, coverage over seeds, rounding, nothing left behind."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isolation_cases import batches, busy_with_gradients, state_of, streams
from losscope.landscape import Hessian, NonFiniteError, Objective, SettingError, average_sharpness, trace
from losscope.landscape.surface.weight_scales import SCALES, scale_of
from noted import Noted

F64 = torch.float64


class Polynomial(nn.Module):
    """sum_i a_i w_i + h_i w_i^2 / 2 + q_i w_i^4, of which the data are no part."""

    def __init__(self, a: Tensor, h: Tensor, q: Tensor, w: Tensor) -> None:
        super().__init__()
        self.a, self.h, self.q, self.w = a, h, q, nn.Parameter(w)

    def forward(self, _: Tensor) -> Tensor:
        return (self.a * self.w + self.h * self.w**2 / 2 + self.q * self.w**4).sum()

    def average(self, s: float, scale: Tensor) -> float:
        """Of the rise under N(0, s^2 T^2): E (w + e)^4 = w^4 + 6 w^2 v + 3 v^2."""
        v, w = (s * scale) ** 2, self.w.detach()
        return float((self.h * v / 2 + self.q * (6 * w**2 * v + 3 * v**2)).sum())


def polynomial(seed: int = 0, n: int = 12) -> Objective:
    generator = torch.Generator().manual_seed(seed)
    a, h, q, w = torch.randn(4, n, generator=generator, dtype=F64)
    model = Polynomial(a, h + 1, q.abs(), w)
    return Objective(model, [torch.zeros(1)], loss_fn=lambda model, batch: model(batch))


def network(dtype: torch.dtype = F64, width: int = 16) -> Objective:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).to(dtype)
        x, y = torch.randn(40, 5).to(dtype), torch.randint(3, (40,))
    return Objective(model, [(x[:25], y[:25]), (x[25:], y[25:])], criterion=nn.CrossEntropyLoss())


def dense(objective: Objective) -> Tensor:
    return (Hessian(objective) @ torch.eye(objective.space.size, dtype=objective.space.dtype)).double()


# --------------------------------------------------------------------------- what it is


@pytest.mark.parametrize("scale", ["absolute", "adaptive"])
def test_the_average_of_a_polynomial_is_covered_at_every_radius(scale: str) -> None:
    objective = polynomial()
    radii, T = [1e-3, 0.1, 1.0], scale_of(objective, scale)
    exact = [objective.model.average(s, T) for s in radii]
    covered = [0] * len(radii)
    for seed in range(60):
        found = average_sharpness(objective, radii, scale=scale, min_pairs=32, max_pairs=32, seed=seed)
        for i, rise in enumerate(found.rises):
            covered[i] += rise.low <= exact[i] <= rise.high
    assert min(covered) >= 51  # of 60 at 95 %; 57 are expected


def test_stopping_when_it_is_accurate_keeps_covering() -> None:
    objective = polynomial(1, 100)
    exact = objective.model.average(0.01, torch.ones(100, dtype=F64))
    covered, spent = 0, set()
    for seed in range(60):
        found = average_sharpness(objective, 0.01, rtol=0.1, min_pairs=16, max_pairs=128, seed=seed)
        (rise,) = found.rises
        assert rise.converged == ((rise.high - rise.low) / 2 <= 0.1 * rise.value)
        covered += rise.low <= exact <= rise.high
        spent.add(found.pairs)
    assert covered >= 51 and len(spent) > 1


@pytest.mark.parametrize("scale", SCALES)
def test_the_second_order_is_the_trace_of_a_dense_hessian(scale: str) -> None:
    objective = network()
    exact = float((dense(objective).diagonal() * scale_of(objective, scale) ** 2).sum())
    size = 1e-4 / float(scale_of(objective, scale).mean())
    found = average_sharpness(objective, size, scale=scale, max_pairs=512, rtol=0.05)
    (estimate,) = found.traces
    assert estimate.low < exact < estimate.high
    assert found.trace is not None and found.trace.low < exact < found.trace.high and found.trace_radius < size
    assert (estimate.high - estimate.low) / 2 < 0.25 * abs(exact)


def test_the_smallest_radius_above_rounding_has_the_trace_in_single_precision() -> None:
    objective = network(torch.float32)
    exact, estimated = float(dense(network()).trace()), trace(Hessian(network()), seed=0)
    covered = agreed = 0
    for seed in range(12):
        found = average_sharpness(
            objective, torch.logspace(-5, -1, 5), min_pairs=48, max_pairs=48, precision="own", seed=seed
        )
        assert found.smallest is not None and found.trace is not None
        assert 1e-5 < float(found.radii[found.smallest]) < 1e-2 and found.floor < found.trace_radius < 1e-2
        covered += found.trace.low <= exact <= found.trace.high
        agreed += found.trace.low <= estimated.high and found.trace.high >= estimated.low
    assert covered >= 10 and agreed >= 10  # of 12


def test_kinks_do_not_hide_the_trace_of_a_network_in_single_precision() -> None:
    """The radii at which float32 sees the loss move reach the kinks of its ReLUs; float64 sees far below them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))
        x, y = torch.randn(64, 8), torch.randint(4, (64,))
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    objective = Objective(model, [(x, y)], criterion=nn.CrossEntropyLoss())
    exact = float(dense(objective).trace())
    covered = 0
    for seed in range(20):
        found = average_sharpness(objective, [1e-4, 1e-2], max_pairs=32, seed=seed)  # both reach many kinks
        assert (
            found.trace_radius < 1e-6
            and "kinks" in found.note
            and not found.traces[0].low <= exact <= found.traces[0].high
        )
        assert found.precision == "float64" and found.trace is not None
        covered += found.trace.low <= exact <= found.trace.high
    assert covered >= 17  # of 20 at 95 %
    own = average_sharpness(objective, torch.logspace(-6, -1, 6), max_pairs=32, precision="own")
    assert own.precision == "own" and own.floor > 1e3 * found.floor


def test_float64_is_refused_where_the_loss_casts_down() -> None:
    objective = Objective(nn.Linear(3, 2), [torch.ones(4, 3)], loss_fn=lambda m, x: m(x).float().square().mean())
    with pytest.raises(SettingError, match=r"cannot be evaluated in float64: .* casts to float32"):
        average_sharpness(objective, 0.1, precision="float64")
    assert average_sharpness(objective, 0.1, max_pairs=8).precision == "own"


def test_below_rounding_it_says_so_and_its_intervals_hold() -> None:
    objective, exact = network(torch.float32), float(dense(network()).trace())
    found = average_sharpness(objective, [1e-9, 1e-7, 1e-5, 1e-2], max_pairs=64, precision="own")
    assert "3 of 4 radii are below round-off, which is at about" in found.note and found.smallest == 3
    assert all(rise.high - rise.low >= 2 * found.rounding for rise in found.rises)
    for s, rise in zip(found.radii.tolist(), found.rises, strict=True):
        assert rise.low <= s**2 / 2 * exact <= rise.high
    alone = average_sharpness(objective, 1e-8, max_pairs=32, precision="own")
    assert "the only radius is below round-off" in alone.note
    assert alone.smallest is None and alone.trace is None and "no radius is above round-off" in repr(alone)


def test_the_rounding_error_of_the_middle_is_known() -> None:
    """Of a small loss it is many units in the last place, and the same for all pairs."""
    known = 0
    for seed in range(8):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 5)).double()
            x, y = torch.randn(40, 6, dtype=F64), torch.randint(5, (40,))
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
        for _ in range(200):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        objective = Objective(model, [(x, y)], criterion=nn.CrossEntropyLoss())
        found = average_sharpness(objective, [1e-9, 1e-5], max_pairs=64, engine="one by one")
        error = found.rises[0].value - 1e-8 * found.rises[1].value
        known += abs(error) <= found.rounding
        assert found.rounding < 1e-15
    assert known >= 7


def test_in_half_precision_hardly_any_radius_is_above_rounding() -> None:
    found = average_sharpness(network(torch.bfloat16), [1e-4, 1e-3, 1e-2], max_pairs=32, precision="own")
    assert found.rounding >= 2**-8 * found.loss * 0.99 and found.smallest is None
    exact = float(dense(network()).trace())
    for s, rise in zip(found.radii.tolist(), found.rises, strict=True):
        assert rise.low <= s**2 / 2 * exact <= rise.high


def test_kinks_are_said() -> None:
    """|w| has no curvature but at 0, which the larger radius reaches: E|w + e| - |w| is e's density times that far."""

    class Bent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.full((400,), 1e-4, dtype=F64))

        def forward(self, _: Tensor) -> Tensor:
            return self.w.abs().sum() + self.w.square().sum()

    objective = Objective(Bent(), [torch.zeros(1)], loss_fn=lambda model, batch: model(batch))
    found = average_sharpness(objective, [1e-6, 1e-3], max_pairs=64)
    assert found.trace is not None and found.trace.low < 800 < found.trace.high and found.note == ""
    far = average_sharpness(objective, 1e-3, max_pairs=64)
    assert far.trace is not None and far.trace.low < 800 < far.trace.high and far.trace_radius < 1e-4
    assert "2 A / s^2 is 8" in far.note and "kinks or higher orders count" in far.note
    s, w = 1e-3, torch.tensor(1e-4, dtype=F64)
    folded = s * math.sqrt(2 / math.pi) * math.exp(-(float(w) ** 2) / (2 * s * s)) + float(w) * math.erf(
        0.1 / math.sqrt(2)
    )
    assert found.rises[1].low < 400 * (folded - float(w) + s * s) < found.rises[1].high
    assert average_sharpness(network(), [1e-4, 1e-3, 1e-2], max_pairs=64).note == ""


def test_no_curvature_at_all() -> None:
    model = nn.Linear(3, 1, bias=False).double()
    flat = Objective(model, [torch.ones(1, 3, dtype=F64)], loss_fn=lambda model, x: model(x).sum())
    found = average_sharpness(flat, [0.1, 1.0], max_pairs=32)
    assert all(rise.low <= 0 <= rise.high and rise.high < 1e-14 for rise in found.rises)


def test_pairs_are_the_same_at_all_radii_and_antithetic() -> None:
    quadratic = polynomial()
    quadratic.model.q.zero_()
    found = average_sharpness(quadratic, [0.1, 0.2, 0.4], max_pairs=32)
    assert found.samples.shape == (3, 32)
    torch.testing.assert_close(found.samples[1], 4 * found.samples[0], rtol=1e-9, atol=1e-12)  # z'Hz s^2 / 2
    torch.testing.assert_close(found.samples[2], 16 * found.samples[0], rtol=1e-9, atol=1e-12)
    again, other = (average_sharpness(quadratic, 0.1, max_pairs=32, seed=seed) for seed in (0, 1))
    assert torch.allclose(again.samples[0], found.samples[0], rtol=1e-9) and not torch.allclose(
        other.samples, again.samples
    )


def test_radii_are_sorted_and_lengths_are_those_of_perturbations() -> None:
    objective = network()
    found = average_sharpness(objective, [0.1, 0.01, 0.1], max_pairs=32)
    assert found.radii.tolist() == [0.01, 0.1]
    torch.testing.assert_close(found.lengths, found.radii * math.sqrt(objective.space.size))
    assert found.dimension == objective.space.size and len(found.rises) == len(found.traces) == 2
    for s, rise, estimate in zip(found.radii.tolist(), found.rises, found.traces, strict=True):
        assert math.isclose(estimate.value, 2 * rise.value / s**2) and math.isclose(estimate.low, 2 * rise.low / s**2)


def test_a_loss_that_has_no_gradient() -> None:
    model = nn.Linear(4, 1, bias=False).double()

    def rounded(model: nn.Module, x: Tensor) -> Tensor:
        return (model(x).detach().square().mean() * 1e6).round() / 1e6

    objective = Objective(model, [torch.eye(4, dtype=F64)], loss_fn=rounded)
    (found,) = average_sharpness(objective, 0.1, max_pairs=256).traces
    assert found.low < 2 < found.high


# --------------------------------------------------------------------------- bad input and bad losses


def test_losses_that_are_no_number() -> None:
    def cliff(model: nn.Module, _: Any) -> Tensor:
        return (
            model.weight.square().sum()
            if float(model.weight.detach().abs().max()) < 1
            else model.weight.sum() * math.nan
        )

    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(0.5)
    objective = Objective(model, [torch.zeros(1)], loss_fn=cliff)
    found = average_sharpness(objective, [1e-3, 10.0], max_pairs=64)
    near, far = found.rises
    assert near.low < 1e-6 < near.high and math.isnan(far.value)
    assert (far.low, far.high) == (-math.inf, math.inf) and not far.converged
    assert "the loss is not finite at some points of 1 of 2 radii" in found.note and found.smallest == 0
    model.weight.data.fill_(2.0)
    with pytest.raises(NonFiniteError, match="the loss is nan at the weights"):
        average_sharpness(objective, 0.1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"radii": 0.0}, "radii must be positive and finite"),
        ({"radii": [0.1, -1.0]}, "radii must be positive and finite"),
        ({"radii": math.nan}, "radii must be positive and finite"),
        ({"radii": []}, "at least one"),
        ({"radii": "wide"}, "radii must be positive and finite, at least one; got 'wide'"),
        ({"scale": "relative"}, "scale must be one of"),
        ({"rtol": 0.0}, "rtol must be a positive, finite number, got 0.0"),
        ({"max_pairs": 1}, "at least 2"),
        ({"confidence": 1.5}, "confidence must be between"),
        ({"precision": "double"}, "precision must be one of 'auto', 'float64', 'own'; got 'double'"),
    ],
)
def test_settings_that_mean_nothing(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        average_sharpness(network(), **({"radii": 0.1} | changes))


def test_nothing_that_can_move() -> None:
    objective = network()
    for p in objective.parameters.values():
        p.data.zero_()
    with pytest.raises(SettingError, match="every weight is zero"):
        average_sharpness(objective, 0.1, scale="adaptive")


# --------------------------------------------------------------------------- nothing is left behind


def test_nothing_is_left_behind() -> None:
    model = busy_with_gradients()
    objective = Objective(model, batches(), criterion=nn.CrossEntropyLoss(), mode="train")
    before = state_of(model), streams()
    average_sharpness(objective, [1e-2, 1.0], max_pairs=4)
    assert (state_of(model), streams()) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nor_after_an_interruption(error: type[BaseException]) -> None:
    calls = Noted()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 30:
            raise error("stop")
        return model(batch).square().mean()

    model = nn.Linear(3, 2)
    objective = Objective(model, [torch.ones(5, 3)], loss_fn=loss)
    before = state_of(model), streams()
    with pytest.raises(error, match="stop"):
        average_sharpness(objective, [0.1, 1.0], engine="auto" if error is KeyboardInterrupt else "one by one")
    assert (state_of(model), streams()) == before
