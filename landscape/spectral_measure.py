r"""The spectral density of a symmetric operator, as nodes and weights, and what can be said of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import SettingError
from .intervals import Moments
from .quadrature import Quadrature
from .results import Estimate

__all__ = ["SpectralDensity"]


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    r"""The share of eigenvalues at each place, :math:`\phi = \frac1n \sum_i \delta_{\lambda_i}`, estimated.

    It is a measure: some eigenvalues that are known one by one, each of mass 1/n, and for all others the average
    of the Gauss quadratures of random starts. Nothing is smoothed.

    Attributes:
        starts: one quadrature per random start, of the part of the spectrum that was not taken out; none where all
            eigenvalues are known.
        deflated: (d,) float64 eigenvalues that were taken out, ascending, on the host.
        size: n.
        matvecs: operator-vector products spent, those for the eigenvalues taken out included.
        wasserstein: one-sided bound of the Wasserstein-1 distance to the spectrum, at ``confidence``, in the unit
            of the eigenvalues.
        confidence: nominal coverage of the bound and of all intervals.
        converged: True if and only if the requested accuracy was reached.
        kernel: name of the engine that computed the products.
        note: what is to be known of them; mostly empty.
        errors: (d,) how far each of ``deflated`` may be off.
        rounding: relative error of the products.

    Example:
        >>> import torch
        >>> from losscope.landscape import SpectralDensity
        >>> density = SpectralDensity.of_eigenvalues(torch.tensor([0.0, 0.0, 1.0, 5.0]))
        >>> density.moment(1).value, density.cdf(0.5)[0], density.mass(-1, 0.5).value
        (1.5, 0.5, 0.5)
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
            raise SettingError(f"values must be (n,) finite real eigenvalues, got {values.dtype} {tuple(values.shape)}")
        values = values.to("cpu", torch.float64).sort().values
        return cls((), values, len(values), 0, 0.0, confidence, True, "", "", torch.zeros_like(values))

    # ------------------------------------------------------------------ the measure

    @property
    def sampled(self) -> float:
        """Mass of what the starts stand for, (n - d) / n."""
        return (self.size - len(self.deflated)) / self.size

    @functools.cached_property
    def _measure(self) -> tuple[Tensor, Tensor]:
        nodes = torch.cat([*(q.nodes for q in self.starts), self.deflated])
        each = self.sampled / max(len(self.starts), 1)
        atoms = torch.full_like(self.deflated, 1 / self.size)
        nodes, order = nodes.sort(stable=True)
        return nodes, torch.cat([*(each * q.weights for q in self.starts), atoms])[order]

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
        """Least and greatest node, which the spectrum reaches."""
        return float(self.nodes[0]), float(self.nodes[-1])

    # ------------------------------------------------------------------ functionals

    def moment(self, p: int) -> Estimate:
        """The mean of the p-th powers of the eigenvalues, tr(A^p) / n.

        Raises:
            SettingError: if p is not an integer of 0 or more.
        """
        if isinstance(p, bool) or not isinstance(p, int) or p < 0:
            raise SettingError(f"p must be an integer of 0 or more, got {p!r}")
        return self._mean(lambda x: x**p)

    @property
    def trace(self) -> Estimate:
        """The sum of the eigenvalues."""
        return _scaled(self._mean(lambda x: x), self.size)

    def mass(self, low: float = -math.inf, high: float = math.inf) -> Estimate:
        """The share of eigenvalues in an interval, ends included: ``mass(high=0.0)`` is that of those not above zero.

        Raises:
            SettingError: if ``low > high``, or one is not a number.
        """
        if not low <= high:
            raise SettingError(f"low must be at most high, got {low!r} and {high!r}")
        return self._mean(lambda x: ((x >= low) & (x <= high)).to(torch.float64))

    def cdf(self, x: float) -> tuple[float, float, float]:
        """The share of eigenvalues up to x, and the ends of its interval."""
        found = self.mass(high=x)
        return found.value, found.low, found.high

    def quantile(self, q: float) -> Estimate:
        """The least node up to which a share q of the eigenvalues lies.

        Raises:
            SettingError: if q is not in [0, 1].
        """
        if not 0 <= q <= 1:
            raise SettingError(f"q must be between 0 and 1, got {q!r}")
        at = min(int(torch.searchsorted(self.weights.cumsum(0), q - 1e-12)), len(self.nodes) - 1)
        value = float(self.nodes[at])
        return self._estimate(value, 0.0, value, value)

    def _mean(self, f: Callable[[Tensor], Tensor]) -> Estimate:
        exact = float(f(self.deflated).sum()) / self.size
        if not self.starts:
            return self._estimate(exact, 0.0, exact, exact)
        samples = Moments()
        samples.add(torch.tensor([[exact + self.sampled * q.mean(f) for q in self.starts]], dtype=torch.float64))
        value = float(samples.mean)
        if samples.count == 1:
            return self._estimate(value, math.inf, -math.inf, math.inf)
        low, high = (float(end) for end in samples.interval(self.confidence, skewed=True))
        return self._estimate(value, float(samples.spread) / math.sqrt(samples.count), low, high)

    def _estimate(self, value: float, stderr: float, low: float, high: float) -> Estimate:
        method = "slq" if self.starts else "exact"
        return Estimate(
            value, stderr, low, high, self.confidence, self.matvecs, method, self.converged, self.kernel, self.note
        )

    def __repr__(self) -> str:
        """One line: size, range, accuracy, cost."""
        low, high = self.bounds
        known = f", {len(self.deflated)} of them one by one" if len(self.deflated) and self.starts else ""
        flag = "" if self.converged else ", NOT converged"
        note = f"; {self.note}" if self.note else ""
        return (
            f"SpectralDensity({self.size} eigenvalues{known}, {low:.4g} to {high:.4g}, within {self.wasserstein:.2g} "
            f"(Wasserstein) at {self.confidence:.0%}, {len(self.starts)} starts, {self.matvecs} products{flag}{note})"
        )


def _scaled(found: Estimate, factor: float) -> Estimate:
    ends = (factor * found.low, factor * found.high)
    return Estimate(
        factor * found.value, factor * found.stderr, *ends, found.confidence, found.matvecs, found.method,
        found.converged, found.kernel, found.note,
    )  # fmt: skip
