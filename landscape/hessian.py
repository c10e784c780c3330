"""The Hessian of an objective."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import KernelError, LosscopeError, SettingError
from .kernels.agreement import agreement
from .kernels.batched import Batched
from .kernels.choice import KERNELS, Choice, Kernel, check_count, settle, withdraw
from .kernels.finite_difference import FiniteDifference
from .kernels.retained import Retained
from .objective import Objective
from .operators import SymmetricOperator
from .precision import checked_precision

__all__ = ["Hessian"]


class Hessian(SymmetricOperator):
    """The Hessian of an objective at its parameters' present values.

    Args:
        objective: the objective.
        kernel: the engine: ``"retained"`` (double backward on a kept graph), ``"batched"`` (that, for all
            vectors of a block together), ``"compiled"``, or ``"finite_difference"``. ``"auto"`` checks that
            double backward is the derivative of the gradient, falls back on finite differences where
            there is none, and where enough products are to come takes what measures fastest
            (`kernels.choice.choose`).
        weights: (N,) factors of the samples' terms (`Objective.weighted`).
        memory: bytes that the kernel may hold; None for a quarter of a GPU's free memory, 256 MiB on a CPU.
        planned: products that are to come, where the solvers cannot know, e.g. over a whole run.
        precision: ``"full"``; ``"tf32"`` or ``"bf16"`` for tensor cores: faster on a GPU, and the error,
            measured on a random vector, becomes the ``rounding`` of the space.

    Attributes:
        choice: how the kernel was chosen; None before the first product, or where it was given.

    Raises:
        SettingError: if there is no such kernel or precision, or finite differences are asked for in half
            precision.

    Example:
        >>> import torch
        >>> from losscope.landscape import Hessian, Objective, top_eigenpairs
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> data = (torch.diag(torch.tensor([1.0, 2.0, 3.0])), torch.zeros(3, 1))
        >>> objective = Objective(model, data, criterion=torch.nn.MSELoss(reduction="sum"))
        >>> top_eigenpairs(Hessian(objective), seed=0).values  # 2 x'x
        tensor([18.], dtype=torch.float64)
    """

    known_symmetric = True

    def __init__(
        self,
        objective: Objective,
        kernel: str = "auto",
        *,
        weights: Tensor | None = None,
        memory: int | None = None,
        planned: int | None = None,
        precision: str = "full",
    ) -> None:
        if not isinstance(kernel, str) or kernel not in ("auto", *KERNELS):
            raise SettingError(f"kernel must be one of {', '.join(map(repr, ['auto', *KERNELS]))}; got {kernel!r}")
        check_count("memory", memory)
        check_count("planned", planned)
        self._full = objective if weights is None else objective.weighted(weights)
        self.precision = checked_precision(precision, objective.space.device)
        self.objective = self._full if precision == "full" else self._full.computed_in(precision)
        self.space = copy.copy(objective.space)
        self.memory, self.planned = memory, planned
        self.choice: Choice | None = None
        self._asked = kernel
        self._name = "" if kernel == "auto" else kernel
        self._kernels: dict[str, Kernel] = {}
        self._error: float | None = None
        if kernel == "finite_difference":
            self._kernel(kernel)

    @property
    def kernel(self) -> str:  # type: ignore[override]
        """The engine's name; ``"auto"`` until it is chosen."""
        return self._name or "auto"

    @property
    def note(self) -> str:
        """Whether the Hessian is ambiguous, and what errors the products have beyond rounding."""
        notes = []
        if self.choice is not None and self.choice.agreement == "ambiguous":
            notes.append(f"ambiguous: {agreement(self.objective).reason}")
        elif self.choice is not None and self.choice.kernel == FiniteDifference.name:
            notes.append(self.choice.reason)
        elif self.choice is not None and self.choice.agreement == "unverified":
            notes.append(f"unverified: {agreement(self.objective).reason}")
        if self._error is not None:
            notes.append(f"{self.precision} arithmetic, products {self._error:.1e} off")
        differences = self._kernels.get(FiniteDifference.name)
        if self._name == FiniteDifference.name and isinstance(differences, FiniteDifference):
            notes.append(f"products within {differences.error:.1e} of the largest")
        return "; ".join(notes)

    def plan(self, vectors: int, block: int) -> None:
        """Choose the engine for what is to come, and measure what it errs by."""
        with self.objective.isolated():
            if self._asked == "auto":
                planned = max(vectors, self.planned or 0)
                self.choice = settle(self.objective, block=block, planned=planned, memory=self.memory)
                self._name = self.choice.kernel
            kernel = self._kernel(self._name)
            if isinstance(kernel, Retained):
                kernel.graphs.planned = vectors
            if isinstance(kernel, FiniteDifference):
                kernel.calibrate()
                self._note_error(kernel.error)
        if self.precision != "full" and self._error is None:
            self._error = self._distance_from_full(kernel)
            self._note_error(self._error)

    def product(self, V: Tensor) -> Tensor:
        """H V, (n, k) -> (n, k)."""
        if not self._name or (self._error is None and self.precision != "full"):
            self.plan(V.shape[1], V.shape[1])
        kernel = self._kernel(self._name)
        try:
            result = kernel(V)
        except KernelError as error:
            if self._asked != "auto" or self._name == Retained.name:
                raise
            result = self._without(error)(V)
        if isinstance(kernel, FiniteDifference):
            self._note_error(kernel.error)
        return result

    def held(self) -> contextlib.AbstractContextManager[None]:
        """One isolation for many products."""
        return self.objective.isolated()

    def value_and_gradient(self) -> tuple[float, Tensor]:
        """The objective's value and gradient (n,), sharing the Hessian's graph where it can."""
        if self._asked == "auto" and not self._name:
            with contextlib.suppress(LosscopeError):  # the value is there also where products are not
                self.plan(1, 1)
        kernel = self._kernels.get(self._name)
        return kernel.value_and_gradient() if isinstance(kernel, Retained) else self.objective.value_and_gradient()

    def block_products(self, V: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
        """The products of disjoint diagonal blocks, each with its own part of V: (n, k) -> (n, k)."""
        if not self._name:
            self.plan(V.shape[1], V.shape[1])
        kernel = self._kernel(self._name)
        return kernel.blocks(V, groups) if isinstance(kernel, Retained) else super().block_products(V, groups)

    def _kernel(self, name: str) -> Kernel:
        if name not in self._kernels:
            kernel = self._kernels[name] = KERNELS[name](self.objective, memory=self.memory)
            other = self._kernels.get({Retained.name: Batched.name, Batched.name: Retained.name}.get(name, ""))
            if isinstance(kernel, Retained) and isinstance(other, Retained):
                kernel.graphs = other.graphs  # the same ones
        return self._kernels[name]

    def _without(self, error: KernelError) -> Kernel:
        """Go on with double backward where the kernel that was chosen fails later, and remember it."""
        assert self.choice is not None
        withdraw(self.objective, self._name, error)
        reason = f"{self._name} failed: {error}"
        self.choice = dataclasses.replace(self.choice, kernel=Retained.name, reason=reason)
        self._name = Retained.name
        return self._kernel(Retained.name)

    def _note_error(self, error: float) -> None:
        self.space.rounding = max(self.space.rounding, error)

    def _distance_from_full(self, kernel: Kernel) -> float:
        v = self.space.random(1, torch.Generator().manual_seed(0))
        expected, found = Retained(self._full)(v), kernel(v)
        size = float(expected.norm())
        return float((found - expected).norm()) / size if size > 0 else 0.0
