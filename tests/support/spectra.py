"""Symmetric matrices of known spectrum, and an operator that counts its products."""

import torch
from torch import Tensor

from losscope.landscape import SymmetricOperator
from losscope.landscape.space import VectorSpace


class Diagonal(SymmetricOperator):
    """A diagonal matrix that counts its products: for a Gaussian start, as general as any matrix."""

    kernel = "diagonal"

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.space = VectorSpace(len(values), values.dtype, values.device)
        self.products = 0

    def product(self, V: Tensor) -> Tensor:
        self.products += V.shape[1]
        return self.values[:, None] * V


def rotated(values: Tensor, seed: int = 0) -> Tensor:
    """A dense symmetric matrix with these eigenvalues and random eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0].to(values.dtype)
    A = (Q * values) @ Q.T
    return (A + A.T) / 2


def with_outliers(n: int, outliers: list[float], bulk: float = 1.0) -> Tensor:
    """Eigenvalues spread evenly over [0, bulk], and the outliers."""
    return torch.cat([torch.linspace(0, bulk, n - len(outliers), dtype=torch.float64), torch.tensor(outliers).double()])


def extremes(A: Tensor, k: int, which: str) -> Tensor:
    """The k extremal eigenvalues of a dense matrix, best first; both ends as they descend."""
    values = torch.linalg.eigvalsh(A.double())
    if which == "BE":
        return torch.cat([values.flip(0)[: (k + 1) // 2], values.flip(0)[len(values) - k // 2 :]])
    order = {"LA": values.flip(0), "SA": values, "LM": values[values.abs().argsort(descending=True)]}[which]
    return order[:k]


SPECTRA = {
    "outliers": with_outliers(300, [20.0, 50.0, 100.0]),
    "bulk": with_outliers(300, []),
    "crowded": with_outliers(300, [1.1, 1.11, 1.12, 1.13]),
    "hidden": with_outliers(300, [1.3]),
    "indefinite": torch.linspace(-3, 1, 300, dtype=torch.float64),
    "decaying": torch.arange(1, 301, dtype=torch.float64) ** -2,
    "clustered": torch.cat([torch.zeros(280), torch.full((20,), 2.0)]).double(),
}
