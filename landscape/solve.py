"""Linear systems with a damped curvature operator: Newton, Gauss-Newton and natural-gradient steps, influence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .conjugate_gradients import ConjugateGradients
from .damped_system import DampedSystem, Iteration
from .errors import SettingError
from .minres import Minres
from .operators import Observed, as_operator
from .results import Solution
from .space import VectorSpace

__all__ = ["solve"]

METHODS: dict[str, type[Iteration]] = {"cg": ConjugateGradients, "minres": Minres}

_MARGIN = 0.9  # of the tolerance is aimed at, since recurrences drift from the true residual
_MEMORY = 1 << 30  # bytes for Lanczos vectors, and for all others: more right-hand sides go one group at a time
_VECTORS = 12  # that an iteration keeps for each right-hand side, besides
_MOST = 5000  # steps for each right-hand side where nothing is said
_USUAL = 40  # steps that a run is taken to need where nothing is said


def solve(
    A: Any,
    b: Tensor,
    *,
    damping: float,
    start: Tensor | None = None,
    rtol: float = 1e-5,
    max_matvecs: int | None = None,
    method: str = "auto",
    preconditioner: Tensor | Mapping[str, Tensor] | Sequence[Tensor] | None = None,
    memory: int | None = None,
) -> Solution:
    r"""Solve ``(A + damping I) x = b`` for one or several b, until ``|b - (A + damping I) x| <= rtol |b|``.

    By conjugate gradients where the matrix is positive definite, by MINRES where it may not be. Several
    right-hand sides are solved at once, each in a Krylov space of its own, by one product with a block at a step.

    **Residuals are true.** Recurrences drift from the residual of the x that they make. So where one
    says that it is within tolerance, the residual is computed anew by a product, and replaces it: the iteration
    starts again from there, with the correction as the unknown, until the true residual is within tolerance or
    half of it is not to be gained, which is where rounding is reached.

    **Negative curvature.** Conjugate directions and MINRES residuals show that the matrix is not positive semi-definite
    on the Krylov space as soon as it is not (Liu and Roosta 2022). The result then has the direction; the solution
    is a saddle point of the quadratic model and not its minimum. Conjugate gradients stop there: with
    ``method="auto"`` MINRES goes on from where they are, with ``"cg"`` the result is that iterate.

    Args:
        A: an operator of ours, a dense symmetric matrix (n, n), or anything with ``shape`` and ``@``.
        b: (n,), or (n, k) for k right-hand sides, in the operator's dtype and on its device.
        damping: added to A's diagonal, at least 0, in the unit of its entries.
        start: of the shape of b: where to start, e.g. the solution of the system before; zero by default.
        rtol: relative residual to reach. What the dtype can reach at all is about
            ``eps ||A + damping I|| |x| / |b|``, and the result says so where that is more.
        max_matvecs: most products to spend, on all right-hand sides. Default: 10 n for each, or 5000 if that is less.
        method: ``"cg"``, ``"minres"``, or ``"auto"``: the first for an operator with ``psd`` and ``damping > 0``.
        preconditioner: a positive diagonal D like that of A + damping I, as in `Preconditioned`: a tensor (n,), a
            mapping from the parameters' names, or a list.
        memory: bytes for the Lanczos vectors, to which new ones are kept orthogonal; by default 1 GiB. Without it (0),
            rounding makes systems of large condition take two to six times the products.

    Raises:
        SettingError: if an argument means nothing, ``rtol`` is below what the dtype can reach, or A is seen not to be
            symmetric.
        NonFiniteError: if a product is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import solve
        >>> A = torch.diag(torch.tensor([1.0, 3.0]))
        >>> solve(A, torch.tensor([2.0, 8.0]), damping=1.0).x
        tensor([1., 2.])
    """
    operator = Observed(as_operator(A))
    space = operator.space
    damping = _checked_damping(damping)
    _check_vectors("b", b, space)
    k = b.shape[1] if b.ndim == 2 else 1
    if start is not None:
        _check_vectors("start", start, space, b.shape)
    least = k * (2 if start is None else 3) + 1
    _check(operator, rtol, method, max_matvecs, least, memory)
    budget = max(least, k * min(10 * space.size, _MOST) if max_matvecs is None else max_matvecs)
    system = DampedSystem(operator, damping, preconditioner, budget, _MEMORY if memory is None else memory)
    at_once = max(1, _MEMORY // (_VECTORS * space.size * torch.finfo(space.dtype).bits // 8))
    with operator.held():
        operator.plan(budget if max_matvecs is not None else min(budget, k * _USUAL), min(k, at_once))
        solver = _Solver(system, b, start, rtol, method)
        for first in range(0, k, at_once):
            solver.solve(np.arange(first, min(first + at_once, k)))
        return solver.result()


def _checked_damping(damping: Any) -> float:
    try:
        number = float(damping)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise SettingError(
            f"damping must be a finite number >= 0, got {damping!r}; for A - sigma I write A.shifted(-sigma), damping=0"
        )
    return number


def _check_vectors(name: str, given: Any, space: VectorSpace, shape: torch.Size | None = None) -> None:
    n = space.size
    if not isinstance(given, Tensor):
        raise SettingError(f"{name} must be a tensor of shape ({n},) or ({n}, k), got {type(given).__name__}")
    if shape is None and (given.ndim not in (1, 2) or given.shape[0] != n or given.numel() == 0):
        raise SettingError(f"{name} must have shape ({n},) or ({n}, k), got {tuple(given.shape)}")
    if shape is not None and given.shape != shape:
        raise SettingError(f"{name} must have the shape of b, {tuple(shape)}, got {tuple(given.shape)}")
    if given.dtype != space.dtype or given.device != space.device:
        raise SettingError(
            f"{name} must be like the operator, {space.dtype} on {space.device}; got {given.dtype} on {given.device}"
        )
    if not bool(torch.isfinite(given).all()):
        raise SettingError(f"{name} must be finite, and has a NaN or infinite entry")


def _check(
    operator: Observed, rtol: float, method: str, max_matvecs: int | None, least: int, memory: int | None
) -> None:
    if method != "auto" and method not in METHODS:
        raise SettingError(f'method must be "auto", "cg" or "minres", got {method!r}')
    floor = operator.space.rounding
    if not floor <= rtol < 1:
        raise SettingError(
            f"rtol must be in [{floor:.1e}, 1): products ({operator.space.dtype}, kernel {operator.kernel!r}) are "
            f"known to that much of the largest, and residuals no better; got {rtol!r}"
        )
    if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int) or memory < 0):
        raise SettingError(f"memory must be a whole number of bytes, at least 0, got {memory!r}")
    if max_matvecs is not None and max_matvecs < least:
        raise SettingError(
            f"max_matvecs must be at least {least}: for each right-hand side a step and a look at the residual (at the "
            f"start's too), and one for negative curvature; got {max_matvecs!r}"
        )


class _Solver:
    """Cycles of an iteration and a true residual, for all right-hand sides; vectors are rows.

    Every b is divided by a power of two near its length, so that squares neither overflow nor vanish.

    Args:
        system: the system.
        b: (n,) or (n, k).
        start: of its shape, or None.
        rtol: relative residual to reach.
        method: ``"cg"``, ``"minres"`` or ``"auto"``.
    """

    def __init__(self, system: DampedSystem, b: Tensor, start: Tensor | None, rtol: float, method: str) -> None:
        self.system, self.rtol, self.shape = system, rtol, b.shape
        rows = (b if b.ndim == 2 else b[:, None]).detach().T
        sizes = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).to("cpu").numpy()
        self.units = np.exp2(np.floor(np.log2(sizes, out=np.zeros_like(sizes), where=sizes > 0)))
        self.sizes = sizes / self.units
        self.B = (rows / self._factors(self.units)).contiguous()
        self.X = torch.zeros_like(self.B)
        if start is not None:
            self.X += start.detach().reshape(rows.T.shape).T / self._factors(self.units)
            self.X[torch.from_numpy(sizes == 0).to(self.X.device)] = 0.0
        self.warm = start is not None
        psd = system.operator.psd and system.damping > 0
        self.method = ("cg" if psd else "minres") if method == "auto" else method
        self.switches = method == "auto"
        self.used: list[str] = []
        self.residuals, self.errors = self.sizes.copy(), np.zeros_like(sizes)
        self.history: list[list[float]] = [[] for _ in sizes]
        self.reasons: list[str] = []

    def solve(self, columns: np.ndarray) -> None:
        """Solve some of the systems, given by their positions."""
        columns = columns[self.sizes[columns] > 0]
        if not columns.size:
            return
        R = self.B[columns]
        if self.warm:
            R = self._look(columns)
        for column in columns:
            self.history[column].append(self.residuals[column] / self.sizes[column])
        missed = self._missed(columns)
        columns, R, first = columns[missed], R[self._mask(missed)], True
        while columns.size and not self._says(
            "the products ran out", not self.system.room(2 * columns.size + self._spare())
        ):
            columns, R = self._cycle(columns, R, first)
            first = False

    def _cycle(self, columns: np.ndarray, R: Tensor, first: bool) -> tuple[np.ndarray, Tensor]:
        """Iterate from the residuals R, look at what became of them, and see which are worth another cycle."""
        by_cg, X, residuals = self.method == "cg", self.X[columns], self.residuals[columns]
        stuck, cut = self._iterate(columns, R)
        R = self._look(columns)
        gained = self.residuals[columns] <= residuals / 2
        worse = self.residuals[columns] >= residuals
        if worse.any() and not (first and by_cg):  # by rounding; of CG cut short, residuals may well be longer
            self.X[columns[worse]], self.residuals[columns[worse]] = X[self._mask(worse)], residuals[worse]
        missed = self._missed(columns)
        hopeless = self.errors[columns] >= _MARGIN * self.rtol * self.sizes[columns]
        bent = missed & stuck & by_cg
        going = missed & ~hopeless & ~cut & np.where(bent, self.switches, gained)
        self._says("the products ran out", (missed & cut).any())
        self._says("conjugate gradients met a direction along which the matrix does not bend upwards", bent.any())
        if bent.any() and self.switches:
            self.method = "minres"
        self._says(
            "the matrix is singular but for rounding, and b not in its range: no x has a much smaller residual",
            (missed & stuck & ~bent & ~going).any(),
        )
        self._says(
            f"rounding is reached, products being known to {self.system.space.rounding:.1e} of the largest",
            (missed & ~stuck & ~cut & ~going).any(),
        )
        return columns[going], R[self._mask(going)]

    def _missed(self, columns: np.ndarray) -> np.ndarray:
        return self.residuals[columns] + self.errors[columns] > self.rtol * self.sizes[columns]

    def _iterate(self, columns: np.ndarray, R: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Run the method until the recurrences are within tolerance, or the products run out.

        Returns:
            Which of the systems it could not take further, and which it had no products left for.
        """
        if self.method not in self.used:
            self.used.append(self.method)
        iteration = METHODS[self.method](self.system, self.system.inward(R))
        goals = _MARGIN * self.rtol * self.sizes - self.errors
        self.system.reserved = columns.size
        running, stuck = columns, np.zeros(columns.size, dtype=bool)
        while running.size and self.system.room(running.size + self._spare()):
            norms, halted = iteration.step()
            for column, norm in zip(running, norms, strict=True):
                self.history[column].append(norm / self.sizes[column])
            stuck[np.isin(columns, running[halted])] = True
            over = halted | (norms <= goals[running])
            if over.any():
                self._take(iteration, running, over)
                iteration.keep(~over)
                running = running[~over]
        self._take(iteration, running, np.ones(running.size, dtype=bool))
        self.system.reserved = 0
        return stuck, np.isin(columns, running)

    def _spare(self) -> int:
        """A product to make sure of negative curvature, which conjugate gradients see in those that they make."""
        return int(self.method == "minres" and self.system.found is None)

    def _take(self, iteration: Iteration, running: np.ndarray, over: np.ndarray) -> None:
        self.X[running[over]] += self.system.inward(iteration.Z[self._mask(over)])

    def _look(self, columns: np.ndarray) -> Tensor:
        """The true residuals, by a product each; their lengths are kept."""
        X = self.X[columns]
        R = self.system.residual(self.B[columns], X)
        lengths = (torch.linalg.vector_norm(V, dim=1, dtype=torch.float64) for V in (R, X))
        self.residuals[columns], sizes = self.system.read(*lengths)
        if self.system.space.coarse:
            self.errors[columns] = self.system.space.rounding * self.system.norm * sizes
        return R

    def _mask(self, which: np.ndarray) -> Tensor:
        return torch.from_numpy(which).to(self.X.device)

    def _factors(self, numbers: np.ndarray) -> Tensor:
        """(k,) numbers as factors of the rows, (k, 1)."""
        space = self.system.space
        return torch.from_numpy(numbers).to(space.device, space.dtype)[:, None]

    def _says(self, reason: str, holds: bool) -> bool:
        """Note a reason for stopping short, if it holds."""
        if holds and reason not in self.reasons:
            self.reasons.append(reason)
        return holds

    def result(self) -> Solution:
        operator = self.system.operator
        steps = [max(len(h) - 1, 0) for h in self.history]
        history = torch.zeros(max(steps) + 1, len(steps), dtype=torch.float64)
        for j, values in enumerate(self.history):
            if values:
                history[:, j] = torch.tensor(values + values[-1:] * (len(history) - len(values)))
        converged = bool((self.residuals + self.errors <= self.rtol * self.sizes).all())
        relative = self.residuals / np.where(self.sizes > 0, self.sizes, 1.0)
        numbers = (self.residuals * self.units, relative, self.errors * self.units)
        shape = self.shape[1:]
        residual, relative, error = (torch.from_numpy(values).reshape(shape) for values in numbers)
        x = (self.X * self._factors(self.units)).T.reshape(self.shape)
        note = "; ".join(part for part in [*self.reasons, operator.note] if part)
        return Solution(
            x, residual, relative, error, history.reshape(-1, *shape), torch.tensor(steps).reshape(shape),
            operator.matvecs, converged, ", ".join(self.used) or self.method, self.system.found, self.system.damping,
            self.rtol, operator.kernel, note,
        )  # fmt: skip
