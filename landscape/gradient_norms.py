"""How long the gradients of single samples are: quantiles, and what clipping would cut."""

from __future__ import annotations

import math

import torch
from scipy.special import bdtr, betaincinv
from torch import Tensor

from .errors import SettingError
from .results import Estimate

__all__ = ["quantile", "share_above"]


def quantile(samples: Tensor, q: float, *, confidence: float = 0.95) -> Estimate:
    """A quantile of the population that independent samples come from, with an interval that holds for any.

    The ends are order statistics: the number of samples below the quantile is binomial (H. A. David and H. N.
    Nagaraja, *Order Statistics*, 2003, section 7.1). Where there are too few samples for an end, it is infinite.

    Args:
        samples: (K,).
        q: between 0 and 1.
        confidence: least coverage.

    Raises:
        SettingError: if an argument means nothing.

    Example:
        >>> import torch
        >>> from losscope.landscape.gradient_norms import quantile
        >>> found = quantile(torch.arange(1.0, 102.0), 0.5)
        >>> found.value, found.low, found.high
        (51.0, 41.0, 61.0)
    """
    ordered = _checked(samples, confidence).sort().values
    if not 0 < q < 1:
        raise SettingError(f"q must be between 0 and 1, got {q!r}")
    K, tail = len(ordered), (1 - confidence) / 2
    below = torch.from_numpy(bdtr(torch.arange(K, dtype=torch.float64).numpy(), K, q))  # P(at most k samples below)
    lower = int((below <= tail).sum())  # the quantile is below the lower-th smallest with probability <= tail
    upper = int((below < 1 - tail).sum())
    low = float(ordered[lower - 1]) if lower > 0 else -math.inf
    high = float(ordered[upper]) if upper < K else math.inf
    value = float(torch.quantile(ordered, q)) if K <= 1 << 23 else float(ordered[int(q * K)])
    spread = (high - low) / 4 if math.isfinite(high - low) else math.inf
    return Estimate(value, spread, low, high, confidence, K, "draws", math.isfinite(spread))


def share_above(samples: Tensor, c: float, *, confidence: float = 0.95) -> Estimate:
    """The share of the population above c, as what clipping at c would cut: Clopper and Pearson's interval.

    C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of the
    binomial", Biometrika 26, 404 (1934).

    Args:
        samples: (K,).
        c: the threshold.
        confidence: least coverage.

    Raises:
        SettingError: if an argument means nothing.

    Example:
        >>> import torch
        >>> from losscope.landscape.gradient_norms import share_above
        >>> found = share_above(torch.arange(10.0), 7.5)
        >>> found.value, round(found.low, 3), round(found.high, 3)
        (0.2, 0.025, 0.556)
    """
    samples = _checked(samples, confidence)
    K, above, tail = len(samples), int((samples > c).sum()), (1 - confidence) / 2
    low = float(betaincinv(above, K - above + 1, tail)) if above else 0.0
    high = float(betaincinv(above + 1, K - above, 1 - tail)) if above < K else 1.0
    share = above / K
    return Estimate(share, math.sqrt(share * (1 - share) / K), low, high, confidence, K, "draws", True)


def _checked(samples: Tensor, confidence: float) -> Tensor:
    if not isinstance(samples, Tensor) or samples.ndim != 1 or len(samples) == 0:
        given = tuple(samples.shape) if isinstance(samples, Tensor) else type(samples).__name__
        raise SettingError(f"samples must be a vector of at least one number, got {given}")
    if not 0 < confidence < 1:
        raise SettingError(f"confidence must be between 0 and 1, got {confidence!r}")
    return samples.double()
