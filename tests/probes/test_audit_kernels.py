"""What the audit says where the products were ambiguous, or not exact."""

import dataclasses

import pytest

from audited_runs import FULL, SINGLE, SMALL, audit_of, flips, steady, verdicts, with_gradient
from losscope.probes import Record

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


def test_what_could_not_be_compared_is_presumed_and_said_to_be():
    doubt = "differences of the gradient do not settle (v'Hv by double backward is 0.83, by differences -0.007)"
    audit = audit_of(said(with_gradient(steady(0.5), 1.0), f"unverified: {doubt}; mean_square: not measured"), **FULL)
    line = audit["sharpness"]
    assert line.verdict == "BELOW_EDGE"
    assert f"double backward is the derivative of the gradient ({doubt})" in [
        a.text for a in line.assumptions if a.holds is None
    ]
    assert audit.note == "mean_square: not measured"
    assert not [a for a in audit_of(steady(0.5), **FULL)["sharpness"].assumptions if "double backward" in a.text]
