r"""What a random direction proves of eigenvalues that were not found.

Let an orthonormal basis Q have ``A Q = Q T + Q_next R E_m'``, and let it span a random unit vector ``g = Q a``. An
eigenvector u with eigenvalue :math:`\lambda` above those of T has ``Q'u = (lambda - T)^{-1} E_m R' c`` with
``|c| <= 1``, hence

.. math:: |g^T u| \le \|a^T (\lambda - T)^{-1} E_m R^T\|,

and where the right side is below what a random vector almost surely has of any fixed direction, there is no such
eigenvalue. For the start vector of a Lanczos process this is the bound of van Dorsselaer, Hochstenbach and van der
Vorst (SIAM J. Matrix Anal. Appl. 22, 2000). It concerns g only, hence holds at whatever step the iteration stops.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import betaincinv

from .lanczos import LanczosBasis

__all__ = ["Rest", "outer_bound", "sure_share"]

_GRID = np.logspace(-12, 6, 600)
"""Distances from the outermost Ritz value that are tried, in spreads of them all."""


def sure_share(n: int, b: int, risk: float) -> float:
    """What a random b-dimensional subspace of n dimensions has of a fixed unit vector, but for a probability."""
    return math.sqrt(betaincinv(b / 2, (n - b) / 2, risk)) if b < n else 1.0


def outer_bound(values: np.ndarray, first: np.ndarray, coupling: np.ndarray, share: float) -> float:
    """The largest point at which an eigenvalue above all Ritz values is not excluded.

    Args:
        values: (m,) Ritz values.
        first: (b, m) random directions by their coordinates along the Ritz vectors.
        coupling: (w, m) of the next block with the Ritz vectors: R times their rows of the last block.
        share: what the random directions almost surely have of a fixed one.
    """
    top = float(values.max())
    spread = max(float(values.max() - values.min()), abs(top), 1e-280)
    gaps = _GRID * spread
    weights = 1.0 / (top + gaps[:, None] - values)  # (grid, m)
    pairs = (first[:, None, :] * coupling[None, :, :]).reshape(-1, len(values))
    possible = np.linalg.norm(weights @ pairs.T, axis=1) >= share
    above = int(possible.nonzero()[0].max()) + 1 if possible.any() else 0
    return top + float(gaps[min(above, len(gaps) - 1)])


class Rest:
    """What A is beside some pairs that were found: its compression to the directions orthogonal to them.

    A Krylov space holds one vector only of the eigenvectors to one eigenvalue, and next to nothing of what its start
    was nearly orthogonal to. So the basis goes on with a fresh random direction; that bounds the largest eigenvalue
    of the compression, which is no less than the largest eigenvalue of A that was not found (Cauchy).

    Args:
        basis: the basis, which gets the direction.
        found: (size, k) coordinates of the pairs' vectors in it.
        risk: probability with which its bounds may fail, both together.
    """

    def __init__(self, basis: LanczosBasis, found: np.ndarray, risk: float) -> None:
        self._basis, self._found = basis, found
        self._direction = basis.widen(basis.space.random(1, basis.generator))
        self._share = sure_share(basis.space.size - found.shape[1], 1, risk / 2)
        self.low, self.high = -math.inf, math.inf
        self.lowest = self.highest = math.nan

    def look(self) -> None:
        """Bring up to date, with all products so far, within what the eigenvalues of the rest lie.

        Sets ``low`` and ``high``, and the extremal Ritz values of the rest, ``lowest`` and ``highest``.
        """
        basis, (known, k) = self._basis, self._found.shape
        found, direction = np.zeros((basis.size, k)), np.zeros(basis.size)
        found[:known], direction[: len(self._direction)] = self._found, self._direction
        Z = torch.linalg.qr(torch.from_numpy(found), mode="complete").Q[:, k:].contiguous()
        values, vectors = torch.linalg.eigh(Z.T @ torch.from_numpy(basis.T) @ Z)
        Y = (Z @ vectors).numpy()
        along = direction @ Y
        along /= np.linalg.norm(along)
        coupling = basis.R @ Y[basis.size - basis.R.shape[1] :]
        self.lowest, self.highest = float(values[0]), float(values[-1])
        if coupling.size == 0:  # the basis spans the whole space
            self.low, self.high = self.lowest, self.highest
            return
        self.high = outer_bound(values.numpy(), along[None, :], coupling, self._share)
        self.low = -outer_bound(-values.numpy(), along[None, :], coupling, self._share)
