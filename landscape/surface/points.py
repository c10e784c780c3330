"""Points of parameter space, in the forms that people have them: a model, a state dict, a vector, a file's content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from ..complex_parts import as_real
from ..errors import ParameterError, SettingError
from ..objective import Objective
from ..wrappers import wrapper_prefix

__all__ = ["Point", "buffers_at", "named_tensors", "parameters_at"]

Point: TypeAlias = "nn.Module | Mapping[str, Any] | Tensor | None"
_NESTED = ("model_state_dict", "state_dict", "model")  # where checkpoints keep the state dict


def parameters_at(objective: Objective, point: Point, name: str = "the point") -> Tensor:
    """The values that the objective's parameters have at a point, (n,), a copy.

    Args:
        objective: says which parameters, their order, dtype and device.
        point: None for where the model is now; a module of the same architecture; a state dict, or a checkpoint that
            holds one; or a vector (n,).
        name: what to call it in errors.

    Raises:
        ParameterError: if it is of another architecture; says which tensor differs, and how.
        SettingError: if it is none of these.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import parameters_at
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, (torch.eye(2), torch.ones(2, 1)), criterion=torch.nn.MSELoss())
        >>> parameters_at(objective, {"weight": torch.tensor([[3.0, 4.0]])})
        tensor([3., 4.])
    """
    space = objective.space
    if point is None:
        return _copied(objective, [p.detach() for p in objective.parameters.values()])
    if isinstance(point, Tensor):
        if point.shape != (space.size,):
            raise ParameterError(f"{name} is a tensor of shape {tuple(point.shape)}; expected a vector ({space.size},)")
        return point.detach().to(space.device, space.dtype, copy=True)
    state, prefix = _tensors(point, name), wrapper_prefix(named_tensors(objective.model))
    found = []
    for own, parameter in objective.parameters.items():
        key = own.removeprefix(prefix)
        value = state.get(key)
        if value is None:
            some = ", ".join(sorted(state)[:4])
            raise ParameterError(f"{name} has no tensor {key!r}: it is of another architecture (it has {some}, ...)")
        if value.shape != parameter.shape:
            raise ParameterError(
                f"{name} is of another architecture: {key} has shape {tuple(value.shape)}, the model's is "
                f"{tuple(parameter.shape)}"
            )
        found.append(as_real(value.detach()).to(space.device, space.dtype))
    _check_no_further(objective, state, name)
    return _copied(objective, found)


def buffers_at(objective: Objective, point: Point) -> dict[str, Tensor]:
    """The buffers (statistics of normalisation layers, and whatever else) that a point brings along, by name.

    Args:
        objective: whose model has them; those of another shape are left out.
        point: as `parameters_at` takes it; a vector, and None, bring none.

    Raises:
        SettingError: if it is no point.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import buffers_at
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.BatchNorm1d(1))
        >>> objective = Objective(model, (torch.eye(2), torch.ones(2, 1)), criterion=torch.nn.MSELoss())
        >>> list(buffers_at(objective, model.state_dict()))
        ['1.running_mean', '1.running_var', '1.num_batches_tracked']
    """
    if point is None or isinstance(point, Tensor):
        return {}
    state, prefix = _tensors(point, "the point"), wrapper_prefix(named_tensors(objective.model))
    found = {}
    for name, own in objective.model.named_buffers():
        value = state.get(name.removeprefix(prefix))
        if value is not None and value.shape == own.shape:
            found[name] = value.detach()
    return found


def _copied(objective: Objective, tensors: list[Tensor]) -> Tensor:
    """As one vector that shares no memory with them: flattening a single tensor gives a view of it."""
    flat = objective.space.flatten(tensors)
    return flat.clone() if len(tensors) == 1 else flat


def _tensors(point: Any, name: str) -> dict[str, Tensor]:
    """A state dict under the model's own names; a tied tensor under each of them."""
    if isinstance(point, nn.Module):
        return _stripped(named_tensors(point))
    if not isinstance(point, Mapping):
        raise SettingError(
            f"{name} must be a module, a state dict, a vector of parameters or None for the live model; "
            f"got {type(point).__name__}"
        )
    for key in _NESTED:
        if isinstance(point.get(key), Mapping | nn.Module):
            return _tensors(point[key], name)
    return _stripped({key: value for key, value in point.items() if isinstance(value, Tensor)})


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers as they are, by name; tied ones under each of theirs."""
    parameters = dict[str, Tensor](module.named_parameters(remove_duplicate=False))
    return parameters | dict(module.named_buffers(remove_duplicate=False))


def _stripped(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = wrapper_prefix(named)
    return {key.removeprefix(prefix): value for key, value in named.items()}


def _check_no_further(objective: Objective, state: Mapping[str, Tensor], name: str) -> None:
    """A point with more tensors than the model is of a deeper one."""
    further = sorted(set(state) - set(_stripped(named_tensors(objective.model))))
    if further:
        raise ParameterError(
            f"{name} is of another architecture: it has {len(further)} tensors that the model has not, "
            f"{', '.join(further[:3])}{', ...' if len(further) > 3 else ''}"
        )
