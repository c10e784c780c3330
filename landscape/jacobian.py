"""The Jacobian of the model's outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import SettingError
from .kernels.jacobian import Evaluated, OutputGraphs, OutputMetric
from .kernels.once import second_order_errors
from .objective import Objective
from .space import contiguous_rows

__all__ = ["Jacobian"]


class Jacobian:
    r"""The derivative of the model's outputs by the parameters, ``J[a, i] = d z_a / d theta_i``.

    Rows are the entries of all outputs of all batches, in order: every floating tensor that the outputs hold and
    that has a gradient, flattened. Nothing is scaled: no criterion, no share of a batch enters.

    Args:
        objective: the objective, with a ``criterion`` (which is not evaluated).
        memory: bytes that the kept graphs of several batches may take.

    Attributes:
        T: the transpose.

    Raises:
        LossError: if the objective has a ``loss_fn``, which hides the outputs, or they do not depend on the
            parameters.

    Example:
        >>> import torch
        >>> from losscope.landscape import Jacobian, Objective
        >>> model = torch.nn.Linear(2, 1)
        >>> data = (torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 1))
        >>> J = Jacobian(Objective(model, data, criterion=torch.nn.MSELoss()))
        >>> J @ torch.eye(3)  # inputs, and 1 for the bias
        tensor([[1., 2., 1.],
                [3., 4., 1.]])
        >>> J.T @ torch.ones(2)
        tensor([4., 6., 2.])
    """

    def __init__(self, objective: Objective, *, memory: int | None = None) -> None:
        self.objective = objective
        self.space = objective.space
        self._graphs: OutputGraphs[_All] = OutputGraphs(objective, [_All], memory)
        self._rows: int | None = None
        self.T = _Transposed(self)

    @property
    def shape(self) -> tuple[int, int]:
        """(number of outputs, n); the first use evaluates the model."""
        if self._rows is None:
            with self.objective.isolated(), second_order_errors(self.objective, differences=False):
                self._rows = sum(graph.size for graph, _ in self._graphs)
        return (self._rows, self.space.size)

    def __matmul__(self, V: Tensor) -> Tensor:
        """J V for one vector (n,) or a block (n, k).

        Raises:
            SettingError: if V has another size, dtype or device.
            DoubleBackwardError: if the model cannot be differentiated twice.
        """
        return self._apply(V, self.space.size, self._push)

    def to_scipy(self) -> Any:
        """A ``scipy.sparse.linalg.LinearOperator`` of the same matrix (products pass through the host)."""
        from scipy.sparse.linalg import LinearOperator

        def through(A: Any) -> Callable[[np.ndarray], np.ndarray]:
            def product(x: np.ndarray) -> np.ndarray:
                block = torch.as_tensor(np.ascontiguousarray(x)).to(self.space.device, self.space.dtype)
                return (A @ block).cpu().numpy()

            return product

        forth, back = through(self), through(self.T)
        dtype = np.dtype(str(self.space.dtype).removeprefix("torch."))
        return LinearOperator(self.shape, matvec=forth, matmat=forth, rmatvec=back, rmatmat=back, dtype=dtype)

    def _apply(self, V: Tensor, size: int, product: Callable[[Tensor], Tensor]) -> Tensor:
        if not isinstance(V, Tensor):
            raise SettingError(f"expected a tensor of shape ({size},) or ({size}, k), got {type(V).__name__}")
        if V.ndim not in (1, 2) or V.shape[0] != size:
            raise SettingError(f"expected shape ({size},) or ({size}, k), got {tuple(V.shape)}")
        space = self.space
        if V.dtype != space.dtype or V.device != space.device:
            raise SettingError(f"expected {space.dtype} on {space.device}, got {V.dtype} on {V.device}")
        with self.objective.isolated(), second_order_errors(self.objective, differences=False):
            rows = contiguous_rows(V if V.ndim == 2 else V[:, None])
            out = product(rows)
        return out.T if V.ndim == 2 else out[0]

    def _push(self, rows: Tensor) -> Tensor:
        """(k, n) -> (k, m)."""
        space = self.space
        parts = [
            torch.stack([graph.flatten(graph.push(space.unflatten(row))) for row in rows])
            if len(rows)
            else rows.new_zeros(0, graph.size)
            for graph, _ in self._graphs
        ]
        return torch.cat(parts, dim=1)

    def _pull(self, rows: Tensor) -> Tensor:
        """(k, m) -> (k, n)."""
        out = rows.new_zeros(len(rows), self.space.size)
        start = 0
        for graph, _ in self._graphs:
            for row, result in zip(rows, out, strict=True):
                result += graph.pull(graph.unflatten(row[start : start + graph.size]))
            start += graph.size
        return out


class _Transposed:
    """``J'``: products (m,) or (m, k) -> (n,) or (n, k)."""

    def __init__(self, jacobian: Jacobian) -> None:
        self.T = jacobian

    @property
    def shape(self) -> tuple[int, int]:
        """(n, number of outputs)."""
        return self.T.shape[::-1]

    def __matmul__(self, W: Tensor) -> Tensor:
        """J' W for one vector (m,) or a block (m, k).

        Raises:
            SettingError: if W has another size, dtype or device.
        """
        return self.T._apply(W, self.shape[1], self.T._pull)


class _All(OutputMetric):
    """Every output is wanted, and nothing is between."""

    def __init__(self, seen: Evaluated) -> None:
        self.used = list(range(len(seen.tensors)))
