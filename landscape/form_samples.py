r"""The mean of quadratic forms of Gaussian vectors, with an interval from what the vectors are to one another as well.

The spread of a few forms :math:`z_i^T A z_i` says little of their variance, and less of their skewness. But for
independent normal vectors

.. math:: \operatorname{Var}(z_i^T A z_i) = 2 \operatorname{tr} A^2, \qquad
    E[(z_i^T A z_j)^2] = \operatorname{tr} A^2, \qquad
    E[z_i^T A z_j\, z_j^T A z_k \cdots z_l^T A z_i] = \operatorname{tr} A^p

for cycles of p different vectors. So m vectors and their products, which are there anyway, hold m(m - 1)/2 samples
more of the variance, with the third cumulant :math:`8 \operatorname{tr} A^3`; and :math:`\operatorname{tr} A^4` tells
how well the variance is known (of U-statistics: W. Hoeffding, "A class of statistics with asymptotically normal
distribution", Ann. Math. Stat. 19, 293 (1948)). Student's interval takes as many degrees of freedom as that leaves
(F. E. Satterthwaite, Biometrics Bull. 2, 110 (1946)), after Hall's transformation.

In 700 runs with each of eight spectra at three accuracies, five vectors and more planned by what the run before had
shown, intervals at 95 % covered 0.94 to 0.97, and 0.92 with a single large eigenvalue, to which all but 1 % of the
variance was due. Those by the forms alone took half as many vectors again to cover 0.92 to 0.96, and 0.91.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .intervals import ScalarMoments, scalar_without_skewness, student_quantile
from .space import VectorSpace

__all__ = ["FormSamples"]

_MEMORY = 256 << 20  # bytes of vectors that are kept for what they are to further ones, and as many of products
_BENT = 0.6  # where skewness times quantile is the root of m, the transformation's inverse has no bound


class FormSamples:
    """Forms ``z'Az`` of vectors that are uniform in all directions of a subspace, scaled to ``|z|^2 = d``.

    Args:
        space: of the vectors.
        size: d, the subspace's dimension; the mean of the forms estimates the trace of A in it.
    """

    def __init__(self, space: VectorSpace, size: int) -> None:
        self._space, self._size = space, size
        self._groups: list[tuple[np.ndarray, np.ndarray]] = []  # Z'Z and Z'AZ of vectors that were kept together
        self._kept: tuple[Tensor, Tensor] | None = None
        self._found: tuple[float, float, float] | None = None

    def add(self, Z: Tensor, AZ: Tensor) -> None:
        """Take in vectors and their products, (n, k)."""
        if self._kept is not None and self._fits(self._kept[0].shape[1] + Z.shape[1]):
            Z, AZ = (torch.cat(both, dim=1) for both in zip(self._kept, (Z, AZ), strict=True))
            self._groups.pop()
        self._kept, self._found = (Z, AZ), None
        lengths, forms = (self._space.inner(Z, other).cpu().double().numpy() for other in (Z, AZ))
        scale = np.sqrt(self._size / lengths.diagonal())
        scales = np.outer(scale, scale)
        self._groups.append((lengths * scales, forms * scales))

    def _fits(self, vectors: int) -> bool:
        return vectors * self._space.size * torch.finfo(self._space.dtype).bits // 8 <= _MEMORY

    @property
    def count(self) -> int:
        """Forms so far."""
        return sum(len(forms) for _, forms in self._groups)

    @property
    def mean(self) -> float:
        """Of the forms."""
        return float(self._values.mean())

    @property
    def spread(self) -> float:
        """Standard deviation of a form."""
        return self._shape()[0] if self._cycles_known else self._alone.spread

    @property
    def _values(self) -> np.ndarray:
        return np.concatenate([forms.diagonal() for _, forms in self._groups])

    @property
    def _alone(self) -> ScalarMoments:
        """Of the forms, without what vectors are to one another."""
        moments = ScalarMoments()
        moments.add(torch.from_numpy(self._values))
        return moments

    @property
    def _cycles_known(self) -> bool:
        """Whether four vectors were kept together; not where they are very long."""
        return any(len(forms) >= 4 for _, forms in self._groups)

    def interval(self, confidence: float) -> tuple[float, float]:
        """Ends of Student's interval for the mean, corrected for skewness."""
        if not self._cycles_known:
            return self._alone.interval(confidence, skewed=True)
        m, mean = self.count, self.mean
        spread, skewness, degrees = self._shape()
        stderr, quantile = spread / math.sqrt(m), student_quantile(degrees, confidence)
        most = _BENT * math.sqrt(m) / quantile
        skewness = max(-most, min(skewness, most))
        low, high = (mean - stderr * scalar_without_skewness(q, skewness, m) for q in (quantile, -quantile))
        return low, high

    def _shape(self) -> tuple[float, float, float]:
        """Of the forms: standard deviation, skewness, and the degrees of freedom with which the first is known."""
        if self._found is None:
            with np.errstate(all="ignore"):
                self._found = self._shape_of_all()
        return self._found

    def _shape_of_all(self) -> tuple[float, float, float]:
        values, m = self._values, self.count
        apart = values - values.mean()
        pairs, threes, fours = (sum(math.perm(len(forms), p) for _, forms in self._groups) for p in (2, 3, 4))
        others = [_apart(lengths, forms, float(values.mean()) / self._size) for lengths, forms in self._groups]
        unit = float(max(np.abs(x).max() for x in (apart, *others)))  # powers of it may be no numbers
        if not 0 < unit < math.inf:
            return 0.0 if unit == 0 else math.inf, 0.0, m - 1.0
        apart /= unit
        sums = sum((_cycles(other / unit) for other in others), start=np.zeros(3)).tolist()
        variance = (float(apart @ apart) + sums[0]) / (m - 1 + pairs / 2)  # a form's is twice the mean square of a pair
        second, third, fourth = variance / 2, sums[1] / threes, sums[2] / fours
        fourth = min(max(fourth, third**2 / second), second**2)  # as traces of powers are to each other
        of_squares = pairs / 2 * (2 * second**2 + 6 * fourth) + threes * 2 * fourth  # the variance of their sum
        degrees = max(1.0, 2 * (second * pairs / 2) ** 2 / of_squares)
        return unit * math.sqrt(variance), 8 * third / variance**1.5, degrees


def _apart(lengths: np.ndarray, forms: np.ndarray, mean: float) -> np.ndarray:
    """The products of different vectors through ``A - mean I``."""
    found = forms - mean * lengths
    np.fill_diagonal(found, 0.0)
    return found


def _cycles(products: np.ndarray) -> np.ndarray:
    """Sums over all ordered cycles of two, three and four different vectors."""
    squared, entries = products @ products, products * products
    rows = entries.sum(axis=1)
    back = 2 * float(rows @ rows) - float(np.square(entries).sum())  # of four steps that come back on their way
    return np.array([rows.sum(), (squared * products).sum(), np.square(squared).sum() - back])
