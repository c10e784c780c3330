"""Jacobian contraction: the Jacobians of all samples by some parameters at a time, multiplied and thrown away.

A pass over the data makes the rows of a group of parameters, for some of the outputs, of all samples. The trace form
is a sum over outputs, which may be taken one after the other; the full form needs all of them at once, and is a sum
over parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import SettingError
from .kernels.inner_products import inner_products
from .tangent_jacobians import SampleJacobians, samples_in
from .tangent_positions import Factors, entries, fewer, pays, remade

__all__ = ["Pass", "contracted", "fewest_passes"]

_FOR_GRAPHS = 0.3  # of the memory, at most
_AT_ONCE = 128 << 20  # bytes for the graphs and Jacobians of a few samples: more are no faster
_STRIPES = 8  # of rows: of a symmetric product only the upper half is computed
_NARROWEST = 64  # rows of a stripe: products of fewer are slow


@dataclass(frozen=True)
class Pass:
    """What one pass over the data makes.

    Attributes:
        rows: which combinations of outputs.
        pieces: (position of a parameter, which of its entries), or of what is kept in place of them.
        factored: the parameters whose derivatives are kept as the factors that they are products of.
    """

    rows: slice
    pieces: tuple[tuple[int, slice], ...]
    factored: frozenset[int] = frozenset()

    @property
    def width(self) -> int:
        """Entries of the parameters."""
        return sum(some.stop - some.start for _, some in self.pieces)


def fewest_passes(jacobians: SampleJacobians, form: str, samples: int, memory: int) -> list[Pass]:
    """The passes that keep the rows within memory.

    Raises:
        SettingError: if not one entry fits.
    """
    k, space = len(jacobians.rows), jacobians.objective.space
    room = (memory - _for_graphs(memory)) // (samples * torch.finfo(space.dtype).bits // 8)  # entries for each sample
    for rows in range(k, 0, -1) if form == "trace" else (k,):
        kept = _kept(jacobians, form, samples, rows)
        if rows * sum(kept.entries) + kept.remade <= room:
            starts = range(0, k, rows)
            return [_whole(jacobians, form, samples, slice(first, min(first + rows, k))) for first in starts]
    rows = 1 if form == "trace" else k
    if (width := room // rows) < 1:
        raise SettingError(
            f"memory={memory} bytes beside the kernel is too little for one parameter's derivatives of {samples} "
            f"samples with {rows} outputs; allow more, or take fewer samples"
        )
    kept = _kept(jacobians, form, samples, rows, width)
    return [
        Pass(slice(first, first + rows), group, kept.factored & {i for i, _ in group})
        for first in range(0, k, rows)
        for group in _groups(kept.entries, width)
    ]


def _for_graphs(memory: int) -> int:
    """Bytes for the graphs of a few samples at once."""
    return min(_AT_ONCE, int(_FOR_GRAPHS * memory))


def _whole(jacobians: SampleJacobians, form: str, samples: int, rows: slice) -> Pass:
    """All parameters at once."""
    kept = _kept(jacobians, form, samples, rows.stop - rows.start)
    return Pass(rows, tuple((i, slice(0, n)) for i, n in enumerate(kept.entries)), kept.factored)


@dataclass(frozen=True)
class _Kept:
    """What is kept of each sample.

    Attributes:
        entries: of each parameter, for an output.
        factored: the parameters of which factors are kept.
        remade: entries of the Jacobians, of a few outputs, that are made of them again.
    """

    entries: tuple[int, ...]
    factored: frozenset[int]
    remade: int


def _kept(jacobians: SampleJacobians, form: str, samples: int, rows: int, most: float = math.inf) -> _Kept:
    """Factors where they are fewer; with room for few entries only those of which no Jacobian is made again."""
    numels = list(jacobians.objective.space.numels)
    factored, most_again = set(), 0
    for i, shape in jacobians.shapes.items() if form != "full" else ():
        again = 0 if pays(shape, rows) else remade(shape, samples, rows)
        if again and (most < math.inf or not fewer(shape, rows)):
            continue
        if (kept := entries(shape, rows)) <= min(most, numels[i]):
            factored.add(i)
            numels[i], most_again = kept, max(most_again, again)
    return _Kept(tuple(numels), frozenset(factored), most_again)


def _groups(numels: tuple[int, ...], width: int) -> Iterator[tuple[tuple[int, slice], ...]]:
    """Consecutive parameters of at most so many entries together, cut where one alone has more."""
    group: list[tuple[int, slice]] = []
    room = width
    for i, numel in enumerate(numels):
        start = 0
        while start < numel:
            if not room or (numel - start > room and numel - start <= width):
                yield tuple(group)
                group, room = [], width
            stop = min(numel, start + room)
            group.append((i, slice(start, stop)))
            room -= stop - start
            start = stop
    if group:
        yield tuple(group)


def contracted(jacobians: SampleJacobians, form: str, samples: int, passes: list[Pass], memory: int) -> Tensor:
    """The kernel, float64 on the host."""
    space, k = jacobians.objective.space, len(jacobians.rows)
    side = samples if form == "trace" else samples * k
    kernel = torch.zeros(side, side, dtype=torch.float64, device=space.device if _has_double(space.device) else "cpu")
    most = max(len(jacobians.rows[each.rows]) * each.width for each in passes)
    room = torch.empty(samples * most, dtype=space.dtype, device=space.device)
    for each in passes:
        rows = len(jacobians.rows[each.rows])
        widths = [some.stop - some.start for _, some in each.pieces]
        blocks = room[: samples * rows * each.width].split([samples * rows * width for width in widths])
        pieces: list[Tensor | Factors] = [
            Factors.within(block, jacobians.shapes[i], samples, rows)
            if i in each.factored
            else block.view(samples, rows, -1)
            for block, (i, _) in zip(blocks, each.pieces, strict=True)
        ]
        _fill(pieces, jacobians, each, memory)
        again = _room_again(pieces, room)
        for piece in pieces:
            if isinstance(piece, Tensor):
                _add_gram(kernel, piece.view(side, -1))
            elif piece.by_position:
                piece.add_gram(kernel, again)
            else:
                for J in piece.jacobians(again):
                    _add_gram(kernel, J)
    kernel = kernel.cpu()
    kernel = kernel.triu() + kernel.triu(1).T
    return kernel / k if form == "trace" else kernel


def _room_again(pieces: list[Tensor | Factors], like: Tensor) -> Tensor:
    """For the Jacobians that are made of factors: once for all, since new memory takes longer than they do."""
    made = [p for p in pieces if isinstance(p, Factors) and not p.by_position]
    return like.new_empty(max((len(p.b) * remade(p.shape, len(p.b), p.b.shape[2]) for p in made), default=0))


def _has_double(device: torch.device) -> bool:
    return device.type != "mps"


def _fill(pieces: list[Tensor | Factors], jacobians: SampleJacobians, each: Pass, memory: int) -> None:
    """Make what is kept of all samples, a few at a time: of each piece one block (n, rows, width), or its factors."""
    space, rows = jacobians.objective.space, len(jacobians.rows[each.rows])
    directly = {i: part for i, part in each.pieces if i not in each.factored}
    cut = {i: space.numels[i] for i, part in directly.items() if part.stop - part.start < space.numels[i]}
    size = torch.finfo(space.dtype).bits // 8
    per_sample = jacobians.bytes_of_sample(rows, each.factored) + sum(cut.values()) * rows * size
    at_once = max(1, _for_graphs(memory) // per_sample)
    named = {i: piece for piece, (i, _) in zip(pieces, each.pieces, strict=True)}
    done = 0
    for index, batch in enumerate(jacobians.objective.batches):
        count = samples_in(batch.content)
        for first in range(0, count, at_once):
            some = slice(first, min(first + at_once, count))
            there = slice(done, done + some.stop - some.start)
            blocks = {i: piece[there].zero_() for i, piece in named.items() if isinstance(piece, Tensor)}
            factors = {i: piece.of(there) for i, piece in named.items() if isinstance(piece, Factors)}
            whole = {i: J.new_zeros(len(J), rows, cut[i]) if i in cut else J for i, J in blocks.items()}
            jacobians.write(index, some, each.rows, whole, factors)
            for i in cut:
                blocks[i].copy_(whole[i][..., directly[i]])
            done = there.stop


def _add_gram(kernel: Tensor, J: Tensor) -> None:
    """``kernel += J J'``, above the diagonal and on it."""
    stripe = max(_NARROWEST, -(-len(J) // _STRIPES))
    for first in range(0, len(J), stripe):
        kernel[first : first + stripe, first:] += inner_products(J[first : first + stripe], J[first:]).to(kernel)
