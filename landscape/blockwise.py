"""Every layer's own curvature, in one call: the same for all blocks, with their products made together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .columns import parts, units
from .compositions import BlockDiagonal, Restricted
from .errors import SettingError
from .intervals import Moments, check_accuracy
from .krylov import Search
from .operators import refuse_nonfinite
from .results import Eigenpairs, Estimate
from .space import generator_for

__all__ = ["block_eigenpairs", "block_traces"]


def block_eigenpairs(
    B: BlockDiagonal,
    k: int = 1,
    *,
    which: str = "LA",
    tol: float = 1e-2,
    guards: int = 0,
    max_matvecs: int | None = None,
    memory: int | None = None,
    confidence: float = 0.95,
    seed: int | torch.Generator | None = None,
) -> dict[str, Eigenpairs]:
    """The extremal eigenpairs of every block of a matrix, say of every layer of a model; see `top_eigenpairs`.

    The searches go in step: one pass over the data multiplies every block that is not done yet, at a fraction of
    the cost of a full product each.

    Args:
        B: the blocks.
        k: how many pairs of each; all of a block that has fewer entries.
        which: ``"LA"``, ``"SA"``, ``"LM"`` or ``"BE"``.
        tol: relative residual to stop a block at.
        guards: further vectors in every block of vectors.
        max_matvecs: most products to spend on each block of the matrix.
        memory: bytes that all bases together may take; by default 2 GiB for each.
        confidence: probability with which each probabilistic bound holds.
        seed: int, generator, or None for fresh entropy; every block has its own random numbers.

    Returns:
        The pairs by the blocks' names; vectors are of a block's own length.

    Raises:
        SettingError: if B is no `BlockDiagonal`, or an argument means nothing.
        NonFiniteError: if a product is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import BlockDiagonal, Hessian, Objective, block_eigenpairs
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> data = (torch.eye(2), torch.zeros(2, 1))
        >>> layers = BlockDiagonal(Hessian(Objective(model, data, criterion=torch.nn.MSELoss())))
        >>> {name: pairs.values.shape for name, pairs in block_eigenpairs(layers, k=2, seed=0).items()}
        {'0': torch.Size([2]), '2': torch.Size([2])}
    """
    _check(B)
    generator, total = generator_for(seed, B.space.device), sum(block.space.size for block in B.blocks.values())
    searches = {}
    for name, block in B.blocks.items():
        of_its_own = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        share = None if memory is None else memory * block.space.size // total
        size = min(k, block.space.size)
        searches[name] = Search(
            block, size, which, tol, None, None, guards, max_matvecs, share, confidence, of_its_own,
        )  # fmt: skip
    with B.held():
        B.plan(max(s.planned for s in searches.values()), max(s.block for s in searches.values()))
        while active := {name: s for name, s in searches.items() if s.found is None}:
            products = B.products({name: s.newest for name, s in active.items()})
            for name, product in products.items():
                active[name].absorb(product)
    return {name: s.found for name, s in searches.items() if s.found is not None}


def block_traces(
    B: BlockDiagonal,
    *,
    rtol: float = 0.05,
    min_matvecs: int = 30,
    max_matvecs: int = 200,
    confidence: float = 0.95,
    seed: int | torch.Generator | None = None,
) -> dict[str, Estimate]:
    """The trace of every block of a matrix, say of every layer of a model.

    Each by Hutchinson's estimator until its interval is narrow, as in `trace`; exactly where a block has no more
    entries than ``min_matvecs``. Random vectors of different blocks are independent: the traces add up to that of
    the whole matrix if the blocks cover it, and squares of their standard errors to the square of its.

    Args:
        B: the blocks.
        rtol: stop with a block when the half-width of its interval is below ``rtol * |value|``.
        min_matvecs: products of each block before the first look.
        max_matvecs: most products of each block; where they ran out, ``converged`` is False.
        confidence: nominal coverage of each interval.
        seed: int, generator, or None for fresh entropy.

    Returns:
        The estimates by the blocks' names; ``matvecs`` counts products of the block alone.

    Raises:
        SettingError: if B is no `BlockDiagonal`, or an argument means nothing.
        NonFiniteError: if a product is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import BlockDiagonal, Hessian, Objective, block_traces
        >>> model = torch.nn.Linear(2, 1)
        >>> data = (torch.diag(torch.tensor([1.0, 2.0])), torch.zeros(2, 1))
        >>> H = Hessian(Objective(model, data, criterion=torch.nn.MSELoss(reduction="sum")))
        >>> layers = BlockDiagonal(H, {"weight": "weight", "bias": "bias"})
        >>> {name: found.value for name, found in block_traces(layers, seed=0).items()}
        {'weight': 10.0, 'bias': 4.0}
    """
    _check(B)
    check_accuracy(rtol, confidence, min_matvecs, max_matvecs)
    generator = generator_for(seed, B.space.device)
    first = min(min_matvecs, max_matvecs)
    small = {name for name, block in B.blocks.items() if block.space.size <= first}
    runs = {name: _BlockTrace(block, rtol, confidence, name in small) for name, block in B.blocks.items()}
    with B.held():
        B.plan(max_matvecs, first)
        if small:
            exactly = {name: units(slice(0, runs[name].n), runs[name].block.space) for name in small}
            _multiply(B, runs, exactly)
        active, wanted = [name for name in runs if name not in small], first
        while active:
            for some in parts(wanted - runs[active[0]].matvecs, B.space):
                k = some.stop - some.start
                drawn = {name: runs[name].block.space.random(k, generator, "rademacher") for name in active}
                _multiply(B, runs, drawn)
            active = [name for name in active if not runs[name].estimate().converged] if wanted < max_matvecs else []
            wanted = min(max_matvecs, wanted + max(4, wanted // 4))
    return {name: run.estimate() for name, run in runs.items()}


def _multiply(B: BlockDiagonal, runs: dict[str, _BlockTrace], vectors: dict[str, Tensor]) -> None:
    """Multiply each block's vectors and let its run know ``v'Av`` and ``|Av|^2`` of each."""
    products = B.products(vectors)
    pairs = [
        torch.stack(
            ((V * products[name]).to(torch.float64).sum(dim=0), products[name].to(torch.float64).square().sum(dim=0))
        )
        for name, V in vectors.items()
    ]
    together = torch.cat(pairs, dim=1).cpu()  # one synchronisation for all blocks
    refuse_nonfinite(float(together.sum()))
    for name, part in zip(vectors, together.split([V.shape[1] for V in vectors.values()], dim=1), strict=True):
        runs[name].take(part[0], part[1])


class _BlockTrace:
    """The trace of one block: Hutchinson's samples, or its diagonal entries."""

    def __init__(self, block: Restricted, rtol: float, confidence: float, exact: bool) -> None:
        self.block, self.n, self.rtol, self.confidence, self.exact = block, block.space.size, rtol, confidence, exact
        self.matvecs, self._moments, self._squares = 0, Moments(), 0.0

    def take(self, forms: Tensor, squares: Tensor) -> None:
        self._moments.add(forms[None, :])
        self._squares += float(squares.sum())
        self.matvecs += len(forms)

    def estimate(self) -> Estimate:
        """The trace so far; what products err by beyond rounding widens its interval, as in `trace`."""
        m, rounding = self.matvecs, self.block.space.rounding
        if self.exact:
            value = float(self._moments.mean) * m
            half = self.n * rounding * math.sqrt(self._squares) if self.block.space.coarse else 0.0
            return self._result(value, 0.0, value - half, value + half, "exact", True)
        value, stderr = float(self._moments.mean), float(self._moments.spread) / math.sqrt(m)
        low, high = (float(end) for end in self._moments.interval(self.confidence, skewed=True))
        slack = rounding * (abs(value) + math.sqrt(self._squares / m))
        reached = (high - low) / 2 + slack <= self.rtol * abs(value)
        return self._result(value, stderr, low - slack, high + slack, "hutchinson", reached)

    def _result(self, value: float, stderr: float, low: float, high: float, method: str, reached: bool) -> Estimate:
        kernel, note = self.block.kernel, self.block.note
        return Estimate(value, stderr, low, high, self.confidence, self.matvecs, method, reached, kernel, note)


def _check(B: object) -> None:
    if not isinstance(B, BlockDiagonal):
        raise SettingError(f"expected a BlockDiagonal, e.g. BlockDiagonal(Hessian(objective)); got {type(B).__name__}")
