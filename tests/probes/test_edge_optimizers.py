"""Each kind of optimizer at its own edge, in short; `case_studies/stability_audit.py` has more seeds, longer runs."""

import pytest

from digits_training import later_half, ratios
from losscope.probes import Run
from stability_audit import CASES, Case

NAMED = {case.name: case for case in CASES}


def trained(name: str, steps: int) -> tuple[Case, Run]:
    return NAMED[name], NAMED[name].run(seed=0, steps=steps)


@pytest.mark.parametrize(
    ("name", "steps"), [("GD 2/20", 1000), ("Adam (0.9, 0.99)", 1000), ("Adam (0, 0.99)", 1500), ("RMSprop", 1000)]
)
def test_it_hovers_at_the_threshold_of_its_own(name: str, steps: int) -> None:
    case, run = trained(name, steps)
    case.check(run)


def test_nesterov_arrives_within_a_few_percent() -> None:
    _, run = trained("Nesterov", 1000)
    assert 0.95 <= later_half(ratios(run)) <= 1.05
    assert run.audit()["sharpness"].verdict in ("AT_EDGE", "NEAR_EDGE_NO_OSCILLATION")


def test_heavy_ball_crosses_and_falls_back() -> None:
    case, run = trained("heavy ball", 2000)
    case.check(run)


@pytest.mark.parametrize(
    ("name", "steps"), [("GD 2/20, ReLU", 800), ("GD 2/20, cross-entropy", 600), ("Adam 3e-4, first 1000", 1000)]
)
def test_it_is_not_called_at_the_edge(name: str, steps: int) -> None:
    case, run = trained(name, steps)
    case.check(run)
    assert run.audit()["sharpness"].verdict == "BELOW_EDGE"
