"""Verdicts and numbers in words."""

import math
import re
from pathlib import Path

import pytest

import losscope.viz
from losscope.probes import Audit, Criterion
from losscope.viz.words import VERDICTS, headline, interval, number, verdict


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
