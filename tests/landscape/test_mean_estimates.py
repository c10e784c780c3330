"""Means and ratios of means: by hand, invariances, coverage of skewed samples, what is asked of them."""

import math

import pytest
import torch
from scipy import stats

from losscope.landscape import SettingError
from losscope.landscape.intervals import student_quantile
from losscope.landscape.mean_estimates import Accuracy, Mean, Ratio

F64 = torch.float64


def lognormal(m: int, seed: int, sigma: float = 0.8) -> torch.Tensor:
    return (sigma * torch.randn(m, generator=torch.Generator().manual_seed(seed), dtype=F64)).exp()


def test_a_mean_by_hand() -> None:
    found = Mean(torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=F64))
    assert found.value == 3.0
    assert found.stderr == pytest.approx(math.sqrt(14 / 3 / 4))
    low, high = found.interval(0.95)
    assert 3.0 - low < high - 3.0  # skewed to the right, and so is its interval


def test_without_skewness_it_is_students() -> None:
    found = Mean(torch.tensor([1.0, 2.0, 3.0], dtype=F64))
    half = student_quantile(2, 0.9) / math.sqrt(3)
    assert found.interval(0.9) == pytest.approx((2 - half, 2 + half))


def test_known_numbers_move_and_scale_the_interval() -> None:
    found = Mean(lognormal(20, 0))
    low, high = found.interval(0.95)
    moved = (found - 1.0) * 3.0
    assert moved.interval(0.95) == pytest.approx((3 * (low - 1), 3 * (high - 1)))
    assert (found * -2.0).interval(0.95) == pytest.approx((-2 * high, -2 * low))
    assert moved.stderr == pytest.approx(3 * found.stderr)


def test_a_ratio_by_hand() -> None:
    above, below = torch.tensor([1.0, 2.0, 6.0], dtype=F64), torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    found = Ratio(above, below)
    assert found.value == 1.5
    assert found.stderr == pytest.approx(float((above - 1.5 * below).std()) / math.sqrt(3) / 2)


def test_fiellers_interval_holds_the_ratios_that_the_t_test_does_not_reject() -> None:
    above, below = lognormal(15, 1), 5 + lognormal(15, 2)
    quantile = student_quantile(14, 0.95)
    for end in Ratio(above, below).interval(0.95):
        test = Mean(above - end * below)
        assert abs(test.value) / test.stderr == pytest.approx(quantile)


def test_a_ratio_that_does_not_vary_is_certain_and_one_to_nothing_is_unbounded() -> None:
    below = lognormal(10, 0)
    assert Ratio(2 * below, below).interval(0.95) == pytest.approx((2.0, 2.0), abs=1e-6)
    assert Ratio(torch.full((5,), 3.0, dtype=F64), torch.full((5,), 2.0, dtype=F64)).interval(0.95) == (1.5, 1.5)
    noise = torch.tensor([1.0, -1.0, 2.0, -1.5], dtype=F64)
    assert Ratio(below[:4], noise).interval(0.95) == (-math.inf, math.inf)
    none = Ratio(torch.zeros(4, dtype=F64), torch.zeros(4, dtype=F64))
    assert math.isnan(none.value) and none.stderr == math.inf and none.interval(0.95) == (-math.inf, math.inf)


@pytest.mark.parametrize("m", [40, 150])
def test_intervals_of_skewed_samples_cover(m: int) -> None:
    seeds, mean, ratio = 2000, 0, 0
    for seed in range(seeds):
        x = lognormal(m, seed)
        y = x * (1 + 0.3 * torch.randn(m, generator=torch.Generator().manual_seed(seed + 10**6), dtype=F64))
        low, high = Mean(x).interval(0.95)
        mean += low <= math.exp(0.32) <= high
        low, high = Ratio(y, x).interval(0.95)
        ratio += low <= 1 <= high
    assert 0.92 <= mean / seeds <= 0.97 and 0.92 <= ratio / seeds <= 0.97, (mean / seeds, ratio / seeds)


def test_too_few_samples_tell_nothing() -> None:
    assert math.isnan(Mean(torch.empty(0, dtype=F64)).value)
    for few in (Mean(torch.ones(1, dtype=F64)), Ratio(torch.ones(1, dtype=F64), torch.ones(1, dtype=F64))):
        assert few.stderr == math.inf and few.interval(0.95) == (-math.inf, math.inf)


def test_accuracy_says_whether_and_by_how_much_it_is_missed() -> None:
    found = Mean(10 + torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=F64))
    low, high = found.interval(0.95)
    width = (high - low) / 2 / found.value
    assert Accuracy(1.01 * width, 0.95).of(found).converged
    assert not Accuracy(0.99 * width, 0.95).of(found).converged
    assert Accuracy(width / 2, 0.95).shortage(found) == pytest.approx(2.0)
    error = found.stderr / found.value
    alone = Accuracy(math.inf, 0.95, error / 3)
    assert alone.shortage(found) == pytest.approx(3.0) == alone.shortage(found, width=False)
    assert Accuracy(width / 9, 0.95).shortage(found, width=False) == 0.0


def test_roots_of_intervals() -> None:
    found = Mean(lognormal(30, 3))
    root = Accuracy(0.5, 0.95).of_root(found)
    low, high = found.interval(0.95)
    assert (root.value, root.low, root.high) == pytest.approx((found.value**0.5, low**0.5, high**0.5))
    assert root.stderr == pytest.approx(found.stderr / (2 * root.value))
    below = Accuracy(0.5, 0.95).of_root(found - 100.0)
    assert (below.value, below.low, below.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [((0.0, 0.95), "rtol must be > 0"), ((0.1, 1.0), "confidence in"), ((0.1, 0.9, -1.0), "stderr_rtol must be > 0")],
)
def test_what_means_nothing_is_refused(numbers: tuple[float, ...], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Accuracy(*numbers)


def test_tails_leave_fewer_degrees_of_freedom() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(4000, generator=generator, dtype=torch.float64)
    assert Mean(normal).degrees(0.0) == pytest.approx(3999, rel=0.15)
    assert Mean(normal.sign() * normal.square()).degrees(0.0) < 1200  # kurtosis 35 / 3
    assert Mean(normal).degrees(2.0) == pytest.approx(1000)  # of gamma samples: 2 m / (2 + 6)
    assert Mean(torch.ones(5)).degrees(0.0) == 4 and Mean(torch.tensor([1.0, 2.0])).degrees(0.0) == 1
    found = Mean(normal[:20].exp())
    (low, high), (wider, above) = found.interval(0.95), found.interval_of_tails(0.95)
    assert wider < low < high < above


def test_skewness_and_kurtosis_without_bias() -> None:
    x = lognormal(30, seed=5)
    found = Mean(x)
    assert found.skewness == pytest.approx(float(stats.skew(x.numpy(), bias=False)))
    excess = float(stats.kurtosis(x.numpy(), bias=False))
    assert found.degrees(0.0) == pytest.approx(max(2.0, 60 / (excess + 2)))
    assert Mean(torch.tensor([1.0, 4.0])).skewness == Mean(torch.ones(6)).skewness == 0
