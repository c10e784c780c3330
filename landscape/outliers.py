r"""Which eigenvalues stand apart from the bulk, by several methods that may disagree.

There is no sharp line in the spectrum of a trained network, and each way of drawing one assumes something. Here
three are drawn side by side, and where they differ the result says so:

* **random matrix**: the bulk is in one piece with edges, as that of a random matrix is (the laws of Marchenko and
  Pastur and of Wigner among them; see `bulk_edge`). Outliers lie beyond an edge and beyond the reach of Tracy and
  Widom's law. Where the bulk shows no such edge, the method says that.
* **null**: outliers exceed the largest eigenvalue of a matrix without structure, as with shuffled labels.
* **gap**: the last outlier is followed by a gap that is exceptional beside those after it. Where the tail of the
  bulk falls like a power or faster, i times the i-th log-gap are independent with one exponential law (Rényi, Acta
  Math. Hung. 4, 191, 1953), so that their ratio has a known one; those of random matrices are more even.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import SettingError
from .html_table import Shown
from .intervals import number
from .results import Eigenpairs
from .separation import SideMethod, SideView, by_bulk, by_gap, by_null
from .spectral_measure import SpectralDensity

__all__ = ["OutlierSide", "Outliers", "SideMethod", "outliers"]


@dataclass(frozen=True, eq=False)
class OutlierSide(Shown):
    """The outliers above, or below, the bulk.

    Attributes:
        side: ``"above"`` or ``"below"``.
        values: (count,) float64 eigenvalues, outermost first.
        residuals: (count,) what each is known to within: some eigenvalue is no farther off.
        undecided: further Ritz values whose residual is too large to tell on which side of the edge they are.
        edge: where the bulk ends, by the method that decided; NaN where none could.
        low: lower end of the interval for it.
        high: upper end. Outliers lie outside of both.
        method: which method decided: the first of `methods` that could tell; empty where none could.
        methods: all of them.
    """

    side: str
    values: Tensor
    residuals: Tensor
    undecided: int
    edge: float
    low: float
    high: float
    method: str
    methods: tuple[SideMethod, ...]

    @property
    def count(self) -> int:
        """How many; 0 where none are separated."""
        return len(self.values)

    @property
    def agreed(self) -> bool:
        """Whether all methods that can tell count the same, and one can."""
        return len({m.count for m in self.methods if m.count is not None}) == 1

    @property
    def status(self) -> str:
        """In a word: what the methods that can tell say together.

        ``"separated"`` where all count the same, ``"not separated"`` where none counts any, and ``"disputed"`` where
        they differ: also where the one that decided counts none.
        """
        counts = {m.count for m in self.methods if m.count is not None}
        if len(counts) > 1:
            return "disputed"
        return "separated" if self.count else "not separated"

    def __repr__(self) -> str:
        """The count with its edge, and what each method says."""
        says = ", ".join(f"{m.method} {'cannot tell' if m.count is None else m.count}" for m in self.methods)
        edge = f" {self.edge:.4g} [{self.low:.4g}, {self.high:.4g}]" if math.isfinite(self.edge) else " the bulk"
        shown = ": " + ", ".join(f"{v:.5g}" for v in self.values[:5].tolist()) if self.count else ""
        more = ", ..." if self.count > 5 else ""
        undecided = f", {self.undecided} undecided" if self.undecided else ""
        return f"{self.count or 'none'} {self.side}{edge}{shown}{more}{undecided} ({self.status}: {says})"


@dataclass(frozen=True, eq=False)
class Outliers(Shown):
    """The eigenvalues that stand apart from the bulk, above and below it.

    Attributes:
        upper: those above.
        lower: those below.
        confidence: with which no eigenvalue of a bulk such as a method assumes is counted, on either side.
        size: n, of how many eigenvalues.
        matvecs: operator-vector products behind the density and the pairs.
        kernel: name of the engine that computed them.
        note: what is to be known of them; mostly empty.
    """

    upper: OutlierSide
    lower: OutlierSide
    confidence: float
    size: int
    matvecs: int
    kernel: str = ""
    note: str = ""

    @property
    def count(self) -> int:
        """How many on both sides."""
        return self.upper.count + self.lower.count

    @property
    def values(self) -> Tensor:
        """(count,) float64, descending."""
        return torch.cat([self.upper.values, self.lower.values.flip(0)])

    def __repr__(self) -> str:
        """Both sides in one line."""
        note = f"; {self.note}" if self.note else ""
        return f"Outliers({self.upper!r}; {self.lower!r}; of {self.size}, {self.matvecs} products{note})"


def outliers(
    density: SpectralDensity | None,
    pairs: Eigenpairs | Sequence[Eigenpairs] = (),
    *,
    null: float | Eigenpairs | Sequence[float | Eigenpairs] = (),
    confidence: float = 0.99,
) -> Outliers:
    r"""Which eigenvalues stand apart from the bulk of a spectrum.

    A Ritz value counts as an eigenvalue for no more than its residual lets it: it is an outlier where the whole
    interval of its residual lies beyond the edge. (The i-th Ritz value never exceeds the i-th eigenvalue, so that
    there are at least as many.)

    The count is that of the first method that can tell, in the order random matrix, null, gap; what each of them
    says stands in the result. A spike that is too weak to show (`Semicircle`, `MarchenkoPastur`: ``threshold``)
    cannot be told from the bulk by anyone, and counts as "not separated".

    Args:
        density: the spectral density, of some random starts with enough steps; without it only null and gap can
            tell. Two starts of 32 steps are the least to recommend, and more steps resolve weaker outliers.
        pairs: extremal eigenpairs, which resolve what the density alone does not; of one end, of both, or several.
        null: for the null method: eigenpairs of matrices without structure (see `shuffled_labels`), or their
            largest eigenvalues; from both ends (``which="BE"``) for both sides.
        confidence: see `Outliers`. With less, weaker outliers are found, and more often one where there are none.

    Raises:
        SettingError: if neither density nor pairs are given, they are of different sizes, or an argument means
            nothing.

    Example:
        >>> import torch
        >>> from losscope.landscape import outliers, spectral_density
        >>> noise = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
        >>> A = (noise + noise.T) / 2000**0.5 + 3 * torch.ones(1000, 1000) / 1000
        >>> outliers(spectral_density(A, vectors=4, seed=0)).upper.values  # 3 + 1 / 3, but for fluctuations
        tensor([3.3...], dtype=torch.float64)
    """
    given, nulls = _several(pairs), _several(null)
    size = _checked(density, given, nulls, confidence)
    risk = (1 - confidence) / 2
    views = [SideView(density, given, sign, size) for sign in (1, -1)]
    laws = by_bulk(views, size, risk)
    upper, lower = (
        _decided(view, [_mirrored(m, view.sign) for m in (law, *by_null(view, nulls), by_gap(view, risk))])
        for view, law in zip(views, laws, strict=True)
    )
    matvecs = (density.matvecs if density is not None else 0) + sum(p.matvecs for p in given)
    source = density if density is not None else given[0]
    return Outliers(upper, lower, confidence, size, matvecs, source.kernel, source.note)


def _several(given: Any) -> tuple[Any, ...]:
    """What was given one by one, also where it is one."""
    one = isinstance(given, Eigenpairs | str) or getattr(given, "ndim", 1) == 0 or not isinstance(given, Iterable)
    return (given,) if one else tuple(given)


def _checked(
    density: SpectralDensity | None, pairs: Sequence[Eigenpairs], nulls: Sequence[float | Eigenpairs], confidence: float
) -> int:
    """The number of eigenvalues, of input that makes sense."""
    if density is not None and not isinstance(density, SpectralDensity):
        raise SettingError(f"density must be a SpectralDensity (of spectral_density) or None, got {type(density)}")
    for p in pairs:
        if not isinstance(p, Eigenpairs):
            raise SettingError(f"pairs must be Eigenpairs (of top_eigenpairs) or several, got {type(p).__name__}")
    sizes = {*([density.size] if density is not None else []), *(p.vectors.shape[0] for p in pairs)}
    if len(sizes) != 1:
        raise SettingError(
            "outliers needs a density, eigenpairs, or both of the same operator; got "
            + (f"ones of sizes {sorted(sizes)}" if sizes else "neither")
        )
    for x in nulls:
        if not isinstance(x, Eigenpairs) and not math.isfinite(number(x)):
            raise SettingError(f"null must be eigenpairs or finite numbers, got {x!r}")
    if not 0 < number(confidence) < 1:
        raise SettingError(f"confidence must be between 0 and 1, got {confidence!r}")
    return int(sizes.pop())


# --------------------------------------------------------------------------- the result


def _mirrored(m: SideMethod, sign: int) -> SideMethod:
    if sign > 0:
        return m
    return dataclasses.replace(m, edge=-m.edge, low=-m.high, high=-m.low)


def _decided(view: SideView, methods: Sequence[SideMethod]) -> OutlierSide:
    first = next((m for m in methods if m.count is not None), None)
    count = 0 if first is None or first.count is None else first.count
    edge, low, high = (first.edge, first.low, first.high) if first is not None else (math.nan,) * 3
    outer = high if view.sign > 0 else -low
    straddle = (view.values + view.residuals > outer) & (view.values > outer) if math.isfinite(outer) else None
    undecided = 0 if straddle is None else max(0, int(straddle.sum()) - count)
    return OutlierSide(
        "above" if view.sign > 0 else "below", view.sign * view.values[:count], view.residuals[:count], undecided,
        edge, low, high, "" if first is None else first.method, tuple(methods),
    )  # fmt: skip
