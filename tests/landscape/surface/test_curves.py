"""Curves against their formulas, their polygons and a length integrated by hand."""

import pytest
import torch
from scipy.integrate import quad

from losscope.landscape import SettingError
from losscope.landscape.surface.curves import Curve

P = [torch.tensor(p, dtype=torch.float64) for p in ([0.0, 1.0, 2.0], [3.0, -1.0, 0.5], [1.0, 1.0, 1.0])]
KINDS = ("linear", "bezier", "chain")


def curve(kind: str) -> Curve:
    return Curve(kind, (P[0], P[2]) if kind == "linear" else tuple(P))


@pytest.mark.parametrize("kind", KINDS)
def test_it_runs_from_end_to_end_to_the_bit_with_shares_that_add_up(kind: str) -> None:
    path = curve(kind)
    assert torch.equal(path.at(0.0), P[0]) and torch.equal(path.at(1.0), P[2])
    for t in (0.0, 0.2, 0.5, 0.9, 1.0):
        assert sum(path.weights(t)) == pytest.approx(1, abs=1e-15)
        assert min(path.weights(t)) >= 0


def test_ends_that_are_not_finite_do_not_spread() -> None:
    infinite = torch.full((3,), torch.inf)
    assert torch.equal(Curve("linear", (infinite, P[0].float())).at(1.0), P[0].float())


def test_a_bezier_curve_is_two_interpolations_after_another() -> None:
    """De Casteljau's construction."""
    for t in (0.1, 0.5, 0.8):
        left, right = torch.lerp(P[0], P[1], t), torch.lerp(P[1], P[2], t)
        torch.testing.assert_close(curve("bezier").at(t), torch.lerp(left, right, t))


def test_a_chain_reaches_its_control_point_in_the_middle() -> None:
    chain = curve("chain")
    assert torch.equal(chain.at(0.5), P[1])
    torch.testing.assert_close(chain.at(0.25), (P[0] + P[1]) / 2)
    torch.testing.assert_close(chain.at(0.75), (P[1] + P[2]) / 2)


def test_lengths() -> None:
    assert curve("linear").length == pytest.approx(float((P[2] - P[0]).norm()))
    assert curve("chain").length == pytest.approx(float((P[1] - P[0]).norm() + (P[2] - P[1]).norm()))

    def speed(t: float) -> float:
        return float((2 * (1 - t) * (P[1] - P[0]) + 2 * t * (P[2] - P[1])).norm())

    assert curve("bezier").length == pytest.approx(quad(speed, 0, 1)[0], rel=1e-6)


def test_a_curve_there_and_back_on_one_line_is_as_long_as_both_ways() -> None:
    """From 0 over 1/2 (at t = 1/2) and back to 0, on the line towards a control point at 1."""
    zero, one = torch.zeros(1), torch.ones(1)
    assert Curve("bezier", (zero, one, zero)).length == pytest.approx(1.0, rel=1e-6)


def test_a_straight_curve_is_the_line() -> None:
    straight, line = curve("bezier").with_control((P[0] + P[2]) / 2), curve("linear")
    for t in (0.0, 0.3, 0.5, 1.0):
        torch.testing.assert_close(straight.at(t), line.at(t))
    assert straight.length == pytest.approx(line.length, rel=1e-9)


def test_only_kinds_that_are() -> None:
    with pytest.raises(SettingError, match="'spline'"):
        Curve("spline", tuple(P))
