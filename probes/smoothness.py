r"""Whether curvature grows with the gradient: the (L0, L1)-smoothness of a run.

A loss is (L0, L1)-smooth where :math:`\|\nabla^2 L\| \le L_0 + L_1 \|\nabla L\|` (Zhang, He, Sra and Jadbabaie 2020,
"Why gradient clipping accelerates training", arXiv 1905.11881). Where that explains a run, clipping is the step that
suits it; the fit says whether it does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from scipy.special import stdtrit
from torch import Tensor

from losscope.landscape.space import generator_for

if TYPE_CHECKING:
    from .records import Record
    from .run import Run

__all__ = ["Smoothness", "fit_smoothness", "smoothness_of"]

LEAST = 20
"""Measurements from which a fit says something: they are autocorrelated, and count for fewer."""

SEVERAL = 5
"""Independent measurements with which a slope is more than chance."""

MOST = 2000
"""More are thinned out evenly."""

_DRAWS, _REWEIGHTINGS, _HUBER = 400, 12, 1.345

_LENGTH = 3
"""Length of the stretches in memories of the residuals. Measured coverage of the 95 % intervals, over autoregressive
series of 40 to 300 measurements: 90 to 98 % where those are worth 20 independent ones, down to 73 % where worth 3."""


@dataclass(frozen=True)
class Smoothness:
    """The line ``sharpness = L0 + L1 |gradient|`` through the measurements of a run.

    It is a description of the path that training took, and no bound of the loss's Lipschitz constants.

    Attributes:
        L0: sharpness where the gradient vanishes, in units of curvature, at least 0.
        L0_low: lower end of its interval (95 %, over blocks of the run), with ``L0_high``.
        L1: how much the sharpness grows with the gradient's norm, in units of curvature per gradient, at least 0.
        L1_low: lower end of its interval, with ``L1_high``.
        correlation: of the ranks of sharpness and gradient norm, from -1 to 1.
        explained: share of the sharpness's scatter (sum of absolute deviations from the median) that the line takes
            away; 0 where it takes away none.
        measurements: how many there are.
        effective: how many independent ones they are worth, about; with less than 20 the intervals are too narrow.
    """

    L0: float
    L0_low: float
    L0_high: float
    L1: float
    L1_low: float
    L1_high: float
    correlation: float
    explained: float
    measurements: int
    effective: float

    @property
    def explains(self) -> bool:
        """Whether the sharpness grows with the gradient beyond chance, and that is a good part of its scatter."""
        return self.L1_low > 0 and self.explained >= 0.2 and self.effective >= SEVERAL

    @property
    def words(self) -> str:
        """One sentence."""
        seen = f"rank correlation {self.correlation:.2f} in {self.measurements} measurements"
        nothing = "(L0, L1)-smoothness explains nothing here"
        if self.correlation <= 0:
            return f"the sharpness does not grow with |gradient| ({seen}): {nothing}"
        if not self.L1_low > 0 or self.effective < SEVERAL:  # whatever the correlation: few count, or chance does it
            seen += f", worth {self.effective:.0f} independent ones"
            return f"that the sharpness grows with |gradient| does not show ({seen}): {nothing}"
        if not self.explains:
            return (
                f"the sharpness grows with |gradient| ({seen}), but a line takes away {self.explained:.0%} of its "
                "scatter: (L0, L1)-smoothness explains little here"
            )
        return (
            f"(L0, L1)-smoothness: sharpness = {self.L0:.3g} + {self.L1:.3g} |gradient|, L1 from {self.L1_low:.3g} to "
            f"{self.L1_high:.3g}, takes away {self.explained:.0%} of its scatter ({seen})"
        )


def fit_smoothness(run: Run, player: str | None = None) -> Smoothness | None:
    """Fit the measured sharpness of the Hessian against the gradient's norm.

    Args:
        run: the run.
        player: one of its players; default: the first.

    Returns:
        The fit; None with fewer than 20 measurements, or where the gradient's norm is always the same.

    Example:
        >>> from losscope.probes import Record, Run
        >>> from losscope.probes.smoothness import fit_smoothness
        >>> norms = [1 + (7 * i % 10) / 10 for i in range(60)]
        >>> records = [
        ...     Record(i, "model", "sharpness", value=3 + 2 * norm, values={"gradient_norm": norm})
        ...     for i, norm in enumerate(norms)
        ... ]
        >>> found = fit_smoothness(Run.from_records({"players": {"model": {}}}, records))
        >>> round(found.L0, 3), round(found.L1, 3)
        (3.0, 2.0)
    """
    player = run.players[0] if player is None and run.players else player
    preconditioned = run.meta.get("players", {}).get(player, {}).get("preconditioned")
    points = {r.step: found for r in run.select("sharpness", player) if (found := _point(r, r.value)) is not None}
    if not preconditioned:  # else the stability probe's sharpness is that of P^-1 H
        for r in run.select("stability", player):
            if (found := _point(r, r.values.get("sharpness"))) is not None:
                points.setdefault(r.step, found)
    chosen = [points[step] for step in sorted(points)]
    chosen = chosen[:: math.ceil(len(chosen) / MOST)] if chosen else []
    return smoothness_of([x for x, _ in chosen], [y for _, y in chosen])


def _point(record: Record, sharpness: float | None) -> tuple[float, float] | None:
    norm = record.values.get("gradient_norm")
    if norm is None or sharpness is None or not math.isfinite(norm) or not math.isfinite(sharpness):
        return None
    return norm, sharpness


def smoothness_of(norms: list[float], sharpness: list[float], seed: int = 0) -> Smoothness | None:
    """The fit, from measurements in the order of time.

    Huber's loss, so that single spikes do not decide; neither L0 nor L1 is negative. The intervals are Student's, with
    the spread of fits to a run put together from random stretches of it, long beside the memory of the residuals.

    Args:
        norms: of the gradient.
        sharpness: the same number.
        seed: of the random stretches.

    Returns:
        None with fewer than 20 measurements, or where the gradient's norm is always the same.
    """
    n = len(norms)
    x, y = torch.tensor(norms, dtype=torch.float64), torch.tensor(sharpness, dtype=torch.float64)
    if n < LEAST or not bool((x.max() - x.min()) > 1e-9 * x.abs().max()):
        return None
    L0, L1 = (float(v) for v in _line(x[None], y[None])[:, 0])
    residuals = y - L0 - L1 * x
    memory = max(_memory(residuals), _memory(residuals * (x - x.mean())))
    length = min(max(math.ceil(_LENGTH * memory), math.ceil(n ** (1 / 3))), n // 4)
    blocks = n / length
    fits = _line(*_resampled(x, y, length, seed))
    spread = fits.std(dim=1) * math.sqrt(blocks / (blocks - 1))
    half = float(stdtrit(max(blocks - 2, 1.0), 0.975)) * spread
    scatter = (y - y.median()).abs().sum()
    explained = 1 - float(residuals.abs().sum() / scatter) if float(scatter) > 0 else 0.0
    return Smoothness(
        L0, max(L0 - float(half[0]), 0.0), L0 + float(half[0]), L1, max(L1 - float(half[1]), 0.0), L1 + float(half[1]),
        _rank_correlation(x, y), max(explained, 0.0), n, n / memory,
    )  # fmt: skip


def _line(x: Tensor, y: Tensor) -> Tensor:
    """Huber's nonnegative fits (2, draws) to rows of points (draws, n), by reweighting."""
    w = torch.ones_like(y)
    fit = torch.zeros(2, y.shape[0], dtype=y.dtype)
    for _ in range(_REWEIGHTINGS):
        fit = _nonnegative(x, y, w)
        residuals = (y - fit[0][:, None] - fit[1][:, None] * x).abs()
        scale = 1.4826 * residuals.median(dim=1, keepdim=True).values
        w = (_HUBER * scale / residuals.clamp_min(1e-300)).clamp_max(1.0)
        w = torch.where(scale > 0, w, torch.ones_like(w))
    return fit


def _nonnegative(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Weighted least squares for both coefficients, none of them negative: the best of the faces that is allowed."""
    sw, sx, sy = w.sum(1), (w * x).sum(1), (w * y).sum(1)
    sxx, sxy = (w * x * x).sum(1), (w * x * y).sum(1)
    determinant = sw * sxx - sx * sx
    determinant = torch.where(determinant > 1e-14 * sw * sxx, determinant, torch.inf)
    slope, zero = (sw * sxy - sx * sy) / determinant, torch.zeros_like(sw)
    constant = (sy - slope * sx) / sw
    through, level = (sxy / sxx.clamp_min(1e-300)).clamp_min(0), (sy / sw).clamp_min(0)
    L1 = torch.where(slope < 0, zero, torch.where(constant < 0, through, slope))
    L0 = torch.where(slope < 0, level, torch.where(constant < 0, zero, constant))
    return torch.stack((L0, L1))


def _resampled(x: Tensor, y: Tensor, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Runs put together from random stretches of this one (the moving-block bootstrap, Kuensch 1989)."""
    n, generator = len(x), generator_for(seed, x.device)
    starts = torch.randint(n - length + 1, (_DRAWS, math.ceil(n / length)), generator=generator)
    chosen = (starts[:, :, None] + torch.arange(length)).flatten(1)[:, :n]
    return x[chosen], y[chosen]


def _memory(series: Tensor) -> float:
    """Integrated autocorrelation time in measurements, at least 1: the sum over lags until it is lost in noise.

    Sokal's window: as many lags as five times the sum so far.
    """
    n = len(series)
    centred = series - series.mean()
    variance = float((centred * centred).mean())
    if not variance > 0:
        return 1.0
    total = 1.0
    for lag in range(1, n // 3):
        total += 2 * float((centred[:-lag] * centred[lag:]).sum()) / (n * variance)
        if lag >= 5 * total:
            break
    return min(max(total, 1.0), n / 4)


def _rank_correlation(x: Tensor, y: Tensor) -> float:
    """Spearman's, the ranks of equal values averaged."""
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    size = float(a.square().sum() * b.square().sum())
    return float((a * b).sum()) / math.sqrt(size) if size > 0 else 0.0


def _ranks(values: Tensor) -> Tensor:
    _, place, counts = torch.unique(values, sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]
