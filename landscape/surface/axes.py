"""Axes that span a slice: whether they can, and at right angles where that is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import NonFiniteError, ParameterError, SettingError
from ..objective import Objective
from .results import Axis

__all__ = ["check_axis", "checked_axes", "orthogonalised", "unit"]

_PARALLEL = 1e-5  # sine of an angle: a hundred times what rounding makes of a vector in single precision


def checked_axes(objective: Objective, axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The axes in the parameters' dtype and on their device, if they can span a slice.

    Args:
        objective: says which parameters.
        axes: at least one.

    Raises:
        ParameterError: if one has another size than the parameters.
        NonFiniteError: if one is NaN or infinite somewhere.
        SettingError: if one is zero, or they are parallel (within 1e-5 of the span of the others).

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import Axis, checked_axes
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, (torch.eye(2), torch.ones(2, 1)), criterion=torch.nn.MSELoss())
        >>> d = torch.tensor([1.0, 2.0])
        >>> checked_axes(objective, [Axis(d, "one"), Axis(-2 * d, "other")])
        Traceback (most recent call last):
        losscope.landscape.errors.SettingError: one and other are parallel: they span no plane; ...
    """
    space = objective.space
    if not axes:
        raise SettingError("a slice needs at least one axis")
    for axis in axes:
        if not isinstance(axis, Axis):
            raise SettingError(f"expected an Axis, got {type(axis).__name__}: wrap a vector as Axis(vector, name)")
        check_axis(objective, axis)
        if not bool(axis.vector.any()):
            raise SettingError(f"{axis.name} is zero: it is no direction")
    moved = tuple(Axis(a.vector.detach().to(space.device, space.dtype), a.name, a.note) for a in axes)
    _refuse_parallel(moved)
    return moved


def check_axis(objective: Objective, axis: Axis) -> None:
    """Refuse what is no direction of the parameters.

    Raises:
        ParameterError: if it has another size than the parameters.
        NonFiniteError: if it is NaN or infinite somewhere.
    """
    size = objective.space.size
    if axis.vector.shape != (size,):
        raise ParameterError(f"{axis.name} has shape {tuple(axis.vector.shape)}; expected a vector ({size},)")
    if not bool(torch.isfinite(axis.vector).all()):
        raise NonFiniteError(f"{axis.name} is NaN or infinite somewhere: it is no direction")


def orthogonalised(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The axes at right angles: each less what those before it have of it, at its own length again (Gram-Schmidt).

    Two random directions of n parameters are at right angles to within 1 / sqrt(n) already. What was scaled by filters
    is so afterwards only to within that.

    Args:
        axes: of one size; the first stays as it is.

    Raises:
        SettingError: if they are parallel, or one is zero.

    Example:
        >>> import torch
        >>> from losscope.landscape.surface import Axis, orthogonalised
        >>> first, second = orthogonalised([Axis(torch.tensor([2.0, 0.0])), Axis(torch.tensor([3.0, 4.0]))])
        >>> second.vector
        tensor([0., 5.])
    """
    if any(not bool(axis.vector.any()) for axis in axes):
        raise SettingError("a direction is zero: nothing is at right angles to it")
    _refuse_parallel(axes)
    basis: list[Tensor] = []
    turned = []
    for axis in axes:
        v = unit(axis.vector.double())
        for _ in range(2):  # twice is enough (Kahan and Parlett): the second removes what rounding left
            for q in basis:
                v = v - (q @ v) * q
            v = unit(v)
        basis.append(v)
        turned.append(axis if len(basis) == 1 else Axis((v * axis.norm).to(axis.vector), axis.name, axis.note))
    return tuple(turned)


def unit(vector: Tensor) -> Tensor:
    """The vector at length 1; by its largest entry first, so that no square overflows or vanishes."""
    scaled = vector / vector.abs().max()
    return scaled / torch.linalg.vector_norm(scaled, dtype=torch.float64).to(vector.dtype)


def _refuse_parallel(axes: Sequence[Axis]) -> None:
    basis: list[Tensor] = []
    for i, axis in enumerate(axes):
        rest = unit(axis.vector.double())
        for _ in range(2):
            for q in basis:
                rest = rest - (q @ rest) * q
        if float(torch.linalg.vector_norm(rest)) < _PARALLEL:
            others = " and ".join(a.name for a in axes[:i])
            raise SettingError(
                f"{others} and {axis.name} are parallel: they span no {'plane' if len(axes) == 2 else 'slice'}; "
                "give directions that differ"
            )
        basis.append(unit(rest))
