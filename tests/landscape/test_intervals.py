"""Moments of samples that come in blocks, and Hall's transformation."""

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import skew, t

from losscope.landscape import diagonal, frobenius_norm, trace
from losscope.landscape.intervals import Moments, ScalarMoments, noted, student_quantile, without_skewness

F64 = torch.float64


@pytest.mark.parametrize("blocks", [[40], [1, 39], [2, 5, 33]], ids=str)
def test_moments_are_those_of_all_samples_together(blocks: list[int]) -> None:
    samples = torch.randn(7, sum(blocks), dtype=F64).exp()
    moments = Moments()
    for block in samples.split(blocks, dim=1):
        moments.add(block)
    assert moments.count == 40
    torch.testing.assert_close(moments.mean, samples.mean(dim=1))
    torch.testing.assert_close(moments.spread, samples.std(dim=1))
    biased = torch.from_numpy(skew(samples.numpy(), axis=1))  # over the spread with m in the denominator
    torch.testing.assert_close(moments.skewness, biased * (39 / 40) ** 1.5)


def test_single_precision_resolves_a_spread_far_below_the_mean() -> None:
    samples = 1 + 1e-4 * torch.randn(3, 50)
    moments = Moments()
    moments.add(samples)
    torch.testing.assert_close(moments.spread.double(), samples.double().std(dim=1), rtol=1e-4, atol=0)


def test_equal_samples_have_no_spread_at_all() -> None:
    moments = Moments()
    moments.add(torch.full((2, 30), 0.1))
    low, high = moments.interval(0.95, skewed=True)
    assert torch.equal(low, moments.mean) and torch.equal(high, torch.full((2,), 0.1))
    assert moments.spread.tolist() == moments.skewness.tolist() == [0, 0]


@pytest.mark.parametrize("blocks", [[40], [1, 39], [2, 5, 33]], ids=str)
@pytest.mark.parametrize("options", [{}, {"skewed": True}, {"skewed": True, "factor": 1.3, "least_skewness": 4.0}])
def test_those_of_one_quantity_are_the_same_in_plain_numbers(blocks: list[int], options: dict) -> None:
    samples = 5 + torch.randn(sum(blocks), dtype=F64).exp()
    moments, plain = Moments(), ScalarMoments()
    for block in samples.split(blocks):
        moments.add(block[None])
        plain.add(block)
    expected = [moments.mean, moments.spread, moments.skewness, *moments.interval(0.9, **options)]
    found = [plain.mean, plain.spread, plain.skewness, *plain.interval(0.9, **options)]
    assert plain.count == moments.count and found == pytest.approx([float(e) for e in expected], rel=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("samples", [[0.1] * 30, [1.0, 2.0, math.inf], [1.0, math.nan, 2.0], [3.0]], ids=str)
def test_plain_numbers_are_as_odd_as_tensors(samples: list[float]) -> None:
    moments, plain = Moments(), ScalarMoments()
    moments.add(torch.tensor([samples], dtype=F64))
    plain.add(torch.tensor(samples, dtype=F64))
    expected = [moments.mean, moments.spread, moments.skewness, *moments.interval(0.9, skewed=True)]
    found = [plain.mean, plain.spread, plain.skewness, *plain.interval(0.9, skewed=True)]
    assert found == pytest.approx([float(e) for e in expected], rel=1e-12, nan_ok=True)


def test_the_interval_of_symmetric_samples_is_students() -> None:
    samples = torch.randn(1, 10, dtype=F64)
    samples = torch.cat([samples, -samples], dim=1) + 3
    moments = Moments()
    moments.add(samples)
    half = t.ppf(0.95, 19) * float(samples.std()) / math.sqrt(20)
    for skewed in (True, False):
        low, high = moments.interval(0.9, skewed=skewed)
        assert (float(low), float(high)) == pytest.approx((3 - half, 3 + half), rel=1e-12)
    low, high = moments.interval(0.9, factor=2.0)
    assert float(high - low) == pytest.approx(4 * half, rel=1e-12)


@pytest.mark.parametrize("skewness", [-2.0, -0.3, 1e-9, 0.0, 0.7, 2.5])
@pytest.mark.parametrize("quantile", [-2.1, -0.5, 0.0, 2.1])
def test_the_transformation_is_halls(skewness: float, quantile: float) -> None:
    """T + g T^2 / (3 sqrt m) + g^2 T^3 / (27 m) + g / (6 sqrt m) is the Student quantile (Hall 1992)."""
    m = 25
    T = float(without_skewness(quantile, torch.tensor(skewness, dtype=F64), m))
    root = math.sqrt(m)
    cubic = T + skewness * T**2 / (3 * root) + skewness**2 * T**3 / (27 * m) + skewness / (6 * root)
    assert cubic == pytest.approx(quantile, abs=1e-7)


def test_the_quantile_is_two_sided() -> None:
    assert student_quantile(29, 0.95) == pytest.approx(t.ppf(0.975, 29), rel=1e-12)


# --------------------------------------------------------------------------- accuracies out of reach


@pytest.mark.parametrize("estimator", [trace, frobenius_norm, diagonal, functools.partial(trace, method="slq")])
def test_an_accuracy_beyond_that_of_products_is_named(estimator: Callable[..., Any]) -> None:
    A = torch.diag(torch.linspace(1, 2, 3000)) + 0.1
    for rtol, words in ((1e-9, "rtol=1.0e-09 is out of reach: products are known to 3.8e-06"), (1e-3, "")):
        found = estimator(A, rtol=rtol, max_matvecs=40, seed=0)
        assert (found.note, found.converged) == (words, False)
    small = estimator(A[:20, :20], rtol=1e-9, seed=0)
    assert (small.note == "") == small.converged


def test_notes_are_kept() -> None:
    assert noted("ambiguous", 1e-9, 1e-6, reached=False).startswith("ambiguous; rtol=1.0e-09 is out of reach")
    assert noted("ambiguous", 1e-9, 1e-6, reached=True) == noted("ambiguous", 1e-3, 1e-6, reached=False) == "ambiguous"
