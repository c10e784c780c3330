"""Symmetric linear operators: what the Krylov methods and estimators work on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import NonFiniteError, SettingError
from .space import VectorSpace

__all__ = ["DenseOperator", "Observed", "SymmetricOperator", "as_operator"]


class SymmetricOperator:
    """A symmetric matrix known by its products.

    Subclasses set ``space``, ``psd`` and ``kernel`` and implement `product`.

    Attributes:
        space: the space its vectors live in.
        psd: whether it is known to be positive semi-definite.
        kernel: name of the engine that computes the products.
    """

    space: VectorSpace
    psd: bool = False
    kernel: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return (self.space.size, self.space.size)

    def product(self, V: Tensor) -> Tensor:
        """A V for a block of vectors: (n, k) -> (n, k)."""
        raise NotImplementedError

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the matrix stays as it is, so that what its products share is set up once."""
        return contextlib.nullcontext()

    def __matmul__(self, V: Tensor) -> Tensor:
        """A V for one vector (n,) or a block (n, k).

        Raises:
            SettingError: if V has another size, dtype or device than the operator.
        """
        space = self.space
        if not isinstance(V, Tensor):
            raise SettingError(
                f"expected a tensor of shape ({space.size},) or ({space.size}, k), got {type(V).__name__}"
            )
        if V.ndim not in (1, 2) or V.shape[0] != space.size:
            raise SettingError(f"expected shape ({space.size},) or ({space.size}, k), got {tuple(V.shape)}")
        if V.dtype != space.dtype or V.device != space.device:
            raise SettingError(f"expected {space.dtype} on {space.device}, got {V.dtype} on {V.device}")
        return self.product(V[:, None])[:, 0] if V.ndim == 1 else self.product(V)

    def to_scipy(self) -> Any:
        """A ``scipy.sparse.linalg.LinearOperator`` of the same matrix (products pass through the host)."""
        from scipy.sparse.linalg import LinearOperator

        def product(x: np.ndarray) -> np.ndarray:
            block = torch.as_tensor(np.ascontiguousarray(x)).to(self.space.device, self.space.dtype)
            return (self @ block).cpu().numpy()

        dtype = np.dtype(str(self.space.dtype).removeprefix("torch."))
        return LinearOperator(self.shape, matvec=product, matmat=product, rmatvec=product, dtype=dtype)


class DenseOperator(SymmetricOperator):
    """A symmetric matrix held as a tensor (n, n)."""

    kernel = "dense"

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise SettingError(f"expected a square matrix, got shape {tuple(matrix.shape)}")
        self.matrix = matrix
        self.space = VectorSpace(matrix.shape[0], matrix.dtype, matrix.device)

    def product(self, V: Tensor) -> Tensor:
        """A V, (n, k) -> (n, k)."""
        return self.matrix @ V


class Observed(SymmetricOperator):
    """An operator that counts its products and reports them, refusing any that are not finite.

    Args:
        operator: the operator to pass products through to.
        on_product: called with the number of vectors after each block.
    """

    def __init__(self, operator: SymmetricOperator, on_product: Callable[[int], object] | None = None) -> None:
        self.operator = operator
        self.space, self.psd, self.kernel = operator.space, operator.psd, operator.kernel
        self.matvecs = 0
        self.on_product = on_product

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Holds the operator."""
        return self.operator.held()

    def product(self, V: Tensor) -> Tensor:
        """A V, (n, k) -> (n, k).

        Raises:
            NonFiniteError: if the product has a NaN or infinite entry.
        """
        result = self.operator.product(V)
        self.matvecs += V.shape[1]
        if not torch.isfinite(result.sum()):
            raise NonFiniteError(
                "a curvature-vector product is NaN or infinite: the loss is not smooth or overflows here"
            )
        if self.on_product is not None:
            self.on_product(V.shape[1])
        return result


def as_operator(A: Any) -> SymmetricOperator:
    """A symmetric operator from one of ours, a dense matrix, or anything with ``shape`` and ``@``.

    Raises:
        SettingError: if ``A`` is none of these.
    """
    if isinstance(A, SymmetricOperator):
        return A
    if isinstance(A, np.ndarray):
        A = torch.from_numpy(A)
    if isinstance(A, Tensor):
        if not A.is_floating_point():
            raise SettingError(f"expected a real floating-point matrix, got {A.dtype}")
        return DenseOperator(A)
    if hasattr(A, "shape") and hasattr(A, "__matmul__"):
        return _Foreign(A)
    raise SettingError(f"expected a symmetric operator or a dense matrix, got {type(A).__name__}")


class _Foreign(SymmetricOperator):
    """Another library's operator, torch- or NumPy-based, seen through ``shape`` and ``@``."""

    kernel = "foreign"

    def __init__(self, A: Any) -> None:
        if len(A.shape) != 2 or A.shape[0] != A.shape[1]:
            raise SettingError(f"expected a square operator, got shape {tuple(A.shape)}")
        self._A = A
        self._torch = isinstance(getattr(A, "dtype", None), torch.dtype)
        dtype = A.dtype if self._torch else getattr(torch, str(np.dtype(A.dtype or "float64")))
        self.space = VectorSpace(int(A.shape[0]), dtype, torch.device(getattr(A, "device", "cpu")))

    def product(self, V: Tensor) -> Tensor:
        """A V, (n, k) -> (n, k)."""
        if self._torch:
            return self._A @ V
        return torch.as_tensor(np.asarray(self._A @ V.cpu().numpy())).to(V)
