"""What an index along a dimension counts: units, products of them where they were flattened, and concatenations.

Two dimensions that an operation pairs must count the same. Making them so (unification) finds which units of which
tensors are the same ones: a flattened dimension is a product of its factors in row-major order, a concatenated one the
sum of its pieces, and units are divided into either as far as another dimension asks for it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = [
    "Chain",
    "Index",
    "Product",
    "Units",
    "cut",
    "fix",
    "leaves",
    "positions",
    "regroup",
    "renewed",
    "resolved",
    "rows",
    "unify",
]


class Units:
    """Things of one kind that may stand in any order, unless their order is fixed.

    Attributes:
        size: how many.
        fixed: whether their order means something (pixels, classes, words), so that they cannot be permuted.
        bound: what they were found to be, or None.
    """

    __slots__ = ("bound", "fixed", "size")

    def __init__(self, size: int, fixed: bool = False) -> None:
        self.size, self.fixed = size, fixed
        self.bound: Index | None = None


@dataclass(frozen=True, eq=False)
class Product:
    """All combinations of the parts, the last changing fastest: what flattening makes of dimensions."""

    parts: tuple[Index, ...]

    @property
    def size(self) -> int:
        """Of all combinations."""
        return math.prod(part.size for part in self.parts)


@dataclass(frozen=True, eq=False)
class Chain:
    """The parts one after the other: what concatenation makes of dimensions."""

    parts: tuple[Index, ...]

    @property
    def size(self) -> int:
        """Of all parts together."""
        return sum(part.size for part in self.parts)


Index: TypeAlias = "Units | Product | Chain"


def resolved(index: Index) -> Index:
    """What it was found to be: units that are bound to nothing, or parts of another kind than the whole."""
    while isinstance(index, Units):
        if index.bound is None:
            return index
        index = index.bound
    kind, trivial = type(index), 1 if isinstance(index, Product) else 0
    parts: list[Index] = []
    for part in map(resolved, index.parts):
        if isinstance(part, kind):
            parts.extend(part.parts)
        elif part.size != trivial:
            parts.append(part)
    if len(parts) == 1:
        return parts[0]
    return kind(tuple(parts)) if parts else Units(trivial)


def leaves(index: Index) -> Iterator[Units]:
    """The units that an index is made of."""
    index = resolved(index)
    if isinstance(index, Units):
        yield index
    else:
        for part in index.parts:
            yield from leaves(part)


def renewed(index: Index, new: dict[Units, Units]) -> Index:
    """The same index of other units, so that binding these leaves those as they are; ``new`` maps old to new ones."""
    index = resolved(index)
    if isinstance(index, Units):
        return new.setdefault(index, Units(index.size, index.fixed))
    return type(index)(tuple(renewed(part, new) for part in index.parts))


def fix(index: Index) -> bool:
    """Say that the order means something; whether that was news."""
    free = [units for units in leaves(index) if not units.fixed and units.size > 1]
    for units in free:
        units.fixed = True
    return bool(free)


def unify(first: Index, second: Index) -> bool:
    """Make two indices count the same; where they cannot, both are fixed and the answer is False."""
    a, b = resolved(first), resolved(second)
    if a is b or a.size == b.size == 1:
        return True
    if a.size != b.size:
        fix(a), fix(b)
        return False
    if isinstance(b, Units):
        a, b = b, a
    if isinstance(a, Units):  # what is as large as it cannot contain it
        if a.fixed:
            fix(b)
        a.bound = b
        return True
    kind = Product if isinstance(a, Product) and isinstance(b, Product) else Chain
    return _unify_in_step(a, b, kind)


def _unify_in_step(a: Index, b: Index, kind: type[Product] | type[Chain]) -> bool:
    divide = split if kind is Product else cut
    p, q, good = _Parts(a, kind), _Parts(b, kind), True
    while p and q:
        x, y = p.next(), q.next()
        longer, shorter, rest = (x, y, p) if x.size > y.size else (y, x, q)
        if longer.size > shorter.size:
            pieces = divide(longer, shorter.size)
            if pieces is None:
                fix(a), fix(b)
                return False
            longer = pieces[0]
            rest.put_back(pieces[1])
        good &= unify(longer, shorter)
    return good


class _Parts:
    """The parts of an index in order; those that are bound meanwhile come as what they were bound to."""

    def __init__(self, index: Index, kind: type[Product] | type[Chain]) -> None:
        self.kind = kind
        self.left: deque[Index] = deque([index])

    def __bool__(self) -> bool:
        return bool(self.left)

    def next(self) -> Index:
        part = resolved(self.left.popleft())
        while isinstance(part, self.kind):
            self.left.extendleft(reversed(part.parts))
            part = resolved(self.left.popleft())
        return part

    def put_back(self, part: Index) -> None:
        self.left.appendleft(part)


def split(index: Index, leading: int) -> tuple[Index, Index] | None:
    """An index as a product, of which the first factor has ``leading`` entries; None where it is none."""
    index = resolved(index)
    if index.size % leading:
        return None
    if leading == index.size:
        return index, Units(1)
    if isinstance(index, Units):
        pair = Units(leading, index.fixed), Units(index.size // leading, index.fixed)
        index.bound = Product(pair)
        return pair
    if isinstance(index, Chain):
        return _split_chain(index, leading)
    first, others = index.parts[0], Product(index.parts[1:])
    if first.size == leading:
        return first, others
    if first.size > leading:
        pieces = split(first, leading)
        return None if pieces is None else (pieces[0], Product((pieces[1], others)))
    pieces = split(others, leading // first.size) if leading % first.size == 0 else None
    return None if pieces is None else (Product((first, pieces[0])), pieces[1])


def _split_chain(chain: Chain, leading: int) -> tuple[Index, Index] | None:
    """Equal pieces one after the other, which are a product if all pieces count the same."""
    pieces: list[Index] = []
    rest: Index = chain
    for _ in range(leading - 1):
        divided = cut(rest, chain.size // leading)
        if divided is None:
            return None
        pieces.append(divided[0])
        rest = divided[1]
    if not all(unify(piece, rest) for piece in pieces):
        return None
    return Units(leading, fixed=True), rest


def cut(index: Index, at: int) -> tuple[Index, Index] | None:
    """The first ``at`` entries and the rest; None where that takes a product apart."""
    index = resolved(index)
    if at in (0, index.size):
        return (Units(0), index) if at == 0 else (index, Units(0))
    if isinstance(index, Units):
        pair = Units(at, index.fixed), Units(index.size - at, index.fixed)
        index.bound = Chain(pair)
        return pair
    first, others = index.parts[0], index.parts[1:]
    if isinstance(index, Product):
        inner = index.size // first.size
        pieces = cut(first, at // inner) if at % inner == 0 else None
        return None if pieces is None else (Product((pieces[0], *others)), Product((pieces[1], *others)))
    if at < first.size:
        pieces = cut(first, at)
        return None if pieces is None else (pieces[0], Chain((pieces[1], *others)))
    pieces = cut(Chain(others), at - first.size)
    return None if pieces is None else (Chain((first, pieces[0])), pieces[1])


def regroup(indices: Sequence[Index], shape: Sequence[int]) -> list[Index] | None:
    """The indices of a tensor that is viewed in another shape; None where that takes units apart."""
    flat: Index = Product(tuple(indices))
    if flat.size != math.prod(shape) or flat.size == 0:
        return None
    found: list[Index] = []
    for size in shape:
        pieces = split(flat, size) if size > 1 else (Units(1), flat)
        if pieces is None:
            return None
        found.append(pieces[0])
        flat = pieces[1]
    return found


def rows(index: Index, orders: Mapping[Units, Tensor]) -> Tensor:
    """Which entry comes to stand where, (size,) int64, if units are put in these orders."""
    index = resolved(index)
    if isinstance(index, Units):
        return orders[index] if index in orders else torch.arange(index.size)
    parts = [rows(part, orders) for part in index.parts]
    if isinstance(index, Chain):
        starts = [sum(len(part) for part in parts[:i]) for i in range(len(parts))]
        return torch.cat([part + start for part, start in zip(parts, starts, strict=True)])
    whole = parts[0]
    for part in parts[1:]:
        whole = (whole[:, None] * len(part) + part).flatten()
    return whole


def positions(index: Index) -> list[tuple[Units, Tensor]]:
    """Where each unit's entries are: for every occurrence of free units their (units, entries) positions."""
    index = resolved(index)
    if isinstance(index, Units):
        return [] if index.fixed or index.size < 2 else [(index, torch.arange(index.size)[:, None])]
    found, before = [], 0 if isinstance(index, Chain) else 1
    for part in index.parts:
        for units, entries in positions(part):
            if isinstance(index, Chain):
                found.append((units, entries + before))
            else:
                after = index.size // (before * part.size)
                outer = torch.arange(before)[:, None, None] * part.size
                inner = (entries[:, None, :, None] + outer) * after + torch.arange(after)
                found.append((units, inner.reshape(len(entries), -1)))
        before = before + part.size if isinstance(index, Chain) else before * part.size
    return found
