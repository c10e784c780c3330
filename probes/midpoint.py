r"""The middle of the swing: the loss surface where training would be without its oscillation of period two.

At the edge of stability the weights swing from one side of a valley to the other, and the loss and the gradient that
are measured at the weights are those of its walls. The second-order midpoint

.. math:: w^*_{t+1} = (w_t + 2 w_{t+1} + w_{t+2}) / 4

has no component that changes sign with every update (Cohen et al. 2024, arXiv 2410.24206). What is smooth over the
three updates is left as it is, up to a quarter of its second difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor, nn

from losscope.landscape.stability import Threshold

from .probe import Measurement, Needs, Probe
from .snapshot import Snapshot

__all__ = ["Midpoint", "MidpointWatch"]


class MidpointWatch:
    """Takes the midpoint of the weights at a measurement and of those of the next two updates.

    From the first of them on it holds one copy of the parameters, which is overwritten.

    Args:
        step: t, of the measurement.
        origin: all parameters that move, with their values then; they are kept, and not written on.
        loss: the objective's value there.
        needs: what the probes of that step asked for.

    Attributes:
        values: what has been taken in so far; when it is `done`, the midpoint.
        settings: rate and threshold of update t + 1, which the midpoint is about.
    """

    def __init__(self, step: int, origin: Mapping[nn.Parameter, Tensor], loss: float, needs: Needs) -> None:
        self.step, self.loss, self.needs = step, loss, needs
        self.values = dict(origin)
        self.settings: tuple[float | None, Threshold] = (None, Threshold((), ""))
        self._taken = 0

    def state_dict(self) -> dict[str, Any]:
        """What has been taken in so far, for a checkpoint."""
        rate, threshold = self.settings
        return {
            "step": self.step, "loss": self.loss, "needs": asdict(self.needs), "taken": self._taken, "rate": rate,
            "threshold": asdict(threshold), "values": [value.clone() for value in self.values.values()],
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: dict[str, Any], parameters: Sequence[nn.Parameter]) -> Self:
        """Go on with these parameters."""
        values = {p: value.to(p.device, copy=True) for p, value in zip(parameters, state["values"], strict=True)}
        watch = cls(state["step"], values, state["loss"], Needs(**state["needs"]))
        watch.settings, watch._taken = (state["rate"], Threshold(**state["threshold"])), state["taken"]
        return watch

    @property
    def done(self) -> bool:
        """Whether ``values`` are those of the midpoint."""
        return self._taken == 2

    def follow(self, step: int) -> bool:
        """Take in the weights before update ``step``, if they are the next; whether they were.

        An update may be opened twice, when a scaler skips it the first time or the loop caught an exception.
        """
        if self.done or step != self.step + self._taken + 1:
            return False
        with torch.no_grad():
            if self._taken == 0:  # (w_t + 2 w_{t+1}) / 3, and then 3/4 of that and 1/4 of w_{t+2}
                self.values = {p: torch.lerp(at, p.detach(), 2 / 3) for p, at in self.values.items()}
            else:
                for p, value in self.values.items():
                    value.lerp_(p.detach(), 1 / 4)
        self._taken += 1
        return True


class Midpoint(Probe):
    """What is measured at the midpoint: the loss, the gradient's norm, and the sharpness if probes wanted one.

    Args:
        watch: the midpoint; the sharpness is found to the tolerance that the probes asked for there.
    """

    name = "midpoint"
    data_parallel = True

    def __init__(self, watch: MidpointWatch) -> None:
        super().__init__()
        self.watch = watch

    def needs(self) -> Needs:
        """One eigenpair, started from the last measurement's and without a new upper bound."""
        asked = self.watch.needs
        wanted = bool(asked.eigenpairs) or asked.seen
        return Needs(eigenpairs=int(wanted), eigenpair_tol=asked.eigenpair_tol, seen=asked.seen)

    def measure(self, snapshot: Snapshot) -> Measurement:
        """Loss, gradient and curvature at the midpoint, beside the loss at the weights of the measurement."""
        limits = snapshot.threshold if snapshot.seen is None else snapshot.seen.threshold
        values: dict[str, float | None] = {
            "loss": snapshot.loss,
            "gradient_norm": snapshot.gradient_norm,
            "threshold": limits.value,
            "loss_before": self.watch.loss,
        }
        if not snapshot.needs.eigenpairs:
            return Measurement(unit="curvature", values=values)
        seen = snapshot.seen_pair(snapshot.needs.eigenpair_tol)
        pairs = snapshot.eigenpairs(1) if seen is None else seen[1]
        value, low = float(pairs.values[0]), float(pairs.low[0])
        values |= {"sharpness": value, "sharpness_low": low}
        return Measurement(value, low, None, "curvature", pairs.kernel, values=values)
