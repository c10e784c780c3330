"""The space that parameter vectors live in: size, dtype, device, inner products, random vectors.

Krylov methods ask the space for inner products and random vectors and never touch coordinates, so
that a sharded or distributed space has to replace this room only.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

# In one call each, as data parallel training does it: a piece at a time takes longer than a small net's product.
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from .complex_parts import as_real, like, real_dtype
from .errors import SettingError

__all__ = [
    "PIECE",
    "ParameterSpace",
    "VectorSpace",
    "adds_up_badly",
    "common_space",
    "contiguous_rows",
    "generator_for",
    "named",
    "scaled_norms",
    "squares_in_range",
]


_MERE_ROUNDING = 100.0  # times eps
PIECE = 1 << 16
"""Entries of a vector that are summed at a time, where it is long."""

_LONG = 4  # pieces


def generator_for(seed: int | torch.Generator | None, device: torch.device) -> torch.Generator:
    """A generator of our own, so that no estimator ever draws from the global stream.

    Args:
        seed: an integer, a ready generator (used as it is), or None for fresh entropy.
        device: where random vectors are wanted.

    Raises:
        SettingError: if ``seed`` is none of these.
    """
    if isinstance(seed, torch.Generator):
        return seed
    if seed is None:
        seed = secrets.randbits(63)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise SettingError(f"seed must be an int, a torch.Generator or None, got {seed!r}")
    return torch.Generator(device=device).manual_seed(seed % 2**63)


class VectorSpace:
    """Plain n-dimensional Euclidean space.

    Attributes:
        size: the dimension n.
        dtype: floating dtype of its vectors.
        device: where they live.
        rounding: relative error of a product with a curvature matrix, as far as rounding goes.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.size = size
        self.dtype = dtype
        self.device = device
        self._rounding = 32 * torch.finfo(dtype).eps
        self._sources: tuple[VectorSpace, ...] = ()  # of an operator made from others: the spaces of those

    @property
    def rounding(self) -> float:
        """As large as that of any operator this one is made from, also when that is measured later."""
        return max([self._rounding, *(source.rounding for source in self._sources)])

    @rounding.setter
    def rounding(self, value: float) -> None:
        self._rounding = value

    @property
    def coarse(self) -> bool:
        """Whether products err by more than rounding (finite differences, tensor cores), which intervals then hold."""
        return self.rounding > _MERE_ROUNDING * torch.finfo(self.dtype).eps

    def inner(self, U: Tensor, V: Tensor) -> Tensor:
        """Inner products of the columns, ``U.T @ V``: (n, a), (n, b) -> (a, b)."""
        if adds_up_badly(V):
            pieces = [self.inner(u, v) for u, v in zip(U.split(PIECE), V.split(PIECE), strict=True)]
            return torch.stack(pieces).sum(dim=0)
        if 1 < V.shape[1] < U.shape[1]:
            return (V.T @ U).T  # a narrow block from the left: 1.7 times as fast, as memory goes
        return U.T @ V

    def coordinates(self, rows: Tensor, v: Tensor) -> Tensor:
        """Inner products of rows with one vector: (a, n), (n,) -> (a,)."""
        if adds_up_badly(v):
            return self.inner(rows.T, v[:, None])[:, 0]
        return torch.mv(rows, v)

    def length(self, v: Tensor) -> Tensor:
        """Length of one vector: (n,) -> (1,)."""
        if adds_up_badly(v):
            return self.norms(v[:, None])
        return torch.linalg.vector_norm(v, dim=0, keepdim=True)

    def norms(self, V: Tensor) -> Tensor:
        """Lengths of the columns: (n, k) -> (k,)."""
        if adds_up_badly(V):
            pieces = [torch.linalg.vector_norm(v, dim=0) for v in V.split(PIECE)]
            return torch.linalg.vector_norm(torch.stack(pieces), dim=0)
        return torch.linalg.vector_norm(V.T, dim=1)

    def random(self, k: int, generator: torch.Generator, kind: str = "normal") -> Tensor:
        """k random vectors, (n, k): independent standard normal or Rademacher (+-1) entries.

        Vectors are rows in memory (the result is a transposed view), so that each is contiguous.
        """
        if kind == "normal":
            rows = torch.randn(k, self.size, generator=generator, device=generator.device, dtype=self.dtype)
        elif kind == "rademacher":
            bits = torch.randint(0, 2, (k, self.size), generator=generator, device=generator.device, dtype=torch.int8)
            rows = bits.to(self.dtype).mul_(2).sub_(1)
        else:
            raise SettingError(f'kind must be "normal" or "rademacher", got {kind!r}')
        return rows.to(self.device).T


class ParameterSpace(VectorSpace):
    """The space of a model's chosen parameters, flattened in the order of their names.

    A complex one counts as its real and imaginary parts, side by side.

    Attributes:
        names: the parameters' names.
        shapes: their shapes; those of complex ones as pairs of real numbers, (..., 2).
        dtypes: their dtypes; vectors use the widest of their parts, and float32 at least.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.names = tuple(parameters)
        self.shapes = tuple((*p.shape, 2) if p.is_complex() else tuple(p.shape) for p in parameters.values())
        self.dtypes = tuple(p.dtype for p in parameters.values())
        self.numels = tuple(math.prod(shape) for shape in self.shapes)
        self._like = [torch.empty(shape, device="meta") for shape in self.shapes]
        dtype = torch.float32  # never accumulate in half precision
        for p in parameters.values():
            dtype = torch.promote_types(dtype, real_dtype(p.dtype))
        super().__init__(sum(self.numels), dtype, next(iter(parameters.values())).device)
        # The model computes in the parameters' own precision: measured 6e-3 for bfloat16.
        self.rounding = max(self.rounding, *(torch.finfo(p.dtype).eps for p in parameters.values()))

    @property
    def uniform(self) -> bool:
        """Whether pieces of a vector are views of it."""
        return self.dtypes.count(self.dtype) == len(self.dtypes)

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """One tensor per parameter -> (n,)."""
        if self.uniform:
            return _flatten_dense_tensors(tensors)
        return torch.cat([as_real(t).reshape(-1).to(self.dtype) for t in tensors])

    def flatten_rows(self, tensors: Sequence[Tensor]) -> Tensor:
        """One tensor (k, ...) per parameter -> k vectors as rows (k, n)."""
        return torch.cat([as_real(t).reshape(t.shape[0], -1).to(self.dtype) for t in tensors], dim=1)

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """(n,) -> one tensor per parameter, views where the dtypes agree."""
        if self.uniform:
            return list(_unflatten_dense_tensors(vector, self._like))
        pieces = vector.split(self.numels)
        return [
            like(piece.view(shape), dtype) for piece, shape, dtype in zip(pieces, self.shapes, self.dtypes, strict=True)
        ]

    def unflatten_rows(self, rows: Tensor) -> list[Tensor]:
        """k vectors as rows (k, n) -> one tensor (k, ...) per parameter, views where the dtypes agree."""
        pieces = rows.split(self.numels, dim=1)
        return [
            like(piece.view(len(rows), *shape), dtype)
            for piece, shape, dtype in zip(pieces, self.shapes, self.dtypes, strict=True)
        ]

    def rows(self, group: Iterable[int]) -> list[slice]:
        """Rows of the parameters at these positions in ``names``, neighbours joined."""
        ends = list(itertools.accumulate(self.numels, initial=0))
        rows: list[slice] = []
        for i in sorted(group):
            if rows and rows[-1].stop == ends[i]:
                rows[-1] = slice(rows[-1].start, ends[i + 1])
            else:
                rows.append(slice(ends[i], ends[i + 1]))
        return rows

    def subspace(self, group: Iterable[int]) -> ParameterSpace:
        """The space of the parameters at these positions in ``names``, in their order here."""
        kept, sub = sorted(group), copy.copy(self)
        sub._sources = (self,)
        sub.names = tuple(self.names[i] for i in kept)
        sub.shapes = tuple(self.shapes[i] for i in kept)
        sub.dtypes = tuple(self.dtypes[i] for i in kept)
        sub.numels = tuple(self.numels[i] for i in kept)
        sub.size = sum(sub.numels)
        sub._like = [self._like[i] for i in kept]
        return sub


def adds_up_badly(V: Tensor) -> bool:
    """Whether sums over rows of V lose more than rounding.

    On a CPU, terms are added one after the other: in single precision a length is 1e-4 off for 5 million entries and
    1e-3 for 20 million.
    """
    return V.shape[0] > _LONG * PIECE and V.device.type == "cpu" and V.dtype != torch.float64


def squares_in_range(lengths: Sequence[float] | np.ndarray, dtype: torch.dtype) -> bool:
    """Whether lengths that were made from squares in this dtype lost nothing to its range."""
    return bool(min(lengths) >= _least_length(dtype) and max(lengths) < math.inf)


@functools.cache
def _least_length(dtype: torch.dtype) -> float:
    """Squares of the entries of shorter vectors underflow."""
    info = torch.finfo(dtype)
    return math.sqrt(info.tiny) / info.eps


def scaled_norms(V: Tensor) -> list[float]:
    """Lengths of the columns, (n, k), in double precision and whatever the scale; NaN where an entry is not finite."""
    most = V.abs().amax(dim=0)
    scaled = (V / torch.where(most > 0, most, 1)).T
    found: list[float] = (torch.linalg.vector_norm(scaled, dim=1, dtype=torch.float64) * most.double()).tolist()
    return found


def common_space(spaces: Sequence[VectorSpace]) -> VectorSpace:
    """The space that all of these are, with names if any has them, and the coarsest rounding among them.

    Raises:
        SettingError: if they differ in size, dtype, device or parameters.
    """
    first = next((s for s in spaces if isinstance(s, ParameterSpace)), spaces[0])
    for other in spaces:
        if (other.size, other.dtype, other.device) != (first.size, first.dtype, first.device):
            raise SettingError(
                f"operators on different spaces: {first.size} entries of {first.dtype} on {first.device}, and "
                f"{other.size} of {other.dtype} on {other.device}"
            )
        if isinstance(first, ParameterSpace) and isinstance(other, ParameterSpace):
            pairs = zip(first.names, first.shapes, other.names, other.shapes, strict=False)
            differing = next((p for p in pairs if p[:2] != p[2:]), None)
            if differing is not None:
                raise SettingError(
                    f"operators on different parameters: one has {differing[0]} {differing[1]} where the other has "
                    f"{differing[2]} {differing[3]}; select the same ones with params="
                )
    space = copy.copy(first)
    space._sources = tuple(spaces)
    return space


def named(space: VectorSpace) -> ParameterSpace:
    """The space, which must be one of a model's parameters.

    Raises:
        SettingError: if it is not.
    """
    if not isinstance(space, ParameterSpace):
        raise SettingError(
            f"this needs an operator over a model's parameters, and this one has {space.size} entries without names: "
            "build it on an Objective"
        )
    return space


def contiguous_rows(V: Tensor) -> Tensor:
    """The columns of V (n, k) as contiguous rows (k, n), tensors that autograd takes."""
    V = V.detach() if V.requires_grad else V
    return V.T.clone() if V.is_inference() else V.T.contiguous()
