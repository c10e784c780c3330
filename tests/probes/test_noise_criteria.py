"""Verdicts from drawn records: the lines on the noise of mini-batches."""

import pytest

from audited_runs import FULL, SINGLE, SMALL, UNSET, audit_of, flips, stability, steady, verdicts
from losscope.probes import Record
from losscope.probes.catalogue import CATALOGUE

THEORY = ("aligned_trace", "frobenius", "s_mu")
EMPIRICAL = ("batch_sharpness", "batch_sharpness_ratio", "interaction_aware", "noise_interaction")
ADAM = {"preconditioned": True, "optimizer": "Adam", "seen_formula": "(2+2b)/((1-b)lr)"}


def with_small_edge(records: list[Record], share: float) -> list[Record]:
    """The same, where the edge of small batches is this share of that of large ones."""
    for record in records:
        record.values["threshold_small_batch"] = share * record.values["threshold"]
    return records


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
    "facts", [ADAM, {"momentum": 0.9}, {"loss_family": "cross-entropy"}], ids=["Adam", "momentum", "cross-entropy"]
)
@pytest.mark.parametrize("outputs", [None, 1, 10])
def test_no_line_points_to_one_that_does_not_apply(facts, outputs):
    audit = audit_of(steady(0.3), **SMALL, outputs=outputs, **facts)
    assert audit["s_mu"].verdict == "NOT_APPLICABLE"
    assert not any("s_mu" in line.reason for line in audit.criteria)
    assert audit["trace"].reason == audit["s_mu"].reason
    unmeasured = audit_of(steady(0.3, s_mu=None), **SMALL, outputs=10)
    assert not any("s_mu" in line.reason for line in unmeasured.criteria)


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


# --------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", THEORY)
@pytest.mark.parametrize(
    ("s_mu", "verdict"),
    [(5.0, "NOT_EXCLUDED"), (20.0, "NEAR_EDGE_NO_OSCILLATION"), (30.0, "ABOVE_EDGE"), (17.8, "INCONCLUSIVE")],
)
def test_necessary_lines_exclude_nothing_when_they_hold(name, s_mu, verdict):
    line = audit_of(steady(0.3, s_mu=s_mu), **SMALL, loss_family="squared")[name]
    assert (line.verdict, line.kind) == (verdict, "necessary")
    assert line.ratio == pytest.approx(s_mu / 20)


@pytest.mark.parametrize("name", EMPIRICAL)
@pytest.mark.parametrize("family", ["squared", "cross-entropy", "unknown"])
@pytest.mark.parametrize(
    ("value", "verdict"),
    [(5.0, "BELOW_EDGE"), (20.0, "NEAR_EDGE_NO_OSCILLATION"), (30.0, "ABOVE_EDGE"), (17.8, "INCONCLUSIVE")],
)
def test_what_is_only_seen_speaks_of_any_loss_and_never_counts_as_exceeded(name, family, value, verdict):
    audit = audit_of(steady(0.3, s_mu=value), **SMALL, loss_family=family)
    if name == "noise_interaction" and value == 20.0:
        verdict = "INCONCLUSIVE"  # it is about 1 wherever the loss stands still
        assert "not of an edge" in audit[name].reason
    assert (audit[name].verdict, audit[name].kind) == (verdict, "empirical")
    assert audit.above_edge == (value == 30.0 and family == "squared")  # by the necessary lines alone


def test_the_fullness_of_batches_and_their_size_bar_them_all():
    for facts, words in ((FULL, "full-batch"), (UNSET, "batch_size=")):
        audit = audit_of(steady(0.3, s_mu=100.0), **facts)
        for name in (*THEORY, *EMPIRICAL):
            assert audit[name].verdict == "NOT_APPLICABLE"
            assert words in audit[name].reason


@pytest.mark.parametrize("value", [5.0, 30.0])
def test_under_momentum_only_batch_sharpness_and_its_kin_remain(value):
    audit = audit_of(steady(0.3, s_mu=value), **SMALL, momentum=0.9)
    assert set(verdicts(audit, *THEORY, "noise_interaction").values()) == {"NOT_APPLICABLE"}
    assert "NOT_APPLICABLE" not in verdicts(audit, *EMPIRICAL[:3]).values()


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.5, "BELOW_EDGE"), (3.0, "INCONCLUSIVE"), (15.0, "INCONCLUSIVE"), (30.0, "ABOVE_EDGE")]
)
def test_the_edge_under_momentum_lies_between_that_of_small_and_of_large_batches(value, verdict):
    records = with_small_edge(steady(0.3, s_mu=value), share=0.05)
    line = audit_of(records, **SMALL, momentum=0.9, threshold_formula="(2+2b)/lr")["batch_sharpness"]
    assert line.verdict == verdict
    assert line.formula == "(2+2b)/lr"
    assert line.ratio == pytest.approx(value / 20)
    assert line.ratio_high == pytest.approx(1.05 * value)  # to the edge of small batches, 1
    assert "small and of large" in line.reason or verdict != "INCONCLUSIVE"


def test_with_a_preconditioner_batch_sharpness_alone_remains_and_says_of_what_it_is():
    audit = audit_of(steady(0.3, s_mu=5.0), **SMALL, **ADAM)
    applies = [c.name for c in audit.criteria if c.verdict != "NOT_APPLICABLE"]
    assert applies == ["sharpness", "batch_sharpness", "batch_sharpness_ratio"]
    assert "P^-1" in audit["batch_sharpness"].symbol
    assert "Adam" in audit["s_mu"].reason
    assert "Adam" in audit["interaction_aware"].reason


def test_lines_that_were_not_asked_for_say_what_measures_them():
    audit = audit_of(steady(0.3, s_mu=None), **SMALL)
    assert 'level="full"' in audit["s_mu"].reason
    assert audit["s_mu"].verdict == "NOT_APPLICABLE"
    assert "mean_square=True" in audit["mean_square"].reason


def test_lines_that_failed_are_inconclusive():
    records = steady(0.3, s_mu=None)
    for record in records:
        record.values.update(dict.fromkeys(EMPIRICAL))
    line = audit_of(records, **SMALL)["batch_sharpness"]
    assert (line.verdict, line.reason) == ("INCONCLUSIVE", "not measured; see the errors recorded")


@pytest.mark.parametrize(("value", "verdict"), [(5.0, "BELOW_EDGE"), (30.0, "ABOVE_EDGE")])
def test_the_exact_threshold_of_the_linear_model_is_sufficient_as_well(value, verdict):
    records = [stability(50 * i, 0.3) for i in range(12)]
    for record in records:
        record.values.update({"mean_square": value, "mean_square_low": 0.99 * value, "mean_square_high": 1.01 * value})
    line = audit_of(records, **SMALL, loss_family="squared")["mean_square"]
    assert (line.verdict, line.kind) == (verdict, "necessary and sufficient")
    assert audit_of(records, **SMALL, loss_family="unknown")["mean_square"].verdict != "ABOVE_EDGE"


def test_an_ambiguous_hessian_bars_what_rests_on_it_and_not_what_rests_on_gradients():
    records = steady(0.3, s_mu=5.0)
    for i, record in enumerate(records):
        records[i] = Record(**{**record.__dict__, "reason": "ambiguous: 1 by one way; 2 by another"})
    audit = audit_of(records, **SMALL, loss_family="squared")
    assert set(verdicts(audit, "s_mu", "aligned_trace").values()) == {"NOT_EXCLUDED"}
    assert set(verdicts(audit, "frobenius", *EMPIRICAL).values()) == {"INCONCLUSIVE"}


def test_every_line_of_the_catalogue_has_a_place_in_the_audit():
    audit = audit_of(steady(0.3), **SMALL)
    assert [c.name for c in audit.criteria] == list(CATALOGUE)
    assert [c.kind for c in audit.criteria][1:] == [entry.kind for entry in CATALOGUE.values()][1:]


def test_what_sgd_does_is_said_of_others_by_analogy_only():
    records = steady(0.3)
    for name in ("batch_sharpness", "batch_sharpness_ratio"):
        assert audit_of(records, **SMALL, **ADAM)[name].reason.endswith("; for Adam by analogy")
        assert "analogy" not in audit_of(records, **SMALL)[name].reason


def test_under_momentum_the_edge_of_large_batches_is_the_optimizers_own():
    nesterov = {"momentum": 0.9, "threshold_formula": "(2+2b)/(lr(1+2b))"}
    assert "up to (2+2b)/(lr(1+2b)) for large batches" in audit_of(steady(0.3), **SMALL, **nesterov)["s_mu"].reason
