"""How the tangent kernel moves over training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from losscope.landscape import LossError, Objective, SettingError
from losscope.landscape.batches import copied, without_weights
from losscope.landscape.tangent import (
    EmpiricalKernel,
    effective_rank,
    kernel_distance,
    kernel_velocity,
    label_alignment,
    participation_ratio,
    relative_change,
    tangent_kernel,
)
from losscope.landscape.tangent_jacobians import cut, samples_in
from losscope.landscape.tangent_kernel import FORMS

from .checkpoint import Room, is_plain
from .memory import Memory
from .probe import Measurement, Probe
from .snapshot import Snapshot

if TYPE_CHECKING:
    from .run import Run

__all__ = ["TangentKernel"]


@dataclass
class _Kept:
    """What one player's measurements are compared with.

    Attributes:
        batches: the inputs, fixed at the first measurement; None until it.
        start: the first kernel.
        last: the last one.
        step: when it was.
    """

    batches: list[Any] | None = None
    start: Tensor | None = None
    last: Tensor | None = None
    step: int = 0


class TangentKernel(Probe):
    r"""The tangent kernel on fixed inputs, ``value`` its distance from the first one measured.

    ``values`` holds that distance without the constant mode (``centred``), the relative change in Frobenius norm,
    the distance travelled since the last measurement per step (``velocity``, ``velocity_centred``), the alignment
    with the labels, effective rank and participation ratio, trace, largest and smallest eigenvalue. The first kernel
    is kept as an array of its record, so that a resumed run goes on comparing with it. Where the parameters that
    train are others than before, it begins anew.

    Args:
        inputs: a batch like those of the data, or a list of them; None takes the first ``samples`` of the data.
        form: ``"trace"``, ``"logits"`` or ``"full"``; see `losscope.landscape.tangent_kernel`.
        samples: how many samples of the data, at most.
        keep: whether every kernel is an array of its record, ``"kernel"``, and not only the first.
        memory: bytes that a measurement may take.
        every: when; None follows `watch`.

    Raises:
        SettingError: if an argument means nothing.
    """

    name = "tangent_kernel"

    def __init__(
        self, inputs: Any = None, form: str = "trace", *, samples: int = 128, keep: bool = False,
        memory: int | None = None, every: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(every)
        if form not in FORMS:
            raise SettingError(f"form must be one of {', '.join(map(repr, FORMS))}, got {form!r}")
        for name, value in (("samples", samples), ("memory", memory)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise SettingError(f"{name} must be a whole number, at least 1, got {value!r}")
        if inputs is not None and not isinstance(inputs, tuple | list | Mapping):
            raise SettingError(f"inputs must be a batch or a list of batches, got {type(inputs).__name__}")
        self.inputs, self.form, self.samples, self.keep, self.memory = inputs, form, samples, keep, memory

    def measure(self, snapshot: Snapshot) -> Measurement:
        """The kernel and how far it is from the first one and from the last one.

        Raises:
            LossError: if the objective hides the model's outputs.
        """
        kept = snapshot.memory.kept.setdefault(self.name, _Kept())
        objective = self._objective(snapshot.objective, kept)
        kernel = tangent_kernel(objective, form=self.form, memory=self.memory)
        first = kept.start is None
        if kept.start is None:
            kept.start = kernel.matrix
        moved = None if kept.last is None or snapshot.step <= kept.step else snapshot.step - kept.step
        values: dict[str, float | None] = {
            "loss": snapshot.loss,
            "centred": _or_none(lambda: kernel_distance(kept.start, kernel.matrix, centred=True)),
            "change": relative_change(kept.start, kernel.matrix),
            "samples": float(kernel.samples),
            "outputs": float(kernel.outputs),
            "effective_rank": effective_rank(kernel),
            "participation_ratio": participation_ratio(kernel),
            "alignment": _alignment(kernel, objective),
        }
        for name, centred in (("velocity", False), ("velocity_centred", True)):
            values[name] = None
            if moved is not None:
                values[name] = _or_none(lambda c=centred: kernel_velocity(kept.last, kernel.matrix, moved, centred=c))
        values |= _spectrum(kernel)
        distance = kernel_distance(kept.start, kernel.matrix)
        kept.last, kept.step = kernel.matrix, snapshot.step
        arrays = {"kernel": kernel.matrix.numpy()} if self.keep or first else {}
        return Measurement(
            distance, unit="cosine distance", kernel=kernel.method, reason=kernel.note or None, values=values,
            arrays=arrays,
        )  # fmt: skip

    def recall(self, run: Run, player: str, memory: Memory) -> None:
        """Take up the first kernel of an earlier part of this run, and the last one where kernels are kept."""
        records = run.select(self.name, player)
        if not records or "kernel" not in records[0].arrays:
            return
        kept = _Kept(start=torch.from_numpy(np.array(run.array(records[0], "kernel"))))
        if "kernel" in records[-1].arrays:
            kept.last = torch.from_numpy(np.array(run.array(records[-1], "kernel")))
            kept.step = records[-1].step
        memory.kept[self.name] = kept

    def state_dict(self, memory: Memory, room: Room) -> dict[str, Any] | None:
        """The kernels that the next ones are compared with, and the inputs where they are plain tensors."""
        kept = memory.kept.get(self.name)
        if not isinstance(kept, _Kept) or not room.takes((kept.start, kept.last)):
            return None
        batches = kept.batches if is_plain(kept.batches) and room.takes(kept.batches) else None
        return {"start": kept.start, "last": kept.last, "step": kept.step, "batches": batches}

    def load_state_dict(self, state: dict[str, Any], memory: Memory, objective: Objective) -> None:
        """Go on comparing with them."""
        start, last = (None if kernel is None else kernel.cpu() for kernel in (state["start"], state["last"]))
        memory.kept[self.name] = _Kept(state["batches"], start, last, state["step"])

    def _objective(self, objective: Objective, kept: _Kept) -> Objective:
        """The same model on the fixed inputs."""
        if kept.batches is None:
            kept.batches = self._first(objective)
        loss = objective.loss
        if loss.criterion is None:
            raise LossError(
                "the tangent kernel is one of the model's outputs: pass criterion= (and forward=, targets=) to watch, "
                "not loss_fn="
            )
        return Objective(
            objective.model, kept.batches, criterion=loss.criterion, forward=loss.forward, targets=loss.targets,
            weight=lambda _: 1.0, params=list(objective.parameters.values()), mode=objective.mode,
            also=objective.also, seed=objective.seed,
        )  # fmt: skip

    def _first(self, objective: Objective) -> list[Any]:
        """The inputs, or the first samples of the data."""
        if self.inputs is not None:
            return list(self.inputs) if isinstance(self.inputs, list) else [self.inputs]
        found, left = [], self.samples
        for batch in objective.batches:
            content = without_weights(batch.content)
            found.append(copied(cut(content, slice(0, left))))
            left -= min(left, samples_in(content))
            if not left:
                break
        return found


def _alignment(kernel: EmpiricalKernel, objective: Objective) -> float | None:
    """With the targets, where they are one class or one row for each sample."""
    targets = [objective.loss.targets_of(batch.content) for batch in objective.batches]
    if not all(isinstance(t, Tensor) and t.ndim in (1, 2) and not t.is_complex() for t in targets):
        return None
    if sum(map(len, targets)) != kernel.samples or len({t.shape[1:] for t in targets}) > 1:
        return None
    if any(t.ndim == 2 and not t.is_floating_point() and bool((t * (t - 1) != 0).any()) for t in targets):
        return None  # classes of the positions of a sequence
    return _or_none(lambda: label_alignment(kernel, torch.cat(targets)))


def _spectrum(kernel: EmpiricalKernel) -> dict[str, float | None]:
    values = kernel.eigenvalues
    return {
        "trace": float(kernel.matrix.trace()), "largest": float(values[-1]), "smallest": float(values[0])
    }  # fmt: skip


def _or_none(measure: Any) -> float | None:
    """A number, None where it is not defined (a constant kernel, targets that are all the same)."""
    try:
        found = measure()
    except SettingError:
        return None
    return found if math.isfinite(found) else None
