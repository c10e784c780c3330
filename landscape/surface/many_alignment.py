"""Several networks numbered alike: each is matched with the mean of the others, until none improves.

Ainsworth et al., "Git Re-Basin", 2023 (arXiv:2209.04836), section 3.4 ("MergeMany"), with the first network held where
it is and the others matched with it to begin with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .finite_points import in_double
from .unit_groups import HiddenUnits
from .weight_matching import match_weights

__all__ = ["match_many"]

_ROUNDS = 20


def match_many(
    hidden: HiddenUnits, states: Sequence[Mapping[str, Tensor]], parameters: Sequence[str], *, seed: int = 0
) -> tuple[list[Mapping[str, Tensor]], bool]:
    """The networks with their hidden units numbered alike, and whether the last round found nothing to improve.

    The sum of squared distances between all of them falls with every round.

    Args:
        hidden: the groups of hidden units.
        states: parameters and buffers by name, finite.
        parameters: the names that are compared.
        seed: of random starts.
    """
    found: list[Mapping[str, Tensor]] = [states[0]]
    for state in states[1:]:
        matching = match_weights(hidden, _only(states[0], parameters), _only(state, parameters), seed=seed)
        found.append(hidden.permuted(state, matching.orders))
    if len(states) < 3 or not hidden.groups:
        return found, True
    for _ in range(_ROUNDS):
        improved = False
        for i in range(1, len(found)):
            others = {
                name: torch.stack([in_double(s[name]) for k, s in enumerate(found) if k != i]).mean(dim=0)
                for name in parameters
            }
            matching = match_weights(hidden, others, _only(found[i], parameters), starts=1, seed=seed)
            moved = any(not torch.equal(order, torch.arange(len(order))) for order in matching.orders.values())
            found[i] = hidden.permuted(found[i], matching.orders)
            improved |= moved
        if not improved:
            return found, True
    return found, False


def _only(state: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    return {name: state[name] for name in names}
