"""The points ``origin + sum_i c_i axis_i``, written into tensors that the model can stand on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..complex_parts import as_real, like
from ..objective import Objective
from ..space import ParameterSpace
from .axes import check_axis
from .points import Point, parameters_at
from .results import Axis

__all__ = ["Span", "span_of"]


@dataclass(frozen=True, eq=False)
class Span:
    """An origin and axes, as one tensor per parameter.

    Attributes:
        space: the parameters' space.
        origin: one tensor per parameter; the live data itself where the origin is where the model is.
        axes: the same for each of the k axes, in the space's dtype; of complex ones the real and imaginary parts.
        live: whether the origin is where the model is.
    """

    space: ParameterSpace
    origin: tuple[Tensor, ...]
    axes: tuple[tuple[Tensor, ...], ...]
    live: bool

    def write(self, coordinates: Sequence[float], into: Sequence[Tensor]) -> None:
        """Write the point with these k coordinates into tensors like the parameters."""
        moved = [(float(c), axis) for c, axis in zip(coordinates, self.axes, strict=True) if c]
        if not self._mixed:
            torch._foreach_copy_(list(into), list(self.origin))
            for c, axis in moved:
                torch._foreach_add_(list(into), list(axis), alpha=c)
            return
        for i, (target, start) in enumerate(zip(into, self.origin, strict=True)):  # in the space's own precision
            value = as_real(start).to(self.space.dtype, copy=True)
            for c, axis in moved:
                value.add_(axis[i], alpha=c)
            as_real(target).copy_(value)

    def stacked(self, coordinates: Tensor) -> list[Tensor]:
        """The points with coordinates (G, k), one tensor (G, ...) per parameter."""
        found = []
        C = coordinates.to(self.space.device, self.space.dtype)
        for i, start in enumerate(self.origin):
            flat = as_real(start).reshape(1, -1).to(self.space.dtype)
            D = torch.stack([axis[i].reshape(-1) for axis in self.axes])
            points = torch.addmm(flat, C, D).view(len(C), *self.space.shapes[i])
            found.append(like(points, start.dtype))
        return found

    @property
    def _mixed(self) -> bool:
        return any(t.dtype != self.space.dtype for t in self.origin)


def span_of(objective: Objective, origin: Point, axes: Sequence[Axis]) -> Span:
    """The span of axes (k of them, each (n,)) from an origin.

    Raises:
        ParameterError: if an axis has another size.
        NonFiniteError: if one is NaN or infinite somewhere.
    """
    space = objective.space
    start = [p.detach() for p in objective.parameters.values()]
    if origin is not None:
        pieces = space.unflatten(parameters_at(objective, origin, "the origin"))
        start = [piece.to(p.dtype) for piece, p in zip(pieces, start, strict=True)]
    vectors = []
    for axis in axes:
        check_axis(objective, axis)
        vector = axis.vector.detach().to(space.device, space.dtype)
        vectors.append(tuple(p.view(s) for p, s in zip(vector.split(space.numels), space.shapes, strict=True)))
    return Span(space, tuple(start), tuple(vectors), origin is None)
