r"""Training the control point of a curve, so that the loss is small all along it.

.. math:: \min_c \; E_{t \sim U(0, 1)} L(\theta_c(t))

The gradient with respect to c is :math:`b(t) \nabla L(\theta_c(t))` with the share b(t) that the control point has at
t: an ordinary gradient of the network, and no graph through the curve (Garipov et al. 2018, arXiv 1802.10026,
section 3.2).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..batches import batch_length, concatenated, take
from ..elsewhere import elsewhere
from ..errors import DataError, NonFiniteError
from ..groups import cut
from ..interrupts import interrupts_held
from ..objective import Objective
from .batch_statistics import normalisation_layers, statistics_at
from .carried import Carried
from .curves import Curve
from .progress import Progress

__all__ = ["MiniBatches", "trained_control"]

_DECAYS, _EPS = (0.9, 0.999), 1e-8  # of Adam
_RISING = 0.05  # share of the steps in which the rate rises
_SECONDS = 0.2  # between two moments at which Ctrl-C is heard


class MiniBatches:
    """Random parts of an objective's data: all of it once in every epoch.

    Attributes:
        size: samples in each, at most; None where the objective's own batches are taken as they are.
        note: why they are, if they were not asked for.
    """

    def __init__(self, objective: Objective, size: int | None) -> None:
        self.objective, self.size, self.note = objective, size, ""
        self._lengths: list[int] = []
        if size is not None:
            try:
                self._lengths = self._samples()
            except DataError as error:
                self.size, self.note = None, f"the objective's own batches were trained on: {error}"

    def _samples(self) -> list[int]:
        batches = self.objective.batches
        if any(batch.sample_weights is not None for batch in batches):
            raise DataError("samples have weights")
        lengths = [batch_length(batch.content) for batch in batches]
        if len(batches) > 1 and concatenated([take(b.content, torch.tensor([0])) for b in batches]) is None:
            raise DataError("samples of different batches do not go together")
        return lengths

    def __len__(self) -> int:
        """How many make an epoch."""
        if self.size is None:
            return len(self.objective.batches)
        return math.ceil(sum(self._lengths) / self.size)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[float, int, Any]]:
        """All mini-batches in random order: ``share * objective.batch_loss(index, content)`` estimates the objective.

        Yields:
            The share, the index of a batch, and the content that stands in for it (None for its own).
        """
        objective, count = self.objective, len(self)
        order = torch.randperm(count if self.size is None else sum(self._lengths), generator=generator)
        if self.size is None:
            yield from ((count * objective.shares[index], index, None) for index in order.tolist())
            return
        total = sum(batch.weight for batch in objective.batches)
        for chosen in order.tensor_split(count):  # even parts: a last one of a single sample has no batch statistics
            contents = [content for _, content in cut(objective, chosen, self._lengths)]
            content = contents[0] if len(contents) == 1 else concatenated(contents)
            weight = objective.loss.weight_of(content)
            if weight > 0:  # of padding alone there is no mean
                yield len(order) / len(chosen) if objective.loss.summed else count * weight / total, 0, content


def trained_control(
    objective: Objective, curve: Curve, carried: Carried, batches: MiniBatches, *, epochs: int, lr: float,
    statistics: str, generator: torch.Generator, progress: bool,
) -> tuple[Curve, Tensor]:  # fmt: skip
    """The curve with its control point trained by Adam, and the mean loss of each epoch (E,) float64.

    Args:
        objective: the loss.
        curve: with a control point.
        carried: buffers along it.
        batches: what each step sees.
        epochs: passes over the data.
        lr: the largest rate: about what an entry of the control point moves by in a step. It rises linearly over the
            first steps and falls to zero as a cosine.
        statistics: where they are to be ``"recomputed"``, layers normalise by the batch in training.
        generator: of orders and of t, on the CPU.
        progress: whether to show a bar.

    Raises:
        NonFiniteError: if the loss of an epoch is NaN or infinite.
    """
    training = _Training(objective, curve, carried, batches, epochs * len(batches), lr, statistics, generator)
    history: list[float] = []
    with Progress(epochs, shown=progress, unit="epochs") as bar:
        for epoch in range(epochs):
            history.append(training.epoch())
            if not math.isfinite(history[-1]):
                raise NonFiniteError(
                    f"the loss on the curve became {history[-1]} in epoch {epoch + 1} of {epochs}, at a learning rate "
                    f"of {lr:.3g}; take a smaller lr=, or start from another control="
                )
            bar.update(1)
    return training.curve, torch.tensor(history, dtype=torch.float64)


class _Training:
    """A curve whose control point moves."""

    def __init__(
        self, objective: Objective, curve: Curve, carried: Carried, batches: MiniBatches, steps: int, lr: float,
        statistics: str, generator: torch.Generator,
    ) -> None:  # fmt: skip
        assert curve.control is not None
        self._objective, self._carried, self._batches, self._steps = objective, carried, batches, steps
        self._lr, self._statistics, self._generator, self._done = lr, statistics, generator, 0
        with torch.inference_mode(False):  # whose tensors could not be written on later
            self._adam = Adam(curve.control)
        self.curve = curve.with_control(self._adam.point)

    def epoch(self) -> float:
        """All mini-batches once; their mean loss."""
        total = torch.zeros((), dtype=torch.float64, device=self._objective.space.device)
        left, more = self._batches.epoch(self._generator), True
        while more:
            more, until = False, time.monotonic() + _SECONDS
            with interrupts_held(), self._carried.held(), _normalised_as(self._objective, self._statistics):
                for each in left:
                    total = total + self._step(*each)
                    more = time.monotonic() > until
                    if more:
                        break
        return float(total) / len(self._batches)

    def _step(self, share: float, index: int, content: Any) -> Tensor:
        """Move the control point; the loss that it was moved by."""
        objective, space = self._objective, self._objective.space
        t = float(torch.rand((), generator=self._generator, dtype=torch.float64))
        self._done += 1
        self._carried.write(t)
        with elsewhere(objective, space.unflatten(self.curve.at(t))):
            loss = share * objective.batch_loss(index, content, mask=self._done)
            gradient = space.flatten(objective.gradients(loss))
        self._adam.step(self.curve.weights(t)[1] * gradient, self._lr * schedule((self._done - 0.5) / self._steps))
        return loss.detach()


def schedule(done: float) -> float:
    """The rate after a share of all steps: up linearly in the first, then down to zero as a cosine."""
    return min(1.0, done / _RISING) * (1 + math.cos(math.pi * done)) / 2


class Adam:
    """Kingma and Ba 2015, arXiv 1412.6980, with torch's defaults.

    By hand: the steps of torch's optimizers call the hooks that others have registered for all of them.

    Args:
        start: where to start, (n,); not changed.
    """

    def __init__(self, start: Tensor) -> None:
        self.point = start.clone()
        self._mean, self._square, self._steps = torch.zeros_like(start), torch.zeros_like(start), 0

    def step(self, gradient: Tensor, lr: float) -> None:
        """Move ``point``, in place."""
        self._steps += 1
        first, second = _DECAYS
        self._mean.lerp_(gradient, 1 - first)
        self._square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        scale = (self._square / (1 - second**self._steps)).sqrt_().add_(_EPS)
        self.point.addcdiv_(self._mean, scale, value=-lr / (1 - first**self._steps))


@contextlib.contextmanager
def _normalised_as(objective: Objective, statistics: str) -> Iterator[None]:
    """Inside, layers take their statistics for training: from the batch, where they will be recomputed from all."""
    if statistics != "recomputed":
        with statistics_at(objective, statistics):
            yield
        return
    layers = normalisation_layers(objective).values()
    with objective.isolated():
        before = [layer.training for layer in layers]
        try:
            for layer in layers:
                layer.training = True
            yield
        finally:
            for layer, training in zip(layers, before, strict=True):
                layer.training = training
