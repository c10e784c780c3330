"""The spectral density of a symmetric operator, as nodes and weights, and what can be said of it."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from scipy.optimize import brentq
from scipy.special import betainc
from torch import Tensor

from .errors import SettingError
from .html_table import Shown
from .intervals import number
from .quadrature import Quadrature
from .results import Estimate
from .wasserstein import Sampling

__all__ = ["SpectralDensity", "merged"]


@dataclass(frozen=True, eq=False)
class SpectralDensity(Shown):
    r"""The share of eigenvalues at each place, :math:`\phi = \frac1n \sum_i \delta_{\lambda_i}`, estimated.

    It is a measure: eigenvalues that are known one by one, each of mass 1/n, and for all others the average of the
    Gauss quadratures of random starts, or what has their moments and is closer (see `continuation`). Nothing is
    smoothed.

    **Intervals.** What a random start gives an eigenvalue has a known law (see `wasserstein`), so that one start has
    intervals too. Those of shares of eigenvalues, in `cdf`, `mass` and `quantile`, invert the Beta law of the mass
    that S starts find where c of n eigenvalues are, like those of Clopper and Pearson (Biometrika 26, 404, 1934), at
    each point by itself; those of moments are of the studentised bootstrap. What a quadrature cannot tell of where
    its mass is, is in them: its residual is the spread of a node's mass, which moreover is not beyond the next node of
    the same start (the inequalities of Chebyshev, Markov and Stieltjes). Eigenvalues that have been taken out are
    uncertain by their ``errors`` only.

    Attributes:
        starts: one quadrature per random start, of the part of the spectrum that was not taken out; none where all
            eigenvalues are known.
        deflated: (d,) float64 eigenvalues that were taken out, ascending, on the host.
        size: n.
        matvecs: operator-vector products spent.
        wasserstein: one-sided bound of the Wasserstein-1 distance to the spectrum, at ``confidence``, in the unit
            of the eigenvalues; see `spectral_density`.
        confidence: nominal coverage of the bound and of all intervals.
        converged: True if and only if the requested accuracy was reached, or none was requested.
        kernel: name of the engine that computed the products.
        note: what is to be known of them; mostly empty.
        errors: (d,) residuals of the eigenpairs of ``deflated``: an eigenvalue lies within each, mostly far closer.
        rounding: relative error of the products.
        steps: m, Lanczos steps of each start, whose quadratures are exact for polynomials of degree 2m - 1; by
            default as many as it has nodes.
        continued: nodes, ascending, and weights with sum 1 that stand for all starts in `nodes`, `weights`, and
            shares of eigenvalues; by default the average of their quadratures. Moments, and all intervals, are of
            the quadratures themselves; where less than two steps are left of these, with the spread that the
            residuals of nodes have.

    Example:
        >>> import torch
        >>> from losscope.landscape import SpectralDensity
        >>> density = SpectralDensity.of_eigenvalues(torch.tensor([0.0, 0.0, 1.0, 5.0]))
        >>> density.moment(1).value, density.cdf(0.5)[0], density.quantile(0.75).value
        (1.5, 0.5, 1.0)
    """

    starts: tuple[Quadrature, ...]
    deflated: Tensor
    size: int
    matvecs: int
    wasserstein: float
    confidence: float
    converged: bool
    kernel: str = ""
    note: str = ""
    errors: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    rounding: float = 0.0
    steps: int = 0
    continued: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of_eigenvalues(cls, values: Tensor, *, confidence: float = 0.95) -> SpectralDensity:
        """The density of a spectrum that is known.

        Args:
            values: (n,) all eigenvalues.
            confidence: of its intervals, which have no width.

        Raises:
            SettingError: if there are none, or they are not real and finite.
        """
        values = torch.as_tensor(values).detach()
        if values.ndim != 1 or len(values) == 0 or values.is_complex() or not values.isfinite().all():
            raise SettingError(
                f"values must be finite real eigenvalues (n,), got {values.dtype} of shape {tuple(values.shape)}"
            )
        values = values.to("cpu", torch.float64).sort().values
        return cls((), values, len(values), 0, 0.0, confidence, True, errors=torch.zeros_like(values))

    # ------------------------------------------------------------------ the measure

    @functools.cached_property
    def _measure(self) -> tuple[Tensor, Tensor]:
        (rest, shares), atoms = self._shown, torch.full_like(self.deflated, 1 / self.size)
        nodes, order = torch.cat([rest, self.deflated]).sort(stable=True)
        return nodes, torch.cat([self._sampled * shares, atoms])[order]

    @property
    def _shown(self) -> tuple[Tensor, Tensor]:
        return self._rest[:2] if self.continued is None else self.continued

    @property
    def nodes(self) -> Tensor:
        """(m,) float64, ascending: places that carry mass."""
        return self._measure[0]

    @property
    def weights(self) -> Tensor:
        """(m,) float64, the mass at each of the nodes; with sum 1."""
        return self._measure[1]

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest node, between which the spectrum is, but for what the starts have not resolved."""
        return float(self.nodes[0]), float(self.nodes[-1])

    # ------------------------------------------------------------------ moments

    def moment(self, p: int) -> Estimate:
        """The mean of the p-th powers of the eigenvalues, tr(A^p) / n.

        Raises:
            SettingError: if p is not an integer of 0 or more, or above 2m - 1, to which m steps give moments.
        """
        if isinstance(p, bool) or not isinstance(p, int) or p < 0:
            raise SettingError(f"p must be an integer of 0 or more, got {p!r}")
        most = 2 * min((self.steps or len(q.nodes) for q in self.starts), default=p) - 1
        if p > max(most, 1) and self.starts:
            raise SettingError(f"{(most + 1) // 2} steps give moments up to {most}, and p is {p}: take more steps")
        return self._moment(p, 1.0)

    @property
    def trace(self) -> Estimate:
        """The sum of the eigenvalues."""
        return self._moment(1, float(self.size))

    def _moment(self, p: int, factor: float) -> Estimate:
        known = float((self.deflated**p).sum()) / self.size
        slopes = p * (self.deflated.abs() ** (p - 1) if p else torch.zeros_like(self.deflated))
        off = 2 * float(slopes @ self._errors) / self.size
        # Rounding makes another matrix of A, in proportion to the largest eigenvalues, where all weight of high powers
        # is; and, where each direction is multiplied again, another one at each product.
        times = 2 if self.starts else 1
        off += times * p * self.rounding * float(self.weights @ self.nodes.abs() ** p)
        if not self.starts:
            return self._estimate(factor, known, 0.0, known - off, known + off)
        nodes, weights = self._spread
        value = known + self._sampled * float(weights @ nodes**p)
        stderr, low, high = (self._sampled * found for found in self._sampling.interval(nodes**p, self.confidence))
        return self._estimate(factor, value, stderr, known + low - off, known + high + off)

    # ------------------------------------------------------------------ shares of eigenvalues

    def cdf(self, x: float) -> tuple[float, float, float]:
        """The share of eigenvalues up to x, and the ends of its interval.

        Raises:
            SettingError: if x is not a number.
        """
        found = self.mass(-math.inf, x)
        return found.value, found.low, found.high

    def mass(self, low: float, high: float) -> Estimate:
        """The share of eigenvalues in an interval, ends included.

        Those near zero are in ``mass(-eps, eps)``, clearly negative ones in ``mass(-math.inf, -eps)``.

        Raises:
            SettingError: if ``low > high``, or one is not a number.
        """
        if not number(low) <= number(high):
            raise SettingError(f"low must be a number and high one that is not below it, got {low!r} and {high!r}")
        (share, of_starts), (entering, leaving) = self._shares(low, high), self._leaking(low, high)
        known = (self.deflated >= low) & (self.deflated <= high)
        reach = self._errors + self._floor
        surely = (self.deflated - reach >= low) & (self.deflated + reach <= high)
        maybe = (self.deflated + reach >= low) & (self.deflated - reach <= high)
        left = self.size - len(self.deflated)
        least = int(surely.sum()) + left * self._end(_whole(of_starts - leaving), upper=False)
        most = int(maybe.sum()) + left * self._end(_whole(of_starts + entering), upper=True)
        value = (int(known.sum()) + left * share) / self.size
        stderr = self._sampled * math.sqrt(2 * share * (1 - share) / (len(self.starts) * left + 2))
        return self._estimate(1.0, value, stderr, min(least / self.size, value), max(most / self.size, value))

    def _shares(self, low: float, high: float) -> tuple[float, float]:
        """Mass in an interval of what stands for the starts, and of their quadratures."""
        found = []
        for nodes, weights in (self._shown, self._rest[:2]):
            found.append(_whole(float(weights[(nodes >= low) & (nodes <= high)].sum())))
        return found[0], found[1]

    def _leaking(self, low: float, high: float) -> tuple[float, float]:
        """Mass of nodes outside that may be inside an interval, and of nodes inside that may be outside.

        No more than a share r^2 / (r^2 + t^2) of a node's mass is further than t to one side, where r is its residual
        (Cantelli), and none beyond the next node of the same start.
        """
        nodes, weights, (residuals, gaps) = self._rest
        inside, crossing = (nodes >= low) & (nodes <= high), torch.zeros_like(nodes)
        for end in (low, high):
            away = ((nodes - end).abs() - self._floor).clamp(min=0)
            share = torch.where(away > 0, residuals.square() / (residuals.square() + away.square()), 1.0)
            share[(away == 0) & (residuals + self._floor == 0)] = 0.0
            crossing += torch.where(away <= gaps, share, 0.0)
        crossing = weights * crossing.clamp(max=1)
        return float(crossing[~inside].sum()), float(crossing[inside].sum())

    def quantile(self, q: float) -> Estimate:
        """The least place up to which a share q of the eigenvalues lies.

        Raises:
            SettingError: if q is not in [0, 1].
        """
        if not 0 <= number(q) <= 1:
            raise SettingError(f"q must be between 0 and 1, got {q!r}")
        at = int(torch.searchsorted(self.weights.cumsum(0), q - 1e-12))
        value = float(self.nodes[min(at, len(self.nodes) - 1)])
        if not self.starts:  # the i-th eigenvalue moves by no more than the matrix does (Weyl)
            off = self._floor + float(self._errors.max())
            return self._estimate(1.0, value, 0.0, value - off, value + off)
        places = self._places
        first = bisect.bisect_left(places, True, key=lambda x: self.cdf(x)[2] >= q - 1e-12)
        last = bisect.bisect_left(places, True, key=lambda x: self.cdf(x)[1] >= q - 1e-12)
        low = places[max(first - 1, 0)]  # it may be reached between two of them
        high = places[min(last, len(places) - 1)]
        return self._estimate(1.0, value, math.nan, min(low, value) - self._floor, max(high, value) + self._floor)

    @functools.cached_property
    def _places(self) -> list[float]:
        """The nodes, and places ever further out as far as mass of the outermost ones may be."""
        residuals = self._rest[2][0]
        if not len(residuals) or float(residuals.max()) == 0:
            return self.nodes.tolist()
        outwards = float(residuals.max()) * 2.0 ** torch.arange(-20, 20, dtype=torch.float64)
        return torch.cat([self.nodes[0] - outwards.flip(0), self.nodes, self.nodes[-1] + outwards]).tolist()

    def _end(self, share: float, *, upper: bool) -> float:
        """Such a share of the eigenvalues that starts find no more (no less) with probability (1 - confidence) / 2."""
        if not self.starts or not 0 < share < 1:
            return min(max(share, 0.0), 1.0)
        half, alpha = len(self.starts) * (self.size - len(self.deflated)) / 2, (1 - self.confidence) / 2
        wanted = alpha if upper else 1 - alpha

        def excess(c: float) -> float:
            return float(betainc(half * c, half * (1 - c), share)) - wanted

        ends = (1e-300, 1 - 1e-16)
        if excess(ends[0]) <= 0:
            return 0.0
        return 1.0 if excess(ends[1]) >= 0 else float(brentq(excess, *ends, xtol=1e-15))

    # ------------------------------------------------------------------ what all of them use

    @property
    def _sampled(self) -> float:
        """Mass of what the starts stand for."""
        return (self.size - len(self.deflated)) / self.size

    @functools.cached_property
    def _rest(self) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """All starts together: nodes, weights with sum 1, their residuals and how far the next nodes are."""
        if not self.starts:
            none = torch.empty(0, dtype=torch.float64)
            return none, none, (none, none)
        nodes, weights, which = merged(self.starts)
        gaps = torch.cat([gaps for q, width in _families(self.starts) for gaps in [_gaps(q.nodes, width)] * width])
        residuals, zeros = torch.cat([q.residuals for q in self.starts]), torch.zeros_like(nodes)
        worst = zeros.scatter_reduce(0, which, residuals, "amax"), zeros.scatter_reduce(0, which, gaps, "amax")
        return nodes, weights, worst

    @functools.cached_property
    def _spread(self) -> tuple[Tensor, Tensor]:
        """What the starts say of moments: nodes, and weights with sum 1.

        Rules of less than two steps, as where nearly all nodes were taken out, do not have the variance of what they
        stand for. There each node is two, its residual to both sides.
        """
        if all(len(q.nodes) >= 2 * width for q, width in _families(self.starts)):
            return self._rest[:2]
        nodes, weights, (residuals, _) = self._rest
        nodes, order = torch.cat([nodes - residuals, nodes + residuals]).sort()
        return nodes, torch.cat([weights, weights])[order] / 2

    @functools.cached_property
    def _sampling(self) -> Sampling:
        return Sampling(*self._spread, self.size - len(self.deflated), len(self.starts))

    @functools.cached_property
    def _errors(self) -> Tensor:
        return self.errors if len(self.errors) == len(self.deflated) else torch.zeros_like(self.deflated)

    @functools.cached_property
    def _floor(self) -> float:
        """What rounding moves eigenvalues by."""
        values = torch.cat([self.deflated, *(q.nodes for q in self.starts)])
        return self.rounding * float(values.abs().max())

    def _estimate(self, factor: float, value: float, stderr: float, low: float, high: float) -> Estimate:
        method = "slq" if self.starts else "exact"
        return Estimate(
            factor * value, factor * stderr, factor * low, factor * high, self.confidence, self.matvecs, method,
            self.converged, self.kernel, self.note,
        )  # fmt: skip

    def __repr__(self) -> str:
        """One line: size, range, accuracy, cost."""
        low, high = self.bounds
        known = f", {len(self.deflated)} of them one by one" if len(self.deflated) else ""
        flag = "" if self.converged else ", NOT converged"
        note = f"; {self.note}" if self.note else ""
        return (
            f"SpectralDensity({self.size} eigenvalues{known}, {low:.4g} to {high:.4g}, within {self.wasserstein:.2g} "
            f"(Wasserstein-1, {self.confidence:.0%}), {len(self.starts)} starts, {self.matvecs} products{flag}{note})"
        )


def merged(starts: Sequence[Quadrature]) -> tuple[Tensor, Tensor, Tensor]:
    """The average of quadratures: nodes, weights, and for all their nodes, one after the other, which it became."""
    nodes, which = torch.cat([q.nodes for q in starts]).unique(return_inverse=True)
    weights = torch.zeros_like(nodes)
    return nodes, weights.index_add_(0, which, torch.cat([q.weights for q in starts]) / len(starts)), which


def _families(starts: Sequence[Quadrature]) -> Iterator[tuple[Quadrature, int]]:
    """Starts with the same nodes, which were found in one Krylov space: one of them, and how many."""
    first = 0
    for i in range(1, len(starts) + 1):
        if i == len(starts) or not torch.equal(starts[i].nodes, starts[first].nodes):
            yield starts[first], i - first
            first = i


def _gaps(nodes: Tensor, width: int) -> Tensor:
    """How far the next nodes of the same start are, the further of both sides; infinite at the ends."""
    gaps = torch.full_like(nodes, math.inf)
    if len(nodes) > 2 * width:
        apart = nodes[width:] - nodes[:-width]
        gaps[width:-width] = torch.maximum(apart[:-width], apart[width:])
    return gaps


def _whole(share: float) -> float:
    """A share in [0, 1], none or all where it is so but for rounding."""
    return 0.0 if share < 1e-12 else 1.0 if share > 1 - 1e-12 else share
