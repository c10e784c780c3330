"""Random mini-batches, each evaluated once for everything that is made of them."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from .batches import batch_length
from .errors import first_line
from .groups import cut, part
from .kernels.graphs import default_memory
from .kernels.retained import Retained
from .minibatch_forms import Forms, OneByOne, Together, Wanted, joined
from .objective import Objective
from .operators import refuse_nonfinite

__all__ = ["MinibatchDraws"]

_TRIAL = 16  # mini-batches in the first vectorised pass
_MOST = 128  # in any: beyond it the time per mini-batch stays, and memory grows
_COMPARED = 2  # with one by one: with one alone, numbers drawn outside of torch could be the same
_ROUNDINGS = 4.0  # that the two may differ by: closer than kernels, since torch errs subtly (1e-3) where it vectorises
_VECTORS = 8  # of the parameters' size that a mini-batch takes besides the graph of its gradient


class MinibatchDraws:
    """Mini-batches drawn without replacement, independently of one another.

    They are evaluated many at a time where that agrees with one by one, to rounding, and is faster; else one by one.
    Which it is, is tried on the first of them and kept with the objective.

    Args:
        objective: the loss on all samples; each batch of its data must show its samples in its first dimension.
        batch_size: B.
        generator: of the draws, on the CPU.
        inverse: (n,) 1 / P of a diagonal preconditioner; None for the identity.
        products: whether the curvature along the gradients is wanted.
        crossed: whether the curvature along the gradients of others is; mini-batches then come in pairs.
        memory: bytes that mini-batches evaluated together may take; None for `default_memory`.

    Attributes:
        engine: ``"together"`` or ``"one by one"``, as the last were evaluated.
        reason: why they were not evaluated together; empty where they were.

    Raises:
        DataError: if batches cannot be cut into samples.
    """

    def __init__(
        self,
        objective: Objective,
        batch_size: int,
        generator: torch.Generator,
        *,
        inverse: Tensor | None = None,
        products: bool = True,
        crossed: bool = False,
        memory: int | None = None,
    ) -> None:
        objective.ranks.refuse_parts("what draws mini-batches from the data")
        lengths = [batch_length(batch.content) for batch in objective.batches]
        self.objective, self.batch_size, self.samples = objective, batch_size, sum(lengths)
        self.memory, self.crossed = memory, crossed
        self.engine, self.reason = OneByOne.name, ""
        self._generator = generator
        self._wanted = Wanted(objective, lengths, inverse, products, crossed)
        self._alone, self._together = OneByOne(self._wanted), Together(self._wanted)
        self._parts: list[Forms] = []

    @property
    def count(self) -> int:
        """Mini-batches so far."""
        return sum(len(part.loss) for part in self._parts)

    @property
    def matvecs(self) -> int:
        """Products with their Hessians."""
        return self.count * (self._wanted.products + self._wanted.crossed)

    @property
    def forms(self) -> Forms:
        """What was found of them, on the CPU.

        The mean loss of a mini-batch is an estimate of that of all samples; a sum is one when scaled up to it.
        """
        found = joined(self._parts)
        c = self.samples / self.batch_size if self.objective.loss.summed else 1.0
        powers = (c, c**2, c**2, c**3, c**3, c**3)
        return Forms._make(column * power for column, power in zip(found, powers, strict=True))

    def draw(self, wanted: int) -> None:
        """Draw until there are as many as wanted; whole pairs of them.

        Raises:
            NonFiniteError: if a gradient or a product is NaN or infinite.
        """
        count = wanted - self.count
        count += count % self._step
        if count <= 0:
            return
        chosen = self._chosen(count)
        with self.objective.isolated():
            while len(chosen):
                done = self._some(chosen)
                self._parts.append(self._checked(done, chosen))
                chosen = chosen[len(done.loss) :]

    def _chosen(self, count: int) -> Tensor:
        """Positions of the samples of so many mini-batches, (count, B), ascending in each."""
        return _positions(self.samples, self.batch_size, count, self._generator)

    def _checked(self, found: Forms, chosen: Tensor) -> Forms:
        """On the CPU; zero where nothing counts, as in mini-batches in which every token is ignored."""
        rows = torch.stack(found, dim=1).cpu()
        for i in (~rows.isfinite().all(dim=1)).nonzero().flatten().tolist():
            pieces = cut(self.objective, chosen[i], self._wanted.lengths)
            if sum(self.objective.loss.weight_of(content) for _, content in pieces) > 0:
                refuse_nonfinite(math.nan)
            rows[i] = 0.0
        return Forms._make(rows.T)

    @property
    def _step(self) -> int:
        return 2 if self._wanted.crossed else 1

    # ------------------------------------------------------------------ how many at a time

    @property
    def _key(self) -> tuple[object, ...]:
        wanted = self._wanted
        form = (wanted.products, wanted.crossed, wanted.inverse is not None)
        return ("minibatches", id(self.objective.loss), self.batch_size, *form)

    def _some(self, chosen: Tensor) -> Forms:
        """The first of ``chosen``, as many as one pass takes."""
        known = self.objective.kept.get(self._key)
        if known is None:
            return self._trial(chosen)
        width, self.reason = known
        self.engine = Together.name if width > 1 else OneByOne.name
        if width == 1:
            return self._alone(chosen, self.count)
        passes = math.ceil(len(chosen) / width)
        size = math.ceil(len(chosen) / passes / self._step) * self._step
        try:
            return self._together(chosen[:size])
        except torch.OutOfMemoryError:
            self._keep(width // 2, "out of memory")
        except Exception as error:  # what could be vectorised at first can be no longer
            self._keep(1, first_line(error))
        return self._some(chosen)

    def _keep(self, width: int, reason: str) -> None:
        self.objective.kept[self._key] = (max(1, width), "" if width > 1 else reason)

    def _trial(self, chosen: Tensor) -> Forms:
        """A few one by one and then together, compared and timed; what was found of those that may be trusted."""
        few = chosen[:_COMPARED]
        started = time.perf_counter()
        alone = self._alone(few, self.count)
        _ = alone.loss.cpu()
        slow = (time.perf_counter() - started) / len(few)
        try:
            width = self._fitting(few[0])
            if width < 2 * _COMPARED:
                self._keep(1, f"{width} of them fit into memory together")
                return alone
            some = chosen[: min(width, _TRIAL)]
            started = time.perf_counter()
            together = self._together(some)
            _ = together.loss.cpu()
        except Exception as error:  # batch statistics, dropout, control flow that depends on data, custom functions
            self._keep(1, first_line(error))
            return alone
        fast = (time.perf_counter() - started) / len(some)
        if not self._agree(alone, together):
            self._keep(1, "evaluated together they are not what they are one by one")
            return alone
        self._keep(width if fast < slow else 1, f"{1e3 * fast:.3g} ms each together, {1e3 * slow:.3g} ms one by one")
        self.engine = Together.name
        return together

    def _agree(self, alone: Forms, together: Forms) -> bool:
        """To rounding, each number in units of what it is at most."""
        k, allowed = len(alone.loss), _ROUNDINGS * self.objective.space.rounding
        scales = (alone.loss.abs(), alone.square, alone.along.abs(), alone.size, alone.size, alone.size.max())
        pairs = zip(alone, together, scales, strict=True)
        return all(bool(((x - y[:k]).abs() <= allowed * scale).all()) for x, y, scale in pairs)

    def _fitting(self, samples: Tensor) -> int:
        """How many at a time the memory allows: each is taken to need twice the graph of its gradient.

        Raises:
            DoubleBackwardError: if it has no graph.
        """
        space = self.objective.space
        graph = Retained(part(self.objective, samples, self._wanted.lengths, {})).graphs.bytes_of_one()
        each = 2 * graph + _VECTORS * space.size * space.dtype.itemsize
        allowed = default_memory(space.device) if self.memory is None else self.memory
        return max(1, min(_MOST, allowed // each) // self._step * self._step)


def _positions(samples: int, size: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` draws of ``size`` distinct positions, (count, size), ascending in each.

    Of small mini-batches those drawn with replacement are left out where a position comes twice, which is rare: the
    others are as if drawn without, and a permutation of all samples takes as long as there are samples.
    """
    if size * size > samples:
        orders = (torch.randperm(samples, generator=generator) for _ in range(count))
        return torch.stack([order[:size] for order in orders]).sort(dim=1).values
    found = torch.empty(0, size, dtype=torch.long)
    while len(found) < count:
        some = torch.randint(samples, (count - len(found), size), generator=generator).sort(dim=1).values
        twice = (some[:, 1:] == some[:, :-1]).any(dim=1)
        found = torch.cat((found, some[~twice]))
    return found
