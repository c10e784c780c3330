"""Where training has gone: principal components, lengths and angles of a path of weights, also from sketches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NonFiniteError, SettingError
from ..html_table import Shown
from ..noise_scale import check_count
from .sketched_gram import SketchedGram
from .weight_sketch import WeightSketch

__all__ = ["WeightTrajectory", "weight_trajectory"]

_NUMBERS_PER_DISTANCE = 4
"""Of the sketch, for each known distance that corrects it: with fewer, intervals would cover too seldom."""
_PIECE = 1 << 16  # entries of each point that are taken to float64 at a time


@dataclass(frozen=True, eq=False)
class WeightTrajectory(Shown):
    r"""The geometry of T points that training went through.

    Of the polyline through these points: what the weights did between them is not seen. Errors are standard errors
    from the sketch alone, for intervals of about 2 of them; zero where nothing was sketched, and where distances were
    known exactly.

    Attributes:
        steps: (T,) int64 ascending.
        coordinates: (T, k) float64 along the principal components, from the points' mean; a component's sign is such
            that the last point's coordinate is not negative.
        coordinate_errors: (T, k).
        explained: (k,) shares of the points' variance, descending; NaN where no point differs from another.
        explained_errors: (k,).
        combination: (T, k) which points each component is made of: its unit vector is ``combination[:, i] @ points``,
            as far as the sketch can tell.
        distances: (T,) from the first point.
        distance_errors: (T,).
        lengths: (T,) of the polyline up to each point.
        length_errors: (T,).
        cosines: (T - 2,) of the angle between successive displacements, at ``steps[1:-1]``; NaN beside one of zero.
        cosine_errors: (T - 2,).
        size: n, how many parameters.
        dimension: numbers that each point was known by; n where all of it was.
        note: what is to be known of them; mostly empty.
    """

    steps: Tensor
    coordinates: Tensor
    coordinate_errors: Tensor
    explained: Tensor
    explained_errors: Tensor
    combination: Tensor
    distances: Tensor
    distance_errors: Tensor
    lengths: Tensor
    length_errors: Tensor
    cosines: Tensor
    cosine_errors: Tensor
    size: int
    dimension: int
    note: str = ""

    @property
    def exact(self) -> bool:
        """Whether the points themselves were known."""
        return self.dimension == self.size

    def __repr__(self) -> str:
        """How many points, from where, how far."""
        shares = ", ".join(f"{share:.1%}" for share in self.explained.tolist())
        how = "exact" if self.exact else f"from sketches of {self.dimension} numbers"
        return (
            f"WeightTrajectory({len(self.steps)} points of {self.size} parameters, steps {int(self.steps[0])} to "
            f"{int(self.steps[-1])}, {how}; components explain {shares}; {float(self.distances[-1]):.4g} from the "
            f"start after a path of {float(self.lengths[-1]):.4g})"
        )


def weight_trajectory(
    points: Tensor | Sequence[Tensor],
    *,
    sketch: WeightSketch | None = None,
    steps: Sequence[int] | Tensor | None = None,
    known: Mapping[tuple[int, int], float] | None = None,
    components: int = 2,
) -> WeightTrajectory:
    r"""Principal components, distances, path length and turning angles of a path of weights.

    All of them are functions of the points' inner products, which sketches keep. Distances that were measured exactly
    make them several times as accurate: the inner products of the sketches are corrected by the likeliest error of
    the sketch that makes these come out (calibration, Deville and Sarndal, JASA 87, 376 (1992); for lengths of two
    vectors it is the margin estimator of Li, Hastie and Church, COLT 2006). Takes of the order of T^3 operations.

    Args:
        points: (T, n) weights, or (T, m) their sketches; a sequence of vectors does as well.
        sketch: what made them; None where these are the weights themselves.
        steps: (T,) ascending; None counts.
        known: distances between points, measured exactly, by the points' numbers: ``{(0, 1): 0.5}``.
        components: k, how many principal components.

    Raises:
        SettingError: if an argument means nothing, or does not fit the others.
        NonFiniteError: if a point is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape.surface import weight_trajectory
        >>> weight_trajectory(torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [3.0, 4.0, 0.0]]))
        WeightTrajectory(3 points of 3 parameters, steps 0 to 2, exact; components explain 77.8%, 22.2%; ...)
    """
    rows = _checked_points(points, sketch)
    at = _checked_steps(steps, len(rows))
    pairs = _checked_distances(known, len(rows), sketch)
    check_count("components", components, 1)
    variance, most = (0.0, 0) if sketch is None else (sketch.variance, sketch.dimension // _NUMBERS_PER_DISTANCE)
    gram = SketchedGram(_centred_gram(rows), variance, pairs, most)
    coordinates, coordinate_errors = gram.coordinates(components)
    explained, explained_errors = gram.explained(components)
    apart, apart_errors = gram.distances()
    lengths, length_errors = gram.path()
    cosines, cosine_errors = gram.cosines()
    size, dimension = (len(rows[0]),) * 2 if sketch is None else (sketch.size, sketch.dimension)
    return WeightTrajectory(
        at, coordinates, coordinate_errors, explained, explained_errors, gram.combination(components), apart,
        apart_errors, lengths, length_errors, cosines, cosine_errors, size, min(size, dimension),
    )  # fmt: skip


def _centred_gram(rows: Tensor | Sequence[Tensor]) -> Tensor:
    """Inner products of the points from their mean, (T, T) float64 on the host.

    Displacements from the first point are taken in float64 before anything is multiplied: weights differ by little.
    """
    T, n = len(rows), len(rows[0])
    gram = torch.zeros(T, T, dtype=torch.float64)
    for start in range(0, n, _PIECE):
        piece = torch.stack([row[start : start + _PIECE].detach().to("cpu", torch.float64) for row in rows])
        piece = piece - piece[0]
        piece = piece - piece.mean(dim=0)
        gram += piece @ piece.T
    return gram


def _checked_points(points: Tensor | Sequence[Tensor], sketch: WeightSketch | None) -> Tensor | Sequence[Tensor]:
    shapes = [tuple(row.shape) for row in points]
    if not shapes or len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise SettingError(f"points must be vectors of one length, (T, n); got {', '.join(map(str, shapes[:4]))}")
    if sketch is not None and shapes[0] != (sketch.dimension,):
        raise SettingError(f"the sketch makes vectors of {sketch.dimension} numbers, and points have {shapes[0][0]}")
    for t, row in enumerate(points):
        if not bool(torch.isfinite(row).all()):
            raise NonFiniteError(f"point {t} is NaN or infinite somewhere")
    return points


def _checked_steps(steps: Sequence[int] | Tensor | None, count: int) -> Tensor:
    at = torch.arange(count) if steps is None else torch.as_tensor(steps)
    if at.shape != (count,) or at.is_floating_point() or bool((at.diff() <= 0).any()):
        raise SettingError(f"steps must be {count} ascending whole numbers, one for each point; got {at.tolist()[:8]}")
    return at.long()


def _checked_distances(
    known: Mapping[tuple[int, int], float] | None, count: int, sketch: WeightSketch | None
) -> dict[tuple[int, int], float]:
    """Each pair once, the smaller number first; none where there is nothing to correct."""
    found: dict[tuple[int, int], float] = {}
    for pair, distance in (known or {}).items():
        if len(set(pair)) != 2 or not all(0 <= t < count for t in pair):
            raise SettingError(f"known distances are between two of the {count} points, by their numbers; got {pair}")
        if not 0 <= distance < math.inf:
            raise SettingError(f"the distance between points {pair[0]} and {pair[1]} must be >= 0, got {distance!r}")
        found[min(pair), max(pair)] = float(distance)
    return {} if sketch is None or not sketch.variance else found
