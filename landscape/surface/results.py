"""What slices, planes and paths return: losses over coordinates, with what was checked about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..html_table import Shown

__all__ = ["Axis", "Line", "LossPath", "Plane", "QuadraticModel", "Refined"]


@dataclass(frozen=True, eq=False)
class Axis(Shown):
    """A direction through parameter space that a slice is drawn along.

    Attributes:
        vector: (n,) on the parameters' device; one unit of the coordinate moves the parameters by it.
        name: what it is, for labels: ``"random, by filters"``, ``"gradient"``, ``"eigenvector 1"``.
        note: what is to be known of it, e.g. where it is zero since the weights are; mostly empty.
    """

    vector: Tensor
    name: str = "direction"
    note: str = ""

    @property
    def norm(self) -> float:
        """Euclidean length of one unit of the coordinate."""
        return float(torch.linalg.vector_norm(self.vector.double()))

    def __repr__(self) -> str:
        """Name, size and length."""
        return f"Axis({self.name!r}, {len(self.vector)} parameters, norm {self.norm:.4g})"


@dataclass(frozen=True, eq=False)
class QuadraticModel(Shown):
    r"""The loss to second order at the centre of a slice, and how far it can be believed.

    .. math:: q(x) = L + \sum_i s_i x_i + \tfrac12 \sum_{ij} C_{ij} x_i x_j, \quad s_i = g'd_i,\ C_{ij} = d_i'Hd_j

    Attributes:
        value: the loss L at the centre.
        slopes: (k,) float64 ``g'd_i``, loss per unit of the coordinate.
        curvatures: (k, k) float64 ``d_i'Hd_j`` from Hessian-vector products. Where statistics are recomputed at each
            point, these and the slopes are differences of the loss.
        second_differences: (k,) float64 ``(L(h d) - 2 L(0) + L(-h d)) / h^2`` from the loss alone: the check.
        steps: (k,) float64 the h of each, in units of the coordinate.
        radius: Euclidean length of a displacement h within the slice up to which the loss is off the model by at most
            ``error`` of the model's own terms, ``|L(h) - q(h)| <= error (|g'h| + h'|C|h / 2)``, in the directions that
            were sampled (`quadratic_model`). Infinite where it holds throughout; 0 where nowhere.
        error: the share that ``radius`` and ``smoothness`` are for.
        matvecs: Hessian-vector products spent.
        note: what is to be known, e.g. that differences disagree with products; mostly empty.
        difference_errors: (k,) float64 estimated size of the error of each second difference, from rounding and
            truncation.
        smoothness: gradient-normalised smoothness along the axes: Euclidean length up to which the gradient changes as
            the model says, to within ``error`` of the gradient's length (`gradient_normalised_smoothness`). Near a
            minimum it vanishes with the gradient, where ``radius`` does not.
    """

    value: float
    slopes: Tensor
    curvatures: Tensor
    second_differences: Tensor
    steps: Tensor
    radius: float
    error: float
    matvecs: int
    note: str = ""
    difference_errors: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    smoothness: float = math.nan

    def __repr__(self) -> str:
        """Loss, slopes, curvatures both ways, how far it holds."""
        columns = self.slopes, self.curvatures.diagonal(), self.second_differences
        slopes, bends, seen = (", ".join(f"{v:.4g}" for v in column.tolist()) for column in columns)
        return (
            f"QuadraticModel(loss {self.value:.4g}, slopes {slopes}, curvatures {bends} (by differences {seen}), "
            f"to {100 * self.error:.3g} % within {self.radius:.4g}{'; ' + self.note if self.note else ''})"
        )

    def at(self, *coordinates: Tensor) -> Tensor:
        """The model's loss at coordinates (one tensor per axis, of one shape)."""
        X = torch.stack([x.double() for x in coordinates])
        bent = torch.einsum("i...,ij,j...->...", X, self.curvatures, X)
        return self.value + torch.einsum("i,i...->...", self.slopes, X) + bent / 2


@dataclass(frozen=True, eq=False)
class Line(Shown):
    """Loss and metrics along one axis.

    Attributes:
        x: (G,) float64 ascending coordinates; 0 is the centre and among them. Not evenly spaced once refined.
        values: (G,) float64 per name, ``"loss"`` first; NaN or infinite where the model says so.
        center: the loss at 0 by the plain forward pass, to the bit `Objective.value()`.
        axis: what one unit of x is.
        model: the quadratic model at the centre, or None if it was not asked for.
        points: coordinates of what the line was drawn through, by name.
        statistics: how normalisation layers took their statistics: "kept", "recomputed" or "frozen".
        engine: what evaluated most of the points, "one by one" or "batched", and in brackets why.
        evaluations: points evaluated (each a pass over the data); those that a file held already do not count.
        seconds: wall time of the evaluation.
        note: what is to be known of them; mostly empty.
    """

    x: Tensor
    values: Mapping[str, Tensor]
    center: float
    axis: Axis
    model: QuadraticModel | None = None
    points: Mapping[str, float] = field(default_factory=dict)
    statistics: str = "kept"
    engine: str = "one by one"
    evaluations: int = 0
    seconds: float = 0.0
    note: str = ""

    @property
    def loss(self) -> Tensor:
        """(G,) the loss."""
        return self.values["loss"]

    def __repr__(self) -> str:
        """Where, what, how."""
        return (
            f"Line({len(self.x)} points in [{float(self.x[0]):.3g}, {float(self.x[-1]):.3g}] along {self.axis.name}, "
            f"{', '.join(self.values)}; loss {self.center:.4g} at the centre; {self.engine}, {self.seconds:.2g} s)"
        )


@dataclass(frozen=True, eq=False)
class Refined(Shown):
    """Further points of a plane, where its loss is steep; they lie on no grid.

    Attributes:
        x: (M,) float64 coordinates along the first axis.
        y: (M,) float64 along the second.
        values: (M,) float64 per name, as those of the grid.
    """

    x: Tensor
    y: Tensor
    values: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Plane(Shown):
    """Loss and metrics over two axes.

    Attributes:
        x: (Gx,) float64 ascending coordinates along the first axis; 0 is among them.
        y: (Gy,) float64 along the second; 0 is among them.
        values: (Gy, Gx) float64 per name, ``"loss"`` first; NaN or infinite where the model says so, and NaN where
            nothing was evaluated.
        center: the loss at (0, 0) by the plain forward pass, to the bit `Objective.value()`.
        axes: what one unit of x and of y is. Not at right angles unless they were made so; see `gram`.
        model: the quadratic model at the centre, or None if it was not asked for.
        refined: further points where the loss is steep, or None.
        points: (x, y) of what the plane was drawn through, by name.
        trajectory: (T, 2) float64 coordinates of recorded weights, projected into the plane, or None.
        explained: share of the trajectory's variance that each axis explains, (2,), or None.
        statistics: how normalisation layers took their statistics: "kept", "recomputed" or "frozen".
        engine: what evaluated most of the points, "one by one" or "batched", and in brackets why.
        evaluations: points evaluated (each a pass over the data); those that a file held already do not count.
        seconds: wall time of the evaluation.
        note: what is to be known of them; mostly empty.
    """

    x: Tensor
    y: Tensor
    values: Mapping[str, Tensor]
    center: float
    axes: tuple[Axis, Axis]
    model: QuadraticModel | None = None
    refined: Refined | None = None
    points: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    trajectory: Tensor | None = None
    explained: Tensor | None = None
    statistics: str = "kept"
    engine: str = "one by one"
    evaluations: int = 0
    seconds: float = 0.0
    note: str = ""

    @property
    def loss(self) -> Tensor:
        """(Gy, Gx) the loss."""
        return self.values["loss"]

    @property
    def gram(self) -> Tensor:
        """(2, 2) float64 inner products of the axes: the Euclidean length of (x, y) is ``sqrt(c' gram c)``."""
        D = torch.stack([axis.vector.double().cpu() for axis in self.axes])
        return D @ D.T

    def __repr__(self) -> str:
        """Where, what, how."""
        return (
            f"Plane({len(self.x)} x {len(self.y)} points over {self.axes[0].name} and {self.axes[1].name}, "
            f"{', '.join(self.values)}; loss {self.center:.4g} at the centre; {self.engine}, {self.seconds:.2g} s)"
        )


@dataclass(frozen=True, eq=False)
class LossPath(Shown):
    r"""Loss and metrics along a path between two points, and the barrier between them.

    .. math:: \max_t \; [\, L(\theta(t)) - ((1 - t) L(\theta(0)) + t L(\theta(1))) \,]

    Attributes:
        t: (G,) float64 ascending, from 0 to 1.
        values: (G,) float64 per name, ``"loss"`` first.
        kind: ``"linear"``, ``"bezier"`` or ``"chain"``.
        barrier: the formula above over these t: 0 where the path nowhere rises above the line between its ends'
            losses, NaN or infinite where the loss is.
        barriers: the same of each of ``values``; of a metric that is better when larger (accuracy), of its negative.
        above_worse_end: the largest loss between the ends less that of the worse end; negative where none is above.
        position: the t of the barrier.
        length: Euclidean length of the path.
        control: (n,) the control point of a Bezier curve or a chain, or None.
        history: (E,) training losses of the curve, by epoch, or None.
        statistics: how normalisation layers took their statistics: "kept", "recomputed" or "frozen".
        ends: names of the two points.
        seconds: wall time, training included.
        note: what is to be known of it; mostly empty.
    """

    t: Tensor
    values: Mapping[str, Tensor]
    kind: str
    barrier: float
    barriers: Mapping[str, float]
    above_worse_end: float
    position: float
    length: float
    control: Tensor | None = None
    history: Tensor | None = None
    statistics: str = "recomputed"
    ends: tuple[str, str] = ("first", "second")
    seconds: float = 0.0
    note: str = ""

    @property
    def loss(self) -> Tensor:
        """(G,) the loss."""
        return self.values["loss"]

    def __repr__(self) -> str:
        """Kind, barrier and where it is."""
        return (
            f"LossPath({self.kind}, {len(self.t)} points, barrier {self.barrier:.4g} at t = {self.position:.3g}, "
            f"length {self.length:.4g}, ends at {float(self.loss[0]):.4g} and {float(self.loss[-1]):.4g})"
        )
