"""Alignment: the same network as the second, with its hidden units numbered as the first's are."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SettingError
from ..html_table import Shown
from ..noise_scale import check_count
from ..objective import Objective
from .activation_matching import match_activations
from .finite_points import finite_state_at, in_double, vector_of
from .permutations import HiddenUnits, hidden_units
from .points import Point
from .weight_matching import match_weights

__all__ = ["METHODS", "Alignment", "align"]

METHODS = ("weights", "activations")
"""What units of two networks are matched by; see `align`."""


@dataclass(frozen=True, eq=False)
class Alignment(Shown):
    """The second network, permuted to be close to the first.

    Attributes:
        permutations: per group name (size,) int64: unit i of the aligned network is unit ``permutation[i]`` of the
            second.
        vector: (n,) the aligned network's parameters, a point that paths and slices take.
        state: the same as a state dict of the model, permuted statistics of normalisation included where the second
            brought them.
        distance_before: Euclidean distance of the second network's parameters from the first's.
        distance: that of the aligned network's.
        method: ``"weights"`` or ``"activations"``.
        sweeps: over all groups, of the start that was kept; 1 for activations.
        converged: whether the last sweep found nothing to improve: a local optimum, as there may be better ones.
        hidden: the groups, and what was left as it is.
        seconds: wall time.
        note: what is to be known of it; mostly empty.
    """

    permutations: Mapping[str, Tensor]
    vector: Tensor
    state: Mapping[str, Tensor]
    distance_before: float
    distance: float
    method: str
    sweeps: int
    converged: bool
    hidden: HiddenUnits
    seconds: float = 0.0
    note: str = ""

    @property
    def moved(self) -> int:
        """How many hidden units have another number than before."""
        return sum(int((order != torch.arange(len(order))).sum()) for order in self.permutations.values())

    def __repr__(self) -> str:
        """Groups, units, distances."""
        units = sum(map(len, self.permutations.values()))
        return (
            f"Alignment({self.method}: {self.moved} of {units} units in {len(self.permutations)} groups moved; "
            f"distance {self.distance_before:.4g} -> {self.distance:.4g}{'; ' + self.note if self.note else ''})"
        )


def align(
    objective: Objective,
    first: Point,
    second: Point,
    *,
    method: str = "weights",
    spec: Mapping[str, Sequence[tuple[str, int]]] | None = None,
    restarts: int = 3,
    iterations: int = 100,
    seed: int = 0,
) -> Alignment:
    r"""Permute the hidden units of the second network so that it comes close to the first; its function stays.

    .. math:: \min_{P_1, \dots, P_L} \|\theta_1 - P(\theta_2)\|^2

    by weight matching (Ainsworth et al. 2023, arXiv:2209.04836): group by group a linear assignment, until none
    improves, from several starts. What comes out is a local optimum: the distance can only fall, the loss barrier
    between the two mostly does. By activations: units are matched by their correlation on the objective's data, in
    one pass; the distance may grow. Groups that it does not show are then matched by weights.

    The groups are found from the model (`hidden_units`). Nothing of the model is changed.

    Args:
        objective: model, data and parameters; data is what activations are compared on, and the groups are tried on.
        first: where the first network is; None for the live model.
        second: where the one is that is permuted.
        method: ``"weights"`` or ``"activations"``.
        spec: groups of hidden units by hand; see `hidden_units`.
        restarts: random starts of weight matching, besides two that are not random.
        iterations: most sweeps from each start.
        seed: of the order of groups and of random starts.

    Raises:
        ParameterError: if a point is of another architecture.
        NonFiniteError: if a point has weights that are NaN or infinite.
        SettingError: if there is no such method, or a setting means nothing.

    Example:
        A copy with renumbered units is found to be the same network.

        >>> import torch
        >>> from losscope.landscape import Objective, align
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))
        >>> objective = Objective(model, (torch.eye(4), torch.ones(4, 1)), criterion=torch.nn.MSELoss())
        >>> shuffled, order = model.state_dict(), [5, 4, 3, 2, 1, 0]
        >>> for name in ("0.weight", "0.bias"):
        ...     shuffled[name] = shuffled[name][order]
        >>> shuffled["2.weight"] = shuffled["2.weight"][:, order]
        >>> found = align(objective, model, shuffled)
        >>> found.permutations
        {'0.weight:0': tensor([5, 4, 3, 2, 1, 0])}
        >>> found.distance
        0.0
    """
    began = time.perf_counter()
    if method not in METHODS:
        raise SettingError(f"method must be one of {', '.join(map(repr, METHODS))}; got {method!r}")
    check_count("restarts", restarts, 0)
    check_count("iterations", iterations, 1)
    mine = finite_state_at(objective, first, "the first point")
    other = finite_state_at(objective, second, "the second point")
    hidden = hidden_units(objective, spec=spec, seed=seed)
    known: dict[str, Tensor] = {}
    if method == "activations":
        known = match_activations(_in_eval(objective), hidden, mine, other)
    parameters = list(objective.parameters)
    matching = match_weights(
        hidden,
        {name: mine[name] for name in parameters},
        {name: other[name] for name in parameters},
        starts=2 + restarts,
        iterations=iterations,
        seed=seed,
        known=known,
    )
    aligned = hidden.permuted(other, matching.orders)
    notes = [hidden.note]
    if not hidden.groups:
        notes.append("no hidden units were found, so the second network is as it was")
    elif not matching.converged:
        notes.append(f"still improving after {iterations} sweeps: raise iterations")
    return Alignment(
        permutations=matching.orders,
        vector=vector_of(objective, aligned),
        state=aligned,
        distance_before=_distance(objective, mine, other),
        distance=_distance(objective, mine, aligned),
        method=method,
        sweeps=matching.sweeps,
        converged=matching.converged,
        hidden=hidden,
        seconds=time.perf_counter() - began,
        note="; ".join(filter(None, notes)),
    )


def _in_eval(objective: Objective) -> Objective:
    fresh = copy.copy(objective)
    fresh.mode, fresh._depth = "eval", 0
    return fresh


def _distance(objective: Objective, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    names = objective.parameters
    squares = [float((in_double(a[n]) - in_double(b[n])).square().sum()) for n in names]
    return float(torch.tensor(squares, dtype=torch.float64).sum().sqrt())
