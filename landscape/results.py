"""What estimators return: values together with what is known about their error."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Eigenpairs", "Estimate"]


@dataclass(frozen=True, eq=False)
class Estimate:
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
class Eigenpairs:
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
            to be of use, ``"lower"`` (``"upper"`` for ``"SA"``) when only the rigorous side is.
        confidence: probability with which the probabilistic side holds.
        converged: True if and only if every residual is within ``tol`` of its eigenvalue's scale.
        matvecs: operator-vector products spent.
        which: ``"LA"``, ``"SA"`` or ``"LM"``.
        tol: the relative residual that was asked for.
        kernel: name of the engine that computed the products.
        note: what is to be known of them, e.g. that the Hessian is ambiguous; mostly empty.
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
