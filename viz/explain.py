"""A criterion of the audit in words: what it compares, says and presumes, and who derived it."""

from __future__ import annotations

from losscope.probes import Criterion
from losscope.probes.catalogue import CATALOGUE

from .words import against, interval, number

__all__ = ["explanation"]


def explanation(criterion: Criterion) -> tuple[str, list[str]]:
    """A heading, and below it paragraphs, with the run's own numbers.

    Example:
        >>> from losscope.probes import Criterion
        >>> from losscope.viz.explain import explanation
        >>> line = Criterion("trace", "tr(H)", "necessary", "NOT_EXCLUDED", "it holds", measured=9.0, threshold=20.0)
        >>> heading, said = explanation(line)
        >>> heading, said[0]
        ('trace: tr(H) against 2/lr', 'measured: 9 against 2/lr = 20')
    """
    entry = CATALOGUE.get(criterion.name)
    said = [f"measured: {_numbers(criterion)}"] if criterion.measured is not None else []
    said.append(f"verdict: {criterion.verdict} ({criterion.kind}): {criterion.reason}")
    if entry is not None:
        said += [f"says: {entry.says}", f"derived under: {entry.derived}"]
    for holds, words in ((False, "not met"), (None, "not checked"), (True, "met")):
        if found := [each.text for each in criterion.assumptions if each.holds is holds]:
            said.append(f"{words} here: {'; '.join(found)}")
    if entry is not None:
        said.append(f"source: {entry.source}")
    return f"{criterion.name}: {criterion.symbol} against {criterion.formula}", said


def _numbers(criterion: Criterion) -> str:
    measured = interval(criterion.low, criterion.high)
    found = against(criterion).replace(" against", f" ({measured}) against", 1) if measured else against(criterion)
    if criterion.ratio is None:
        return found
    ratio = interval(criterion.ratio_low, criterion.ratio_high)
    return f"{found}; ratio {number(criterion.ratio)}" + (f" ({ratio})" if ratio else "")
