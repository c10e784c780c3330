"""Which verdicts fail an audit."""

import pytest

from losscope.landscape import SettingError
from losscope.probes import Audit, Criterion
from losscope.viz.fail_on import FailOn


def audit(**verdicts: str) -> Audit:
    kinds = {"sharpness": "necessary and sufficient", "batch_sharpness": "empirical"}
    lines = tuple(Criterion(name, name, kinds[name], code, "because") for name, code in verdicts.items())
    return Audit("model", (0, 90), 10, lines, "")


def test_an_empirical_criterion_fails_where_it_is_asked_to() -> None:
    audits = [audit(sharpness="BELOW_EDGE", batch_sharpness="ABOVE_EDGE")]
    assert not FailOn.parse("above_edge").fails(audits)
    assert FailOn.parse("above_edge,empirical").fails(audits)
    assert FailOn.parse("below_edge").fails(audits)
    assert not FailOn.parse("never").fails(audits)


def test_any_player_fails_the_run() -> None:
    fine, bad = audit(sharpness="BELOW_EDGE"), audit(sharpness="ABOVE_EDGE")
    assert not FailOn.parse("above_edge").fails([fine, fine])
    assert FailOn.parse("above_edge").fails([fine, bad])
    assert not FailOn.parse("above_edge").fails([])


def test_that_nothing_applies_can_fail() -> None:
    one = audit(sharpness="BELOW_EDGE", batch_sharpness="NOT_APPLICABLE")
    none = audit(sharpness="NOT_APPLICABLE", batch_sharpness="NOT_APPLICABLE")
    assert not FailOn.parse("not_applicable").fails([one])
    assert FailOn.parse("not_applicable").fails([none]) and not FailOn.parse("above_edge").fails([none])


@pytest.mark.parametrize("text", ["", ",", "edge", "never,above_edge", "empirical", "never,empirical,at_edge"])
def test_bad_words(text: str) -> None:
    with pytest.raises(SettingError, match="--fail-on"):
        FailOn.parse(text)
