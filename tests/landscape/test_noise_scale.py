"""Noise scales from given gradients: against sums over all pairs, and their intervals' coverage over many draws."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from losscope.landscape import NonFiniteError, SettingError
from losscope.landscape.noise_scale import Reduced, fieller, noise_scale, two_batch_noise

F64 = torch.float64
DRAWS = 600


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_estimates_are_the_sums_over_all_pairs() -> None:
    x, K = normal(9, 4) + 1, 9
    found = noise_scale(x, 5)
    pairs = [(j, k) for j in range(K) for k in range(K) if j != k]
    trace = 5 * sum(float((x[j] - x[k]).square().sum()) for j, k in pairs) / (2 * len(pairs))
    square = sum(float(x[j] @ x[k]) for j, k in pairs) / len(pairs)
    assert found.noise.value == pytest.approx(trace, rel=1e-12)
    assert found.signal.value == pytest.approx(square, rel=1e-12)
    assert found.value == pytest.approx(trace / square, rel=1e-12)


def test_a_mean_far_above_the_noise_costs_no_digits() -> None:
    x = normal(30, 4)
    near, far = noise_scale(x), noise_scale(x + 1e5)
    assert far.noise.value == pytest.approx(near.noise.value, rel=1e-6)


def test_the_scatter_of_products_is_the_square_of_the_covariance() -> None:
    root = torch.diag(torch.tensor([3.0, 1.0, 0.5], dtype=F64))
    found = [Reduced.of_products(x @ x.T).spread for x in (normal(12, 3, seed=s) @ root for s in range(1000))]
    expected = 81 + 1 + 0.0625
    assert sum(found) / len(found) == pytest.approx(expected, rel=0.12)


def populations() -> dict[str, Tensor]:
    centred = normal(500, 30, seed=1)
    centred -= centred.mean(dim=0)
    lengths = torch.exp(0.7 * normal(500, 1, seed=2))
    return {
        "gradient above the noise": normal(500, 30, seed=3) + 1,
        "gradient below the noise": normal(500, 30, seed=3) + 0.1,
        "no gradient": centred,
        "no gradient, one direction": centred[:, :1] * torch.ones(1, 5, dtype=F64),
        "few directions": normal(500, 2, seed=4) @ normal(2, 30, seed=5) + 0.3,
        "skewed lengths": normal(500, 30, seed=6) * lengths + 0.3,
    }


@pytest.mark.parametrize("name", list(populations()))
def test_coverage_from_independent_batches_with_replacement(name: str) -> None:
    all_of_them = populations()[name]
    G = all_of_them.mean(dim=0)
    trace, square = float((all_of_them - G).square().sum() / 500), float(G @ G)
    ratio = trace / square if square > 1e-20 else math.inf
    generator = torch.Generator().manual_seed(7)
    covered = torch.zeros(3)
    for draw in range(DRAWS):
        K, B = ((64, 1), (40, 16), (20, 8))[draw % 3]
        found = noise_scale(all_of_them[torch.randint(500, (K, B), generator=generator)].mean(dim=1), B)
        inside = (found.noise.low <= trace <= found.noise.high, found.signal.low <= square <= found.signal.high)
        covered += torch.tensor([*inside, found.low <= ratio <= found.high])
        assert found.conclusive == (found.signal.low > 0) == math.isfinite(found.high)
    least = 0.87 if name == "skewed lengths" else 0.92  # a few of 500 samples hold much of the trace
    assert float(covered[0]) / DRAWS >= least
    assert float(covered[1]) / DRAWS >= 0.92
    assert float(covered[2]) / DRAWS >= least


def test_without_a_gradient_it_is_inconclusive_and_bounded_below() -> None:
    x = populations()["no gradient"]
    generator = torch.Generator().manual_seed(8)
    conclusive = 0
    for _ in range(200):
        found = noise_scale(x[torch.randint(500, (64,), generator=generator)])
        conclusive += found.conclusive
        if not found.conclusive:
            assert found.high == math.inf
            assert "INCONCLUSIVE" in repr(found)
    assert conclusive / 200 <= 0.05


def test_a_mean_of_exactly_zero() -> None:
    x = normal(40, 3)
    found = noise_scale(x - x.mean(dim=0))
    assert found.signal.low < 0 < found.signal.high < float(x.square().sum())
    assert found.value == found.high == math.inf
    assert not found.conclusive
    nothing = noise_scale(torch.zeros(5, 2))
    assert not nothing.conclusive
    assert nothing.noise.value == nothing.signal.value == 0


def test_two_batches() -> None:
    x = populations()["gradient below the noise"]
    G = x.mean(dim=0)
    trace, square = float((x - G).square().sum() / 500), float(G @ G)
    generator = torch.Generator().manual_seed(9)
    covered = torch.zeros(2)
    for _ in range(DRAWS):
        parts = x[torch.randint(500, (20, 4, 8), generator=generator)].mean(dim=2)
        small, big = parts.square().sum(dim=2).mean(dim=1), parts.mean(dim=1).square().sum(dim=1)
        found = two_batch_noise(small, big, (8, 32))
        assert found.noise.value == pytest.approx(float((small.mean() - big.mean()) / (1 / 8 - 1 / 32)))
        assert found.signal.value == pytest.approx(float((32 * big.mean() - 8 * small.mean()) / 24))
        covered += torch.tensor(
            [found.noise.low <= trace <= found.noise.high, found.signal.low <= square <= found.signal.high]
        )
    assert float(covered.min()) / DRAWS >= 0.92


def test_fieller_bounds_are_the_roots() -> None:
    low, high = fieller(2.0, 1.0, (0.04, 0.005), (0.0, 0.01), 1.96)
    for r in (low, high):
        variance = 0.04 - 2 * r * 0.005 + r * r * 0.01
        assert abs(2.0 - r) == pytest.approx(1.96 * math.sqrt(variance))
    low, high = fieller(2.0, 0.1, (0.04, 0.0), (0.0, 0.01), 1.96)
    assert 0 < low < 20
    assert high == math.inf
    assert fieller(0.1, 0.1, (0.04, 0.0), (0.0, 0.01), 1.96) == (-math.inf, math.inf)


def test_bad_input() -> None:
    with pytest.raises(SettingError, match="K >= 4"):
        noise_scale(normal(3, 2))
    with pytest.raises(SettingError, match="batch_size must be an integer of at least 1"):
        noise_scale(normal(5, 2), 0)
    with pytest.raises(SettingError, match="confidence"):
        noise_scale(normal(5, 2), confidence=1.0)
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        noise_scale(normal(5, 2) / 0.0)
    with pytest.raises(SettingError, match="larger size must be an integer of at least 9"):
        two_batch_noise(normal(5), normal(5), (8, 8))
    for small, big in ((normal(1), normal(1)), (normal(5), normal(4))):
        with pytest.raises(SettingError, match="at least 2 independent repetitions"):
            two_batch_noise(small, big, (1, 8))


def test_no_ratio_is_not_conclusive_wherever_the_interval_of_the_signal_is() -> None:
    found = noise_scale(3 + torch.randn(50, 2, generator=torch.Generator().manual_seed(0)))
    assert found.conclusive
    negative = dataclasses.replace(found.signal, value=-1e-3)
    for value, high in ((math.inf, math.inf), (found.value, math.inf), (math.inf, found.high)):
        assert not dataclasses.replace(found, value=value, high=high, signal=negative).conclusive
