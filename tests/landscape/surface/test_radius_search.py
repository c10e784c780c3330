"""Radii of known ratios, and what finding them costs."""

import math

import pytest

from losscope.landscape.surface.radius_search import RTOL, largest_radius


@pytest.mark.parametrize("start", [1e-8, 0.1, 1.0, 1e6])
@pytest.mark.parametrize("power", [0.5, 1, 2, 3, 6])
@pytest.mark.parametrize("exact", [1e-6, 0.3, 40.0])
def test_power_laws(exact, power, start):
    asked = []

    def ratio(r):
        asked.append(r)
        return (r / exact) ** power

    found = largest_radius(ratio, start, 1e9)
    assert exact / (1 + RTOL) * (1 - 1e-12) <= found <= exact
    assert len(asked) <= 6 + abs(math.log2(exact / start))


def test_mixed_powers_and_steps():
    found = largest_radius(lambda r: 1e-3 * r + 5 * r**4, 1e-4, 1e3)
    assert 0.95 <= found / 0.6685 <= 1.001
    found = largest_radius(lambda r: 0.0 if r <= 0.7 else math.inf, 1e-4, 1e3)
    assert 0.7 / (1 + RTOL) <= found <= 0.7
    found = largest_radius(lambda r: 0.0 if r <= 0.7 else math.nan, 5.0, 1e3)
    assert 0.7 / (1 + RTOL) <= found <= 0.7


def test_everywhere_and_nowhere():
    assert largest_radius(lambda r: 0.0, 1e-4, 1e3) == math.inf
    assert largest_radius(lambda r: 0.99, 1e-4, 1e3) == math.inf
    assert largest_radius(lambda r: 2.0, 1e-4, 1e3) == 0
    assert largest_radius(lambda r: math.inf, 1e-4, 1e3) == 0
