"""Barriers between networks trained on digits, and how they fall; see `case_studies/mode_connectivity.py`."""

import pytest

from mode_connectivity import check, connected


@pytest.mark.parametrize(("width", "seed"), [(64, 0), (64, 1), (64, 2), pytest.param(256, 0, marks=pytest.mark.slow)])
def test_what_a_straight_line_divides_is_connected(width: int, seed: int) -> None:
    paths = connected(width, seed)
    check(paths)
    bent = paths["Bezier"]
    assert bent.history is not None and len(bent.history) == 250
    assert bent.length > paths["independent"].length > paths["aligned"].length > paths["same start"].length
    assert paths["independent"].barriers["accuracy"] > paths["aligned"].barriers["accuracy"]
