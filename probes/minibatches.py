"""What the stability probe takes from random mini-batches of the data."""

from __future__ import annotations

from losscope.landscape import Estimate
from losscope.landscape.stability import minibatch_sharpness

from .snapshot import Snapshot

__all__ = ["NAMES", "minibatch_values"]

_ATTRIBUTES = {
    "batch_sharpness": "mean_of_ratios",
    "batch_sharpness_ratio": "ratio_of_means",
    "interaction_aware": "interaction_aware",
    "noise_interaction": "noise_interaction",
    "s_mu": "index",
    "aligned_trace": "aligned_trace",
    "frobenius": "frobenius",
}
NAMES = tuple(_ATTRIBUTES)
"""What it is called in the records, by the audit's catalogue."""


def minibatch_values(snapshot: Snapshot, rtol: float) -> dict[str, float | None]:
    """All criteria of mini-batch noise, each with its interval, from one set of draws.

    Args:
        snapshot: one with a batch size below the number of its samples.
        rtol: relative half-width of the interval of the batch sharpness.
    """
    assert snapshot.batch_size is not None
    found = minibatch_sharpness(
        snapshot.objective, snapshot.batch_size, rtol=rtol, hessian=snapshot.hessian,
        preconditioner=None if snapshot.seen is None else snapshot.seen.preconditioner,
        seed=snapshot._seed_of("minibatches"),
    )  # fmt: skip
    values: dict[str, float | None] = {"minibatch_draws": float(found.draws)}
    for name, attribute in _ATTRIBUTES.items():
        estimate: Estimate | None = getattr(found, attribute)
        if estimate is not None:
            values |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    if (square := found.gradient_square) is not None:
        values |= {
            "batch_gradient_square": square.value,
            "batch_gradient_square_low": square.low,
            "batch_gradient_square_high": square.high,
        }
    return values
