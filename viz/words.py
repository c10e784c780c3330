"""Verdicts, numbers and names in words, for figures, page and terminal alike."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from losscope.probes import Audit, Criterion
from losscope.probes.phases import Phase

__all__ = [
    "VERDICTS",
    "Headline",
    "Verdict",
    "against",
    "compared",
    "course",
    "evidence",
    "headline",
    "interval",
    "number",
    "rests_on",
    "seconds",
    "short_symbol",
    "shown",
    "split",
    "times",
    "together",
    "verdict",
]


@dataclass(frozen=True)
class Verdict:
    """How a verdict is shown.

    Attributes:
        words: what it says.
        symbol: a sign beside the colour, so that colour is never alone.
        tone: ``good``, ``edge``, ``bad``, ``open`` or ``none``.
        plain: the sign where only ASCII can be shown.
    """

    words: str
    symbol: str
    tone: str
    plain: str


VERDICTS = {
    "ABOVE_EDGE": Verdict("above the edge", "▲", "bad", "!"),
    "AT_EDGE": Verdict("at the edge", "◆", "edge", "="),
    "NEAR_EDGE_NO_OSCILLATION": Verdict("near the edge, no oscillation seen", "◇", "edge", "~"),
    "INCONCLUSIVE": Verdict("inconclusive", "?", "open", "?"),
    "BELOW_EDGE": Verdict("below the edge", "▼", "good", "<"),
    "NOT_EXCLUDED": Verdict("not excluded", "○", "open", "o"),
    "NOT_APPLICABLE": Verdict("does not apply", "–", "none", "-"),
}
"""In the order in which they ask for attention."""


def verdict(code: str) -> Verdict:
    """The words of a verdict; of one that is not known here, its own."""
    return VERDICTS.get(code, Verdict(code.lower().replace("_", " "), "?", "open", "?"))


UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    r"""A text of a run for a page: a dot for each control, mark of direction and half of a surrogate pair.

    A mark of direction would turn round what stands after it as well.

    Example:
        >>> from losscope.viz.words import shown
        >>> shown("model\u202egnp\x1b[2J")
        'model·gnp·[2J'
    """
    return text if text.isprintable() else UNSEEN.sub("·", text)


def number(value: float | None, digits: int = 4) -> str:
    """A number to so many significant digits; a dash where there is none.

    Example:
        >>> from losscope.viz.words import number
        >>> number(20.0), number(0.123456), number(123456.0), number(None)
        ('20', '0.1235', '123,456', '–')
    """
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    if value != 0 and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.{digits - 1}e}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def interval(low: float | None, high: float | None, digits: int = 4) -> str:
    """An interval, one-sided where only one end is known, empty where none is.

    Example:
        >>> from losscope.viz.words import interval
        >>> interval(1.0, 2.0), interval(1.0, None), interval(None, None)
        ('1 to 2', 'at least 1', '')
    """
    if low is None and high is None:
        return ""
    if high is None:
        return f"at least {number(low, digits)}"
    if low is None:
        return f"at most {number(high, digits)}"
    return f"{number(low, digits)} to {number(high, digits)}"


def times(ratio: float) -> str:
    """A ratio for a sentence.

    Example:
        >>> from losscope.viz.words import times
        >>> times(1.0022), times(0.0859), times(14.56)
        ('1.00', '0.0859', '14.6')
    """
    return f"{ratio:.2f}" if 0.1 <= ratio < 10 else number(ratio, 3)


def seconds(duration: float | None) -> str:
    """A duration as a person says it.

    Example:
        >>> from losscope.viz.words import seconds
        >>> seconds(0.02), seconds(9.31), seconds(75.0), seconds(7300.0)
        ('0.02 s', '9.3 s', '1 min 15 s', '2 h 1 min')
    """
    if duration is None or not math.isfinite(duration):
        return "–"
    if duration < 60:
        return f"{duration:.2g} s"
    whole = round(duration)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def compared(criterion: Criterion) -> str:
    """What a criterion is compared with, e.g. ``"2/lr = 20"``."""
    if criterion.threshold is None:
        return criterion.formula
    return f"{criterion.formula} = {number(criterion.threshold)}"


def against(criterion: Criterion) -> str:
    """What was measured, and what it is compared with, e.g. ``"19.8 against 2/lr = 20"``."""
    return f"{number(criterion.measured)} against {compared(criterion)}"


def short_symbol(criterion: Criterion) -> str:
    """What is compared, without its name and without what its letters stand for.

    Example:
        >>> from losscope.probes import Criterion
        >>> from losscope.viz.words import short_symbol
        >>> short_symbol(Criterion("s_mu", "S_mu = E|g_B|^2/2L", "necessary", "NOT_EXCLUDED", "holds"))
        'E|g_B|^2/2L'
    """
    return criterion.symbol.partition(", ")[0].rpartition(" = ")[2]


def split(audit: Audit) -> tuple[list[Criterion], list[Criterion]]:
    """The criteria that apply, and those that do not."""
    applies = [c for c in audit.criteria if c.verdict != "NOT_APPLICABLE"]
    return applies, [c for c in audit.criteria if c.verdict == "NOT_APPLICABLE"]


def together(criteria: Sequence[Criterion]) -> list[str]:
    """Their reasons, each once, after the names that share it: ``"trace, s_mu: full-batch training"``."""
    found: dict[str, list[str]] = {}
    for criterion in criteria:
        found.setdefault(criterion.reason, []).append(criterion.name)
    return [f"{', '.join(names)}: {reason}" for reason, names in found.items()]


def course(phases: Sequence[Phase]) -> str:
    """The phases of a run in a line; empty where none has a name.

    Example:
        >>> from losscope.probes.phases import Phase
        >>> from losscope.viz.words import course
        >>> course([Phase("progressive sharpening", 0, 300), Phase("edge of stability", 300, 2980)])
        'progressive sharpening (steps 0 to 300), edge of stability (300 to 2,980)'
    """
    said = [f"{phase.name} ({phase.first:,} to {phase.last:,})" for phase in phases]
    return ", ".join(said).replace("(", "(steps ", 1)


def evidence(audit: Audit) -> list[str]:
    """What was seen, a sentence each, once."""
    return [_sentence(said) for said in dict.fromkeys([*audit.evidence.split("; "), *audit.observations]) if said]


def rests_on(audit: Audit) -> str:
    """What the numbers of an audit are made of; empty where nothing was measured.

    Example:
        >>> from losscope.probes import Audit
        >>> from losscope.viz.words import rests_on
        >>> rests_on(Audit("model", (0, 0), 1, (), "")), rests_on(Audit("model", (10, 90), 5, (), ""))
        ('One measurement, at step 0.', 'Medians over 5 measurements, steps 10 to 90.')
    """
    if audit.steps is None:
        return ""
    if audit.measurements == 1:
        return f"One measurement, at step {audit.steps[0]:,}."
    return f"Medians over {audit.measurements} measurements, steps {audit.steps[0]:,} to {audit.steps[1]:,}."


NAMES = {
    "sharpness": "the sharpness", "trace": "the trace", "aligned_trace": "the aligned trace",
    "frobenius": "the aligned Frobenius norm", "s_mu": "the mini-batch index S_mu",
    "mean_square": "the mean-square criterion", "batch_sharpness": "batch sharpness",
    "batch_sharpness_ratio": "batch sharpness (ratio of means)",
    "interaction_aware": "interaction-aware sharpness", "noise_interaction": "the gradient-noise interaction",
}  # fmt: skip
"""In a sentence."""

SPEAKS = ("mean_square", "s_mu")
"""With mini-batches these carry the verdict: the exact criterion where it was measured."""


@dataclass(frozen=True)
class Headline:
    """The verdict of an audit: its short title, a sentence, and how it is shown."""

    title: str
    sentence: str
    shown: Verdict


def headline(audit: Audit) -> Headline:
    """What an audit says in a sentence or two.

    A criterion that is exceeded or at its edge speaks first; else the one that carries the verdict with
    mini-batches where it applies; else what remains. What is only seen in experiments comes second.
    """
    applies, barred = split(audit)
    if not applies:
        reason = barred[0].reason if barred else "nothing was measured"
        return Headline("No verdict", f"No criterion applies: {reason}.", verdict("NOT_APPLICABLE"))
    derived = [c for c in applies if c.kind != "empirical"]
    seen = [c for c in applies if c.kind == "empirical"]
    speaks = min(derived or seen, key=_attention)
    if speaks.verdict in ("INCONCLUSIVE", "BELOW_EDGE", "NOT_EXCLUDED"):
        carriers = [c for name in SPEAKS for c in derived if c.name == name and c.verdict != "INCONCLUSIVE"]
        speaks = next(iter(carriers), speaks)
    shown = verdict(speaks.verdict)
    end = {
        "NOT_EXCLUDED": "A necessary condition of stability holds; that alone proves nothing",
        "BELOW_EDGE": "The whole interval lies below the edge",
    }.get(speaks.verdict, _sentence(speaks.reason))
    second = ""
    hovering = [c for c in seen if c.name != "noise_interaction"]  # which is 2/lr wherever the loss has settled
    loudest = min(hovering, key=_attention, default=speaks)
    if loudest is not speaks and loudest.verdict in ("ABOVE_EDGE", "AT_EDGE", "NEAR_EDGE_NO_OSCILLATION"):
        second = f" {_ratio(loudest)}: {verdict(loudest.verdict).words}, as far as experiments tell."
    return Headline(_sentence(shown.words), f"{_ratio(speaks, '. ')}{end}.{second}", shown)


def _attention(criterion: Criterion) -> int:
    order = list(VERDICTS)
    return order.index(criterion.verdict if criterion.verdict in order else "INCONCLUSIVE")


def _ratio(criterion: Criterion, end: str = "") -> str:
    """A clause on a criterion's ratio; empty where there is none."""
    if criterion.ratio is None:
        return ""
    name = _sentence(NAMES.get(criterion.name, criterion.name))
    return f"{name} is {times(criterion.ratio)} times its threshold {compared(criterion)}{end}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
