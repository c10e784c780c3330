"""Verdicts and numbers in words."""

import dataclasses
import math
import re
from pathlib import Path

import pytest

import losscope.viz
from losscope.probes import Audit, Criterion
from losscope.viz.words import VERDICTS, evidence, headline, interval, number, split, together, verdict


def criterion(name: str, code: str, ratio: float | None = 0.5) -> Criterion:
    return Criterion(name, name, "necessary", code, "because of this", threshold=20.0, ratio=ratio)


def audit(*criteria: Criterion) -> Audit:
    return Audit("model", (0, 9), 5, criteria, "")


@pytest.mark.parametrize(
    ("criteria", "title"),
    [
        ((("sharpness", "ABOVE_EDGE"), ("s_mu", "NOT_EXCLUDED")), "Above the edge"),
        ((("sharpness", "NOT_EXCLUDED"), ("s_mu", "ABOVE_EDGE")), "Above the edge"),
        ((("sharpness", "AT_EDGE"), ("s_mu", "NOT_EXCLUDED")), "At the edge"),
        ((("sharpness", "INCONCLUSIVE"), ("s_mu", "NOT_EXCLUDED")), "Not excluded"),
        ((("sharpness", "INCONCLUSIVE"), ("s_mu", "NOT_APPLICABLE")), "Inconclusive"),
        ((("sharpness", "BELOW_EDGE"), ("s_mu", "NOT_APPLICABLE")), "Below the edge"),
        ((("sharpness", "NOT_APPLICABLE"),), "No verdict"),
        ((), "No verdict"),
    ],
)
def test_headline(criteria: tuple[tuple[str, str], ...], title: str) -> None:
    said = headline(audit(*(criterion(*each) for each in criteria)))
    assert said.title == title
    assert said.sentence.endswith(".") and ".." not in said.sentence


def test_headline_says_the_ratio_and_the_reason() -> None:
    said = headline(audit(criterion("sharpness", "AT_EDGE", 1.0042)))
    assert said.sentence == "The sharpness is 1.00 times its threshold 2/lr = 20. Because of this."


def empirical(name: str, code: str, ratio: float | None = None) -> Criterion:
    return dataclasses.replace(criterion(name, code, ratio), kind="empirical")


def test_what_is_only_seen_in_experiments_comes_second() -> None:
    holds = criterion("s_mu", "NOT_EXCLUDED", 0.4)
    said = headline(audit(holds, empirical("batch_sharpness", "ABOVE_EDGE", 1.3)))
    assert said.title == "Not excluded"
    assert said.sentence.endswith(
        "proves nothing. Batch sharpness is 1.30 times its threshold 2/lr = 20: above the edge, as far as experiments "
        "tell."
    )
    assert "experiments" not in headline(audit(holds, empirical("batch_sharpness", "BELOW_EDGE", 0.3))).sentence
    assert "experiments" not in headline(audit(holds, empirical("noise_interaction", "AT_EDGE", 1.0))).sentence
    assert headline(audit(empirical("batch_sharpness", "AT_EDGE", 1.0))).title == "At the edge"  # nothing else applies


def test_the_exact_criterion_speaks_where_it_was_measured() -> None:
    lines = [criterion(name, "NOT_EXCLUDED", 0.4) for name in ("sharpness", "s_mu")]
    assert headline(audit(*lines)).sentence.startswith("The mini-batch index S_mu is 0.40")
    exact = criterion("mean_square", "BELOW_EDGE", 0.3)
    assert headline(audit(*lines, exact)).sentence.startswith("The mean-square criterion is 0.30")
    unknown = criterion("mean_square", "INCONCLUSIVE")
    assert headline(audit(*lines, unknown)).sentence.startswith("The mini-batch index S_mu is 0.40")


def test_each_sentence_of_evidence_is_said_once() -> None:
    seen = dataclasses.replace(audit(), evidence="flips seen; loss rose", observations=("loss rose", "it is convex"))
    assert evidence(seen) == ["Flips seen", "Loss rose", "It is convex"]
    assert evidence(dataclasses.replace(audit(), evidence="")) == []


def test_reasons_are_gathered() -> None:
    lines = [criterion(name, "NOT_APPLICABLE") for name in ("trace", "s_mu")] + [criterion("sharpness", "AT_EDGE")]
    applies, barred = split(audit(*lines))
    assert [c.name for c in applies] == ["sharpness"]
    assert together(barred) == ["trace, s_mu: because of this"]


def test_every_verdict_has_its_own_words_and_signs() -> None:
    assert len({v.words for v in VERDICTS.values()}) == len(VERDICTS)
    assert len({v.symbol for v in VERDICTS.values()}) == len(VERDICTS)
    assert all(v.plain.isascii() for v in VERDICTS.values())
    assert verdict("SOMETHING_NEW").words == "something new"


def test_numbers() -> None:
    assert [number(v) for v in (0.0, -1.5, 1e-9, 1e9, math.inf)] == ["0", "-1.5", "1.000e-09", "1.000e+09", "inf"]
    assert interval(None, 2.0) == "at most 2"


def test_nothing_is_ever_called_safe() -> None:
    folder = Path(losscope.viz.__file__).parent
    for path in [*folder.glob("*.py"), *folder.glob("templates/*")]:
        assert not re.search(r"\bsafe", path.read_text(), re.IGNORECASE), path
