"""What the audit's criteria presume of a run, and what the run itself shows of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scipy.special import stdtrit

from .clipping import clipping
from .criterion import Assumption
from .records import Record
from .window import column, median

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

SAME_DATA = 1.5
"""Factor by which the mean square of the training gradients may differ from that of the objective's own batches."""

LEAST_DRAWS = 8
"""Measured updates whose gradients' squares say something of the mini-batches they are from."""


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
        _data(window, everything, facts),
        _precision(facts),
        _one_rate(window, facts),
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
    return Assumption(
        "the loss is squared" + ("" if family == "squared" else f" (it is {family})"), family == "squared"
    )


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
    found = clipping(window, everything, full_batch=full, dtype=str(facts.get("dtype", "")))
    if not found.measured:
        return None
    if full and (scaled := _scaled_loss(window, found.kind)) is not None:
        return Assumption(f"the loop's loss is that of watch (its gradient is {scaled:.3g} times as long)", False)
    if found.share:
        names = {"norm": "norms", "value": "entries"}
        at = f" at {names[found.kind]} of {found.at:.3g}" if found.kind and found.at is not None else ""
        return Assumption(f"gradients are not clipped ({found.share:.0%} of {found.measured} measured were{at})", False)
    holds = True if full or found.measured >= LEAST_DRAWS else None
    return Assumption(f"gradients are not clipped (none of {found.measured} measured was seen to be)", holds)


def _scaled_loss(window: Sequence[Record], kind: str) -> float | None:
    """The factor of a loop whose gradient is always the same multiple of the objective's; None where it is one."""
    scales = column(window, "gradient_scale")
    if len(scales) < 3 or kind:
        return None
    middle = statistics.median(scales)
    constant = max(scales) - min(scales) <= 0.01 * middle
    return middle if constant and abs(middle - 1) > 0.02 else None


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
    words = "BatchNorm, Dropout and the like: none, or as in training"
    return Assumption(f"measured as it is trained (mode={facts.get('mode')!r}; {words})", not matters)


def _data(window: Sequence[Record], everything: Sequence[Record], facts: Facts) -> Assumption | None:
    cosine = facts.get("gradient_cosine")
    if facts.get("full_batch") and cosine is not None:
        return Assumption(f"data= is what is trained on (cosine of its gradient with the step's {cosine:.4f})", True)
    found = _gradient_squares(everything)
    if found is None:
        return None
    ratio, low, high, count = found
    text = "data= in mini-batches of batch_size= is what is trained on"
    clipped = clipping(window, everything, full_batch=False, dtype=str(facts.get("dtype", ""))).share
    if clipped or facts.get("mode_matters"):
        return Assumption(
            f"{text} (its gradients cannot be compared: {'clipped' if clipped else 'another mode'})", None
        )
    seen = f"training's squared gradients are {ratio:.2g} times those of it"
    if low > SAME_DATA or high < 1 / SAME_DATA:
        return Assumption(f"{text} ({seen}, {low:.2g} to {high:.2g})", False)
    close = low >= 1 / SAME_DATA and high <= SAME_DATA
    return Assumption(f"{text} ({seen}, {low:.2g} to {high:.2g} in {count} measured)", True if close else None)


def _gradient_squares(records: Sequence[Record]) -> tuple[float, float, float, int] | None:
    """Mean of |g_train|^2 / E|g_B|^2 over the measured updates, with a 99 % interval, and how many they are.

    Each square is divided by the objective's own at the same weights, so that the level may change in between.
    """
    ratios = [found for r in records if (found := _square_ratio(r)) is not None]
    if len(ratios) < LEAST_DRAWS:
        return None
    mean, spread = statistics.fmean(ratios), statistics.stdev(ratios) / math.sqrt(len(ratios))
    half = float(stdtrit(len(ratios) - 1, 0.995)) * spread
    return mean, max(mean - half, 0.0), mean + half, len(ratios)


def _square_ratio(record: Record) -> float | None:
    values: dict[str, float] = {name: v for name, v in record.values.items() if v is not None and math.isfinite(v)}
    norm, own = values.get("training_gradient_norm"), values.get("batch_gradient_square")
    if own is None and "s_mu" in values and "loss" in values:
        own = 2 * values["loss"] * values["s_mu"]  # S_mu = E|g_B|^2 / 2L
    return None if norm is None or own is None or not own > 0 else norm**2 / own


def _precision(facts: Facts) -> Assumption | None:
    dtype = facts.get("dtype")
    if dtype is None:
        return None
    if dtype in ("float32", "float64"):
        if facts.get("scaled"):
            return Assumption(f"computed in {dtype} (training has a GradScaler: it computes in half precision)", None)
        return None
    return Assumption(f"updates are not rounded away (the weights are {dtype})", False)


def _one_rate(window: Sequence[Record], facts: Facts) -> Assumption | None:
    if not window or facts.get("optimizers", 1) > 1 or window[-1].lr is not None:
        return None
    return Assumption("one learning rate (parameter groups differ)", False)


def _negative_curvature(window: Sequence[Record], everything: Sequence[Record]) -> Assumption | None:
    """From the last lower bound of the spectrum, which is renewed more seldom than the sharpness."""
    first = window[0].step if window else 0
    held = [r for r in everything if r.step >= first and column([r], "lowest") and (r.values.get("sharpness") or 0) > 0]
    if not held:
        return None
    lowest, top = column(held[-1:], "lowest")[0], column(held[-1:], "sharpness")[0]
    share = max(-lowest, 0.0) / top
    holds = True if share <= FLAT else False if share >= SADDLE else None
    return Assumption(f"no negative curvature to speak of (eigenvalues from {lowest:.3g} to {top:.3g})", holds)


def _weight_decay(facts: Facts) -> Assumption | None:
    decay = facts.get("weight_decay")
    if not decay or facts.get("full_batch"):  # the sharpness's threshold has it in it
        return None
    return Assumption(f"no weight decay ({decay:g}; the criteria of gradient noise leave it out)", None)
