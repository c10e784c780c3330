"""What the audit's criteria presume of a run, and what the run itself shows of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .batchwise import batchwise_figures
from .clipping import clipping
from .criterion import Assumption
from .records import Record
from .same_data import LEAST_DRAWS, along, squares, trains_on_more
from .settled import staying
from .unlike import covers_data, unlike
from .window import BOUND_STAYS_FRESH, column, median

if TYPE_CHECKING:
    from .run import Run

__all__ = ["preconditions"]

Facts = dict[str, Any]

FEW_SKIPS = 0.01
"""Share of updates that a scaler may skip: it skips a few as it finds its scale."""

INTERPOLATES, DOES_NOT = 0.01, 0.5
"""Shares of the loss at the start below which training interpolates, as far as that shows, and above which not."""

FLAT, SADDLE = 0.05, 0.5
"""|lambda_min| / lambda_max below which negative curvature is nothing to speak of, and above which it is."""


def preconditions(run: Run, player: str, window: Sequence[Record], facts: Facts) -> tuple[Assumption, ...]:
    """What can be said of the criteria's assumptions, each once; those that do not concern the run are left out.

    Args:
        run: the run.
        player: whose.
        window: the measurements that the audit rests on.
        facts: of the player, as `window.observed` completes them.
    """
    everything = run.select("stability", player)
    found = [
        _loss_family(facts),
        _interpolation(window, everything),
        _clipping(window, everything, facts),
        _skips(run, window, facts),
        _mode(facts),
        _batchwise(facts),
        _data(run, player, window, everything, facts),
        _precision(facts),
        _rates(facts),
        _one_rate(window, facts),
        _unused(facts),
        staying(window) if facts.get("preconditioned") and window else None,
        _negative_curvature(window, everything),
        _weight_decay(facts),
    ]
    return tuple(assumption for assumption in found if assumption is not None)


def _loss_family(facts: Facts) -> Assumption | None:
    family = facts.get("loss_family")
    if facts.get("full_batch") or family is None:  # the sharpness presumes nothing of it
        return None
    if family == "unknown":
        return Assumption("the loss is squared (it is hidden in loss_fn)", None)
    named = {"squared": "", "other": " (it is another)"}.get(family, f" (it is {family})")
    return Assumption(f"the loss is squared{named}", family == "squared")


def _interpolation(window: Sequence[Record], everything: Sequence[Record]) -> Assumption | None:
    """Full-batch training presumes nothing of it either, but what is seen at the edge depends on it."""
    loss, gradient = median(column(window, "loss")), median(column(window, "gradient_norm"))
    start = column(everything[:1], "loss")
    if loss is None or not start or not start[0] > 0:
        return None
    share = loss / start[0]
    holds = True if share <= INTERPOLATES else False if share >= DOES_NOT else None
    since = "at the start" if everything[0].step == 0 else f"at step {everything[0].step}"
    slope = "" if gradient is None else f", its gradient {gradient:.3g}"
    return Assumption(f"near interpolation (the loss is {loss:.3g}, {share:.2g} times that {since}{slope})", holds)


def _clipping(window: Sequence[Record], everything: Sequence[Record], facts: Facts) -> Assumption | None:
    full = facts.get("full_batch")
    found = clipping(window, everything, full_batch=full, dtype=_weights(facts))
    if not found.measured:
        return None
    if (other := unlike(window, everything, facts)) is not None and not found.share:
        why = f"layer by layer they are: {other.figures}" if other.by_layer else "not told from another gradient"
        return Assumption(f"gradients are not clipped ({why})", False if other.by_layer else None)
    if full and (scaled := _scaled_loss(window)) is not None:
        return Assumption(f"the loop's loss is that of watch (its gradient is {scaled:.3g} times as long)", False)
    if found.share:
        names = {"norm": ", to a norm", "value": ", to entries"}
        at = f"{names[found.kind]} of {found.at:.3g}" if found.kind and found.at is not None else ""
        text = (
            f"gradients are not clipped ({found.share:.0%} of {found.measured} measured updates had them clipped{at})"
        )
        return Assumption(text, False)
    holds = True if full or found.measured >= LEAST_DRAWS else None
    return Assumption(f"gradients are not clipped (in none of {found.measured} measured updates that showed)", holds)


def _scaled_loss(window: Sequence[Record]) -> float | None:
    """The factor of a loop whose gradient is always the same multiple of the objective's; None where there is none.

    Clipping makes the norm the same and the factor different.
    """
    scales, norms = column(window, "gradient_scale"), column(window, "training_gradient_norm")
    if len(scales) < 3:
        return None
    middle, spread = statistics.median(scales), _spread(scales)
    constant = spread <= 0.01 and (not norms or spread <= _spread(norms))
    return middle if constant and abs(middle - 1) > 0.02 else None


def _spread(values: Sequence[float]) -> float:
    """Largest less smallest, relative to the largest."""
    return (max(values) - min(values)) / max(values) if max(values) > 0 else math.inf


def _skips(run: Run, window: Sequence[Record], facts: Facts) -> Assumption | None:
    skipped = facts.get("skipped_updates")
    if skipped is None:
        return None
    closed = run.status != "running"
    made = int(facts.get("updates", 0)) if closed or not window else max(int(facts.get("updates", 0)), window[-1].step)
    total = made + skipped
    text = f"updates are made ({skipped} of {total} were skipped by the GradScaler)"
    return Assumption(text, skipped <= FEW_SKIPS * total)


def _mode(facts: Facts) -> Assumption | None:
    matters = facts.get("mode_matters")
    if matters is None:
        return None
    text = f"BatchNorm, Dropout and the like, if any, compute what they do in training (mode={facts.get('mode')!r})"
    return Assumption(text, not matters)


def _batchwise(facts: Facts) -> Assumption | None:
    figures = batchwise_figures(facts)
    if figures is None:
        return None
    return Assumption(f"the loss of a batch is the mean of its samples' losses ({figures})", False)


def _data(
    run: Run, player: str, window: Sequence[Record], everything: Sequence[Record], facts: Facts
) -> Assumption | None:
    if facts.get("gradient_cosine") is not None and (facts.get("full_batch") or covers_data(facts)):
        return _data_of_full_batches(window, everything, facts)
    text = "data= in mini-batches of batch_size= is what is trained on"
    sizes = facts.get("batch_size"), facts.get("samples")
    way, length = along(everything, *sizes), squares(everything, *sizes)
    if way is None and length is None:
        return None
    clipped = clipping(everything, everything, full_batch=False, dtype=_weights(facts)).share
    if clipped or facts.get("mode_matters"):
        return Assumption(
            f"{text} (its gradients cannot be compared: {'clipped' if clipped else 'another mode'})", None
        )
    if length is None and way is not None:
        text = "data= is what is trained on"
        seen = f"along its gradient, those of steps are {way.value:.2g} times as long, {way.low:.2g} to {way.high:.2g}"
        return Assumption(f"{text} ({seen})", False if way.unlike else True if way.same else None)
    assert length is not None
    seen = f"steps' squared gradients are {length.ratio:.2g} times its own, {length.low:.2g} to {length.high:.2g}"
    seen += "" if way is None else f"; along its gradient {way.value:.2g}, {way.low:.2g} to {way.high:.2g}"
    if way is not None and way.unlike:
        return Assumption(f"{text} ({seen})", False)
    if length.larger and trains_on_more(everything, _logged(run, player)):
        return Assumption(f"{text} ({seen}; the loop's loss is higher: augmented data?)", None)
    if length.larger or length.smaller:
        why = ": smaller mini-batches, or augmented data" if length.larger else ""
        return Assumption(f"{text} ({seen}{why})", False)
    same = length.same and (way is None or way.same)
    return Assumption(f"{text} ({seen})", True if same else None)


def _data_of_full_batches(window: Sequence[Record], everything: Sequence[Record], facts: Facts) -> Assumption:
    """Where the steps are of all samples, or were said to be."""
    text, seen = "data= is what is trained on", f"cosine of its gradient with the step's {facts['gradient_cosine']:.4f}"
    if facts.get("full_batch"):
        return Assumption(f"{text} ({seen})", True)
    if facts.get("mode_matters"):
        return Assumption(f"{text} (its gradient cannot be compared: another mode)", None)
    if clipping(window, everything, full_batch=False, dtype=_weights(facts)).share:  # by entries, which turns it
        return Assumption(f"{text} (its gradient cannot be compared: clipped)", None)
    other = unlike(window, everything, facts)
    if other is None:
        return Assumption(f"{text} ({seen}: rounding or random numbers of the loss may do that)", None)
    if other.by_layer:
        return Assumption(f"{text} (each layer's gradient has the step's direction)", True)
    return Assumption(
        f"{text}, in one batch and by the loss of watch ({other.figures}: its gradient is another)", False
    )


def _logged(run: Run, player: str) -> dict[int, float]:
    """The losses that the loop logged, by their steps."""
    steps, losses = run.logged("loss", player)
    return dict(zip(steps.tolist(), losses.tolist(), strict=True))


def _precision(facts: Facts) -> Assumption | None:
    dtype = _weights(facts)
    if not dtype:
        return None
    if dtype in ("float32", "float64"):
        if facts.get("scaled"):
            return Assumption(f"computed in {dtype} (training has a GradScaler: it computes in half precision)", None)
        return None
    return Assumption(f"updates are not rounded away (the weights are {dtype})", False)


def _weights(facts: Facts) -> str:
    """The narrowest dtype of the parameters."""
    return str(facts.get("weights_dtype") or facts.get("dtype") or "")


def _rates(facts: Facts) -> Assumption | None:
    wrong = facts.get("wrong_rates")
    return Assumption(f"the learning rate is a positive number (it is {wrong})", False) if wrong else None


def _one_rate(window: Sequence[Record], facts: Facts) -> Assumption | None:
    if not window or facts.get("optimizers", 1) > 1 or window[-1].lr is not None:
        return None
    if facts.get("folded"):
        return Assumption("parameter groups differ in their rates, which P has in it", True)
    return Assumption("one learning rate (parameter groups differ)", False)


def _unused(facts: Facts) -> Assumption | None:
    """What has no part in P^-1 H, as the optimizer has no P there."""
    names = facts.get("unused") or []
    if not names:
        return None
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return Assumption(f"the loss uses all parameters (left out, as it does not use them: {shown})", False)


def _negative_curvature(window: Sequence[Record], everything: Sequence[Record]) -> Assumption | None:
    """From the last look at the lower end of the spectrum, which is taken more seldom than at the upper."""
    held = [
        r for r in everything
        if (v := r.values.get("lowest")) is not None and math.isfinite(v) and (r.values.get("sharpness") or 0) > 0
    ]  # fmt: skip
    if not held or not window:
        return None
    last = held[-1]
    lowest, top = column([last], "lowest")[0], column([last], "sharpness")[0]
    share = max(-lowest, 0.0) / top
    holds = True if share <= FLAT else False if share >= SADDLE else None
    if window[-1].step - last.step > BOUND_STAYS_FRESH:
        holds = None
    seen = f"the smallest eigenvalue found was {lowest:.3g}, the largest {top:.3g}, at step {last.step}"
    return Assumption(f"no negative curvature to speak of ({seen})", holds)


def _weight_decay(facts: Facts) -> Assumption | None:
    decay = facts.get("weight_decay")
    if not decay or facts.get("full_batch") or "weight_decay" in str(facts.get("seen_formula")):  # thresholds have it
        return None
    return Assumption(f"no weight decay ({decay:g}; the criteria of gradient noise leave it out)", None)
