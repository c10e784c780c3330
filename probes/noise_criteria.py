"""The lines of the audit on the noise of mini-batches: trace, alignment, S_mu, batch sharpness and its kin."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from losscope.landscape.stability import judge

from .catalogue import CATALOGUE, Entry
from .criteria import not_applicable, not_what_is_trained, unchecked
from .criterion import Assumption, Criterion
from .records import Record
from .window import Oscillation, Ratio, column, median, ratio_of

__all__ = ["noise_criteria"]

Facts = dict[str, Any]


def noise_criteria(window: list[Record], facts: Facts, oscillation: Oscillation) -> tuple[Criterion, ...]:
    """All lines of the catalogue but the sharpness.

    Args:
        window: the measurements they rest on.
        facts: of the player, as `window.observed` completes them.
        oscillation: what was seen of it.
    """
    lines = tuple(_line(entry, window, facts, oscillation) for entry in CATALOGUE.values() if entry.name != "sharpness")
    applies = any(line.name == "s_mu" and line.verdict != "NOT_APPLICABLE" for line in lines)
    return tuple(_pointed(line) if line.name == "trace" and applies else line for line in lines)


def _pointed(line: Criterion) -> Criterion:
    """Where only the trace does not apply, the criterion that is made for what it is not."""
    barred = line.verdict == "NOT_APPLICABLE"
    return dataclasses.replace(line, reason=f"{line.reason}: s_mu carries the verdict") if barred else line


def _line(entry: Entry, window: list[Record], facts: Facts, oscillation: Oscillation) -> Criterion:
    ratio = ratio_of(window, entry.name, entry.threshold)
    edge = _Edge(entry, window, facts)
    ratio = edge.spanned(ratio)
    line: dict[str, Any] = {
        "name": entry.name, "symbol": _symbol(entry, facts), "kind": entry.kind, "formula": edge.formula,
        "assumptions": _assumptions(entry, window, facts), **ratio.fields(),
    }  # fmt: skip
    bar = not_applicable(facts, window) or _BARS[entry.name](facts) or _not_measured(entry, window)
    if bar:
        return Criterion(**line, verdict="NOT_APPLICABLE", reason=bar)
    ambiguous = None if entry.name in ("s_mu", "aligned_trace") else facts.get("ambiguous")  # gradients only
    trained = facts | {"batchwise": None} if entry.name in _OF_MINIBATCHES else facts
    if reason := ambiguous or facts.get("unsettled") or not_what_is_trained(trained):
        return Criterion(**line, verdict="INCONCLUSIVE", reason=reason)
    verdict, reason = _judged(entry, ratio, facts, oscillation, edge)
    return Criterion(**line, verdict=verdict, reason=reason)


class _Edge:
    """What a criterion is compared with: one of SGD with momentum, from small batches' edge to that of large ones."""

    def __init__(self, entry: Entry, window: Sequence[Record], facts: Facts) -> None:
        self.formula = entry.formula
        self._of_small: Ratio | None = None
        if entry.threshold == "threshold":
            self.formula = str(facts.get("seen_formula") or facts.get("threshold_formula") or entry.formula)
            small = median(column(window, "threshold_small_batch", "threshold"))
            if small is not None and small < 0.999:
                self._of_small = ratio_of(window, entry.name, "threshold_small_batch")

    @property
    def moves(self) -> bool:
        """Whether it depends on the batch size."""
        return self._of_small is not None

    def spanned(self, ratio: Ratio) -> Ratio:
        """The ratio to the edge of large batches, its upper bound being that to the edge of small ones."""
        return ratio if self._of_small is None else dataclasses.replace(ratio, ratio_high=self._of_small.ratio_high)


def _symbol(entry: Entry, facts: Facts) -> str:
    if facts.get("preconditioned") and entry.name == "batch_sharpness":
        return "E[u' H_B u/g_B'u], u = P^-1 g_B"
    if facts.get("preconditioned") and entry.name == "batch_sharpness_ratio":
        return "E[u' H_B u]/E[g_B'u], u = P^-1 g_B"
    return entry.symbol


# --------------------------------------------------------------------------- what bars a line

_OF_MINIBATCHES = ("batch_sharpness", "batch_sharpness_ratio")
"""Criteria of mini-batches alone, in which nothing is taken from all samples at once."""


def _minibatches(facts: Facts) -> str | None:
    """What bars every criterion of mini-batches."""
    batch, samples = facts.get("batch_size"), facts.get("samples")
    if facts["full_batch"]:
        return "full-batch training: lambda_max carries the verdict"
    if batch is None:
        return "needs training's batch size: pass batch_size= to watch"
    if samples is not None and batch >= samples:
        if facts.get("unlike"):
            return f"batch_size= ({batch}) covers data= ({samples} samples), and yet steps are of other gradients"
        return f"needs more data than one mini-batch: data= holds {samples} samples, batch_size is {batch}"
    return None


def _linear_theory(facts: Facts) -> str | None:
    """What bars the criteria that are derived for SGD on a linear model with squared loss."""
    if facts.get("folded") and not facts.get("divides"):
        return "derived for one learning rate, and parameter groups differ"
    if facts.get("preconditioned"):
        return f"derived for SGD, and the optimizer is {facts.get('optimizer')}"
    if facts.get("momentum"):
        large = facts.get("threshold_formula")
        up_to = f", up to {large} for large batches" if large else ""
        return f"with momentum the mini-batch threshold depends on the batch size{up_to}"
    if facts.get("loss_family") in ("cross-entropy", "other"):
        return f"derived for the squared loss, this one is {facts['loss_family']}"
    return None


def _theory(facts: Facts) -> str | None:
    return _minibatches(facts) or _linear_theory(facts)


def _trace(facts: Facts) -> str | None:
    outputs, batch = facts.get("outputs"), facts.get("batch_size")
    if facts["full_batch"]:
        return "full-batch training has no gradient noise: lambda_max carries the verdict"
    if batch is None:
        return "tr(H) <= 2/lr concerns SGD's noise: pass batch_size= to watch"
    if bar := _linear_theory(facts):
        return bar
    if outputs is None:
        return "for scalar outputs only, and outputs are hidden (loss_fn, or several tensors)"
    if outputs > 1:
        return f"for scalar outputs only, and there are {outputs}"
    return f"derived for batch size 1, training uses {batch}" if batch > 1 else None


def _hessian_of_gradients(facts: Facts) -> str | None:
    if facts.get("folded") and not facts.get("divides"):
        return _minibatches(facts) or "defined for one learning rate, and parameter groups differ"
    if facts.get("preconditioned"):
        return _minibatches(facts) or f"defined for SGD, and the optimizer is {facts.get('optimizer')}"
    return _minibatches(facts)


def _one_step(facts: Facts) -> str | None:
    """What bars the criterion of the expected loss over one step."""
    if bar := _hessian_of_gradients(facts):
        return bar
    return "a step with momentum is not along its own gradient" if facts.get("momentum") else None


_BARS: dict[str, Callable[[Facts], str | None]] = {
    "trace": _trace,
    "aligned_trace": _theory,
    "frobenius": _theory,
    "s_mu": _theory,
    "mean_square": _theory,
    "batch_sharpness": _minibatches,
    "batch_sharpness_ratio": _minibatches,
    "interaction_aware": _hessian_of_gradients,
    "noise_interaction": _one_step,
}


def _not_measured(entry: Entry, window: Sequence[Record]) -> str | None:
    """Where the line was not asked for; one that failed has its name in the records, without a number."""
    if any(entry.name in record.values for record in window):
        return None
    asked = "mean_square=True" if entry.name == "mean_square" else 'level="full"'
    return f"not measured: Stability({asked}) does"


# --------------------------------------------------------------------------- what a line presumes


def _assumptions(entry: Entry, window: Sequence[Record], facts: Facts) -> tuple[Assumption, ...]:
    sampled = Assumption("data is the training data, in mini-batches without replacement", None)
    if entry.kind == "empirical":
        return (sampled, *unchecked(facts))
    found = [Assumption("squared loss", _is_squared(facts.get("loss_family")))]
    if entry.name == "trace":
        outputs, batch = facts.get("outputs"), facts.get("batch_size")
        words = "one output per sample" + (f" (there are {outputs})" if outputs else "")
        found.append(Assumption(words, outputs and outputs == 1))
        at_one = None if batch is None else batch == 1 and not facts["full_batch"]
        found.append(Assumption("SGD at batch size 1", at_one))
    else:
        found.append(sampled)
    found += [Assumption("no momentum", not facts.get("momentum")), _interpolation(window)]
    if facts.get("ambiguous"):
        found.append(Assumption("the gradient is that of the loss, though its Hessian is ambiguous", None))
    return (*found, *(unchecked(facts) if entry.name in ("trace", "frobenius") else ()))


def _is_squared(family: str | None) -> bool | None:
    return None if family in (None, "unknown") else family == "squared"


def _interpolation(window: Sequence[Record]) -> Assumption:
    loss = median(column(window, "loss"))
    return Assumption("near interpolation" + (f" (loss {loss:.3g})" if loss is not None else ""), None)


# --------------------------------------------------------------------------- verdicts


def _judged(entry: Entry, ratio: Ratio, facts: Facts, oscillation: Oscillation, edge: _Edge) -> tuple[str, str]:
    """The verdict of a line that applies, and its reason."""
    if entry.name == "noise_interaction" and ratio.ratio is not None:
        return _of_one_step(ratio)
    necessary = entry.kind == "necessary"
    seen = None if entry.name == "trace" else oscillation.seen
    verdict = judge(ratio.ratio, ratio.ratio_low, ratio.ratio_high, necessary=necessary, oscillates=seen)
    if ratio.ratio is None and ratio.measured is not None and ratio.threshold is None:
        return verdict, "there is no one 2/lr: the rates of parameter groups differ"
    if ratio.ratio is None:
        return verdict, "not measured; see the errors recorded"
    theory = entry.kind != "empirical"
    if verdict == "ABOVE_EDGE" and theory and _is_squared(facts.get("loss_family")) is None:
        return "INCONCLUSIVE", "exceeded, but whether the loss is squared is not known"
    if verdict == "INCONCLUSIVE" and edge.moves:
        return verdict, "between the edges of small and of large batches, which differ under momentum"
    said = _REASONS["necessary" if necessary else entry.kind].get(verdict)
    if said and "SGD is seen" in said and facts.get("divides", facts.get("preconditioned")):
        said += f"; for {facts.get('optimizer')} by analogy"
    return verdict, said or (oscillation.words if seen is not None else "near the threshold")


def _of_one_step(ratio: Ratio) -> tuple[str, str]:
    """Above or below 1 it tells where the expected loss goes; at 1 that it stands still, which is no edge."""
    if ratio.ratio_low is not None and ratio.ratio_low > 1.1:
        return "ABOVE_EDGE", "to second order, the next step raises the loss of all samples in expectation"
    if ratio.ratio_high is not None and ratio.ratio_high < 0.9:
        return "BELOW_EDGE", "to second order, the next step lowers the loss of all samples in expectation"
    return "INCONCLUSIVE", "about 1, as wherever the loss stands still: it tells of oscillation, not of an edge"


_ACROSS = "the interval of the ratio reaches across 0.9 or 1.1"
_REASONS = {
    "necessary": {
        "NOT_EXCLUDED": "necessary, and it holds: stability is not excluded",
        "ABOVE_EDGE": "a necessary condition of mean-square stability is violated",
        "INCONCLUSIVE": _ACROSS,
    },
    "necessary and sufficient": {
        "BELOW_EDGE": "the linearised model is stable in mean square",
        "ABOVE_EDGE": "the linearised model is not stable in mean square",
        "INCONCLUSIVE": _ACROSS,
    },
    "empirical": {
        "BELOW_EDGE": "below where SGD is seen to hover",
        "ABOVE_EDGE": "above where SGD is seen to hover: mini-batch gradients grow, or the loss is far from settled",
        "INCONCLUSIVE": _ACROSS,
    },
}
