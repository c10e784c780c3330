"""Mode connectivity: a curve between two points, trained so that the loss is small all along it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..errors import SettingError
from ..interrupts import interrupts_held
from ..noise_scale import check_count
from ..objective import Objective
from ..space import generator_for
from .batch_statistics import resolved_statistics
from .carried import Carried
from .checks import check_positive
from .curve_training import MiniBatches, trained_control
from .curves import Curve
from .metrics import Metrics
from .paths import LARGER_IS_BETTER, checked_path, path_along
from .points import Point, parameters_at
from .results import LossPath

__all__ = ["bezier_path"]

_RATE = 0.05  # of the ends' distance per entry (root mean square)


def bezier_path(
    objective: Objective,
    first: Point,
    second: Point,
    *,
    epochs: int = 250,
    lr: float | None = None,
    batch_size: int | None = 64,
    kind: str = "bezier",
    control: Point = None,
    points: int | Sequence[float] | Tensor = 61,
    refine: int = 0,
    metrics: Metrics = None,
    statistics: str = "recomputed",
    larger_is_better: Collection[str] = LARGER_IS_BETTER,
    names: tuple[str, str] = ("first", "second"),
    seed: int | torch.Generator | None = 0,
    progress: bool = False,
) -> LossPath:
    r"""A curve between two points on which the loss stays as low as training can make it.

    .. math:: \theta_c(t) = (1 - t)^2 \theta_1 + 2 t (1 - t) c + t^2 \theta_2, \qquad
        \min_c \; E_{t \sim U(0, 1)} L(\theta_c(t))

    by Adam on mini-batches of the objective's data, with one t for each, from the straight line on (Garipov et al.
    2018, "Loss surfaces, mode connectivity, and fast ensembling of DNNs", arXiv 1802.10026, which takes SGD). The loss
    that is trained is the objective's, in its mode. The result is evaluated as `linear_path` is. That no low path was
    found does not say that there is none: train on, from ``control=path.control``.

    Args:
        objective: the loss; its model is left as it is, to the bit.
        first: None for where the model is now, a module, a state dict, or a vector (n,).
        second: the same for the other end.
        epochs: passes over the data; 0 evaluates the curve as it is.
        lr: the largest learning rate, about what an entry of the control point moves by in a step; it rises in the
            first steps and falls to zero as a cosine. Default: 0.05 times the root mean square of the entries of
            the ends' difference, so that scaling the parameters changes nothing.
        batch_size: samples in a mini-batch; None for the objective's own batches. Those are also taken, and the note
            says so, where they cannot be cut into samples that go together (padding of other lengths).
        kind: ``"bezier"``; or ``"chain"``: straight to the control point and on to the other end.
        control: where the control point starts, e.g. that of an earlier path; None for midway between the ends.
        points: how many t the result is evaluated at, or which ones.
        refine: at most so many further ones, where the loss is steep or bends.
        metrics: what to measure besides the loss, as in `line`.
        statistics: how normalisation layers take theirs. Where they are ``"recomputed"`` at each t of the result,
            training normalises by the mini-batch.
        larger_is_better: names of metrics whose barrier is that of their negative.
        names: what to call the ends.
        seed: int, generator (on the CPU), or None for fresh entropy; the global stream is never used.
        progress: show how far it is.

    Raises:
        ParameterError: if a point is of another architecture; says which tensor differs.
        SettingError: if an option means nothing.
        NonFiniteError: if the loss becomes NaN or infinite in training.
        LossError: if the loss or a metric is not a scalar.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective, bezier_path
        >>> model = torch.nn.Linear(2, 1, bias=False)  # the loss is (1 - w'w)^2: minima on a circle
        >>> data = (torch.eye(2), torch.zeros(2, 1))
        >>> objective = Objective(model, data, criterion=lambda x, _: (1 - x.square().sum()).square(), weight=len)
        >>> path = bezier_path(objective, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), batch_size=None)
        >>> path.barrier < 0.01, path.control.round(decimals=1)
        (True, tensor([0.9000, 0.9000]))
    """
    started = time.perf_counter()
    _check(epochs, lr, batch_size, kind)
    t = checked_path(points, refine, larger_is_better, names)
    one, other = parameters_at(objective, first, names[0]), parameters_at(objective, second, names[1])
    middle = (one + other) / 2 if control is None else parameters_at(objective, control, "control")
    curve, carried = Curve(kind, (one, middle, other)), Carried.between(objective, first, second)
    if lr is None:
        lr = _RATE * float((other.double() - one.double()).square().mean().sqrt())
    with interrupts_held():
        batches, (resolved, _) = MiniBatches(objective, batch_size), resolved_statistics(objective, statistics)
    curve, history = trained_control(
        objective, curve, carried, batches, epochs=epochs, lr=lr, statistics=resolved,
        generator=generator_for(seed, torch.device("cpu")), progress=progress,
    )  # fmt: skip
    path = path_along(
        objective, curve, carried, t, refine=refine, metrics=metrics, statistics=statistics,
        larger_is_better=larger_is_better, names=names, progress=progress,
    )  # fmt: skip
    note = "; ".join(filter(None, (batches.note, path.note)))
    return dataclasses.replace(path, history=history, seconds=time.perf_counter() - started, note=note)


def _check(epochs: int, lr: float | None, batch_size: int | None, kind: str) -> None:
    check_count("epochs", epochs, 0)
    if batch_size is not None:
        check_count("batch_size", batch_size, 1)
    if lr is not None:
        check_positive("lr", lr)
    if kind not in ("bezier", "chain"):
        raise SettingError(f'kind must be "bezier" or "chain", got {kind!r}; for a straight line take linear_path')
