r"""Hessian-vector products from first derivatives alone: differences of two gradients.

.. math:: H v \approx \frac{\nabla L(\theta + h v) - \nabla L(\theta - h v)}{2h}

For what torch cannot differentiate twice: flash attention, custom kernels, checkpoints of some kinds. The
step is a compromise: its square is the truncation error, its inverse multiplies the rounding error of the
gradients, so it is calibrated, and the error that is left is measured and said.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..elsewhere import elsewhere
from ..errors import SettingError
from ..objective import Objective
from ..space import contiguous_rows
from .once import second_order_errors

__all__ = ["FiniteDifference"]

_SAFETY = 3.0
_FARTHEST = 8  # factors of two between the first step tried and the last
_ALL_ATTENTION = [
    SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH,
]  # fmt: skip


class FiniteDifference:
    """The map ``V -> H V``, (n, k) -> (n, k), by central differences of the gradient.

    Steps are relative: ``h = step * |theta| / |v|``. At the first product ``step`` is calibrated in a
    direction of large curvature (a random one, multiplied once by the Hessian), where the third derivative
    counts: halved or doubled as long as that brings the products of a step and of twice that step closer.
    The two are compared again at the 1st, 2nd, 4th, 8th ... product. Where the gradient has kinks (ReLU)
    within a step, the difference holds their curvature too, which double backward knows nothing of.

    Args:
        objective: what is differentiated; its parameters must be float32 or float64.
        memory: unused: no graph outlives one gradient.

    Attributes:
        error: largest error found so far of a product with a unit vector, relative to the largest
            product with a unit vector; three times the difference between two step sizes.

    Raises:
        SettingError: for parameters in half precision.
    """

    name = "finite_difference"

    def __init__(self, objective: Objective, memory: int | None = None) -> None:
        space = objective.space
        for name, dtype in zip(space.names, space.dtypes, strict=True):
            if torch.finfo(dtype).bits < 32:
                raise SettingError(
                    f"finite differences need parameters in float32 or float64, {name} is {dtype}: the steps would be "
                    'rounded away; pass kernel="retained", or a float32 copy of the model (model.float())'
                )
        self.objective = objective
        self.step = 0.0
        self._absolute = 0.0  # error of a product with a unit vector
        self._largest = 0.0  # norm of the largest product with a unit vector
        self._products = 0
        self._next_check = 1

    @property
    def error(self) -> float:
        """See the class."""
        return _SAFETY * self._absolute / self._largest if self._largest > 0 else 0.0

    @property
    def _key(self) -> tuple[str, int, int]:
        return ("finite difference step", id(self.objective.loss), self.objective.ranks.size)  # the ranks have one step

    def calibrate(self) -> None:
        """Find the step, where that has not been done."""
        if self.step:
            return
        space = self.objective.space
        usual = torch.finfo(min(space.dtypes, key=lambda d: torch.finfo(d).bits)).eps ** (1 / 3)
        first = self.objective.kept.get(self._key, usual)  # the last snapshot's step is a good start
        v = torch.randn(space.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        v = v.to(space.device, space.dtype)
        with self.objective.isolated(), self._any_attention(), second_order_errors(self.objective):
            curved = self._difference(v / v.norm(), 2 * first)
            norm = float(curved.norm())
            v = curved / norm if norm > 0 and math.isfinite(norm) else v / v.norm()
            self._descend(v, first)

    def _descend(self, v: Tensor, first: float) -> None:
        """Walk from ``first``, by factors of two, to the step at which two steps agree best."""
        found: dict[int, Tensor] = {}

        def product(power: int) -> Tensor:
            if power not in found:
                found[power] = self._difference(v, first * 2.0**power)
            return found[power]

        def change(power: int) -> float:
            size = float((product(power + 1) - product(power)).norm())
            return size if math.isfinite(size) else math.inf

        down = -1 if change(-1) < change(0) else 1
        best = 0
        while abs(best) < _FARTHEST and change(best + down) < change(best):
            best += down
            for power in [p for p in found if abs(p - best) > 2]:
                del found[power]
        self.step = self.objective.kept[self._key] = first * 2.0**best
        self._note(change(best), float(product(best).norm()))

    def __call__(self, V: Tensor) -> Tensor:
        """H V for a block of vectors V (n, k), to within `error`."""
        self.calibrate()
        with self.objective.isolated(), self._any_attention(), second_order_errors(self.objective):
            rows = contiguous_rows(V)
            out = torch.empty_like(rows)
            for row, norm, result in zip(rows, rows.norm(dim=1).tolist(), out, strict=True):
                result.copy_(self._checked(row / norm) * norm if norm > 0 else row)
        return out.T

    def value_and_gradient(self) -> tuple[float, Tensor]:
        """The objective's value and gradient (n,)."""
        return self.objective.value_and_gradient()

    def _checked(self, unit: Tensor) -> Tensor:
        """The product with a unit vector, at times compared with that of another step."""
        product = self._difference(unit, self.step)
        self._products += 1
        if self._products >= self._next_check:
            self._next_check = 2 * self._products
            other = self._difference(unit, 2 * self.step)
            self._note(float((other - product).norm()), float(product.norm()))
        return product

    def _note(self, change: float, norm: float) -> None:
        self._absolute, self._largest = max(self._absolute, change), max(self._largest, norm)

    def _difference(self, unit: Tensor, step: float) -> Tensor:
        space = self.objective.space
        theta = [p.detach() for p in self.objective.parameters.values()]
        norms = torch.stack([t.norm().to(unit.dtype) for t in theta])
        h = step * (float(norms.norm()) or 1.0)
        direction = space.unflatten(unit)
        shares = self.objective.shares

        def own() -> Tensor:
            out = torch.zeros_like(unit)
            for index, share in enumerate(shares):
                ahead = self._gradient(index, [t + h * d for t, d in zip(theta, direction, strict=True)])
                behind = self._gradient(index, [t - h * d for t, d in zip(theta, direction, strict=True)])
                out.add_(ahead - behind, alpha=share / (2 * h))
            return out

        return self.objective.ranks.total(own)

    def _gradient(self, index: int, values: list[Tensor]) -> Tensor:
        """The gradient of one batch's loss where the parameters have these values."""
        with elsewhere(self.objective, values):
            return self.objective.space.flatten(self.objective.gradients(self.objective.batch_loss(index)))

    @contextlib.contextmanager
    def _any_attention(self) -> Iterator[None]:
        """Allow the fused attention that the isolation forbids: it has a first derivative."""
        with sdpa_kernel(_ALL_ATTENTION):
            yield
