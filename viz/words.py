"""Verdicts, numbers and names in words, for figures, page and terminal alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

from losscope.probes import Audit, Criterion

__all__ = [
    "VERDICTS",
    "Headline",
    "Verdict",
    "compared",
    "headline",
    "interval",
    "number",
    "seconds",
    "times",
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


NAMES = {"sharpness": "the sharpness", "trace": "the trace", "s_mu": "the mini-batch index S_mu"}


@dataclass(frozen=True)
class Headline:
    """The verdict of an audit: its short title, a sentence, and how it is shown."""

    title: str
    sentence: str
    shown: Verdict


def headline(audit: Audit) -> Headline:
    """What an audit says in one sentence.

    A criterion that is exceeded or at its edge speaks first; else the mini-batch index where it applies,
    because with mini-batches it carries the verdict; else what remains.
    """
    order = list(VERDICTS)
    applies = [c for c in audit.criteria if c.verdict != "NOT_APPLICABLE"]
    if not applies:
        reason = next((c.reason for c in audit.criteria), "nothing was measured")
        return Headline("No verdict", f"No criterion applies: {reason}.", verdict("NOT_APPLICABLE"))
    speaks = min(applies, key=lambda c: order.index(c.verdict) if c.verdict in order else order.index("INCONCLUSIVE"))
    if speaks.verdict in ("INCONCLUSIVE", "BELOW_EDGE", "NOT_EXCLUDED"):
        speaks = next((c for c in applies if c.name == "s_mu" and c.verdict != "INCONCLUSIVE"), speaks)
    shown = verdict(speaks.verdict)
    end = {
        "NOT_EXCLUDED": "A necessary condition of stability holds; that alone proves nothing",
        "BELOW_EDGE": "The whole interval lies below the edge",
    }.get(speaks.verdict, _sentence(speaks.reason))
    measured = ""
    if speaks.ratio is not None:
        name = NAMES.get(speaks.name, speaks.name)
        measured = f"{_sentence(name)} is {times(speaks.ratio)} times its threshold {compared(speaks)}. "
    return Headline(_sentence(shown.words), f"{measured}{end}.", shown)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
