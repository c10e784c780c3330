"""Deep matrix factorisation: a minimiser whose sharpness is known exactly."""

import functools
import itertools

import torch
from torch import Tensor, nn

from losscope.landscape import Objective


class DeepProduct(nn.Module):
    """``W_L ... W_1`` as a module; the loss is the squared distance to a target matrix."""

    def __init__(self, factors: list[Tensor]) -> None:
        super().__init__()
        self.factors = nn.ParameterList([nn.Parameter(f) for f in factors])

    def forward(self) -> Tensor:
        return functools.reduce(lambda product, factor: factor @ product, self.factors)


def factorisation(widths: list[int], seed: int) -> tuple[DeepProduct, Objective, float]:
    """A global minimiser of ``||M - W_L ... W_1||_F^2`` and its exact sharpness.

    At zero loss the Hessian is ``2 J'J``, and ``JJ'`` is ``sum_l (A_l A_l') (x) (B_l' B_l)`` with
    ``A_l = W_L ... W_{l+1}`` and ``B_l = W_{l-1} ... W_1``.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = itertools.pairwise(widths)
    factors = [torch.randn(b, a, generator=generator, dtype=torch.float64) for a, b in pairs]
    model = DeepProduct(factors)
    target = model().detach()
    exact = torch.zeros(widths[0] * widths[-1], widths[0] * widths[-1], dtype=torch.float64)
    for index in range(len(factors)):
        A = torch.eye(widths[-1], dtype=torch.float64)
        for factor in reversed(factors[index + 1 :]):
            A = A @ factor
        B = torch.eye(widths[0], dtype=torch.float64)
        for factor in factors[:index]:
            B = factor @ B
        exact += torch.kron(A @ A.T, B.T @ B)
    objective = Objective(model, [target], loss_fn=lambda m, batch: (batch - m()).square().sum(), weight=lambda _: 1)
    return model, objective, 2 * float(torch.linalg.eigvalsh(exact)[-1])
