"""Every layer's own curvature, in one call: the same for all blocks, with their products made together."""

from __future__ import annotations

import torch

from .compositions import BlockDiagonal
from .estimate_trace import trace
from .in_step import blocks_of, in_step
from .krylov import top_eigenpairs
from .operators import SymmetricOperator
from .results import Eigenpairs, Estimate

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
    total = sum(block.space.size for block in blocks_of(B).values())

    def search(block: SymmetricOperator, seed: int) -> Eigenpairs:
        n = block.space.size
        share = None if memory is None else memory * n // total
        return top_eigenpairs(
            block, min(k, n), which=which, tol=tol, guards=guards, max_matvecs=max_matvecs, memory=share,
            confidence=confidence, seed=seed,
        )  # fmt: skip

    return in_step(B, search, seed=seed)


def block_traces(
    B: BlockDiagonal,
    *,
    rtol: float = 0.05,
    method: str = "auto",
    min_matvecs: int = 30,
    max_matvecs: int = 200,
    confidence: float = 0.95,
    memory: int | None = None,
    seed: int | torch.Generator | None = None,
) -> dict[str, Estimate]:
    """The trace of every block of a matrix, say of every layer of a model; see `trace`.

    Random vectors of different blocks are independent: the traces add up to that of the whole matrix if the blocks
    cover it, and squares of their standard errors to the square of its.

    Args:
        B: the blocks.
        rtol: stop with a block when the half-width of its interval is below ``rtol * |value|``.
        method: as in `trace`, for every block.
        min_matvecs: products of each block before the first look.
        max_matvecs: most products of each block; where they ran out, ``converged`` is False.
        confidence: nominal coverage of each interval.
        memory: bytes that the vectors of blocks that go in step may take; by default 2 GiB.
        seed: int, generator, or None for fresh entropy; every block has its own random numbers.

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

    def estimate(block: SymmetricOperator, seed: int) -> Estimate:
        return trace(
            block, rtol=rtol, method=method, min_matvecs=min_matvecs, max_matvecs=max_matvecs, confidence=confidence,
            seed=seed,
        )  # fmt: skip

    return in_step(B, estimate, seed=seed, vectors=2 * max_matvecs, memory=memory)
