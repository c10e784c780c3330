"""Made-up results at one point of the landscape, for tests of what people look at; nothing is trained or measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from drawn_planes import even, taylor
from losscope.landscape import Collapse, Eigenpairs, Estimate, neural_collapse
from losscope.landscape.class_structure import ClassStructure
from losscope.landscape.surface import (
    AverageSharpness,
    Axis,
    Line,
    LossPath,
    Neighbourhood,
    QuadraticModel,
    SamSharpness,
    ScaledCurvature,
    WeightSketch,
    WeightTrajectory,
    weight_trajectory,
)

NAN, INF = math.nan, math.inf


def line_of(
    loss: Callable[[Tensor], Tensor], x: Tensor | None = None, name: str = "gradient", **fields: Any
) -> Line:  # fmt: skip
    """The loss along a direction of length 0.37."""
    x = even(-1.5, 1.5, 41) if x is None else x
    axis = Axis(torch.tensor([0.37], dtype=torch.float64), name)
    metrics = fields.pop("metrics", {})
    values = {"loss": loss(x)} | {key: of(x) for key, of in metrics.items()}
    return Line(x, values, float(loss(torch.zeros((), dtype=torch.float64))), axis, **fields)


def valley(x: Tensor) -> Tensor:
    return 0.2 + 1.4 * x**2 + 0.25 * torch.sin(5 * x) ** 2 + 0.3 * x


def walls(x: Tensor) -> Tensor:
    """NaN on one side, infinite on the other."""
    y = valley(x)
    y = torch.where(x > 1.1, torch.full_like(y, NAN), y)
    return torch.where(x < -1.3, torch.full_like(y, INF), y)


def valley_model(radius: float = 0.2) -> QuadraticModel:
    """Of `valley`, along the axis of `line_of`."""
    return taylor(lambda c: valley(c[0]), radius, dimension=1)


def path_of(
    loss: Callable[[Tensor], Tensor], t: Tensor | None = None, kind: str = "linear", **metrics: Any
) -> LossPath:
    """The loss from one solution to another."""
    t = even(0, 1, 25) if t is None else t
    values = {"loss": loss(t)} | {key: of(t) for key, of in metrics.items()}
    barriers = {}
    for name, y in values.items():
        above = (y - ((1 - t) * y[0] + t * y[-1])) * (1 if name == "loss" else -1)
        finite = above[above.isfinite()]
        barriers[name] = float(finite.max()) if len(finite) else NAN
    y = values["loss"]
    position = float(t[int(y.nan_to_num(nan=-INF, posinf=-INF, neginf=-INF).argmax())])
    return LossPath(t, values, kind, barriers["loss"], barriers, 0.0, position, 3.0, ends=("seed 0", "seed 1"))


def estimate(value: float, half: float) -> Estimate:
    return Estimate(value, half / 2, value - half, value + half, 0.95, 20, "made up", True)


def average(rises: list[float], radii: list[float], rounding: float = 1e-7, floor: float = 1e-3) -> AverageSharpness:
    """Rises with intervals of a tenth, and of what rounding leaves."""
    lost = Estimate(NAN, INF, -INF, INF, 0.95, 0, "", False)
    made = tuple(estimate(rise, 0.1 * abs(rise) + rounding) if math.isfinite(rise) else lost for rise in rises)
    traces = tuple(estimate(2 * rise / radius**2, 1.0) for rise, radius in zip(rises, radii, strict=True))
    s, samples = torch.tensor(radii, dtype=torch.float64), torch.zeros(len(radii), 64, dtype=torch.float64)
    return AverageSharpness(s, made, traces, rounding, floor, 0.3, "absolute", 400, 64, samples)


def ball(radius: float, value: float, second_order: float) -> SamSharpness:
    return SamSharpness(
        radius, value, value, second_order, 0.2, 0.3, "l2", "absolute", 5, 0, None, None, 1, 0.0, value, value, 0.95, 6
    )  # fmt: skip


def neighbourhood_of(radii: list[float], rises: list[float], worst: list[float], trace: float = 30.0) -> Neighbourhood:
    """Around a point with this trace and a largest eigenvalue of a tenth of it."""
    lengths = [20 * radius for radius in radii]
    balls = tuple(
        ball(length, value, 0.2 * length + trace / 20 * length**2) for length, value in zip(lengths, worst, strict=True)
    )
    top = pairs_of([trace / 10])
    return Neighbourhood(average(rises, radii), balls, ScaledCurvature("absolute", top, estimate(trace, 2.0), ()))


def rising(radii: list[float]) -> Neighbourhood:
    """Quadratic at small radii, below round-off at the least, and more than that at large ones."""
    rises = [15 * s**2 * (1 + 8 * s) if s > 1e-4 else 2e-7 for s in radii]
    worst = [(0.2 * 20 * s + 1.5 * (20 * s) ** 2) * (1 - 0.4 * min(s, 0.5)) for s in radii]
    return neighbourhood_of(radii, rises, worst)


def pairs_of(values: list[float]) -> Eigenpairs:
    v = torch.tensor(values, dtype=torch.float64)
    nothing = torch.zeros_like(v)
    return Eigenpairs(v, torch.zeros(4, len(v)), nothing, v, v, "two-sided", 0.95, True, 9, "LA", 1e-2)


def classes_of(count: int, factor: float = 1.0) -> ClassStructure:
    """Classes on a circle, with their pairs beside them."""
    angle = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
    centres = factor * torch.stack([angle.cos() * (1 + 0.2 * angle.cos()), angle.sin()], dim=1)
    towards = centres[None] - centres[:, None]
    pair_means = centres[:, None] + 0.25 * towards
    pair_means[torch.arange(count), torch.arange(count)] = NAN
    masses = torch.exp(-towards.norm(dim=2) / max(abs(factor), 1e-300))
    masses = 0.1 * masses / masses.sum()
    rank = torch.arange(count * (count - 1), dtype=torch.float64)
    pair = abs(factor) * 8 * torch.exp(-0.35 * rank)
    part = cast(Any, None)
    traces = {"class": estimate(14.0, 0.0), "cross": estimate(6.0, 0.0), "within": estimate(9.0, 0.8)}
    return ClassStructure(
        part, part, part, part, masses, pair, 0.8 * pair[:count], 0.15 * pair, pair_means, centres, traces
    )  # fmt: skip


def layers() -> dict[str, Collapse]:
    """Features that are more collapsed from layer to layer."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(80) % 4
    means, noise = torch.eye(4, 8, dtype=torch.float64)[y], torch.randn(80, 8, generator=generator, dtype=torch.float64)
    sizes = {"conv1": 1.5, "conv2": 0.9, "conv3": 0.3, "penultimate": 0.05}
    return {
        name: neural_collapse(means + s * noise, y, weight=torch.eye(4, 8).double() if name == "penultimate" else None)
        for name, s in sizes.items()
    }


def walk(count: int = 30, dimension: int | None = None) -> WeightTrajectory:
    """A spiral with noise among 200 parameters, known whole or by its sketch."""
    u = torch.linspace(0, 1, count, dtype=torch.float64)
    points = 0.02 * torch.randn(count, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points[:, 0] += 4 * u
    points[:, 1] += torch.exp(-2 * u) * torch.cos(6 * u)
    points[:, 2] += torch.exp(-2 * u) * torch.sin(6 * u)
    steps = range(0, 50 * count, 50)
    if dimension is None:
        return weight_trajectory(points, steps=steps)
    sketch = WeightSketch(200, dimension)
    return weight_trajectory(torch.stack([sketch(p) for p in points]), sketch=sketch, steps=steps)
