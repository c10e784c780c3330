"""Operations that can be differentiated once only: found, and named."""

from __future__ import annotations

from torch import OutOfMemoryError, Tensor
from torch.autograd.function import once_differentiable

from ..errors import DoubleBackwardError

__all__ = ["refuse_once_differentiable", "second_order_errors"]

_NO_SECOND_ORDER = ("derivative for", "double backward", "not implemented", "not differentiable", "checkpoint")

_ONCE = once_differentiable(lambda ctx: None).__code__


def refuse_once_differentiable(loss: Tensor) -> None:
    """Refuse custom functions that say they can be differentiated once only.

    Torch's own error for them hangs on a branch of the graph that leads to no parameter, so that
    ``torch.autograd.grad`` does not visit it and returns a second derivative that lacks their part.

    Raises:
        DoubleBackwardError: if the graph of ``loss`` has one.
    """
    pending, seen = [loss.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        function = getattr(node, "_forward_cls", None)
        backward = getattr(function, "backward", None)
        if function is not None and getattr(backward, "__code__", None) is _ONCE:
            raise DoubleBackwardError(
                f"torch cannot differentiate twice through {function.__qualname__}: its backward is marked "
                '@once_differentiable; put plain operations in its place, or pass kernel="finite_difference", which '
                "needs first derivatives only"
            )
        pending += [parent for parent, _ in node.next_functions]


class second_order_errors:
    """Turn torch's many ways of saying "no double backward" into one error that says what to do."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not isinstance(error, RuntimeError) or isinstance(error, OutOfMemoryError | DoubleBackwardError):
            return
        if any(phrase in str(error).lower() for phrase in _NO_SECOND_ORDER):
            raise DoubleBackwardError(
                "the model or the loss has an operation that torch cannot differentiate twice "
                f"({str(error).splitlines()[0]}). Attention through torch's own functions, compiled modules and cuDNN "
                "RNNs are handled; use non-reentrant checkpointing (use_reentrant=False), plain operations in "
                'place of custom kernels, or kernel="finite_difference", which needs first derivatives only'
            ) from error
