"""What was seen of a run beside its criteria, in sentences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .records import Record
from .smoothness import fit_smoothness
from .window import Oscillation, column, median

if TYPE_CHECKING:
    from .run import Run

__all__ = ["evidence"]

Facts = dict[str, Any]


def evidence(
    run: Run, player: str, window: Sequence[Record], facts: Facts, oscillation: Oscillation, *, above: bool
) -> tuple[str, ...]:
    """Sentences on what was measured, each with its numbers; what was not measured is not mentioned.

    Args:
        run: the run.
        player: whose.
        window: the measurements that the audit rests on.
        facts: of the player, as `window.observed` completes them.
        oscillation: what was seen of it.
        above: whether the audit says that the sharpness is above the edge; then it matters where the loss goes.
    """
    if not window:
        return ()
    found = [
        *oscillation.said,
        _measured_rises(window, facts),
        _midpoint(run, player, window),
        _critical_sharpness(window),
        _trend(window) if above else None,
        _smoothness(run, player),
    ]
    return tuple(sentence for sentence in found if sentence)


def _measured_rises(window: Sequence[Record], facts: Facts) -> str | None:
    """Of mini-batch training the logged losses are of mini-batches, and rise by chance; those measured are not."""
    losses = column(window, "loss")
    if facts.get("full_batch") or len(losses) < 5:
        return None
    rises = sum(b > a for a, b in itertools.pairwise(losses))
    return f"the loss of data= rose from one measurement to the next {rises} times of {len(losses) - 1}"


def _midpoint(run: Run, player: str, window: Sequence[Record]) -> str | None:
    """The loss and the sharpness where the oscillation of period two cancels, against those at the weights."""
    at = {record.step: record for record in window}
    pairs = [(at[r.step - 1], r) for r in run.select("midpoint", player) if r.step - 1 in at]
    loss = median(_ratios((m.values.get("loss"), m.values.get("loss_before")) for _, m in pairs))
    if loss is None:
        return None
    parts = [f"the loss is {loss:.3g}"]
    for name, words in (("gradient_norm", "the gradient"), ("sharpness", "the sharpness")):
        ratio = median(_ratios((m.values.get(name), w.values.get(name)) for w, m in pairs))
        if ratio is not None:
            parts.append(f"{words} {ratio:.3g}")
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    what = "midway between successive weights, where oscillation cancels"
    return f"{what}, {listed} times what it is at the weights (median of {len(pairs)})"


def _ratios(pairs: Iterable[tuple[float | None, float | None]]) -> list[float]:
    """Those that there are."""
    return [a / b for a, b in pairs if a is not None and b is not None and math.isfinite(a) and 0 < b < math.inf]


def _critical_sharpness(window: Sequence[Record]) -> str | None:
    """How far along the update the loss is below where it began, in lengths of the update."""
    known = [r.values["critical_sharpness"] for r in window if "critical_sharpness" in r.values]
    uphill = sum(value is None for value in known)
    others = f"; {uphill} of {len(known)} measured updates lead uphill from the start" if uphill else ""
    ratio = median(column(window, "critical_sharpness", "two_over_lr"))
    if ratio is None:
        return others.removeprefix("; ") or None
    said = f"critical sharpness along the update: {ratio:.3g} of 2/lr"
    if ratio < 0.01:
        return f"{said}, the loss falls on far beyond the update's length{others}"
    if f"{ratio:.3g}" == "1":
        return f"{said}, so that it leaves the loss about as it is{others}"
    meaning = "so that it raises the loss" if ratio > 1 else "so that it lowers the loss"
    return f"{said}, {meaning}; at {1 / ratio:.3g} times its length it would leave the loss as it is{others}"


def _trend(window: Sequence[Record]) -> str | None:
    """Where the loss goes above the edge: a transient's falls again, a divergence's does not."""
    last = [(r.step, v) for r in window if (v := r.values.get("loss")) is not None and math.isfinite(v)][-3:]
    if len(last) < 3:
        return None
    losses = [loss for _, loss in last if loss is not None]
    shown = ", ".join(f"{loss:.3g}" for loss in losses)
    rises = [b > a for a, b in itertools.pairwise(losses)]
    going = "rises" if all(rises) else "rises and falls" if any(rises) else "falls"
    return f"above the edge, the loss {going} over the last three measurements ({shown})"


def _smoothness(run: Run, player: str) -> str | None:
    found = fit_smoothness(run, player)
    return None if found is None else found.words
