"""A loss evaluated in float64, whatever its model is held in, for what rounding in single precision would drown.

Parameters, buffers, constant tensors of modules and the batches are exchanged for float64 copies, by reference, and
put back. The model itself is not copied, so that whatever it consists of computes as it does in training.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .batches import Batch, map_tensors
from .complex_parts import real_dtype
from .errors import first_line
from .isolation import replaced
from .objective import Objective
from .reach import MODULE_INTERNALS, all_modules
from .space import ParameterSpace

__all__ = ["double_where_it_can", "in_double"]

_CLOSE = 1e-2  # relative: what the loss in float64 may differ by from that in the model's own precision


@contextlib.contextmanager
def in_double(objective: Objective) -> Iterator[Objective]:
    """Inside, the model computes in float64; gives the objective to evaluate it by, of the same data.

    It takes memory for the parameters, buffers and data in float64. What the model or the loss casts down by
    themselves stays cast down, and what they make in float32 may not fit the rest.

    Args:
        objective: in its isolation or not.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.in_double import in_double
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, (torch.eye(2), torch.ones(2, 1)), criterion=torch.nn.MSELoss())
        >>> with in_double(objective) as precise:
        ...     precise.gradient().dtype
        torch.float64
        >>> model.weight.dtype
        torch.float32
    """
    modules = all_modules([objective.model, *objective.also])
    with objective.isolated():
        batches = [Batch(map_tensors(batch.content, _doubled), batch.weight) for batch in objective.batches]
        with _exchanged(modules):
            precise = copy.copy(objective)
            precise.space = ParameterSpace(objective.parameters)
            precise._fixed = precise._batches = tuple(batches)
            precise.kept = {}
            yield precise


@contextlib.contextmanager
def double_where_it_can(objective: Objective) -> Iterator[tuple[Objective, str]]:
    """`in_double` where the loss can be evaluated so, and is the same; else the objective as it is, and why.

    Not where an operation fails, where something is cast down on the way (moves of the weights below the coarser
    precision would not be seen), or where the loss differs by more than 1 %.
    """
    with contextlib.ExitStack() as stack:
        chosen, refused = objective, ""
        if any(real_dtype(dtype) != torch.float64 for dtype in objective.space.dtypes):
            try:
                with contextlib.ExitStack() as trial:
                    own = objective.value()
                    precise = trial.enter_context(in_double(objective))
                    refused = _refused(precise, own)
                    if not refused:
                        stack.enter_context(trial.pop_all())
                        chosen = precise
            except Exception as error:  # torch's own kinds are many
                refused = first_line(error)
        yield chosen, refused


def _refused(precise: Objective, own: float) -> str:
    """Why the loss in float64 is not to be used; empty where it may be."""
    with _Casts() as casts:
        value = precise.value()
    if casts.seen:
        return casts.seen
    if math.isclose(value, own, rel_tol=_CLOSE) or not math.isfinite(own):
        return ""
    return f"the loss is {value:.6g} in float64 and {own:.6g} in the model's own precision"


class _Casts(TorchDispatchMode):
    """Sees whether something in float64 is cast down; ``seen`` says what, and is empty where nothing is."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not self.seen and any(t.dtype == torch.float64 for t in _floating((args, kwargs))):
            coarse = [t.dtype for t in _floating(found) if t.dtype != torch.float64]
            if coarse:
                self.seen = f"{func} casts to {str(coarse[0]).removeprefix('torch.')}"
        return found


def _floating(content: Any) -> list[Tensor]:
    return [t for t in tree_leaves(content) if isinstance(t, Tensor) and t.is_floating_point()]


@contextlib.contextmanager
def _exchanged(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside an isolation, the modules' tensors in float64.

    A generator that an interrupt has dropped is closed some time later, and must not write then: the isolation has put
    all back.
    """
    parameters = {id(p): p for module in modules for p in module._parameters.values() if p is not None}
    values = [(p, p.data) for p in parameters.values()]
    states = [(module, dict(module.__dict__)) for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    known: dict[int, Any] = {}
    try:
        for p, value in values:
            p.data = _doubled(value)
        for module, state in states:
            for name, content in state.items():
                if name == "_buffers" or name not in MODULE_INTERNALS:
                    module.__dict__[name] = replaced(content, known, _doubled)
        yield
    except GeneratorExit:
        values, states = [], []
        raise
    finally:
        for module, state in states:
            module.__dict__.update(state)
        for p, value in values:
            p.data = value


def _doubled(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor
