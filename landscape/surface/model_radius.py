r"""How far from the centre of a slice the loss follows its quadratic model; the definition is `quadratic_model`'s."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .displaced import Displaced
from .radius_search import largest_radius
from .results import Axis

__all__ = ["model_radius"]

_FURTHER = 2  # random directions within the slice, each both ways
_ALLOWED = 4.0  # standard deviations of rounding that are no error of the model
_FAR = 1e3  # times the parameters: what holds so far holds everywhere


def model_radius(
    around: Displaced,
    axes: Sequence[Axis],
    slopes: Tensor,
    curvatures: Tensor,
    *,
    error: float,
    rounding: float,
    start: float,
    generator: torch.Generator,
) -> tuple[float, str]:
    """The radius, and what is to be known of it; mostly empty.

    Args:
        around: the loss.
        axes: k of them.
        slopes: (k,) float64.
        curvatures: (k, k) float64.
        error: the share of the model's own terms that it may be off by.
        rounding: standard deviation of the rounding error of the loss.
        start: the first radius to look at.
        generator: of the random directions.
    """
    span = _Span(around, axes, slopes, curvatures, error, rounding)
    farthest = _FAR * max(around.length, *(axis.norm for axis in axes))
    return largest_radius(span.ratio(_rays(span.gram, generator)), start, farthest), span.note


class _Span:
    """The loss and its model within the span of the axes."""

    def __init__(
        self, around: Displaced, axes: Sequence[Axis], slopes: Tensor, curvatures: Tensor, error: float, rounding: float
    ) -> None:
        self.around, self.slopes, self.C, self.error, self.rounding = around, slopes, curvatures, error, rounding
        self.vectors = torch.stack([axis.vector for axis in axes])
        D = self.vectors.double()
        self.gram = (D @ D.T).cpu()
        self.size = _absolute(curvatures, self.gram)
        self._left: Tensor | None = None  # coordinates at which the model was left, the last time

    def ratio(self, rays: Tensor) -> Callable[[float], float]:
        """Of a radius: the model's error on the rays (R, k), relative to what is allowed."""
        worst_first = list(rays)

        def at(r: float) -> float:
            largest = 0.0
            for i, ray in enumerate(worst_first):
                largest = max(largest, self._at(r * ray))
                if not largest <= 1:
                    worst_first.insert(0, worst_first.pop(i))  # at other radii it is likely to be this one
                    self._left = r * ray
                    break
            return largest

        return at

    @property
    def note(self) -> str:
        """Says so where the model was left as soon as that could be told from rounding."""
        if self._left is None or self._allowed(self._left) > _ALLOWED * self.rounding:
            return ""
        return "the loss leaves the model as soon as that can be told from rounding: the radius is at most as given"

    def _at(self, c: Tensor) -> float:
        loss, center = self.around.loss(c.to(self.vectors) @ self.vectors), self.around.center
        rounding = _ALLOWED * self.rounding * max(1.0, abs(loss / center) if center else 1.0)
        off = abs(loss - center - float(self.slopes @ c + c @ self.C @ c / 2)) - rounding
        if not math.isfinite(off):
            return math.inf
        allowed = self._allowed(c)
        return 0.0 if off <= 0 else off / allowed if allowed > 0 else math.inf

    def _allowed(self, c: Tensor) -> float:
        return self.error * float((self.slopes @ c).abs() + c @ self.size @ c / 2)


def _absolute(C: Tensor, gram: Tensor) -> Tensor:
    """C with its eigenvalues' absolute values, eigenvectors at right angles as parameters and not as coordinates."""
    L = torch.linalg.cholesky(gram)
    inner = torch.linalg.solve_triangular(L, torch.linalg.solve_triangular(L, C, upper=False).T, upper=False)
    values, vectors = torch.linalg.eigh(inner)
    W = L @ vectors
    return (W * values.abs()) @ W.T


def _rays(gram: Tensor, generator: torch.Generator) -> Tensor:
    """Coordinates (R, k) of displacements of length 1: both ways along the axes and along random directions."""
    k = len(gram)
    rays = torch.diag(gram.diagonal().rsqrt())
    if k > 1:
        z = torch.randn(_FURTHER, k, generator=generator, device=generator.device).cpu().double()
        z = z / z.norm(dim=1, keepdim=True)
        further = torch.linalg.solve_triangular(torch.linalg.cholesky(gram).T, z.T, upper=True).T
        rays = torch.cat([rays, further])
    return torch.cat([rays, -rays])
