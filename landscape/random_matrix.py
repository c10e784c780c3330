r"""Laws of large random symmetric matrices: where their bulk ends, and where an outlier shows.

The eigenvalues of a symmetric matrix with independent entries fill a semicircle (Wigner, Ann. Math. 67, 325, 1958),
those of a sample covariance the law of Marchenko and Pastur (Math. USSR Sb. 1, 457, 1967). A direction of its own
strength is seen beyond the edge only where it is strong enough (Baik, Ben Arous and Péché, Ann. Probab. 33, 1643,
2005; for symmetric matrices Péché, Probab. Theory Relat. Fields 134, 127, 2006), and the edge itself scatters as
Tracy and Widom found (Commun. Math. Phys. 177, 727, 1996).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import airy, roots_legendre
from torch import Tensor

from .errors import SettingError
from .html_table import Shown

__all__ = ["MarchenkoPastur", "Semicircle", "tracy_widom_cdf", "tracy_widom_quantile"]


@dataclass(frozen=True)
class Semicircle(Shown):
    r"""Eigenvalues of :math:`c I + W`, W symmetric with independent entries of variance :math:`s^2 / n`.

    .. math:: \rho(x) = \frac{\sqrt{4 s^2 - (x - c)^2}}{2 \pi s^2}

    A mini-batch Hessian is such a matrix added to that of all samples, with :math:`s^2 = P \sigma_e^2 / b`
    (Granziol, Zohren and Roberts, JMLR 23:173, 2022; see `batch_effect`).

    Args:
        scale: s, the root of the mean squared distance from the center.
        center: c, the mean.

    Raises:
        SettingError: if the scale is not a number of 0 or more.

    Example:
        >>> from losscope.landscape import Semicircle
        >>> noise = Semicircle(scale=2.0)
        >>> noise.edges, noise.outlier(4.0), noise.outlier(1.0)
        ((-4.0, 4.0), 5.0, 4.0)
    """

    scale: float
    center: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no scale."""
        _check("scale", self.scale, self.scale >= 0, "0 or more")
        _check("center", self.center, True, "")

    @property
    def edges(self) -> tuple[float, float]:
        """Where the bulk begins and ends, c - 2s and c + 2s."""
        return self.center - 2 * self.scale, self.center + 2 * self.scale

    def density(self, x: Tensor) -> Tensor:
        """Probability density, of the shape of x."""
        _check("scale", self.scale, self.scale > 0, "above 0 for a density")
        y = (torch.as_tensor(x, dtype=torch.float64) - self.center) / self.scale
        return (4 - y * y).clamp(min=0).sqrt() / (2 * math.pi * self.scale)

    def cdf(self, x: Tensor) -> Tensor:
        """Probability of no more than x, of the shape of x."""
        x = torch.as_tensor(x, dtype=torch.float64) - self.center
        if self.scale == 0:
            return (x >= 0).to(torch.float64)
        y = (x / self.scale).clamp(-2, 2)
        return 0.5 + y * (4 - y * y).sqrt() / (4 * math.pi) + torch.asin(y / 2) / math.pi

    @property
    def threshold(self) -> float:
        """The weakest strength that shows, s."""
        return self.scale

    def outlier(self, strength: float) -> float:
        r"""Where an eigenvalue shows that added noise-free would lie at ``center + strength``.

        :math:`c + \lambda + s^2 / \lambda` above the threshold s, else the edge; mirrored for negative strengths.
        """
        size = abs(strength)
        reach = size + self.scale**2 / size if size > self.threshold else 2 * self.scale
        return self.center + math.copysign(reach, strength)

    def edge_scale(self, n: int) -> float:
        """The unit of Tracy and Widom's law at the edge of n eigenvalues, s n^(-2/3)."""
        return self.scale * n ** (-2 / 3)


@dataclass(frozen=True)
class MarchenkoPastur(Shown):
    r"""Eigenvalues of :math:`X^T X / n`, X of n rows and P columns, independent entries of variance ``scale``.

    With :math:`\gamma = P / n` and :math:`x_\pm = \sigma^2 (1 \pm \sqrt\gamma)^2`

    .. math:: \rho(x) = \frac{\sqrt{(x_+ - x)(x - x_-)}}{2 \pi \sigma^2 \gamma x},

    and a mass of :math:`1 - 1/\gamma` at zero where :math:`\gamma > 1`.

    Args:
        aspect: gamma, dimensions over samples.
        scale: sigma^2, the mean of all eigenvalues.

    Raises:
        SettingError: if one of them is not a number above 0.

    Example:
        >>> from losscope.landscape import MarchenkoPastur
        >>> noise = MarchenkoPastur(aspect=0.25)
        >>> noise.edges, noise.outlier(2.0), noise.outlier(1.2)
        ((0.25, 2.25), 2.5, 2.25)
    """

    aspect: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no aspect ratio or scale."""
        _check("aspect", self.aspect, self.aspect > 0, "above 0")
        _check("scale", self.scale, self.scale > 0, "above 0")

    @classmethod
    def fitted(cls, mean: float, variance: float) -> MarchenkoPastur:
        """The law with this mean and this variance: sigma^2 and gamma sigma^4.

        Raises:
            SettingError: if one of them is not a number above 0.
        """
        _check("mean", mean, mean > 0, "above 0")
        _check("variance", variance, variance > 0, "above 0")
        return cls(variance / mean**2, mean)

    @property
    def edges(self) -> tuple[float, float]:
        """Where the bulk begins and ends; zeros of a singular matrix are apart from it."""
        root = math.sqrt(self.aspect)
        return self.scale * (1 - root) ** 2, self.scale * (1 + root) ** 2

    @property
    def atom(self) -> float:
        """Mass at zero, 1 - 1/gamma where there are fewer samples than dimensions."""
        return max(0.0, 1 - 1 / self.aspect)

    def density(self, x: Tensor) -> Tensor:
        """Probability density of what is not at zero, of the shape of x."""
        x = torch.as_tensor(x, dtype=torch.float64)
        low, high = self.edges
        inside = ((high - x) * (x - low)).clamp(min=0).sqrt()
        return torch.where(inside > 0, inside / (2 * math.pi * self.scale * self.aspect * x), 0.0)

    def cdf(self, x: Tensor) -> Tensor:
        """Probability of no more than x, of the shape of x; the mass at zero included."""
        x = torch.as_tensor(x, dtype=torch.float64) / self.scale
        low, high = (edge / self.scale for edge in self.edges)
        y = x.clamp(low, high)
        # x = mid - half cos(phi) in the integral of sqrt((b - x)(x - a)) / x (Gradshteyn and Ryzhik 2.267).
        phi = 2 * torch.atan2((y - low).clamp(min=0).sqrt(), (high - y).clamp(min=0).sqrt())
        whole = ((high - y) * (y - low)).clamp(min=0).sqrt() + (low + high) / 2 * phi
        # Not sqrt(a b) alone, which for gamma = 1 is 0 times the angle.
        turned = 2 * torch.atan2((low * (high - y)).clamp(min=0).sqrt(), (high * (y - low)).clamp(min=0).sqrt())
        part = (whole - math.sqrt(low * high) * (math.pi - turned)) / (2 * math.pi * self.aspect)
        share = torch.where(y > low, part, 0.0).clamp(0, 1 - self.atom)
        return torch.where(x >= 0, self.atom + share, 0.0)

    @property
    def threshold(self) -> float:
        """The weakest population eigenvalue that shows, in units of ``scale``: 1 + sqrt(gamma)."""
        return 1 + math.sqrt(self.aspect)

    def outlier(self, strength: float) -> float:
        r"""Where an eigenvalue shows that in the population is ``strength`` times the others.

        :math:`\sigma^2 \ell (1 + \gamma / (\ell - 1))` for :math:`\ell` above the threshold, else the edge (Baik and
        Silverstein, J. Multivar. Anal. 97, 1382, 2006); so too below :math:`1 - \sqrt\gamma` where
        :math:`\gamma < 1`.
        """
        root = math.sqrt(self.aspect)
        if strength > 1 + root or strength < 1 - root:
            return self.scale * strength * (1 + self.aspect / (strength - 1))
        return self.edges[1] if strength >= 1 else self.edges[0]

    def edge_scale(self, n: int) -> float:
        """The unit of Tracy and Widom's law at the upper edge, for n dimensions.

        Johnstone, Ann. Stat. 29, 295 (2001): (1/N) (sqrt N + sqrt P) (1 / sqrt N + 1 / sqrt P)^(1/3).
        """
        samples = n / self.aspect
        sums = math.sqrt(samples) + math.sqrt(n), 1 / math.sqrt(samples) + 1 / math.sqrt(n)
        return self.scale * sums[0] * sums[1] ** (1 / 3) / samples


# --------------------------------------------------------------------------- the edge's own scatter


_NODES = 48  # Gauss-Legendre points, which give 13 digits


def tracy_widom_cdf(x: float) -> float:
    r"""Probability that the largest eigenvalue of a real symmetric random matrix is no more than x.

    In units of ``edge_scale``, from the edge (beta = 1). Ferrari and Spohn's determinant (J. Phys. A 38, L557, 2005)
    by quadrature (Bornemann, Math. Comput. 79, 871, 2010):

    .. math:: F_1(x) = \det(1 - K), \qquad K(u, v) = \tfrac12 \mathrm{Ai}\big(\tfrac{u + v}{2}\big), \quad u, v > x

    Example:
        >>> from losscope.landscape.random_matrix import tracy_widom_cdf
        >>> round(tracy_widom_cdf(0.9793), 4)
        0.95
    """
    if not math.isfinite(x):
        return float(x > 0)
    nodes, weights = _gauss_legendre()
    length = max(16.0 - x, 1.0)  # Ai(16) is 1e-20
    points, root = x + length * (nodes + 1) / 2, np.sqrt(weights * length / 2)
    kernel = 0.5 * airy((points[:, None] + points[None, :]) / 2)[0]
    matrix = torch.eye(_NODES, dtype=torch.float64) - torch.from_numpy(root[:, None] * kernel * root[None, :])
    return min(max(float(torch.linalg.det(matrix)), 0.0), 1.0)


@functools.cache
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = roots_legendre(_NODES)
    return nodes, weights


@functools.cache
def tracy_widom_quantile(probability: float) -> float:
    """The x of which `tracy_widom_cdf` is ``probability``: 0.979 for 0.95, 2.023 for 0.99.

    Raises:
        SettingError: if it is not within [1e-6, 1 - 1e-9].
    """
    if not 1e-6 <= probability <= 1 - 1e-9:
        raise SettingError(f"probability must be within [1e-6, 1 - 1e-9], got {probability!r}")
    return float(brentq(lambda x: tracy_widom_cdf(x) - probability, -10.0, 14.0, xtol=1e-10))


def _check(name: str, value: float, fits: bool, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not fits:
        raise SettingError(f"{name} must be a finite number{what and ' '}{what}, got {value!r}")
