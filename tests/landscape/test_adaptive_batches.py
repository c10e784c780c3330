"""Tests of the batch size: against the papers' formulas, literally, and by whether batches of that size pass."""

import math

import pytest
import torch

from losscope.landscape import SettingError
from losscope.landscape.adaptive_batches import batch_size_tests, statistics

F64 = torch.float64


def gradients(n: int = 30, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=F64) + 0.5


def test_statistics_are_the_papers_literally() -> None:
    g = gradients()
    b, mean = len(g), g.mean(dim=0)
    norm = sum(float((x - mean).square().sum()) for x in g) / (b - 1) / b / float(mean @ mean)
    inner = sum(float(x @ mean - mean @ mean) ** 2 for x in g) / (b - 1) / b / float(mean @ mean) ** 2
    across = sum(float((x - (x @ mean) / (mean @ mean) * mean).square().sum()) for x in g) / (b - 1) / b
    expected = (math.sqrt(norm), math.sqrt(inner), math.sqrt(across / float(mean @ mean)))
    assert statistics(g) == pytest.approx(expected, rel=1e-12)


def test_the_population_s_are_those_of_large_batches() -> None:
    g = gradients(4000)
    mean, covariance = g.mean(dim=0), torch.cov(g.T)
    known = (float(covariance.trace()), float(mean @ mean), float(mean @ covariance @ mean))
    tests = batch_size_tests(known, torch.zeros(3, 3, dtype=F64), 4000, 10)
    assert [t.statistic for t in tests] == pytest.approx(statistics(g), rel=1e-9)
    assert all(t.low == pytest.approx(t.statistic) == t.high for t in tests)


def test_the_needed_batch_just_passes() -> None:
    covariance = torch.diag(torch.tensor([4.0, 0.01, 0.1], dtype=F64))
    for i, test in enumerate(batch_size_tests((100.0, 4.0, 90.0), covariance, 25, 19)):
        for j, expected in enumerate((test.statistic, test.low, test.high)):
            again = test.batch_size * (expected / test.limit) ** 2
            assert test.needed[j] == pytest.approx(again)
        larger = max(1, math.ceil(test.needed[2]))
        assert batch_size_tests((100.0, 4.0, 90.0), covariance, larger, 19)[i].passes is True
        smaller = math.floor(test.needed[1])
        if smaller >= 1:
            assert batch_size_tests((100.0, 4.0, 90.0), covariance, smaller, 19)[i].passes is not True


def test_without_a_gradient_nothing_is_said() -> None:
    covariance = torch.eye(3, dtype=F64)
    for test in batch_size_tests((100.0, 0.1, 5.0), covariance, 25, 19):
        assert test.high == math.inf
        assert test.passes is not True
    assert batch_size_tests((100.0, -0.1, 5.0), covariance, 25, 19)[0].statistic == math.inf
    assert statistics(torch.tensor([[1.0], [-1.0]])) == (math.inf, math.inf, math.inf)


def test_bad_input() -> None:
    known = torch.zeros(3, 3, dtype=F64)
    with pytest.raises(SettingError, match="batch_size must be an integer of at least 1"):
        batch_size_tests((1.0, 1.0, 1.0), known, 0, 10)
    with pytest.raises(SettingError, match="thetas positive"):
        batch_size_tests((1.0, 1.0, 1.0), known, 1, 10, thetas=(0.9, 0.0, 1.0))
    with pytest.raises(SettingError, match="at least two samples"):
        statistics(torch.ones(1, 3))
