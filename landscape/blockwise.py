"""Every layer's own curvature, in one call: the same searches for all blocks, with their products made together."""

from __future__ import annotations

import torch

from .compositions import BlockDiagonal
from .errors import SettingError
from .krylov import Search
from .results import Eigenpairs
from .space import generator_for

__all__ = ["block_eigenpairs"]


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
    if not isinstance(B, BlockDiagonal):
        raise SettingError(f"expected a BlockDiagonal, e.g. BlockDiagonal(Hessian(objective)); got {type(B).__name__}")
    generator, total = generator_for(seed, B.space.device), sum(block.space.size for block in B.blocks.values())
    searches = {}
    for name, block in B.blocks.items():
        of_its_own = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        share = None if memory is None else memory * block.space.size // total
        size = min(k, block.space.size)
        searches[name] = Search(
            block, size, which, tol, None, guards, max_matvecs, share, confidence, of_its_own,
        )  # fmt: skip
    with B.held():
        B.plan(max(s.planned for s in searches.values()), max(s.block for s in searches.values()))
        while active := {name: s for name, s in searches.items() if s.found is None}:
            products = B.products({name: s.newest for name, s in active.items()})
            for name, product in products.items():
                active[name].absorb(product)
    return {name: s.found for name, s in searches.items() if s.found is not None}
