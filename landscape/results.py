"""What estimators return: values together with what is known about their error."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from .errors import SettingError
from .html_table import Shown
from .space import VectorSpace, named

__all__ = ["DiagonalEstimate", "Eigenpairs", "Estimate", "NegativeCurvature", "Solution"]


@dataclass(frozen=True, eq=False)
class Estimate(Shown):
    """A number with its error bar.

    Attributes:
        value: the estimate, in the unit of the operator's entries (loss per parameter squared).
        stderr: standard error of ``value``.
        low: lower end of the two-sided interval at ``confidence``.
        high: upper end of that interval.
        confidence: nominal coverage of ``[low, high]``.
        matvecs: operator-vector products spent.
        method: the estimator that was used, e.g. ``"hutchinson"``.
        converged: True if and only if the requested accuracy was reached.
        kernel: name of the engine that computed the products.
        note: what is to be known of them, e.g. that the Hessian is ambiguous; mostly empty.
    """

    value: float
    stderr: float
    low: float
    high: float
    confidence: float
    matvecs: int
    method: str
    converged: bool
    kernel: str = ""
    note: str = ""

    def __repr__(self) -> str:
        """One line: value, interval, method, cost."""
        flag = "" if self.converged else ", NOT converged"
        note = f"; {self.note}" if self.note else ""
        return (
            f"Estimate({self.value:.6g} in [{self.low:.6g}, {self.high:.6g}] at {self.confidence:.0%}, "
            f"{self.method}, {self.matvecs} products{flag}{note})"
        )


@dataclass(frozen=True, eq=False)
class Eigenpairs(Shown):
    """Extremal eigenpairs of a symmetric operator, best first, with what is proved about each.

    Attributes:
        values: (k,) float64 Ritz values on the CPU: descending for ``which="LA"``, ascending for
            ``"SA"``, descending in magnitude for ``"LM"``.
        vectors: (n, k) unit Ritz vectors, on the operator's device.
        residuals: (k,) float64 ``||A u - theta u||``. *Some* eigenvalue lies within each of them.
        low: (k,) lower bounds of the i-th extremal eigenvalue. For ``"LA"`` the Ritz value itself,
            rigorous; ``-inf`` where nothing is proved.
        high: (k,) upper bounds; for the largest eigenvalue a bound that holds with probability
            ``confidence`` over the random start. ``inf`` where nothing is proved.
        bound: ``"two-sided"`` when the extremal eigenvalue is bounded on both sides closely enough
            to be of use, ``"lower"`` (``"upper"`` for ``"SA"``) when only the rigorous side is; for ``"BE"``
            ``"one-sided"`` when that is so at one end, ``"none"`` for ``"LM"``.
        confidence: probability with which the probabilistic side holds.
        converged: True if and only if every residual is within ``tol`` of its eigenvalue's scale.
        matvecs: operator-vector products spent.
        which: ``"LA"``, ``"SA"`` or ``"LM"``.
        tol: the relative residual that was asked for.
        kernel: name of the engine that computed the products.
        note: what is to be known of them, e.g. that the Hessian is ambiguous; mostly empty.
        errors: (k,) float64 estimates of each value's error: residual squared over the gap to the other Ritz values
            (Kato-Temple), the residual where no gap is seen. Not a bound: an eigenvalue may have been missed.
        guards: (n, g) Ritz vectors after these, unconverged; for the ``start`` of the next call.
        rest: interval that holds all other eigenvalues, with probability ``confidence``: no copy and no neighbour of
            these was missed outside it. Infinite where that was not looked at, as when blocks have k vectors.
    """

    values: torch.Tensor
    vectors: torch.Tensor
    residuals: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    bound: str
    confidence: float
    converged: bool
    matvecs: int
    which: str
    tol: float
    kernel: str = ""
    note: str = ""
    errors: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    guards: torch.Tensor = field(default_factory=lambda: torch.empty(0, 0))
    rest: tuple[float, float] = (-math.inf, math.inf)

    def __repr__(self) -> str:
        """One line: the values, their worst residual, cost."""
        shown = ", ".join(f"{v:.6g}" for v in self.values[:5].tolist())
        more = ", ..." if len(self.values) > 5 else ""
        flag = "" if self.converged else ", NOT converged"
        note = f"; {self.note}" if self.note else ""
        return (
            f"Eigenpairs({self.which}: [{shown}{more}], residual <= {float(self.residuals.max()):.2g}, "
            f"bound {self.bound}, {self.matvecs} products{flag}{note})"
        )


@dataclass(frozen=True, eq=False)
class NegativeCurvature(Shown):
    """A direction p along which a damped matrix, and so the matrix itself, bends downwards.

    Attributes:
        direction: (n,) p, of unit length, on the operator's device.
        curvature: ``p'Ap`` of the matrix itself, without damping: its least eigenvalue is at most
            ``curvature + error``.
        error: what products are off by, at most.
    """

    direction: torch.Tensor
    curvature: float
    error: float

    def __repr__(self) -> str:
        """What it says of the least eigenvalue."""
        return f"NegativeCurvature(least eigenvalue <= {self.curvature:.6g} + {self.error:.1g})"


@dataclass(frozen=True, eq=False)
class Solution(Shown):
    """The solution of ``(A + damping I) x = b``, for one or several b, with its residual.

    Attributes:
        x: of the shape of b: (n,) or (n, k).
        residual: () or (k,) float64 on the CPU, ``|b - (A + damping I) x|``, recomputed by a product in the end.
        relative: () or (k,), the residual in units of ``|b|``; 0 for b = 0.
        error: () or (k,), what products that are off by more than rounding (finite differences, tensor cores)
            may hide of the residual; otherwise 0.
        history: (steps + 1,) or (steps + 1, k), relative residuals as the recurrences had them, from the start's.
            The last one is repeated for right-hand sides that took fewer steps.
        iterations: () or (k,) steps taken.
        matvecs: operator-vector products spent on all.
        converged: True if and only if every ``residual + error`` is at most ``rtol |b|``.
        method: ``"cg"``, ``"minres"``, or ``"cg, minres"``.
        negative_curvature: a direction along which A + damping I is negative, if one was met.
        damping: as given.
        rtol: the relative residual that was asked for.
        kernel: name of the engine that computed the products.
        note: why it stopped short, and what is to be known of the products; mostly empty.
    """

    x: torch.Tensor
    residual: torch.Tensor
    relative: torch.Tensor
    error: torch.Tensor
    history: torch.Tensor
    iterations: torch.Tensor
    matvecs: int
    converged: bool
    method: str
    negative_curvature: NegativeCurvature | None
    damping: float
    rtol: float
    kernel: str = ""
    note: str = ""

    def __repr__(self) -> str:
        """One line: how many systems, the worst residual, method, cost."""
        several = f"{self.x.shape[1]} right-hand sides, " if self.x.ndim == 2 else ""
        flag = "" if self.converged else ", NOT converged"
        found = "" if self.negative_curvature is None else ", negative curvature"
        note = f"; {self.note}" if self.note else ""
        return (
            f"Solution({several}relative residual {float(self.relative.max()):.2g}, {self.method}, "
            f"{int(self.iterations.max())} steps, {self.matvecs} products{flag}{found}{note})"
        )


@dataclass(frozen=True, eq=False)
class DiagonalEstimate(Shown):
    """The diagonal of an operator, or its spatial averages, with an error bar for every entry.

    Attributes:
        value: (n,) the estimates, on the operator's device, in the unit of its entries.
        stderr: (n,) their standard errors.
        low: (n,) lower ends of the two-sided intervals, each at ``confidence``.
        high: (n,) upper ends.
        confidence: nominal coverage of each interval, and so the share of entries that should lie in theirs.
        matvecs: operator-vector products spent.
        method: ``"hutchinson"``, ``"xdiag"`` or ``"exact"``.
        converged: True if and only if the requested accuracy was reached.
        space: the space of the operator.
        kernel: name of the engine that computed the products.
        note: what is to be known of them, e.g. that the Hessian is ambiguous; mostly empty.
    """

    value: torch.Tensor
    stderr: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    confidence: float
    matvecs: int
    method: str
    converged: bool
    space: VectorSpace
    kernel: str = ""
    note: str = ""

    @property
    def relative_half_width(self) -> float:
        """The half-widths' root mean square over the diagonal's, which ``rtol`` is compared with.

        The diagonal's is that of the estimates less what their errors add to it.
        """
        half = float(((self.high - self.low) / 2).square().mean(dtype=torch.float64))
        square = float((self.value.square() - self.stderr.square()).mean(dtype=torch.float64))
        return 0.0 if half == 0 else math.sqrt(half / square) if square > 0 else math.inf

    def by_name(self, field: str = "value") -> dict[str, torch.Tensor]:
        """``value``, ``stderr``, ``low`` or ``high`` as one tensor per parameter, of its shape.

        Raises:
            SettingError: if it is none of these, or the operator is not over a model's parameters.
        """
        if field not in ("value", "stderr", "low", "high"):
            raise SettingError(f"field must be 'value', 'stderr', 'low' or 'high', got {field!r}")
        space = named(self.space)
        pieces = getattr(self, field).split(space.numels)
        return {name: piece.view(shape) for name, shape, piece in zip(space.names, space.shapes, pieces, strict=True)}

    def __repr__(self) -> str:
        """One line: size, range, accuracy, cost."""
        flag = "" if self.converged else ", NOT converged"
        note = f"; {self.note}" if self.note else ""
        return (
            f"DiagonalEstimate({len(self.value)} entries, {float(self.value.min()):.4g} to "
            f"{float(self.value.max()):.4g}, within {self.relative_half_width:.2g} of their root mean square at "
            f"{self.confidence:.0%}, {self.method}, {self.matvecs} products{flag}{note})"
        )
