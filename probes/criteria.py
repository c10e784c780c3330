"""The first line of the audit: the sharpness against the optimizer's threshold; and what bars any line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from losscope.landscape.stability import judge

from .batchwise import why_batchwise
from .criterion import Assumption, Criterion
from .records import Record
from .settled import spanned, staying
from .window import Bound, Oscillation, Ratio, column, median, ratio_of

__all__ = ["CLIPPED_SHARE", "not_applicable", "not_what_is_trained", "sharpness", "unchecked"]


CLIPPED_SHARE = 0.1
"""Share of the measured updates that may have been clipped."""

# --------------------------------------------------------------------------- what bars a verdict


NOTHING = "no measurement: it takes the Stability() probe, at a step that every= reaches"


def not_applicable(facts: dict[str, Any], window: Sequence[Record]) -> str | None:
    """Why no criterion can apply, or None."""
    if bar := _nothing_to_judge(facts, window):
        return bar
    if facts.get("uphill"):
        return f"the learning rate is {facts['uphill']}: there is no 2/lr"
    if window[-1].values.get("threshold") is None:
        return str(facts.get("threshold_reason") or "the optimizer has no known threshold")
    return None


def _nothing_to_judge(facts: dict[str, Any], window: Sequence[Record]) -> str | None:
    """What bars a verdict at whatever rate."""
    if facts.get("optimizers", 1) > 1:
        return f"{facts['optimizers']} optimizers move the parameters of this objective: it moves under each of them"
    if facts.get("coupled"):
        return (
            "something else moves parameters that this objective depends on (another player's optimizer, a target "
            "network that follows): it moves too"
        )
    if not window:
        if failure := facts.get("failure"):
            return f"every measurement failed: {failure}"
        return f"no measurement: the weights were {facts['unseen']}" if facts.get("unseen") else NOTHING
    if facts.get("perturbed") and facts["full_batch"] is False:
        return "SAM's threshold is one of full batches: mini-batches perturb along gradients of their own norm"
    return None


def not_what_is_trained(facts: dict[str, Any]) -> str | None:
    """Why what was measured is not what is trained, or None."""
    if reason := _another_mode(facts):
        return reason
    if reason := why_batchwise(facts):
        return reason
    if facts.get("unlike"):
        return str(facts["unlike"])
    if facts.get("summed") and not facts["full_batch"]:
        return "with a summed loss the curvature that is trained on depends on the batch size; use a mean"
    if facts.get("perturbed") and facts["full_batch"] is None:
        return "SAM's threshold is one of full batches, and whether steps are is not known: pass batch_size= to watch"
    if (share := facts.get("clipped") or 0.0) > CLIPPED_SHARE and not facts["full_batch"]:
        return f"gradients were clipped in {share:.0%} of the measured updates, and the thresholds are of whole ones"
    scale = facts.get("gradient_scale")
    if facts["full_batch"] and scale is not None and abs(scale - 1) > 0.02:
        return (
            f"the optimizer steps with {scale:.3g} times the gradient of this objective: gradients are clipped, or the "
            "loop's loss is scaled"
        )
    return None


def _another_mode(facts: dict[str, Any]) -> str | None:
    if not facts.get("mode_matters"):
        return None
    return (
        f"measured with mode={facts.get('mode')!r}, but the model computes something else in training (BatchNorm, "
        'Dropout ...); pass mode="train" to watch'
    )


def _deterministic(facts: dict[str, Any]) -> Assumption:
    if (cosine := facts.get("gradient_cosine")) is not None:
        return Assumption(f"full-batch steps (cosine of their gradient with that of the data {cosine:.4f})", True)
    return Assumption(f"full-batch steps (batch {facts.get('batch_size')} of {facts.get('samples')} samples)", None)


def unchecked(facts: dict[str, Any]) -> list[Assumption]:
    """That the products are those of the Hessian, where nobody checks it, or it could not be told."""
    kernel = facts.get("kernel") or "auto"
    if kernel == "auto":
        reason = facts.get("unverified")
        return [Assumption(f"double backward is the derivative of the gradient ({reason})", None)] if reason else []
    return [Assumption(f'the Hessian is what kernel={kernel!r} computes ("auto" compares two ways)', None)]


# --------------------------------------------------------------------------- the lines


def sharpness(window: list[Record], bound: Bound | None, facts: dict[str, Any], oscillation: Oscillation) -> Criterion:
    """lambda_max(H), or that of P^-1 H, against the optimizer's threshold."""
    formula = str(facts.get("seen_formula") or facts.get("threshold_formula") or "2/lr")
    symbol = "lambda_max(P^-1 H)" if facts.get("preconditioned") else "lambda_max(H)"
    stochastic = not facts["full_batch"]
    kind = "necessary" if stochastic else "necessary and sufficient"
    ratio = spanned(ratio_of(window, "sharpness", "threshold", "threshold_largest"), window)
    numbers: dict[str, Any] = ratio.fields()
    assumptions = [Assumption("local: the quadratic model around the weights", None), *unchecked(facts)]
    if not stochastic:
        assumptions.insert(0, _deterministic(facts))
    if facts.get("perturbed"):
        assumptions.append(Assumption("the gradient's norm, which SAM's step divides by, changes slowly", None))
    if facts.get("divides", facts.get("preconditioned")):
        assumptions.append(staying(window))
        assumptions += _where_gradients_are(window)
    line: dict[str, Any] = {"name": "sharpness", "symbol": symbol, "formula": formula, "kind": kind}
    if facts.get("uphill") and not _nothing_to_judge(facts, window):
        return _uphill(line | numbers, facts)
    if reason := not_applicable(facts, window):
        return Criterion(**line, verdict="NOT_APPLICABLE", reason=reason, **numbers)
    if bound is not None and (carried := _carried(ratio, bound)) is not None:
        numbers |= carried
        percent = f"{bound.gap - 1:.0%}"
        assumptions.append(Assumption(f"the upper bound is still {percent} above, as at step {bound.step}", None))
    line |= numbers | {"assumptions": tuple(assumptions)}
    if reason := facts.get("ambiguous") or facts.get("unsettled") or not_what_is_trained(facts):
        return Criterion(**line, verdict="INCONCLUSIVE", reason=reason)
    ratio_high = numbers["ratio_high"]
    if not facts.get("covers_optimizer", True):
        ratio_high = None  # the rest of what the optimizer moves may be sharper
    verdict = judge(ratio.ratio, ratio.ratio_low, ratio_high, necessary=stochastic, oscillates=oscillation.seen)
    return Criterion(**line, verdict=verdict, reason=_sharpness_reason(verdict, ratio_high, facts, oscillation))


def _uphill(line: dict[str, Any], facts: dict[str, Any]) -> Criterion:
    """At a negative rate any positive curvature is above the edge; that of P^-1 H is positive where that of H is."""
    line |= {"symbol": "lambda_max(H)", "formula": "0 (lr < 0)", "threshold": None}
    line["assumptions"] = (Assumption("local: the quadratic model around the weights", None), *unchecked(facts))
    said = f"the learning rate is {facts['uphill']}: steps lead uphill"
    if reason := facts.get("ambiguous") or _another_mode(facts):
        return Criterion(**line, verdict="INCONCLUSIVE", reason=f"{said}; {reason}")
    if not facts.get("all_climb", True):
        reason = "those of other parameter groups are not: such a game may be stable"
        return Criterion(**line, verdict="INCONCLUSIVE", reason=f"{said}; {reason}")
    if line["low"] is None or not line["low"] > 0:
        return Criterion(**line, verdict="INCONCLUSIVE", reason=f"{said}; no positive curvature was found")
    said += ", and the linearised step grows wherever the curvature is positive"
    return Criterion(**line, verdict="ABOVE_EDGE", reason=said)


def _carried(ratio: Ratio, bound: Bound) -> dict[str, float] | None:
    """Upper ends from a bound that was found at another step, where there are none here or these are looser."""
    if ratio.measured is None or ratio.ratio is None:
        return None
    high = ratio.measured * bound.gap
    return {"high": high, "ratio_high": ratio.ratio * bound.gap} if ratio.high is None or high < ratio.high else None


def _where_gradients_are(window: list[Record]) -> list[Assumption]:
    """Whether the top eigenvector lives where the preconditioner is more than epsilon."""
    found = []
    dead = median(column(window, "dead_share"))
    if dead is not None and dead > 0.1:
        found.append(Assumption(f"the top eigenvector is where gradients are ({dead:.0%} is not)", False))
    ratio = median(column(window, "sharpness", "threshold"))
    ten, hundred = (median(column(window, f"sharpness_epsilon_{factor}", "threshold")) for factor in (10, 100))
    if ratio and hundred is not None:
        at_ten = "" if ten is None else f"{ten:.3g} at 10 times it, "
        said = f"the ratio does not hang on epsilon ({at_ten}{hundred:.3g} at 100 times it)"
        found.append(Assumption(said, (hundred if ten is None else ten) > 0.9 * ratio))
    return found


def _sharpness_reason(verdict: str, ratio_high: float | None, facts: dict[str, Any], oscillation: Oscillation) -> str:
    if verdict == "INCONCLUSIVE":
        if not facts.get("covers_optimizer", True):
            return "only part of what the optimizer moves was measured: that bounds the sharpness from below only"
        if ratio_high is None:
            return "no upper bound of the sharpness near the end of the run"
        return "the interval of the ratio reaches across 0.9 or 1.1"
    if verdict in ("AT_EDGE", "NEAR_EDGE_NO_OSCILLATION"):
        return oscillation.words
    if verdict == "NOT_EXCLUDED":
        if facts["full_batch"] is None:
            return "holds; whether steps are full-batch is not known: pass batch_size= to watch"
        see = ", see s_mu" if facts.get("s_mu_applies") else ""
        return f"holds in the mean; under gradient noise the edge lies lower{see}"
    if verdict == "ABOVE_EDGE":
        return "the linearised step grows along the top eigenvector: a transient, a catapult or divergence"
    return "the whole interval is below 0.9 of the threshold"
