"""Deep matrix factorisation: minimisers of ||M - W_L ... W_1||_F^2 of every kind, and their exact sharpness.

Factors are lists ``[W_1, ..., W_L]``, W_1 (width, columns of M), W_L (rows of M, width), all between (width, width),
in float64. With ``A_l = W_L ... W_{l+1}`` and ``B_l = W_{l-1} ... W_1`` the Hessian's top eigenvalue at a minimiser is

    lambda_max = 2 lambda_max( sum_l  A_l A_l'  (x)  B_l' B_l ),

and its minimum over all minimisers is ``2 L sigma_1(M)^{2 (L-1) / L}`` (Kamber and Parhi 2025, arXiv 2509.25783).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor, nn

from losscope.landscape import Hessian, Objective, top_eigenpairs

__all__ = [
    "balanced", "bound", "exact_sharpness", "flattened", "frobenius_imbalance", "imbalance", "least_sharpness",
    "measured_sharpness", "mixed", "network", "product", "reweighted", "squared_error", "target",
]  # fmt: skip

Factors = Sequence[Tensor]


def target(rows: int, columns: int, seed: int) -> Tensor:
    """A Gaussian matrix (rows, columns) with a top singular value of about 2."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) / math.sqrt(max(rows, columns))


def product(factors: Factors) -> Tensor:
    """W_L ... W_1."""
    return reduce(lambda right, left: left @ right, factors)


def balanced(m: Tensor, depth: int, width: int, seed: int) -> list[Tensor]:
    """A minimiser whose factors share the singular values of M evenly, in random frames between."""
    generator = torch.Generator().manual_seed(seed)
    u, s, vh = torch.linalg.svd(m, full_matrices=False)
    frames = [vh.T]
    for _ in range(depth - 1):
        gauss = torch.randn(width, len(s), generator=generator, dtype=m.dtype)
        frames.append(torch.linalg.qr(gauss).Q)
    frames.append(u)
    return [left * s ** (1 / depth) @ right.T for right, left in pairwise(frames)]


def mixed(factors: Factors, spread: float, seed: int) -> list[Tensor]:
    """Another minimiser with the same product: an invertible matrix and its inverse between neighbours.

    Args:
        factors: of the minimiser to start from.
        spread: standard deviation of the logarithms of those matrices' singular values; 0 rotates only.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    found = list(factors)
    for layer in range(len(found) - 1):
        n = found[layer].shape[0]
        left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q for _ in range(2))
        scales = (spread * torch.randn(n, generator=generator, dtype=torch.float64)).exp()
        found[layer] = left @ (scales[:, None] * (right @ found[layer]))
        found[layer + 1] = ((found[layer + 1] @ right.T) / scales) @ left.T
    return found


def flattened(factors: Factors, steps: int = 300) -> list[Tensor]:
    """The flattest minimiser that descent on the sharpness among the minimisers with one product finds.

    It descends log lambda_max over the logarithms of the invertible matrices between neighbours, by Adam.
    """
    logs = [torch.zeros(len(w), len(w), dtype=w.dtype, requires_grad=True) for w in factors[:-1]]
    optimizer = torch.optim.Adam(logs, lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def moved() -> list[Tensor]:
        found = list(factors)
        for layer, log in enumerate(logs):
            found[layer] = torch.matrix_exp(log) @ found[layer]
            found[layer + 1] = found[layer + 1] @ torch.matrix_exp(-log)
        return found

    for _ in range(steps):
        optimizer.zero_grad()
        exact_sharpness(moved()).log().backward()
        optimizer.step()
        schedule.step()
    return [w.detach() for w in moved()]


def reweighted(m: Tensor, depth: int, width: int, seed: int, first: float, others: float) -> list[Tensor]:
    """A balanced minimiser, then one factor of each singular direction moved from the last layer to the first.

    With singular values s_i of M and ``first`` = c, the norm of W_1 along the top direction is c s_1^{1/L}, that of W_L
    s_1^{1/L} / c; along all others they are ``others`` times and one over ``others`` times as large.
    """
    u, s, vh = torch.linalg.svd(m, full_matrices=False)
    scales = torch.full_like(s, others)
    scales[0] = first
    found = balanced(m, depth, width, seed)
    found[0] = found[0] @ (vh.T * scales) @ vh
    found[-1] = (u / scales) @ u.T @ found[-1]
    return found


def frobenius_imbalance(factors: Factors) -> float:
    """Largest over smallest Frobenius norm of a factor."""
    norms = [float(torch.linalg.matrix_norm(w)) for w in factors]
    return max(norms) / min(norms)


def sides(factors: Factors) -> list[tuple[Tensor, Tensor]]:
    """(A_l, B_l) of every layer: what stands left and right of it."""
    rows, columns = factors[-1].shape[0], factors[0].shape[1]
    identities = [torch.eye(n, dtype=torch.float64) for n in (rows, columns)]
    lefts, rights = [identities[0]], [identities[1]]
    for left, right in zip(reversed(factors[1:]), factors[:-1], strict=True):
        lefts.append(lefts[-1] @ left)
        rights.append(right @ rights[-1])
    return list(zip(reversed(lefts), rights, strict=True))


def exact_sharpness(factors: Factors) -> Tensor:
    """The top eigenvalue of the Hessian at a minimiser, from a matrix of size (rows columns, rows columns)."""
    total = sum(torch.kron(a @ a.T, b.T @ b) for a, b in sides(factors))
    assert isinstance(total, Tensor)
    return 2 * torch.linalg.eigvalsh(total)[-1]


def bound(factors: Factors) -> float:
    """The upper bound ``2 sum_l ||A_l||^2 ||B_l||^2`` in spectral norms; exact for L = 2 and for scalars."""
    return 2 * sum(norm**2 for norm in side_norms(factors))


def side_norms(factors: Factors) -> list[float]:
    """``||A_l|| ||B_l||`` of every layer, in spectral norms."""
    return [float(torch.linalg.matrix_norm(a, 2) * torch.linalg.matrix_norm(b, 2)) for a, b in sides(factors)]


def imbalance(factors: Factors) -> float:
    """Largest over smallest ``||A_l|| ||B_l||``; 1 at a spectral-norm balanced minimiser."""
    norms = side_norms(factors)
    return max(norms) / min(norms)


def least_sharpness(m: Tensor, depth: int) -> float:
    """The smallest sharpness that a minimiser of this depth has."""
    return 2 * depth * float(torch.linalg.matrix_norm(m, 2)) ** (2 * (depth - 1) / depth)


def network(factors: Factors) -> nn.Sequential:
    """The factors as linear layers without biases, in float64."""
    layers = [nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=torch.float64) for w in factors]
    for layer, weight in zip(layers, factors, strict=True):
        layer.weight.data.copy_(weight)
    return nn.Sequential(*layers)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """``||M - W_L ... W_1||_F^2``, for the identity as inputs and M' as targets."""
    return (outputs - targets).square().sum()


def measured_sharpness(model: nn.Module, m: Tensor, seed: int = 0) -> float:
    """The same eigenvalue by losscope, which knows nothing of factors: Lanczos on Hessian-vector products."""
    data = [(torch.eye(m.shape[1], dtype=m.dtype), m.T)]
    hessian = Hessian(Objective(model, data, criterion=squared_error))
    return float(top_eigenpairs(hessian, tol=1e-9, seed=seed).values[0])
