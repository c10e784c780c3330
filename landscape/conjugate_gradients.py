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
        self.P = torch.zeros_like(R)
        self._rho = dots(R, R)
        self._beta = torch.zeros_like(self._rho)
        self._exact = torch.ones_like(self._rho, dtype=torch.bool)  # so far rounding was a small part of p'Bp
        self._eps = float(torch.finfo(R.dtype).eps)

    def step(self) -> tuple[np.ndarray, np.ndarray]:
        """One step of every system; see `Iteration.step`."""
        self.P = torch.addcmul(self.R, self.P, self._column(self._beta))
        BP, lengths = self.system.product(self.P)
        bend, back = dots(self.P, BP), dots(self.R, BP)
        # Of a positive definite matrix of condition c, p'Bp is at least |p| |Bp| 2 / sqrt(c) (Wielandt).
        upwards = bend > self._eps * (dots(self.P, self.P) * dots(BP, BP)).sqrt()
        alpha = torch.where(upwards, self._rho / bend, 0.0)
        self.Z.addcmul_(self.P, self._column(alpha))
        self.R.addcmul_(BP, self._column(-alpha))
        rho = dots(self.R, self.R)
        self._beta, self._rho = rho / self._rho, rho
        size = (self.system.norm + self.system.damping) * lengths.square()
        self._exact &= bend > 1e3 * self.system.space.rounding * size
        numbers = self.system.read(
            self.system.lengths(self.R), upwards, bend / lengths.square(), bend - back, size, self._exact
        )
        norms, stuck = numbers[0], numbers[1] == 0
        for forth, scale, exact in numbers[3:].T:
            if exact:  # p - r is a multiple u of the direction before, and p'Bu is 0 by the choice of p
                refuse_asymmetry(self.system.operator, forth, 0.0, scale)
        for column in np.flatnonzero(stuck):
            self.system.certify(self.P[column], numbers[2, column])
        return norms, stuck
