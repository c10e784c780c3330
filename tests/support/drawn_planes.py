"""Planes over functions of two coordinates, to draw; no model behind them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from losscope.landscape.surface import Axis, Plane, QuadraticModel, Refined

Loss = Callable[[Tensor], Tensor]


def even(low: float, high: float, points: int) -> Tensor:
    return torch.linspace(low, high, points, dtype=torch.float64)


def axes(first: float = 1.0, second: float = 1.0, cosine: float = 0.0) -> tuple[Axis, Axis]:
    """Two directions among ten parameters, of these lengths and with that cosine between them."""
    u, v = torch.zeros(2, 10, dtype=torch.float64)
    u[0], v[0], v[1] = first, second * cosine, second * math.sqrt(1 - cosine**2)
    return Axis(u, "random 1, by filters"), Axis(v, "random 2, by filters")


def taylor(loss: Loss, radius: float, dimension: int = 2, error: float = 0.1) -> QuadraticModel:
    """Its exact quadratic model at the origin."""
    at = torch.zeros(dimension, dtype=torch.float64)
    slopes, C = torch.func.grad(loss)(at), torch.func.hessian(loss)(at)
    return QuadraticModel(float(loss(at)), slopes, C, C.diagonal(), torch.full_like(at, 1e-3), radius, error, 2)


def plane_of(
    loss: Loss, x: Tensor | None = None, y: Tensor | None = None, *, radius: float | None = None,
    along: tuple[Axis, Axis] | None = None, refined: int = 0, **fields: Any,
) -> Plane:  # fmt: skip
    x = even(-1, 1, 31) if x is None else x
    y = even(-1, 1, 31) if y is None else y
    Y, X = torch.meshgrid(y, x, indexing="ij")
    metrics = fields.pop("metrics", {})
    values = {"loss": loss(torch.stack([X, Y]))} | {name: f(torch.stack([X, Y])) for name, f in metrics.items()}
    more = None
    if refined:
        at = torch.rand(2, refined, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        at = at * torch.tensor([[x[-1] - x[0]], [y[-1] - y[0]]]) + torch.tensor([[x[0]], [y[0]]])
        more = Refined(at[0], at[1], {"loss": loss(at)})
    model = None if radius is None else taylor(loss, radius)
    center = float(loss(torch.zeros(2, dtype=torch.float64)))
    return Plane(x, y, values, center, along or axes(), model, more, **fields)


def bowl(c: Tensor) -> Tensor:
    x, y = c
    return 0.1 + 0.8 * x**2 + 3 * y**2 + 0.6 * x * y + 0.5 * torch.sin(3 * x) ** 2 * torch.cos(2 * y) ** 2


def rosenbrock(c: Tensor) -> Tensor:
    x, y = c[0] + 1, c[1] + 1
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2 + 1e-6


def likelihood(c: Tensor) -> Tensor:
    """Negative at its lowest, with walls."""
    return -512.3 + 3 * c[0] ** 2 + 2 * c[1] ** 2 + torch.exp(6 * (c[0].abs() + c[1].abs())) / 50


def steep(c: Tensor) -> Tensor:
    """From 1e-6 to about 1e6."""
    return 1e-6 * torch.exp(27.6 * ((c[0] ** 2 + 0.6 * c[1] ** 2 + 1e-12) / 1.6) ** 0.5)


def cliff(c: Tensor) -> Tensor:
    """NaN beyond a line, infinite in a corner."""
    x, y = c
    z = 0.3 + 2.3 * torch.log1p(3 * x**2 + y**2)
    z = torch.where(x + 0.4 * y > 0.9, torch.full_like(z, math.nan), z)
    return torch.where((x < -0.75) & (y < -0.5), torch.full_like(z, math.inf), z)
