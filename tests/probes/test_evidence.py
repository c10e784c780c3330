"""Evidence: sentences on what was measured, and nothing on what was not."""

import re
from typing import Any

import pytest
import torch

from losscope.probes import Record, Run
from losscope.probes.evidence import evidence
from losscope.probes.window import Oscillation
from observed_runs import facts_and_window, observed_run


def said(run: Run, *, above: bool = False) -> tuple[str, ...]:
    facts, window = facts_and_window(run)
    return evidence(run, "model", window, facts, Oscillation(run, "model", window, facts), above=above)


def number(pattern: str, sentences: tuple[str, ...]) -> float:
    (found,) = [m for s in sentences if (m := re.search(pattern, s))]
    return float(found[1])


# --------------------------------------------------------------------------- real trainings


def test_gradient_descent_at_the_edge() -> None:
    found = said(observed_run(lr=0.15, steps=900, every=20))
    assert number(r"changed sign in (\d+)%", found) >= 95
    assert number(r"full-batch loss rose in (\d+)%", found) >= 20
    assert number(r"the loss is ([\d.]+)", found) < 0.98
    assert number(r"the gradient ([\d.]+)", found) < 0.4
    assert 0.97 < number(r"the sharpness ([\d.]+) times", found) < 1.03
    assert len(found) == 4 and not any("data=" in s for s in found)


def test_mini_batches_far_below_it() -> None:
    found = said(observed_run(size=16, lr=0.01, steps=300, every=10))
    assert not any("full-batch" in s for s in found)
    assert number(r"rose from one measurement to the next (\d+) times of \d+", found) <= 4
    assert number(r"the loss is ([\d.]+)", found) > 0.95
    assert all(len(s) < 200 for s in found)


def test_training_that_diverges() -> None:
    """Above the edge, where the loss goes is told."""
    torch.manual_seed(0)
    found = said(observed_run(lr=0.5, steps=9, every=1), above=True)
    (trend,) = [s for s in found if s.startswith("above the edge")]
    assert re.fullmatch(r"above the edge, the loss (rises|falls|rises and falls) over the last three .*\(.*\)", trend)


# --------------------------------------------------------------------------- drawn records


def drawn(
    count: int = 8,
    *,
    midpoints: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
    above: bool = False,
    **values: Any,
) -> tuple[str, ...]:
    base = {"threshold": 20.0, "threshold_largest": 20.0, "sharpness": 10.0, "sharpness_low": 9.9, "two_over_lr": 20.0}
    records = []
    for i in range(count):
        at = {name: value[i] if isinstance(value, list) else value for name, value in values.items()}
        records.append(Record(10 * i, "model", "stability", lr=0.1, values=base | at))
        if midpoints is not None:
            records.append(Record(10 * i + 1, "model", "midpoint", values=midpoints))
    run = Run.from_records({"players": {"model": {"batch_size": 100, "samples": 100} | (facts or {})}}, records)
    return said(run, above=above)


def test_what_was_not_measured_is_not_mentioned() -> None:
    assert drawn() == ()
    assert drawn(0) == ()


def test_the_midpoint_against_the_weights() -> None:
    middle = {"loss": 0.3, "loss_before": 0.4, "gradient_norm": 0.1, "sharpness": 10.5, "threshold": 20.0}
    (found,) = drawn(midpoints=middle, gradient_norm=0.5, loss=0.4)
    assert found == (
        "midway between successive weights, where oscillation cancels, the loss is 0.75, the gradient 0.2 and the "
        "sharpness 1.05 times what it is at the weights (median of 5)"
    )
    (found,) = drawn(midpoints={"loss": 0.3, "loss_before": 0.4, "gradient_norm": None}, loss=0.4)
    assert "the loss is 0.75 times what" in found
    assert drawn(midpoints={"loss": 0.3, "loss_before": 0.0}, loss=0.0) == ()


def test_midpoints_of_other_times_do_not_count() -> None:
    records = [Record(10 * i, "model", "stability", values={"threshold": 20.0, "loss": 1.0}) for i in range(40)]
    records.append(Record(11, "model", "midpoint", values={"loss": 0.1, "loss_before": 1.0}))
    run = Run.from_records({"players": {"model": {"batch_size": 9, "samples": 9}}}, records)
    assert said(run) == ()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (20.8, "1.04 of 2/lr, so that it raises the loss; at 0.962 times its length it would leave the loss as it is"),
        (10.0, "0.5 of 2/lr, so that it lowers the loss; at 2 times its length it would leave the loss as it is"),
        (20.02, "1 of 2/lr, so that it leaves the loss about as it is"),
        (0.1, "0.005 of 2/lr, the loss falls on far beyond the update's length"),
    ],
)
def test_the_critical_sharpness(value: float, words: str) -> None:
    (found,) = drawn(critical_sharpness=value)
    assert found == f"critical sharpness along the update: {words}"


@pytest.mark.parametrize(
    ("losses", "going"),
    [([1.0, 2.0, 4.0], "rises"), ([4.0, 2.0, 1.0], "falls"), ([1.0, 2.0, 1.5], "rises and falls")],
)
def test_the_trend_above_the_edge(losses: list[float], going: str) -> None:
    loss = [1.0] * 5 + losses
    (found,) = drawn(above=True, sharpness=25.0, sharpness_low=24.0, loss=loss)
    shown = ", ".join(f"{v:.3g}" for v in losses)
    assert found == f"above the edge, the loss {going} over the last three measurements ({shown})"
    assert drawn(sharpness=25.0, sharpness_low=24.0, loss=loss) == ()  # where the audit does not say so


def test_the_measured_loss_of_mini_batch_training() -> None:
    (found,) = drawn(facts={"batch_size": 4}, loss=[9.0, 9.0, 9.0, 1.0, 2.0, 1.0, 2.0, 1.0])
    assert found == "the loss of data= rose from one measurement to the next 2 times of 4"


def test_the_smoothness_fit_is_of_the_whole_run() -> None:
    norms = [1 + i % 7 for i in range(40)]
    (found,) = drawn(40, gradient_norm=norms, sharpness=[5.0 + n for n in norms])
    assert found.startswith("(L0, L1)-smoothness: sharpness = 5 + 1 |gradient|") and "40 measurements" in found
    (found,) = drawn(40, gradient_norm=norms, sharpness=[20.0 - n for n in norms])
    assert "explains nothing here" in found
