"""Verdicts from drawn records: sharpness, and what bars every line."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest

from audited_runs import FULL, SINGLE, SMALL, UNSET, audit_of, flips, stability, steady, verdicts, with_gradient
from losscope.probes import Record, Run
from losscope.probes.catalogue import CATALOGUE


@pytest.mark.parametrize("facts", [FULL, UNSET, SMALL], ids=["full batch", "batch size not given", "given wrongly"])
@pytest.mark.parametrize(
    ("ratio", "share", "verdict"),
    [
        (0.5, 0.0, "BELOW_EDGE"),
        (0.5, 1.0, "BELOW_EDGE"),
        (1.0, 1.0, "AT_EDGE"),
        (1.0, 0.8, "AT_EDGE"),
        (1.0, 0.5, "NEAR_EDGE_NO_OSCILLATION"),
        (1.0, 0.0, "NEAR_EDGE_NO_OSCILLATION"),
        (1.3, 1.0, "ABOVE_EDGE"),
        (1.3, 0.0, "ABOVE_EDGE"),
        (0.88, 1.0, "INCONCLUSIVE"),  # 0.836 to 0.924: across 0.9
        (1.12, 1.0, "INCONCLUSIVE"),
    ],
)
def test_sharpness_in_full_batch_training(facts, ratio, share, verdict):
    audit = audit_of(with_gradient(steady(ratio), 1.0) + flips(share), **facts)
    line = audit["sharpness"]
    assert line.verdict == verdict
    assert line.kind == "necessary and sufficient"
    assert line.ratio == pytest.approx(ratio)
    assert line.threshold == pytest.approx(20.0)
    assert line.ratio_low < line.ratio < line.ratio_high
    assert audit.above_edge == (verdict == "ABOVE_EDGE")
    assert line.reason
    assert "full-batch" in line.assumptions[0].text
    assert line.assumptions[0].holds is True


def test_full_batch_is_taken_at_its_word_only_where_no_gradient_was_seen():
    said = audit_of(steady(0.5), **FULL)["sharpness"]
    assert (said.kind, said.verdict, said.assumptions[0].holds) == ("necessary and sufficient", "BELOW_EDGE", None)
    unknown = audit_of(steady(0.5), **UNSET)["sharpness"]
    assert (unknown.kind, unknown.verdict) == ("necessary", "NOT_EXCLUDED")
    assert "batch_size=" in unknown.reason
    # One fixed batch as data, and training on others: batch_size equals the number of samples, and proves nothing.
    audit = audit_of(with_gradient(steady(0.5), 0.4), **FULL)
    assert (audit["sharpness"].kind, audit["sharpness"].verdict) == ("necessary", "INCONCLUSIVE")
    assert "covers data=" in audit["s_mu"].reason


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_clipped_or_scaled_gradients_make_it_inconclusive(ratio):
    line = audit_of(with_gradient(steady(ratio), 1.0, scale=0.1) + flips(1.0), **FULL)["sharpness"]
    assert line.verdict == "INCONCLUSIVE"
    assert "0.1 times the gradient" in line.reason


def test_measurements_that_fail_at_the_end_leave_nothing_to_say():
    failed = Record(900, "model", "stability", status="error", reason="RuntimeError: no such thing")
    line = audit_of([*steady(0.5), failed], **FULL)["sharpness"]
    assert line.verdict == "INCONCLUSIVE"
    assert "no such thing" in line.reason
    assert "900" in line.reason
    only = audit_of([failed], **FULL)["sharpness"]
    assert only.verdict == "NOT_APPLICABLE"
    assert "no such thing" in only.reason


def test_a_last_rate_of_zero_does_not_lose_the_audit():
    still = dataclasses.replace(stability(900, 0.0, threshold=None, rate=None), lr=0.0)
    assert audit_of([*with_gradient(steady(0.5), 1.0), still], **FULL)["sharpness"].verdict == "BELOW_EDGE"


def swinging(flips: float, swings: float, steps: int = 12) -> list[Record]:
    """What was seen of the motion after each measurement: shares of steps, and of places about their midpoints."""
    values = {"flips": 6 * flips, "pairs": 6.0, "swings": 5 * swings, "swing_pairs": 5.0}
    return [Record(50 * i, "model", "oscillation", values=values) for i in range(steps)]


@pytest.mark.parametrize(
    ("swings", "facts", "verdict"),
    [
        (1.0, FULL, "AT_EDGE"),
        (0.95, FULL, "AT_EDGE"),
        (0.85, FULL, "NEAR_EDGE_NO_OSCILLATION"),  # of 25 pairs rounding alone gives as much
        (0.2, FULL, "NEAR_EDGE_NO_OSCILLATION"),
        (1.0, SMALL, "NEAR_EDGE_NO_OSCILLATION"),  # noise of mini-batches swings too
    ],
)
def test_oscillation_in_bursts_is_seen_about_its_midpoint(swings: float, facts: dict[str, Any], verdict: str) -> None:
    line = audit_of([*steady(1.0), *swinging(0.5, swings)], **facts)["sharpness"]
    assert line.verdict == verdict
    assert ("less its drift" in line.reason) == (verdict == "AT_EDGE")
    assert audit_of([*steady(0.5), *swinging(0.5, swings)], **FULL)["sharpness"].verdict == "BELOW_EDGE"


def at_rate(rate: float, count: int = 6, first: int = 600, **values: float) -> list[Record]:
    """Measurements at a rate that has no threshold."""
    bare = [stability(first + 50 * i, 0.5, threshold=None, rate=None) for i in range(count)]
    return [dataclasses.replace(r, lr=rate, values=r.values | values) for r in bare]


@pytest.mark.parametrize("facts", [FULL, SMALL], ids=["full batch", "mini-batches"])
@pytest.mark.parametrize("before", [12, 0], ids=["at the end", "from the start"])
def test_a_negative_rate_climbs(before: int, facts: dict[str, Any]) -> None:
    known = {} if before else {"threshold_reason": "the learning rate is -0.1, which is not a positive number"}
    records = [*steady(0.5, before), *at_rate(-0.1)]
    audit = audit_of(records, **facts, **known)
    line = audit["sharpness"]
    assert (line.verdict, line.ratio, line.threshold) == ("ABOVE_EDGE", None, None) and audit.above_edge
    assert "the learning rate is -0.1 in 6 measured updates, steps 600 to 850" in line.reason
    assert {c.verdict for c in audit.criteria[1:]} == {"NOT_APPLICABLE"}
    assert any(a.holds is False and "-0.1" in a.text and "600 to 850" in a.text for a in audit.preconditions)


@pytest.mark.parametrize(
    ("values", "facts", "words"),
    [
        ({"sharpness": -1.0, "sharpness_low": -1.1}, FULL, "no positive curvature"),
        ({}, {**FULL, "mode_matters": True, "mode": "eval"}, "mode='eval'"),
    ],
)
def test_a_negative_rate_climbs_where_curvature_is_positive_only(
    values: dict[str, float], facts: dict[str, Any], words: str
) -> None:
    line = audit_of([*steady(0.5), *at_rate(-0.1, **values)], **facts)["sharpness"]
    assert line.verdict == "INCONCLUSIVE" and words in line.reason and "-0.1" in line.reason


@pytest.mark.parametrize("facts", [{"optimizers": 2}, {"coupled": True}, {"threshold_reason": "no stability rule"}])
def test_of_what_moves_otherwise_a_negative_rate_says_nothing(facts: dict[str, Any]) -> None:
    audit = audit_of(at_rate(-0.1), **FULL, **facts)
    assert set(verdicts(audit).values()) == {"NOT_APPLICABLE"}
    assert any("-0.1" in a.text for a in audit.preconditions)


@pytest.mark.parametrize("rate", [math.nan, math.inf, -math.inf])
def test_a_rate_that_is_no_number_is_named(rate: float) -> None:
    lost = [Record(700, "model", "stability", status="nonfinite", reason="the loss is nan")]
    line = audit_of([*steady(0.5), *at_rate(rate, 1), *lost], **FULL)["sharpness"]
    assert line.verdict == "INCONCLUSIVE"
    assert f"{rate:g} at step 600" in line.reason and "not finite from step 700 on" in line.reason


def test_wrong_rates_in_between() -> None:
    records = [*steady(0.5), *at_rate(-0.1, 3), *(stability(750 + 50 * i, 0.5) for i in range(3))]
    line = audit_of(records, **FULL)["sharpness"]
    assert line.verdict == "INCONCLUSIVE" and "-0.1 in 3 measured updates, steps 600 to 700" in line.reason
    records += [stability(900 + 50 * i, 0.5) for i in range(60)]
    audit = audit_of(records, **FULL)
    assert audit["sharpness"].verdict == "BELOW_EDGE"  # long ago; it stays among the preconditions
    assert any(a.holds is False and "steps 600 to 700" in a.text for a in audit.preconditions)


def test_what_rounding_makes_of_zero_is_no_negative_rate() -> None:
    audit = audit_of([*steady(0.5), *at_rate(-1e-17)], **FULL)
    assert audit["sharpness"].verdict == "BELOW_EDGE" and not any("rate" in a.text for a in audit.preconditions)


def test_a_threshold_that_goes_away_is_not_forgotten() -> None:
    line = audit_of([*steady(0.5), *at_rate(0.1)], **FULL)["sharpness"]
    assert line.verdict == "INCONCLUSIVE" and "no threshold from step 600 on" in line.reason
    assert audit_of([*steady(1.5), *at_rate(0.1)], **FULL)["sharpness"].verdict == "ABOVE_EDGE"


def test_an_older_upper_bound_counts_relative_to_its_value():
    records = with_gradient([stability(0, 0.25), *(stability(10 * i, 0.5, width=None) for i in range(1, 8))], 1.0)
    line = audit_of(records, **FULL)["sharpness"]
    assert line.verdict == "BELOW_EDGE"
    assert line.low <= line.measured < line.high == pytest.approx(1.05 * line.measured)
    assert any("as at step 0" in a.text for a in line.assumptions)


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(0.5, "NOT_EXCLUDED"), (1.0, "AT_EDGE"), (1.3, "ABOVE_EDGE"), (0.88, "INCONCLUSIVE")]
)
def test_with_minibatches_sharpness_is_necessary_only(ratio, verdict):
    line = audit_of(steady(ratio) + flips(1.0), **SMALL)["sharpness"]
    assert (line.verdict, line.kind) == (verdict, "necessary")


def test_without_any_observation_nothing_is_at_the_edge():
    audit = audit_of(steady(1.0), **FULL)
    assert audit["sharpness"].verdict == "NEAR_EDGE_NO_OSCILLATION"
    assert "not observed" in audit.evidence
    assert "not observed" in audit["sharpness"].reason


def logged(losses: Callable[[int], float]) -> list[Record]:
    return [Record(t, "model", "log", values={"loss": losses(t)}) for t in range(600)]


def test_a_rising_full_batch_loss_is_evidence_of_oscillation_and_a_rising_minibatch_loss_is_not():
    wobbling = logged(lambda t: math.exp(-t / 300) * (1 + 0.1 * (-1) ** t))
    falling = logged(lambda t: math.exp(-t / 300))
    assert audit_of(steady(1.0) + wobbling, **FULL)["sharpness"].verdict == "AT_EDGE"
    assert audit_of(steady(1.0) + falling, **FULL)["sharpness"].verdict == "NEAR_EDGE_NO_OSCILLATION"
    assert audit_of(steady(1.0) + wobbling, **UNSET)["sharpness"].verdict == "NEAR_EDGE_NO_OSCILLATION"
    assert audit_of(steady(1.0) + wobbling, **SMALL)["sharpness"].verdict == "NEAR_EDGE_NO_OSCILLATION"


def test_a_loss_that_is_logged_now_and_then_is_no_evidence():
    rare = [Record(t, "model", "log", values={"loss": float(t)}) for t in range(0, 600, 2)]
    assert audit_of(steady(1.0) + rare, **FULL)["sharpness"].verdict == "NEAR_EDGE_NO_OSCILLATION"


def test_without_an_upper_bound_nothing_is_below_the_edge():
    line = audit_of(steady(0.5, width=None), **FULL)["sharpness"]
    assert line.verdict == "INCONCLUSIVE"
    assert "no upper bound" in line.reason
    assert audit_of(steady(1.5, width=None), **FULL)["sharpness"].verdict == "ABOVE_EDGE"


def test_a_recent_upper_bound_still_counts_and_says_so():
    early, late = stability(300, 0.5, width=0.2), [stability(300 + 10 * i, 0.6, width=None) for i in range(1, 12)]
    line = audit_of([early, *late], **FULL)["sharpness"]
    assert line.verdict == "BELOW_EDGE"
    assert line.ratio_high == pytest.approx(0.6 * 1.2)
    assert any("step 300" in a.text and a.holds is None for a in line.assumptions)
    stale = [stability(300 + 100 * i, 0.6, width=None) for i in range(1, 12)]
    assert audit_of([early, *stale], **FULL)["sharpness"].verdict == "INCONCLUSIVE"


def test_the_sharpness_probe_bounds_it_too():
    bound = Record(540, "model", "sharpness", value=10.0, low=9.9, high=11.0, values={"threshold": 20.0})
    line = audit_of([*steady(0.5, width=None), bound], **FULL)["sharpness"]
    assert line.verdict == "BELOW_EDGE"
    assert line.ratio_high == pytest.approx(0.55)


def test_the_bound_of_one_measurement_is_none_of_what_the_others_measured():
    """A rate that was halved at the last one, the only one with an upper bound."""
    records = [*(stability(10 * i, 0.98, width=None) for i in range(4)), stability(40, 0.50, lr=0.05, width=0.04)]
    line = audit_of(records, **FULL)["sharpness"]
    assert line.ratio == pytest.approx(0.98)
    assert line.ratio_high == pytest.approx(0.98 * 1.04)
    assert line.verdict != "BELOW_EDGE"


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.85])
def test_a_part_of_the_parameters_bounds_it_from_below_only(ratio):
    line = audit_of(steady(ratio), **FULL, covers_optimizer=False)["sharpness"]
    assert line.verdict == "INCONCLUSIVE"
    assert "only part" in line.reason
    assert audit_of(steady(1.5), **FULL, covers_optimizer=False)["sharpness"].verdict == "ABOVE_EDGE"


def test_groups_of_different_rates_give_an_interval_of_thresholds():
    # Thresholds 20 to 40: 30 is above the one and below the other.
    between = audit_of(steady(1.5, largest=40.0, rate=None), **FULL)["sharpness"]
    assert between.verdict == "INCONCLUSIVE"
    assert (between.ratio_low, between.ratio_high) == (pytest.approx(0.95 * 0.75), pytest.approx(1.05 * 1.5))
    assert audit_of(steady(0.5, largest=40.0, rate=None), **FULL)["sharpness"].verdict == "BELOW_EDGE"
    assert audit_of(steady(2.5, largest=40.0, rate=None), **FULL)["sharpness"].verdict == "ABOVE_EDGE"
    noise = audit_of(steady(0.5, largest=40.0, rate=None), **SMALL)
    assert noise["s_mu"].verdict == "INCONCLUSIVE"
    assert "rate" in noise["s_mu"].reason  # there is no one 2/lr
    assert noise["s_mu"].measured == pytest.approx(5.0)


def test_the_ratio_is_formed_at_each_step_with_its_own_rate():
    # The rate falls tenfold in the window; sharpness follows, so that the ratio is 1 throughout.
    records = [stability(50 * i, 1.0, lr=0.1 if i < 11 else 0.01, s_mu=5.0) for i in range(12)]
    line = audit_of(records + flips(1.0), **FULL)["sharpness"]
    assert line.ratio == pytest.approx(1.0)
    assert line.verdict == "AT_EDGE"
    # The sharpness of old, the rate of now: what counts is the last quarter.
    dropped = [stability(50 * i, 1.0 if i < 24 else 0.1, lr=0.1 if i < 24 else 0.01) for i in range(32)]
    audit = audit_of(dropped, **FULL)
    assert audit["sharpness"].ratio == pytest.approx(0.1)
    assert audit.steps == (1200, 1550)


# --------------------------------------------------------------------------- what bars every line


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"optimizers": 2}, "2 optimizers"),
        ({"coupled": True}, "another player"),
        ({"optimizers": 2, "mode_matters": True, "loss_family": "other"}, "2 optimizers"),
    ],
)
@pytest.mark.parametrize("sort", [FULL, SMALL, UNSET])
def test_an_objective_that_moves_has_no_verdict_at_all(sort, facts, words):
    audit = audit_of(steady(1.5, s_mu=100.0) + flips(1.0), **sort, **facts)
    assert set(verdicts(audit).values()) == {"NOT_APPLICABLE"}
    assert all(words in c.reason for c in audit.criteria)
    assert not audit.above_edge
    assert audit["sharpness"].measured == pytest.approx(30.0)


def test_an_optimizer_without_a_rule_has_no_verdict_at_all():
    audit = audit_of(steady(0.5, threshold=None), **SMALL, threshold_reason="no stability rule for Adam yet")
    assert set(verdicts(audit).values()) == {"NOT_APPLICABLE"}
    assert all("Adam" in c.reason for c in audit.criteria)
    assert audit["sharpness"].measured == pytest.approx(10.0)


def test_without_measurements_there_is_no_verdict():
    audit = audit_of([Record(0, "model", "log", values={"loss": 1.0})], **FULL)
    assert set(verdicts(audit).values()) == {"NOT_APPLICABLE"}
    assert audit.steps is None
    assert audit.measurements == 0
    assert "Stability()" in audit["sharpness"].reason
    failed = audit_of([Record(0, "model", "stability", status="error", reason="RuntimeError")], **FULL)
    assert set(verdicts(failed).values()) == {"NOT_APPLICABLE"}


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.5])
def test_another_mode_than_trainings_is_inconclusive(ratio):
    audit = audit_of(steady(ratio, s_mu=100.0) + flips(1.0), **SMALL, mode="eval", mode_matters=True)
    assert verdicts(audit, "sharpness", "trace", "s_mu") == {
        "sharpness": "INCONCLUSIVE",
        "trace": "NOT_APPLICABLE",
        "s_mu": "INCONCLUSIVE",
    }
    assert 'mode="train"' in audit["s_mu"].reason
    single = audit_of(steady(ratio), **SINGLE, mode="eval", mode_matters=True)
    assert single["trace"].verdict == "INCONCLUSIVE"


def test_a_summed_loss_is_inconclusive_but_for_full_batches():
    assert audit_of(steady(0.5), **SMALL, summed=True)["sharpness"].verdict == "INCONCLUSIVE"
    assert audit_of(steady(0.5), **SMALL, summed=True)["s_mu"].verdict == "INCONCLUSIVE"
    assert audit_of(steady(0.5), **UNSET, summed=True)["sharpness"].verdict == "INCONCLUSIVE"
    assert audit_of(steady(0.5), **FULL, summed=True)["sharpness"].verdict == "BELOW_EDGE"


def test_a_run_that_diverged_was_not_below_the_edge():
    lost = [Record(600 + 50 * i, "model", "stability", status="nonfinite", reason="the loss is nan") for i in range(3)]
    audit = audit_of(steady(0.5) + lost, **SMALL)
    assert verdicts(audit, "sharpness", "trace", "s_mu") == {
        "sharpness": "INCONCLUSIVE",
        "trace": "NOT_APPLICABLE",
        "s_mu": "INCONCLUSIVE",
    }
    assert "step 600" in audit["sharpness"].reason
    assert audit_of(steady(1.5) + lost, **SMALL)["sharpness"].verdict == "ABOVE_EDGE"
    recovered = [lost[0], *(stability(650 + 50 * i, 0.5) for i in range(12))]
    assert audit_of(recovered, **FULL)["sharpness"].verdict == "BELOW_EDGE"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_short_runs(count):
    audit = audit_of(steady(0.5, count), **SMALL)
    assert audit.measurements == count
    assert audit.steps == (0, 50 * (count - 1))
    assert verdicts(audit, "sharpness", "trace", "s_mu") == {
        "sharpness": "NOT_EXCLUDED",
        "trace": "NOT_APPLICABLE",
        "s_mu": "NOT_EXCLUDED",
    }


def test_lines_are_found_by_name():
    audit = audit_of(steady(0.5), **FULL)
    assert [c.name for c in audit.criteria] == list(CATALOGUE)
    with pytest.raises(KeyError, match="sharpness, trace, aligned_trace"):
        audit["curvature"]


def test_facts_that_an_older_run_lacks_do_not_hinder():
    meta = {"identity": {}, "players": {"model": {}}}
    assert Run.from_records(meta, steady(0.5)).audit()["sharpness"].verdict == "NOT_EXCLUDED"
