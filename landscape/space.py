"""The space that parameter vectors live in: size, dtype, device, inner products, random vectors.

Krylov methods ask the space for inner products and random vectors and never touch coordinates, so
that a sharded or distributed space has to replace this room only.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .errors import SettingError

__all__ = ["ParameterSpace", "VectorSpace", "generator_for"]


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
        self.rounding = 32 * torch.finfo(dtype).eps

    def inner(self, U: Tensor, V: Tensor) -> Tensor:
        """Inner products of the columns, ``U.T @ V``: (n, a), (n, b) -> (a, b)."""
        return U.T @ V

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

    Attributes:
        names: the parameters' names.
        shapes: their shapes.
        dtypes: their dtypes; vectors use the widest, and float32 at least.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.names = tuple(parameters)
        self.shapes = tuple(tuple(p.shape) for p in parameters.values())
        self.dtypes = tuple(p.dtype for p in parameters.values())
        self.numels = tuple(math.prod(shape) for shape in self.shapes)
        dtype = torch.float32  # never accumulate in half precision
        for p in parameters.values():
            dtype = torch.promote_types(dtype, p.dtype)
        super().__init__(sum(self.numels), dtype, next(iter(parameters.values())).device)
        # The model computes in the parameters' own precision: measured 6e-3 for bfloat16.
        self.rounding = max(self.rounding, *(torch.finfo(p.dtype).eps for p in parameters.values()))

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """One tensor per parameter -> (n,)."""
        return torch.cat([t.reshape(-1).to(self.dtype) for t in tensors])

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """(n,) -> one tensor per parameter, views where the dtypes agree."""
        pieces = vector.split(self.numels)
        return [
            piece.view(shape).to(dtype) for piece, shape, dtype in zip(pieces, self.shapes, self.dtypes, strict=True)
        ]
