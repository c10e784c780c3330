"""Curves between two points of parameter space: straight, bent by one control point, or broken at it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SettingError

__all__ = ["Curve"]

KINDS = ("linear", "bezier", "chain")
_PIECES = 1000  # that a bent curve's length is added up from


@dataclass(frozen=True, eq=False)
class Curve:
    r"""A path :math:`\theta(t) = \sum_j b_j(t) p_j`, t from 0 to 1, from its first point to its last.

    ``"linear"``: (1 - t) p0 + t p1. ``"bezier"``: (1 - t)^2 p0 + 2 t (1 - t) p1 + t^2 p2. ``"chain"``: straight from p0
    to p1, reached at t = 1/2, and on to p2. (Garipov et al. 2018, "Loss surfaces, mode connectivity, and fast
    ensembling of DNNs", arXiv 1802.10026, equations 3 and 4.)

    Attributes:
        kind: one of these names.
        points: two or three vectors (n,): the ends, and between them the control point, if there is one.
    """

    kind: str
    points: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        """Refuse a kind that is none."""
        if self.kind not in KINDS:
            raise SettingError(f"kind must be one of {', '.join(map(repr, KINDS))}; got {self.kind!r}")

    def weights(self, t: float) -> tuple[float, ...]:
        """The share b_j(t) of each point; they add up to 1."""
        if self.kind == "linear":
            return 1 - t, t
        if self.kind == "bezier":
            return (1 - t) ** 2, 2 * t * (1 - t), t**2
        return max(0.0, 1 - 2 * t), 1 - abs(1 - 2 * t), max(0.0, 2 * t - 1)

    def at(self, t: float) -> Tensor:
        """The point (n,) of the curve at t; at 0 and 1 the ends themselves, to the bit."""
        if t in (0, 1):
            return self.points[0 if t == 0 else -1]
        first, *others = zip(self.weights(t), self.points, strict=True)
        point = first[0] * first[1]
        for weight, other in others:
            point.add_(other, alpha=weight)
        return point

    @property
    def control(self) -> Tensor | None:
        """The point in the middle, (n,), which the curve bends towards; None where there is none."""
        return None if self.kind == "linear" else self.points[1]

    def with_control(self, control: Tensor) -> Curve:
        """The same curve bent towards another point."""
        return Curve(self.kind, (self.points[0], control, self.points[-1]))

    @property
    def length(self) -> float:
        """Euclidean length."""
        pairs = zip(self.points, self.points[1:], strict=False)
        steps = torch.stack([(b.double() - a.double()) for a, b in pairs])
        gram = (steps @ steps.T).cpu()
        if self.kind != "bezier":
            return float(gram.diagonal().sqrt().sum())
        # theta(t) = p0 + (2t - t^2) (p1 - p0) + t^2 (p2 - p1): its length is that of as many small steps.
        t = torch.linspace(0, 1, _PIECES + 1, dtype=torch.float64)
        small = torch.stack([2 * t - t**2, t**2]).diff(dim=1)
        return float(torch.einsum("ik,ij,jk->k", small, gram, small).clamp(min=0).sqrt().sum())
