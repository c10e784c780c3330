"""A line of the audit: what was measured, against what, and what that says."""

from __future__ import annotations

from dataclasses import dataclass

from losscope.landscape.html_table import Shown

__all__ = ["Assumption", "Criterion"]


@dataclass(frozen=True)
class Assumption:
    """Something a criterion presumes; ``holds`` is None where it was not checked."""

    text: str
    holds: bool | None


@dataclass(frozen=True)
class Criterion(Shown):
    """One line of the audit.

    Attributes:
        name: one of `losscope.probes.catalogue.CATALOGUE`, which says of each what it means and where it is from.
        symbol: what is compared, e.g. ``"lambda_max(H)"``.
        measured: median over the window, with ``low`` and ``high``, None where nothing is known.
        threshold: median over the window of what it is compared with.
        formula: the threshold's formula, e.g. ``"2/lr"``.
        ratio: median of measured/threshold, with ``ratio_low`` and ``ratio_high``.
        kind: ``"necessary"``, ``"necessary and sufficient"`` or ``"empirical"``.
        verdict: see `losscope.landscape.stability.judge`; also ``NOT_APPLICABLE``.
        reason: what the verdict rests on, or why there is none.
        assumptions: what the criterion presumes, and whether the run meets it.
    """

    name: str
    symbol: str
    kind: str
    verdict: str
    reason: str
    formula: str = "2/lr"
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    assumptions: tuple[Assumption, ...] = ()
