"""How eigenvalues are told from the bulk on one side of a spectrum, by each of three methods; see `outliers`."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.special import chdtri
from torch import Tensor

from .bulk_edge import Bulk, BulkEdge, bulk_of
from .html_table import Shown
from .quadrature import Quadrature
from .results import Eigenpairs
from .spectral_measure import SpectralDensity

__all__ = ["SideMethod", "SideView", "by_bulk", "by_gap", "by_null"]

_LAW = "random matrix"
_SHARE = 0.1  # of all eigenvalues: what there is more of is no outlier
_RANKS = 64  # extreme eigenvalues of a side that are looked at
_APART = 4.0  # units of Tracy and Widom's law from an outlier to the next eigenvalue
_OWN = 1.0  # unit of that law, by which the edge of a large bulk moves inwards without its extreme eigenvalue
_FINITE = 4.0  # times n^(-1/3), relative to infinitely many: by how much farther with n eigenvalues
_PATIENCE = 12  # how often eigenvalues are taken out of a bulk that none stands out of
_LEAST = 10  # eigenvalues that a bulk and outliers take
_AFTER = range(3, 10)  # how many gaps a gap is compared with


@dataclass(frozen=True)
class SideMethod(Shown):
    """What one method says of one side of the spectrum.

    Attributes:
        method: ``"random matrix"``, ``"null"`` or ``"gap"``.
        count: how many outliers; None where it cannot tell.
        edge: where the bulk ends; NaN where it cannot tell.
        low: lower end of the interval for it.
        high: upper end.
        reason: what it saw, in words.
    """

    method: str
    count: int | None
    edge: float
    low: float
    high: float
    reason: str


def _silent(
    method: str, reason: str, edge: float = math.nan, low: float = math.nan, high: float = math.nan
) -> SideMethod:
    return SideMethod(method, None, edge, low, high, reason)


# --------------------------------------------------------------------------- what is known of a side


class SideView:
    """One side of the spectrum, mirrored if it is the lower one, so that outliers are large.

    Attributes:
        values: (r,) the extreme Ritz values, descending; the i-th is no more than the i-th largest eigenvalue.
        residuals: (r,) theirs.
        rounding: what places are known to at best.
        measures: what random vectors saw of the whole spectrum.
        steps: Lanczos steps behind those.
        median: of these; where there are none, as far within the least Ritz value as that is from the largest.
    """

    def __init__(self, density: SpectralDensity | None, pairs: Sequence[Eigenpairs], sign: int, size: int) -> None:
        self.sign, self.size = sign, size
        self.steps = (density.steps if density is not None else 0) or size
        self.measures = [] if density is None else [_mirror(q, sign) for q in _measures(density)]
        sources = [_one_side(p, sign) for p in pairs]
        # Starts that kept three vectors only see an eigenvalue several times.
        once = density is not None and "copies" in density.note
        sources += [_distinct(q) if once else (q.nodes, q.residuals) for q in self.measures]
        self._sources = sources
        self.values, self.residuals = _extremes(sources)
        known = 0.0 if density is None else density.rounding
        self.rounding = max(known, 1e-8) * max((float(v.abs().max()) for v, _ in sources if len(v)), default=0.0)
        self.median = self._median()

    def _median(self) -> float:
        if not self.measures:
            return 2 * float(self.values[-1]) - float(self.values[0]) if len(self.values) else math.nan
        nodes, order = torch.cat([q.nodes for q in self.measures]).sort()
        mass = torch.cat([q.weights for q in self.measures])[order].cumsum(0)
        return float(nodes[int(torch.searchsorted(mass, 0.5 * float(mass[-1])).clamp(max=len(nodes) - 1))])

    def beside(self, place: float, share: float) -> SideView:
        """What is known without a place that has such a share of all eigenvalues."""
        rest = copy.copy(self)
        rest.size = max(1, round((1 - share) * self.size))
        rest.measures = [_away(q, place, self.rounding) for q in self.measures]
        apart = [(v - place).abs() > r + self.rounding for v, r in self._sources]
        rest._sources = [(v[some], r[some]) for (v, r), some in zip(self._sources, apart, strict=True)]
        rest.values, rest.residuals = _extremes(rest._sources)
        return rest

    def cut(self, count: int) -> float:
        """A place between that many eigenvalues and the rest."""
        return math.inf if count == 0 else float(self.values[count - 1 : count + 1].mean())

    def excess(self, edge: BulkEdge, rank: int, risk: float) -> float:
        """How far the eigenvalue of a rank lies beyond the reach of the edge that is without it, in units of that."""
        reach = edge.reach(risk, whole=False)
        own = _OWN * (1 + _FINITE * self.size ** (-1 / 3)) * edge.unit
        beyond = float(self.values[rank] - self.residuals[rank]) - self.sign * edge.value - own
        return beyond / reach - 1 if reach > 0 else math.copysign(math.inf, beyond - reach)

    def too_heavy(self, edge: float, count: int) -> bool:
        """Whether what lies beyond an edge weighs more in random vectors than so many eigenvalues ever do."""
        starts = len(self.measures)
        mass = self.size * sum(float(q.weights[q.nodes > edge].sum()) for q in self.measures) / starts
        return mass > float(chdtri((count + 1) * starts, 1e-4)) / starts

    def beyond(self, edge: float) -> int:
        """How many eigenvalues lie beyond an edge for sure, as far as residuals go."""
        above = self.values - self.residuals > edge
        return int(above.to(torch.int64).cumprod(0).sum())


def _extremes(sources: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The largest values of all sources, and their residuals."""
    ranks = min(_RANKS, max((len(v) for v, _ in sources), default=0))
    table = torch.full((2, len(sources), ranks), -math.inf, dtype=torch.float64)
    for row, (values, residuals) in enumerate(sources):
        values, order = values.sort(descending=True)
        table[0, row, : len(values)] = values[:ranks]
        table[1, row, : len(values)] = residuals[order][:ranks]
    best = table[0].argmax(dim=0, keepdim=True)  # by Cauchy the i-th Ritz value is a lower bound in each source
    return table[0].gather(0, best)[0], table[1].gather(0, best)[0]


def _measures(density: SpectralDensity) -> list[Quadrature]:
    """What each start saw, with the eigenvalues that were taken out of it."""
    known = density.errors if len(density.errors) else torch.zeros_like(density.deflated)
    atoms = torch.full_like(density.deflated, 1 / density.size)
    if not density.starts:
        return [Quadrature(density.deflated, atoms, known)]
    share, made = 1 - len(density.deflated) / density.size, []
    for q in density.starts:
        rounding = density.rounding * float(q.nodes.abs().max())
        residuals = torch.cat([q.residuals + rounding, known])
        made.append(
            Quadrature(torch.cat([q.nodes, density.deflated]), torch.cat([share * q.weights, atoms]), residuals)
        )
    return made


def _distinct(q: Quadrature) -> tuple[Tensor, Tensor]:
    """Nodes and residuals, descending; of those that may be one eigenvalue, as far as residuals go, only the outer."""
    nodes, order = q.nodes.sort(descending=True)
    residuals = q.residuals[order]
    kept, least = [], math.inf
    for i, (node, residual) in enumerate(zip(nodes.tolist(), residuals.tolist(), strict=True)):
        if node + residual < least:
            kept.append(i)
            least = node - residual
    return nodes[kept], residuals[kept]


def _away(q: Quadrature, place: float, rounding: float) -> Quadrature:
    some = (q.nodes - place).abs() > q.residuals + rounding
    return Quadrature(q.nodes[some], q.weights[some] / q.weights[some].sum(), q.residuals[some])


def _mirror(q: Quadrature, sign: int) -> Quadrature:
    return Quadrature(sign * q.nodes, q.weights, q.residuals)


def _one_side(pairs: Eigenpairs, sign: int) -> tuple[Tensor, Tensor]:
    """Ritz values of the pairs that are the extreme ones of a side, and residuals."""
    values, residuals, count = sign * pairs.values, pairs.residuals, len(pairs.values)
    some = {
        "LA": slice(count if sign > 0 else 0), "SA": slice(count if sign < 0 else 0),
        "BE": slice((count + 1) // 2) if sign > 0 else slice((count + 1) // 2, None),
    }.get(pairs.which, values > 0)  # fmt: skip
    return values[some], residuals[some]


# --------------------------------------------------------------------------- the methods


def by_bulk(views: Sequence[SideView], size: int, risk: float) -> list[SideMethod]:
    """By the edges of a bulk in one piece: eigenvalues are taken out, outermost first, until the rest is one.

    An eigenvalue of high multiplicity, such as the zeros of a singular matrix, is set aside first. It is the bulk
    itself where nearly all eigenvalues are there, and the others are like no random matrix.
    """
    if not views[0].measures:
        return [_silent(_LAW, "it needs a spectral density")] * 2
    place, share = _heaviest(views[0].measures, views[0].rounding)
    if share < _SHARE:
        return _by_law(views, risk)[0]
    says, rigid = _by_law([view.beside(view.sign * place, share) for view in views], risk)
    if share >= 1 - _SHARE and views[0].steps >= size and not rigid:
        return [_around(view, view.sign * place) for view in views]
    beside = f"; beside it, one eigenvalue has multiplicity {share * size:.3g}"
    return [dataclasses.replace(m, reason=m.reason + beside) for m in says]


def _by_law(views: Sequence[SideView], risk: float) -> tuple[list[SideMethod], bool]:
    """What the bulk says of both sides, and whether it is that of a random matrix.

    Whether an eigenvalue stands out is asked of the bulk without it, which it bends: half of the way towards itself
    where it is just beyond the edge. Others that are still in the bulk bend it too, and several at one place so that
    none of them stands out; but then the coefficients are not constant, and the search goes on until they are. Of
    all places where it could have ended, the one counts that leaves the most constant bulk; and one where more stand
    out only if these are not apart, and its own gap is exceptional in itself.
    """

    @functools.cache
    def bulk_without(above: int, below: int) -> Bulk | None:
        return bulk_of(_without(views, (above, below)), views[0].steps, views[0].size)

    found: list[tuple[int, bool, float, int, list[SideMethod], bool]] = []
    counts, sure, in_vain, most = (0, 0), (0, 0), 0, min(int(_SHARE * views[0].size), _RANKS - 1)
    while max(counts) <= most and in_vain <= _PATIENCE and (bulk := bulk_without(*counts)) is not None:
        unsettled = [edge.unsettled for edge in (bulk.upper, bulk.lower)]
        excess = [
            _excess(view, counts[side], bulk_without(*_one_more(counts, side)), risk) for side, view in enumerate(views)
        ]
        stands_out = max(excess) > 0
        if in_vain == 0:  # what was taken out last stood out
            law = dataclasses.replace(bulk, rigid=bulk.rigid and not stands_out)
            says = [_by_edge(view, law, k, risk) for view, k in zip(views, counts, strict=True)]
            silent = sum(m.count is None for m in says)
            if not (stands_out and silent):
                found.append((silent, stands_out, max(unsettled), len(found), says, bulk.rigid))
        if stands_out:
            side = excess.index(max(excess))
            sure = (counts[0] + 1, sure[1]) if side == 0 else (sure[0], counts[1] + 1)
            counts, in_vain = sure, 0
            continue
        if max(unsettled) == 0:
            break
        counts, in_vain = _one_more(counts, unsettled.index(max(unsettled))), in_vain + 1
    if not found:
        more = f"no bulk in one piece: {max(counts)} eigenvalues lie beyond its edge"
        return [_silent(_LAW, more if max(counts) else "it needs more Lanczos steps")] * 2, False
    return min(found)[4:]


def _one_more(counts: tuple[int, int], side: int) -> tuple[int, int]:
    return (counts[0] + 1, counts[1]) if side == 0 else (counts[0], counts[1] + 1)


def _excess(view: SideView, rank: int, bulk: Bulk | None, risk: float) -> float:
    """How far the eigenvalue of a rank stands out of the bulk that is without it."""
    if bulk is None or rank >= len(view.values):
        return -math.inf
    return view.excess(bulk.upper if view.sign > 0 else bulk.lower, rank, risk)


def _without(views: Sequence[SideView], counts: Sequence[int]) -> list[Quadrature]:
    """What random vectors saw, without that many eigenvalues above and below."""
    low, high = -views[1].cut(counts[1]), views[0].cut(counts[0])
    kept = []
    for q in views[0].measures:
        inside = (q.nodes > low) & (q.nodes < high)
        kept.append(Quadrature(q.nodes[inside], q.weights[inside], q.residuals[inside]))
    return kept


def _by_edge(view: SideView, bulk: Bulk, k: int, risk: float) -> SideMethod:
    """What the bulk says that is left when k eigenvalues of this side are taken out."""
    edge = bulk.upper if view.sign > 0 else bulk.lower
    value, reach = view.sign * edge.value, edge.reach(risk)
    low, high = value - reach, value + reach
    count: int | None = view.beyond(high)
    reason = f"the bulk is {bulk.law}"
    if not edge.settled:
        count, reason = None, f"no edge: the bulk's coefficients move by {edge.unsettled / edge.width:.0%} of its width"
    elif view.too_heavy(high, view.beyond(high)):
        count, reason = None, f"far more than {count} eigenvalues lie beyond the edge of what looks like the bulk"
    elif count != k:
        count, reason = None, f"{k} eigenvalues do not go with the bulk, and {count} lie beyond the reach of its edge"
    elif k and not _stands_apart(view, bulk, edge, k, risk):
        count, reason = None, f"no gap after the {k} eigenvalues that do not go with the bulk"
    return SideMethod(_LAW, count, value, low, high, reason)


def _stands_apart(view: SideView, bulk: Bulk, edge: BulkEdge, k: int, risk: float) -> bool:
    """Whether a gap follows the k-th eigenvalue.

    Where the bulk is like no law that has a rigid edge, the gap must be exceptional in itself.
    """
    if k >= len(view.values):
        return True
    gap = float(view.values[k - 1] - view.residuals[k - 1] - view.values[k] - view.residuals[k])
    if bulk.rigid:
        return gap > _APART * edge.unit
    after = -view.values[k : k + _AFTER.stop].diff()
    return len(after) >= _AFTER.start and _chance(1, gap, after) <= risk


def _heaviest(measures: Sequence[Quadrature], rounding: float) -> tuple[float, float]:
    """The place where most of the mass is, as far as products tell places apart, and its share."""
    nodes, order = torch.cat([q.nodes for q in measures]).sort()
    known = torch.cat([q.residuals for q in measures])[order] <= rounding
    weights = torch.cat([q.weights for q in measures])[order] / len(measures)
    mass = torch.cat([weights.new_zeros(1), torch.where(known, weights, 0.0).cumsum(0)])
    ends = (torch.searchsorted(nodes, nodes + x, right=x > 0) for x in (rounding, -rounding))
    here = mass[next(ends)] - mass[next(ends)]
    return float(nodes[here.argmax()]), float(here.max())


def _around(view: SideView, place: float) -> SideMethod:
    """Where Lanczos processes have ended, so that one eigenvalue of high multiplicity is all the bulk there is."""
    count, low, high = view.beyond(place + view.rounding), place - view.rounding, place + view.rounding
    if count > _SHARE * view.size or view.size < _LEAST or count >= _RANKS:
        return _silent(_LAW, f"of {view.size} eigenvalues, {count} are too many for outliers")
    reason = "the bulk is one eigenvalue of high multiplicity"
    return SideMethod(_LAW, count, place, low, high, reason)


def by_null(view: SideView, nulls: Sequence[float | Eigenpairs]) -> list[SideMethod]:
    """By what exceeds the extreme eigenvalues of matrices without structure."""
    edges = []
    for x in nulls:
        if isinstance(x, Eigenpairs):
            values, residuals = _one_side(x, view.sign)
            edges += [(float(values[0]), float(residuals[0]))] if len(values) else []
        elif view.sign > 0:
            edges.append((float(x), 0.0))
    if not edges:
        return []
    high, low = max(v + r for v, r in edges), min(v for v, _ in edges)
    count = view.beyond(high)
    if count == len(view.values):
        return [_silent("null", f"all {count} eigenvalues that are known lie beyond it", max(edges)[0], low, high)]
    times = f"{len(edges)} matrices" if len(edges) > 1 else "one matrix"
    return [SideMethod("null", count, max(edges)[0], low, high, f"the extreme eigenvalue of {times} without structure")]


def by_gap(view: SideView, risk: float) -> SideMethod:
    """By gaps that are exceptional beside those after them: the most exceptional first, then among the rest."""
    known = view.beyond(view.median)
    values, residuals = view.values[:known], view.residuals[:known]
    testable = min(len(values) - 1 - _AFTER.start, int(_SHARE * view.size))
    if testable < 1:
        return _silent("gap", f"it needs {_AFTER.start + 2} resolved eigenvalues of this side")
    above = values - view.median
    gaps = -above.log().diff()
    least = ((above - residuals)[:-1] / (above + residuals)[1:]).log()  # what residuals leave of it at least
    most = ((above + residuals)[:-1] / (above - residuals)[1:]).log()
    largest = int(gaps[:testable].argmax()) + 1
    seen = f"the largest ratio is {math.exp(float(gaps[largest - 1])):.3g}, after {largest}"
    count = 0
    while count < testable:
        chances = [
            _chance(k - count, float(least[k - 1]), most[k : k + _AFTER.stop]) for k in range(count + 1, testable + 1)
        ]
        if min(chances) > risk / testable:
            break
        count += chances.index(min(chances)) + 1
    if count == 0:
        return SideMethod("gap", 0, math.nan, math.nan, math.nan, f"no gap is exceptional; {seen}")
    low, high = float(values[count]), float(values[count - 1])
    if view.measures and view.too_heavy((low + high) / 2, count):
        return _silent("gap", f"far more than {count} eigenvalues lie beyond the gap after these")
    return SideMethod("gap", count, (low + high) / 2, low, high, f"the gap after {count} is exceptional; {seen}")


def _chance(rank: int, gap: float, following: Tensor) -> float:
    """That the gap after so many is so large by chance.

    Times its rank, each gap is an exponential variable of the same law (Rényi); of one over the mean of m others the
    probability to exceed x is (1 + x / m)^-m.
    """
    ranks = rank + 1 + torch.arange(len(following), dtype=torch.float64)
    mean = float((ranks * following).mean())
    if gap <= 0 or not mean >= 0:
        return 1.0
    return (1 + rank * gap / (mean * len(following))) ** -len(following) if mean > 0 else 0.0
