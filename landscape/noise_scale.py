r"""The noise of gradients: its size, relative to the gradient, and how surely that is known.

With the gradients :math:`g_i` of single samples, their mean G and covariance :math:`\Sigma`, the gradient of a batch
of B samples has the covariance :math:`\Sigma / B`. Batches up to about the noise scale (S. McCandlish, J. Kaplan, D.
Amodei and the OpenAI Dota Team, "An empirical model of large-batch training", arXiv 1812.06162)

.. math:: B_\mathrm{simple} = \frac{\operatorname{tr}\Sigma}{|G|^2}, \qquad
    B_\mathrm{noise} = \frac{\operatorname{tr}(H\Sigma)}{G^T H G}

make nearly proportionally larger progress per step. From K independent gradients :math:`x_k` of batches of B samples

.. math:: \widehat{\operatorname{tr}\Sigma} = \frac{B}{K - 1} \sum_k |x_k - \bar x|^2, \qquad
    \widehat{|G|^2} = \frac{1}{K (K - 1)} \sum_{j \ne k} x_j^T x_k

are without bias; the second is their mean's square less :math:`\widehat{\operatorname{tr}\Sigma} / (B K)`, and may
come out negative. Its variance is :math:`4 G^T C G / K + 2 \operatorname{tr}(C^2) / K^2` with :math:`C = \Sigma /
B`, of which the first part is taken from the spread of :math:`x_k^T \bar x_{-k}` and the second, which is all there is
where the gradient vanishes, from the products of different gradients. The ratio's interval is Fieller's, from that of
both: where the gradient's square may be zero, no upper end is known and the noise scale is inconclusive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import fdtri
from torch import Tensor

from .errors import NonFiniteError, SettingError
from .html_table import Shown
from .intervals import student_quantile
from .mean_estimates import Mean
from .results import Estimate

__all__ = ["NoiseScale", "Reduced", "noise_scale", "two_batch_noise"]


@dataclass(frozen=True, eq=False)
class NoiseScale(Shown):
    """A ratio of noise to signal, in samples.

    Attributes:
        value: the ratio of the two estimates; infinite where that of the signal is not positive.
        low: lower end of its interval.
        high: upper end; infinite unless `conclusive`.
        confidence: nominal coverage.
        noise: tr(Sigma), or tr(H Sigma).
        signal: ``|G|^2`` without bias, or G'HG; may be negative.
    """

    value: float
    low: float
    high: float
    confidence: float
    noise: Estimate
    signal: Estimate

    @property
    def conclusive(self) -> bool:
        """Whether the signal's interval lies above zero, and the ratio has one; else it may be as large as any.

        The signal's interval follows its skewness, so that of a few draws with a heavy tail may miss the estimate.
        """
        return self.signal.low > 0 and math.isfinite(self.value) and math.isfinite(self.high)

    def __repr__(self) -> str:
        """One line: the value and interval, and what it is made of."""
        state = f"{self.value:.4g}" if self.conclusive else "INCONCLUSIVE"
        return (
            f"NoiseScale({state} in [{self.low:.4g}, {self.high:.4g}] at {self.confidence:.0%}; noise "
            f"{self.noise.value:.4g} in [{self.noise.low:.4g}, {self.noise.high:.4g}], signal {self.signal.value:.4g} "
            f"in [{self.signal.low:.4g}, {self.signal.high:.4g}], {self.noise.matvecs} draws)"
        )


@dataclass(frozen=True, eq=False)
class Reduced:
    """What of K independent vectors x_k is needed, in some inner product.

    Attributes:
        apart: (K,) float64, ``|x_k - mean|^2 K / (K - 1)``: their mean is the trace of the covariance C.
        along: (K,) float64, ``x_k' (mean of the others)``: their mean is the square of the expectation.
        spread: tr(C^2), which is what their products scatter by where the expectation is zero.
    """

    apart: Tensor
    along: Tensor
    spread: float

    @classmethod
    def of_products(cls, gram: Tensor) -> Reduced:
        """From all products of the vectors, (K, K) float64."""
        K = len(gram)
        sums = gram.sum(dim=1)
        centred = gram - (sums[:, None] + sums[None, :]) / K + gram.sum() / K**2
        along = (sums - gram.diagonal()) / (K - 1)
        return cls(centred.diagonal() * K / (K - 1), along, covariance_square(centred))

    def variance_of_square(self) -> tuple[float, float]:
        """Of the mean of ``along``, were the expectation's square s: ``slope s + rest``, as (slope, rest).

        The part that is linear in the noise grows with the expectation, so that it must be that of the square in
        question and not of the estimate: one that came out small would claim to be accurate.
        """
        K = len(self.along)
        linear, rest = 4 * float(self.along.var()) / K, 2 * self.spread / K**2
        seen = float(self.along.mean()) + float(self.apart.mean()) / K  # square of the mean
        if seen <= 0:  # as in an inner product that is none
            return 0.0, max(linear - rest, rest)
        return min(linear / seen, 4 * math.sqrt(self.spread) / K), rest  # no direction has more than root(tr(C^2))

    @property
    def degrees(self) -> float:
        """Directions that the noise has: tr(C)^2 / tr(C^2), between 1 and their number."""
        trace = float(self.apart.mean())
        return min(1e6, max(1.0, trace**2 / self.spread)) if self.spread > 0 else 1e6

    def scale(self, batch_size: int, confidence: float) -> NoiseScale:
        """The ratio of B tr(C) to the expectation's square."""
        K, along = len(self.apart), Mean(self.along)
        quantile = student_quantile(along.degrees(along.skewness), confidence)
        degrees = self.degrees
        noise = _estimate(Mean(self.apart * batch_size), confidence, least_skewness=math.sqrt(8 / degrees))
        square, (slope, rest) = along.value, self.variance_of_square()
        error = math.sqrt(slope * max(0.0, square) + rest)
        # What is quadratic in the noise is no normal number but about a chi-square one, with few degrees a skewed one.
        tail = float(fdtri(degrees, degrees * (K - 1), (1 + confidence) / 2))
        rest *= max(1.0, (tail - 1) * math.sqrt(degrees / 2) / quantile) ** 2
        low, high = _square_interval(square, slope, rest, quantile)
        signal = Estimate(square, error, low, high, confidence, K, "draws", math.isfinite(error))
        both = torch.cov(torch.stack([self.apart * batch_size, 2 * self.along])) / K
        return _ratio(noise, signal, (float(both[0, 0]), float(both[0, 1])), (slope, rest), quantile)


def _square_interval(square: float, slope: float, rest: float, quantile: float) -> tuple[float, float]:
    """The s with ``|square - s| <= quantile root(slope s + rest)``, as Wilson's for a share."""
    middle = square + quantile**2 * slope / 2
    inside = quantile**2 * (slope * square + quantile**2 * slope**2 / 4 + rest)
    half = math.sqrt(inside) if inside > 0 else quantile * math.sqrt(rest)
    return middle - half, middle + half


def covariance_square(centred: Tensor) -> float:
    """tr(C^2), from the products (K, K) of K vectors less their mean: the variance of those of different ones."""
    K = len(centred)
    if K < 4:
        return 0.0
    apart = centred[~torch.eye(K, dtype=torch.bool)]
    return float(apart.var()) * (K - 1) / max(1, K - 3)  # what taking out the mean leaves of normal vectors' variance


def noise_scale(gradients: Tensor, batch_size: int = 1, *, confidence: float = 0.95) -> NoiseScale:
    """tr(Sigma), the gradient's square and their ratio, from independent gradients.

    Args:
        gradients: (K, n) gradients of K batches that were drawn independently of one another, each the mean over its
            samples; K of 4 at least.
        batch_size: samples in each.
        confidence: nominal coverage of the intervals, with the degrees of freedom that tails leave (Satterthwaite): for
            tr(Sigma) Student's, corrected for skewness by Hall's transformation; for the square Student's; for the
            ratio Fieller's.

    Returns:
        Of the population that the samples were drawn from: for draws with replacement from a data set, that set.
        Where a few of its samples hold most of tr(Sigma) and may not have been drawn, no interval knows of them: of
        64 single draws from 500 with entries of Student's t with 3 degrees, tr(Sigma) was covered in 80 %.

    Raises:
        SettingError: if an argument means nothing.
        NonFiniteError: if a gradient is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape.noise_scale import noise_scale
        >>> draws = 3 + torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        >>> found = noise_scale(draws)  # tr(Sigma) = 2, |G|^2 = 18
        >>> found.conclusive, bool(found.low < 2 / 18 < found.high)
        (True, True)
        >>> noise_scale(draws - draws.mean(dim=0)).conclusive
        False
    """
    check_confidence(confidence)
    if not isinstance(gradients, Tensor) or gradients.ndim != 2 or len(gradients) < 4:
        given = tuple(gradients.shape) if isinstance(gradients, Tensor) else type(gradients).__name__
        raise SettingError(f"gradients must be a matrix (K, n) of K >= 4 independent gradients, got {given}")
    check_count("batch_size", batch_size, 1)
    if not bool(gradients.isfinite().all()):
        raise NonFiniteError("a gradient is NaN or infinite, and so is its noise")
    mean = gradients.mean(dim=0, keepdim=True)  # its part in the products would leave no digits for the rest
    apart = (gradients - mean).double()
    inner, along = apart @ apart.T, apart @ mean[0].double()
    gram = inner + along[:, None] + along[None, :] + float(mean.double().square().sum())
    return Reduced.of_products(gram.cpu()).scale(batch_size, confidence)


def two_batch_noise(small: Tensor, big: Tensor, sizes: tuple[int, int], *, confidence: float = 0.95) -> NoiseScale:
    r"""The noise scale from the squared lengths of gradients of two batch sizes (McCandlish et al. 2018, appendix A).

    .. math:: |G|^2 = \frac{B_b |G_b|^2 - B_s |G_s|^2}{B_b - B_s}, \qquad
        S = \frac{|G_s|^2 - |G_b|^2}{1 / B_s - 1 / B_b}

    in each repetition, both averaged over repetitions before the ratio is taken. Data-parallel training has them for
    nothing: a worker's gradient before it is averaged, and the average.

    Args:
        small: (R,) squared lengths of gradients of small batches, one per repetition, or their means over workers.
        big: (R,) those of big batches; they may contain the small ones of the same repetition.
        sizes: samples in a small and in a big batch.
        confidence: nominal coverage; that of the ratio is Fieller's.

    Returns:
        With tr(Sigma) = S as its noise and the gradient's square as its signal.

    Raises:
        SettingError: if an argument means nothing, or there are fewer than two repetitions.

    Example:
        >>> import torch
        >>> from losscope.landscape.noise_scale import two_batch_noise
        >>> draws = 1 + torch.randn(200, 8, 3, generator=torch.Generator().manual_seed(0))
        >>> small, big = draws[:, 0].square().sum(1), draws.mean(1).square().sum(1)
        >>> found = two_batch_noise(small, big, (1, 8))  # tr(Sigma) = |G|^2 = 3
        >>> bool(found.noise.low < 3 < found.noise.high), bool(found.low < 1 < found.high)
        (True, True)
    """
    check_confidence(confidence)
    few, many = sizes
    check_count("the smaller size", few, 1)
    check_count("the larger size", many, few + 1)
    small, big = (torch.as_tensor(x, dtype=torch.float64, device="cpu") for x in (small, big))
    if small.ndim != 1 or small.shape != big.shape or len(small) < 2:
        raise SettingError(
            "the noise takes squared lengths of at least 2 independent repetitions, one of a small and one of a big "
            f"batch in each; got {tuple(small.shape)} and {tuple(big.shape)}"
        )
    squares = (many * big - few * small) / (many - few)
    noises = (small - big) / (1 / few - 1 / many)
    noise, signal = (_estimate(Mean(x), confidence) for x in (noises, squares))
    both = torch.cov(torch.stack([noises, squares])) / len(small)
    quantile = student_quantile(len(small) - 1, confidence)
    return _ratio(noise, signal, (float(both[0, 0]), float(both[0, 1])), (0.0, float(both[1, 1])), quantile)


def fieller(
    top: float, bottom: float, noise: tuple[float, float], variance: tuple[float, float], quantile: float
) -> tuple[float, float]:
    """Fieller's interval for a ratio of two estimates; without upper end where the lower one may be zero.

    E. C. Fieller, "Some problems in interval estimation", J. R. Stat. Soc. B 16, 175 (1954).

    Args:
        top: the upper estimate.
        bottom: the lower one.
        noise: variance of the upper, and covariance of both.
        variance: of the lower, were it s: ``slope s + rest``, as (slope, rest); s is the upper over the ratio.
        quantile: Student's.
    """
    square, (slope, rest) = quantile**2, variance
    aa = top**2 - square * noise[0]
    ab = top * bottom + square * (slope * top / 2 - noise[1])
    bb = bottom**2 - square * rest
    root = math.sqrt(max(0.0, ab * ab - aa * bb))
    if bottom > 0 and bb > 0:
        return (ab - root) / bb, (ab + root) / bb
    if top > 0 and aa > 0 and bb < 0:  # two half lines, of which the one of positive ratios
        return (ab - root) / bb, math.inf
    return -math.inf, math.inf


def _ratio(
    noise: Estimate, signal: Estimate, of_noise: tuple[float, float], variance: tuple[float, float], quantile: float
) -> NoiseScale:
    low, high = fieller(noise.value, signal.value, of_noise, variance, quantile)
    value = noise.value / signal.value if signal.value > 0 else math.inf
    return NoiseScale(value, low, high if signal.low > 0 else math.inf, noise.confidence, noise, signal)


def _estimate(found: Mean, confidence: float, least_skewness: float = -math.inf) -> Estimate:
    """Normal gradients' squared lengths have the least skewness that there is for as many directions."""
    low, high = found.interval_of_tails(confidence, least_skewness)
    finite = math.isfinite(high - low)
    return Estimate(found.value, found.stderr, low, high, confidence, len(found.samples), "draws", finite)


def check_confidence(confidence: float) -> None:
    """Refuse what is no coverage.

    Raises:
        SettingError: if it is not between 0 and 1.
    """
    if isinstance(confidence, str | bool) or not 0 < confidence < 1:
        raise SettingError(f"confidence must be between 0 and 1, got {confidence!r}")


def check_count(name: str, value: object, least: int) -> None:
    """Refuse what is no number of things.

    Raises:
        SettingError: if it is not an integer, or below the least.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SettingError(f"{name} must be an integer of at least {least}, got {value!r}")
