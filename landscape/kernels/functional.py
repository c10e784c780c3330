"""The loss as a function of parameter values, for `torch.func` and for other precisions than the model's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import KernelError
from ..functional_call import FunctionalModule
from ..objective import Objective

__all__ = ["FunctionalLoss", "traceable"]


class FunctionalLoss:
    """``loss(values, batch)``, with ``values`` in place of the chosen parameters.

    The other parameters and the buffers are those of the model and of the modules that the loss uses.
    Call it inside the objective's isolation.

    Args:
        objective: whose loss.
    """

    def __init__(self, objective: Objective) -> None:
        self.module = _Evaluated(objective)
        self._call = FunctionalModule(self.module)
        self._live = objective.parameters
        chosen = {id(p) for p in objective.parameters.values()}
        self.names = [name for name, p in self.module.named_parameters() if id(p) in chosen]

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
            others = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        return self._call({**others, **dict(zip(self.names, values, strict=True))}, (batch, then))

    def refuse_captured(self, loss: Tensor) -> None:
        """Refuse a loss, computed by this function, that still depends on the live parameters.

        It holds on to them (weight decay over a list made beforehand), so that values cannot be put in their place.

        Raises:
            KernelError: if it does.
        """
        if not loss.requires_grad:
            return
        found = torch.autograd.grad(loss, list(self._live.values()), retain_graph=True, allow_unused=True)
        captured = [name for name, g in zip(self._live, found, strict=True) if g is not None]
        if captured:
            raise KernelError(
                f"the loss holds on to the parameter {captured[0]} itself, in a list or a closure; let it read the "
                'parameters from the model that it is given, or pass kernel="retained"'
            )

    def others(self) -> dict[str, Tensor]:
        """The tensors besides the chosen parameters, by name."""
        tensors = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        return {name: t.detach() for name, t in tensors.items() if name not in self.names}


class _Evaluated(nn.Module):
    """The loss of a batch as a module."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.modules_used = nn.ModuleList((objective.model, *objective.also))
        self.evaluated = (objective.model, objective.loss)  # a tuple, so that the model is registered once

    def forward(self, batch: Any, then: Callable[[Tensor], Any]) -> Any:
        model, loss = self.evaluated
        return then(loss(model, batch))


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """Keep transformer layers off the fused path that they take where no parameter requires gradients."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
