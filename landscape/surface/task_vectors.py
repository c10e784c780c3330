r"""Task vectors, what fine-tuning added to a base's weights, and how far those of several tasks disagree.

.. math:: \tau_i = \theta_i - \theta_{\text{base}}

Ilharco et al., "Editing models with task arithmetic", 2023 (arXiv:2212.04089): models are combined by adding task
vectors. Yadav et al., "TIES-merging", 2023 (arXiv:2306.01708): in the sum, small entries of one dilute another's,
and large entries of opposite signs cancel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ParameterError, SettingError
from ..html_table import Shown
from ..objective import Objective
from .checks import finite_numbers
from .evaluation import evaluate_at
from .finite_points import finite_parameters_at
from .points import Point

__all__ = ["Conflict", "Interference", "TaskConflict", "task_conflict"]

_PIECE = 1 << 20  # entries of each vector at a time


@dataclass(frozen=True, eq=False)
class Conflict(Shown):
    r"""How several task vectors lie to each other, over all parameters or those of one tensor.

    A vector "keeps" a parameter that is among the share of its entries, over all tensors, with the largest magnitudes.

    Attributes:
        norms: (m,) float64 lengths.
        cosines: (m, m) float64 cosines of the angles between them; NaN with one of length 0.
        kept: (m,) float64 share of these parameters that each keeps.
        overlaps: (m, m) float64 share of these parameters that both keep; for independent choices the product of
            their shares.
        sign_conflicts: (m, m) float64 among the parameters that both keep, the share with opposite signs: 1/2 for
            unrelated vectors, NaN where they have none in common.
        sign_conflict: among the parameters that two at least keep, the share whose signs do not all agree: for
            unrelated vectors 1/2 where two keep it, and more where more do.
        stable_rank: of the stacked vectors, each scaled to length 1: from 1 (all parallel: redundant) to m (at right
            angles). ``|T|_F^2 / |T|_2^2``; vectors of length 0 do not count.
    """

    norms: Tensor
    cosines: Tensor
    kept: Tensor
    overlaps: Tensor
    sign_conflicts: Tensor
    sign_conflict: float
    stable_rank: float

    @property
    def mean_cosine(self) -> float:
        """Over all pairs; NaN with a vector of length 0."""
        m = len(self.cosines)
        return float((self.cosines.sum() - self.cosines.trace()) / (m * (m - 1)))

    def __repr__(self) -> str:
        """Cosine, signs, rank."""
        return (
            f"Conflict({len(self.norms)} vectors, mean cosine {self.mean_cosine:.3g}, signs disagree in "
            f"{self.sign_conflict:.3g} of shared large entries, stable rank {self.stable_rank:.3g})"
        )


@dataclass(frozen=True, eq=False)
class Interference(Shown):
    """What each task loses when all task vectors are added.

    Attributes:
        scale: the factor of each vector in the sum.
        base: (m,) float64 the base's loss on each task.
        own: (m,) float64 the loss on each task of the model that was tuned on it.
        merged: (m,) float64 the loss on each task of ``base + scale * sum of vectors``.
    """

    scale: float
    base: Tensor
    own: Tensor
    merged: Tensor

    @property
    def loss(self) -> Tensor:
        """(m,) ``merged - own``: positive where the other tasks are in the way (or the scale is not that task's)."""
        return self.merged - self.own


@dataclass(frozen=True, eq=False)
class TaskConflict(Shown):
    """The conflict between task vectors, and what it costs.

    Attributes:
        whole: over all parameters.
        tensors: of each tensor by name.
        keep: the share of entries that counts as large.
        interference: losses of the sum of all vectors, or None where no objectives of the tasks were given.
        names: of the tasks.
        vector: (n,) ``base + scale * sum of vectors``, a point that paths and slices take.
    """

    whole: Conflict
    tensors: Mapping[str, Conflict]
    keep: float
    interference: Interference | None
    names: tuple[str, ...]
    vector: Tensor

    def __repr__(self) -> str:
        """The whole's, and the largest interference."""
        said = ""
        if self.interference is not None:
            worst = int(self.interference.loss.argmax())
            said = f"; interference up to {float(self.interference.loss[worst]):.4g} on {self.names[worst]}"
        return f"TaskConflict({self.whole!r}{said})"


def task_conflict(
    objective: Objective,
    base: Point,
    points: Sequence[Point],
    *,
    objectives: Sequence[Objective] | None = None,
    keep: float = 0.2,
    scale: float | None = None,
    statistics: str = "recomputed",
    names: Sequence[str] | None = None,
) -> TaskConflict:
    r"""How far the task vectors of several fine-tuned models agree, and what their sum costs each task.

    Angles, signs and rank describe the weights; none of them says what the sum costs. That is measured where the tasks'
    objectives are given.

    Args:
        objective: says which parameters.
        base: the model that all were tuned from; None for the live model.
        points: the tuned models, two at least.
        objectives: for each task its own, of the same architecture, for `Interference`.
        keep: the share of each vector's entries that counts as large, 20 % as in TIES.
        scale: factor of each vector in the sum; default ``1 / m``, with which it is the mean of the models. Task
            arithmetic chooses it on validation data.
        statistics: how normalisation layers take their statistics, on each task's own data; see `Evaluator`.
        names: of the tasks.

    Raises:
        SettingError: if there are fewer than two points, numbers of things do not agree, or a setting means nothing.
        ParameterError: if a point or an objective is of another architecture.
        NonFiniteError: if a point has weights that are NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import task_conflict
        >>> model = torch.nn.Linear(4, 1, bias=False)
        >>> objective = Objective(model, (torch.eye(4), torch.zeros(4, 1)), criterion=torch.nn.MSELoss())
        >>> tuned = [torch.tensor([3.0, 4.0, 0.0, 0.0]), torch.tensor([3.0, -4.0, 0.0, 0.0])]
        >>> task_conflict(objective, torch.zeros(4), tuned, keep=0.5).whole
        Conflict(2 vectors, mean cosine -0.28, signs disagree in 0.5 of shared large entries, stable rank 1.56)
    """
    m = len(points)
    labels = tuple(names) if names is not None else tuple(f"task {i}" for i in range(m))
    _check(m, keep, scale, names=labels, objectives=objectives)
    for task, label in zip(objectives or (), labels, strict=False):
        _check_same_parameters(objective, task, label)
    origin = finite_parameters_at(objective, base, "the base")
    vectors = [finite_parameters_at(objective, p, f"the point of {labels[i]}") - origin for i, p in enumerate(points)]
    factor = 1 / m if scale is None else float(scale)
    vector = origin + (factor * torch.stack(vectors).sum(dim=0)).to(origin.dtype)
    interference = None
    if objectives is not None:
        places = {"base": [origin] * m, "own": [origin + v for v in vectors], "merged": [vector] * m}
        losses = {name: _losses(objectives, where, statistics) for name, where in places.items()}
        interference = Interference(factor, **losses)
    thresholds = [_threshold(v, keep) for v in vectors]
    pieces = [v.split(objective.space.numels) for v in vectors]
    tensors = {name: _sums([p[i] for p in pieces], thresholds) for i, name in enumerate(objective.space.names)}
    whole = tuple(torch.stack(column).sum(dim=0) for column in zip(*tensors.values(), strict=True))
    return TaskConflict(
        _conflict(whole), {k: _conflict(s) for k, s in tensors.items()}, keep, interference, labels, vector
    )


def _check(m: int, keep: object, scale: object, **given: Sequence[object] | None) -> None:
    if m < 2:
        raise SettingError(f"a conflict is between two task vectors at least, got {m} points")
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
        raise SettingError(f"keep must be a share in (0, 1], got {keep!r}")
    if scale is not None:
        finite_numbers([scale], "scale must be a finite number")
    for what, items in given.items():
        if items is not None and len(items) != m:
            raise SettingError(f"{what} must be {m}, one for each point; got {len(items)}")


def _check_same_parameters(objective: Objective, task: Objective, name: str) -> None:
    ours, theirs = objective.space, task.space
    pairs = zip(ours.names, ours.shapes, theirs.names, theirs.shapes, strict=False)
    differing = next((p for p in pairs if p[:2] != p[2:]), None)
    if differing is not None or ours.size != theirs.size:
        where = "" if differing is None else f": {differing[2]} {differing[3]} where {differing[0]} {differing[1]} is"
        raise ParameterError(
            f"the objective of {name} has other parameters ({theirs.size} in all, and the first has {ours.size}){where}"
        )


def _losses(tasks: Sequence[Objective], vectors: Sequence[Tensor], statistics: str) -> Tensor:
    """Each task's loss at its own point, (m,) float64."""
    found = [evaluate_at(t, [v.to(t.space.device)], statistics=statistics) for t, v in zip(tasks, vectors, strict=True)]
    return torch.cat([values["loss"] for values in found])


def _threshold(vector: Tensor, keep: float) -> Tensor:
    """The magnitude from which on an entry is kept."""
    count = math.ceil(keep * len(vector))
    return vector.abs().kthvalue(len(vector) - count + 1).values


# --------------------------------------------------------------------------- sums over parameters


def _sums(pieces: Sequence[Tensor], thresholds: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gram matrix, pairs' counts of kept and of opposite entries, and numbers of all, of shared and of split ones."""
    m, n = len(pieces), len(pieces[0])
    host = pieces[0].device.type == "mps"  # which has no float64
    total = torch.zeros(3 * m, m, dtype=torch.float64, device="cpu" if host else pieces[0].device)
    counts = torch.zeros(2, dtype=torch.float64, device=total.device)
    cut = torch.stack(list(thresholds))[:, None]
    for start in range(0, n, _PIECE):
        V = torch.stack([p[start : start + _PIECE] for p in pieces])
        S = (V.sign() * (V.abs() >= cut)).to(total)
        V, K = V.to(total), S.abs()
        total += torch.cat([V @ V.T, K @ K.T, (K @ K.T - S @ S.T) / 2])
        split = (S > 0).any(dim=0) & (S < 0).any(dim=0)
        counts += torch.stack([(K.sum(dim=0) >= 2).sum(), split.sum()])
    gram, both, opposite = total.cpu().split(m)
    return gram, both, opposite, torch.cat([torch.tensor([n], dtype=torch.float64), counts.cpu()])


def _conflict(sums: tuple[Tensor, ...]) -> Conflict:
    gram, both, opposite, counts = sums
    n, shared, split = counts.tolist()
    norms = gram.diagonal().sqrt()
    cosines = gram / norms[:, None] / norms
    alive = norms > 0
    unit = cosines[alive][:, alive]
    return Conflict(
        norms=norms,
        cosines=cosines,
        kept=both.diagonal() / max(n, 1),
        overlaps=both / max(n, 1),
        sign_conflicts=opposite / both,
        sign_conflict=split / shared if shared else math.nan,
        stable_rank=len(unit) / float(torch.linalg.eigvalsh(unit)[-1]) if len(unit) else math.nan,
    )
