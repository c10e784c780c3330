"""The spectral density of every block of a matrix, say of every layer of a model, in one call."""

from __future__ import annotations

import torch

from .compositions import BlockDiagonal
from .density import spectral_density
from .in_step import in_step
from .operators import SymmetricOperator
from .spectral_measure import SpectralDensity

__all__ = ["block_densities"]

_BASIS = 1024  # vectors that one may hold which goes on until its error is small


def block_densities(
    B: BlockDiagonal,
    *,
    vectors: int = 8,
    steps: int = 64,
    deflate: int | None = None,
    rtol: float | None = None,
    max_matvecs: int | None = None,
    memory: int | None = None,
    confidence: float = 0.95,
    seed: int | torch.Generator | None = None,
) -> dict[str, SpectralDensity]:
    """The density of the eigenvalues of every block; see `spectral_density`.

    The blocks go in step: one pass over the data makes the products of all. Blocks of no more than
    ``vectors * steps`` entries, as a bias has, are known exactly.

    Args:
        B: the blocks.
        vectors: random starts of each.
        steps: Lanczos steps of each start.
        deflate: how many of each block's largest eigenvalues in magnitude are searched for and taken out first; 0
            for plain quadrature, None for those that are resolved on the way. At most the entries of a block.
        rtol: stop with a block when the bound of its error is below ``rtol`` times its largest eigenvalue in
            magnitude.
        max_matvecs: most products to spend on each block for that.
        memory: bytes that Lanczos vectors may take; by default 2 GiB. Blocks that do not fit together follow one
            another.
        confidence: nominal coverage of bounds and intervals, for each block by itself.
        seed: int, generator, or None for fresh entropy; every block has its own random numbers.

    Returns:
        The densities by the blocks' names, each of mass 1; ``size`` is the block's own, so that the densities
        weighted with their sizes make that of the block-diagonal matrix.

    Raises:
        SettingError: if B is no `BlockDiagonal`, or an argument means nothing.
        NonFiniteError: if a product is NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import BlockDiagonal, Hessian, Objective, block_densities
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> data = (torch.eye(2), torch.zeros(2, 1))
        >>> layers = BlockDiagonal(Hessian(Objective(model, data, criterion=torch.nn.MSELoss())))
        >>> {name: len(density.nodes) for name, density in block_densities(layers, seed=0).items()}
        {'0': 9, '2': 4}
    """

    def estimate(block: SymmetricOperator, seed: int) -> SpectralDensity:
        taken = deflate if deflate is None else min(deflate, block.space.size)
        return spectral_density(
            block, vectors=vectors, steps=steps, deflate=taken, rtol=rtol, max_matvecs=max_matvecs, memory=memory,
            confidence=confidence, seed=seed,
        )  # fmt: skip

    held = vectors * steps if rtol is None else max(vectors * steps, _BASIS)
    return in_step(B, estimate, seed=seed, vectors=held, memory=memory)
