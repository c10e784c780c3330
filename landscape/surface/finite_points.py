"""Points whose weights can be compared: finite ones, with all that the model has there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..objective import Objective
from .points import Point, buffers_at, parameters_at

__all__ = ["finite_parameters_at", "finite_state_at", "in_double", "vector_of"]


def in_double(tensor: Tensor) -> Tensor:
    """In float64, or complex128, on the host where the device has none (mps)."""
    own = tensor.detach().cpu() if tensor.device.type == "mps" else tensor.detach()
    return own.to(torch.complex128 if own.is_complex() else torch.float64)


def finite_parameters_at(objective: Objective, point: Point, name: str) -> Tensor:
    """The values of the objective's parameters at a point, (n,), a copy.

    Raises:
        ParameterError: if it is of another architecture.
        NonFiniteError: if some are NaN or infinite; says of which tensor.
    """
    vector = parameters_at(objective, point, name)
    if not bool(vector.isfinite().all()):
        values = zip(objective.space.names, objective.space.unflatten(vector), strict=True)
        key = next(key for key, value in values if not bool(value.isfinite().all()))
        raise NonFiniteError(f"{key} of {name} has weights that are NaN or infinite; leave that one out")
    return vector


def finite_state_at(objective: Objective, point: Point, name: str) -> dict[str, Tensor]:
    """The state dict that the model has at a point; what the point does not bring is the live model's.

    Raises:
        ParameterError: if it is of another architecture.
        NonFiniteError: if some weights are NaN or infinite.
    """
    vector = finite_parameters_at(objective, point, name)
    values = dict(zip(objective.parameters, objective.space.unflatten(vector), strict=True))
    by_id = {id(parameter): values[key] for key, parameter in objective.parameters.items()}
    model, brought = objective.model, buffers_at(objective, point)
    state = {}
    for key, p in model.named_parameters(remove_duplicate=False):
        state[key] = by_id.get(id(p), p.detach())
    for key, buffer in model.named_buffers(remove_duplicate=False):
        state[key] = brought.get(key, buffer.detach()).to(buffer.device, buffer.dtype, copy=True)
    return state


def vector_of(objective: Objective, state: Mapping[str, Tensor]) -> Tensor:
    """The objective's parameters of a state as `finite_state_at` gives it, (n,)."""
    return objective.space.flatten([state[name].contiguous() for name in objective.parameters])
