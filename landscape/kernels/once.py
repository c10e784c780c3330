"""Operations that can be differentiated once only: found, and named with the layer they are in."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from torch import OutOfMemoryError, Tensor, nn
from torch.autograd.function import once_differentiable

from ..batches import tensors_of
from ..errors import DoubleBackwardError, LosscopeError
from ..objective import Objective

__all__ = ["is_second_order", "nodes_behind", "refuse_once_differentiable", "second_order_errors"]

_NO_SECOND_ORDER = ("derivative for", "double backward", "not implemented", "not differentiable", "checkpoint")

_ONCE = once_differentiable(lambda ctx: None).__code__

_ADVICE = "put plain operations in its place"
_HESSIAN_ADVICE = (
    f'{_ADVICE}, or pass kernel="finite_difference", which needs first derivatives only (kernel="auto" takes it by '
    "itself)"
)


def refuse_once_differentiable(
    loss: Tensor, objective: Objective | None = None, *, differences: bool = True, nodes: Collection[Any] = ()
) -> None:
    """Refuse custom functions that say they can be differentiated once only.

    Torch's own error for them hangs on a branch of the graph that leads to no parameter, so that
    ``torch.autograd.grad`` does not visit it and returns a second derivative that lacks their part.

    Args:
        loss: whose graph is searched.
        objective: where to look for the layer, to name it.
        differences: whether finite differences are to be advised.
        nodes: those behind the loss (`nodes_behind`), where they are known.

    Raises:
        DoubleBackwardError: if the graph of ``loss`` has one.
    """
    for node in nodes or nodes_behind([loss]):
        function = getattr(node, "_forward_cls", None)
        backward = getattr(function, "backward", None)
        if function is not None and getattr(backward, "__code__", None) is _ONCE:
            raise DoubleBackwardError(
                f"torch cannot differentiate twice through {function.__qualname__}{_in_layer(objective, node.name())}: "
                f"its backward is marked @once_differentiable; {_HESSIAN_ADVICE if differences else _ADVICE}"
            )


def is_second_order(error: BaseException | None) -> bool:
    """Whether an error of torch's says that there is no double backward."""
    if not isinstance(error, RuntimeError) or isinstance(error, OutOfMemoryError | LosscopeError):
        return False
    message = str(error).lower()
    return "batching rule" not in message and any(phrase in message for phrase in _NO_SECOND_ORDER)


class second_order_errors:
    """Turn torch's many ways of saying "no double backward" into one error that says where, and what to do."""

    def __init__(self, objective: Objective, *, differences: bool = True) -> None:
        self.objective, self.advice = objective, _HESSIAN_ADVICE if differences else _ADVICE

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if is_second_order(error):
            message = str(error)
            named = re.search(r"derivative for '?(?:aten::)?(\w+)", message)
            operation = "checkpoint" if "checkpoint" in message.lower() else named[1] if named else ""
            raise DoubleBackwardError(
                f"the model or the loss has an operation that torch cannot differentiate twice"
                f"{_in_layer(self.objective, operation) if operation else ''} ({message.splitlines()[0]}). Attention "
                "through torch's own functions, torch's activation checkpoints, compiled modules and cuDNN RNNs are "
                f"handled; for others, {self.advice}"
            ) from error


def nodes_behind(outputs: list[Tensor], known: Any = ()) -> Iterator[Any]:
    """The nodes of the graph behind some tensors, but not those known already, nor what is behind them."""
    pending, seen = [t.grad_fn for t in outputs], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen or node in known:
            continue
        seen.add(node)
        yield node
        pending += [parent for parent, _ in node.next_functions]


def _in_layer(objective: Objective | None, operation: str) -> str:
    """Return ", in layer NAME (KIND)" for the layer whose forward pass made a node of this name; else nothing."""
    if objective is None:
        return ""
    makers: dict[Any, str] = {}

    def claim(name: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, inputs: Any, outputs: Any) -> Any:
            # Inner layers end before the layers they are in, so that each node goes to the innermost.
            label = f"{name} ({type(module).__name__})" if name else type(module).__name__
            known = {*makers, *(t.grad_fn for t in tensors_of(inputs))}  # what came before is not this layer's
            makers.update((node, label) for node in list(nodes_behind(tensors_of(outputs), known)))
            return outputs  # a hook that returns nothing is taken for a watcher, and hidden

        return hook

    try:
        with objective.isolated():
            handles = [m.register_forward_hook(claim(name, m)) for name, m in objective.model.named_modules()]
            try:
                loss = objective.batch_loss(0)
            finally:
                for handle in handles:
                    handle.remove()
            makers.update((node, "the loss") for node in list(nodes_behind([loss], makers)))
    except Exception:
        return ""  # this is an error already
    for node, label in makers.items():
        if _plain(operation) in _plain(node.name()):
            return ", in the loss" if label == "the loss" else f", in layer {label}"
    return ""


def _plain(name: str) -> str:
    return re.sub(r"backward\d*$", "", name.lower().replace("_", ""))
