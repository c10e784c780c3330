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
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.special import chdtri
from torch import Tensor

from .bulk_edge import Bulk, BulkEdge, bulk_of
from .errors import SettingError
from .quadrature import Quadrature
from .results import Eigenpairs
from .spectral_measure import SpectralDensity

__all__ = ["OutlierSide", "Outliers", "SideMethod", "outliers"]

_SHARE = 0.1  # of all eigenvalues: what there is more of is no outlier
_RANKS = 64  # extreme eigenvalues of a side that are looked at
_APART = 4.0  # units of Tracy and Widom's law from an outlier to the next eigenvalue
_RESOLVED = 1e-4  # times the spectrum's width: residuals of nodes that may be copies of one eigenvalue
_SPARSER = 1.75  # times the spacing of eigenvalues at the edge of the bulk: that of outliers
_PATIENCE = 4  # how often eigenvalues are taken out of a bulk that none stands out of
_LEAST = 10  # eigenvalues that a bulk and outliers take
_AFTER = range(3, 10)  # how many gaps a gap is compared with


@dataclass(frozen=True)
class SideMethod:
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


@dataclass(frozen=True, eq=False)
class OutlierSide:
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
        """Whether at least two methods can tell, and all that can count the same."""
        counts = [m.count for m in self.methods if m.count is not None]
        return len(counts) > 1 and len(set(counts)) == 1

    @property
    def status(self) -> str:
        """``"separated"`` (all methods agree), ``"disputed"`` (they do not), ``"not separated"`` (none are counted)."""
        return "not separated" if self.count == 0 else "separated" if self.agreed else "disputed"

    def __repr__(self) -> str:
        """The count with its edge, and what each method says."""
        says = ", ".join(f"{m.method} {'cannot tell' if m.count is None else m.count}" for m in self.methods)
        edge = f" {self.edge:.4g} [{self.low:.4g}, {self.high:.4g}]" if math.isfinite(self.edge) else " the bulk"
        shown = ": " + ", ".join(f"{v:.5g}" for v in self.values[:5].tolist()) if self.count else ""
        more = ", ..." if self.count > 5 else ""
        undecided = f", {self.undecided} undecided" if self.undecided else ""
        return f"{self.count or 'none'} {self.side}{edge}{shown}{more}{undecided} ({self.status}: {says})"


@dataclass(frozen=True, eq=False)
class Outliers:
    """The eigenvalues that stand apart from the bulk, above and below it.

    Attributes:
        upper: those above.
        lower: those below.
        confidence: with which no eigenvalue of a bulk such as a method assumes is counted, on either side.
        size: n, of how many eigenvalues.
        matvecs: operator-vector products behind it.
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
    confidence: float = 0.95,
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
        confidence: see `Outliers`.

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
    given = (pairs,) if isinstance(pairs, Eigenpairs) else tuple(pairs)
    nulls = (null,) if isinstance(null, int | float | Eigenpairs) else tuple(null)
    size = _checked(density, given, nulls, confidence)
    risk = (1 - confidence) / 2
    views = [_View(density, given, sign, size) for sign in (1, -1)]
    laws = _random_matrix(views, size, risk)
    upper, lower = (
        _decided(view, [_mirrored(m, view.sign) for m in (law, *_null(view, nulls), _gap(view, risk))])
        for view, law in zip(views, laws, strict=True)
    )
    # A density that was deflated by pairs counts their products already.
    matvecs = density.matvecs if density is not None else sum(p.matvecs for p in given)
    source = density if density is not None else given[0]
    return Outliers(upper, lower, confidence, size, matvecs, source.kernel, source.note)


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
        if not isinstance(x, Eigenpairs) and (isinstance(x, bool) or not math.isfinite(float(x))):
            raise SettingError(f"null must be eigenpairs or finite numbers, got {x!r}")
    if not 0 < confidence < 1:
        raise SettingError(f"confidence must be between 0 and 1, got {confidence!r}")
    return int(sizes.pop())


# --------------------------------------------------------------------------- what is known of a side


class _View:
    """One side of the spectrum, mirrored if it is the lower one, so that outliers are large.

    Attributes:
        values: (r,) the extreme Ritz values, descending; the i-th is no more than the i-th largest eigenvalue.
        residuals: (r,) theirs.
        measures: what random vectors saw of the whole spectrum.
        steps: Lanczos steps behind those.
        median: of these; where there are none, as far within the least Ritz value as that is from the largest.
        exact: whether all eigenvalues are known.
    """

    def __init__(self, density: SpectralDensity | None, pairs: Sequence[Eigenpairs], sign: int, size: int) -> None:
        self.sign, self.size = sign, size
        self.steps = (density.steps if density is not None else 0) or size
        self.measures = [] if density is None else [_mirror(q, sign) for q in _measures(density)]
        sources = [_one_side(p, sign) for p in pairs]
        # Where no eigenvalue was taken out, the starts may have kept three vectors only, and see one several times.
        once = density is not None and len(density.deflated) == 0
        sources += [_distinct(q) if once else (q.nodes, q.residuals) for q in self.measures]
        ranks = min(_RANKS, max((len(v) for v, _ in sources), default=0))
        table = torch.full((2, len(sources), ranks), -math.inf, dtype=torch.float64)
        for row, (values, residuals) in enumerate(sources):
            values, order = values.sort(descending=True)
            table[0, row, : len(values)] = values[:ranks]
            table[1, row, : len(values)] = residuals[order][:ranks]
        best = table[0].argmax(dim=0, keepdim=True)  # by Cauchy the i-th Ritz value is a lower bound in each source
        self.values, self.residuals = (table[i].gather(0, best)[0] for i in (0, 1))
        self.median = self._median()

    def _median(self) -> float:
        if not self.measures:
            return 2 * float(self.values[-1]) - float(self.values[0]) if len(self.values) else math.nan
        nodes, order = torch.cat([q.nodes for q in self.measures]).sort()
        mass = torch.cat([q.weights for q in self.measures])[order].cumsum(0)
        return float(nodes[int(torch.searchsorted(mass, 0.5 * float(mass[-1])).clamp(max=len(nodes) - 1))])

    def cut(self, count: int) -> float:
        """A place between that many eigenvalues and the rest."""
        return math.inf if count == 0 else float(self.values[count - 1 : count + 1].mean())

    def excess(self, edge: BulkEdge, count: int, risk: float) -> float:
        """How far the next eigenvalue after so many lies beyond the reach of an edge, in units of that."""
        if count >= len(self.values):
            return -math.inf
        beyond = float(self.values[count] - self.residuals[count]) - self.sign * edge.value
        reach = edge.reach(risk, whole=False)
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
    """The resolved nodes and their residuals, descending; of copies of one eigenvalue only the outer one."""
    nodes, order = q.nodes.sort(descending=True)
    residuals = q.residuals[order]
    close = nodes[1:] + residuals[1:] >= nodes[:-1] - residuals[:-1]
    resolved = residuals <= _RESOLVED * float(nodes[0] - nodes[-1])
    unresolved = (close & ~resolved[1:]).nonzero()[:, 0].tolist()
    end = unresolved[0] + 1 if unresolved else len(nodes)
    kept = torch.cat([close.new_ones(1), ~close])[:end]
    return nodes[:end][kept], residuals[:end][kept]


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


def _random_matrix(views: Sequence[_View], size: int, risk: float) -> list[SideMethod]:
    """By the edges of a bulk in one piece: eigenvalues are taken out, outermost first, until the rest is one.

    Several outliers at one place bend the fit so that none of them stands out of it, but then its coefficients are
    not constant. So the search goes on until they are, and what nearly was before counts only where it never ends.
    """
    name, most = "random matrix", min(int(_SHARE * size), _RANKS - 1)
    if not views[0].measures:
        return [_silent(name, "it needs a spectral density")] * 2
    found: list[tuple[int, int, int, list[SideMethod]]] = []
    counts, sure, in_vain = [0, 0], [0, 0], 0
    while max(counts) <= most and in_vain <= _PATIENCE and (bulk := _bulk(views, counts)) is not None:
        edges = bulk.upper, bulk.lower
        excess = [view.excess(edge, k, risk) for view, edge, k in zip(views, edges, counts, strict=True)]
        if max(excess) > 0:
            side = excess.index(max(excess))
            sure[side] = counts[side] + 1
            counts, in_vain = list(sure), 0
            continue
        unsettled = [edge.unsettled for edge in edges]
        if in_vain == 0:  # what was taken out last stood out
            says = [_by_edge(view, bulk, k, risk) for view, k in zip(views, counts, strict=True)]
            changing = sum(x > 0 for x in unsettled)
            found.append((sum(m.count is None for m in says), changing, len(found), says))
        if max(unsettled) == 0:
            break
        counts[unsettled.index(max(unsettled))] += 1
        in_vain += 1
    if not found and counts == [0, 0]:
        return [_around_a_point(view) for view in views]
    if not found:
        return [_silent(name, f"no bulk in one piece: {max(counts)} eigenvalues lie beyond its edge")] * 2
    return min(found)[-1]


def _bulk(views: Sequence[_View], counts: Sequence[int]) -> Bulk | None:
    """The bulk without that many eigenvalues above and below."""
    return bulk_of(_without(views, counts), views[0].steps, views[0].size)


def _without(views: Sequence[_View], counts: Sequence[int]) -> list[Quadrature]:
    """What random vectors saw, without that many eigenvalues above and below."""
    low, high = -views[1].cut(counts[1]), views[0].cut(counts[0])
    kept = []
    for q in views[0].measures:
        inside = (q.nodes > low) & (q.nodes < high)
        kept.append(Quadrature(q.nodes[inside], q.weights[inside], q.residuals[inside]))
    return kept


def _by_edge(view: _View, bulk: Bulk, k: int, risk: float) -> SideMethod:
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
    return SideMethod("random matrix", count, value, low, high, reason)


def _stands_apart(view: _View, bulk: Bulk, edge: BulkEdge, k: int, risk: float) -> bool:
    """Whether a gap follows the k-th eigenvalue, and those before it are not as dense as those after.

    Where the bulk is like no law that has a rigid edge, the gap must be exceptional in itself.
    """
    if k >= len(view.values):
        return True
    gap = float(view.values[k - 1] - view.residuals[k - 1] - view.values[k] - view.residuals[k])
    before, after = (
        -view.values[some].diff() for some in (slice(max(0, k - _AFTER.stop), k), slice(k, k + _AFTER.stop))
    )
    if len(before) >= 2 and len(after) >= 2 and float(before.mean()) < _SPARSER * float(after.mean()):
        return False
    if bulk.rigid:
        return gap > _APART * edge.unit
    return len(after) >= _AFTER.start and _chance(1, gap, after) <= risk


def _around_a_point(view: _View) -> SideMethod:
    """Where Lanczos processes end early: one eigenvalue of high multiplicity is all the bulk there is."""
    heaviest = max(view.measures, key=lambda q: float(q.weights.max()))
    place = float(heaviest.nodes[heaviest.weights.argmax()])
    rounding = 1e-8 * float(max(q.nodes.abs().max() for q in view.measures))
    here = [float(q.weights[(q.nodes - place).abs() <= q.residuals + rounding].sum()) for q in view.measures]
    if sum(here) / len(here) < 1 - _SHARE:
        return _silent("random matrix", "it needs more Lanczos steps")
    count = view.beyond(place + rounding)
    if count > _SHARE * view.size or view.size < _LEAST:
        return _silent("random matrix", f"of {view.size} eigenvalues, {count} are too many for outliers")
    reason = "the bulk is one eigenvalue of high multiplicity"
    return SideMethod("random matrix", count, place, place - rounding, place + rounding, reason)


def _null(view: _View, nulls: Sequence[float | Eigenpairs]) -> list[SideMethod]:
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


def _gap(view: _View, risk: float) -> SideMethod:
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


# --------------------------------------------------------------------------- the result


def _silent(
    method: str, reason: str, edge: float = math.nan, low: float = math.nan, high: float = math.nan
) -> SideMethod:
    return SideMethod(method, None, edge, low, high, reason)


def _mirrored(m: SideMethod, sign: int) -> SideMethod:
    if sign > 0:
        return m
    return dataclasses.replace(m, edge=-m.edge, low=-m.high, high=-m.low)


def _decided(view: _View, methods: Sequence[SideMethod]) -> OutlierSide:
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
