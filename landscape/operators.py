"""Symmetric linear operators: what the Krylov methods and estimators work on."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import NonFiniteError, SettingError
from .space import VectorSpace, common_space, named

__all__ = ["Combination", "DenseOperator", "Observed", "SymmetricOperator", "as_operator", "refuse_nonfinite"]

_MASKED = 16  # columns of masked products at a time


class SymmetricOperator:
    """A symmetric matrix known by its products.

    Subclasses set ``space``, ``psd`` and ``kernel`` and implement `product`. Operators can be added, subtracted,
    scaled by a number, `shifted` and `restricted`.

    Attributes:
        space: the space its vectors live in.
        psd: whether it is known to be positive semi-definite.
        kernel: name of the engine that computes the products.
        parts: the operators it is made of.
        stretched: the largest ``|A v| / |v|`` that a look at its symmetry has seen, at most its norm.

    Example:
        >>> import torch
        >>> from losscope.landscape.operators import DenseOperator
        >>> A, B = DenseOperator(torch.eye(2)), DenseOperator(torch.ones(2, 2))
        >>> (2 * A - B).shifted(10.0) @ torch.eye(2)
        tensor([[11., -1.],
                [-1., 11.]])
    """

    space: VectorSpace
    psd: bool = False
    kernel: str = ""
    parts: tuple[SymmetricOperator, ...] = ()
    stretched: float = 0.0
    __array_ufunc__ = None  # so that NumPy leaves ``array + operator`` to us

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return (self.space.size, self.space.size)

    @property
    def known_symmetric(self) -> bool:
        """Whether it is symmetric by what it is, so that nobody has to look (see `symmetry`)."""
        return bool(self.parts) and all(part.known_symmetric for part in self.parts)

    def product(self, V: Tensor) -> Tensor:
        """A V for a block of vectors: (n, k) -> (n, k), in a tensor of its own."""
        raise NotImplementedError

    def block_products(self, V: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
        """The products of disjoint diagonal blocks, each with its own part of V: (n, k) -> (n, k).

        Args:
            V: (n, k).
            groups: positions in ``space.names`` of each block's parameters.

        Returns:
            A_ll v_l in the rows of group l; zero in the rows of parameters in no group.
        """
        spans = [named(self.space).rows(group) for group in groups]
        out = torch.zeros_like(V)
        columns = [(block, j) for block in spans for j in range(V.shape[1])]
        for first in range(0, len(columns), _MASKED):
            chunk = columns[first : first + _MASKED]
            masked = torch.zeros(len(chunk), self.space.size, dtype=V.dtype, device=V.device).T
            for i, (block, j) in enumerate(chunk):
                for span in block:
                    masked[span, i] = V[span, j]
            products = self.product(masked)
            for i, (block, j) in enumerate(chunk):
                for span in block:
                    out[span, j] = products[span, i]
        return out

    def plan(self, vectors: int, block: int) -> None:
        """Say what is to come, so that a fitting engine can be chosen: ``vectors`` products, ``block`` at a time."""
        for part in self.parts:
            part.plan(vectors, block)

    @property
    def note(self) -> str:
        """What is to be known of the products, e.g. that the matrix is ambiguous; mostly empty."""
        return "; ".join(dict.fromkeys(note for part in self.parts if (note := part.note)))

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the matrix stays as it is, so that what its products share is set up once."""
        return self.parts[0].held() if len(self.parts) == 1 else _all_held(self.parts)

    def __add__(self, other: Any) -> Combination:
        """A + B, of two operators; B may be a dense matrix."""
        if isinstance(other, int | float) and other == 0:  # the start of Python's sum()
            return Combination([(1.0, self)])
        return Combination([(1.0, self), (1.0, _as_summand(other))])

    __radd__ = __add__

    def __sub__(self, other: Any) -> Combination:
        """A - B."""
        return Combination([(1.0, self), (-1.0, _as_summand(other))])

    def __rsub__(self, other: Any) -> Combination:
        """B - A, where B is a dense matrix."""
        return Combination([(-1.0, self), (1.0, _as_summand(other))])

    def __mul__(self, factor: Any) -> Combination:
        """c A for a number c."""
        return Combination([(_number(factor, "factor"), self)])

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Combination:
        """A / c for a number c."""
        return Combination([(_number(1 / _number(divisor, "divisor", nonzero=True), "factor"), self)])

    def __neg__(self) -> Combination:
        """-A."""
        return Combination([(-1.0, self)])

    def shifted(self, sigma: float) -> Combination:
        """A + sigma I."""
        return Combination([(1.0, self)], _number(sigma, "sigma"))

    def restricted(self, params: Any) -> SymmetricOperator:
        """The principal submatrix of the parameters selected as in `Objective`; see `Restricted`."""
        from .compositions import Restricted

        return Restricted(self, params)

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


class Combination(SymmetricOperator):
    """A weighted sum of operators and a multiple of the identity, c_1 A_1 + ... + sigma I.

    Sums, differences, multiples and shifts all make one of these; nested ones are merged, and an operator that
    occurs twice is multiplied once.

    Args:
        terms: pairs of a factor and an operator, at least one.
        shift: sigma.

    Attributes:
        terms: the pairs whose factor is not zero.
        shift: sigma.

    Raises:
        SettingError: if the operators live in different spaces.
    """

    terms: list[tuple[float, SymmetricOperator]]
    shift: float

    def __init__(self, terms: Sequence[tuple[float, SymmetricOperator]], shift: float = 0.0) -> None:
        factors: dict[SymmetricOperator, float] = {}
        for c, A in terms:
            inner = A.terms if isinstance(A, Combination) else [(1.0, A)]
            shift += c * A.shift if isinstance(A, Combination) else 0.0
            for inner_c, inner_A in inner:
                factors[inner_A] = factors.get(inner_A, 0.0) + c * inner_c
        self.terms = [(c, A) for A, c in factors.items() if c != 0]
        self.shift = shift
        self.parts = tuple(A for _, A in self.terms)
        self.space = common_space([A.space for _, A in terms])
        self.psd = shift >= 0 and all(c > 0 and A.psd for c, A in self.terms)

    @property
    def kernel(self) -> str:  # type: ignore[override]
        """The engines of the parts."""
        return " + ".join(dict.fromkeys(A.kernel for A in self.parts)) or "identity"

    def product(self, V: Tensor) -> Tensor:
        """The combination's product, (n, k) -> (n, k)."""
        out = V * self.shift
        for c, A in self.terms:
            out.add_(A.product(V), alpha=c)
        return out

    def block_products(self, V: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
        """Block products of the parts, added up; see `SymmetricOperator.block_products`."""
        out = torch.zeros_like(V)
        for span in itertools.chain(*[named(self.space).rows(group) for group in groups]):
            out[span] = V[span] * self.shift
        for c, A in self.terms:
            out.add_(A.block_products(V, groups), alpha=c)
        return out


class DenseOperator(SymmetricOperator):
    """A symmetric matrix held as a tensor (n, n)."""

    kernel = "dense"

    def __init__(self, matrix: Tensor) -> None:
        _check_square(matrix.shape, "matrix")
        self.matrix = matrix.detach()
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
        self.psd, self.parts = operator.psd, (operator,)
        self.matvecs = 0
        self.on_product = on_product

    @property
    def space(self) -> VectorSpace:  # type: ignore[override]
        """The operator's space, whose ``rounding`` its engine may come to know better."""
        return self.operator.space

    @property
    def kernel(self) -> str:  # type: ignore[override]
        """The operator's engine, which may be chosen at its first product."""
        return self.operator.kernel

    def product(self, V: Tensor) -> Tensor:
        """A V, (n, k) -> (n, k).

        Raises:
            NonFiniteError: if the product has a NaN or infinite entry.
        """
        result = self.unchecked(V)
        refuse_nonfinite(float(result.sum()))
        return result

    def unchecked(self, V: Tensor) -> Tensor:
        """A V for callers that look at their results themselves, with `refuse_nonfinite`: it saves a wait for a GPU."""
        inner = self.operator
        result = inner.unchecked(V) if isinstance(inner, Observed) else inner.product(V)
        self.matvecs += V.shape[1]
        if self.on_product is not None:
            self.on_product(V.shape[1])
        return result


def refuse_nonfinite(total: float) -> None:
    """Refuse a product, by a number that was made from all its entries.

    Raises:
        NonFiniteError: if the number is NaN or infinite.
    """
    if not math.isfinite(total):
        raise NonFiniteError("a curvature-vector product is NaN or infinite: the loss is not smooth or overflows here")


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
        _check_square(A.shape, "operator")
        self._A = A
        self._torch = isinstance(getattr(A, "dtype", None), torch.dtype)
        dtype = A.dtype if self._torch else getattr(torch, str(np.dtype(A.dtype or "float64")))
        self.space = VectorSpace(int(A.shape[0]), dtype, torch.device(getattr(A, "device", "cpu")))

    def product(self, V: Tensor) -> Tensor:
        """A V, (n, k) -> (n, k)."""
        if self._torch:
            return self._A @ V
        return torch.as_tensor(np.asarray(self._A @ V.cpu().numpy())).to(V)


def _check_square(shape: Sequence[int], what: str) -> None:
    if len(shape) != 2 or shape[0] != shape[1]:
        raise SettingError(f"expected a square {what}, got shape {tuple(shape)}")
    if shape[0] == 0:
        raise SettingError(f"expected a square {what} with entries, got shape (0, 0)")


# --------------------------------------------------------------------------- what compositions accept


def _as_summand(other: Any) -> SymmetricOperator:
    if isinstance(other, int | float):
        raise SettingError(f"cannot add the number {other} to an operator; for A + sigma I write A.shifted({other})")
    return as_operator(other)


def _number(value: Any, name: str, *, nonzero: bool = False) -> float:
    """A finite real number: of Python, of NumPy, or a tensor with one entry."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        given = f"shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
        raise SettingError(f"{name} must be a real number, got {given} (for products write A @ V)") from None
    if not math.isfinite(number) or (nonzero and number == 0):
        raise SettingError(f"{name} must be a finite number{' other than 0' if nonzero else ''}, got {number}")
    return number


@contextlib.contextmanager
def _all_held(operators: Sequence[SymmetricOperator]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for operator in operators:
            stack.enter_context(operator.held())
        yield
