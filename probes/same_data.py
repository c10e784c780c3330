"""Whether mini-batch training is on the data that is watched: what the gradients of its steps show of that."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy.special import stdtrit

from .records import Record

__all__ = ["LEAST_DRAWS", "SAME", "Along", "Squares", "along", "squares", "trains_on_more"]

LEAST_DRAWS = 8
"""Measured updates whose gradients say something of the mini-batches they are from."""

OF_ALONG, OF_SQUARES = 0.975, 0.995
"""Quantiles that intervals end at. Bands lie around them, so that on the data watched they err far less often."""

NEAR = 2
"""Measurements on either side whose steps tell how noisy those of one are."""

HEAVIEST = 0.1
"""Share of the gradient in a mini-batch's square from which a measurement weighs no more: the first would be all."""

POINTS_ELSEWHERE = 1 / 4
"""Of the length along data='s gradient that its own mini-batches have: augmentation leaves a third, chance agreement of
other data a tenth."""

TOO_LONG = 2.0
"""Of the same length: the gradients of another loss. Of samples not seen for long they are up to 1.5 times it."""

SAME = 1.5
"""Factor by which the mean square of the training gradients may differ from that of the objective's own batches."""

MORE_LOSS = 1.2
"""Times the loss of ``data=`` from which what the loop logs is no chance, nor what samples not seen for long have."""


# --------------------------------------------------------------------------- direction


class Along(NamedTuple):
    """How long the gradients of steps are along that of ``data=``, in units of it: 1 in the mean for its mini-batches.

    Attributes:
        value: the mean.
        low: of its interval.
        high: of its interval.
        least: the mean that there is where ``data=`` are a random part of what is trained on, or its loss is random.
        measured: so many updates.
    """

    value: float
    low: float
    high: float
    least: float
    measured: int

    @property
    def unlike(self) -> bool:
        """Whether they cannot be those of mini-batches of the data."""
        return self.high < POINTS_ELSEWHERE * self.least or self.low > TOO_LONG

    @property
    def same(self) -> bool:
        """Whether they are seen to be those."""
        return self.low >= 1 / SAME and self.high <= SAME

    @property
    def reason(self) -> str:
        """What they are then, and what to do, for a verdict that there cannot be."""
        why = (
            "the loop's loss is scaled, or another one"
            if self.low > TOO_LONG
            else "of other data, of another loss, or clipped in parts: pass to watch what is trained with"
        )
        seen = f"{self.value:.2g} times as long ({self.low:.2g} to {self.high:.2g}) as those of its mini-batches"
        return f"along data='s gradient those of the steps are {seen}: {why}"


class _Step(NamedTuple):
    along: float  # g_t'g / |g|^2
    used: float  # |g_t|^2
    own: float  # |g|^2
    square: float | None  # E|g_B|^2 of data='s own mini-batches


def along(records: Sequence[Record], batch_size: int | None, samples: int | None) -> Along | None:
    r"""The mean of :math:`g_t^T g / |g|^2`, whatever the optimizer does with the gradient.

    A mini-batch's gradient is g in the mean, at each weights. Measurements count by the inverse of their variance,
    about :math:`|g|^2 / E|g_t|^2`; the latter is taken from other steps near by, so that weights do not depend on what
    they weigh. If ``data=`` are n samples of more, or dropout masks are drawn anew, g itself has a noise of
    :math:`\operatorname{tr}\Sigma / n`, by which the mean is smaller.

    Args:
        records: all measurements of the run.
        batch_size: of training, None where it is not known.
        samples: n, None where it is not known.
    """
    steps = [step for r in records if (step := _step(r)) is not None]
    if len(steps) < LEAST_DRAWS:
        return None
    weights = []
    for i, step in enumerate(steps):
        near = [other.used for other in (*steps[max(0, i - NEAR) : i], *steps[i + 1 : i + 1 + NEAR])]
        square = statistics.fmean(near)
        weights.append(min(step.own / square, HEAVIEST) if square > 0 else HEAVIEST)
    total = sum(weights)
    if not total > 0:
        return None
    mean = sum(w * step.along for w, step in zip(weights, steps, strict=True)) / total
    effective = total**2 / sum(w**2 for w in weights)
    squares = sum((w * (step.along - mean)) ** 2 for w, step in zip(weights, steps, strict=True))
    if effective <= 1:
        return None
    error = math.sqrt(squares * effective / (effective - 1)) / total
    half = float(stdtrit(effective - 1, OF_ALONG)) * error
    least = 0.0
    if batch_size is not None and samples is not None:
        noise = (min(1.0, _noise(step, batch_size, samples) / step.own) for step in steps)
        least = 1 - sum(w * share for w, share in zip(weights, noise, strict=True)) / total
    return Along(mean, mean - half, mean + half, least, len(steps))


def _step(record: Record) -> _Step | None:
    names = ("gradient_cosine", "gradient_scale", "gradient_norm")
    cosine, scale, norm = (record.values.get(name) for name in names)
    if cosine is None or scale is None or norm is None or not 0 < norm < math.inf or not math.isfinite(cosine * scale):
        return None
    square = record.values.get("batch_gradient_square")
    return _Step(
        cosine * scale, (scale * norm) ** 2, norm**2, square if square is not None and math.isfinite(square) else None
    )


def _noise(step: _Step, batch: int, samples: int) -> float:
    """tr(Sigma) / n: from data='s own mini-batches, or else from how far the step's is from the mean."""
    if step.square is not None and batch < samples:
        return max(0.0, step.square - step.own) * batch * (samples - 1) / ((samples - batch) * samples)
    return batch * max(0.0, step.used - 2 * step.along * step.own + step.own) / samples


# --------------------------------------------------------------------------- length


class Squares(NamedTuple):
    """How the squares of steps' gradients compare with those of ``data=``'s own mini-batches.

    Attributes:
        ratio: their mean.
        low: of its interval.
        high: of its interval.
        remainder: the mean that there is where epochs end with a smaller mini-batch, of the samples that are left.
        measured: so many updates.
    """

    ratio: float
    low: float
    high: float
    remainder: float
    measured: int

    @property
    def larger(self) -> bool:
        """Whether those of the steps are larger than mini-batches of the data explain."""
        return self.low > SAME * self.remainder

    @property
    def smaller(self) -> bool:
        """Whether they are smaller."""
        return self.high < 1 / SAME

    @property
    def same(self) -> bool:
        """Whether they are seen to be neither."""
        return self.low >= 1 / SAME and self.high <= SAME * self.remainder


def squares(records: Sequence[Record], batch_size: int | None = None, samples: int | None = None) -> Squares | None:
    """Mean of |g_train|^2 / E|g_B|^2 over the measured updates, with a 99 % interval, and how many they are.

    Each square is divided by the objective's own at the same weights, so that the level may change in between. A few
    draws show nothing of a long tail, and many mini-batches are behind the objective's own: the spread relative to the
    mean is at least what those have. The interval holds the factors that leave the mean within that spread.

    Args:
        records: all measurements of the run.
        batch_size: of training, None where it is not known.
        samples: in the data, None where it is not known.
    """
    found = [pair for r in records if (pair := _square_ratio(r)) is not None]
    n = len(found)
    if n < LEAST_DRAWS:
        return None
    ratios = [ratio for ratio, _ in found]
    remainder = _remainder(records, batch_size, samples) if batch_size and samples else 1.0
    mean, own = statistics.fmean(ratios), math.sqrt(statistics.fmean(spread**2 for _, spread in found))
    if not mean > 0:
        return Squares(mean, 0.0, 0.0, remainder, n)
    share = float(stdtrit(n - 1, OF_SQUARES)) * max(statistics.stdev(ratios) / mean, own) / math.sqrt(n)
    return Squares(mean, mean / (1 + share), mean / (1 - share) if share < 1 else math.inf, remainder, n)


def _remainder(records: Sequence[Record], batch: int, samples: int) -> float:
    r"""The mean of the ratio if the last mini-batch of each epoch holds what is left: one sample has B times the noise.

    :math:`E|g_b|^2 = |g|^2 + \operatorname{tr}\Sigma (n - b) / (b (n - 1))`.
    """
    left = samples % batch
    if left == 0 or batch >= samples:
        return 1.0
    times, count = batch * (samples - left) / ((samples - batch) * left), math.ceil(samples / batch)
    found = []
    for step in filter(None, map(_step, records)):
        if step.square:
            last = (step.own + max(0.0, step.square - step.own) * times) / step.square
            found.append((count - 1 + last) / count)
    return max(1.0, statistics.fmean(found)) if found else 1.0


_SQUARES = (
    "training_gradient_norm", "batch_gradient_square", "batch_gradient_square_low", "batch_gradient_square_high",
    "minibatch_draws", "s_mu", "s_mu_low", "s_mu_high", "loss",
)  # fmt: skip


def _square_ratio(record: Record) -> tuple[float, float] | None:
    """The ratio at one measurement, and the standard deviation of a mini-batch's square relative to its mean."""
    if record.values.get("training_gradient_norm") is None:
        return None
    values = {name: v for name in _SQUARES if (v := record.values.get(name)) is not None and math.isfinite(v)}
    norm, own, draws = (values.get(n) for n in ("training_gradient_norm", "batch_gradient_square", "minibatch_draws"))
    index = values.get("s_mu")  # E|g_B|^2 / 2L
    if own is None and index is not None and "loss" in values:
        own = 2 * values["loss"] * index
    if norm is None or own is None or not own > 0:
        return None
    # Adam and its like have no S_mu, and runs of old no interval of the squares.
    name, mean = ("batch_gradient_square", own) if "batch_gradient_square_low" in values else ("s_mu", index)
    ends = f"{name}_low", f"{name}_high"
    spread = 0.0
    if mean and draws and draws > 1 and all(end in values for end in ends):
        half = (values[ends[1]] - values[ends[0]]) / 2
        spread = half / mean * math.sqrt(draws) / float(stdtrit(draws - 1, 0.975))
    return norm**2 / own, spread


# --------------------------------------------------------------------------- loss


def trains_on_more(records: Sequence[Record], logged: Mapping[int, float]) -> bool:
    """Whether the losses that the loop logged are higher than that of ``data=``, as with augmentation of it.

    Then the gradients are larger too, with mini-batches of ``batch_size=`` all the same.

    Args:
        records: all measurements of the run.
        logged: losses by their steps.
    """
    pairs = [(logged.get(r.step), r.values.get("loss")) for r in records]
    logs = [math.log(a / b) for a, b in pairs if a and b and 0 < a < math.inf and 0 < b < math.inf]
    if len(logs) < LEAST_DRAWS:
        return False
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    return statistics.fmean(logs) - float(stdtrit(len(logs) - 1, OF_SQUARES)) * error > math.log(MORE_LOSS)
