"""Jacobian contraction: the Jacobians of all samples by some parameters at a time, multiplied and thrown away.

A pass over the data makes the rows of a group of parameters, for some of the outputs, of all samples. The trace form
is a sum over outputs, which may be taken one after the other; the full form needs all of them at once, and is a sum
over parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import SettingError
from .tangent_jacobians import SampleJacobians, samples_in

__all__ = ["Pass", "contracted", "fewest_passes"]

_FOR_ROWS = 0.7  # of the memory; the rest is for the graphs of a few samples
_AT_ONCE = 128 << 20  # bytes for the graphs and Jacobians of a few samples: more are no faster
_STRIPES = 8  # of rows: of a symmetric product only the upper half is computed
_NARROWEST = 64  # rows of a stripe: products of fewer are slow


@dataclass(frozen=True)
class Pass:
    """What one pass over the data makes.

    Attributes:
        rows: which combinations of outputs.
        pieces: (position of a parameter, which of its entries).
    """

    rows: slice
    pieces: tuple[tuple[int, slice], ...]

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
    size, entries = torch.finfo(space.dtype).bits // 8, int(_FOR_ROWS * memory)
    per_row = samples * space.size * size  # all parameters, one combination of outputs
    rows = min(k, entries // per_row) if form == "trace" and k * per_row > entries else k
    if rows >= 1 and rows * per_row <= entries:
        whole = tuple((i, slice(0, n)) for i, n in enumerate(space.numels))
        return [Pass(slice(first, min(first + rows, k)), whole) for first in range(0, k, rows)]
    rows = 1 if form == "trace" else k
    width = entries // (samples * rows * size)
    if width < 1:
        raise SettingError(
            f"memory={memory} bytes beside the kernel is too little for one parameter's derivatives of {samples} "
            f"samples with {rows} outputs ({samples * rows * size} bytes); allow more, or take fewer samples"
        )
    groups = list(_groups(space.numels, width))
    return [Pass(slice(first, first + rows), group) for first in range(0, k, rows) for group in groups]


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
        pieces = [block.view(samples, rows, width) for block, width in zip(blocks, widths, strict=True)]
        _fill(pieces, jacobians, each, memory)
        for J in pieces:
            _add_gram(kernel, J.view(side, -1))
    kernel = kernel.cpu()
    kernel = kernel.triu() + kernel.triu(1).T
    return kernel / k if form == "trace" else kernel


def _has_double(device: torch.device) -> bool:
    return device.type != "mps"


def _fill(pieces: list[Tensor], jacobians: SampleJacobians, each: Pass, memory: int) -> None:
    """Make the rows of all samples, a few at a time, in one block (n, rows, width) for each piece."""
    numels = jacobians.objective.space.numels
    rows, size = pieces[0].shape[1], pieces[0].element_size()
    cut = {i: numels[i] for i, part in each.pieces if part.stop - part.start < numels[i]}
    per_sample = jacobians.bytes_of_sample(rows) + sum(cut.values()) * rows * size
    at_once = max(1, min(_AT_ONCE, int((1 - _FOR_ROWS) * memory)) // per_sample)
    done = 0
    for index, batch in enumerate(jacobians.objective.batches):
        count = samples_in(batch.content)
        for first in range(0, count, at_once):
            some = slice(first, min(first + at_once, count))
            stop = done + some.stop - some.start
            blocks = {i: block[done:stop].zero_() for block, (i, _) in zip(pieces, each.pieces, strict=True)}
            whole = {i: J.new_zeros(len(J), rows, cut[i]) if i in cut else J for i, J in blocks.items()}
            jacobians.write(index, some, each.rows, whole)
            for i, part in each.pieces:
                if i in cut:
                    blocks[i].copy_(whole[i][..., part])
            done = stop


def _add_gram(kernel: Tensor, J: Tensor) -> None:
    """``kernel += J J'``, above the diagonal and on it."""
    stripe = max(_NARROWEST, -(-len(J) // _STRIPES))
    for first in range(0, len(J), stripe):
        kernel[first : first + stripe, first:] += (J[first : first + stripe] @ J[first:].T).to(kernel)
