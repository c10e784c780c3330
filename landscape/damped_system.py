"""The system ``(A + damping I) x = b`` as iterations for several right-hand sides see it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .compositions import Preconditioned
from .operators import Observed, refuse_nonfinite
from .results import NegativeCurvature

__all__ = ["DampedSystem", "Iteration", "dots"]


_CHUNK_BYTES, _CHUNK = 64 << 20, 64  # and vectors, that room is made for at a time


def dots(U: Tensor, V: Tensor) -> Tensor:
    """Inner products of the rows, added up in float64: (k, n), (k, n) -> (k,)."""
    return (U * V).sum(dim=1, dtype=torch.float64)


class DampedSystem:
    r"""Products with ``B = A + damping I``, and what they show of A on the way.

    With a diagonal D it is :math:`D^{-1/2} B D^{-1/2} y = D^{-1/2} b` with :math:`x = D^{-1/2} y`, on which plain
    iterations are the preconditioned ones. Vectors are rows, of one memory each.

    Args:
        operator: A.
        damping: at least 0.
        diagonal: D, as in `Preconditioned`; None for the identity.
        budget: most products to spend.
        memory: bytes that the Lanczos vectors may take.

    Attributes:
        reserved: products of the budget that are put aside for looking at residuals in the end.
        least: the least eigenvalue of this system if A is positive semi-definite.
        norm: the largest ``|A v| / |v|`` that was seen, when numbers were last read: at most ``||A||``.
        found: the first direction of negative curvature that was met.
    """

    def __init__(self, operator: Observed, damping: float, diagonal: Any, budget: int, memory: int = 0) -> None:
        self.operator, self.space, self.damping = operator, operator.space, damping
        self.budget, self.memory = budget, memory
        self.reserved = 0
        self.norm = 0.0
        self.found: NegativeCurvature | None = None
        self._preconditioned = None if diagonal is None else Preconditioned(operator, diagonal)
        each = self.inward(
            self.inward(torch.ones(1, self.space.size, dtype=self.space.dtype, device=self.space.device))
        )
        self.least = damping * float(each.min())
        self._norm = torch.zeros((), dtype=torch.float64, device=self.space.device)

    def room(self, products: int) -> bool:
        """Whether as many products may still be spent, besides those put aside."""
        return self.operator.matvecs + products + self.reserved <= self.budget

    def inward(self, rows: Tensor) -> Tensor:
        """``D^-1/2`` times each: what takes b to the right-hand side here, and y to x."""
        return rows if self._preconditioned is None else self._preconditioned.to_parameters(rows.T).T

    def lengths(self, R: Tensor) -> Tensor:
        """The length, as vectors of the parameters, of residuals of this system: (k, n) -> (k,) float64."""
        plain = R if self._preconditioned is None else self._preconditioned.from_parameters(R.T).T
        return dots(plain, plain).sqrt()

    def product(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The products of this system, and the vectors' lengths among the parameters: (k, n) -> (k, n), (k,)."""
        V = self.inward(rows)
        AV = self._times(V)
        lengths = dots(V, V).sqrt()
        quotients = dots(AV, AV).sqrt() / torch.where(lengths > 0, lengths, 1.0)
        self._norm = torch.maximum(self._norm, quotients.max())
        return self.inward(torch.add(AV, V, alpha=self.damping)), lengths

    def residual(self, B: Tensor, X: Tensor) -> Tensor:
        """``b - (A + damping I) x`` of the parameters, by products: (k, n)."""
        return (B - self._times(X)).sub_(X, alpha=self.damping)

    def read(self, *columns: Tensor) -> np.ndarray:
        """Numbers (k,) of every right-hand side, on the host: the one synchronisation of a step.

        Raises:
            NonFiniteError: if a product so far had a NaN or infinite entry.
        """
        stacked = torch.stack([c.to(torch.float64) for c in columns])
        found = torch.cat((stacked.flatten(), self._norm[None])).to("cpu").numpy()
        self.norm = float(found[-1])
        refuse_nonfinite(self.norm)
        return found[:-1].reshape(stacked.shape)

    def bends_down(self, direction: Tensor) -> bool:
        """Whether the curvature of B along ``direction`` (n,) of this system is negative, by one product."""
        BV, lengths = self.product(direction[None])
        (quotient,) = self.read(dots(direction[None], BV) / lengths.square())[0]
        return self.certify(direction, float(quotient))

    def certify(self, direction: Tensor, quotient: float) -> bool:
        """Keep a direction (n,) of this system as `found`, if B is negative along it beyond what products err by.

        Args:
            direction: of this system.
            quotient: the Rayleigh quotient of B along it, as a vector of the parameters.
        """
        error = self.space.rounding * (self.norm + self.damping)
        if not quotient + error < 0:
            return False
        if self.found is None:
            p = self.inward(direction[None])[0].clone()
            self.found = NegativeCurvature(p / torch.linalg.vector_norm(p), quotient - self.damping, error)
        return True

    def _times(self, V: Tensor) -> Tensor:
        """A V, as rows: (k, n) -> (k, n); it may be V itself, where A is the identity."""
        return self.operator.unchecked(V.T).detach().T.contiguous()


class KeptVectors:
    """The Lanczos vectors of several systems so far, which are taken out of the newest ones.

    In exact arithmetic nothing of them is there. Rounding brings back those along eigenvectors that are already
    found, and the iteration spends half of its products and more on finding them again (Paige 1980; Simon 1984).

    Args:
        like: (k, n), one vector of every system.
        memory: bytes that they may take; the first ones are kept.

    Attributes:
        complete: whether all are kept.
    """

    def __init__(self, like: Tensor, memory: int) -> None:
        each = like.numel() * like.element_size()
        self._room = memory // each
        self._at_once = max(1, min(_CHUNK, _CHUNK_BYTES // each))
        self._chunks: list[Tensor] = []  # (k, vectors, n)
        self._used = 0  # of the last chunk
        self.complete = True

    def add(self, V: Tensor) -> None:
        """Keep unit vectors (k, n), if there is room."""
        if self._room <= 0:
            self.complete = False
            return
        if not self._chunks or self._used == self._chunks[-1].shape[1]:
            self._chunks.append(V.new_empty(V.shape[0], min(self._at_once, self._room), V.shape[1]))
            self._used = 0
        self._chunks[-1][:, self._used] = V
        self._used, self._room = self._used + 1, self._room - 1

    def take_out_of(self, W: Tensor) -> None:
        """Make W (k, n) orthogonal to those that are kept, in place."""
        for chunk in self._chunks:
            known = chunk if chunk is not self._chunks[-1] else chunk[:, : self._used]
            W[:, :, None].baddbmm_(known.transpose(1, 2), known @ W[:, :, None], alpha=-1)

    def keep(self, mask: Tensor) -> None:
        """Go on with some of the systems only."""
        self._chunks = [chunk[mask] for chunk in self._chunks]


class Iteration:
    """An iteration that solves several systems at once, one product for each at a step; subclasses implement `step`.

    Attributes:
        system: what is solved.
        R: (k, n), the residuals, as the recurrence has them.
        Z: (k, n), the solutions so far, from zero.
        vectors: the Lanczos vectors so far.
    """

    def __init__(self, system: DampedSystem, R: Tensor) -> None:
        self.system = system
        self.R = R.clone()
        self.Z = torch.zeros_like(R)
        self.vectors = KeptVectors(R, system.memory)

    def step(self) -> tuple[np.ndarray, np.ndarray]:
        """One step of every system.

        Returns:
            The residuals' lengths (k,), and which systems cannot be taken further (k,).

        Raises:
            SettingError: if A is seen not to be symmetric.
            NonFiniteError: if a product is NaN or infinite.
        """
        raise NotImplementedError

    def keep(self, which: np.ndarray) -> None:
        """Go on with some of the systems only, (k,) booleans."""
        mask = torch.from_numpy(which).to(self.R.device)
        self.vectors.keep(mask)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[mask])

    def _column(self, numbers: Tensor) -> Tensor:
        """(k,) numbers as factors of the rows, (k, 1)."""
        return numbers.to(self.R.dtype)[:, None]
