"""A short linear sketch of a parameter vector, from which lengths, angles and inner products can be told later."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..complex_parts import as_real
from ..errors import ParameterError, SettingError

__all__ = ["WeightSketch", "squared_distance"]

_CHUNK = {"cpu": 1 << 16}  # entries at a time: what a core's cache holds
_CHUNK_ELSEWHERE = 1 << 22  # few launches on a GPU, and temporaries of 32 MiB
_WORD = 32
_LOW_34, _LOW_37, _LOW_33 = (1 << 34) - 1, (1 << 37) - 1, (1 << 33) - 1


@dataclass(frozen=True)
class WeightSketch:
    r"""A random linear map S from n parameters to m numbers that keeps inner products.

    A count sketch (Charikar, Chen and Farach-Colton, "Finding frequent items in data streams", 2002) with balanced
    buckets: entry i goes to bucket ``(i + s(i // m)) mod m`` with a sign, where the sign of each i and the shift s of
    each m entries in a row are hashes of the seed. So each product costs one pass over the parameters and no memory,
    where a dense projection takes m passes, and a fast Hadamard transform a copy of the whole vector. The hashes are
    integer arithmetic, the same on every device and in every process; no random stream is drawn from. Over seeds

    .. math::
        \mathrm E\, \langle Sx, Sy \rangle = \langle x, y \rangle, \qquad \mathrm{Var}\, |Sx|^2 \le
        \frac 2m \Big(1 - \frac 1{\lceil n/m \rceil}\Big) |x|^4

    and for inner products :math:`\frac 1m (|x|^2 |y|^2 + \langle x, y \rangle^2)` at most: as small as Gaussian
    projections have it, and less by the last factor since entries of one row never meet. For n <= m it is exact.

    Args:
        size: n, how many parameters.
        dimension: m.
        seed: of the hashes; sketches of different seeds cannot be compared.

    Raises:
        SettingError: if an argument means nothing.

    Example:
        >>> import torch
        >>> from losscope.landscape.surface import WeightSketch
        >>> sketch = WeightSketch(100_000, 5000)
        >>> x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
        >>> abs(float(sketch(x).norm() / x.norm()) - 1) < 3 * sketch.error / 2
        True
    """

    size: int
    dimension: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("dimension", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise SettingError(f"{name} must be a whole number of at least {least}, got {value!r}")

    @classmethod
    def for_accuracy(cls, size: int, accuracy: float = 0.02, seed: int = 0) -> WeightSketch:
        """The shortest sketch whose squared lengths have at most this relative standard error, ``2 / accuracy^2``.

        Raises:
            SettingError: if ``accuracy`` is not in (0, 1).
        """
        if not 0 < accuracy < 1:
            raise SettingError(f"accuracy must be between 0 and 1, got {accuracy!r}")
        return cls(size, min(size, math.ceil(2 / accuracy**2)), seed)

    @property
    def variance(self) -> float:
        """Of a squared length, relative to the length to the fourth: ``2/m (1 - 1/ceil(n/m))`` at most."""
        rows = -(-self.size // self.dimension)
        return 2 / self.dimension * (1 - 1 / rows)

    @property
    def error(self) -> float:
        """Relative standard error of a squared length; half of it of a length."""
        return math.sqrt(self.variance)

    def __call__(self, tensors: Tensor | Sequence[Tensor]) -> Tensor:
        """The sketch of a vector (n,), or of one tensor per parameter: (m,) float64 on the host.

        Args:
            tensors: of any floating dtype, all on one device, where the work is done in chunks in float64.

        Raises:
            ParameterError: if they do not have n entries together.
        """
        tensors = [as_real(t) for t in ([tensors] if isinstance(tensors, Tensor) else tensors)]
        if (found := sum(t.numel() for t in tensors)) != self.size:
            raise ParameterError(f"this sketch is of {self.size} parameters, got {found}")
        device = tensors[0].device
        twice = torch.zeros(2 * self.dimension, dtype=torch.float64, device=device)  # buckets before mod m
        offset = 0
        for chunk in _chunks(tensors, self.dimension):  # a row at least: whole ones are turned
            where = slice(offset, offset + len(chunk))
            twice.index_add_(0, self._buckets(where, device), chunk * self._signs(where, device))
            offset += len(chunk)
        return twice.view(2, -1).sum(dim=0).cpu()

    def _buckets(self, where: slice, device: torch.device) -> Tensor:
        """Where entries go: as they stand in their row of m, turned round by the row's shift."""
        m, row = self.dimension, where.start // self.dimension
        turns = self._hash(torch.arange(row, (where.stop - 1) // m + 1, device=device), 0).remainder(m)
        turned = turns[:, None] + torch.arange(m, device=device)
        return turned.view(-1)[where.start - row * m : where.stop - row * m]

    def _signs(self, where: slice, device: torch.device) -> Tensor:
        """+-1 for each entry: the bits of one hash for each word of 32 entries."""
        word = where.start // _WORD
        hashes = self._hash(torch.arange(word, (where.stop - 1) // _WORD + 1, device=device), 1)
        bits = (hashes[:, None] >> torch.arange(_WORD, device=device)).bitwise_and_(1)
        return bits.view(-1)[where.start - word * _WORD : where.stop - word * _WORD].mul_(2).sub_(1)

    def _hash(self, index: Tensor, purpose: int) -> Tensor:
        """64 bits for each index: the finaliser of splitmix64 (Steele, Lea and Flood, 2014) in signed integers."""
        key = (2 * self.seed + purpose + 1) * 0x9E3779B97F4A7C15 % 2**64
        h = index + (key - 2**64 if key >= 2**63 else key)
        h = (h ^ ((h >> 30) & _LOW_34)) * -0x40A7B892E31B1A47
        h = (h ^ ((h >> 27) & _LOW_37)) * -0x6B2FB644ECCEEE15
        return h ^ ((h >> 31) & _LOW_33)


def squared_distance(first: Sequence[Tensor], second: Sequence[Tensor] | None = None) -> float:
    """``|first - second|^2`` of two points given as one tensor per parameter, in float64; of one its squared length."""
    device = first[0].device
    total = torch.zeros((), dtype=torch.float64, device=device)
    others = None if second is None else _chunks(second)
    for chunk in _chunks(first):
        apart = chunk if others is None else chunk - next(others)
        total += apart @ apart
    return float(total)


def _chunks(tensors: Sequence[Tensor], least: int = 1) -> Iterator[Tensor]:
    """All entries in order, in float64, a bounded number at a time; the same pieces for the same shapes."""
    most = max(_CHUNK.get(tensors[0].device.type, _CHUNK_ELSEWHERE), least)
    held: list[Tensor] = []
    for tensor in tensors:
        for part in tensor.detach().reshape(-1).split(most):
            if held and sum(map(len, held)) + len(part) > most:
                yield torch.cat(held).double()
                held = []
            held.append(part)
    if held:
        yield torch.cat(held).double()
