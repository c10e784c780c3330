r"""Where the bulk of a spectrum ends, from the coefficients that its Lanczos processes settle on.

The measure that a random vector gives the eigenvalues has three-term coefficients :math:`\alpha_k, \beta_k` (the
diagonal and the off-diagonal of the Lanczos matrix). For a bulk in one piece they settle on constants, and its edges
are :math:`\alpha_\infty \pm 2 \beta_\infty` (Rakhmanov; Denisov, Proc. AMS 132, 847, 2004). For the semicircle they are
constant from the first, for the law of Marchenko and Pastur from the second; both scatter by :math:`n^{-1/2}`. An
outlier adds one node to the quadrature, and without it the rule is the bulk's own, so that outliers do not bend the
fit (Ding and Trogdon, arXiv:2106.13902, use the same facts for spiked covariances).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.special import fdtri, ndtri
from torch import Tensor

from .quadrature import Quadrature
from .random_matrix import tracy_widom_quantile

__all__ = ["Bulk", "BulkEdge", "bulk_of", "three_term_coefficients"]

_USED = 2 / 3  # of the levels: the last ones feel what is left of a node that had not converged
_SEEN = 3.0  # times the root of (half the width / 2 units): then eigenvalues at an edge are seen one by one
_FEWEST = 6  # levels of coefficients that show whether these settle
_LIKE = 0.1  # relative, of coefficients of a law and those that are called like it
_FIRST = 3  # levels that show it
_TOLERANCE = 0.02  # of the bulk's width, what an edge may move by from level to level
_OWN = 3.0  # units of Tracy and Widom's law, by which that of a random matrix does
_RISK = 1e-3  # that scatter alone looks like something that is not constant


@dataclass(frozen=True)
class BulkEdge:
    """One end of the bulk.

    Attributes:
        value: where it is, for infinitely many eigenvalues.
        stderr: its standard error, from the scatter of the coefficients.
        unsettled: standard deviation between levels beyond what scatter gives: what is no constant in them.
        unit: of Tracy and Widom's law: by so much the extreme eigenvalue of the bulk scatters.
        width: of the bulk, from edge to edge.
        tolerance: what of ``unsettled`` is little enough to speak of an edge.
    """

    value: float
    stderr: float
    unsettled: float
    unit: float
    width: float
    tolerance: float

    @property
    def settled(self) -> bool:
        """Whether there is an edge: whether coefficients are constant, or nearly so."""
        return self.unsettled <= self.tolerance

    def reach(self, risk: float, *, whole: bool = True) -> float:
        """How far outwards of the edge the bulk's extreme eigenvalue lies at most, with probability 1 - risk.

        Args:
            risk: that it does not.
            whole: whether what is not constant in the coefficients counts as an error.
        """
        errors = tracy_widom_quantile(1 - risk) * self.unit, float(ndtri(1 - risk)) * self.stderr
        return math.hypot(*errors, self.unsettled if whole else 0.0)


@dataclass(frozen=True)
class Bulk:
    """A bulk in one piece.

    Attributes:
        lower: where it begins.
        upper: where it ends.
        law: what it is like, in words.
        rigid: whether that is a law of random matrices, whose extreme eigenvalues keep to the edge.
    """

    lower: BulkEdge
    upper: BulkEdge
    law: str
    rigid: bool


def three_term_coefficients(nodes: Tensor, weights: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Diagonal (k,) and off-diagonal (k,) of the Lanczos matrix of a discrete measure, at most ``levels`` of each.

    Fewer where the measure has fewer nodes. (Gragg and Harrod, Numer. Math. 44, 317, 1984, on the inverse problem;
    orthogonalised fully here, since there are few nodes.)
    """
    scale = float(nodes.max() - nodes.min())
    q = weights.sqrt()
    q = q / torch.linalg.vector_norm(q)
    basis, alpha, beta = q[None, :], [], []
    for _ in range(min(levels, len(nodes) - 1)):
        v = nodes * q
        alpha.append(torch.dot(q, v))
        for _ in range(2):
            v = v - basis.T @ (basis @ v)
        beta.append(torch.linalg.vector_norm(v))
        if not float(beta[-1]) > 1e-10 * scale:
            alpha.pop(), beta.pop()
            break
        q = v / beta[-1]
        basis = torch.cat([basis, q[None, :]])
    empty = nodes.new_empty(0)
    return (torch.stack(alpha), torch.stack(beta)) if alpha else (empty, empty)


def bulk_of(starts: Sequence[Quadrature], steps: int, size: int) -> Bulk | None:
    """The bulk that random vectors saw; None after too few Lanczos steps.

    Args:
        starts: quadratures of the bulk, outliers left out.
        steps: Lanczos steps that they are of.
        size: how many eigenvalues the matrix has.
    """
    most = int(min(_USED * steps, _SEEN * size ** (1 / 3)))
    found = _coefficients(starts, most)
    if found is None:
        return None
    alpha, beta = found
    law, rigid = _named(alpha.mean(dim=0), beta.mean(dim=0))
    first = float(alpha[:, 0].mean()), float(beta[:, 0].mean())
    alpha, beta = _for_all(alpha[:, 1:], beta[:, 1:], first[0], size)
    lower, upper = (_edge(alpha, beta, first, size, sign, rigid=rigid) for sign in (-1, 1))
    return Bulk(lower, upper, law, rigid)


def _coefficients(starts: Sequence[Quadrature], levels: int) -> tuple[Tensor, Tensor] | None:
    levels = min(levels, int(_USED * min(len(q.nodes) for q in starts)))
    pairs = [three_term_coefficients(q.nodes, q.weights, levels) for q in starts] if levels else []
    levels = min((len(alpha) for alpha, _ in pairs), default=0)
    if levels <= _FEWEST:
        return None
    alpha, beta = (torch.stack([pair[i][:levels] for pair in pairs]) for i in (0, 1))
    return alpha, beta


def _named(alpha: Tensor, beta: Tensor) -> tuple[str, bool]:
    """Which law coefficients (levels,) are those of, and whether it is one of a random matrix."""
    middle, half = float(alpha[1:].mean()), float(beta[1:].mean())
    skew = middle - float(alpha[0])
    if float((beta[:_FIRST] - half).abs().max()) > _LIKE * half:
        return "in one piece", False
    if abs(skew) <= _LIKE * half:
        return f"like a semicircle of scale {half:.3g}", True
    # Of a multiple of Marchenko and Pastur's law, shifted: alpha_0 = shift + sigma^2, skew = gamma sigma^2.
    return f"like Marchenko and Pastur's of aspect {(skew / half) ** 2:.3g}", True


def _for_all(alpha: Tensor, beta: Tensor, mean: float, size: int) -> tuple[Tensor, Tensor]:
    """Coefficients as they were with infinitely many eigenvalues, of which k steps do not use up a share of k / n.

    As the tridiagonal forms of Gaussian matrices have it (Dumitriu and Edelman, J. Math. Phys. 43, 5830, 2002).
    """
    gone = torch.arange(1, alpha.shape[1] + 1, dtype=torch.float64) / size
    skew = float(alpha.mean()) - mean
    aspect = (skew / float(beta.mean())) ** 2
    left = (1 - gone) * (1 - gone * aspect)
    return alpha + 2 * skew * gone, beta / left.clamp(min=0.25).sqrt()


def _edge(alpha: Tensor, beta: Tensor, first: tuple[float, float], size: int, sign: int, *, rigid: bool) -> BulkEdge:
    middle, half = float(alpha.mean()), float(beta.mean())
    unit = _unit(middle, half, first, size, sign)
    ends = alpha + 2 * sign * beta
    if rigid:  # with n^(1/3) levels for a semicircle of n eigenvalues, and fewer where most of them are zeros
        ends = ends[:, : max(_FEWEST, int(_SEEN * math.sqrt(half / unit)))]
    (starts, levels), means = ends.shape, ends.mean(dim=0)
    if starts > 1:
        within, degrees = float(ends.var(dim=0).mean()) / starts, levels * (starts - 1)
    else:  # from one level to the next (von Neumann, Ann. Math. Stat. 12, 367, 1941)
        within, degrees = float(means.diff().square().mean()) / 2, levels
    between = float(means.var())
    chance = float(fdtri(levels - 1, degrees, 1 - _RISK)) * within
    unsettled = math.sqrt(max(0.0, between - chance))
    stderr = math.sqrt(max(within, between) / levels)
    tolerance = max(_TOLERANCE * 4 * half, _OWN * unit if rigid else 0.0)
    return BulkEdge(float(means.mean()), stderr, unsettled, unit, 4 * half, tolerance)


def _unit(middle: float, half: float, first: tuple[float, float], size: int, sign: int) -> float:
    r"""Unit of Tracy and Widom's law at the edge of a measure with one coefficient pair of its own, then constants.

    Its density near the edge is :math:`(A / \pi) \sqrt{|x - e|}`, and the unit :math:`(n A)^{-2/3}`, with
    :math:`A = \beta_0^2 \beta^{-3/2} / (|e - \alpha_0| - \beta_0^2 / \beta)^2`.
    """
    distance = sign * (middle - first[0]) + 2 * half - first[1] ** 2 / half
    amplitude = first[1] ** 2 / half**1.5 / distance**2 if distance > 0 else 0.0
    return (size * amplitude) ** (-2 / 3) if amplitude > 0 else half
