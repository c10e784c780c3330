r"""The Wasserstein-1 distance between measures on the line, and how far random starts may leave one from the spectrum.

The distance is the area between the cumulative distributions. What starts miss has a known law: a random unit vector
gives eigenvalue i the weight :math:`q_i^2`, and these n weights are Dirichlet distributed, as squares of normal
numbers over their sum are. The average of S starts is, but for terms of order 1/n, Dirichlet with S times the
concentration: c eigenvalues together have a weight like that of :math:`\chi^2_{Sc} / (S n)`. So how far off an
estimate is can be drawn from the estimate itself (the parametric bootstrap), for a single start as well.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["Sampling", "distance"]

_DRAWS = 500


def distance(nodes: Tensor, weights: Tensor, other_nodes: Tensor, other_weights: Tensor) -> float:
    """The Wasserstein-1 distance between two measures of the same mass, in the unit of the nodes.

    Args:
        nodes: (m,) places of the one, in any order.
        weights: (m,) their masses.
        other_nodes: (k,) places of the other.
        other_weights: (k,) their masses.

    Example:
        >>> import torch
        >>> from losscope.landscape.wasserstein import distance
        >>> distance(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]), torch.tensor([2.0]), torch.tensor([1.0]))
        1.5
    """
    places, order = torch.cat([nodes, other_nodes]).sort()
    ahead = torch.cat([weights, -other_weights])[order].cumsum(0)
    return float(ahead[:-1].abs() @ places.diff())


class Sampling:
    """What averages over random starts may be off by, drawn from the measure that starts have found.

    Draws are of spectra that could have led to it: its masses are rounded to whole eigenvalues, and outwards, since
    where there is any mass there is one eigenvalue at least.

    Args:
        nodes: (m,) float64, ascending.
        weights: (m,) their masses, with sum 1.
        size: eigenvalues that the measure stands for.
        starts: random starts that it is an average of.
    """

    def __init__(self, nodes: Tensor, weights: Tensor, size: int, starts: int) -> None:
        self.weights = weights.numpy()
        counts = _rounded_outwards(np.cumsum(self.weights) * size, size)
        self.kept = counts > 0
        self.nodes, self.reference = nodes.numpy()[self.kept], counts[self.kept] / size
        self.concentration = starts * size / 2

    @functools.cached_property
    def draws(self) -> np.ndarray:
        """(draws, kept nodes) masses that starts would have found, were the reference the spectrum."""
        shapes = self.concentration * self.reference
        # The same numbers every time: the same measure has the same bound.
        draws = np.random.default_rng(0).standard_gamma(shapes, (_DRAWS, len(shapes)))
        return draws / np.maximum(draws.sum(axis=1, keepdims=True), 1e-300)

    def distance(self, confidence: float) -> float:
        """What the distance between the measure and the spectrum exceeds with probability ``1 - confidence``."""
        apart = np.abs(np.cumsum(self.draws - self.reference, axis=1)[:, :-1]) @ np.diff(self.nodes)
        return float(np.quantile(apart, confidence))

    def interval(self, values: Tensor, confidence: float) -> tuple[float, float, float]:
        """The mean of a function of the eigenvalues: its standard error, and the ends of an interval about it.

        The interval is that of the studentised bootstrap: draws of the error are in units of their own standard
        errors, which leaves little of the skewness that a few large eigenvalues give (Efron and Tibshirani, "An
        Introduction to the Bootstrap", 1993, ch. 12).

        Args:
            values: (m,) the function at all nodes.
            confidence: nominal coverage.
        """
        f = values.numpy()
        mean = float(self.weights @ f)
        centred = f - mean  # so that a spread far below the mean is resolved
        stderr = math.sqrt(float(self.weights @ centred**2) / (self.concentration + 1))
        kept = centred[self.kept]
        found = self.draws @ kept
        spreads = np.sqrt(np.maximum(self.draws @ kept**2 - found**2, 0) / (self.concentration + 1))
        errors = found - self.reference @ kept
        ratios = np.divide(errors, spreads, out=np.zeros_like(errors), where=spreads > 0)
        low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
        return stderr, mean - float(high) * stderr, mean - float(low) * stderr


def _rounded_outwards(cumulative: np.ndarray, size: int) -> np.ndarray:
    """Whole numbers of eigenvalues at each node, whose sums from either end up to the middle are no less."""
    below = np.ceil(cumulative - 1e-9)
    above = size - np.ceil(size - cumulative - 1e-9)
    sums = np.where(cumulative < size / 2, np.minimum(below, size / 2), above).clip(0, size)
    sums = np.maximum.accumulate(np.floor(sums))
    sums[-1] = size
    return np.diff(sums, prepend=0.0)
