r"""The trace of an operator that changes little between measurements, as a Hessian does during training.

With an orthonormal basis Q of k vectors near the dominant eigenvectors, and :math:`P = Q Q^T`,

.. math:: \operatorname{tr} A = \operatorname{tr} Q^T A Q + (n - k)\, E \frac{g^T (I - P) A (I - P) g}{\|(I - P) g\|^2},
    \qquad g \sim N(0, I),

where k products make the first term exact and samples the second, as in Hutch++ (Meyer, Musco, Musco and Woodruff,
SOSA 2021). There half of the products go into finding Q. Here Q comes from the last measurement: the products
:math:`A Q`, made anyway, are a step of subspace iteration, and their span is the basis of the next one. From there
comes, too, how many samples it takes. Whatever Q is, the estimate is unbiased and its interval honest (`form_samples`);
a stale one costs samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .columns import parts
from .errors import SettingError
from .estimate_trace import trace
from .form_samples import FormSamples
from .html_table import Shown
from .intervals import check_accuracy, student_quantile
from .operators import Observed, as_operator
from .results import Estimate
from .space import generator_for
from .symmetry import refuse_asymmetric

__all__ = ["TrackedTrace"]

_MEMORY = 256 << 20  # bytes of the basis, and as many of its products for a while
_FEWEST = 5  # samples before the first look
_MARGIN = 0.95  # of the half-width asked for, what is planned for


@dataclass(eq=False)
class TrackedTrace(Shown):
    """Traces of the same operator as it changes, each with what the last one learnt of its dominant eigenvectors.

    Attributes:
        rank: k, vectors of the basis, fewer where 256 MiB do not hold them.
        samples: random vectors before the first look, where no measurement has shown yet how many it takes.
        basis: (n, k) orthonormal; None before the first measurement, which pays for it.
        leading: (n,) the direction of most curvature within the basis of the last measurement; None before.
        product: (n,) A times that; None where the last trace was not measured this way.
        seen: the last trace, and the standard deviation of one sample of it; None before.

    Example:
        >>> import torch
        >>> from losscope.landscape import TrackedTrace
        >>> A = torch.diag(torch.cat((torch.full((5,), 100.0), torch.ones(995))))
        >>> tracked = TrackedTrace(rank=6)
        >>> first, second = tracked.measure(A, rtol=0.1, seed=0), tracked.measure(A, rtol=0.1, seed=1)
        >>> round(second.value, 2), first.matvecs - second.matvecs
        (1495.0, 11)
    """

    rank: int = 8
    samples: int = 10
    basis: Tensor | None = field(default=None, repr=False)
    leading: Tensor | None = field(default=None, repr=False)
    product: Tensor | None = field(default=None, repr=False)
    seen: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1 or self.samples < 4:
            raise SettingError(f"need rank >= 1 and samples >= 4, got {self.rank!r} and {self.samples!r}")

    def measure(
        self,
        A: object,
        *,
        rtol: float = 0.1,
        max_matvecs: int = 100,
        confidence: float = 0.95,
        seed: int | torch.Generator | None = None,
    ) -> Estimate:
        """The trace, until its interval is narrow enough.

        Args:
            A: an operator of ours, a dense matrix (n, n), or anything with ``shape`` and ``@``.
            rtol: stop when the half-width of the interval is below ``rtol * |value|``.
            max_matvecs: most products to spend; the result says ``converged=False`` when they ran out.
            confidence: nominal coverage: Student's interval after Hall's transformation.
            seed: int, generator, or None for fresh entropy; the global stream is never used.

        Raises:
            SettingError: if an argument means nothing, or the operator is not symmetric.
            NonFiniteError: if a product is NaN or infinite.
        """
        check_accuracy(rtol, confidence, 2, max_matvecs)
        self.product = None
        operator = Observed(as_operator(A))
        n, generator = operator.space.size, generator_for(seed, operator.space.device)
        rank = self._rank(operator)
        if n <= 4 * (rank + self.samples) or rank == 0 or max_matvecs < 2 * rank + self.samples:
            return trace(A, rtol=rtol, max_matvecs=max_matvecs, confidence=confidence, seed=generator)
        with operator.held():
            operator.plan(2 * rank + self.samples, rank)
            if self.basis is None or self.basis.shape != (n, rank):
                self.basis = _orthonormal(operator @ operator.space.random(rank, generator))
            found = None
            for renew in (True, False):
                found = found or self._measured(operator, rtol, max_matvecs, confidence, generator, renew=renew)
            assert found is not None
            return found

    def _rank(self, operator: Observed) -> int:
        per_vector = operator.space.size * torch.finfo(operator.space.dtype).bits // 8
        return min(self.rank, _MEMORY // per_vector)

    def _measured(
        self, operator: Observed, rtol: float, most: int, confidence: float, generator: torch.Generator, *, renew: bool
    ) -> Estimate | None:
        """The estimate with the present basis; None where a new one, which is there then, costs less than samples."""
        assert self.basis is not None
        Q, space = self.basis, operator.space
        AQ = operator @ Q
        refuse_asymmetric(operator, Q, AQ)
        compressed = space.inner(Q, AQ).to("cpu", torch.float64)
        inside, samples = float(compressed.trace()), FormSamples(space, space.size - Q.shape[1])
        wanted = self._planned(rtol, confidence)
        while True:
            for some in parts(min(wanted - samples.count, most - operator.matvecs), space):
                Z = _outside(space.random(some.stop - some.start, generator), Q)
                AZ = operator @ Z
                samples.add(Z, AZ)
            estimate = _estimate(operator, inside, samples, rtol, confidence)
            done = estimate.converged or operator.matvecs >= most
            more = 0 if done else math.ceil(samples.count * (_excess(estimate, rtol) ** 2 - 1))
            afresh = self.rank + self.samples
            stale = renew and more > afresh and operator.matvecs + afresh <= most
            if done or stale:
                self.basis, self.leading, self.product = _next(Q, AQ, compressed, AZ)
                self.seen = (estimate.value, samples.spread) if done else None
                return estimate if done else None
            wanted += max(2, min(more, samples.count))

    def _planned(self, rtol: float, confidence: float) -> int:
        """Samples before the first look: as many as will do if they spread as those of the last measurement did."""
        if self.seen is None:
            return self.samples
        value, spread = self.seen
        for count in range(_FEWEST, self.rank + self.samples):
            if student_quantile(count, confidence) * spread <= _MARGIN * rtol * abs(value) * math.sqrt(count):
                return count
        return self.rank + self.samples


def _excess(estimate: Estimate, rtol: float) -> float:
    """How many times wider than wanted the interval is."""
    wanted = rtol * abs(estimate.value)
    return min((estimate.high - estimate.low) / 2 / wanted, 1e3) if wanted > 0 else 1e3


def _outside(Z: Tensor, Q: Tensor) -> Tensor:
    """Z without its part in the span of Q; twice, for rounding."""
    rows = Z.T  # as vectors lie in memory: three times as fast
    for _ in range(2):
        rows = torch.addmm(rows, rows @ Q, Q.T, alpha=-1)
    return rows.T


def _orthonormal(Y: Tensor) -> Tensor:
    Q: Tensor = torch.linalg.qr(Y)[0]
    return Q


def _next(Q: Tensor, AQ: Tensor, compressed: Tensor, sampled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The products' span, but for the weakest direction, whose place a product from outside of it takes.

    So that what grows outside of the basis comes into it, at no product. Also the leading direction within it, and
    its product.
    """
    values, U = torch.linalg.eigh((compressed + compressed.T) / 2)
    kept = values.abs().argsort(descending=True)[: Q.shape[1] - 1]
    rows = torch.cat((U[:, kept].T.to(AQ) @ AQ.T, sampled[:, :1].T))
    basis = _orthonormal(rows.T)
    leading = U[:, -1].to(Q)
    return basis, Q @ leading, AQ @ leading


def _estimate(operator: Observed, inside: float, samples: FormSamples, rtol: float, confidence: float) -> Estimate:
    low, high = samples.interval(confidence)
    value, stderr = inside + samples.mean, samples.spread / math.sqrt(samples.count)
    slack = operator.space.rounding * abs(value)
    low, high = inside + low - slack, inside + high + slack
    return Estimate(
        value, stderr, low, high, confidence, operator.matvecs, "tracked", (high - low) / 2 <= rtol * abs(value),
        operator.kernel, operator.note,
    )  # fmt: skip
