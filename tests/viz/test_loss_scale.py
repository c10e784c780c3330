"""On what scale values are shown, and at which levels."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from losscope.landscape import SettingError
from losscope.viz.loss_scale import level_text, levels_of, loss_scale, said


def geometric(low: float, high: float, points: int = 200) -> np.ndarray:
    return np.geomspace(low, high, points)


def test_positive_values_that_spread_are_logarithmic() -> None:
    assert loss_scale(geometric(0.1, 3)).logarithmic
    assert not loss_scale(geometric(0.2, 3)).logarithmic
    assert loss_scale(geometric(0.2, 3), "log").logarithmic
    assert not loss_scale(geometric(1e-6, 3), "linear").logarithmic


def test_values_that_are_not_positive_are_shown_above_the_lowest() -> None:
    assert not loss_scale(np.linspace(-5, 10, 100)).logarithmic
    found = loss_scale(-5 + np.concatenate([[0.0], geometric(1e-2, 1e4)]))
    assert found.logarithmic and found.base == -5 and found.below
    assert (found.low, found.high) == pytest.approx((1e-2, 1e4), rel=1e-6)
    assert found.label("loss") == "loss above its lowest, −5"
    zero = loss_scale(np.concatenate([[0.0], geometric(1e-4, 10)]))
    assert zero.logarithmic and zero.base == 0 and zero.label("loss") == "loss"


def test_few_far_values_do_not_take_the_colours() -> None:
    far = np.concatenate([np.linspace(1, 2, 98), [1e30, 1e35]])
    found = loss_scale(far)
    assert found.logarithmic and found.high < 2.1 and found.above
    assert levels_of(found).extend == "max"
    assert levels_of(found).values[-1] <= 2.1
    lowest = loss_scale(np.concatenate([[1e-20], geometric(1, 1e3, 300)]))
    assert lowest.below and lowest.low == pytest.approx(1, rel=0.2)
    bad = loss_scale(np.concatenate([[-1e6], np.linspace(0, 1, 99)]), "linear")  # e.g. a metric
    assert bad.below and bad.low > -0.1


@pytest.mark.parametrize("scale", ["auto", "linear", "log"])
@given(
    values=st.lists(
        st.floats(-1e30, 1e30).filter(lambda v: v == 0 or abs(v) > 1e-30) | st.just(math.nan) | st.just(math.inf),
        min_size=1, max_size=30,
    )
)  # fmt: skip
def test_levels_rise_are_few_and_have_texts(scale: str, values: list[float]) -> None:
    found = loss_scale(np.array(values), scale)
    levels = levels_of(found)
    assert 2 <= len(levels.values) <= 14
    assert np.isfinite(levels.values).all() and (np.diff(levels.values) > 0).all()
    assert len(levels.texts) == len(levels.values)
    if levels.extend in ("neither", "max"):
        assert levels.values[0] <= found.low
    if levels.extend in ("neither", "min"):
        assert levels.values[-1] >= found.high


@pytest.mark.parametrize("decades", [1.4, 2, 4, 8, 12, 30, 100])
def test_levels_of_any_range_are_round(decades: float) -> None:
    levels = levels_of(loss_scale(geometric(0.02, 0.02 * 10**decades), "log"))
    assert 5 <= len(levels.values) <= 11
    mantissas = levels.values / 10.0 ** np.floor(np.log10(levels.values) + 1e-9)
    assert set(mantissas.round(6)) <= {1, 1.5, 2, 3, 5, 7, 2.5, 4, 6, 8}
    assert len(set(levels.texts)) == len(levels.texts)


def test_texts_tell_neighbours_apart() -> None:
    values = np.array([1.0, 1.00025, 1.0005])
    assert [level_text(v, values) for v in values] == ["1", "1.00025", "1.0005"]
    assert [said(v) for v in (0.0, -0.5, 1234.0, 3e-10, 1e6, math.nan, -math.inf)] == [
        "0", "−0.5", "1234", r"$3\cdot10^{-10}$", "$10^{6}$", "NaN", "−∞",
    ]  # fmt: skip
    far = levels_of(loss_scale(np.linspace(2e-9, 5e-9, 50)))
    assert (far.unit, far.texts[0], far.label("loss")) == (-9, "2", "loss [$10^{-9}$]")


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(SettingError, match="'auto', 'linear', 'log'; got 'ln'"):
        loss_scale(np.ones(3), "ln")
