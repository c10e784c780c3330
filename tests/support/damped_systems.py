"""Random damped systems, and what is known of their solutions."""

import functools

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from landscape_cases import dense_hessian, mlp, selected
from losscope.landscape import (
    Objective,
)
from losscope.landscape.operators import DenseOperator
from spectra import rotated

F64 = torch.float64


class Positive(DenseOperator):
    """A matrix that says it is positive semi-definite, and keeps the widths of its products."""

    psd = True

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(matrix)
        self.widths: list[int] = []

    def product(self, V: Tensor) -> Tensor:
        self.widths.append(V.shape[1])
        return super().product(V)


def drawn(seed: int, n: int, condition: float, *, indefinite: bool = False) -> tuple[Tensor, Tensor, float]:
    """A matrix (n, n), a right-hand side (n,) and a damping: the damped matrix has this condition and norm 1."""
    generator = torch.Generator().manual_seed(seed)
    values = condition ** -torch.rand(n, generator=generator, dtype=F64)
    values[0], values[-1] = 1.0, 1 / condition
    if indefinite:
        values *= torch.where(torch.rand(n, generator=generator) < 0.3, -1.0, 1.0)
        values[n // 2] = -0.5
    damping = 1 / condition if seed % 2 else 0.3 / condition
    A = rotated(values - damping, seed)
    return A, torch.randn(n, generator=generator, dtype=F64), damping


def damped(A: Tensor, damping: float) -> Tensor:
    return A.double() + damping * torch.eye(len(A), dtype=F64)


def true_residual(A: Tensor, x: Tensor, b: Tensor, damping: float) -> Tensor:
    return torch.linalg.vector_norm(b.double() - damped(A, damping) @ x.double(), dim=0)


def least_in_krylov_space(A: Tensor, b: Tensor, damping: float, steps: int) -> float:
    """The least eigenvalue of A + damping I on its Krylov space of b, orthogonalised as far as it goes."""
    B, columns = damped(A, damping), [b / b.norm()]
    for _ in range(steps - 1):
        w, Q = B @ columns[-1], torch.stack(columns, dim=1)
        for _ in range(3):
            w = w - Q @ (Q.T @ w)
        if w.norm() < 1e-10:
            break
        columns.append(w / w.norm())
    Q = torch.stack(columns, dim=1)
    return float(torch.linalg.eigvalsh(Q.T @ B @ Q)[0])


@functools.cache
def digits() -> tuple[nn.Module, Objective, Tensor, Tensor]:
    """A tanh network of 610 parameters on 300 digits, little trained; its Hessian and a gradient of it."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.random.default_rng(0).permutation(len(images))[:300]
    x, y = torch.tensor(images[chosen] / 8 - 1), torch.tensor(labels[chosen])
    torch.manual_seed(0)
    model = mlp(64, 8, 10).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    H = dense_hessian(F.cross_entropy(model(x), y), selected(model))
    objective = Objective(model, (x, y), criterion=nn.CrossEntropyLoss())
    return model, objective, H, objective.gradient()
