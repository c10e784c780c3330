"""Products with the Jacobian of the outputs, on graphs that are built once per data batch and kept.

``J' u`` is a backward pass. It is linear in u, so that ``J v`` is the gradient of ``<J' u, v>`` with respect to
u, whatever u is (Townsend 2017, "A new trick for calculating Jacobian vector products"). Neither needs another
forward pass, and any model that can be differentiated twice will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ..batches import describe, map_tensors
from ..errors import LossError
from ..loss import Loss
from ..objective import Objective
from ..space import contiguous_rows
from .graphs import BatchGraphs
from .once import refuse_once_differentiable, second_order_errors

__all__ = ["Evaluated", "OutputGraph", "OutputGraphs", "OutputMetric", "ThroughOutputs", "stand_in"]


class Evaluated:
    """The outputs of one batch, just computed.

    Attributes:
        objective: whose outputs.
        loss: the objective's loss.
        index: which batch.
        share: its factor in the objective.
        batch: its content.
        weights: (n,), the factors of its samples; None if they are not weighted.
        outputs: what the model returned.
        tensors: the floating tensors in it that have a gradient; views of their own, which no other graph holds.
    """

    def __init__(self, objective: Objective, index: int, share: float, batch: Any) -> None:
        self.objective, self.index, self.share = objective, index, share
        self.loss: Loss = objective.loss
        self.weights = self.loss.weights_of(batch)
        self.batch = batch
        self.tensors: list[Tensor] = []
        self.outputs = map_tensors(self.loss.outputs(objective.model, batch), self._seen)
        if not self.tensors:
            raise LossError(
                f"the model's outputs hold no floating-point tensor with a gradient ({describe(self.outputs)}); let "
                "forward= return a tensor, or a tuple, list or mapping of tensors, that depends on the selected "
                "parameters"
            )

    def _seen(self, tensor: Tensor) -> Tensor:
        if not tensor.requires_grad:
            return tensor
        if tensor.is_complex():
            raise LossError("the model's outputs are complex; let forward= return torch.view_as_real of them")
        self.tensors.append(tensor.view_as(tensor))
        return self.tensors[-1]

    @property
    def targets(self) -> Any:
        """The batch's targets."""
        return self.loss.targets_of(self.batch)

    def outputs_with(self, tensors: Sequence[Tensor]) -> Any:
        """The outputs with others in place of `tensors`."""
        known = {id(old): new for old, new in zip(self.tensors, tensors, strict=True)}
        return map_tensors(self.outputs, lambda t: known.get(id(t), t))

    def value(self, outputs: Any) -> Tensor:
        """The batch's part of the objective as a function of the outputs, a scalar."""
        return self.share * self.loss.value(outputs, self.targets, self.weights)


class OutputMetric:
    """A symmetric map of the outputs of one batch, between ``J`` and ``J'``.

    Attributes:
        used: which of the evaluated tensors it acts on; it is zero on the others.
        psd: whether it is known to be positive semi-definite.
        bytes: what it keeps besides graphs.
    """

    used: list[int]
    psd: bool = False
    bytes: int = 0

    def __call__(self, tangents: list[Tensor], pieces: list[Tensor]) -> tuple[list[Tensor], list[Tensor] | None]:
        """The map of ``J v``, which it may write on.

        Args:
            tangents: ``J v``, one tensor for each that is used.
            pieces: ``v``, one tensor per parameter, for what depends on the parameters directly.

        Returns:
            One tensor for each that is used, and one per parameter or None.
        """
        raise NotImplementedError


class OutputGraph:
    """``J v`` and ``J' w`` for some outputs of one batch.

    Neither the outputs nor ``J' u`` are kept, only their graphs, so that no memory of their size is.

    Args:
        objective: whose parameters.
        tensors: the outputs.

    Attributes:
        size: number of entries of all outputs.

    Raises:
        LossError: if they depend on none of the parameters.
    """

    def __init__(self, objective: Objective, tensors: list[Tensor]) -> None:
        self._space = objective.space
        self._parameters = list(objective.parameters.values())
        self._edges = [get_gradient_edge(t) for t in tensors]
        self._like = [(t.shape, t.dtype) for t in tensors]
        self.size = sum(t.numel() for t in tensors)
        self._stand_ins = [stand_in(t) for t in tensors]
        self._pulled: list[tuple[int, Any]] = []
        if not tensors:
            return
        pulled = torch.autograd.grad(
            self._edges, self._parameters, self._stand_ins, create_graph=True, allow_unused=True
        )
        self._pulled = [(i, get_gradient_edge(g)) for i, g in enumerate(pulled) if g is not None and g.requires_grad]
        if not self._pulled:
            raise LossError(
                f"the model's outputs do not depend on any of the {len(self._parameters)} selected parameters "
                f"({', '.join(self._space.names[:3])}{', ...' if len(self._parameters) > 3 else ''})"
            )

    def push(self, pieces: list[Tensor]) -> list[Tensor]:
        """``J v``, one tensor per output, from one tensor per parameter."""
        if not self._edges:
            return []
        return list(
            torch.autograd.grad(
                [edge for _, edge in self._pulled],
                self._stand_ins,
                [pieces[i] for i, _ in self._pulled],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        )

    def pull(self, cotangents: list[Tensor]) -> Tensor:
        """``J' w``, (n,), from one tensor per output."""
        if not self._edges:
            return torch.zeros(self._space.size, dtype=self._space.dtype, device=self._space.device)
        found = torch.autograd.grad(
            self._edges,
            self._parameters,
            cotangents,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return self._space.flatten(found)

    def flatten(self, outputs: list[Tensor]) -> Tensor:
        """One tensor per output -> (size,), in the precision of parameter vectors."""
        return torch.cat([t.reshape(-1).to(self._space.dtype) for t in outputs])

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """(size,) -> one tensor per output."""
        pieces = vector.split([shape.numel() for shape, _ in self._like])
        return [piece.view(shape).to(dtype) for piece, (shape, dtype) in zip(pieces, self._like, strict=True)]


def stand_in(tensor: Tensor) -> Tensor:
    """A leaf of the shape of ``tensor`` that takes no memory, to differentiate by."""
    return torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape).requires_grad_()


M = TypeVar("M", bound=OutputMetric)


class OutputGraphs(BatchGraphs[tuple[OutputGraph, M]], Generic[M]):
    """The graphs of all batches' outputs, each with what lies between ``J`` and ``J'``.

    Args:
        objective: whose outputs.
        forms: ways to make a metric, the first that does not return None is taken. Each looks at outputs
            of its own, so that one which gives up leaves nothing behind for the next.
        memory: bytes that the kept graphs of several batches may take.
    """

    def __init__(
        self, objective: Objective, forms: Sequence[Callable[[Evaluated], M | None]], memory: int | None = None
    ) -> None:
        super().__init__(objective, memory)
        self._forms = list(forms)
        self._checked = False
        self._beside = 0

    def bytes_of_one(self) -> int:
        """What one batch holds on to, the metric included."""
        return super().bytes_of_one() + self._beside

    def _build(self, index: int, share: float) -> tuple[OutputGraph, M]:
        while True:
            with self.objective.evaluation(index) as batch:
                seen = Evaluated(self.objective, index, share, batch)
                if not self._checked:
                    for tensor in seen.tensors:
                        refuse_once_differentiable(tensor, self.objective, differences=False)
                metric = self._forms[0](seen)
            if metric is not None:
                break
            del seen, self._forms[0]
        self._checked = True
        self._beside = metric.bytes
        return OutputGraph(self.objective, [seen.tensors[i] for i in metric.used]), metric


class ThroughOutputs(Generic[M]):
    """The map ``V -> sum_b J_b' M_b J_b V``, (n, k) -> (n, k), with J_b the Jacobian of a batch's outputs.

    Args:
        objective: whose outputs.
        forms: how M_b is made; see `OutputGraphs`.
        memory: bytes that the kept graphs of several batches may take.
    """

    name = "jacobian"

    def __init__(
        self, objective: Objective, forms: Sequence[Callable[[Evaluated], M | None]], memory: int | None = None
    ) -> None:
        self.objective = objective
        self.graphs = OutputGraphs(objective, forms, memory)

    def first_metric(self) -> M:
        """That of this rank's first batch."""
        with self.objective.isolated(), second_order_errors(self.objective, differences=False):
            return next(iter(self.graphs))[1]

    def __call__(self, V: Tensor) -> Tensor:
        """The product with a block of vectors V (n, k).

        Raises:
            DoubleBackwardError: if the model cannot be differentiated twice.
        """
        _ = self.objective.batches  # reading them is an exchange of its own between ranks
        return self.objective.ranks.total(lambda: self._own(V))

    def _own(self, V: Tensor) -> Tensor:
        """What this rank's batches contribute."""
        space = self.objective.space
        with self.objective.isolated(), second_order_errors(self.objective, differences=False):
            rows = contiguous_rows(V)
            out = torch.zeros_like(rows)
            for graph, metric in self.graphs:
                for row, result in zip(rows, out, strict=True):
                    pieces = space.unflatten(row)
                    tangents = own(graph.push(pieces), row)
                    with torch.no_grad():
                        cotangents, direct = metric(tangents, pieces)
                    del tangents
                    result += graph.pull(cotangents)
                    if direct is not None:
                        result += space.flatten(direct)
        return out.T


def own(tensors: list[Tensor], row: Tensor) -> list[Tensor]:
    """The tensors, copied where they are views of ``row``: an output may be a parameter."""
    taken = row.untyped_storage().data_ptr()
    return [t.clone() if t.untyped_storage().data_ptr() == taken else t for t in tensors]
