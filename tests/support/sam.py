"""Sharpness-aware minimisation in the shape of the wrappers that people use; torch has none."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class SAM(Optimizer):
    """Steps with the gradient at ``w + rho g/|g|``; adaptive: at ``w + rho w^2 g/|w g|`` by coordinates."""

    def __init__(
        self, params: Iterable[Any], base_optimizer: type[Optimizer], rho: float = 0.05, adaptive: bool = False,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(params, {"rho": rho, "adaptive": adaptive, **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        norm = self._grad_norm()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["old_p"] = p.data.clone()
                    scale = p.square() if group["adaptive"] else 1.0
                    p.add_(scale * p.grad * (group["rho"] / (norm + 1e-12)))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = self.state[p]["old_p"]
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is not None
        closure = torch.enable_grad()(closure)
        self.first_step(zero_grad=True)
        closure()
        self.second_step()

    def _grad_norm(self) -> Tensor:
        scaled = [
            ((p.abs() if group["adaptive"] else 1.0) * p.grad).norm()
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        return torch.stack(scaled).norm()


class SAMOnOtherGroups(SAM):
    """Whose base optimizer has been given the parameters, and not the groups."""

    def __init__(self, params: Iterable[Any], base_optimizer: Optimizer, rho: float = 0.05) -> None:
        Optimizer.__init__(self, params, {"rho": rho, "adaptive": False})
        self.base_optimizer = base_optimizer


class LookSAM(SAM):
    """Has the shape and a setting of its own, as the method that perturbs in every k-th step only."""

    def __init__(self, params: Iterable[Any], base_optimizer: type[Optimizer], k: int = 10, **kwargs: Any) -> None:
        super().__init__(params, base_optimizer, **kwargs)
        self.k = k
