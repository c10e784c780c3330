"""The Hessian of an objective."""

from __future__ import annotations

import contextlib

from torch import Tensor

from .errors import SettingError
from .kernels.retained import Retained
from .objective import Objective
from .operators import SymmetricOperator

__all__ = ["Hessian"]


class Hessian(SymmetricOperator):
    """The Hessian of an objective at its parameters' present values.

    Args:
        objective: the objective.
        kernel: the engine; ``"auto"`` or ``"retained"``.

    Raises:
        SettingError: if there is no such kernel.

    Example:
        >>> import torch
        >>> from losscope.landscape import Hessian, Objective, top_eigenpairs
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> data = (torch.diag(torch.tensor([1.0, 2.0, 3.0])), torch.zeros(3, 1))
        >>> objective = Objective(model, data, criterion=torch.nn.MSELoss(reduction="sum"))
        >>> top_eigenpairs(Hessian(objective), seed=0).values  # 2 x'x
        tensor([18.], dtype=torch.float64)
    """

    def __init__(self, objective: Objective, kernel: str = "auto") -> None:
        if kernel not in ("auto", "retained"):
            raise SettingError(f'kernel must be "auto" or "retained", got {kernel!r}')
        self.objective = objective
        self.space = objective.space
        self._engine = Retained(objective)
        self.kernel = self._engine.name

    def product(self, V: Tensor) -> Tensor:
        """H V, (n, k) -> (n, k)."""
        return self._engine(V)

    def held(self) -> contextlib.AbstractContextManager[None]:
        """One isolation for many products."""
        return self.objective.isolated()

    def value_and_gradient(self) -> tuple[float, Tensor]:
        """The objective's value and gradient (n,), sharing the Hessian's graph where it can."""
        return self._engine.value_and_gradient()
