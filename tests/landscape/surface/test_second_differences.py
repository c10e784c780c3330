"""Second differences against derivatives, with rounding of known size."""

import math

import pytest
import torch

from losscope.landscape.surface.second_differences import second_difference

FUNCTIONS = {
    "exp": (math.exp, 1.0),
    "sharp": (lambda t: math.cosh(30 * t), 900.0),
    "flat": (lambda t: 1 + 1e-2 * math.cos(t), -1e-2),
    "steep": (lambda t: 1 + 3 * t + t * t / (2 + t * t), 1.0),
    "quadratic": (lambda t: 3 + 2 * t + 7 * t * t, 14.0),
}


@pytest.mark.parametrize("first", [1e-7, 1e-4, 0.5])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_double_precision(name, first):
    f, exact = FUNCTIONS[name]
    found = second_difference(f, f(0.0), 1e-16 * abs(f(0.0)), first)
    assert found.value == pytest.approx(exact, rel=1e-4 if name != "flat" else 1e-3)


@pytest.mark.parametrize("relative", [1e-7, 1e-4])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_are_as_large_as_said(name, relative):
    f, exact = FUNCTIONS[name]
    rounding = relative * abs(f(0.0))
    beyond, ratios = 0, []
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)

        def noisy(t, generator=generator):
            size = relative * max(abs(f(t)), abs(f(0.0)))
            return f(t) + size * float(torch.randn((), generator=generator, dtype=torch.float64))

        found = second_difference(noisy, noisy(0.0), rounding, relative ** (1 / 3))
        ratios.append(abs(found.value - exact) / found.error)
        beyond += ratios[-1] > 5
    assert beyond <= 1
    assert torch.tensor(ratios).median() > 0.02  # nor much larger


def test_where_no_step_is_finite():
    found = second_difference(lambda t: math.nan, 1.0, 1e-16, 0.1)
    assert math.isnan(found.value)
    assert math.isnan(found.error)
    beside = second_difference(lambda t: math.inf if abs(t) > 1e-2 else t * t, 0.0, 1e-20, 1.0)
    assert beside.value == pytest.approx(2.0, rel=1e-3)
