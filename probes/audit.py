"""The stability audit of a run: which criteria its last part meets, and what that rests on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .batchwise import why_batchwise
from .clipping import clipping
from .criteria import CLIPPED_SHARE, sharpness
from .criterion import Assumption, Criterion
from .evidence import evidence
from .noise_criteria import noise_criteria
from .preconditions import preconditions
from .rates import WrongRates, is_wrong, wrong_rates
from .records import Record
from .run_html import audit_html
from .same_data import along
from .settled import settled_part, where_it_stays, why_unsettled
from .unlike import covers_data, unlike
from .window import Oscillation, ambiguity, curvature_records, fresh_bound, last_part, noted, observed, unverified

if TYPE_CHECKING:
    from .run import Run

__all__ = ["Assumption", "Audit", "Criterion", "audit"]


@dataclass(frozen=True)
class Audit:
    """The audit of one player.

    Attributes:
        player: whose.
        steps: first and last measured step the audit rests on; None where nothing was measured.
        measurements: how many measurements that is.
        criteria: the lines.
        evidence: observed oscillation in words.
        note: what the measurements say of themselves, e.g. that the Hessian is ambiguous; mostly empty.
        preconditions: what the criteria presume of the run as a whole, and whether it meets that.
        observations: what else was seen, in a sentence each.
    """

    player: str
    steps: tuple[int, int] | None
    measurements: int
    criteria: tuple[Criterion, ...]
    evidence: str
    note: str = ""
    preconditions: tuple[Assumption, ...] = ()
    observations: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        """What a notebook shows: the lines as a table."""
        return audit_html(self)

    @property
    def above_edge(self) -> bool:
        """Whether a criterion that applies is exceeded; one that is only seen to hold in experiments does not count."""
        return any(c.verdict == "ABOVE_EDGE" and c.kind != "empirical" for c in self.criteria)

    def __getitem__(self, name: str) -> Criterion:
        """The line of that name."""
        for criterion in self.criteria:
            if criterion.name == name:
                return criterion
        raise KeyError(f"no criterion {name!r}; there are {', '.join(c.name for c in self.criteria)}")


def audit(run: Run, player: str) -> Audit:
    """Audit the last quarter of a run (at least its last five stability measurements).

    Ratios are formed at each measurement with the rate of its own update, and their medians are
    judged, so that a schedule of rates does not blur them. Measurements at a rate of zero are left out, and, where
    there are others, those at which an optimizer's preconditioner moves, as in its first steps (`settled`). Where the
    run ends at negative rates, it is those updates that are judged.

    Args:
        run: the run.
        player: one of its players.
    """
    everything = run.select("stability", player, ok=False)
    measured = [r for r in everything if r.status == "ok"]
    wrong = wrong_rates(measured)
    judged = [r for r in measured if r.values.get("threshold") is not None]
    uphill = wrong.uphill_end(judged)
    window = where_it_stays(last_part(settled_part(uphill or judged or measured)))
    curvature = curvature_records(run, player, window)
    facts = observed(run.meta.get("players", {}).get(player, {}), window, everything)
    facts["ambiguous"], facts["unverified"] = ambiguity(curvature), unverified(curvature)
    facts["wrong_rates"] = wrong.words
    facts["uphill"] = WrongRates(tuple(uphill)).words if _has_rule(facts, judged) else ""
    facts["unsettled"] = why_unsettled(window)
    facts["clipped"] = clipping(window, measured, full_batch=facts["full_batch"], dtype=_dtype(facts)).share
    facts["unlike"] = _unlike(window, measured, facts)
    oscillation = Oscillation(run, player, window, facts)
    # The sharpness probe bounds the Hessian, which is not what a preconditioned optimizer's threshold concerns.
    bound = fresh_bound(
        run, player, window, ("stability",) if facts.get("preconditioned") else ("stability", "sharpness")
    )
    noise = noise_criteria(window, facts, oscillation)
    facts["s_mu_applies"] = any(line.name == "s_mu" and line.verdict != "NOT_APPLICABLE" for line in noise)
    lines: tuple[Criterion, ...] = (sharpness(window, bound, facts, oscillation), *noise)
    if window and (said := _spoilt(window, everything, wrong, facts)):
        lines = tuple(_unless_above(line, said) for line in lines)
    steps = (window[0].step, window[-1].step) if window else None
    above = lines[0].verdict == "ABOVE_EDGE"
    return Audit(
        player, steps, len(window), lines, oscillation.words, noted(curvature),
        preconditions(run, player, window, facts), evidence(run, player, window, facts, oscillation, above=above),
    )  # fmt: skip


def _unlike(window: Sequence[Record], measured: Sequence[Record], facts: dict[str, Any]) -> str | None:
    """That the steps are of other gradients than those that are measured, or None; clipping is told for itself."""
    if facts["full_batch"] or facts["gradient_cosine"] is None or facts.get("mode_matters"):
        return None
    if covers_data(facts):
        other = unlike(window, measured, facts) if facts["clipped"] <= CLIPPED_SHARE else None
        return None if other is None else other.reason
    if why_batchwise(facts):
        return None
    way = along(measured, facts.get("batch_size"), facts.get("samples"))
    if way is None or not way.unlike or clipping(measured, measured, full_batch=False, dtype=_dtype(facts)).share:
        return None
    return way.reason


def _dtype(facts: dict[str, Any]) -> str:
    return str(facts.get("weights_dtype") or facts.get("dtype") or "")


def _has_rule(facts: dict[str, Any], judged: Sequence[Record]) -> bool:
    """Whether the optimizer's step is known, and minimises: it had a threshold, or lacked one for its rate alone."""
    return bool(judged) or str(facts.get("threshold_reason") or "").startswith("the learning rate is")


def _spoilt(window: Sequence[Record], everything: Sequence[Record], wrong: WrongRates, facts: dict[str, Any]) -> str:
    """Why what was below the edge in the window says nothing of the run's end; empty where nothing came between.

    Before a run diverged, before measuring failed, before updates that nobody saw, or while some rates had no stable
    step.
    """
    said = []
    if (since := wrong.since(window[0].step)).records and not is_wrong(window[-1].lr):
        said.append(f"the learning rate was {since.words}, and there is no stable step")
    last = window[-1]
    later = [r for r in everything if r.status == "ok" and r.step > last.step and r.values.get("threshold") is None]
    bare = [r for r in later if r.lr != 0 and not is_wrong(r.lr)]
    if bare and last.values.get("threshold") is not None:
        said.append(f"there is no threshold from step {bare[0].step} on")
    lost = [r for r in everything if r.status != "ok" and r.step > last.step]
    if lost:
        what = "the loss is not finite" if lost[0].status == "nonfinite" else f"measuring fails ({lost[0].reason})"
        said.append(f"{what} from step {lost[0].step} on")
    if facts.get("unseen"):
        said.append(f"the weights were {facts['unseen']}")
    return "; ".join(said)


def _unless_above(line: Criterion, said: str) -> Criterion:
    """A line of a run of whose end the window does not tell."""
    if line.verdict == "NOT_APPLICABLE":
        return line
    if line.verdict == "ABOVE_EDGE":
        return dataclasses.replace(line, reason=f"{line.reason}; {said}")
    return dataclasses.replace(line, verdict="INCONCLUSIVE", reason=said)
