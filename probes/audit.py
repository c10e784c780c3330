"""The stability audit of a run: which criteria its last part meets, and what that rests on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .clipping import clipping
from .criteria import sharpness
from .criterion import Assumption, Criterion
from .evidence import evidence
from .noise_criteria import noise_criteria
from .preconditions import preconditions
from .records import Record
from .run_html import audit_html
from .settled import settled_part, where_it_stays, why_unsettled
from .window import Oscillation, ambiguity, curvature_records, fresh_bound, last_part, noted, observed

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
    there are others, those at which an optimizer's preconditioner moves, as in its first steps (`settled`).

    Args:
        run: the run.
        player: one of its players.
    """
    everything = run.select("stability", player, ok=False)
    measured = [r for r in everything if r.status == "ok"]
    moving = [r for r in measured if r.values.get("threshold") is not None]
    window = where_it_stays(last_part(settled_part(moving or measured)))
    curvature = curvature_records(run, player, window)
    facts = observed(run.meta.get("players", {}).get(player, {}), window, everything)
    facts["ambiguous"] = ambiguity(curvature)
    facts["unsettled"] = why_unsettled(window)
    dtype = str(facts.get("weights_dtype") or facts.get("dtype") or "")
    facts["clipped"] = clipping(window, measured, full_batch=facts["full_batch"], dtype=dtype).share
    oscillation = Oscillation(run, player, window, facts)
    # The sharpness probe bounds the Hessian, which is not what a preconditioned optimizer's threshold concerns.
    bound = fresh_bound(
        run, player, window, ("stability",) if facts.get("preconditioned") else ("stability", "sharpness")
    )
    lines: tuple[Criterion, ...] = (
        sharpness(window, bound, facts, oscillation),
        *noise_criteria(window, facts, oscillation),
    )
    lost = [r for r in everything if r.status != "ok" and window and r.step > window[-1].step]
    if lost:
        lines = tuple(_lost_since(lost[0], line) for line in lines)
    steps = (window[0].step, window[-1].step) if window else None
    return Audit(
        player, steps, len(window), lines, oscillation.words, noted(curvature),
        preconditions(run, player, window, facts), evidence(run, player, window, facts, oscillation),
    )  # fmt: skip


def _lost_since(record: Record, line: Criterion) -> Criterion:
    """What was below the edge before a run diverged, or before measuring failed, says nothing of its end."""
    what = "the loss is not finite" if record.status == "nonfinite" else f"measuring fails ({record.reason})"
    said = f"{what} from step {record.step} on"
    if line.verdict == "NOT_APPLICABLE":
        return line
    if line.verdict == "ABOVE_EDGE":
        return dataclasses.replace(line, reason=f"{line.reason}; {said}")
    return dataclasses.replace(line, verdict="INCONCLUSIVE", reason=said)
