"""Inner products of points that only sketches of them are known of: corrected by known distances, with errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["SketchedGram"]

_NOTHING = 1e-12  # share of the largest variance: rounding
_DEPENDENT = 1e-10  # relative eigenvalue of what distances say together: below it, one follows from the others
_UNRESOLVED = 1e-14  # squared length over the variance of all points: rounding
_RESOLVED = 1e-9  # share of a variance that rounding lets through


class SketchedGram:
    r"""The geometry of T points up to rotation, and the spread of all that follows from it.

    With Y the points' coordinates (Y Y' their centred Gram matrix), what sketching made of it is :math:`Y (1 + E) Y'`,
    where E is symmetric with independent entries of variance ``variance`` on the diagonal and half of it beside. A
    known distance between points says what a'Ea is along their difference a. E is taken as the least in norm that says
    so (the likeliest); what remains of it is spread over the directions that the distances say nothing of. To first
    order in E every number of the geometry moves by some tr(ME), with a standard error from the norm of what M has
    beside them.

    Args:
        gram: (T, T) float64 centred Gram matrix of the sketches.
        variance: relative variance of a sketched squared length; 0 where nothing was sketched.
        known: distances by pairs of points, the smaller number first.
        most: how many of them to correct by, evenly chosen: fewer than the sketch has numbers, since each one fits
            some of its error.

    Attributes:
        Y: (T, r) coordinates along all principal components, by descending variance.
        variances: (r,) sums of their squares.
    """

    def __init__(self, gram: Tensor, variance: float, known: Mapping[tuple[int, int], float], most: int) -> None:
        self.variance, self._known = variance, known
        self.variances, self.Y = _coordinates(gram)
        self._A, self._inverse = torch.zeros(len(self.variances), 0).double(), torch.zeros(0, 0).double()
        if not known or not most or not len(self.variances):
            return
        chosen = sorted(known)[:: max(1, -(-len(known) // most))]
        pairs = torch.tensor(chosen)
        target = torch.tensor([known[pair] for pair in chosen], dtype=torch.float64).square()
        A, squares, used = self._differences(pairs)
        inverse = _pseudo_inverse((A.T @ A).square())
        excess = inverse @ (1 - target[used] / squares)
        B = self.Y @ A
        self.variances, self.Y = _coordinates(self.Y @ self.Y.T - (B * excess) @ B.T)
        self._A, _, _ = self._differences(pairs)
        K = (self._A.T @ self._A).square()
        self._inverse = _pseudo_inverse(K)
        said = float((K * self._inverse).sum())  # how many of them say something of their own
        self.variance /= 1 - said * variance / 2  # as many of the sketch's m numbers were fitted

    def _differences(self, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit differences of points (r, K), their squared lengths (K,), and which pairs differ at all."""
        apart = (self.Y[pairs[:, 1]] - self.Y[pairs[:, 0]]).T
        squares = apart.square().sum(dim=0)
        used = squares > _NOTHING * squares.max()
        return apart[:, used] / squares[used].sqrt(), squares[used], used

    # ------------------------------------------------------------------ what follows from it

    def coordinates(self, k: int) -> tuple[Tensor, Tensor]:
        """Along the first k components, and their errors: (T, k) and (T, k).

        A component turns towards another by E_ij lambda_i / (lambda_i - lambda_j), which is why nearly equal variances
        leave the axes undetermined; a coordinate is never further off than the point is from the mean.
        """
        errors = torch.zeros(len(self.Y), k, dtype=torch.float64)
        reach = self.Y.square().sum(dim=1).sqrt()
        for i in range(min(k, len(self.variances)) if self.variance else 0):
            apart = self.variances[i] - self.variances
            apart[i] = 2 * self.variances[i]  # a coordinate is the root of a variance
            tilt = (self.Y * (self.variances[i] / apart)).T
            square = (tilt.square().sum(dim=0) + tilt[i].square()) / 2
            error = self._spread(self._A[i][:, None] * (self._A.T @ tilt), square)
            errors[:, i] = torch.minimum(error.nan_to_num(math.inf, math.inf), reach)
        return _padded(self.Y, k), errors

    def explained(self, k: int) -> tuple[Tensor, Tensor]:
        """Shares of the first k components in the variance, and their errors: (k,) and (k,); NaN of no variance."""
        if not len(self.variances):
            return torch.full((k,), math.nan).double(), torch.zeros(k).double()
        shares = self.variances / self.variances.sum()
        first = torch.eye(len(shares), k, dtype=torch.float64)
        M = (first - shares[:, None]) * _padded(shares[None], k)  # diagonals, as columns
        errors = self._spread(self._A.square().T @ M, M.square().sum(dim=0))
        return _padded(shares[None], k)[0], torch.hypot(errors, self._bias(k))

    def _bias(self, k: int) -> Tensor:
        """Of the first k shares, (k,): variances are pushed apart, by Var(E_ij) l_i l_j / (l_i - l_j) from each other.

        To second order (Lawley, "Tests of significance for the latent roots", Biometrika 43, 128 (1956)).
        """
        found = torch.zeros(k, dtype=torch.float64)
        for i in range(min(k, len(self.variances)) if self.variance else 0):
            turn = self._spread(self._A[i][:, None] * self._A.T, torch.full_like(self.variances, 0.5)).square()
            apart = self.variances[i] - self.variances
            apart[i] = math.inf
            found[i] = (turn * self.variances[i] * self.variances / apart).sum() / self.variances.sum()
        return found

    def combination(self, k: int) -> Tensor:
        """What the first k components' unit vectors are made of: (T, k)."""
        return _padded(self.Y / self.variances, k)

    def distances(self) -> tuple[Tensor, Tensor]:
        """From the first point, and their errors: (T,) and (T,)."""
        X, lengths = self._units(self.Y - self.Y[0])
        errors = lengths / 2 * self._spread((self._A.T @ X).square(), (lengths > 0).double())
        found = self._exactly((0, t) for t in range(len(lengths)))
        return torch.where(found.isnan(), lengths, found), torch.where(found.isnan(), errors, 0.0)

    def path(self) -> tuple[Tensor, Tensor]:
        """Length of the polyline up to each point, and its errors: (T,) and (T,)."""
        X, lengths = self._units(self.Y.diff(dim=0))
        found = self._exactly((t, t + 1) for t in range(len(lengths)))
        guessed = torch.where(found.isnan(), lengths, 0.0)
        weighted = torch.outer(guessed, guessed) * (X.T @ X).square() / 4
        square = weighted.cumsum(dim=0).cumsum(dim=1).diagonal()
        errors = self._spread(((self._A.T @ X).square() * guessed / 2).cumsum(dim=1), square)
        start, lengths = torch.zeros(1, dtype=torch.float64), torch.where(found.isnan(), lengths, found)
        return torch.cat((start, lengths.cumsum(dim=0))), torch.cat((start, errors))

    def cosines(self) -> tuple[Tensor, Tensor]:
        """Of the angles between successive displacements, and their errors: (T - 2,) and (T - 2,)."""
        X, lengths = self._units(self.Y.diff(dim=0))
        one, other = X[:, :-1], X[:, 1:]
        cosines = (one * other).sum(dim=0).clamp(-1, 1)
        p, q = self._A.T @ one, self._A.T @ other
        errors = self._spread(p * q - cosines * (p.square() + q.square()) / 2, (1 - cosines.square()).square() / 2)
        moved = (lengths[:-1] > 0) & (lengths[1:] > 0)
        return torch.where(moved, cosines, math.nan), torch.where(moved, errors, 0.0)

    def _exactly(self, pairs: Iterable[tuple[int, int]]) -> Tensor:
        """Known distances, NaN where they are not."""
        return torch.tensor([self._known.get(pair, math.nan) for pair in pairs], dtype=torch.float64)

    def _units(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (N, r) as unit columns (r, N), and their lengths; what is too short to be told from zero is zero."""
        squares = rows.square().sum(dim=1)
        lengths = torch.where(squares > _UNRESOLVED * self.variances.sum(), squares, 0.0).sqrt()
        return (rows / lengths.where(lengths > 0, math.inf)[:, None]).T, lengths

    def _spread(self, along: Tensor, square: Tensor) -> Tensor:
        """Standard errors of numbers that move by tr(ME): (N,).

        Args:
            along: (K, N) a'Ma for the known differences a.
            square: (N,) squared Frobenius norms of M.
        """
        rest = square - (along * (self._inverse @ along)).sum(dim=0)
        return (self.variance * torch.where(rest > _RESOLVED * square, rest, 0.0)).sqrt()


def _coordinates(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Variances of the principal components, descending, without those that are zero, and the points along them.

    The sign is such that the last point's coordinate is not negative.
    """
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = values > _NOTHING * values[:1].clamp(min=0)
    sign = torch.where(vectors[-1] < 0, -1.0, 1.0)
    return values[kept], (vectors * sign * values.clamp(min=0).sqrt())[:, kept]


def _pseudo_inverse(K: Tensor) -> Tensor:
    return torch.linalg.pinv(K, hermitian=True, rtol=_DEPENDENT)


def _padded(columns: Tensor, k: int) -> Tensor:
    """The first k columns, zeros where there are not as many."""
    found = columns[:, :k]
    return torch.cat((found, found.new_zeros(len(found), k - found.shape[1])), dim=1)
