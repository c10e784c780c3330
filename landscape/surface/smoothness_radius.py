r"""How far the gradient changes as its linear model says: gradient-normalised smoothness.

.. math:: \gamma = \max\{\gamma \ge 0 : \|\nabla L(\theta + h) - \nabla L(\theta) - H h\| \, \gamma
          \le \varepsilon \, \|\nabla L(\theta)\| \, \|h\| \text{ for all } \|h\| \le \gamma\}

The definition of arXiv 2506.13710, with :math:`\varepsilon = 1`, where H may be any approximation of the Hessian: up to
:math:`\gamma` the error of the linear model is at most the share :math:`\varepsilon` of the gradient itself. Near a
minimum the gradient vanishes, and with it :math:`\gamma`, however good the model is: that radius says how far a step
can be trusted, not how far the loss is a parabola, which is what `QuadraticModel.radius` says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NonFiniteError, SettingError
from ..hessian import Hessian
from ..html_table import Shown
from ..objective import Objective
from ..operators import SymmetricOperator
from .axes import checked_axes, unit
from .checks import check_positive
from .displaced import Displaced
from .radius_search import largest_radius
from .results import Axis

__all__ = ["Smoothness", "gradient_normalised_smoothness"]

_FAR = 1e3  # times the parameters: what holds so far holds everywhere


@dataclass(frozen=True, eq=False)
class Smoothness(Shown):
    """Gradient-normalised smoothness, along directions.

    Attributes:
        radius: the least of ``radii``. Directions that were not tried may have a smaller one: it is an upper bound of
            the radius over all of them.
        radii: (D,) float64 Euclidean lengths, for each direction both ways, from below to 5 %; infinite where the
            model holds as far as 1000 times the length of the parameters.
        names: of the directions.
        error: the share of the gradient that the model may be off by.
        gradient_norm: Euclidean length of the gradient.
        matvecs: products with the curvature spent.
        gradients: gradients evaluated.
        note: what is to be known of it; mostly empty.
    """

    radius: float
    radii: Tensor
    names: tuple[str, ...]
    error: float
    gradient_norm: float
    matvecs: int
    gradients: int
    note: str = ""

    def __repr__(self) -> str:
        """The radius, and along which direction."""
        least = self.names[int(self.radii.argmin())]
        note = f"; {self.note}" if self.note else ""
        return f"Smoothness(radius {self.radius:.4g} along {least}, {len(self.names)} directions{note})"


def gradient_normalised_smoothness(
    objective: Objective,
    directions: Axis | Tensor | Sequence[Axis | Tensor],
    *,
    curvature: SymmetricOperator | None = None,
    error: float = 1.0,
    start: float | None = None,
) -> Smoothness:
    r"""The radius within which the gradient's linear model is off by at most a share of the gradient.

    Radii are tried along each direction, both ways, and bisected. Of the changes of gradients, what rounding explains
    is not counted as error.

    Args:
        objective: the loss.
        directions: one or several, of any length: the gradient, a Newton step, top eigenvectors, the axes of a plane.
            Each an `Axis` or a vector (n,).
        curvature: H, an operator over the objective's parameters: the Hessian by default, `GaussNewton` or
            `EmpiricalFisher` to see how far a step with those can be trusted.
        error: the share; 1 in the definition.
        start: the first radius to try; by default a small step, the cube root of what rounding is.

    Returns:
        The radii; 0 where the gradient is zero within rounding.

    Raises:
        NonFiniteError: if the loss, the gradient or a product is NaN or infinite at the centre.
        SettingError: if ``error`` is not positive, or a direction is zero.
        ParameterError: if a direction has another size than the parameters.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective
        >>> from losscope.landscape.surface import gradient_direction, gradient_normalised_smoothness
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> _ = model.weight.data.fill_(1.0)
        >>> cubic = Objective(model, [torch.ones(1, 1).double()], loss_fn=lambda m, x: m(x).pow(3).sum())
        >>> found = gradient_normalised_smoothness(cubic, gradient_direction(cubic))
        >>> 0.95 < found.radius <= 1.0  # 3 h^2 = |gradient| = 3 at h = 1
        True
    """
    check_positive("error", error, "share of the gradient")
    if start is not None:
        check_positive("start", start, "radius")
    axes = checked_each(objective, directions)
    A = Hessian(objective) if curvature is None else curvature
    U = torch.stack([unit(axis.vector) for axis in axes]).T
    with objective.isolated(), A.held():
        A.plan(U.shape[1], U.shape[1])
        products = A @ U
        if not bool(torch.isfinite(products).all()):
            raise NonFiniteError("a product with the curvature is NaN or infinite: there is no linear model")
        around = Displaced(objective)
        g = around.gradient(torch.zeros_like(around.theta))
        if not bool(torch.isfinite(g).all()):
            raise NonFiniteError("the gradient is NaN or infinite where the parameters are: there is no linear model")
        rounding = max(A.space.rounding, objective.space.rounding)
        eps = torch.finfo(objective.space.dtype).eps
        first = start if start is not None else eps ** (1 / 3) * around.length
        remainders = [_Remainder(around, g, u, p, rounding) for u, p in zip(U.T, products.T, strict=True)]
        radii = []
        for remainder in remainders:
            radii.append(remainder.radius(error, first))
            first = radii[-1] if 0 < radii[-1] < math.inf else first
    norm = remainders[0].gradient_norm
    note = "the gradient is zero within rounding, and so is its smoothness radius" if max(radii) == 0 else A.note
    return Smoothness(
        min(radii), torch.tensor(radii, dtype=torch.float64), tuple(a.name for a in axes), float(error), norm,
        U.shape[1], around.gradients, note,
    )  # fmt: skip


def checked_each(objective: Objective, directions: Axis | Tensor | Sequence[Axis | Tensor]) -> list[Axis]:
    """As Axes, each checked by itself: they may be parallel."""
    given = [directions] if isinstance(directions, Axis | Tensor) else list(directions)
    if not given:
        raise SettingError("give at least one direction")
    named = [d if isinstance(d, Axis) else Axis(d, f"direction {i}") for i, d in enumerate(given, start=1)]
    return [checked_axes(objective, [axis])[0] for axis in named]


class _Remainder:
    """What the linear model of the gradient leaves, along one unit direction."""

    def __init__(self, around: Displaced, gradient: Tensor, u: Tensor, product: Tensor, rounding: float) -> None:
        self.around, self.g, self.u, self.product, self.rounding = around, gradient, u, product, rounding
        self.gradient_norm, self.product_norm = _norm(gradient), _norm(product)
        self._slopes: dict[float, float] = {}  # |remainder| / |h| by |h|

    def radius(self, error: float, start: float) -> float:
        """The largest radius; 0 where the gradient is no larger than what rounding of the parameters makes of it."""
        if self.gradient_norm <= self.rounding * self.product_norm * self.around.length:
            return 0.0
        scale = error * self.gradient_norm

        def ratio(r: float) -> float:
            for h in (r, -r):
                self._slopes.setdefault(h, self._slope(h))
            worst = max(slope for h, slope in self._slopes.items() if abs(h) <= r)
            return worst * r / scale

        return largest_radius(ratio, start, _FAR * self.around.length)

    def _slope(self, h: float) -> float:
        change = self.around.gradient(h * self.u)
        size = _norm(change - self.g - h * self.product)
        explained = self.rounding * (self.gradient_norm + _norm(change) + abs(h) * self.product_norm)
        slope = max(size - explained, 0.0) / abs(h)
        return slope if math.isfinite(slope) else math.inf


def _norm(v: Tensor) -> float:
    return float(torch.linalg.vector_norm(v, dtype=torch.float64))
