"""The lines of the audit: sharpness, trace and S_mu against their thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from losscope.landscape.stability import judge

from .criterion import Assumption, Criterion
from .records import Record
from .window import Bound, Oscillation, Ratio, column, median, ratio_of

__all__ = ["s_mu", "sharpness", "trace"]


# --------------------------------------------------------------------------- what bars a verdict


def _not_applicable(facts: dict[str, Any], window: Sequence[Record]) -> str | None:
    """Why no criterion can apply, or None."""
    if facts.get("optimizers", 1) > 1:
        return f"{facts['optimizers']} optimizers move the parameters of this objective: it moves under each of them"
    if facts.get("coupled"):
        return (
            "something else moves parameters that this objective depends on (another player's optimizer): it moves too"
        )
    if not window:
        failure = facts.get("failure")
        return f"every measurement failed: {failure}" if failure else "no measurement: the Stability() probe is needed"
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
    if facts.get("summed") and not facts["full_batch"]:
        return "with a summed loss the curvature that is trained on depends on the batch size; use a mean"
    scale = facts.get("gradient_scale")
    if facts["full_batch"] and scale is not None and abs(scale - 1) > 0.02:
        return (
            f"the optimizer steps with {scale:.3g} times the gradient of this objective: gradients are clipped, or the "
            "loop's loss is scaled"
        )
    return None


def _deterministic(facts: dict[str, Any]) -> Assumption:
    if (cosine := facts.get("gradient_cosine")) is not None:
        return Assumption(f"full-batch steps (cosine of their gradient with that of the data {cosine:.4f})", True)
    return Assumption(f"full-batch steps (batch {facts.get('batch_size')} of {facts.get('samples')} samples)", None)


def _unchecked(facts: dict[str, Any]) -> list[Assumption]:
    """That the products are those of the Hessian, where a kernel was asked for that does not check it."""
    kernel = facts.get("kernel") or "auto"
    if kernel == "auto":
        return []
    return [Assumption(f'the Hessian is what kernel={kernel!r} computes ("auto" compares two ways)', None)]


# --------------------------------------------------------------------------- the lines


def sharpness(window: list[Record], bound: Bound | None, facts: dict[str, Any], oscillation: Oscillation) -> Criterion:
    """lambda_max(H), or that of P^-1 H, against the optimizer's threshold."""
    formula = str(facts.get("seen_formula") or facts.get("threshold_formula") or "2/lr")
    symbol = "lambda_max(P^-1 H)" if facts.get("preconditioned") else "lambda_max(H)"
    stochastic = not facts["full_batch"]
    kind = "necessary" if stochastic else "necessary and sufficient"
    ratio = ratio_of(window, "sharpness", "threshold", "threshold_largest")
    numbers: dict[str, Any] = ratio.fields()
    assumptions = [Assumption("local: the quadratic model around the weights", None), *_unchecked(facts)]
    if not stochastic:
        assumptions.insert(0, _deterministic(facts))
    if facts.get("preconditioned"):
        assumptions.append(Assumption("the preconditioner changes slowly beside the oscillation", None))
        dead = median(column(window, "dead_share"))
        if dead is not None and dead > 0.1:
            assumptions.append(Assumption(f"the top eigenvector is where gradients are ({dead:.0%} is not)", False))
    line: dict[str, Any] = {"name": "sharpness", "symbol": symbol, "formula": formula, "kind": kind}
    if reason := _not_applicable(facts, window):
        return Criterion(**line, verdict="NOT_APPLICABLE", reason=reason, **numbers)
    if ratio.high is None and bound is not None and ratio.measured is not None and ratio.ratio is not None:
        numbers |= {"high": ratio.measured * bound.gap, "ratio_high": ratio.ratio * bound.gap}
        percent = f"{bound.gap - 1:.0%}"
        assumptions.append(Assumption(f"the upper bound is still {percent} above, as at step {bound.step}", None))
    line |= numbers | {"assumptions": tuple(assumptions)}
    if reason := facts.get("ambiguous") or _inconclusive(facts):
        return Criterion(**line, verdict="INCONCLUSIVE", reason=reason)
    ratio_high = numbers["ratio_high"]
    if not facts.get("covers_optimizer", True):
        ratio_high = None  # the rest of what the optimizer moves may be sharper
    verdict = judge(ratio.ratio, ratio.ratio_low, ratio_high, necessary=stochastic, oscillates=oscillation.seen)
    return Criterion(**line, verdict=verdict, reason=_sharpness_reason(verdict, ratio_high, facts, oscillation))


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
        see = "" if facts.get("preconditioned") else ", see s_mu"
        return f"holds in the mean; under gradient noise the edge lies lower{see}"
    if verdict == "ABOVE_EDGE":
        return "the linearised step grows along the top eigenvector: a transient, a catapult or divergence"
    return "the whole interval is below 0.9 of the threshold"


def trace(window: list[Record], facts: dict[str, Any]) -> Criterion:
    """tr(H) against 2/lr, for scalar outputs and batch size 1."""
    ratio = ratio_of(window, "trace", "two_over_lr")
    outputs, family, batch = facts.get("outputs"), facts.get("loss_family"), facts.get("batch_size")
    assumptions = (
        Assumption("squared loss", _is_squared(family)),
        Assumption("one output per sample" + (f" (there are {outputs})" if outputs else ""), outputs and outputs == 1),
        Assumption("SGD at batch size 1", None if batch is None else batch == 1 and not facts["full_batch"]),
        Assumption("no momentum", not facts.get("momentum")),
        _interpolation(window),
        *_unchecked(facts),
    )
    line: dict[str, Any] = {
        "name": "trace", "symbol": "tr(H)", "kind": "necessary", "assumptions": assumptions, **ratio.fields(),
    }  # fmt: skip
    bar = _not_applicable(facts, window) or _trace_bar(facts)
    return _necessary(line, ratio, facts, None, bar=bar, doubt=facts.get("ambiguous"))


def _trace_bar(facts: dict[str, Any]) -> str | None:
    outputs, batch = facts.get("outputs"), facts.get("batch_size")
    if facts["full_batch"]:
        return "full-batch training has no gradient noise: lambda_max carries the verdict"
    if batch is None:
        return "tr(H) <= 2/lr concerns SGD's noise: pass batch_size= to watch"
    if outputs is None:
        return "for scalar outputs only, and the outputs are hidden behind loss_fn: s_mu carries the verdict"
    if outputs > 1:
        return f"for scalar outputs only, and there are {outputs}: s_mu carries the verdict"
    if batch > 1:
        return f"derived for batch size 1, training uses {batch}: s_mu carries the verdict"
    return _noise_bar(facts)


def _noise_bar(facts: dict[str, Any]) -> str | None:
    """What bars the criteria of SGD's noise, whatever the number of outputs."""
    if facts.get("preconditioned"):
        return f"derived for SGD, and the optimizer is {facts.get('optimizer')}"
    if facts.get("momentum"):
        return "with momentum the mini-batch threshold depends on the batch size, from 2(1-b)/lr to 2(1+b)/lr"
    if facts.get("loss_family") in ("cross-entropy", "other"):
        return f"derived for the squared loss, this one is {facts['loss_family']}"
    return None


def s_mu(window: list[Record], facts: dict[str, Any], oscillation: Oscillation) -> Criterion:
    """S_mu against 2/lr, for any number of outputs and any batch size."""
    ratio = ratio_of(window, "s_mu", "two_over_lr")
    assumptions: tuple[Assumption, ...] = (
        Assumption("squared loss", _is_squared(facts.get("loss_family"))),
        Assumption("no momentum", not facts.get("momentum")),
        Assumption("data is the training data, in mini-batches without replacement", None),
        _interpolation(window),
    )
    if facts.get("ambiguous"):
        assumptions += (Assumption("the gradient is that of the loss, though its Hessian is ambiguous", None),)
    line: dict[str, Any] = {
        "name": "s_mu", "symbol": "S_mu = E|g_B|^2/2L", "kind": "necessary", "assumptions": assumptions,
        **ratio.fields(),
    }  # fmt: skip
    bar = _not_applicable(facts, window) or _s_mu_bar(facts) or _noise_bar(facts)
    return _necessary(line, ratio, facts, oscillation, bar=bar)


def _s_mu_bar(facts: dict[str, Any]) -> str | None:
    batch, samples = facts.get("batch_size"), facts.get("samples")
    if facts["full_batch"]:
        return "full-batch training: lambda_max carries the verdict"
    if batch is None:
        return "needs training's batch size: pass batch_size= to watch"
    if samples is not None and batch >= samples:
        return f"needs more data than one mini-batch: data= holds {samples} samples, batch_size is {batch}"
    return None


def _is_squared(family: str | None) -> bool | None:
    return None if family in (None, "unknown") else family == "squared"


def _interpolation(window: Sequence[Record]) -> Assumption:
    loss = median(column(window, "loss"))
    return Assumption("near interpolation" + (f" (loss {loss:.3g})" if loss is not None else ""), None)


def _necessary(
    line: dict[str, Any], ratio: Ratio, facts: dict[str, Any], oscillation: Oscillation | None, *, bar: str | None,
    doubt: str | None = None,
) -> Criterion:  # fmt: skip
    """A line whose criterion is necessary for stability: barred, not what is trained, or judged."""
    if bar:
        return Criterion(**line, verdict="NOT_APPLICABLE", reason=bar)
    if reason := doubt or _inconclusive(facts):
        return Criterion(**line, verdict="INCONCLUSIVE", reason=reason)
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
