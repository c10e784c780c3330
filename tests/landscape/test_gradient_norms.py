"""Quantiles and shares of lengths: coverage on distributions of any shape, and textbook intervals."""

import math

import pytest
import torch

from losscope.landscape import SettingError
from losscope.landscape.gradient_norms import quantile, share_above


@pytest.mark.parametrize("q", [0.5, 0.9])
@pytest.mark.parametrize("K", [20, 100])
def test_coverage(q: float, K: int) -> None:
    generator = torch.Generator().manual_seed(0)
    true_quantile = -math.log(1 - q)  # of the exponential distribution
    covered = shares = 0
    for _ in range(400):
        samples = -torch.rand(K, generator=generator, dtype=torch.float64).log()
        found, share = quantile(samples, q), share_above(samples, true_quantile)
        covered += found.low <= true_quantile <= found.high
        shares += share.low <= 1 - q <= share.high
    assert min(covered, shares) / 400 >= 0.93


def test_ends_that_few_samples_do_not_show_are_infinite() -> None:
    found = quantile(torch.arange(10.0), 0.95)
    assert found.high == math.inf
    assert not found.converged
    assert found.low <= 8


def test_clopper_and_pearson() -> None:
    none, all_ = (share_above(torch.arange(20.0), c) for c in (30.0, -1.0))
    assert (none.value, none.low, none.high) == pytest.approx((0.0, 0.0, 1 - 0.025 ** (1 / 20)))
    assert (all_.value, all_.low, all_.high) == pytest.approx((1.0, 0.025 ** (1 / 20), 1.0))


def test_bad_input() -> None:
    with pytest.raises(SettingError, match="vector of at least one number"):
        quantile(torch.zeros(2, 2), 0.5)
    with pytest.raises(SettingError, match="q must be"):
        quantile(torch.zeros(2), 1.0)
    with pytest.raises(SettingError, match="confidence"):
        share_above(torch.zeros(2), 1.0, confidence=0.0)
