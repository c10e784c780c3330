"""The loss as a function of parameter values, for `torch.func` and for other precisions than the model's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import KernelError
from ..functional_call import TensorPlaces
from ..objective import Objective
from .once import nodes_behind

__all__ = ["FunctionalLoss", "traceable"]


class FunctionalLoss:
    """``loss(values, batch)``, with ``values`` in place of the chosen parameters.

    The other parameters and the buffers are those of the model and of the modules that the loss uses.
    Call it inside the objective's isolation.

    Args:
        objective: whose loss.
    """

    def __init__(self, objective: Objective) -> None:
        self._model, self._loss, self._live = objective.model, objective.loss, objective.parameters
        modules = (objective.model, *objective.also)
        self._places = TensorPlaces({f"{i}.": module for i, module in enumerate(modules)})
        self._names = [self._places.names.get(id(p), "") for p in objective.parameters.values()]

    def __call__(
        self,
        values: list[Tensor],
        batch: Any,
        others: Mapping[str, Tensor] | None = None,
        then: Callable[[Tensor], Any] = lambda loss: loss,
    ) -> Any:
        """What ``then`` makes of the loss of a batch; by default the loss.

        Args:
            values: one tensor per chosen parameter.
            batch: the batch's content.
            others: tensors in place of other parameters and of buffers, by name; by default clones of the
                buffers, which functional transforms let the forward pass write on.
            then: called while the values are in place, as a backward pass through a checkpoint needs them.
        """
        if others is None:
            others = {name: buffer.clone() for name, buffer in self._places.now("_buffers").items()}
        if "" in self._names:
            name = list(self._live)[self._names.index("")]
            raise KernelError(f"no module holds the parameter {name} itself, so that values cannot be put in its place")
        return self._places.call({**others, **dict(zip(self._names, values, strict=True))}, self._then, batch, then)

    def refuse_captured(self, loss: Tensor, nodes: Collection[Any] = ()) -> None:
        """Refuse a loss, computed by this function, that still depends on the live parameters.

        It holds on to them (weight decay over a list made beforehand), so that values cannot be put in their place.

        Args:
            loss: see above.
            nodes: those behind it (`once.nodes_behind`), where they are known.

        Raises:
            KernelError: if it does.
        """
        live = list(self._live.values())
        leaves = {id(getattr(node, "variable", None)) for node in nodes or nodes_behind([loss])}
        if leaves.isdisjoint(map(id, live)):
            return
        found = torch.autograd.grad(loss, live, retain_graph=True, allow_unused=True)
        captured = [name for name, g in zip(self._live, found, strict=True) if g is not None]
        if captured:
            raise KernelError(
                f"the loss holds on to the parameter {captured[0]} itself, in a list or a closure; let it read the "
                'parameters from the model that it is given, or pass kernel="retained"'
            )

    def others(self) -> dict[str, Tensor]:
        """The tensors besides the chosen parameters, by name."""
        tensors = {**self._places.now("_parameters"), **self._places.now("_buffers")}
        chosen = set(self._names)
        return {name: t.detach() for name, t in tensors.items() if name not in chosen}

    def _then(self, batch: Any, then: Callable[[Tensor], Any]) -> Any:
        return then(self._loss(self._model, batch))


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """Keep transformer layers off the fused path that they take where no parameter requires gradients."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
