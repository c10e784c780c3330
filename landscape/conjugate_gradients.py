"""Conjugate gradients (Hestenes and Stiefel 1952), with what they show when the matrix is not positive definite."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .damped_system import DampedSystem, Iteration, dots
from .symmetry import refuse_asymmetry

__all__ = ["ConjugateGradients"]


class ConjugateGradients(Iteration):
    """CG from zero; a system stops, where it is, at a direction along which the matrix does not bend upwards.

    Its directions bend upwards if and only if the matrix is positive definite on the Krylov space, so that
    none that bends downwards is missed.
    """

    def __init__(self, system: DampedSystem, R: Tensor) -> None:
        super().__init__(system, R)
        self.P, self.BP = torch.zeros_like(R), torch.zeros_like(R)
        self._rho = dots(R, R)
        self._beta = self._lengths = torch.zeros_like(self._rho)
        self._eps = float(torch.finfo(R.dtype).eps)

    def step(self) -> tuple[np.ndarray, np.ndarray]:
        """One step of every system; see `Iteration.step`."""
        self.vectors.add(self.R / self._column(self._rho.sqrt()))
        before, before_B, before_lengths = self.P, self.BP, self._lengths
        self.P = torch.addcmul(self.R, before, self._column(self._beta))
        self.BP, self._lengths = self.system.product(self.P)
        pair = dots(before, self.BP), dots(self.P, before_B), before_lengths * self._lengths
        bend = dots(self.P, self.BP)
        # Of a positive definite matrix of condition c, p'Bp is at least |p| |Bp| 2 / sqrt(c) (Wielandt).
        upwards = bend > self._eps * (dots(self.P, self.P) * dots(self.BP, self.BP)).sqrt()
        alpha = torch.where(upwards, self._rho / bend, 0.0)
        self.Z.addcmul_(self.P, self._column(alpha))
        self.R.addcmul_(self.BP, self._column(-alpha))
        self.vectors.take_out_of(self.R)
        rho = dots(self.R, self.R)
        self._beta, self._rho = rho / self._rho, rho
        numbers = self.system.read(self.system.lengths(self.R), upwards, bend / self._lengths.square(), *pair)
        (norms, bends, quotients), pairs = numbers[:3], numbers[3:]
        stuck = bends == 0
        self._refuse_asymmetry(pairs)
        for column in np.flatnonzero(stuck):
            if not pairs[-1, column]:  # the first direction had none to be compared with
                self._compare(int(column))
            self.system.certify(self.P[column], quotients[column])
        return norms, stuck

    def _compare(self, column: int) -> None:
        """Refuse what is not symmetric by one more product: of what B makes of a direction."""
        system, p, Bp = self.system, self.P[column, None], self.BP[column, None]
        if not system.operator.known_symmetric and system.room(1):
            again, lengths = system.product(Bp)
            self._refuse_asymmetry(system.read(dots(p, again), dots(Bp, Bp), self._lengths[column] * lengths))

    def _refuse_asymmetry(self, pairs: np.ndarray) -> None:
        for there, back, scale in pairs.T:
            refuse_asymmetry(self.system.operator, there, back, (self.system.norm + self.system.damping) * scale)
