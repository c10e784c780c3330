"""Spectral densities as curves: nodes and weights smoothed for display, and only there.

A quadrature's nodes are points; what is seen is each of them as a Gaussian of the node's weight. Its standard
deviation is what the quadrature leaves open about the node's place, the smaller of its residual (some eigenvalue lies
within it) and half the distance to its neighbours (the mass may lie anywhere between them, by the separation theorem
of Chebyshev, Markov and Stieltjes), and never less than a 300th of the axis, which the eye can tell apart. All of these
scale with the spectrum: c times a matrix has the same curve over an axis that is stretched by c. Each bin holds the
integral of the Gaussians over it, so that no peak falls between grid points and none loses mass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import gammaincinv, ndtr
from torch import Tensor

from losscope.landscape import SpectralDensity
from losscope.landscape.quadrature import Quadrature

__all__ = ["Axis", "Smoothed", "reach", "smooth"]

NARROWEST = 1 / 300
"""Standard deviation of a peak, as a share of the axis."""
BINS = 900
"""Over the axis: three to the narrowest standard deviation."""
TAILS = 3.5
"""Standard deviations from the outermost nodes to the ends of the axis."""
MARGIN = 0.015
"""Of the axis, beyond that."""
DEEPEST = 1e-6
"""Least share of the spectral radius down to which a logarithmic axis reaches."""
WIDE = 30.0
"""A spectrum this many times wider than what holds nine tenths of it is shown on a logarithmic axis."""
_CHUNK = 1 << 22

Peaks = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Axis:
    """Where an eigenvalue lies on display: at itself, or at ``asinh(x / linear)``.

    The latter is logarithmic in the magnitude on both sides of zero, and linear within ``linear`` of it.

    Attributes:
        linear: in units of the eigenvalues; infinite for an axis that is linear throughout.
    """

    linear: float = math.inf

    @property
    def logarithmic(self) -> bool:
        """Whether magnitudes are on a logarithmic scale."""
        return math.isfinite(self.linear)

    @property
    def unit(self) -> float:
        """Length on display in which a density is counted: one, or one decade."""
        return math.log(10) if self.logarithmic else 1.0

    def place(self, values: np.ndarray) -> np.ndarray:
        """Eigenvalues to places on display."""
        return np.arcsinh(values / self.linear) if self.logarithmic else np.asarray(values, dtype=float)

    def value(self, places: np.ndarray) -> np.ndarray:
        """Places on display to eigenvalues."""
        return self.linear * np.sinh(places) if self.logarithmic else np.asarray(places, dtype=float)

    def stretch(self, values: np.ndarray) -> np.ndarray:
        """Length in eigenvalues of a short length on display, where these eigenvalues are."""
        return np.hypot(values, self.linear) if self.logarithmic else np.ones(np.shape(values))

    @classmethod
    def of(cls, *densities: SpectralDensity, logarithmic: bool | None = None) -> Axis:
        """The axis on which these spectra can be read.

        Args:
            *densities: at least one.
            logarithmic: whether magnitudes shall be; None decides by how far the outermost eigenvalues are from
                the rest.
        """
        known = [_host(density.nodes, density.weights) for density in densities]
        radius = max(float(np.abs(nodes).max()) for nodes, _ in known)
        if logarithmic is None:
            logarithmic = any(np.ptp(nodes) > WIDE * _core(nodes, weights) for nodes, weights in known)
        if not logarithmic or radius == 0:
            return cls()
        return cls(max(float(np.quantile([_typical(density) for density in densities], 0.9)), DEEPEST * radius))


@dataclass(frozen=True, eq=False)
class Smoothed:
    r"""A spectral density over bins of an axis; shares are those of all eigenvalues.

    Attributes:
        axis: how eigenvalues are placed.
        edges: (b + 1,) of the bins, on display.
        rest: (b,) share in each bin of what was not deflated, :math:`\sum_k w_k K_k` with K the part of a peak that
            falls into the bin.
        squares: (b,) :math:`\sum_k w_k K_k^2`.
        atoms: (b,) share of the deflated eigenvalues.
        blur: (b,) standard deviation on display of the peaks that are seen there, as a share of the axis.
        starts: S, how many they are the mean of.
        size: n, of how many eigenvalues.
        confidence: of the band.
    """

    axis: Axis
    edges: np.ndarray
    rest: np.ndarray
    squares: np.ndarray
    atoms: np.ndarray
    blur: np.ndarray
    starts: int
    size: int
    confidence: float

    @property
    def span(self) -> tuple[float, float]:
        """Ends of the axis, on display."""
        return float(self.edges[0]), float(self.edges[-1])

    @property
    def values(self) -> np.ndarray:
        """Eigenvalues at the middle of the bins, (b,)."""
        return self.axis.value((self.edges[1:] + self.edges[:-1]) / 2)

    @property
    def shares(self) -> np.ndarray:
        """Share of the eigenvalues in each bin, (b,), of sum 1."""
        return self.atoms + self.rest

    @property
    def density(self) -> np.ndarray:
        """The same per unit of the eigenvalues, or per decade on a logarithmic axis, (b,)."""
        return self.shares / self._length

    @property
    def band(self) -> tuple[np.ndarray, np.ndarray] | None:
        r"""Ends of the interval at each bin by itself, as densities, (b,) each; None where nothing is random.

        A random start gives an eigenvalue the weight :math:`\chi^2_1 / n`. The share that S starts find is near
        :math:`\sum_i K_i \chi^2_S / (S n)`, of mean :math:`\mu = \int K d\phi` and variance
        :math:`2 \int K^2 d\phi / (S n)`, here taken for a Gamma law of the same shape (Satterthwaite, Biometrics
        Bulletin 2, 110, 1946), whose scale is inverted exactly. What the quadrature does not resolve is not in it.
        """
        if not self.starts:
            return None
        seen = self.squares > 1e-300
        many = self.size * self.rest[seen] ** 2 / self.squares[seen]  # eigenvalues that a bin stands for
        shape = self.starts / 2 * np.maximum(many, 1.0)
        low, high = self.rest.copy(), self.rest.copy()
        low[seen] *= shape / gammaincinv(shape, (1 + self.confidence) / 2)
        high[seen] *= shape / gammaincinv(shape, (1 - self.confidence) / 2)
        return (self.atoms + low) / self._length, (self.atoms + high) / self._length

    @property
    def _length(self) -> np.ndarray:
        return np.diff(self.edges) / self.axis.unit


def smooth(
    density: SpectralDensity,
    axis: Axis | None = None,
    *,
    span: tuple[float, float] | None = None,
    bins: int = BINS,
    confidence: float | None = None,
) -> Smoothed:
    """Smooth a spectral density for display.

    Args:
        density: the nodes and weights.
        axis: how eigenvalues are placed; None takes what suits the spectrum.
        span: ends of the axis, on display; None takes those that the density reaches. The outermost bins hold what
            lies beyond.
        bins: how many, of equal length on display.
        confidence: of the band; None takes the density's.

    Example:
        >>> import torch
        >>> from losscope.landscape import spectral_density
        >>> from losscope.viz.smoothing import smooth
        >>> curve = smooth(spectral_density(torch.diag(torch.arange(100.0)), seed=0))
        >>> round(float(curve.shares.sum()), 9)
        1.0
    """
    axis = Axis.of(density) if axis is None else axis
    first, last = reach(density, axis=axis) if span is None else span
    edges = np.linspace(first, last, bins + 1)
    inner = axis.value(edges[1:-1])
    narrowest = NARROWEST * (last - first)
    *starts, known = [_binned(*peaks, inner, axis) for peaks in _peaks(density, axis, narrowest)]
    rest, squares, widths = np.sum(starts, axis=0) if starts else np.zeros((3, bins))
    seen = rest + known[0]
    blur = np.divide(widths + known[2], seen, out=np.full(bins, narrowest), where=seen > 0) / (last - first)
    confidence = density.confidence if confidence is None else confidence
    return Smoothed(axis, edges, rest, squares, known[0], blur, len(density.starts), density.size, confidence)


def reach(*densities: SpectralDensity, axis: Axis) -> tuple[float, float]:
    """Ends of the display on which these densities fit, tails of their peaks included."""
    ends = np.array([_apart(density) for density in densities])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    narrowest = NARROWEST * float(np.ptp(axis.place(np.array([low, high]))))
    for density in densities:
        for nodes, weights, widths in _peaks(density, axis, narrowest):
            seen = weights * density.size > 1e-3  # nodes of less than a thousandth of an eigenvalue do not count
            low = min(low, *(nodes - TAILS * widths)[seen], math.inf)
            high = max(high, *(nodes + TAILS * widths)[seen], -math.inf)
    first, last = axis.place(np.array([low, high]))
    margin = MARGIN * (last - first)
    return float(first - margin), float(last + margin)


def _peaks(density: SpectralDensity, axis: Axis, narrowest: float) -> Iterator[Peaks]:
    """Nodes, weights and standard deviations of each block of starts, and of what was deflated.

    Args:
        density: the density.
        axis: on which it is shown.
        narrowest: least standard deviation on display.
    """
    each = (1 - len(density.deflated) / density.size) / max(len(density.starts), 1)
    for block in _blocks(density.starts):
        nodes, residuals = _host(block[0].nodes, block[0].residuals)
        weights = np.sum(_host(*(start.weights for start in block)), axis=0)
        widths = np.minimum(residuals, _spacing(nodes, len(block)) / 2)
        yield nodes, each * weights, np.maximum(widths, narrowest * axis.stretch(nodes))
    (values,) = _host(density.deflated)
    yield values, np.full(len(values), 1 / density.size), narrowest * axis.stretch(values)


def _blocks(starts: Sequence[Quadrature]) -> list[list[Quadrature]]:
    """Starts with the same nodes, which were found in one Krylov space, together."""
    blocks: list[list[Quadrature]] = []
    for start in starts:
        if blocks and torch.equal(blocks[-1][0].nodes, start.nodes):
            blocks[-1].append(start)
        else:
            blocks.append([start])
    return blocks


def _apart(density: SpectralDensity) -> tuple[float, float]:
    """Ends of an axis that has a length, also where all eigenvalues are one."""
    low, high = density.bounds
    radius = max(abs(low), abs(high))
    if high - low > max(1e-9, 10 * density.rounding) * radius:
        return low, high
    half = 0.1 * radius if radius > 0 else 1.0
    return low - half, high + half


def _spacing(nodes: np.ndarray, together: int) -> np.ndarray:
    """Half the distance between a node's neighbours; at the ends that to the one there is.

    Starts of one block share their nodes: the neighbours that one of them would have are so many nodes away. Where
    there are none, all of the spectrum.
    """
    everywhere = np.full(len(nodes), np.ptp(nodes))
    if len(nodes) < 2 * together:
        return everywhere
    gaps = nodes[together:] - nodes[:-together]
    below, above = everywhere.copy(), everywhere.copy()
    below[together:], above[:-together] = gaps, gaps
    below[:together], above[-together:] = above[:together], below[-together:]
    return (below + above) / 2


def _binned(nodes: np.ndarray, weights: np.ndarray, widths: np.ndarray, inner: np.ndarray, axis: Axis) -> np.ndarray:
    """Sums over the peaks of their parts in each bin, of the squares of these, and of the parts times widths, (3, b).

    The bins lie between the inner edges, and outside of the outermost.
    """
    sums = np.zeros((3, len(inner) + 1))
    edges = np.concatenate(([-np.inf], inner, [np.inf]))
    shown = weights * widths / axis.stretch(nodes)
    for some in np.array_split(np.arange(len(nodes)), len(nodes) * len(edges) // _CHUNK + 1):
        parts = np.diff(ndtr((edges[None, :] - nodes[some, None]) / widths[some, None]), axis=1)
        sums += weights[some] @ parts, weights[some] @ parts**2, shown[some] @ parts
    return sums


def _core(nodes: np.ndarray, weights: np.ndarray) -> float:
    """Width of what holds nine tenths of the mass."""
    return _quantile(nodes, weights, 0.95) - _quantile(nodes, weights, 0.05)


def _typical(density: SpectralDensity) -> float:
    """The median magnitude of the eigenvalues, as far as the quadrature resolves it."""
    nodes, weights, widths = (np.concatenate(each) for each in zip(*_peaks(density, Axis(), 0.0), strict=True))
    return _quantile(np.hypot(nodes, widths), weights, 0.5)


def _quantile(values: np.ndarray, weights: np.ndarray, q: float) -> float:
    order = np.argsort(values, kind="stable")
    at = int(np.searchsorted(np.cumsum(weights[order]), q * weights.sum()))
    return float(values[order][min(at, len(order) - 1)])


def _host(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().cpu().double().numpy() for tensor in tensors]
