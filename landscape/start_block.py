r"""Random starts in one Krylov space: what each of them sees of the spectrum, and the eigenpairs they resolve together.

The block Krylov space of S starts holds the space of each of them. With Ritz pairs :math:`\theta_k, y_k` of it,
the measure with mass :math:`(e_s^T y_k)^2` at :math:`\theta_k` has the first 2m moments of what start s sees, as its
own Gauss quadrature has, on S times as many nodes (Golub and Meurant, "Matrices, Moments and Quadrature", 2010,
ch. 4).

Ritz pairs with a small residual are eigenpairs, which all starts have found together and each would take longer to
find. How often an eigenvalue occurs is plain as long as that is less often than there are starts: its Ritz values
are as many. Then its mass is known, and the starts' random weights at it can be dropped.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from scipy.linalg import eigvals_banded, lapack
from scipy.special import betaincc, chdtrc
from torch import Tensor

from .continuation import longer, symmetric_coupling
from .lanczos import LanczosBasis
from .operators import Observed
from .quadrature import Quadrature, gauss
from .three_term import ThreeTerm

__all__ = ["Rule", "StartBlock"]

_WORTH = 0.1  # of the error that knowing an eigenvalue's mass saves, what its residual may bring back
_SMALL = 100  # vectors of a basis, of which all is quickly known
_CHANGE = 1e-7  # of T, relative: its square and rounding over it are both small
_NOTHING = 1e-24  # weight that is rounding
_LONGER = 3  # times the rows of T that are added when it goes on, with which little of the staircase is left,
_ROWS = 128  # and at most, since eigenvalues of dense matrices take cubic time
_BLUR = (
    2.0  # residuals, within which nodes are not told apart: m Ritz pairs of m + 1 eigenvalues have a part of a gap each
)
_IMPLAUSIBLE = 1e-8  # probability of weights so large that more eigenvalues must be behind them
_DEPLETED = 0.01  # the same of all weights together; rarer is, what few eigenvalues are left for shows in no other way


class Rule:
    """The nodes that starts share, and the weights of each.

    Args:
        values: (m,) Ritz values, ascending.
        Y: (m, m) their coordinates in the basis, whose first vectors are the starts.
        residuals: (m,) of the Ritz pairs.
        starts: S.

    Attributes:
        nodes: (m,) float64.
        weights: (S, m) float64, rows with sum 1.
        residuals: (m,) float64.
        Y: as given.
    """

    def __init__(self, values: Tensor, Y: Tensor, residuals: Tensor, starts: int) -> None:
        self.nodes, self.Y, self.residuals = values, Y, residuals
        self.weights = Y[:starts].square()

    @property
    def mean(self) -> tuple[Tensor, Tensor]:
        """Nodes and the weights of all starts on average."""
        return self.nodes, self.weights.mean(dim=0)

    def resolved(self, size: int, rounding: float) -> Tensor:
        """Which Ritz pairs are eigenpairs that count one each, (m,) of bool.

        Those within a few of each other's residuals are one cluster, in which pairs may stand for more eigenvalues than
        they are, as one does of any multiplicity. That cannot be, but where all spaces end, as long as it has fewer
        members than there are starts.

        Args:
            size: eigenvalues that the starts stand for.
            rounding: what products add to residuals.
        """
        starts, m = self.weights.shape
        mean = self.weights.mean(dim=0)
        from_centre = (self.nodes - mean @ self.nodes).abs()
        small = 2 * self.residuals <= _WORTH * (2 / starts) ** 0.5 * from_centre
        reach = _BLUR * self.residuals + rounding
        up, down = (self.nodes + reach).cummax(dim=0).values, (reach - self.nodes).flip(0).cummax(dim=0).values.flip(0)
        cluster = torch.zeros(m, dtype=torch.int64)
        cluster[1:] = (up[:-1] < -down[1:]).cumsum(dim=0)  # none of those below reaches one of those above
        members = torch.bincount(cluster)
        seen = size * starts * torch.zeros(len(members), dtype=torch.float64).index_add_(0, cluster, mean)
        plausible = torch.from_numpy(chdtrc(starts * members.numpy(), seen.numpy()) > _IMPLAUSIBLE)
        # Directions that fill up an exhausted block are of no start, and may be among those that were left out.
        counted = small & (mean > _NOTHING) & ((members < starts) & plausible)[cluster]
        return counted & self._told_apart(counted, cluster, reach, size)[cluster]

    def _told_apart(self, counted: Tensor, cluster: Tensor, reach: Tensor, size: int) -> Tensor:
        """Which clusters may count one eigenvalue for each of their pairs, and leave enough weight for the others.

        Where eigenvalues are close to each other, as small ones are on the scale of large ones, a Ritz pair may stand
        for several. It has the weight of all, and those that are left over have next to none in these starts. The
        weight of k out of n eigenvalues has the law Beta(Sk/2, S(n - k)/2); clusters are given up until it holds, those
        first whose pairs reach farthest in comparison with the distance to others.

        Args:
            counted: (m,) which pairs would count.
            cluster: (m,) number of each pair's.
            reach: (m,) how far off a node its eigenvalue may be.
            size: n.
        """
        starts, apart = len(self.weights), torch.full((len(reach) + 1,), torch.inf, dtype=reach.dtype)
        apart[1:-1] = self.nodes.diff()
        blur = reach / torch.minimum(apart[:-1], apart[1:])
        none = torch.zeros(int(cluster[-1]) + 1, dtype=reach.dtype)
        order = none.scatter_reduce(0, cluster, blur, "amax").argsort(stable=True)
        of_counted = torch.stack([torch.ones_like(reach), self.weights.mean(dim=0)])[:, counted]
        k, mass = (none.index_add(0, cluster[counted], found)[order].cumsum(dim=0).numpy() for found in of_counted)
        chances = betaincc(starts / 2 * k, starts / 2 * np.maximum(size - k, 1), np.minimum(mass, 1))
        enough = np.flatnonzero((k == 0) | (k == size) | (chances > _DEPLETED))
        told = torch.zeros(len(none), dtype=torch.bool)
        told[order[: enough[-1] + 1 if len(enough) else 0]] = True
        return told

    def without(self, taken: Tensor) -> tuple[Quadrature, ...]:
        """The quadrature of each start, of what is left when some Ritz pairs are taken out of it."""
        weights = self.weights[:, ~taken]
        weights = weights / weights.sum(dim=1, keepdim=True)
        return tuple(Quadrature(self.nodes[~taken], w, self.residuals[~taken]) for w in weights)


class StartBlock:
    """The block Lanczos process from random orthonormal vectors, on all of the space or a part of it.

    Args:
        operator: A.
        starts: how many vectors; not more than the (part of the) space has dimensions.
        generator: for them.
        without: (n, d) orthonormal directions that are left out: the operator is PAP then, with the projection P on
            their orthogonal complement.
        kept: whether all Lanczos vectors are kept; else three are, of a single start, and there are no
            `ritz_vectors` (see `three_term`).

    Attributes:
        basis: the Krylov basis, or the last of it.
        steps: made so far.
    """

    def __init__(
        self, operator: Observed, starts: int, generator: torch.Generator, without: Tensor | None = None,
        *, kept: bool = True,
    ) -> None:  # fmt: skip
        self.operator, self.starts, self.kept, self.steps = operator, starts, kept, 0
        self._without = without if without is not None and without.shape[1] else None
        self.basis = LanczosBasis(operator, starts, generator) if kept else ThreeTerm(operator)
        # One at a time: a seed stands for the same starts, whatever memory says of how many run at once.
        drawn = [operator.space.random(1, generator).T for _ in range(starts)]
        self.basis.begin(self._projected((torch.cat(drawn) if starts > 1 else drawn.pop()).T))

    def step(self) -> None:
        """One product with each start's newest vector.

        Raises:
            NonFiniteError: if one is NaN or infinite.
            SettingError: if the operator is not symmetric.
        """
        products = self.operator.unchecked(self._projected(self.basis.newest))
        self.basis.absorb(self._projected(products))
        self.steps += 1
        self.__dict__.pop("rule", None)

    def _projected(self, V: Tensor) -> Tensor:
        U = self._without
        if U is None:
            return V
        V = V - U @ self.operator.space.inner(U, V)
        return V - U @ self.operator.space.inner(U, V)  # twice, since most of V may be along U

    @property
    def ended(self) -> bool:
        """Whether the starts' space is invariant, so that their quadratures are exact."""
        basis = self.basis
        if isinstance(basis, ThreeTerm):
            return basis.broke_down
        if basis.size >= basis.space.size:
            return True
        if not basis.broke_down:
            return False
        nodes, weights = self.rule.mean
        left = float((weights.sqrt() * self.rule.residuals).max())
        return left <= 100 * torch.finfo(basis.space.dtype).eps * float(nodes.abs().max())

    @functools.cached_property
    def rule(self) -> Rule:
        """The rule of the last step."""
        return self.shorter(0)

    def shorter(self, steps: int) -> Rule:
        """The rule of some steps before."""
        basis, size = self.basis, self._size(steps)
        if isinstance(basis, ThreeTerm):
            found = gauss(basis, size)
            return Rule(found.nodes, found.weights.sqrt()[None], found.residuals, 1)
        if size == basis.size:
            values, Y = (torch.from_numpy(np.ascontiguousarray(found)) for found in basis.eigh())
        else:
            values, Y = torch.linalg.eigh(torch.from_numpy(basis.T[:size, :size].copy()))
        coupling = self._coupling(size)
        residuals = (coupling @ Y[size - coupling.shape[1] :]).square().sum(dim=0).sqrt()
        return Rule(values, Y, residuals, self.starts)

    def _size(self, steps: int) -> int:
        """Of T, some steps before."""
        return max(self.basis.size - steps * self.starts, min(self.starts, self.basis.size))

    def _coupling(self, size: int) -> Tensor:
        """Of the block that ends there to the next."""
        basis, starts = self.basis, self.starts
        found = basis.R if size == basis.size else basis.T[size : size + starts, size - starts : size]
        return torch.from_numpy(np.array(found, order="C"))

    # ------------------------------------------------------------------ measures

    @property
    def goes_on(self) -> bool:
        """Whether there are further steps, and what they begin with is known."""
        return not self.ended and self.basis.R.shape == (self.starts, self.starts)

    def rows(self, size: int) -> int:
        """How many to add to so many: with them little is left of the staircase."""
        return min(_LONGER * size, _ROWS) if self.goes_on else 0

    def continued(self, taken: Tensor, now: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Nodes and mean weights of what is left when some Ritz pairs are taken out, as if steps went on.

        No node is outside of the Ritz values, and so of the spectrum: those beyond are moved to the ends. Where the
        starts' space ends, it is the rule.

        Args:
            taken: which Ritz pairs.
            now: what `before` returns for this step and as many rows as `rows` says, where that is known: it is the
                answer for a single start that has lost none.
        """
        starts, rule, T = self.starts, self.rule, torch.from_numpy(self.basis.T.copy())
        nodes, weights = rule.nodes[~taken], rule.weights[:, ~taken]
        if starts == 1 and not taken.any() and (rows := self.rows(len(nodes))):
            nodes, mean = now or self.before(0, rows)
            nodes, weights = nodes.clamp(rule.nodes[0], rule.nodes[-1]), mean[None]
        elif len(nodes) and (rows := self.rows(len(nodes))):
            values, Y = (nodes, rule.Y[:, ~taken]) if self.kept else torch.linalg.eigh(T)
            A, B = T[-starts:, -starts:], symmetric_coupling(self._coupling(len(T)))
            nodes, Z = torch.linalg.eigh(longer(values.diag(), Y[-starts:], A, B, rows))
            nodes, weights = nodes.clamp(rule.nodes[0], rule.nodes[-1]), (Y[:starts] @ Z[: len(values)]).square()
        return nodes, (weights / weights.sum(dim=1, keepdim=True)).mean(dim=0)

    def before(self, steps: int, rows: int = 0) -> tuple[Tensor, Tensor]:
        """Nodes and mean weights of the rule some steps before, or of T with so many rows more than it had then.

        Without its eigenvectors, which take most of the time: a node's mean weight is its derivative by a multiple of
        the projection on the starts that is added to T. From a central difference it is right to about 1e-8, and
        clusters that are closer keep their weight together.
        """
        starts, size = self.starts, self._size(steps)
        if starts == 1:
            return self._tridiagonal(size, rows)
        T = torch.from_numpy(self.basis.T[:size, :size].copy())
        if rows:
            A, B = T[-starts:, -starts:], symmetric_coupling(self._coupling(size))
            T = longer(T, torch.eye(size, dtype=T.dtype)[-starts:], A, B, rows)
        if len(T) < _SMALL:
            nodes, Y = torch.linalg.eigh(T)
            return nodes, Y[:starts].square().mean(dim=0)
        band = np.zeros((2 * starts, len(T)))
        for below in range(2 * starts):
            band[below, : len(T) - below] = T.diagonal(-below)
        change = _CHANGE * float(np.abs(band).max())
        moved = []
        for sign in (1, -1):
            shifted = band.copy()
            shifted[0, :starts] += sign * change
            moved.append(torch.from_numpy(eigvals_banded(shifted, lower=True, check_finite=False)))
        up, down = moved
        return (up + down) / 2, (up - down) / (2 * change * starts)

    def _tridiagonal(self, size: int, rows: int) -> tuple[Tensor, Tensor]:
        """What `before` returns of a single start, whose T is tridiagonal: half the time of a dense eigenproblem."""
        diagonal = np.diagonal(self.basis.T)[:size]
        beside = np.diagonal(self.basis.T, -1)[: size - 1]
        if rows:
            diagonal = np.concatenate([diagonal, np.full(rows, diagonal[-1])])
            beside = np.concatenate([beside, np.full(rows, abs(float(self._coupling(size))))])
        values, Y, _ = lapack.dstevd(diagonal, beside)
        return torch.from_numpy(values), torch.from_numpy(Y[0] ** 2)

    def moving(self, taken: Tensor) -> float:
        r"""How far some Ritz values may be off in sum, by half, :math:`\|AU - U\Theta\|_*` of their Ritz vectors U.

        Taking them out leaves :math:`AU - U\Theta` and its transpose out of A, which moves all eigenvalues together by
        no more than its nuclear norm (Lidskii). It is in the span of the next block: that is far less than the sum of
        the residuals, where there are many.
        """
        if not taken.any():
            return 0.0
        C = self._coupling(self.basis.size)
        return float(torch.linalg.matrix_norm(C @ self.rule.Y[-C.shape[1] :, taken], "nuc"))

    def ritz_vectors(self, taken: Tensor) -> Tensor:
        """Ritz vectors of the last rule, (n, d)."""
        assert isinstance(self.basis, LanczosBasis)
        return self.basis.combined(self.rule.Y[:, taken].numpy())
