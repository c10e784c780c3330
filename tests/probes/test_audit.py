"""Every verdict of the audit, on made-up runs and on real ones."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from drawn_runs import run_of
from losscope.probes import Audit, Player, Record, Run, Stability, watch

FULL = {"batch_size": 1000, "samples": 1000}
SMALL = {"batch_size": 32, "samples": 1000}
SINGLE = {"batch_size": 1, "samples": 1000, "outputs": 1}
UNSET = {"batch_size": None}

SAME: Any = object()


def stability(
    step: int, ratio: float, lr: float = 0.1, *, width: float | None = 0.05, largest: float | None = None,
    trace: float = 30.0, s_mu: float | None = 5.0, threshold: float | None = SAME, s_mu_width: float = 0.05,
    rate: float | None = SAME,
) -> Record:  # fmt: skip
    """One stability measurement whose sharpness is ``ratio`` times 2/lr; ``width`` None: no upper bound."""
    limit = 2 / lr if threshold is SAME else threshold
    sharpness = ratio * 2 / lr
    high = None if width is None else sharpness * (1 + width)
    values: dict[str, float | None] = {
        "sharpness": sharpness, "sharpness_low": sharpness * (1 - (width or 0.01)), "sharpness_high": high,
        "threshold": limit, "threshold_largest": largest or limit, "loss": 0.1, "gradient_norm": 0.5,
        "trace": trace, "trace_low": trace * 0.95, "trace_high": trace * 1.05,
    }  # fmt: skip
    if rate is not None:
        values["two_over_lr"] = 2 / lr
    if s_mu is not None:
        values |= {"s_mu": s_mu, "s_mu_low": s_mu * (1 - s_mu_width), "s_mu_high": s_mu * (1 + s_mu_width)}
    return Record(
        step, "model", "stability", lr=lr, unit="threshold", values=values,
        value=None if limit is None else sharpness / limit,
        high=None if limit is None or high is None else high / limit,
    )  # fmt: skip


def steady(ratio: float, steps: int = 12, **options: Any) -> list[Record]:
    return [stability(50 * i, ratio, **options) for i in range(steps)]


def flips(share: float, steps: int = 12) -> list[Record]:
    return [
        Record(50 * i, "model", "oscillation", values={"flips": 6.0 * share, "pairs": 6.0}) for i in range(steps)
    ]  # fmt: skip


def audit_of(records: list[Record], **facts: Any) -> Audit:
    return run_of(records, model=facts).audit()


def verdicts(audit: Audit) -> dict[str, str]:
    return {c.name: c.verdict for c in audit.criteria}


# --------------------------------------------------------------------------- sharpness


def with_gradient(records: list[Record], cosine: float, scale: float = 1.0) -> list[Record]:
    """The same records, in which the gradient of each step was compared with that of the data."""
    for record in records:
        record.values.update(gradient_cosine=cosine, gradient_scale=scale)
    return records


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
    assert (audit["sharpness"].kind, audit["sharpness"].verdict) == ("necessary", "NOT_EXCLUDED")
    assert "more data than one mini-batch" in audit["s_mu"].reason


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
    still = stability(900, 0.0, threshold=None, rate=None)
    assert audit_of([*with_gradient(steady(0.5), 1.0), still], **FULL)["sharpness"].verdict == "BELOW_EDGE"


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


# --------------------------------------------------------------------------- the noise of SGD


@pytest.mark.parametrize(
    ("s_mu", "width", "verdict"),
    [
        (5.0, 0.05, "NOT_EXCLUDED"),
        (20.0, 0.05, "NEAR_EDGE_NO_OSCILLATION"),
        (30.0, 0.05, "ABOVE_EDGE"),
        (22.0, 0.3, "INCONCLUSIVE"),
        (17.0, 0.1, "INCONCLUSIVE"),
    ],
)
def test_s_mu(s_mu, width, verdict):
    line = audit_of(steady(0.3, s_mu=s_mu, s_mu_width=width), **SMALL)["s_mu"]
    assert (line.verdict, line.kind) == (verdict, "necessary")
    assert line.ratio == pytest.approx(s_mu / 20)
    assert line.reason
    assert any("interpolation" in a.text for a in line.assumptions)


def test_s_mu_at_the_edge_needs_oscillation():
    assert audit_of(steady(0.3, s_mu=20.0) + flips(1.0), **SMALL)["s_mu"].verdict == "AT_EDGE"


@pytest.mark.parametrize(
    ("trace", "verdict"), [(5.0, "NOT_EXCLUDED"), (30.0, "ABOVE_EDGE"), (17.5, "INCONCLUSIVE")]
)  # fmt: skip
def test_trace_with_one_output_and_batch_size_one(trace, verdict):
    line = audit_of(steady(0.1, trace=trace), **SINGLE)["trace"]
    assert (line.verdict, line.kind) == (verdict, "necessary")
    assert line.ratio == pytest.approx(trace / 20)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({**SMALL, "outputs": 10}, ["10", "s_mu"]),
        ({**SMALL, "outputs": 1}, ["batch size 1", "32", "s_mu"]),
        ({**SMALL, "outputs": None}, ["hidden", "s_mu"]),
        (UNSET, ["batch_size="]),
        (FULL, ["full-batch", "lambda_max"]),
        ({**SINGLE, "momentum": 0.9}, ["momentum"]),
        ({**SINGLE, "loss_family": "cross-entropy"}, ["squared", "cross-entropy"]),
        ({**SINGLE, "loss_family": "other"}, ["squared", "other"]),
    ],
)
def test_where_the_trace_does_not_apply_it_says_why_and_shows_its_numbers(facts, words):
    line = audit_of(steady(0.3, trace=100.0), **facts)["trace"]
    assert line.verdict == "NOT_APPLICABLE"
    assert all(word in line.reason for word in words)
    assert (line.measured, line.threshold) == (pytest.approx(100.0), pytest.approx(20.0))
    assert line.ratio == pytest.approx(5.0)
    assert line.low < line.measured < line.high


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (UNSET, ["batch size", "batch_size="]),
        (FULL, ["full-batch", "lambda_max"]),
        ({**SMALL, "momentum": 0.9}, ["momentum"]),
        ({**SMALL, "loss_family": "cross-entropy"}, ["squared", "cross-entropy"]),
        ({**SMALL, "loss_family": "other"}, ["squared", "other"]),
    ],
)
def test_where_s_mu_does_not_apply_it_says_why(facts, words):
    line = audit_of(steady(0.3, s_mu=100.0), **facts)["s_mu"]
    assert line.verdict == "NOT_APPLICABLE"
    assert all(word in line.reason for word in words)


def test_more_than_the_edge_under_a_loss_of_unknown_kind_is_inconclusive():
    line = audit_of(steady(0.3, s_mu=100.0), **SMALL, loss_family="unknown")["s_mu"]
    assert line.verdict == "INCONCLUSIVE"
    assert "squared" in line.reason
    assert audit_of(steady(0.3, s_mu=5.0), **SMALL, loss_family="unknown")["s_mu"].verdict == "NOT_EXCLUDED"


# --------------------------------------------------------------------------- what the products were


DOUBT = (
    "ambiguous: double backward gives v'Hv = 1.25, differences of the gradient give 2.5 (products 0.5 apart): the loss "
    "stops a gradient, passes one straight through, or has a custom backward that is wrong or leaves its own "
    "derivative out"
)
STOOD_IN = "finite differences of the gradient, since torch cannot differentiate twice through F; products within {} of"


def said(records: list[Record], reason: str | None) -> list[Record]:
    return [dataclasses.replace(r, reason=reason) if r.probe != "oscillation" else r for r in records]


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.5])
def test_no_verdict_rests_on_an_ambiguous_hessian(ratio):
    audit = audit_of(said(with_gradient(steady(ratio), 1.0), DOUBT) + flips(1.0), **FULL)
    line = audit["sharpness"]
    assert line.verdict == "INCONCLUSIVE"
    assert line.reason == (
        "the loss's Hessian is ambiguous: double backward gives v'Hv = 1.25, differences of the gradient give 2.5 "
        "(products 0.5 apart)"
    )
    assert line.ratio == pytest.approx(ratio)
    assert not audit.above_edge
    assert audit.note == DOUBT


@pytest.mark.parametrize("trace", [5.0, 20.0, 30.0])
def test_nor_does_that_of_the_trace(trace):
    audit = audit_of(said(steady(0.1, trace=trace), DOUBT), **SINGLE)
    assert audit["trace"].verdict == "INCONCLUSIVE"
    assert "ambiguous" in audit["trace"].reason
    assert not audit.above_edge


@pytest.mark.parametrize(("s_mu", "verdict"), [(5.0, "NOT_EXCLUDED"), (30.0, "ABOVE_EDGE")])
def test_s_mu_rests_on_gradients_and_says_what_it_takes_for_granted(s_mu, verdict):
    line = audit_of(said(steady(0.3, s_mu=s_mu), DOUBT), **SMALL)["s_mu"]
    assert line.verdict == verdict
    assert [a.holds for a in line.assumptions if "ambiguous" in a.text] == [None]
    assert not [a for a in audit_of(steady(0.3), **SMALL)["s_mu"].assumptions if "ambiguous" in a.text]


def test_one_ambiguous_measurement_in_the_window_is_enough_and_one_before_it_is_none():
    records = steady(0.5, 40)
    records[2] = dataclasses.replace(records[2], reason=DOUBT)
    assert audit_of(records, **FULL)["sharpness"].verdict == "BELOW_EDGE"
    assert audit_of(records, **FULL).note == ""
    records[35] = dataclasses.replace(records[35], reason=DOUBT)
    assert audit_of(records, **FULL)["sharpness"].verdict == "INCONCLUSIVE"


@pytest.mark.parametrize("probe", ["sharpness", "trace"])
def test_what_another_probe_found_ambiguous_counts_as_well(probe):
    other = Record(540, "model", probe, value=10.0, low=9.9, high=11.0, reason=DOUBT)
    assert audit_of([*steady(0.5), other], **FULL)["sharpness"].verdict == "INCONCLUSIVE"
    unrelated = dataclasses.replace(other, probe="users_own")
    assert audit_of([*steady(0.5), unrelated], **FULL)["sharpness"].verdict == "BELOW_EDGE"


def test_both_values_of_a_slope_are_named_too():
    slope = (
        "ambiguous: along a unit vector v autograd gives the slope g'v = 0.5, the loss itself changes by 0.25: the loss"
    )
    line = audit_of(said(steady(0.5), slope), **FULL)["sharpness"]
    assert line.reason.endswith("g'v = 0.5, the loss itself changes by 0.25")


def test_other_reasons_do_not_make_it_ambiguous():
    failed = "S_mu was not measured: RuntimeError: the truth value of a tensor is ambiguous: use any()"
    assert audit_of(said(steady(0.5), failed), **FULL)["sharpness"].verdict == "BELOW_EDGE"
    assert audit_of(said(steady(0.5), failed), **FULL).note == failed
    both = audit_of(said(steady(0.5), f"{DOUBT}; {failed}"), **FULL)
    assert both["sharpness"].reason.endswith("(products 0.5 apart)")
    assert both.note == f"{DOUBT}; {failed}"


@pytest.mark.parametrize(("ratio", "verdict"), [(0.5, "BELOW_EDGE"), (1.0, "AT_EDGE"), (1.3, "ABOVE_EDGE")])
def test_finite_differences_change_no_verdict_and_are_noted_once(ratio, verdict):
    records = with_gradient(steady(ratio), 1.0)
    noted = [dataclasses.replace(r, reason=STOOD_IN.format(f"{i}.5e-05")) for i, r in enumerate(records)]
    audit = audit_of(noted + flips(1.0), **FULL)
    assert audit["sharpness"] == audit_of(records + flips(1.0), **FULL)["sharpness"]
    assert audit["sharpness"].verdict == verdict
    assert audit.note == STOOD_IN.format("11.5e-05")  # the latest


def test_what_bars_every_line_comes_first_and_divergence_last():
    audit = audit_of(said(steady(0.5), DOUBT), **FULL, optimizers=2)
    assert set(verdicts(audit).values()) == {"NOT_APPLICABLE"}
    assert audit.note == DOUBT
    lost = Record(900, "model", "stability", status="nonfinite", reason="the loss is nan")
    assert "step 900" in audit_of([*said(steady(0.5), DOUBT), lost], **FULL)["sharpness"].reason


def test_without_stability_measurements_the_others_still_say_what_they_were():
    audit = audit_of([Record(10 * i, "model", "sharpness", value=1.0, reason=DOUBT) for i in range(3)], **FULL)
    assert (audit.steps, audit.note) == (None, DOUBT)


def test_a_kernel_that_was_asked_for_is_an_assumption():
    for facts, count in (({"kernel": "retained"}, 1), ({"kernel": "auto"}, 0), ({}, 0)):
        line = audit_of(steady(0.5), **FULL, **facts)["sharpness"]
        assert line.verdict == "BELOW_EDGE"
        assert [a.holds for a in line.assumptions if "kernel='retained'" in a.text] == [None] * count


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
    assert verdicts(audit) == {"sharpness": "INCONCLUSIVE", "trace": "NOT_APPLICABLE", "s_mu": "INCONCLUSIVE"}
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
    assert verdicts(audit) == {"sharpness": "INCONCLUSIVE", "trace": "NOT_APPLICABLE", "s_mu": "INCONCLUSIVE"}
    assert "step 600" in audit["sharpness"].reason
    assert audit_of(steady(1.5) + lost, **SMALL)["sharpness"].verdict == "ABOVE_EDGE"
    recovered = [lost[0], *(stability(650 + 50 * i, 0.5) for i in range(12))]
    assert audit_of(recovered, **FULL)["sharpness"].verdict == "BELOW_EDGE"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_short_runs(count):
    audit = audit_of(steady(0.5, count), **SMALL)
    assert audit.measurements == count
    assert audit.steps == (0, 50 * (count - 1))
    assert verdicts(audit) == {"sharpness": "NOT_EXCLUDED", "trace": "NOT_APPLICABLE", "s_mu": "NOT_EXCLUDED"}


def test_lines_are_found_by_name():
    audit = audit_of(steady(0.5), **FULL)
    assert [c.name for c in audit.criteria] == ["sharpness", "trace", "s_mu"]
    with pytest.raises(KeyError, match="sharpness, trace, s_mu"):
        audit["curvature"]


def test_facts_that_an_older_run_lacks_do_not_hinder():
    meta = {"identity": {}, "players": {"model": {}}}
    assert Run.from_records(meta, steady(0.5)).audit()["sharpness"].verdict == "NOT_EXCLUDED"


# --------------------------------------------------------------------------- real runs


def half_squares(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return ((outputs - targets) ** 2).flatten(1).sum(1).mean() / 2


def regression(samples: int = 32) -> tuple[nn.Module, torch.Tensor, torch.Tensor, float]:
    """A linear model with one output on consistent data, and its sharpness."""
    model = nn.Linear(4, 1, bias=False).double()
    inputs = torch.randn(samples, 4, dtype=torch.float64)
    targets = inputs @ torch.randn(4, 1, dtype=torch.float64)
    return model, inputs, targets, float(torch.linalg.eigvalsh(inputs.T @ inputs / samples)[-1])


def train(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, optimizer: torch.optim.Optimizer, *,
    steps: int = 60, batch: int | None = None, criterion: Any = half_squares, every: int = 10, **options: Any,
) -> Run:  # fmt: skip
    with watch(
        model, optimizer, data=(inputs, targets), criterion=criterion, every=every, probes=[Stability()],
        on_error="raise", **options,
    ) as run:  # fmt: skip
        for _ in range(steps):
            chosen = torch.randperm(len(inputs))[: batch or len(inputs)]
            optimizer.zero_grad()
            loss = criterion(model(inputs[chosen]), targets[chosen])
            loss.backward()
            optimizer.step()
            run.log(loss=loss)
    return run.run


def test_a_single_output_regression_with_single_samples_meets_the_trace():
    model, inputs, targets, _ = regression()
    trace = float(inputs.square().sum(1).mean())
    lr = 0.2 / trace
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    audit = train(model, inputs, targets, optimizer, steps=200, batch=1, batch_size=1, every=25).audit()
    line = audit["trace"]
    assert (line.verdict, line.kind) == ("NOT_EXCLUDED", "necessary")
    assert line.low <= trace * (1 + 1e-9)
    assert line.high >= trace * (1 - 1e-9)
    assert line.ratio == pytest.approx(0.1, rel=0.1)
    assert {a.text: a.holds for a in line.assumptions}["squared loss"] is True
    assert audit["s_mu"].verdict == "NOT_EXCLUDED"
    assert audit["sharpness"].verdict == "NOT_EXCLUDED"


@pytest.mark.parametrize("options", [{}, {"batch_size": 32}])
def test_gradient_descent_far_below_the_edge(options):
    model, inputs, targets, sharpness = regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5 / sharpness)
    line = train(model, inputs, targets, optimizer, **options).audit()["sharpness"]
    assert line.verdict == "BELOW_EDGE"
    assert line.measured == pytest.approx(sharpness, rel=1e-3)
    assert line.low <= sharpness <= line.high
    assert line.ratio == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "times"), [({}, 2.0), ({"momentum": 0.9}, 3.8), ({"momentum": 0.5, "nesterov": True}, 1.5)]
)
def test_gradient_descent_above_the_edge(options, times):
    model, inputs, targets, sharpness = regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.2 * times / sharpness, **options)
    audit = train(model, inputs, targets, optimizer, batch_size=32, steps=40).audit()
    assert audit["sharpness"].verdict == "ABOVE_EDGE"
    assert audit["sharpness"].ratio == pytest.approx(1.2, rel=1e-3)
    assert audit.above_edge
    assert "changed sign" in audit.evidence


def test_gradient_descent_on_the_edge_oscillates():
    model, inputs, targets, sharpness = regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.99 / sharpness)
    audit = train(model, inputs, targets, optimizer, batch_size=32).audit()
    assert audit["sharpness"].verdict == "AT_EDGE"
    assert "100%" in audit.evidence


def test_a_subset_of_the_parameters_is_never_said_to_be_below_the_edge():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    inputs, targets = torch.randn(16, 4).double(), torch.randn(16, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for options in ({}, {"batch_size": 16}, {"batch_size": 2}):
        part = train(model, inputs, targets, optimizer, params="2.*", steps=20, **options).audit()["sharpness"]
        assert part.verdict == "INCONCLUSIVE"
        assert "only part" in part.reason
        whole = train(model, inputs, targets, optimizer, steps=20, **options).audit()["sharpness"]
        assert whole.verdict in ("BELOW_EDGE", "NOT_EXCLUDED")


def test_adam_and_cross_entropy():
    model = nn.Linear(4, 3)
    inputs, targets = torch.randn(24, 4), torch.randint(3, (24,))
    adam = torch.optim.Adam(model.parameters())
    audit = train(model, inputs, targets, adam, criterion=F.cross_entropy, batch=8, batch_size=8).audit()
    assert set(verdicts(audit).values()) == {"NOT_APPLICABLE"}
    assert "Adam" in audit["sharpness"].reason
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    audit = train(model, inputs, targets, sgd, criterion=F.cross_entropy, batch=8, batch_size=8).audit()
    assert audit["sharpness"].verdict == "NOT_EXCLUDED"
    assert audit["s_mu"].verdict == "NOT_APPLICABLE"
    assert "cross-entropy" in audit["s_mu"].reason


def test_dropout_measured_without_is_inconclusive():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)).double()
    inputs, targets = torch.randn(16, 4).double(), torch.randn(16, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.warns(RuntimeWarning, match='need mode="train"'):
        run = train(model, inputs, targets, optimizer, steps=20, batch_size=16)
    assert run.audit()["sharpness"].verdict == "INCONCLUSIVE"
    again = train(model, inputs, targets, optimizer, steps=20, batch_size=16, mode="train")
    assert again.audit()["sharpness"].verdict == "NOT_EXCLUDED"  # masks differ from step to step: noise


def test_two_optimizers_of_one_model_and_two_players_that_reach_each_other():
    model, inputs, targets, _ = regression()
    deep = nn.Sequential(model, nn.Linear(1, 1, bias=False).double())
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.01) for part in deep]
    with watch(deep, optimizers, data=(inputs, targets), criterion=half_squares, every=1, probes=[Stability()]) as run:
        for _ in range(3):
            half_squares(deep(inputs), targets).backward()
            for optimizer in optimizers:
                optimizer.step()
    assert set(verdicts(run.run.audit()).values()) == {"NOT_APPLICABLE"}

    first, second = nn.Linear(4, 1), nn.Linear(1, 1)
    x, y = torch.randn(8, 4), torch.randn(8, 1)
    players = [
        Player("first", first, torch.optim.SGD(first.parameters(), lr=0.01), [x],
               loss_fn=lambda m, b: second(m(b)).square().mean()),
        Player("second", second, torch.optim.SGD(second.parameters(), lr=0.01), [y],
               loss_fn=lambda m, b: m(b).square().mean()),
    ]  # fmt: skip
    with watch(players, every=1, probes=[Stability()]) as run:
        for _ in range(3):
            for player, batch in zip(players, (x, y), strict=True):
                player.optimizer.zero_grad()
                player.loss_fn(player.model, batch).backward()
                player.optimizer.step()
    assert set(verdicts(run.run.audit("first")).values()) == {"NOT_APPLICABLE"}
    assert "another player" in run.run.audit("first")["sharpness"].reason
    assert run.run.audit("second")["sharpness"].verdict == "BELOW_EDGE"  # its loss does not involve the first


def test_the_gradient_of_each_step_shows_what_training_does():
    model, inputs, targets, sharpness = regression()
    clip = lambda: nn.utils.clip_grad_norm_(model.parameters(), 1e-3)  # noqa: E731
    for batch, hook, expected in [(32, None, "BELOW_EDGE"), (8, None, "NOT_EXCLUDED"), (32, clip, "INCONCLUSIVE")]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2 / sharpness)
        # 0.1 * threshold, whatever batch size is claimed
        with watch(
            model,
            optimizer,
            data=(inputs, targets),
            criterion=half_squares,
            every=1,
            probes=[Stability()],
            batch_size=32,
        ) as run:
            for step in range(6):
                nn.init.normal_(model.weight) if step == 0 else None
                optimizer.zero_grad()
                chosen = torch.arange(batch) if batch == 32 else torch.randperm(32)[:batch]
                half_squares(model(inputs[chosen]), targets[chosen]).backward()
                if hook:
                    hook()
                optimizer.step()
        line = run.run.audit()["sharpness"]
        assert line.verdict == expected, (batch, line)


def test_layers_that_thaw_and_rates_that_warm_up_are_noticed():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    inputs, targets = torch.randn(16, 4).double(), torch.randn(16, 1).double()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    with watch(model, optimizer, data=(inputs, targets), criterion=half_squares, every=1, probes=[Stability()]) as run:
        for step in range(8):
            optimizer.param_groups[0]["lr"] = 0.01 * step
            if step == 4:
                model[0].requires_grad_(True)
            optimizer.zero_grad()
            half_squares(model(inputs), targets).backward()
            optimizer.step()
    assert all(r.status == "ok" for r in run.run.select("stability", ok=False))
    facts = run.run.meta["players"]["model"]
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["threshold_formula"] == "(2+2b)/lr"
    assert run.run.audit()["sharpness"].formula == "(2+2b)/lr"


def test_a_partner_that_somebody_else_moves_is_noticed():
    model, partner = nn.Linear(4, 1), nn.Linear(1, 1)
    x = torch.randn(8, 4)
    mine, other = (torch.optim.SGD(m.parameters(), lr=0.01) for m in (model, partner))
    loss_fn = lambda m, b: partner(m(b)).square().mean()  # noqa: E731
    with watch(model, mine, data=[x], loss_fn=loss_fn, every=1, probes=[Stability()]) as run:
        for _ in range(3):
            for optimizer in (mine, other):
                optimizer.zero_grad()
                loss_fn(model, x).backward()
                optimizer.step()
    line = run.run.audit()["sharpness"]
    assert line.verdict == "NOT_APPLICABLE"
    assert "moves" in line.reason
