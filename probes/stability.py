"""Stability: sharpness, trace and the mini-batch index against the optimizer's thresholds."""

from __future__ import annotations

import math
from typing import Any

from losscope.landscape import Estimate, SettingError
from losscope.landscape.stability import minibatch_index

from .probe import Measurement, Needs, Probe
from .sharpness import upper_bound
from .snapshot import Snapshot

__all__ = ["Stability"]


class Stability(Probe):
    """What the audit needs: sharpness, trace and S_mu, each with its interval, beside the thresholds.

    ``value`` is the ratio of sharpness to threshold, ``low`` and ``high`` its bounds. For optimizers that divide the
    gradient by something (Adam and its like) the sharpness is the largest eigenvalue of the preconditioned Hessian,
    with the preconditioner of the very step. In the steps after each measurement the motion along the top
    eigenvector is followed for sign flips (probe ``oscillation``).

    Args:
        tol: relative residual of the top eigenpair.
        rtol: relative half-width of the intervals of trace and S_mu.
        every: when; None follows `watch`.
        bound_every: renew the upper bound of the sharpness when it is this many steps old.

    Raises:
        SettingError: if an argument means nothing.
    """

    name = "stability"

    def __init__(self, *, tol: float = 1e-2, rtol: float = 0.1, every: Any = None, bound_every: int = 200) -> None:
        super().__init__(every)
        if not 0 < tol < 1 or not rtol > 0 or bound_every < 1:
            raise SettingError(
                f"need 0 < tol < 1, rtol > 0 and bound_every >= 1; got {tol!r}, {rtol!r}, {bound_every!r}"
            )
        self.tol, self.rtol, self.bound_every = tol, rtol, bound_every

    def needs(self) -> Needs:
        """Top eigenpair and trace."""
        return Needs(1, self.tol, self.bound_every, self.rtol, training_gradient=True, seen=True)

    def measure(self, snapshot: Snapshot) -> Measurement:
        """All criteria at this step."""
        seen = snapshot.seen_pair(self.tol)
        pairs = snapshot.eigenpairs(1, self.tol) if seen is None else seen[1]
        sharpness, low, high = float(pairs.values[0]), float(pairs.low[0]), upper_bound(pairs.high)
        limits = snapshot.threshold if snapshot.seen is None else snapshot.seen.threshold
        threshold, largest = limits.value, limits.largest
        trace = snapshot.trace(self.rtol)
        values: dict[str, float | None] = {
            "sharpness": sharpness,
            "sharpness_low": low,
            "sharpness_high": high,
            "threshold": threshold,
            "threshold_largest": largest,
            "trace": trace.value,
            "trace_low": trace.low,
            "trace_high": trace.high,
            "loss": snapshot.loss,
            "gradient_norm": snapshot.gradient_norm,
        }
        if snapshot.seen is not None and seen is not None:
            values["dead_share"] = snapshot.seen.dead_share(seen[0], pairs.vectors[:, 0])
        if snapshot.lr is not None and snapshot.lr > 0:
            values["two_over_lr"] = 2 / snapshot.lr
        if (match := snapshot.gradient_match()) is not None:
            values["gradient_cosine"], values["gradient_scale"] = match
        reasons, index = [snapshot.hessian.note], None
        try:
            index = self._minibatch_index(snapshot)
        except Exception as error:  # e.g. batches of a kind that cannot be cut; the rest still stands
            reasons.append(f"S_mu was not measured: {type(error).__name__}: {error}")
        if index is not None:
            values |= {"s_mu": index.value, "s_mu_low": index.low, "s_mu_high": index.high}
            values["mu"] = _alignment(snapshot, index, trace.value)
        ratio = sharpness / threshold if threshold else None
        return Measurement(
            ratio,
            low / largest if largest else None,
            high / threshold if threshold and high is not None else None,
            "threshold",
            pairs.kernel,
            "; ".join(filter(None, reasons)) or None,
            values,
        )

    def _minibatch_index(self, snapshot: Snapshot) -> Estimate | None:
        batch = snapshot.batch_size
        if batch is None or batch >= snapshot.objective.samples:
            return None
        return minibatch_index(
            snapshot.objective, batch, loss=snapshot.loss, rtol=self.rtol, seed=snapshot._seed_of("minibatches")
        )


def _alignment(snapshot: Snapshot, index: Estimate, trace: float) -> float | None:
    """mu = E|g_i|^2 / (2 L tr H), from the spread of mini-batch gradients about the full one.

    E|g_B|^2 - |g|^2 falls as (n - B) / (B (n - 1)) when batches are drawn without replacement.
    """
    batch, n = snapshot.batch_size, snapshot.objective.samples
    assert batch is not None
    full = snapshot.gradient_norm**2 / (2 * snapshot.loss) if snapshot.loss > 0 else math.nan
    single = full + (index.value - full) * batch * (n - 1) / (n - batch)
    return single / trace if trace > 0 and math.isfinite(single) else None
