"""The stability audit of a run: per criterion what was measured, against what, and what that says."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from losscope.landscape.stability import judge

from .records import Record

if TYPE_CHECKING:
    from .run import Run

__all__ = ["Assumption", "Audit", "Criterion", "audit"]

BOUND_STAYS_FRESH = 200
"""An upper bound of the sharpness this many steps old still speaks for the present (stated as an assumption)."""


@dataclass(frozen=True)
class Assumption:
    """Something a criterion presumes; ``holds`` is None where it was not checked."""

    text: str
    holds: bool | None


@dataclass(frozen=True)
class Criterion:
    """One line of the audit.

    Attributes:
        name: ``"sharpness"``, ``"trace"`` or ``"s_mu"``.
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


@dataclass(frozen=True)
class Audit:
    """The audit of one player.

    Attributes:
        player: whose.
        steps: first and last measured step the audit rests on; None where nothing was measured.
        measurements: how many measurements that is.
        criteria: the lines.
        evidence: observed oscillation in words.
    """

    player: str
    steps: tuple[int, int] | None
    measurements: int
    criteria: tuple[Criterion, ...]
    evidence: str

    @property
    def above_edge(self) -> bool:
        """Whether a criterion that applies is exceeded."""
        return any(c.verdict == "ABOVE_EDGE" for c in self.criteria)

    def __getitem__(self, name: str) -> Criterion:
        """The line of that name."""
        for criterion in self.criteria:
            if criterion.name == name:
                return criterion
        raise KeyError(f"no criterion {name!r}; there are {', '.join(c.name for c in self.criteria)}")


def audit(run: Run, player: str) -> Audit:
    """Audit the last quarter of a run (at least its last five stability measurements).

    Ratios are formed at each measurement with the rate of its own update, and their medians are
    judged, so that a schedule of rates does not blur them.

    Args:
        run: the run.
        player: one of its players.
    """
    facts = run.meta.get("players", {}).get(player, {})
    measured = run.select("stability", player)
    window = _last_part(measured)
    oscillation = _Oscillation(run, player, window, facts)
    lines: tuple[Criterion, ...] = (
        _sharpness(window, _latest_bound(run, player, window), facts, oscillation),
        _trace(window, facts),
        _s_mu(window, facts, oscillation),
    )
    lost = [r.step for r in run.select("stability", player, ok=False) if r.status == "nonfinite"]
    if window and lost and lost[-1] > window[-1].step:
        first = min(step for step in lost if step > window[-1].step)
        lines = tuple(_not_finite_since(first, line) for line in lines)
    steps = (window[0].step, window[-1].step) if window else None
    return Audit(player, steps, len(window), lines, oscillation.words)


def _last_part(records: Sequence[Record]) -> list[Record]:
    if not records:
        return []
    first, last = records[0].step, records[-1].step
    late = [r for r in records if r.step >= last - (last - first) / 4]
    return late if len(late) >= 5 else list(records[-5:])


# --------------------------------------------------------------------------- numbers over a window


@dataclass(frozen=True)
class _Ratio:
    """Medians over the window of a quantity, its bounds and its ratio to 2/lr or the threshold."""

    measured: float | None
    low: float | None
    high: float | None
    threshold: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None

    def fields(self) -> dict[str, float | None]:
        return dict(self.__dict__)


def _ratio(window: Sequence[Record], name: str, threshold: str, largest: str | None = None) -> _Ratio:
    """Medians; the bounds of a ratio divide by the largest and the smallest threshold of the groups."""
    low, high = f"{name}_low", f"{name}_high"
    return _Ratio(
        _median(_column(window, name)),
        _median(_column(window, low)),
        _median(_column(window, high)),
        _median(_column(window, threshold)),
        _median(_column(window, name, threshold)),
        _median(_column(window, low, largest or threshold)),
        _median(_column(window, high, threshold)),
    )


def _column(window: Sequence[Record], name: str, divisor: str | None = None) -> list[float]:
    found = []
    for record in window:
        value = record.values.get(name)
        unit = record.values.get(divisor) if divisor else 1.0
        if value is not None and unit is not None and unit > 0 and math.isfinite(value):
            found.append(value / unit)
    return found


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


class _Oscillation:
    """Evidence of oscillation in the window: sign flips along the top eigenvector, a rising loss."""

    def __init__(self, run: Run, player: str, window: Sequence[Record], facts: dict[str, Any]) -> None:
        self.seen: bool | None = None
        said: list[str] = []
        if window:
            first, last = window[0].step, window[-1].step
            records = [r for r in run.select("oscillation", player) if first <= r.step <= last]
            pairs = sum(r.values.get("pairs") or 0 for r in records)
            if pairs >= 6:
                share = sum(r.values.get("flips") or 0 for r in records) / pairs
                said.append(
                    f"the step along the top eigenvector changed sign in {share:.0%} of {pairs:.0f} pairs of steps"
                )
                self.seen = share >= 0.75
            if _full_batch(facts):
                self._add_loss(run, player, first, last, said)
        self.words = "; ".join(said) or "oscillation was not observed: too few steps followed"

    def _add_loss(self, run: Run, player: str, first: int, last: int, said: list[str]) -> None:
        steps, losses = run.logged("loss", player)
        kept = [(s, v) for s, v in zip(steps.tolist(), losses.tolist(), strict=True) if first <= s <= last]
        rises = [b > a for (s, a), (t, b) in itertools.pairwise(kept) if t == s + 1]
        if len(rises) >= 20:
            share = sum(rises) / len(rises)
            said.append(f"the full-batch loss rose in {share:.0%} of {len(rises)} steps")
            self.seen = bool(self.seen) or share >= 0.1


# --------------------------------------------------------------------------- what bars a verdict


def _full_batch(facts: dict[str, Any]) -> bool:
    batch, samples = facts.get("batch_size"), facts.get("samples")
    return batch is not None and samples is not None and batch >= samples


def _not_applicable(facts: dict[str, Any], window: Sequence[Record]) -> str | None:
    """Why no criterion can apply, or None."""
    if facts.get("optimizers", 1) > 1:
        return f"{facts['optimizers']} optimizers move the parameters of this objective: it moves under each of them"
    if facts.get("coupled"):
        return "another player's optimizer moves parameters that this objective depends on: the objective moves"
    if not window:
        return "no stability measurement in this run; add the Stability() probe, or see the errors recorded"
    if window[-1].values.get("threshold") is None:
        return str(facts.get("threshold_reason") or "the optimizer has no known threshold")
    return None


def _inconclusive(facts: dict[str, Any]) -> str | None:
    """Why what was measured is not what is trained, or None."""
    if facts.get("mode_matters"):
        return (
            f"measured with mode={facts.get('mode')!r}, but the model computes something else in training (BatchNorm, "
            'Dropout ...); pass mode="train" to watch'
        )
    if facts.get("summed") and not _full_batch(facts):
        return "with a summed loss the curvature that is trained on depends on the batch size; use a mean"
    return None


def _deterministic(facts: dict[str, Any]) -> Assumption:
    if facts.get("batch_size") is None:
        return Assumption("full-batch steps (batch_size was not given)", None)
    return Assumption(
        f"full-batch steps (batch {facts['batch_size']} of {facts.get('samples')} samples)", _full_batch(facts)
    )


# --------------------------------------------------------------------------- the lines


def _not_finite_since(step: int, line: Criterion) -> Criterion:
    """What was below the edge before a run diverged says nothing about the run."""
    if line.verdict in ("ABOVE_EDGE", "NOT_APPLICABLE"):
        return line
    return dataclasses.replace(line, verdict="INCONCLUSIVE", reason=f"the loss is not finite from step {step} on")


def _sharpness(
    window: list[Record], bound: _Bound | None, facts: dict[str, Any], oscillation: _Oscillation
) -> Criterion:
    formula = str(facts.get("threshold_formula") or "2/lr")
    stochastic = facts.get("batch_size") is not None and not _full_batch(facts)
    kind = "necessary" if stochastic else "necessary and sufficient"
    ratio = _ratio(window, "sharpness", "threshold", "threshold_largest")
    numbers: dict[str, Any] = ratio.fields()
    assumptions = [Assumption("local: the quadratic model around the weights", None)]
    if not stochastic:
        assumptions.insert(0, _deterministic(facts))
    line: dict[str, Any] = {"name": "sharpness", "symbol": "lambda_max(H)", "formula": formula, "kind": kind}
    if reason := _not_applicable(facts, window):
        return Criterion(**line, verdict="NOT_APPLICABLE", reason=reason, **numbers)
    if ratio.high is None and bound is not None and ratio.measured is not None and ratio.ratio is not None:
        numbers |= {"high": ratio.measured * bound.gap, "ratio_high": ratio.ratio * bound.gap}
        percent = f"{bound.gap - 1:.0%}"
        assumptions.append(Assumption(f"the upper bound is still {percent} above, as at step {bound.step}", None))
    line |= numbers | {"assumptions": tuple(assumptions)}
    if reason := _inconclusive(facts):
        return Criterion(**line, verdict="INCONCLUSIVE", reason=reason)
    ratio_high = numbers["ratio_high"]
    if not facts.get("covers_optimizer", True):
        ratio_high = None  # the rest of what the optimizer moves may be sharper
    verdict = judge(ratio.ratio, ratio.ratio_low, ratio_high, necessary=stochastic, oscillates=oscillation.seen)
    return Criterion(**line, verdict=verdict, reason=_sharpness_reason(verdict, ratio_high, facts, oscillation))


@dataclass(frozen=True)
class _Bound:
    """The last upper bound of the sharpness, relative to the value it was found with."""

    step: int
    gap: float


def _latest_bound(run: Run, player: str, window: Sequence[Record]) -> _Bound | None:
    """The last upper bound of the sharpness by either probe, if it is recent."""
    found = []
    for record in [*run.select("stability", player), *run.select("sharpness", player)]:
        if record.value is not None and record.value > 0 and record.high is not None:
            found.append(_Bound(record.step, record.high / record.value))
    latest = max(found, key=lambda bound: bound.step, default=None)
    if latest is None or not window or window[-1].step - latest.step > BOUND_STAYS_FRESH:
        return None
    return latest


def _sharpness_reason(verdict: str, ratio_high: float | None, facts: dict[str, Any], oscillation: _Oscillation) -> str:
    if verdict == "INCONCLUSIVE":
        if not facts.get("covers_optimizer", True):
            return "only part of what the optimizer moves was measured: that bounds the sharpness from below only"
        if ratio_high is None:
            return "no upper bound of the sharpness near the end of the run"
        return "the interval of the ratio reaches across 0.9 or 1.1"
    if verdict in ("AT_EDGE", "NEAR_EDGE_NO_OSCILLATION"):
        return oscillation.words
    if verdict == "NOT_EXCLUDED":
        return "holds in the mean; with mini-batches the edge lies lower, see s_mu"
    if verdict == "ABOVE_EDGE":
        return "the linearised step grows along the top eigenvector: a transient, a catapult or divergence"
    return "the whole interval is below 0.9 of the threshold"


def _trace(window: list[Record], facts: dict[str, Any]) -> Criterion:
    ratio = _ratio(window, "trace", "two_over_lr")
    outputs, family, batch = facts.get("outputs"), facts.get("loss_family"), facts.get("batch_size")
    assumptions = (
        Assumption("squared loss", _is_squared(family)),
        Assumption("one output per sample" + (f" (there are {outputs})" if outputs else ""), outputs and outputs == 1),
        Assumption("SGD at batch size 1", None if batch is None else batch == 1 and not _full_batch(facts)),
        Assumption("no momentum", not facts.get("momentum")),
        _interpolation(window),
    )
    line: dict[str, Any] = {
        "name": "trace", "symbol": "tr(H)", "kind": "necessary", "assumptions": assumptions, **ratio.fields(),
    }  # fmt: skip
    if reason := _not_applicable(facts, window) or _trace_bar(facts):
        return Criterion(**line, verdict="NOT_APPLICABLE", reason=reason)
    if reason := _inconclusive(facts):
        return Criterion(**line, verdict="INCONCLUSIVE", reason=reason)
    return _necessary(line, ratio, facts, None)


def _trace_bar(facts: dict[str, Any]) -> str | None:
    outputs, batch = facts.get("outputs"), facts.get("batch_size")
    if batch is None:
        return "tr(H) <= 2/lr concerns SGD's noise: pass batch_size= to watch"
    if _full_batch(facts):
        return "full-batch training has no gradient noise: lambda_max carries the verdict"
    if outputs is None:
        return "for scalar outputs only, and the outputs are hidden behind loss_fn: s_mu carries the verdict"
    if outputs > 1:
        return f"for scalar outputs only, and there are {outputs}: s_mu carries the verdict"
    if batch > 1:
        return f"derived for batch size 1, training uses {batch}: s_mu carries the verdict"
    return _noise_bar(facts)


def _noise_bar(facts: dict[str, Any]) -> str | None:
    """What bars the criteria of SGD's noise, whatever the number of outputs."""
    if facts.get("momentum"):
        return "with momentum the mini-batch threshold depends on the batch size, from 2(1-b)/lr to 2(1+b)/lr"
    if facts.get("loss_family") in ("cross-entropy", "other"):
        return f"derived for the squared loss, this one is {facts['loss_family']}"
    return None


def _s_mu(window: list[Record], facts: dict[str, Any], oscillation: _Oscillation) -> Criterion:
    ratio = _ratio(window, "s_mu", "two_over_lr")
    assumptions = (
        Assumption("squared loss", _is_squared(facts.get("loss_family"))),
        Assumption("no momentum", not facts.get("momentum")),
        Assumption("data is the training data, in mini-batches without replacement", None),
        _interpolation(window),
    )
    line: dict[str, Any] = {
        "name": "s_mu", "symbol": "S_mu = E|g_B|^2/2L", "kind": "necessary", "assumptions": assumptions,
        **ratio.fields(),
    }  # fmt: skip
    reason = _not_applicable(facts, window)
    if reason is None and facts.get("batch_size") is None:
        reason = "needs training's batch size: pass batch_size= to watch"
    if reason is None and _full_batch(facts):
        reason = "full-batch training (or no more data than one batch): lambda_max carries the verdict"
    if reason := reason or _noise_bar(facts):
        return Criterion(**line, verdict="NOT_APPLICABLE", reason=reason)
    if reason := _inconclusive(facts):
        return Criterion(**line, verdict="INCONCLUSIVE", reason=reason)
    return _necessary(line, ratio, facts, oscillation)


def _is_squared(family: str | None) -> bool | None:
    return None if family in (None, "unknown") else family == "squared"


def _interpolation(window: Sequence[Record]) -> Assumption:
    loss = _median(_column(window, "loss"))
    return Assumption("near interpolation" + (f" (loss {loss:.3g})" if loss is not None else ""), None)


def _necessary(
    line: dict[str, Any], ratio: _Ratio, facts: dict[str, Any], oscillation: _Oscillation | None
) -> Criterion:
    seen = oscillation.seen if oscillation else None
    verdict = judge(ratio.ratio, ratio.ratio_low, ratio.ratio_high, necessary=True, oscillates=seen)
    if ratio.ratio is None and ratio.measured is not None and ratio.threshold is None:
        return Criterion(**line, verdict=verdict, reason="there is no one 2/lr: the rates of parameter groups differ")
    if ratio.ratio is None:
        return Criterion(**line, verdict=verdict, reason="not measured; see the errors recorded")
    if verdict == "ABOVE_EDGE" and _is_squared(facts.get("loss_family")) is None:
        reason = "exceeded, but whether the loss is squared is not known"
        return Criterion(**line, verdict="INCONCLUSIVE", reason=reason)
    reasons = {
        "NOT_EXCLUDED": "necessary, and it holds: stability is not excluded",
        "ABOVE_EDGE": "a necessary condition of mean-square stability is violated",
        "INCONCLUSIVE": "the interval of the ratio reaches across 0.9 or 1.1",
    }
    reason = reasons.get(verdict, oscillation.words if oscillation else "")
    return Criterion(**line, verdict=verdict, reason=reason)
