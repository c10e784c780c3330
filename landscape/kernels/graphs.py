"""Autograd graphs of the data batches, kept from one product to the next where they fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ..errors import SettingError
from ..objective import Objective

__all__ = ["BatchGraphs", "default_memory"]

Graph = TypeVar("Graph")

_CPU_MEMORY = 256 << 20


def default_memory(device: torch.device) -> int:
    """Bytes a kernel may hold besides the graph of one batch: a quarter of a GPU's free memory, 256 MiB on a CPU.

    The CPU's is small because the memory is the training's, and its other processes'.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    return _CPU_MEMORY


class BatchGraphs(Generic[Graph]):
    """One graph per data batch; iterate over them inside the objective's isolation.

    The graph of a single batch is always kept. With several, all are kept where together they are within
    ``memory``; otherwise each is built anew at every pass, so that only one exists at a time. They are
    built again when a parameter has been changed, chosen or not. A write through ``.data`` leaves no mark
    on a tensor, so the chosen parameters are compared by value, once per isolation.

    Subclasses implement `_build`. What they use must not refer to whoever holds the graphs: memory that is in a
    cycle comes back only when Python looks for cycles, and until then each run takes fresh memory for its graphs.

    Args:
        objective: whose batches.
        memory: bytes that kept graphs may take; None for `default_memory`.

    Raises:
        SettingError: on the first pass, if ``memory`` is given and less than the graph of one batch takes.
    """

    def __init__(self, objective: Objective, memory: int | None = None) -> None:
        self.objective = objective
        self.memory = memory
        self._kept: dict[int, Graph] = {}
        self._count = 0  # batches of the last pass
        self._keeps: bool | None = None
        self._bytes: int | None = None
        self._marks: list[tuple[int, int]] = []
        self._values: list[Tensor] = []
        self._isolation = 0

    def _build(self, index: int, share: float) -> Graph:
        """The graph of one batch, whose factor in the objective is ``share``."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Graph]:
        """The batches' graphs in order."""
        self._drop_if_stale()
        if self._kept and len(self._kept) == self._count:
            yield from self._kept.values()
            return
        shares = self.objective.shares
        if self._keeps is None:
            self.refuse_too_little()
            self._keeps = self.keeps
        for index, share in enumerate(shares):
            graph = self._kept.get(index)
            if graph is None:
                graph = self._build(index, share)
                if self._keeps:
                    self._kept[index] = graph
            yield graph
            del graph  # before the next one is built
        self._count = len(shares)

    @property
    def keeps(self) -> bool:
        """Whether the graphs stay from one pass to the next."""
        if self._keeps is not None:
            return self._keeps
        count = len(self.objective.batches)
        return count == 1 or count * self.bytes_of_one() <= self._allowed()

    def bytes_of_one(self) -> int:
        """What the graph of the first batch holds on to, in bytes, the parameters themselves not counted.

        Measured on a graph that is built for this and thrown away: hooks on saved tensors would slow
        every product down, and reading what a node saved makes a checkpoint recompute it.
        """
        if self._bytes is None:
            _ = self.objective.batches  # reading them may evaluate the loss, which is not to be counted
            modules = (self.objective.model, *self.objective.also)
            seen = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}
            total = 0

            def count(tensor: Tensor) -> Tensor:
                nonlocal total
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in seen:
                    seen.add(storage.data_ptr())
                    total += storage.nbytes()
                return tensor.detach()  # itself it would keep its graph alive for good: a cycle through C++

            try:
                with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                    self._build(0, 1.0)
            except RuntimeError as error:
                if "saved tensor hooks" not in str(error):
                    raise
                total = self._allowed()  # a loss with torch.func inside allows no hooks: taken to need all there is
            self._bytes = total
        return self._bytes

    def refuse_too_little(self) -> None:
        """Refuse memory that was given and is less than the graph of one batch takes.

        Raises:
            SettingError: naming both.
        """
        if self.memory is not None and self.memory < self.bytes_of_one():
            raise SettingError(
                f"memory={self.memory} bytes is too little for one vector: the graph of one batch takes about "
                f"{self.bytes_of_one()}; allow more, cut the data into smaller batches, or pass "
                'kernel="finite_difference", which keeps no graph'
            )

    def _allowed(self) -> int:
        return default_memory(self.objective.space.device) if self.memory is None else self.memory

    def _drop_if_stale(self) -> None:
        if self._isolation == self.objective.isolations:
            return
        self._isolation = self.objective.isolations
        modules = (self.objective.model, *self.objective.also)
        marks = [(p.data_ptr(), p._version) for module in modules for p in module.parameters()]
        chosen = [p.detach() for p in self.objective.parameters.values()]
        if not self._values or marks != self._marks or not all(map(torch.equal, chosen, self._values)):
            self._kept.clear()
            self._marks, self._values = marks, [p.clone() for p in chosen]
