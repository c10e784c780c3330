"""MINRES (Paige and Saunders 1975), which finds negative curvature on its way (Liu and Roosta 2022)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .damped_system import DampedSystem, Iteration, dots
from .symmetry import refuse_asymmetry

__all__ = ["Minres"]


class Minres(Iteration):
    r"""MINRES from zero: the smallest residual in the Krylov space, for matrices that may be indefinite.

    Names of numbers are those of Liu and Roosta ("MINRES: from negative curvature detection to monotonicity
    properties", SIAM J. Optim. 32, 2022). With :math:`\gamma_k` the entry of the tridiagonal matrix on the diagonal
    before the k-th reflection, the residual before it has :math:`r^T B r = -c_{k-1} \gamma_k |r|^2`, and this is
    negative for the first time when the matrix is no longer positive semi-definite on the Krylov space. A residual
    that shows it is multiplied once by itself, so that what is reported is no rounding.

    A system stops where ``B r`` is nearly zero: no x has a smaller residual but by a large step.
    """

    def __init__(self, system: DampedSystem, R: Tensor) -> None:
        super().__init__(system, R)
        self.phi = dots(R, R).sqrt()
        self.V = R / self._column(self.phi)
        self.V_old, self.D, self.D_old = torch.zeros_like(R), torch.zeros_like(R), torch.zeros_like(R)
        zeros = torch.zeros_like(self.phi)
        self.beta, self.delta, self.epsilon, self.s, self.c = zeros, zeros, zeros, zeros, zeros - 1
        self._size, self._lengths = zeros, zeros  # the size of T, and V_old's length in parameters
        self._eps = float(torch.finfo(R.dtype).eps)
        self._wanted = zeros  # what a residual's curvature must be below the negative of

    def step(self) -> tuple[np.ndarray, np.ndarray]:
        """One step of every system; see `Iteration.step`."""
        Q, lengths = self.system.product(self.V)
        back, old_beta, old_lengths = dots(self.V_old, Q), self.beta, self._lengths
        quotient, regular = self._extend(Q)
        residuals = self.R
        self._advance(Q, regular)
        self._lengths = lengths
        norms, floor = self.system.lengths(self.R), torch.maximum(self._wanted, self.system.space.rounding * self._size)
        numbers = self.system.read(norms, regular, quotient, floor, back, old_beta, lengths * old_lengths)
        for there, beta, scale in numbers[4:].T:
            self._refuse_asymmetry(there, beta, scale)
        if self.system.found is None:
            self._look(residuals, numbers[2], numbers[3])
        return numbers[0], numbers[1] == 0

    def _extend(self, Q: Tensor) -> tuple[Tensor, Tensor]:
        """The next Lanczos vector, in the place of Q, and the reflection that it takes.

        Returns:
            ``r'Br / r'r`` of the residual so far, and whether ``B r`` is not zero to rounding.
        """
        Q.addcmul_(self.V_old, self._column(-self.beta))
        alpha = dots(self.V, Q)
        Q.addcmul_(self.V, self._column(-alpha))
        self.vectors.add(self.V)
        self.vectors.take_out_of(Q)
        beta = dots(Q, Q).sqrt()
        Q.mul_(self._column(torch.where(beta > 0, 1 / beta, 0.0)))
        self._size = torch.maximum(self._size, (alpha.square() + self.beta.square() + beta.square()).sqrt())
        self._above, self._further = self.c * self.delta + self.s * alpha, self.epsilon
        gamma = self.s * self.delta - self.c * alpha
        quotient = -self.c * gamma
        self.epsilon, self.delta, self.beta = self.s * beta, -self.c * beta, beta
        regular = torch.hypot(gamma, self.delta) > self._nothing()
        self._pivot = torch.where(regular, torch.hypot(gamma, beta), 1.0)
        self.c, self.s = gamma / self._pivot, beta / self._pivot
        return quotient, regular

    def _nothing(self) -> Tensor:
        """What ``|B r| / |r|`` is taken to be zero below, (k,).

        Where b is not in the range and vectors are no longer orthogonal, it comes down to about sqrt(eps) |B| only,
        and goes up again with x (Choi, Paige and Saunders, SIAM J. Sci. Comput. 33, 2011). Most eigenvalues of a
        curvature matrix being near 0, a good part of b has its solution at damping I, which is not nothing.
        """
        rounding = self.system.space.rounding * self._size
        if self.vectors.complete:
            return rounding
        likely = 2 * self._eps**0.5 * self._size
        return torch.maximum(rounding, likely.clamp(max=self.system.least / 2) if self.system.least > 0 else likely)

    def _advance(self, V: Tensor, regular: Tensor) -> None:
        """Solutions and residuals after the reflection; those that are not regular stay."""
        D = self.D_old.mul_(self._column(-self._further)).addcmul_(self.D, self._column(-self._above)).add_(self.V)
        D.mul_(self._column(1 / self._pivot))
        self.Z.addcmul_(D, self._column(torch.where(regular, self.c * self.phi, 0.0)))
        self.phi = torch.where(regular, self.s * self.phi, self.phi)
        of_old = torch.where(regular, self.s.square(), 1.0)
        of_new = torch.where(regular, -self.phi * self.c, 0.0)
        self.R = torch.mul(V, self._column(of_new)).addcmul_(self.R, self._column(of_old))
        self.D, self.D_old, self.V, self.V_old = D, self.D, V, self.V

    def _refuse_asymmetry(self, there: float, beta: float, lengths: float) -> None:
        """v_{k-1}'B v_k is beta, the length that v_k had, where rounding was a small part of it."""
        size = self.system.norm + self.system.damping
        if beta > 1e3 * self.system.space.rounding * size:
            refuse_asymmetry(self.system.operator, there, beta, size * lengths)

    def _look(self, residuals: Tensor, quotients: np.ndarray, floor: np.ndarray) -> None:
        """Multiply a residual that shows negative curvature; where it proves rounding, look again at twice as much.

        Args:
            residuals: (k, n), those that the quotients belong to.
            quotients: (k,), their ``r'Br / r'r``.
            floor: (k,), what quotients must be below the negative of.
        """
        for column in np.flatnonzero(quotients < -floor):
            if not self.system.room(1) or self.system.bends_down(residuals[column]):  # room for one there is always
                return
            self._wanted = self._wanted.clone()
            self._wanted[column] = 2 * abs(quotients[column])
