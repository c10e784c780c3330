"""The block Lanczos process: an orthonormal Krylov basis and the operator's projection on it."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.linalg.lapack import dstevd
from torch import Tensor

from .operators import SymmetricOperator, refuse_nonfinite
from .space import adds_up_badly, scaled_norms, squares_in_range
from .symmetry import refuse_asymmetry

__all__ = ["LanczosBasis"]

_CHUNK_BYTES = 64 << 20


class LanczosBasis:
    """An orthonormal basis Q of a block Krylov space, with ``A Q = Q T + Q_next R E_m'``.

    Every new block is orthogonalised twice: against its two neighbours, where nearly all of it lies, and
    then against the whole basis; a third time where that takes away more than it leaves, and so leaves
    rounding too ("twice is enough", Kahan; Daniel et al. 1976; Giraud et al. 2005). Vectors are rows of
    chunks, so that the basis grows without being copied.

    It does not multiply: its caller does, and may do so for several bases at once.

    Args:
        operator: A; for its space, and for what is known of its products.
        block: vectors per block.
        generator: for the random directions that replace exhausted ones.

    Attributes:
        block: vectors per block, from the newest on.
        first: vectors of the first block.
        T: (size, size) float64 projection, on the host.
        R: (next, width) float64 coupling of the last block to the next.
        size: vectors already multiplied.
        total: vectors in the basis, the newest block included.
        broke_down: whether the newest block came from an invariant subspace.
        restarts: how often the basis was cut down to Ritz vectors.
        norm: the largest Ritz value in magnitude that was seen before that.
    """

    def __init__(self, operator: SymmetricOperator, block: int, generator: torch.Generator) -> None:
        self.operator, self.space, self.block, self.generator = operator, operator.space, block, generator
        self.first = block
        self.size = self.total = 0
        self.R = np.zeros((0, 0))
        self.broke_down = False
        self.restarts = 0
        self.norm = 0.0
        self._eps = float(torch.finfo(self.space.dtype).eps)
        self._symmetric = operator.known_symmetric
        self._scale = 0.0
        self._T = np.zeros((64, 64))
        self._chunks: list[Tensor] = []
        self._used = 0  # rows of the last chunk
        self._filled: list[Tensor] = []  # the basis, newest block included, as rows of each chunk
        self._near: list[Tensor] = []  # the last two blocks
        self._newest = torch.empty(0, self.space.size, dtype=self.space.dtype, device=self.space.device)

    @property
    def T(self) -> np.ndarray:
        """The projection on the vectors already multiplied."""
        return self._T[: self.size, : self.size]

    def eigh(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues of T, ascending, and eigenvectors, (size,) and (size, size)."""
        # Not NumPy's: the threads of its BLAS spin on beside torch's, and slow the next product ten times.
        if self.block == 1 and not self.restarts:
            values, vectors, failed = dstevd(self.T.diagonal(), self.T.diagonal(1) if self.size > 1 else np.zeros(1))
            if not failed:
                return values, vectors
        pairs = torch.linalg.eigh(torch.from_numpy(self.T))
        return pairs.eigenvalues.numpy(), pairs.eigenvectors.numpy()

    def begin(self, first: Tensor) -> np.ndarray:
        """Set the first block to the orthonormalised columns of ``first`` (n, block); their R factor."""
        Q, R = self._orthonormal(first)
        self._next_rows(Q.shape[1]).copy_(Q.T)
        return R

    def combined(self, Y: np.ndarray) -> Tensor:
        """``Q Y``, (size, j) -> (n, j)."""
        weights = torch.as_tensor(np.ascontiguousarray(Y)).to(self._newest)
        out = torch.zeros(self.space.size, weights.shape[1], dtype=self._newest.dtype, device=self._newest.device)
        first = 0
        for rows in self._filled:
            part = weights[first : first + len(rows)]
            out.addmm_(rows[: len(part)].T, part)
            first += len(rows)
        return out

    def restart(self, values: np.ndarray, Y: np.ndarray) -> None:
        """Go on from some Ritz vectors in place of the whole basis (thick restart; Wu and Simon 2000).

        With p of them as Q and their Ritz values as T, the relation ``A Q = Q T + Q_next R Y_m`` still holds: the
        newest block couples with all of them. They are written over the basis, so that no more memory is taken.

        Args:
            values: (p,) Ritz values.
            Y: (size, p) their coordinates in the basis.
        """
        newest, coupling = self._newest.clone(), self.R @ Y[self.size - self.R.shape[1] :]
        p, weights = Y.shape[1], torch.as_tensor(np.ascontiguousarray(Y.T)).to(newest)
        per_row = max(1, _CHUNK_BYTES // (self.size * newest.element_size()))
        for first in range(0, self.space.size, per_row):
            columns = slice(first, first + per_row)
            made = weights @ torch.cat([rows[:, columns] for rows in self._filled])[: self.size]
            for rows, part in zip(self._filled, made.split([len(rows) for rows in self._filled_by(p)]), strict=False):
                rows[: len(part), columns] = part
        self._filled = self._filled_by(p)
        self._chunks = self._chunks[: len(self._filled)]
        self._used = len(self._filled[-1])
        self._T = np.zeros_like(self._T)
        self._T[:p, :p] = np.diag(values)
        self.size = self.total = p
        self._newest = newest[:0]  # so that it is no neighbour of what comes next
        self._next_rows(len(newest)).copy_(newest)
        self._T[p : self.total, :p], self._T[:p, p : self.total] = coupling, coupling.T
        self.restarts += 1

    def widen(self, vector: Tensor) -> np.ndarray:
        """Let blocks have one vector more from the newest on, so that the basis spans this one too.

        ``A Q = Q T + Q_next R E_m'`` still holds: what is new in it has no coupling with what was multiplied.

        Args:
            vector: (n, 1), of which some is not in the basis.

        Returns:
            (total,) its coordinates in the basis.
        """
        w, width = vector.clone(), self.total - self.size
        inside = sum(self._cleaned(w, self._filled) for _ in range(2))
        outside = self.space.norms(w)
        coordinates = torch.cat((torch.as_tensor(inside).view(-1), outside.view(1))).to("cpu", torch.float64).numpy()
        newest, before = self._newest.clone(), self._near[0][: -width if len(self._near) == 1 else None]
        self._used -= width
        self._filled[-1] = self._chunks[-1][: self._used]
        self.total, self.block, self._newest = self.size, width + 1, before
        self._next_rows(width + 1).copy_(torch.cat((newest, w.T / outside)))
        self.R = np.vstack((self.R, np.zeros((1, self.R.shape[1]))))
        return coordinates

    def _filled_by(self, count: int) -> list[Tensor]:
        """The first ``count`` rows of the basis, by chunk."""
        found: list[Tensor] = []
        for rows in self._filled:
            if count > 0:
                found.append(rows[:count])
                count -= len(rows)
        return found

    @property
    def newest(self) -> Tensor:
        """The newest block (n, width), which is to be multiplied next."""
        return self._newest.T

    def absorb(self, product: Tensor) -> None:
        """Take in the operator's product with the newest block, (n, width), and append the next block.

        Raises:
            NonFiniteError: if the product has a NaN or infinite entry.
            SettingError: if it shows that the operator is not symmetric.
        """
        alone = self.block == len(self._filled) == len(self._near) == 1
        rows = (product.view(-1) if alone else product.T).contiguous()  # rows, since torch is slow on a column
        if rows.data_ptr() == self._newest.data_ptr():  # an identity may return its input
            rows = rows.clone()
        if alone:
            self._extend_by_one(rows)
        else:
            self._extend_by_block(rows.T)

    def _extend_by_one(self, w: Tensor) -> None:
        """The step for single vectors, (n,), on one chunk: few operations, since small nets notice each."""
        near, basis, space = self._near[0], self._filled[0], self.space
        first = space.coordinates(near, w)
        w.addmv_(near.T, first, alpha=-1)
        second = space.coordinates(basis, w)
        w.addmv_(basis.T, second, alpha=-1)
        found = torch.cat((first, second, space.length(w))).tolist()  # the one synchronisation of a step
        plain = squares_in_range(found[-1:], space.dtype)
        if not plain:
            (found[-1],) = scaled_norms(w[:, None])
        size, cut, norm, at = math.hypot(*found), near.shape[0], found[-1], self.size
        refuse_nonfinite(size)
        self._scale = max(self._scale, size)
        if cut == 2 and not self._symmetric:  # what A brings back to the neighbour is what it had from there
            refuse_asymmetry(self.operator, found[0], float(self._T[at, at - 1]), self._scale)
        self._T[at, at] = found[cut - 1] + found[-2]
        if math.hypot(*found[cut:-1]) > norm:
            again = self._cleaned(w[:, None], self._filled)
            self._T[at, at] += float(again[-1])
            norm = float(space.length(w)) if plain else scaled_norms(w[:, None])[0]
        self.size = self.total
        if norm > self._tiny and self.size < space.size:
            self._append_one(w[None], norm)
        else:
            self._append_next(w[:, None], np.array([norm]))

    def _extend_by_block(self, W: Tensor) -> None:
        width = self.total - self.size
        near, far = self._cleaned(W, self._near), self._cleaned(W, self._filled)
        together = torch.cat((near.reshape(-1), far.reshape(-1), self.space.norms(W)))
        found = together.to("cpu", torch.float64).numpy()  # the one synchronisation of a step
        plain = squares_in_range(found[-width:], self.space.dtype)
        if not plain:
            found[-width:] = scaled_norms(W)
        size = math.sqrt(found @ found)
        refuse_nonfinite(size)
        self._scale = max(self._scale, size)
        cut, square = near.numel(), width * width
        if cut > square:
            back = found[: cut - square].reshape(-1, width)
            there = self._T[self.size - len(back) : self.size, self.size : self.total]
            worst = np.unravel_index(abs(back - there).argmax(), back.shape)
            refuse_asymmetry(self.operator, float(back[worst]), float(there[worst]), self._scale)
        removed, norms = found[cut:-width], found[-width:]
        diagonal = found[cut - square : cut] + removed[-square:]
        if removed @ removed > norms.min() ** 2:
            diagonal = diagonal + self._cleaned(W, self._filled)[-width:].reshape(-1).to("cpu", torch.float64).numpy()
            norms = self.space.norms(W).to("cpu", torch.float64).numpy() if plain else np.array(scaled_norms(W))
        if width > 1:
            diagonal = diagonal.reshape(width, width)
            diagonal = 0.5 * (diagonal + diagonal.T)
        self._T[self.size : self.total, self.size : self.total] = diagonal
        self.size = self.total
        self._append_next(W, norms)

    def _cleaned(self, W: Tensor, basis: list[Tensor]) -> Tensor:
        """Take rows of the basis out of the columns of W, in place; what was in them, (.., width)."""
        found = []
        for rows in basis:
            Q = rows.T
            C = self.space.inner(Q, W)
            W.addmm_(Q, C, alpha=-1)
            found.append(C)
        return found[0] if len(found) == 1 else torch.cat(found)

    def _append_next(self, W: Tensor, norms: np.ndarray) -> None:
        width = W.shape[1]
        room = min(width, self.space.size - self.size)
        tiny = self._tiny
        if width == room == 1 and norms[0] > tiny:
            self._append_one(W.T, float(norms[0]))
            return
        Q, R = self._again_orthonormal(*self._orthonormal(W, norms))
        self.broke_down = room < width or min(map(abs, R.diagonal())) <= tiny
        if self.broke_down:
            Q, R = self._orthonormal_with_refill(W, room, tiny)
        self._next_rows(Q.shape[1]).copy_(Q.T)
        last, after = slice(self.size - width, self.size), slice(self.size, self.total)
        self._T[after, last], self._T[last, after] = R, R.T
        self.R = R

    def _append_one(self, row: Tensor, norm: float) -> None:
        """The next vector from a row (1, n) of this length."""
        at = self.size
        torch.div(row, norm, out=self._next_rows(1))
        self._T[at, at - 1] = self._T[at - 1, at] = norm
        self.broke_down, self.R = False, np.array([[norm]])

    @property
    def _tiny(self) -> float:
        """A length that is nothing but rounding."""
        return 10 * self._eps * self._scale

    def _orthonormal(self, W: Tensor, norms: np.ndarray | None = None) -> tuple[Tensor, np.ndarray]:
        """W (n, b) = Q R: orthonormal columns Q, and R (b, b) in float64 on the host."""
        if W.shape[1] == 1:
            norm = float(self.space.norms(W) if norms is None else norms[0])
            return (W.T / norm).T, np.array([[norm]])
        Q, R = torch.linalg.qr(W)
        if adds_up_badly(W):  # in LAPACK too
            R = self.space.inner(Q.div_(self.space.norms(Q)), W)
        return Q, R.to("cpu", torch.float64).numpy()

    def _again_orthonormal(self, Q: Tensor, R: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Q R once more, where a column of Q is a small part of what it was made from.

        What rounding left there of the basis is a larger part of it, by as much: all of it, where the
        operator is of low rank but for rounding.
        """
        parts = abs(R.diagonal())
        for _ in range(3):
            if parts.size < 2 or parts.min() > 0.1 * parts.max() or not parts.all():
                break
            self._cleaned(Q, self._filled)
            Q, again = self._orthonormal(Q)
            R, parts = again @ R, abs(again.diagonal())
        return Q, R

    def _orthonormal_with_refill(self, W: Tensor, room: int, tiny: float) -> tuple[Tensor, np.ndarray]:
        """Orthonormalise column by column; where nothing is left, go on in a random direction.

        The basis spans an invariant subspace then. A random direction orthogonal to it, with zero
        coupling, keeps the relation A Q = Q T + ... exact and finds further copies of an eigenvalue.
        """
        found: list[Tensor] = []
        R = np.zeros((room, W.shape[1]))
        for j, w in enumerate(W.T):
            for _ in range(2):
                for i, q in enumerate(found):
                    c = torch.dot(q, w)
                    R[i, j] += float(c)
                    w = w - c * q
            norm = float(self.space.norms(w[:, None]))
            if norm > tiny and len(found) < room:
                R[len(found), j] = norm
                found.append(self._direction(w / norm, found))
        while len(found) < room:
            w = self.space.random(1, self.generator)[:, 0]
            found.append(self._direction(w / self.space.norms(w[:, None]), found))
        return (torch.stack(found, dim=1) if found else W[:, :0]), R

    def _direction(self, w: Tensor, found: list[Tensor]) -> Tensor:
        """A unit vector made orthogonal to the basis and to the new block so far."""
        w = w[:, None].clone()
        for _ in range(3):
            self._cleaned(w, self._filled)
            for q in found:
                w -= torch.dot(q, w[:, 0]) * q[:, None]
            w /= self.space.norms(w)
        return w[:, 0]

    def _next_rows(self, width: int) -> Tensor:
        """Room for the next block as the newest rows of the basis, (width, n), to be written."""
        n = self.space.size
        if not self._chunks or self._used + width > self._chunks[-1].shape[0]:
            fits = min(64, n, max(1, _CHUNK_BYTES // (n * self._newest.element_size())))
            fits = max(self.block, fits // self.block * self.block)  # so that no block lies on two chunks
            self._chunks.append(self._newest.new_empty(fits, n))
            self._filled.append(self._chunks[-1][:0])
            self._used = 0
        chunk, before = self._chunks[-1], self._newest
        first, self._used = self._used, self._used + width
        self._newest = chunk[first : self._used]
        self._filled[-1] = chunk[: self._used]
        same = first >= before.shape[0]  # the block before is on the same chunk
        self._near = [chunk[first - before.shape[0] : self._used]] if same else [before, self._newest]
        self.total += width
        if self.total > len(self._T):
            T = np.zeros((2 * self.total, 2 * self.total))
            T[: len(self._T), : len(self._T)] = self._T
            self._T = T
        return self._newest
