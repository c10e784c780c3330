r"""Merging: the mean of several models' weights, and what is lost or won by it.

.. math:: \bar\theta = \sum_i w_i \theta_i, \qquad \text{barrier} = L(\bar\theta) - \sum_i w_i L(\theta_i)

Wortsman et al., "Model soups", 2022 (arXiv:2203.05482): the uniform mean of fine-tuned models. In decentralised
training the same gap, beside the distance of the models from their mean, says whether a single merging is enough (Zhu
et al. 2025, arXiv:2507.06542).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..complex_parts import as_real
from ..errors import SettingError
from ..html_table import Shown
from ..objective import Objective
from .checks import check_names, finite_numbers
from .evaluation import evaluate_at
from .finite_points import finite_state_at, in_double, vector_of
from .many_alignment import match_many
from .metrics import Metrics
from .paths import LARGER_IS_BETTER, barrier_matrix
from .permutations import hidden_units
from .point_statistics import statistics_for
from .points import Point

__all__ = ["Merged", "merge"]


@dataclass(frozen=True, eq=False)
class Merged(Shown):
    r"""Several models and the weighted mean of their weights.

    Attributes:
        vector: (n,) the merged model's parameters, a point that paths and slices take.
        state: the same as a state dict of the model, with statistics of normalisation as they were evaluated.
        weights: (m,) float64, of sum 1.
        values: (m,) float64 per name, ``"loss"`` first: of the members.
        merged: the same of the merged model.
        barriers: per name the merged model's value less the members' weighted mean; of a metric that is better when
            larger, the negative of that. Positive where merging costs something.
        pairwise: (m, m) float64 largest rise of the loss on the straight line between two members, above the line
            between their losses, or None if it was not asked for.
        consensus_distance: ``sum_i w_i |theta_i - mean|^2``, the members' spread.
        spread_before: the same before units were aligned; equal where they were not.
        statistics: how normalisation layers took their statistics: "kept", "recomputed" or "frozen".
        aligned: whether hidden units were numbered alike first.
        seconds: wall time.
        note: what is to be known of it; mostly empty.
    """

    vector: Tensor
    state: Mapping[str, Tensor]
    weights: Tensor
    values: Mapping[str, Tensor]
    merged: Mapping[str, float]
    barriers: Mapping[str, float]
    pairwise: Tensor | None
    consensus_distance: float
    spread_before: float
    statistics: str = "recomputed"
    aligned: bool = False
    seconds: float = 0.0
    note: str = ""

    @property
    def barrier(self) -> float:
        """The merged model's loss less the members' weighted mean: positive where merging costs something.

        For a convex loss it is never positive (Jensen); near a common minimum with curvature H it is about
        ``-1/2 sum_i w_i (theta_i - mean)' H (theta_i - mean)``.
        """
        return self.barriers["loss"]

    @property
    def mergeability(self) -> float:
        """The negative of the barrier, in units of the loss: by how much the merged model is better than its members.

        Members with a mergeability of 0 or more lose nothing, on average, by being merged. It says nothing of the best
        of them; see `above_best`.
        """
        return -self.barrier

    @property
    def above_best(self) -> float:
        """The merged model's loss less that of the best member: negative where it beats all of them."""
        return self.merged["loss"] - float(self.values["loss"].min())

    def __repr__(self) -> str:
        """How many, losses, barrier."""
        losses = self.values["loss"]
        return (
            f"Merged({len(losses)} models{', aligned' if self.aligned else ''}, losses {float(losses.min()):.4g} to "
            f"{float(losses.max()):.4g} -> {self.merged['loss']:.4g}, barrier {self.barrier:.4g}"
            f"{'; ' + self.note if self.note else ''})"
        )


def merge(
    objective: Objective,
    points: Sequence[Point],
    *,
    weights: Sequence[float] | Tensor | None = None,
    align: bool = False,
    metrics: Metrics = None,
    statistics: str = "recomputed",
    larger_is_better: Collection[str] = LARGER_IS_BETTER,
    pairwise: int = 0,
    seed: int = 0,
) -> Merged:
    r"""The weighted mean of several models' weights, with its loss and metrics beside those of its members.

    Nothing of the model is changed: the merged one is in ``state``, for ``model.load_state_dict``.

    Args:
        objective: model, data and parameters. Parameters that it leaves out are the live model's in all of them.
        points: the members, two at least.
        weights: (m,), not negative, of any positive sum (numbers of samples, say); default: all equal.
        align: number hidden units alike first (`align`): all as the first member's, three and more by matching each
            with the mean of the others until none improves.
        metrics: what to measure besides the loss; see `Evaluator`.
        statistics: how normalisation layers take their statistics, in members and mean alike: ``"recomputed"`` on the
            objective's data, as a mean of networks needs; ``"kept"``, those of each member, and their weighted mean.
        larger_is_better: metrics that are.
        pairwise: points on the line between each two members at which barriers are looked for; 0 for none.
        seed: of the random starts of alignment.

    Raises:
        SettingError: if there are fewer than two points, or weights that mean nothing.
        ParameterError: if a point is of another architecture; says which tensor differs.
        NonFiniteError: if a point has weights that are NaN or infinite.
        LossError: if a metric is not a scalar.

    Example:
        A linear model with squared loss is convex, so merging cannot cost anything.

        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import merge
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, (torch.eye(2), torch.zeros(2, 1)), criterion=torch.nn.MSELoss())
        >>> merge(objective, [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])])
        Merged(2 models, losses 2 to 2 -> 1, barrier -1)
    """
    began = time.perf_counter()
    if len(points) < 2:
        raise SettingError(f"merging takes two points at least, got {len(points)}")
    if isinstance(pairwise, bool) or not isinstance(pairwise, int) or pairwise < 0 or pairwise in (1, 2):
        raise SettingError(f"pairwise must be 0, or a number of points on each line of at least 3; got {pairwise!r}")
    check_names("larger_is_better", larger_is_better)
    w = _checked_weights(weights, len(points))
    members: list[Mapping[str, Tensor]] = [
        finite_state_at(objective, point, f"point {i}") for i, point in enumerate(points)
    ]
    names, notes = list(objective.parameters), []
    spread = _spread(members, w, names)
    if align:
        hidden = hidden_units(objective, seed=seed)
        members, settled = match_many(hidden, members, names, seed=seed)
        notes += [hidden.note, "" if hidden.groups else "no hidden units were found to align"]
        notes.append("" if settled else "alignment was still improving")
    mean = _mean(members, w)
    rows = [_evaluated(objective, state, metrics, statistics) for state in [*members, mean]]
    values = {name: torch.stack([row[name] for row in rows[:-1]]) for name in rows[0]}
    merged = {name: float(value) for name, value in rows[-1].items()}
    barriers = {name: merged[name] - float(w @ values[name]) for name in merged}
    if statistics == "recomputed":
        mean |= statistics_for(objective, objective.space.unflatten(vector_of(objective, mean)))
    return Merged(
        vector=vector_of(objective, mean),
        state=mean,
        weights=w,
        values=values,
        merged=merged,
        barriers={name: -b if name in larger_is_better else b for name, b in barriers.items()},
        pairwise=barrier_matrix(objective, members, samples=pairwise, statistics=statistics) if pairwise else None,
        consensus_distance=_spread(members, w, names),
        spread_before=spread,
        statistics=statistics,
        aligned=align,
        seconds=time.perf_counter() - began,
        note="; ".join(filter(None, notes)),
    )


def _checked_weights(weights: Sequence[float] | Tensor | None, m: int) -> Tensor:
    expected = f"weights must be {m} finite numbers, not negative and not all zero"
    w = torch.ones(m, dtype=torch.float64) if weights is None else finite_numbers(weights, expected)
    if w.shape != (m,) or bool((w < 0).any()) or not float(w.sum()) > 0:
        raise SettingError(f"{expected}; got {weights!r}")
    return w / w.sum()


def _mean(states: Sequence[Mapping[str, Tensor]], w: Tensor) -> dict[str, Tensor]:
    """The weighted mean, summed in double precision; whole numbers (counts of batches) are the first's."""
    found, sums = {}, dict[int, Tensor]()
    for name, first in states[0].items():
        if not (first.is_floating_point() or first.is_complex()):
            found[name] = first.clone()
            continue
        if id(first) not in sums:  # a tied tensor has one mean
            total = sum(in_double(state[name]) * float(weight) for state, weight in zip(states, w, strict=True))
            assert isinstance(total, Tensor)
            sums[id(first)] = total.to(first.device, first.dtype)
        found[name] = sums[id(first)]
    return found


def _spread(states: Sequence[Mapping[str, Tensor]], w: Tensor, names: Sequence[str]) -> float:
    """The weighted mean of squared distances from the weighted mean."""
    total = 0.0
    for name in names:
        values = [as_real(in_double(state[name])) for state in states]
        center = sum(value * float(weight) for value, weight in zip(values, w, strict=True))
        total += sum(float(weight) * float((v - center).square().sum()) for v, weight in zip(values, w, strict=True))
    return total


def _evaluated(
    objective: Objective, state: Mapping[str, Tensor], metrics: Metrics, statistics: str
) -> dict[str, Tensor]:
    """Loss and metrics with a state's parameters and buffers, () float64 each."""
    found = evaluate_at(objective, [state], metrics=metrics, statistics=statistics)
    return {name: value[0] for name, value in found.items()}
