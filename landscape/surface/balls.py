"""Balls in units of the weights' scales: their steepest points, projections and random points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SettingError

__all__ = ["NORMS", "Ball"]

NORMS = ("l2", "linf")


@dataclass(frozen=True, eq=False)
class Ball:
    """The perturbations e = T v with ``|v| <= radius``; points of it are given by v.

    Attributes:
        radius: positive.
        norm: of v, ``"l2"`` or ``"linf"``.
        scales: (n,) the diagonal of T; entries of scale zero do not move.
    """

    radius: float
    norm: str
    scales: Tensor

    def __post_init__(self) -> None:
        """Refuse a ball that is a point."""
        if not bool(self.scales.any()):
            raise SettingError('every weight is zero, and so is its scale: nothing can move; use scale="absolute"')

    def to_weights(self, v: Tensor) -> Tensor:
        """T v: a point as a perturbation of the weights, and a gradient by them as one by v."""
        return self.scales * v

    def dual(self, g: Tensor) -> float:
        """What a linear function ``g'v`` rises by per unit of the radius."""
        return float(torch.linalg.vector_norm(g.double(), ord=2 if self.norm == "l2" else 1))

    def steepest(self, g: Tensor) -> Tensor:
        """Where in the ball ``g'v`` is largest, (n,); g is not zero."""
        if self.norm == "linf":
            return self.radius * g.sign()
        largest = g.abs().max()  # so that the square of a tiny gradient does not vanish
        return self.radius * (g / largest) / torch.linalg.vector_norm((g / largest).double()).to(g.dtype)

    def project(self, v: Tensor) -> Tensor:
        """The nearest point of the ball, in the Euclidean norm of v."""
        if self.norm == "linf":
            return v.clamp(-self.radius, self.radius)
        length = float(torch.linalg.vector_norm(v.double()))
        return v * (self.radius / length) if length > self.radius else v

    def random(self, generator: torch.Generator) -> Tensor:
        """A random point of its surface, (n,): uniform for ``"l2"``, a random corner for ``"linf"``."""
        drawn = torch.randn(len(self.scales), generator=generator, device=generator.device, dtype=self.scales.dtype)
        return self.steepest(torch.where(self.scales > 0, drawn.to(self.scales.device), 0.0))
