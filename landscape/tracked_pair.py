r"""The largest eigenpair of an operator that changes little between measurements, as a Hessian does during training.

What is left of earlier measurements is a model of the operator: a few orthonormal directions U with their Ritz values,
:math:`\tilde A = U \Lambda U^T`. Each measurement multiplies the vector that is expected to be the eigenvector. With
the products W made so far, of directions V, all of

.. math:: \begin{pmatrix} V^T A V & V^T A C \\ C^T A V & C^T \tilde A C \end{pmatrix}

is exact but for the last block, where C are the directions of U and of W that are not in V. Its leading
eigenvector is what is multiplied next: to first order the perturbed eigenvector, also among eigenvalues that are close,
where Lanczos has to tell them apart anew each time. That is Davidson's method (J. Comput. Phys. 17, 87, 1975; Sleijpen
and van der Vorst, SIAM J. Matrix Anal. Appl. 17, 401, 1996) with the last measurement in the place of the
preconditioner. What is reported is of V and W alone: a Ritz pair with its true residual, whatever the model is worth.

Where the first eigenvalue has surely fallen, what is known of the others is taken to have fallen with it: mostly the
loss has become smaller, and its Hessian altogether. What was seen once would stand in the way for good else.

An eigenvalue that overtakes the first leaves no sign in products with the first eigenvector. So one measurement of five
multiplies, besides, the direction that is thought to come second, unless its search has gone through that one anyway.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.linalg.lapack import dsyev
from torch import Tensor

from .compositions import Preconditioned
from .errors import NonFiniteError, SettingError
from .html_table import Shown
from .krylov import Search, check_tolerance
from .operators import Observed, SymmetricOperator, as_operator, refuse_nonfinite
from .results import Eigenpairs
from .space import VectorSpace
from .symmetry import refuse_asymmetric

__all__ = ["TrackedPair"]

_RANK = 6
_MEMORY = 256 << 20  # bytes of the directions kept
_MOST = 12  # directions with products, before they are cut down to the Ritz vector
_REMEMBERED = 0.5  # from one measurement to the next, of how far predictions came true
_LOOK = 5  # measurements, of which one looks at a second direction too
_OUTSIDE = 1e-5  # squared part of a unit vector outside of others that is more than rounding
_CHUNK = 64 << 20  # bytes of further rows at a time


@dataclass(frozen=True, eq=False)
class TrackedPair(Shown):
    """What the last measurements have learnt of an operator's leading eigenvectors; the next one starts from it.

    Attributes:
        vectors: (n, r) leading directions, the eigenvector first; with a preconditioned operator, as directions of
            the parameters, since the preconditioner changes too.
        values: (r,) float64 their Ritz values, on the host: the first as measured, the others as last seen, less what
            the first has fallen by since.
        before: (n,) the eigenvector of the measurement before; None where there was none.
        came_true: how far eigenvectors went on as they had moved, as shares of how far that was, over the last
            measurements; and out of how many. Each counts alike: at first they move much further than later.
        since: measurements since another direction than the first was looked at.

    Example:
        >>> import torch
        >>> from losscope.landscape import TrackedPair
        >>> A = torch.diag(torch.cat((torch.tensor([9.0, 8.0, 7.0]), torch.linspace(0, 1, 500))))
        >>> found, known = TrackedPair.cold(A, seed=0)
        >>> again, known = known.warm(A)
        >>> round(float(again.values[0]), 2), again.matvecs
        (9.0, 1)
    """

    vectors: Tensor = field(repr=False)
    values: np.ndarray
    before: Tensor | None = field(default=None, repr=False)
    came_true: tuple[float, float] = (0.0, 0.0)
    since: int = 0

    @classmethod
    def of(cls, pairs: Eigenpairs) -> TrackedPair:
        """From eigenpairs found otherwise, of an operator of the parameters; guards count as the last of the pairs."""
        vectors = torch.cat((pairs.vectors, pairs.guards), dim=1)
        values = pairs.values.numpy()
        return cls(vectors, np.pad(values, (0, vectors.shape[1] - len(values)), mode="edge"))

    @classmethod
    def cold(
        cls,
        A: Any,
        *,
        tol: float = 1e-2,
        max_matvecs: int | None = None,
        confidence: float = 0.95,
        seed: int | torch.Generator | None = None,
    ) -> tuple[Eigenpairs, TrackedPair]:
        """The largest eigenpair from a random start, as `top_eigenpairs` finds it, with its upper bound.

        Args:
            A: an operator of ours, a dense matrix (n, n), or anything with ``shape`` and ``@``.
            tol: relative residual, as for `top_eigenpairs`.
            max_matvecs: most products to spend; by default 1000.
            confidence: probability with which the upper bound holds.
            seed: int, generator, or None for fresh entropy; the global stream is never used.

        Returns:
            The pair, and what to start the next measurement from.

        Raises:
            SettingError: if an argument means nothing, or the operator is not symmetric.
            NonFiniteError: if a product is NaN or infinite.
        """
        operator = as_operator(A)
        search = Search(operator, 1, "LA", tol, None, None, 0, max_matvecs, None, confidence, seed)
        found = search.run()
        values, vectors = search.leading(_rank(operator.space))
        return found, cls(_outwards(operator, vectors), values)

    def warm(
        self, A: Any, *, tol: float = 1e-2, max_matvecs: int = 100, start: Tensor | None = None
    ) -> tuple[Eigenpairs, TrackedPair]:
        """The largest eigenpair, from what is known; without random numbers, and so without an upper bound.

        Args:
            A: the operator, as for `cold`.
            tol: stop when the residual is at most this times the scale ``max(|theta|, ||A|| / 1000)``, and no
                eigenvalue that was seen before is left above.
            max_matvecs: most products to spend.
            start: (n,) what to multiply first, if better is known than the last eigenvector; (2, n) with its product.

        Returns:
            The pair, with ``bound="lower"``, and what to start the next measurement from.

        Raises:
            SettingError: if an argument means nothing, or the operator is not symmetric.
            NonFiniteError: if a product is NaN or infinite.
        """
        operator = as_operator(A)
        check_tolerance(operator.space, tol)
        if self.vectors.shape[0] != operator.space.size or max_matvecs < 1:
            raise SettingError(
                f"this knows vectors of {self.vectors.shape[0]} entries and spends 1 product at least; got an operator "
                f"of size {operator.space.size} and max_matvecs={max_matvecs!r}"
            )
        with operator.held():
            operator.plan(min(max_matvecs, 4), 1)
            span = _Span(operator, self)
            span.add(*(span.expected[None] if start is None else torch.atleast_2d(start.detach().to(self.vectors))))
            while span.matvecs < max_matvecs and (x := span.next_direction(tol)) is not None:
                if len(span.T) >= _MOST:
                    span.restart()
                span.add(x)
        return span.result(tol), span.learnt()

    def renewed(
        self, A: Any, *, tol: float = 1e-2, max_matvecs: int = 100, seed: int | torch.Generator | None = None
    ) -> tuple[Eigenpairs, TrackedPair]:
        """A cold start for a new upper bound; the pair from there, or from here where that leads further up.

        To a loose tolerance a random start may converge to the second of two eigenvalues that are close. One product
        with the last eigenvector tells.

        Args:
            A: the operator, as for `cold`, and so the others.
            tol: relative residual.
            max_matvecs: most products to spend on either.
            seed: of the random start.

        Returns:
            The pair, with the upper bound of the random start, and what to start the next measurement from.

        Raises:
            SettingError: if an argument means nothing, or the operator is not symmetric.
            NonFiniteError: if a product is NaN or infinite.
        """
        operator = as_operator(A)
        fresh, known = self.cold(operator, tol=tol, max_matvecs=max_matvecs, seed=seed)
        u = _inwards(operator, self.vectors[:, :1])
        u = u / operator.space.norms(u)
        if not float((u * (operator @ u)).sum(dtype=torch.float64)) > float(fresh.values[0]):
            return fresh, replace(known, before=self.vectors[:, 0], came_true=self.came_true)
        followed, known = self.warm(operator, tol=tol, max_matvecs=max_matvecs)
        high = torch.maximum(fresh.high, followed.values)
        return replace(followed, high=high, rest=fresh.rest, bound=fresh.bound), known


class _Span:
    """Orthonormal directions V with their products W, their Ritz pair, and what is to be thought of the operator now.

    All are rows of one block, after the directions known before: v, w, v, w, ..., then the Ritz vector's residual. What
    is computed is computed with their inner products: the rows are as long as there are parameters.

    Args:
        operator: A.
        before: what the last measurements have learnt.

    Attributes:
        T: (m, m) float64, the operator's projection on V.
        theta, length: the Ritz value, and the length of the Ritz vector's residual.
        expected: (n,) where the eigenvector is expected: on from where it is known, as far as that came true before.
    """

    def __init__(self, operator: SymmetricOperator, before: TrackedPair) -> None:
        self.operator, self.space, self._products = operator, operator.space, Observed(operator)
        self._known, self._before, self._looked = before.vectors.shape[1], before, False
        blocks = [_inwards(operator, before.vectors).T]
        if before.before is not None:
            blocks.append(_inwards(operator, before.before[:, None]).T)
        self._begin(blocks, before.values)
        self._moved, self.expected = np.zeros(self._first), self._rows[0]
        if before.before is not None:
            last = self._first - 1
            self._moved[0], self._moved[last] = self._scale[0], -math.copysign(self._scale[last], self._gram[0, last])
            here = _share(*before.came_true) * self._moved
            here[0] += self._scale[0]
            self.expected = self._combined(here)

    @property
    def matvecs(self) -> int:
        """Products made."""
        return self._products.matvecs

    def _begin(self, blocks: list[Tensor], values: np.ndarray) -> None:
        """Known rows alone, of which the first ``_known`` have Ritz values."""
        first = self._first = self._count = sum(map(len, blocks))
        self._rows = blocks[0].new_empty(first + self._room(blocks[0]), blocks[0].shape[1])
        torch.cat(blocks, out=self._rows[:first])
        self._gram = np.empty((first + 2 * _MOST + 3,) * 2)  # of the rows there are, and of the residual after them
        self._gram[:first, :first] = self._inner(self._rows[:first], self._rows[:first])
        self._scale = np.ones(len(self._gram))  # 1 / lengths
        self._scale[:first] = 1 / np.sqrt(np.maximum(self._gram.diagonal()[:first], 1e-300))
        self._values, self.T = values, np.zeros((0, 0))
        self._highest = float(values[0])

    def _room(self, block: Tensor) -> int:
        """How many further rows to take at a time: products with their directions, and a residual."""
        return max(3, min(9, _CHUNK // (block.shape[1] * block.element_size())))

    def _inner(self, U: Tensor, V: Tensor) -> np.ndarray:
        """Of rows with rows, (a, n), (b, n) -> (a, b), or with one, (n,) -> (a,)."""
        found = self.space.inner(U.T, V.T) if V.ndim == 2 else self.space.coordinates(U, V)
        return found.cpu().numpy()

    def _combined(self, weights: np.ndarray) -> Tensor:
        """(k, count) coordinates -> (k, n), or one of them."""
        rows = self._rows[: weights.shape[-1]]
        return torch.from_numpy(weights).to(rows) @ rows

    def _combined_into(self, place: Tensor, weights: np.ndarray, rows: Tensor) -> None:
        """A combination of rows, written to one after them."""
        torch.mv(rows.T, torch.from_numpy(weights).to(rows), out=place)

    def add(self, x: Tensor, product: Tensor | None = None) -> None:
        """Multiply one direction more, unless its product is there, as that of the first may be; see what follows."""
        if len(self.T):  # once, since it was made to be orthogonal
            V = self._rows[self._first : self._count : 2]
            x = torch.addmv(x, V.T, self.space.coordinates(V, x), alpha=-1)
        place = self._next_row()
        torch.div(x, length := self.space.length(x), out=place)
        self._append(self._products.unchecked(place[:, None])[:, 0] if product is None else product / length)

    def _next_row(self) -> Tensor:
        """Where the next direction goes, with room for its product and a residual after it."""
        count = self._count
        if count + 3 > len(self._rows):
            rows = self._rows
            self._rows = rows.new_empty(count + self._room(rows), rows.shape[1])
            self._rows[:count] = rows[:count]
        return self._rows[count]

    def _append(self, w: Tensor) -> None:
        """The product with the next row."""
        first, count, G = self._first, self._count, self._gram
        self._rows[count + 1] = w
        self._count = count = count + 2
        inner = self._inner(self._rows[:count], self._rows[count - 2 : count])
        refuse_nonfinite(float(inner[-1, -1]))
        G[:count, count - 2 : count], G[count - 2 : count, : count - 2] = inner, inner[:-2].T
        self._scale[count - 1] = 1 / math.sqrt(max(G[count - 1, count - 1], 1e-300))
        self.T = G[first:count:2, first + 1 : count : 2]
        if len(self.T) == 2:
            rows = self._rows[first:count]
            refuse_asymmetric(self.operator, rows[::2].T, rows[1::2].T)
        self._solve()

    def _solve(self) -> None:
        """The Ritz pair with the largest value, and its residual, as the row after the others."""
        first, count, G = self._first, self._count, self._gram
        values, Y = _eigh(self.T)
        self.theta, self._y = float(values[-1]), Y[:, -1]
        norm = max(abs(self.theta), abs(float(values[0])))
        self.rounding, self._size = self.space.rounding * norm, max(abs(self.theta), 1e-3 * norm)
        weights = np.empty(2 * len(values))  # of v, w, v, w, ...
        weights[::2], weights[1::2] = -self.theta * self._y, self._y
        self._combined_into(self._rows[count], weights, self._rows[first:count])
        G[: count + 1, count] = G[count, : count + 1] = self._inner(self._rows[: count + 1], self._rows[count])
        self.length = math.sqrt(G[count, count])
        refuse_nonfinite(self.length)
        self._scale[count] = 1 / max(self.length, 1e-150)
        self._total = count + (self.length > self.rounding)
        self._think()

    def _think(self) -> None:
        """What A is, if on the directions that were not multiplied it is what it was: ``thought``, its eigenvalues.

        In the basis of V and of orthonormal directions C outside of it, which those known before and the products span.
        """
        first, count, r, m = self._first, self._count, self._known, len(self.T)
        G = self._gram[: self._total, : self._total]
        self._beside = _positions(r, first, count, self._total)
        B = G[self._beside]
        scale = self._scale_beside = self._scale[self._beside]
        B *= scale[:, None]
        inside = self._inside = B[:, first:count:2]
        outside = B[:, self._beside] * scale - inside @ inside.T
        lengths, E = _eigh(outside)
        some = int(lengths.searchsorted(_OUTSIDE, side="right"))
        C = self._C = (E[:, some:] / np.sqrt(lengths[some:])).T
        seen = C @ outside[:, :r]
        M = np.zeros((m + len(C), m + len(C)))
        M[:m, :m] = self.T
        M[m:, :m] = C @ (B[:, first + 1 : count : 2] - inside @ self.T)
        M[m:, m:] = (seen * (self._fallen() * self._values)) @ seen.T
        e, Y = _eigh(M)
        self.thought, self._thoughts = e[::-1], Y[:, ::-1].T

    def _fallen(self) -> float:
        """How much of the known eigenvalues is left: there is an eigenvalue this near the Ritz value, or nearer."""
        return _share(self.theta + self.length, self._highest) if self._highest > 0 else 1.0

    def _coordinates(self, thoughts: np.ndarray, of_V: np.ndarray | float = 0.0) -> np.ndarray:
        """Of what is thought: (k, parts in C) and (k, parts in V) -> (k, rows)."""
        beside = thoughts @ self._C
        found = np.zeros((len(thoughts), self._total))
        found[:, self._beside] = beside * self._scale_beside
        found[:, self._first : self._count : 2] = of_V - beside @ self._inside
        return found

    def next_direction(self, tol: float) -> Tensor | None:
        """What to multiply next, (n,): of what is thought, the part of an eigenvector outside of V; None if none.

        The first one's while the residual is too large, or something larger is thought of than was found; then, now
        and then, the next one's, which may have overtaken it without a sign.
        """
        m, at = len(self.T), 0
        if self.length <= self.rounding or m >= self.space.size:
            return None
        if self._converged(tol) and self.thought[0] <= self.theta + tol * self._size:
            due = self._before.since + 1 >= _LOOK
            if self._looked or not (due or m > 1):
                return None
            unseen = np.square(self._thoughts[:, m:]).sum(axis=1) > 0.5
            self._looked = due or not unseen[:2].any()
            if not (due and unseen[:2].any()):
                return None
            at = int(unseen.argmax())
        return self._combined(self._coordinates(self._thoughts[at : at + 1, m:])[0])

    def _thought_vectors(self, most: int) -> np.ndarray:
        m = len(self.T)
        return self._coordinates(self._thoughts[:most, m:], self._thoughts[:most, :m])

    def restart(self) -> None:
        """Keep the Ritz vector of V, and what is thought of other directions."""
        x, values = self._ritz(), self.thought[: self._known].copy()
        w = self._rows[self._count] + self.theta * x  # what A makes of it
        rows = self._combined(self._thought_vectors(self._known))
        self._known = len(rows)
        self._begin([rows], values)
        self._moved = np.zeros(len(rows))
        self._next_row().copy_(x)
        self._append(w)

    def _ritz(self) -> Tensor:
        """The Ritz vector, (n,), of length 1."""
        V = slice(self._first, self._count, 2)
        y = self._y / math.sqrt(self._y @ self._gram[V, V] @ self._y)
        return torch.mv(self._rows[V].T, torch.from_numpy(y).to(self._rows))

    def _converged(self, tol: float) -> bool:
        return self.length + self.rounding <= tol * self._size

    def result(self, tol: float) -> Eigenpairs:
        """What is known of the pair."""
        theta, residual = self.theta, self.length + self.rounding
        gap = theta - float(self.thought[1]) if len(self.thought) > 1 else 0.0
        error = residual**2 / gap if gap > residual else residual
        numbers = torch.tensor([theta, residual, theta - self.rounding, math.inf, error], dtype=torch.float64)
        value, residuals, low, high, errors = numbers.split(1)
        vector = self._ritz()[:, None]
        return Eigenpairs(
            value, vector, residuals, low, high, "lower", 0.95, self._converged(tol),
            self.matvecs, "LA", tol, self.operator.kernel, self.operator.note, errors, vector[:, :0],
        )  # fmt: skip

    def learnt(self) -> TrackedPair:
        """What to start the next measurement from."""
        coordinates = self._thought_vectors(_rank(self.space))
        moved = self._moved
        products = moved @ self._gram[: len(moved), : self._total]  # of the rows with the last movement
        now, last = float(products @ coordinates[0]), float(products[0]) * self._scale[0]
        along = float(self._gram[0, : self._total] @ coordinates[0])
        true, of = math.copysign(1.0, along) * now - last, float(products[: len(moved)] @ moved)
        came_true = (
            _REMEMBERED * self._before.came_true[0] + _share(true, of),
            _REMEMBERED * self._before.came_true[1] + (of > 0),
        )
        return TrackedPair(
            _outwards(self.operator, self._combined(coordinates).T), self.thought[: len(coordinates)].copy(),
            self._before.vectors[:, 0], came_true, 0 if self._looked else self._before.since + 1,
        )  # fmt: skip


def _share(part: float, whole: float) -> float:
    """What part there is of a whole, none to all of it; none of nothing."""
    return max(0.0, min(1.0, part / whole)) if whole > 0 else 0.0


@functools.cache
def _positions(known: int, first: int, count: int, total: int) -> np.ndarray:
    """Of the rows that are not in V: those known, the residual, the products."""
    return np.array([*range(known), *range(count, total), *range(first + 1, count, 2)])


def _eigh(M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the lower triangle, ascending; not NumPy's, see `lanczos.LanczosBasis.eigh`."""
    if len(M) == 1:
        return M[0].copy(), np.ones((1, 1))
    values, vectors, failed = dsyev(M, lower=1)
    if failed:
        raise NonFiniteError("the operator's projection has no eigenvalues: its products are too large")
    return values, vectors


def _rank(space: VectorSpace) -> int:
    """How many directions the memory holds."""
    return max(1, min(_RANK, space.size, _MEMORY // (space.size * torch.finfo(space.dtype).bits // 8)))


def _inwards(operator: SymmetricOperator, V: Tensor) -> Tensor:
    """Directions of the parameters in the operator's coordinates."""
    return operator.from_parameters(V) if isinstance(operator, Preconditioned) else V


def _outwards(operator: SymmetricOperator, V: Tensor) -> Tensor:
    return operator.to_parameters(V) if isinstance(operator, Preconditioned) else V
