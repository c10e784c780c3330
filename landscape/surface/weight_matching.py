"""Weight matching: the permutations of hidden units that bring one network's weights closest to another's.

Ainsworth, Hayase and Srinivasa, "Git Re-Basin: merging models modulo permutation symmetries", ICLR 2023
(arXiv:2209.04836), section 3.2: the distance is least where the inner product of the weights is largest, which for one
group of units, all others held, is a linear assignment. For all groups together it is NP-hard; coordinate ascent finds
a local maximum, and starts from several places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..space import generator_for
from .finite_points import in_double
from .unit_algebra import Units, leaves, positions, rows
from .unit_groups import HiddenUnits, UnitGroup

__all__ = ["Matching", "best_order", "match_weights"]

_GAIN = 1e-12  # of the largest inner product there can be; less is rounding


@dataclass(frozen=True, eq=False)
class Matching:
    """Permutations of all groups.

    Attributes:
        orders: per group name (size,) int64: unit i of the first goes with unit ``order[i]`` of the second.
        sweeps: over all groups, of the start that is returned.
        converged: whether its last sweep found nothing to improve.
        starts: the inner product that was reached from each start.
    """

    orders: dict[str, Tensor]
    sweeps: int
    converged: bool
    starts: tuple[float, ...]


def match_weights(
    hidden: HiddenUnits,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    *,
    starts: int = 5,
    iterations: int = 100,
    seed: int = 0,
    known: Mapping[str, Tensor] | None = None,
) -> Matching:
    """Coordinate ascent on the inner product of two networks' parameters, groups in random order.

    Args:
        hidden: the groups.
        first: parameters by name, finite.
        second: likewise; they are permuted.
        starts: how many: the order as it is; then layer by layer, each group on what it shares with inputs, outputs
            and groups that have been matched; then random permutations.
        iterations: most sweeps from one start.
        seed: of orders and starts.
        known: orders of groups that are not searched for.
    """
    fixed = dict(known or {})
    match = _Ascent(hidden, first, hidden.permuted(second, fixed), [g for g in hidden.groups if g.name not in fixed])
    generator = generator_for(seed, torch.device("cpu"))
    found: list[tuple[float, dict[str, Tensor], int, bool]] = []
    for start in range(starts if match.groups else 1):
        match.reset()
        if start == 1:
            match.layer_by_layer()
        elif start > 1:
            match.shuffle(generator)
        sweeps, converged = match.ascend(iterations, generator)
        found.append((match.inner(), dict(match.orders), sweeps, converged))
        if match.exact():
            break
    _, orders, sweeps, converged = max(found, key=lambda item: item[0])
    return Matching(orders | fixed, sweeps, converged, tuple(value for value, *_ in found))


def best_order(similarity: Tensor) -> Tensor:
    """The permutation with the largest sum of similarities: (n, n) -> (n,) int64, a linear assignment."""
    _, order = linear_sum_assignment(similarity.cpu().numpy(), maximize=True)
    return torch.from_numpy(order)


class _Ascent:
    """The second network's parameters as they are permuted so far, in float64."""

    def __init__(
        self,
        hidden: HiddenUnits,
        first: Mapping[str, Tensor],
        second: Mapping[str, Tensor],
        groups: Sequence[UnitGroup],
    ) -> None:
        self.groups, self.indices = list(groups), hidden.indices
        of_units = {group.units: group for group in groups}
        touched = {n for group in groups for n, _ in group.places if n in first}
        self.A = {n: in_double(first[n]) for n in first if n in touched}
        self._start = {n: in_double(second[n]) for n in self.A}
        self.entries: dict[str, list[tuple[str, int, Tensor]]] = {group.name: [] for group in groups}
        for n in self.A:
            for dim, index in enumerate(self.indices[n]):
                for units, entries in positions(index):
                    if units in of_units:
                        self.entries[of_units[units].name].append((n, dim, entries.to(self.A[n].device)))
        self.reset()

    def reset(self) -> None:
        """As the second network is."""
        self.B = dict(self._start)
        self.orders = {group.name: torch.arange(group.size) for group in self.groups}

    def shuffle(self, generator: torch.Generator) -> None:
        """A random permutation of every group."""
        for group in self.groups:
            self._apply(group, torch.randperm(group.size, generator=generator))

    def layer_by_layer(self) -> None:
        """Match each group on those of its entries whose other units are matched already.

        Where there is none left, two groups wait for each other in one dimension, as attention heads and their
        coordinates do: one of them is matched by its entries in the order of their size, which knows nothing of the
        other's order.
        """
        open_groups = list(self.groups)
        while open_groups:
            waiting = {group.units for group in open_groups}
            settled = {group.name: self._settled(group, waiting) for group in open_groups}
            alone = {group.name: self._settled(group, waiting, beside=True) for group in open_groups}
            group = next((g for g in open_groups if settled[g.name]), None)
            if group is not None:
                similarity = self._similarity(settled[group.name])
            else:
                group = next((g for g in open_groups if alone[g.name]), open_groups[0])
                similarity = self._similarity(alone[group.name] or self.entries[group.name], ranked=True)
            self._apply(group, best_order(similarity))
            open_groups.remove(group)

    def _settled(self, group: UnitGroup, waiting: set[Units], *, beside: bool = False) -> list[tuple[str, int, Tensor]]:
        """A group's entries in tensors whose other units do not wait, those ``beside`` it in its dimension excepted."""
        others = waiting - {group.units}
        return [
            (n, dim, where)
            for n, dim, where in self.entries[group.name]
            if self.A[n].ndim > 1
            and not any(others & {*leaves(i)} for d, i in enumerate(self.indices[n]) if not (beside and d == dim))
        ]

    def ascend(self, iterations: int, generator: torch.Generator) -> tuple[int, bool]:
        """Sweeps until one of them improves nothing: their number, and whether it came to that."""
        for sweep in range(1, iterations + 1):
            improved = False
            for i in torch.randperm(len(self.groups), generator=generator).tolist():
                improved |= self._improve(self.groups[i])
            if not improved:
                return sweep, True
        return iterations, False

    def _improve(self, group: UnitGroup) -> bool:
        similarity = self._similarity(self.entries[group.name])
        order = best_order(similarity)
        gain = float(similarity.gather(1, order.to(similarity.device)[:, None]).sum() - similarity.trace())
        least = _GAIN * self._scale(group)
        if gain <= least:
            return False
        tensors = [n for n, _, _ in self.entries[group.name]]
        if len(set(tensors)) == len(tensors):
            self._apply(group, order)
            return True
        # In both dimensions of one tensor the units are not a linear assignment: keep what is better in fact.
        before, orders, inner = dict(self.B), dict(self.orders), self.inner(set(tensors))
        self._apply(group, order)
        if self.inner(set(tensors)) - inner > least:
            return True
        self.B, self.orders = before, orders
        return False

    def _similarity(self, entries: Sequence[tuple[str, int, Tensor]], *, ranked: bool = False) -> Tensor:
        """(n, n) inner products of what units of the first have with what those of the second have.

        Args:
            entries: (tensor, dimension, positions) to take.
            ranked: with what a unit has along the dimension in order of size.
        """
        terms = []
        for n, dim, where in entries:
            both = [
                T.movedim(dim, 0).index_select(0, where.flatten()).reshape(*where.shape, -1)
                for T in (self.A[n], self.B[n])
            ]
            mine, others = (T.sort(dim=1).values.flatten(1) if ranked else T.flatten(1) for T in both)
            terms.append(mine @ others.T)
        return torch.stack(terms).sum(dim=0)

    def _apply(self, group: UnitGroup, order: Tensor) -> None:
        self.orders[group.name] = self.orders[group.name][order]
        for n, dim in {(n, dim) for n, dim, _ in self.entries[group.name]}:
            taken = rows(self.indices[n][dim], {group.units: order})
            self.B[n] = self.B[n].index_select(dim, taken.to(self.B[n].device))

    def _scale(self, group: UnitGroup) -> float:
        return sum(float(self.A[n].norm() * self.B[n].norm()) for n in {n for n, _, _ in self.entries[group.name]})

    def inner(self, names: set[str] | None = None) -> float:
        """Inner product of the two networks, over the tensors that have hidden units."""
        return sum(float((self.A[n] * self.B[n]).sum()) for n in names or self.A)

    def exact(self) -> bool:
        """Whether they are the same network."""
        return all(torch.equal(self.A[n], self.B[n]) for n in self.A)
