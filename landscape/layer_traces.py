r"""The trace of every layer's own curvature from products with the whole matrix, whose number does not grow with depth.

With independent signs z and the rows l of a layer,

.. math:: E\, z_l^T (A z)_l = \operatorname{tr} A_{ll},

since the other layers' signs are independent of its own: each product is a sample for all layers at once (Hutchinson,
Commun. Stat. Simul. Comput. 19, 433 (1990)). What other layers add is noise, of the size of :math:`\|A_{lm}\|_F`, which
multiplying each block by itself (`block_traces`) does without, for a pass over the data per layer. Most of it goes when
a few dominant directions Q are taken out: with :math:`P = Q Q^T`,

.. math:: A = (P A + A P - P A P) + (I - P) A (I - P),

where the products :math:`A Q` give the first part's trace in every layer exactly, and samples are for the second alone,
as in Hutch++ (Meyer, Musco, Musco and Woodruff, SOSA 2021). During training Q comes from the last measurement, whose
products are a step of subspace iteration. Whatever Q is, the estimates are unbiased and their intervals honest, as long
as it is independent of z.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .columns import parts, units
from .compositions import BlockDiagonal
from .errors import SettingError
from .in_step import blocks_of
from .intervals import Moments
from .operators import Observed
from .results import Estimate
from .space import generator_for

__all__ = ["TrackedLayerTraces", "layer_traces"]

LEAST = 4
"""Samples, below which an interval says nothing."""
_MEMORY = 256 << 20  # bytes of the basis, and as many of its products

Rows = Mapping[str, list[slice]]


def layer_traces(
    B: BlockDiagonal,
    *,
    vectors: int = 16,
    rank: int = 8,
    confidence: float = 0.95,
    seed: int | torch.Generator | None = None,
) -> dict[str, Estimate]:
    """The trace of every block of a matrix, and of the whole, for so many products with the whole matrix.

    It takes ``vectors + 2 * rank`` products, or one for each column where there are no more of them; the traces are
    exact then.

    Args:
        B: the blocks, say of every layer.
        vectors: samples, 4 at least.
        rank: dominant directions that are taken out.
        confidence: nominal coverage of each interval by itself: Student's, after Hall's transformation.
        seed: int, generator, or None for fresh entropy; the global stream is never used.

    Returns:
        The estimates by the blocks' names, and of all of the matrix under ``""`` at the end; a block without a name, as
        that of parameters of the model itself, is ``"(model)"``. Their errors are not independent.

    Raises:
        SettingError: if B is no `BlockDiagonal`, or an argument means nothing.
        NonFiniteError: if a product is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import BlockDiagonal, Hessian, Objective, layer_traces
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> data = (torch.eye(2), torch.zeros(2, 1))
        >>> H = Hessian(Objective(model, data, criterion=torch.nn.MSELoss()))
        >>> found = layer_traces(BlockDiagonal(H), seed=0)
        >>> list(found), found["0"].matvecs
        (['0', '1', ''], 9)
    """
    return TrackedLayerTraces(rank, vectors).measure(B, confidence=confidence, seed=seed)


@dataclass(eq=False)
class TrackedLayerTraces:
    """Traces of the layers of an operator as it changes, each with what the last one learnt of dominant directions.

    Attributes:
        rank: k, directions that are taken out, fewer where 256 MiB do not hold them.
        vectors: samples of what is left.
        basis: (n, k) orthonormal; None before the first measurement, which takes k products more.

    Example:
        >>> import torch
        >>> from losscope.landscape import BlockDiagonal, Hessian, Objective
        >>> from losscope.landscape.layer_traces import TrackedLayerTraces
        >>> model, data = torch.nn.Linear(64, 1), (torch.randn(8, 64), torch.zeros(8, 1))
        >>> B = BlockDiagonal(Hessian(Objective(model, data, criterion=torch.nn.MSELoss())))
        >>> tracked = TrackedLayerTraces()
        >>> [tracked.measure(B, seed=seed)[""].matvecs for seed in (0, 1)]
        [32, 24]
    """

    rank: int = 8
    vectors: int = 16
    basis: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, least in (("vectors", LEAST), ("rank", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise SettingError(f"{name} must be an integer of at least {least}, got {value!r}")

    def measure(
        self, B: BlockDiagonal, *, confidence: float = 0.95, seed: int | torch.Generator | None = None
    ) -> dict[str, Estimate]:
        """The traces; arguments, result and errors as of `layer_traces`."""
        if not 0 < confidence < 1:
            raise SettingError(f"confidence must be between 0 and 1, got {confidence!r}")
        layers = {name or "(model)": block._rows for name, block in blocks_of(B).items()}
        operator, n = Observed(B.operator), B.space.size
        rank = min(self.rank, _MEMORY // (n * torch.finfo(B.space.dtype).bits // 8))
        with operator.held():
            if n <= self.vectors + 2 * rank:
                return _exact(operator, layers, confidence)
            return self._sampled(operator, layers, rank, confidence, generator_for(seed, B.space.device))

    def _sampled(
        self, operator: Observed, layers: Rows, rank: int, confidence: float, generator: torch.Generator
    ) -> dict[str, Estimate]:
        space, moments = operator.space, Moments()
        operator.plan(self.vectors + 2 * rank, max(rank, 1))
        known = sizes = torch.zeros(len(layers) + 1, dtype=torch.float64, device=space.device)
        Q = B = C = torch.zeros(space.size, 0, dtype=space.dtype, device=space.device)
        if rank:
            if self.basis is None or self.basis.shape != (space.size, rank):
                self.basis = _orthonormal(operator @ space.random(rank, generator))
            Q, B = self.basis, operator @ self.basis
            C = space.inner(Q, B)
            known = _sums(2 * Q * B - Q * (Q @ C), layers).sum(dim=1)
            self.basis = _orthonormal(B)
        for some in parts(self.vectors, space):
            Z = space.random(some.stop - some.start, generator, "rademacher")
            forms = Z * (operator @ Z)
            sizes = sizes + _sums(forms.abs(), layers).sum(dim=1)
            if rank:
                inside = space.inner(Q, Z)
                forms = forms - Z * (Q @ (space.inner(B, Z) - C @ inside) + B @ inside)
            moments.add(known[:, None] + _sums(forms, layers))
        m = moments.count
        slack = operator.space.rounding * (sizes / m + known.abs())
        low, high = moments.interval(confidence, skewed=True)
        columns = (moments.mean, moments.spread / math.sqrt(m), low - slack, high + slack)
        return _estimates(operator, layers, columns, confidence, "tracked" if rank else "hutchinson")


def _exact(operator: Observed, layers: Rows, confidence: float) -> dict[str, Estimate]:
    """By products with unit vectors."""
    space = operator.space
    value = sizes = torch.zeros(len(layers) + 1, dtype=torch.float64, device=space.device)
    for some in parts(space.size, space):
        E = units(some, space)
        forms = E * (operator @ E)
        value, sizes = value + _sums(forms, layers).sum(dim=1), sizes + _sums(forms.abs(), layers).sum(dim=1)
    slack = space.rounding * sizes
    columns = (value, torch.zeros_like(value), value - slack, value + slack)
    return _estimates(operator, layers, columns, confidence, "exact")


def _sums(V: Tensor, layers: Rows) -> Tensor:
    """The entries of vectors (n, k) added up in every layer, and in all: (layers + 1, k) float64."""
    ends = [torch.stack([V[rows].sum(dim=0, dtype=torch.float64) for rows in of]).sum(dim=0) for of in layers.values()]
    return torch.stack([*ends, V.sum(dim=0, dtype=torch.float64)])


def _orthonormal(Y: Tensor) -> Tensor:
    Q: Tensor = torch.linalg.qr(Y)[0]
    return Q


def _estimates(
    operator: Observed, layers: Rows, columns: tuple[Tensor, ...], confidence: float, method: str
) -> dict[str, Estimate]:
    value, stderr, low, high = (column.tolist() for column in columns)
    cost = operator.matvecs
    return {
        name: Estimate(v, s, a, b, confidence, cost, method, True, operator.kernel, operator.note)
        for name, v, s, a, b in zip([*layers, ""], value, stderr, low, high, strict=True)
    }
